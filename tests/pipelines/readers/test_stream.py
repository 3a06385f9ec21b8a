import random
import shutil
import tarfile
from functools import partial

import pytest
import torch

from pipelines.errors import InputError, StageError
from pipelines.readers import stream
from pipelines.readers.pictures import shard_pictures, squashed
from pipelines.readers.stream import PictureStream
from pipelines.storage.shards import read_records

# The tiny project's clean set: 10 training photographs in 4 shards of at most 3.
SMALL = partial(squashed, size=32)


def make(project, **changes) -> PictureStream:
    options = {"cache_bytes": 0, **changes}
    return PictureStream(project.layout.clean, ["train"], SMALL, **options)


def keys(pictures: PictureStream, seed: int | None) -> list[str]:
    return [pictures.keys[i] for indices, _ in pictures.batches(seed, 4) for i in indices]


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("workers", [0, 1, 2, 7])  # 7: more than shards and batches
def test_each_picture_once_and_the_same_order_for_any_number_of_workers(project, workers):
    expected = shard_pictures(project.layout.clean, ["train"], SMALL)
    by_key = dict(zip([r["key"] for r in expected.records], expected, strict=True))
    pictures = make(project, num_workers=workers)
    batches = list(pictures.batches(1, 4))
    assert [len(images) for _, images in batches] == [4, 4, 2]
    assert len(pictures) == 10
    seen = {pictures.keys[i]: x for b in batches for i, x in zip(*b, strict=True)}
    assert seen.keys() == by_key.keys()
    assert all(torch.equal(image, by_key[key]) for key, image in seen.items())
    assert list(seen) == keys(make(project), 1)


def test_order_depends_on_the_seed_alone(project):
    pictures, data = make(project), project.layout.clean / "data"
    first, second = keys(pictures, 1), keys(pictures, 2)
    random.seed(1)
    assert keys(make(project), 2) == second  # as after a restart
    assert first != second
    stored = [r["key"] for s in sorted(data.glob("train-*.tar")) for r in read_records(s)]
    assert keys(pictures, None) == stored


def test_epochs_from_memory_are_the_epochs_from_the_shards(project, monkeypatch):
    cached, uncached = make(project, cache_bytes=2**20), make(project)
    list(cached.batches(0, 4))
    monkeypatch.setattr(stream, "decode_image", lambda data: pytest.fail("decoded again"))
    again = list(cached.batches(1, 4))
    with pytest.raises(pytest.fail.Exception):
        list(uncached.batches(1, 4))
    monkeypatch.undo()
    for mine, other in zip(again, uncached.batches(1, 4), strict=True):
        assert torch.equal(mine[0], other[0])
        assert torch.equal(torch.stack(mine[1]), torch.stack(other[1]))
    assert keys(cached, None) == keys(uncached, None)


def test_what_is_larger_than_the_limit_is_not_kept(project):
    pictures = make(project, cache_bytes=10 * 3 * 32 * 32 - 1)
    list(pictures.batches(0, 4))
    assert not pictures._cache
    fits = make(project, cache_bytes=10 * 3 * 32 * 32)
    list(fits.batches(0, 4))
    assert sum(len(entries) for entries in fits._cache.values()) == 10


def test_an_epoch_that_was_left_is_not_taken_for_a_whole_one(project):
    pictures = make(project, cache_bytes=2**20)
    next(pictures.batches(0, 4))
    assert sorted(keys(pictures, 0)) == sorted(keys(make(project), 0))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_small_buffer_mixes_and_loses_nothing(project, workers):
    pictures = make(project, buffer_bytes=1, num_workers=workers)
    assert pictures._buffer == 1
    order = keys(pictures, 0)
    assert sorted(order) == sorted(keys(pictures, None))
    assert order != keys(make(project), 0)


def test_only_some_keys(project):
    chosen = sorted(keys(make(project), None))[::3]
    pictures = make(project, keys=chosen, num_workers=2)
    assert len(pictures) == 4
    assert pictures.rows["key"].to_pylist() == pictures.keys
    assert sorted(keys(pictures, 5)) == chosen


def test_the_global_random_state_is_left_alone(project):
    before, python = torch.get_rng_state(), random.getstate()
    keys(make(project, num_workers=2), 0)
    assert torch.equal(torch.get_rng_state(), before)
    assert random.getstate() == python


def test_memory_is_bounded_by_buffer_and_batch(project, monkeypatch):
    """Encoded pictures alive in the pipeline: the buffer and the batches, not the set."""
    alive = peak = 0

    class Counted(bytes):
        def __new__(cls, data: bytes) -> "Counted":
            nonlocal alive, peak
            alive += 1
            peak = max(peak, alive)
            return super().__new__(cls, data)

        def __del__(self) -> None:
            nonlocal alive
            alive -= 1

    mixed = stream._mixed_batches
    monkeypatch.setattr(
        stream,
        "_mixed_batches",
        lambda samples, **rest: mixed(({**s, "png": Counted(s["png"])} for s in samples), **rest),
    )
    pictures = PictureStream(project.layout.perturbed, ["train"], buffer_bytes=1, cache_bytes=0)
    assert len(pictures) > 100
    for _ in pictures.batches(0, 2):
        pass
    assert 0 < peak < 10


def test_no_pictures_of_a_split(project):
    with pytest.raises(InputError, match="must hold pictures of split holdout, got none"):
        PictureStream(project.layout.clean, ["holdout"])
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        next(make(project).batches(0, 0))


@pytest.mark.parametrize("workers", [0, 2])
def test_shards_that_lack_pictures_are_reported(project, tmp_path, workers):
    shutil.copytree(project.layout.clean, tmp_path / "clean")
    path = next((tmp_path / "clean" / "data").glob("train-*.tar"))
    with tarfile.open(path) as tar:
        size = tar.getmembers()[2].offset
    path.write_bytes(path.read_bytes()[:size] + bytes(1024))
    pictures = PictureStream(tmp_path / "clean", ["train"], num_workers=workers)
    with pytest.raises(StageError, match="must hold the 10 pictures of the metadata, got"):
        list(pictures.batches(0, 4))
    path.write_bytes(path.read_bytes()[: size // 2])
    with pytest.raises(StageError, match="is damaged at byte"):
        list(pictures.batches(0, 4))
