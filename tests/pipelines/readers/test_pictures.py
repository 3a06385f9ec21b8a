from functools import partial

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from pipelines.errors import InputError
from pipelines.readers import pictures
from pipelines.readers.pictures import (
    batches_of,
    opinions,
    parquet_pictures,
    shard_pictures,
    squashed,
)
from pipelines.storage.images import decode_image, decode_png, planes, to_tensor
from pipelines.storage.manifest import read_manifest
from pipelines.storage.shards import ShardIndex
from victims.base import squash


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
    found = shard_pictures(project.layout.clean, ["train", "test"], partial(squashed, size=32))
    keys = [record["key"] for record in found.records]
    assert keys == sorted(keys)
    assert len(found) == 15
    assert {record["split"] for record in found.records} == {"train", "test"}
    index = ShardIndex(project.layout.clean)
    expected = squash(to_tensor(decode_png(index.image_bytes(keys[3]))), 32)
    assert torch.equal(found[3], expected)
    assert torch.equal(found[2:4][1], expected)
    chosen = shard_pictures(project.layout.clean, ["train", "test"], keys=[keys[3], keys[0]])
    assert [record["key"] for record in chosen.records] == [keys[3], keys[0]]
    assert torch.equal(chosen[0], planes(decode_png(index.image_bytes(keys[3]))))
    with pytest.raises(IndexError):
        found[15]


def test_filter_and_select_keep_records_and_pictures_together(project):
    found = shard_pictures(project.layout.clean, ["train", "test"])
    test = found.filter(lambda record: record["split"] == "test")
    assert len(test) == 5
    for record, image in zip(test.records, test, strict=True):
        assert torch.equal(image, found[found.records.index(record)])
    assert torch.equal(found.select([4, 2])[1], found[2])


def test_pictures_decode_once_up_to_the_limit(project, monkeypatch):
    calls = []
    monkeypatch.setattr(pictures, "decode_image", lambda d: calls.append(1) or decode_image(d))
    monkeypatch.setattr(pictures, "CACHE_BYTES", 2 * 3 * 32 * 32)
    found = shard_pictures(project.layout.clean, ["test"], partial(squashed, size=32))
    first, second, third = found[0:3]
    assert len(calls) == 3
    assert torch.equal(found[0], first)
    assert torch.equal(found[1], second)
    assert len(calls) == 3
    assert torch.equal(found[2], third)
    assert len(calls) == 4


def test_opinions_without_a_spread_get_a_tenth_of_the_scale():
    columns = {"mos": [3.0, 5.0], "mos_std": [0.5, None]}
    columns |= {"score_low": [1.0, 0.0], "score_high": [5.0, 10.0]}
    mos, std = opinions(pa.table(columns))
    assert mos.tolist() == [3.0, 5.0]
    assert std.tolist() == [0.5, 1.0]


def test_no_pictures_of_a_split(project):
    with pytest.raises(InputError, match="must hold pictures of split holdout, got none"):
        shard_pictures(project.layout.clean, ["holdout"])
    with pytest.raises(InputError, match="must hold pictures of split holdout, got none"):
        parquet_pictures(project.layout.clean, "holdout")


def test_manifest_of_an_unfinished_data_set_names_the_command(tmp_path):
    with pytest.raises(InputError, match="run `veneer import` first"):
        read_manifest(tmp_path, "import")


def test_batches_hold_everything_once():
    assert list(batches_of("abcde", 2)) == [tuple("ab"), tuple("cd"), tuple("e")]
    assert list(batches_of("", 2)) == []
