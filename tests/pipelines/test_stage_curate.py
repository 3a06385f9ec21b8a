import json
from collections import Counter

import numpy as np
import pyarrow.parquet as pq
import pytest
import tiny

from pipelines.errors import InputError
from pipelines.hashes import hash_image
from pipelines.images import decode_png
from pipelines.provenance import Manifest
from pipelines.shards import ShardIndex
from pipelines.stages.curate import run_curate

LOOSE = {"curate__phash_distance": 0, "curate__colour_distance": 0}


@pytest.fixture
def own(project, tmp_path) -> tiny.Project:
    return project.copy(tmp_path / "p")


def tables(project):
    folder = project.layout.candidates
    return tuple(
        pq.read_table(folder / f"{n}.parquet").to_pandas() for n in ("metadata", "rejected")
    )


def test_every_candidate_is_kept_or_rejected_with_a_reason(own):
    report = run_curate(own.params(**LOOSE), own.layout, progress=False)
    kept, rejected = tables(own)
    before = Counter(
        record["source_id"]
        for mode in tiny.MODES
        for record in ShardIndex(own.layout.examples("net", mode)).records.values()
    )
    assert Counter(kept.source_id) + Counter(rejected.source_id) == before
    assert (report["in"], report["kept"]) == (before.total(), len(kept))
    assert sum(report["reasons"].values()) == report["rejected"] == len(rejected)
    assert rejected.reason.str.len().min() > 3
    assert (kept.score_adv > kept.score_clean).all()
    manifest = Manifest.read(own.layout.candidates)
    assert manifest.counts.kept == len(kept)
    assert kept.groupby("photograph").split.nunique().max() == 1
    assert json.loads((own.layout.reports / "curation.json").read_text()) == report


def test_dry_run_tells_the_same_and_writes_nothing(own):
    params = own.params(**LOOSE)
    dry = run_curate(params, own.layout, dry_run=True, progress=False)
    assert not own.layout.candidates.exists()
    assert not (own.layout.reports / "curation.json").exists()
    assert run_curate(params, own.layout, progress=False) == dry


def test_same_bytes_with_two_workers_and_again(own, project, tmp_path):
    other = project.copy(tmp_path / "q")
    run_curate(own.params(**LOOSE), own.layout, progress=False)
    run_curate(other.params(**LOOSE, engine__workers=2), other.layout, progress=False)
    files = sorted(own.layout.candidates.glob("*.parquet"))
    assert len(files) == 2
    for file in files:
        assert file.read_bytes() == (other.layout.candidates / file.name).read_bytes()


def test_a_shard_is_hashed_once(own, monkeypatch):
    params = own.params(**LOOSE)
    run_curate(params, own.layout, dry_run=True, progress=False)
    monkeypatch.setattr("pipelines.hashes.hash_image", lambda pixels: 1 / 0)
    run_curate(params, own.layout, progress=False)


def test_hashes_of_a_picture_and_of_its_changes():
    rng = np.random.default_rng(0)
    picture = np.asarray(tiny.colourful(3).resize((128, 96)))
    shape, colour = hash_image(picture)
    grain = np.clip(picture + rng.normal(0, 2, picture.shape), 0, 255).astype(np.uint8)
    near_shape, near_colour = hash_image(grain)
    assert (shape ^ near_shape).bit_count() <= 4
    assert (colour ^ near_colour).bit_count() <= 3
    other, _ = hash_image(np.asarray(tiny.colourful(4).resize((128, 96))))
    assert (shape ^ other).bit_count() > 10
    _, swapped = hash_image(picture[..., ::-1].copy())  # red and blue exchanged
    assert (colour ^ swapped).bit_count() > 3


def test_without_examples_it_says_what_to_run(own):
    import shutil

    shutil.rmtree(own.root / "datasets" / "aes")
    with pytest.raises(InputError, match="run `veneer attack` first"):
        run_curate(own.params(), own.layout)


def test_pictures_carry_their_photograph(project):
    for record in ShardIndex(project.layout.clean).records.values():
        assert record["photograph"] == record["source_id"]
    index = ShardIndex(project.layout.examples("net", "restricted"))
    assert all(r["photograph"] == r["source_id"] for r in index.records.values())
    key = next(iter(index.records))
    assert decode_png(index.image_bytes(key)).ndim == 3
