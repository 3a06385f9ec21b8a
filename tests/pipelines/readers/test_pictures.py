import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from pipelines.errors import InputError
from pipelines.readers import pictures
from pipelines.readers.pictures import Pictures, batches_of, squash
from pipelines.storage.images import decode_png, to_tensor
from pipelines.storage.manifest import read_manifest


def test_squash_has_the_size_and_rounds():
    image = torch.full((3, 40, 60), 100.4 / 255)
    assert torch.equal(squash(image, 32), torch.full((3, 32, 32), 100, dtype=torch.uint8))
    noise = torch.rand(3, 40, 60, generator=torch.Generator().manual_seed(0))
    antialiased = Image.fromarray((noise[0] * 255).round().byte().numpy()).resize(
        (32, 32), Image.Resampling.BILINEAR
    )
    np.testing.assert_allclose(squash(noise, 32)[0].numpy(), antialiased, atol=1.01)


def test_squash_leaves_a_picture_that_fits():
    image = torch.arange(3 * 32 * 32).remainder(256).view(3, 32, 32).byte()
    assert torch.equal(squash(image.float() / 255, 32), image)


def test_pictures_are_in_order_of_key(project):
    some = Pictures(project.layout.clean, ["train", "test"], 32)
    assert some.keys == sorted(some.keys)
    assert len(some) == 15
    image, mos, std = some[3]
    record = some.index.records[some.keys[3]]
    assert {record["split"] for record in some.index.records.values()} == {"train", "test"}
    assert mos == record["mos"]
    assert std == 1.0  # nobody stated a spread: a tenth of 0 to 10
    expected = squash(to_tensor(decode_png(some.index.image_bytes(some.keys[3]))), 32)
    assert torch.equal(image, expected)
    batch = some[torch.tensor([3, 0])]
    assert torch.equal(batch[0], expected)
    assert batch.shape == (2, 3, 32, 32)


def test_pictures_decode_once_while_they_fit(project, monkeypatch):
    calls = []
    monkeypatch.setattr(pictures, "decode_png", lambda data: calls.append(1) or decode_png(data))
    cached = Pictures(project.layout.clean, ["test"], 32)
    cached.image(0), cached.image(0)
    assert len(calls) == 1
    monkeypatch.setattr(pictures, "CACHE_BYTES", 100)
    large = Pictures(project.layout.clean, ["test"], 32)
    assert torch.equal(large.image(0), cached.image(0))
    large.image(0)
    assert len(calls) == 3


def test_pictures_travel_to_a_worker_without_their_cache(project):
    some = Pictures(project.layout.clean, ["test"], 32)
    before = some.image(1)
    size = len(pickle.dumps(Pictures(project.layout.clean, ["test"], 32)))
    sent = pickle.dumps(some)
    assert len(sent) < size + 200
    assert torch.equal(pickle.loads(sent).image(1), before)


def test_no_pictures_of_a_split(project):
    with pytest.raises(InputError, match="must hold pictures of split holdout, got none"):
        Pictures(project.layout.clean, ["holdout"], 32)


def test_manifest_of_an_unfinished_data_set_names_the_command(tmp_path):
    with pytest.raises(InputError, match="run `veneer import` first"):
        read_manifest(tmp_path, "import")


def test_batches_hold_everything_once():
    assert list(batches_of("abcde", 2)) == [tuple("ab"), tuple("cd"), tuple("e")]
    assert list(batches_of("", 2)) == []
