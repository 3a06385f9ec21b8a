from collections import Counter

import datasets
import numpy as np
import pandas as pd
import pytest
import tiny
import torch

from attackers.da3.filters import FILTER_NAMES, FILTERS
from attackers.da3.pretraining import MAX_STRENGTH
from pipelines.errors import InputError
from pipelines.stages.perturb import run_perturb
from pipelines.storage.images import decode_png, to_uint8
from pipelines.storage.records import PretrainSample, image_key
from pipelines.storage.shards import ShardIndex, read_shard
from victims.base import squash

STEPS, SIZE = 2, 64


@pytest.fixture(scope="module")
def index(project):
    return ShardIndex(project.layout.perturbed)


@pytest.fixture(scope="module")
def rejected(project):
    return pd.read_parquet(project.layout.perturbed / "rejected.parquet")


def test_strengths_are_in_the_range_of_their_step(index):
    for row in index.records.values():
        assert row["step"] in range(1, STEPS + 1)
        assert abs(row["strength"]) <= MAX_STRENGTH[row["filter"]] * row["step"] / STEPS + 1e-6
    strong = [r for r in index.records.values() if abs(r["strength"]) > 0.5]
    assert strong
    assert {r["step"] for r in strong} == {STEPS}
    signs = Counter(r["strength"] > 0 for r in index.records.values())
    assert min(signs.values()) > len(index) / 3


def test_each_filter_and_step_occurs_equally_often(index, rejected):
    made = [row["source_id"] for row in index.records.values()] + list(rejected["source_id"])
    assert Counter(name.rpartition("#")[2] for name in made) == {f"{f}-0": 20 for f in FILTER_NAMES}
    steps = Counter(row["step"] for row in index.records.values())
    assert max(steps.values()) - min(steps.values()) <= 20 + len(rejected)
    per_photograph: dict[str, Counter] = {}
    for row in index.records.values():
        per_photograph.setdefault(row["parent_key"], Counter())[row["step"]] += 1
    lost = len(rejected)
    assert all(abs(c[1] - c[2]) <= lost for c in per_photograph.values())  # 7 and 7 of 14


def test_the_record_says_how_to_make_the_picture(project, index):
    clean = ShardIndex(project.layout.clean)
    for key, row in index.records.items():
        small = squash(tiny.pixels(clean, row["parent_key"]), SIZE).float() / 255
        made = FILTERS[row["filter"]](small.unsqueeze(0), torch.tensor([row["strength"]]))
        stored = decode_png(index.image_bytes(key))
        np.testing.assert_array_equal(stored, to_uint8(made[0]))
        assert stored.shape == (row["height"], row["width"], 3) == (SIZE, SIZE, 3)


def test_parent_split_and_score_agree(project, index):
    clean = ShardIndex(project.layout.clean)
    for row in index.records.values():
        parent = clean.records[row["parent_key"]]
        assert parent["parent_key"] is None
        for name in ("split", "mos", "mos_std", "n_votes", "score_low", "score_high", "source"):
            assert row[name] == parent[name]
        assert row["source_id"].startswith(f"{parent['source_id']}#{row['filter']}-")
    assert {row["parent_key"] for row in index.records.values()} == set(clean.records)


def test_shards_hold_their_split_sorted(project):
    for path in (project.layout.perturbed / "data").iterdir():
        rows = list(read_shard(path))
        keys = [row["key"] for row, _ in rows]
        assert keys == sorted(keys)
        assert {row["split"] for row, _ in rows} == {path.name.rpartition("-")[0]}
        assert all(image_key(image) == row["key"] for row, image in rows)


def test_counts_reconcile(project, results, index, rejected):
    counts = results["perturb"].counts
    assert counts.in_ == 20 * 14
    assert (counts.kept, counts.rejected) == (len(index), len(rejected))
    assert counts.in_ == counts.kept + counts.rejected
    assert set(rejected["reason"].str.split(" of ").str[0]) <= {"duplicate"}
    table = pd.read_parquet(project.layout.perturbed / "metadata.parquet")
    assert table["key"].tolist() == [
        key for _, key in sorted((r["split"], k) for k, r in index.records.items())
    ]


@pytest.mark.parametrize("streaming", [False, True])
def test_load_dataset(project, index, streaming, tmp_path):
    data = datasets.load_dataset(
        str(project.layout.perturbed), streaming=streaming, cache_dir=str(tmp_path)
    )
    assert set(data) == {"train", "validation", "test"}
    count = 0
    for row in data["test"]:
        record = index.records[row["__key__"]]
        assert row["json"] == PretrainSample(**record).model_dump()
        np.testing.assert_array_equal(
            np.asarray(row["png"]), decode_png(index.image_bytes(row["__key__"]))
        )
        count += 1
    assert count == sum(record["split"] == "test" for record in index.records.values())


def test_copies_and_limit(project, tmp_path):
    other = project.without_work(tmp_path / "p", "perturb")
    params = other.params(perturb__per_filter=2, perturb__limit=2)
    manifest = run_perturb(params, other.layout, progress=False)
    assert manifest.counts.in_ == 3 * 2 * 14 * 2
    rows = ShardIndex(other.layout.perturbed).records.values()
    for name in FILTER_NAMES:
        # The two copies of a photograph by a filter are at its two steps.
        steps = Counter(r["step"] for r in rows if r["filter"] == name)
        assert abs(steps[1] - steps[2]) <= manifest.counts.rejected
    rejected = pd.read_parquet(other.layout.perturbed / "rejected.parquet")
    # A weak sharpening of a small picture may change nothing.
    assert all("#sharp-" in name for name in rejected["source_id"])


def test_some_of_the_filters(project, index, tmp_path):
    other = project.without_work(tmp_path / "p", "perturb")
    params = other.params(perturb__filters=5, perturb__limit=4, perturb__held_out=1)
    manifest = run_perturb(params, other.layout, progress=False)
    assert manifest.counts.in_ == (4 + 1 + 1) * 5
    rows = list(ShardIndex(other.layout.perturbed).records.values())
    names = {r["parent_key"]: [] for r in rows}
    for row in rows:
        names[row["parent_key"]].append(row["filter"])
    assert all(len(set(own)) == len(own) <= 5 for own in names.values())
    assert len({tuple(sorted(own)) for own in names.values()}) > 1  # each its own


def test_shard_size_changes_no_sample(project, index, tmp_path):
    other = project.without_work(tmp_path / "p", "perturb")
    run_perturb(other.params(perturb__shard_size=100), other.layout, progress=False)
    assert len(list((other.layout.perturbed / "data").iterdir())) == 3
    assert ShardIndex(other.layout.perturbed).records == index.records


def test_seed_changes_every_strength(project, index, tmp_path):
    other = project.without_work(tmp_path / "p", "perturb")
    run_perturb(other.params(seed=1), other.layout, progress=False)
    there = {r["source_id"]: r["strength"] for r in index.records.values()}
    here = {
        r["source_id"]: r["strength"] for r in ShardIndex(other.layout.perturbed).records.values()
    }
    both = here.keys() & there.keys()
    assert len(both) > 200
    assert sum(here[name] == there[name] for name in both) == 0


def test_a_second_run_makes_nothing_again(project, tmp_path, monkeypatch):
    other = project.copy(tmp_path / "p")
    monkeypatch.setattr("pipelines.storage.shard_stage.encode_png", None)
    before = tiny.shard_hashes(other.layout.perturbed)
    run_perturb(other.params(), other.layout, progress=False)
    assert tiny.shard_hashes(other.layout.perturbed) == before


def test_photographs_that_are_not_there_name_their_command(tmp_path):
    other = tiny.Project(tmp_path)
    with pytest.raises(InputError, match="run `veneer import` first"):
        run_perturb(other.params(), other.layout)
