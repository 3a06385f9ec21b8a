import hashlib

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from datasets import Image, load_dataset
from test_shards import members
from test_workfolder import SCALE, contents

from pipelines.errors import StageError
from pipelines.storage.cards import Card
from pipelines.storage.images import decode_png
from pipelines.storage.manifest import Manifest
from pipelines.storage.parquet import write_parquet_folder
from pipelines.storage.records import CleanSample
from pipelines.storage.rejects import Reject

CARD = Card("Title", "Summary.", images=("image", "again"), first="> **Read this.**")


def rows(count, split="train", seed=0):
    """What gives the rows of one file, and how often it was asked to."""

    def shard():
        for record, image in members(count, split, seed=seed):
            yield record, {"image": image, "again": image}

    return shard


def written(out, shards, n_in, **changes):
    arguments = {
        "record": CleanSample,
        "card": CARD,
        "stage": "curate",
        "n_in": n_in,
        "scale": SCALE,
        "parameters": {"seed": 0},
        "inputs": {},
        **changes,
    }
    return write_parquet_folder(out, shards, **arguments)


def test_folder_opens_with_all_fields_and_lossless_pictures(tmp_path):
    out = tmp_path / "set"
    shards = {"train": [rows(3), rows(2, seed=1)], "test": [rows(2, "test", seed=2)]}
    manifest = written(out, shards, 8, rejects=[Reject("bad.png", None, "truncated")])
    assert manifest == Manifest.read(out)
    assert sorted(p.name for p in (out / "data").iterdir()) == [
        "test-00000-of-00001.parquet",
        "train-00000-of-00002.parquet",
        "train-00001-of-00002.parquet",
    ]
    for name, info in manifest.shards.items():
        data = (out / "data" / name).read_bytes()
        assert (info.sha256, info.bytes) == (hashlib.sha256(data).hexdigest(), len(data))
    loaded = load_dataset(str(out), cache_dir=str(tmp_path / "cache"))
    assert {split: len(part) for split, part in loaded.items()} == {"train": 5, "test": 2}
    assert isinstance(loaded["train"].features["again"], Image)
    expected = {record.key: (record, image) for record, image in members(3)}
    found = {row["key"]: row for row in loaded["train"]}
    for key, (record, image) in expected.items():
        fields = {k: v for k, v in found[key].items() if k not in CARD.images}
        assert fields == record.model_dump()
        assert np.array_equal(np.asarray(found[key]["image"]), decode_png(image))
    streamed = load_dataset(str(out), streaming=True, split="test")
    assert [row["key"] for row in streamed] == sorted(loaded["test"]["key"])
    assert pq.read_table(out / "rejected.parquet").to_pylist() == [
        {"source_id": "bad.png", "key": None, "stage": "curate", "reason": "truncated"}
    ]
    text = (out / "README.md").read_text()
    assert text.index("Read this") < text.index("Summary.")


def test_same_rows_same_bytes_in_any_order(tmp_path):
    def backwards():
        return reversed(list(rows(3)()))

    one, other = tmp_path / "one", tmp_path / "other"
    written(one, {"train": [rows(3)]}, 3)
    written(other, {"train": [rows(9)]}, 9)
    written(other, {"train": [backwards]}, 3)
    assert contents(one) == contents(other)


def test_rows_are_sorted_and_groups_are_small(tmp_path):
    written(tmp_path, {"train": [rows(70)]}, 70)
    file = pq.ParquetFile(tmp_path / "data" / "train-00000-of-00001.parquet")
    keys = file.read(columns=["key"])["key"].to_pylist()
    assert keys == sorted(keys)
    assert file.num_row_groups == 2
    assert all(file.schema_arrow.field(name).type != "string" for name in ("mos", "width"))


def test_twins_are_rejected_and_empty_files_left_out(tmp_path):
    manifest = written(tmp_path, {"train": [rows(2), rows(2), rows(3)]}, 7)
    assert manifest.counts.kept == 3
    assert manifest.counts.rejected == 4
    assert list(manifest.shards) == ["train-00000-of-00002.parquet", "train-00001-of-00002.parquet"]
    reasons = pd.read_parquet(tmp_path / "rejected.parquet")["reason"]
    assert reasons.str.startswith("duplicate of ").all()


def test_a_cut_run_leaves_no_manifest(tmp_path):
    def broken():
        yield from rows(2, seed=4)()
        raise RuntimeError("killed")

    written(tmp_path, {"train": [rows(3)]}, 3)
    with pytest.raises(RuntimeError, match="killed"):
        written(tmp_path, {"train": [rows(3), broken]}, 5)
    assert not (tmp_path / "manifest.json").exists()
    written(tmp_path, {"train": [rows(3)]}, 3)
    assert [p.name for p in (tmp_path / "data").iterdir()] == ["train-00000-of-00001.parquet"]


def test_counts_must_reconcile(tmp_path):
    with pytest.raises(StageError, match="got 4 in, 3 kept, 0 rejected"):
        written(tmp_path, {"train": [rows(3)]}, 4)
    with pytest.raises(StageError, match="no sample was kept: 0 of 0"):
        written(tmp_path, {"train": []}, 0)
    with pytest.raises(ValueError, match="must name the Image columns"):
        written(tmp_path, {"train": [rows(3)]}, 3, card=Card("Title", "Summary."))
