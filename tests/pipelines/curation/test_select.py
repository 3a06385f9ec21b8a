import importlib
import itertools
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.curation.select import (
    CANDIDATE,
    CAP,
    DUPLICATE,
    KEPT,
    LEAK,
    NEAR,
    NOT_MOVED,
    QUOTA,
    SPLITS,
    Rules,
    deal_photographs,
    near_pairs,
    select,
)
from pipelines.params import load_params

ROOT = Path(__file__).parents[3]
FRACTIONS = {"train": 0.8, "validation": 0.1, "test": 0.1}
RULES = Rules(
    target=None, per_photograph=1000, phash_distance=4, colour_distance=3, splits=FRACTIONS
)


def make(count: int, seed: int = 0, photographs: int = 30) -> np.ndarray:
    """Candidates that differ from each other: no duplicate, all moved."""
    rng = np.random.default_rng(seed)
    rows = np.zeros(count, CANDIDATE)
    rows["key"] = np.arange(count) + 1
    own = rng.integers(0, photographs, count)
    rows["parent"] = rows["photograph"] = own + 10**6
    rows["draw"] = rng.permutation(count)
    rows["victim"], rows["mode"] = rng.integers(0, 3, count), rng.integers(0, 2, count)
    rows["bin"] = np.minimum(rng.geometric(0.3, count), 9)
    rows["gain"] = rng.uniform(0.01, 0.5, count)
    rows["phash"] = rng.integers(0, 2**64, count, dtype=np.uint64)
    rows["parent_phash"] = rng.integers(0, 2**64, photographs, dtype=np.uint64)[own]
    return rows


def with_rules(**changes) -> Rules:
    return Rules(**{**vars(RULES), **changes})


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 400), st.integers(1, 60), st.integers(1, 100))
def test_select_keeps_what_the_rules_say(seed, count, cap, target):
    rows = make(count, seed)
    rows["gain"][::7] = 0
    chosen = select(rows, with_rules(per_photograph=cap, target=target), seed=seed)
    kept = chosen.reason == KEPT
    assert kept.sum() <= target
    assert not kept[rows["gain"] <= 0].any()
    per_photograph = Counter(rows["photograph"][kept].tolist())
    assert max(per_photograph.values(), default=0) <= cap
    for photograph in per_photograph:
        assert len(set(chosen.split[kept & (rows["photograph"] == photograph)])) == 1
    if (chosen.reason == QUOTA).any():
        assert kept.sum() == target


def test_order_of_the_candidates_does_not_matter():
    rows = make(300)
    rules = with_rules(per_photograph=8, target=100)
    order = np.random.default_rng(1).permutation(300)
    one, two = select(rows, rules, seed=3), select(rows[order], rules, seed=3)
    np.testing.assert_array_equal(one.reason[order], two.reason)
    np.testing.assert_array_equal(one.split[order], two.split)


def test_seed_matters():
    rows = make(300)
    assert (select(rows, RULES, seed=1).split != select(rows, RULES, seed=2).split).any()


def test_duplicates_and_near_duplicates_leave_the_largest_gain():
    rows = make(6, photographs=1)
    rows["victim"], rows["mode"] = 0, 0
    rows["gain"] = [0.1, 0.3, 0.2, 0.4, -0.1, 0.5]
    rows["key"][1] = rows["key"][0]  # the same image twice
    rows["phash"][3] = rows["phash"][2] ^ 0b1111  # 4 bits apart: near
    rows["phash"][5] = rows["phash"][2] ^ 0b11111  # 5 bits: not near 2, but near 3
    chosen = select(rows, RULES, seed=0)
    assert chosen.reason.tolist() == [DUPLICATE, KEPT, KEPT, NEAR, NOT_MOVED, KEPT]
    assert chosen.other[0] == rows["key"][1]
    assert chosen.other[3] == rows["key"][5]
    assert chosen.text(3, RULES) == f"near-duplicate of {int(rows['key'][5]):016x}"


def test_another_colour_or_victim_is_no_near_duplicate():
    rows = make(3, photographs=1)
    rows["victim"], rows["mode"], rows["phash"] = [0, 0, 1], 0, 7
    rows["colour"][1] = 0b1111
    assert (select(rows, RULES, seed=0).reason == KEPT).all()


def test_pictures_of_one_photograph_that_look_alike_are_near_duplicates():
    rows = make(3, photographs=1)
    rows["parent"] = [1, 2, 3]  # crops, or distortions
    rows["victim"], rows["gain"], rows["phash"] = 0, [0.1, 0.3, 0.2], 7
    rows["photograph"][2] += 1
    chosen = select(rows, with_rules(splits=None), seed=0)
    assert chosen.reason.tolist() == [NEAR, KEPT, KEPT]
    assert chosen.other[0] == rows["key"][1]


def test_no_photograph_looks_like_one_of_another_split():
    """Pairs of photographs 3 bits apart: in no pair do both sides stay in different splits."""
    rows = make(2000, photographs=200)
    own = (rows["photograph"] - 10**6).astype(int)
    base = np.random.default_rng(5).integers(0, 2**64, 100, dtype=np.uint64)
    hashes = np.concatenate([base, base ^ np.uint64(0b10101)])
    rows["parent_phash"] = hashes[own]
    chosen = select(rows, RULES, seed=0)
    kept = chosen.reason == KEPT
    assert (chosen.reason == LEAK).sum() > 100
    split = dict(zip(own[kept].tolist(), chosen.split[kept].tolist(), strict=True))
    for i in np.flatnonzero(chosen.reason == LEAK).tolist():
        named = int(chosen.other[i])
        assert split[named - 10**6] > chosen.split[i]
        words = f"near-duplicate of photograph {named:016x} in another split"
        assert chosen.text(i, RULES) == words
    for i in range(100):
        assert split.get(i, -1) == split.get(i + 100, -1) or not {i, i + 100} <= set(split)
    # What is dropped is the earlier split's: every test photograph stays.
    assert not (chosen.reason[chosen.split == SPLITS.index("test")] == LEAK).any()


def test_cap_takes_victims_in_turns():
    rows = make(100, photographs=1)
    rows["victim"] = [0] * 90 + [1] * 10
    rows["mode"] = 0
    rules = with_rules(per_photograph=12)
    chosen = select(rows, rules, seed=0)
    kept = chosen.reason == KEPT
    assert Counter(rows["victim"][kept].tolist()) == {0: 6, 1: 6}
    assert (chosen.reason[~kept] == CAP).all()
    texts = {chosen.text(i, rules) for i in np.flatnonzero(~kept)}
    assert texts == {"more than 12 of its photograph"}


def test_balance_is_as_even_as_the_candidates_allow():
    rows = make(1000)
    rows["bin"] = np.repeat([0, 1, 2], [10, 90, 900])
    rows["victim"], rows["mode"] = 0, 0
    kept = select(rows, with_rules(target=130), seed=0).reason == KEPT
    assert np.bincount(rows["bin"][kept]).tolist() == [10, 60, 60]


def test_balance_is_over_victim_mode_and_bin_together():
    """Cells of 1 to 400 examples: large ones get equal shares, small ones are kept whole."""
    cells = list(itertools.product(range(3), range(2), range(4)))
    sizes = np.round(np.geomspace(1, 400, len(cells))).astype(int)
    cell = np.repeat(np.random.default_rng(0).permutation(len(cells)), sizes)
    rows = make(len(cell), photographs=500)
    for axis, name in enumerate(("victim", "mode", "bin")):
        rows[name] = np.array(cells)[cell, axis]
    rules = with_rules(target=300)
    chosen = select(rows, rules, seed=0)
    kept = np.bincount(cell[chosen.reason == KEPT], minlength=len(cells))
    have = np.bincount(cell, minlength=len(cells))
    assert kept.sum() == 300
    level = kept.max()
    full = kept == have
    assert (have[full] <= level).all()
    assert (kept[~full] >= level - 1).all()  # the last round may not reach all of them
    assert full.sum() > 5
    assert (~full).sum() > 5
    lost = np.flatnonzero(chosen.reason == QUOTA)
    assert len(lost) == len(rows) - 300
    assert chosen.text(lost[0], rules) == "quota of its victim, mode and score bin is full"


@pytest.mark.parametrize(("photographs", "used"), [(0, 0), (1, 1), (2, 2), (3, 3), (50, 3)])
def test_few_photographs_fill_as_many_splits_as_they_can(photographs, used):
    split = deal_photographs(np.repeat(np.arange(photographs), 5), FRACTIONS, 0)
    assert len(set(split.tolist())) == used
    if photographs == 2:
        assert {SPLITS[i] for i in split} == {"train", "test"}


def test_splits_have_their_fractions():
    photographs = np.random.default_rng(0).integers(0, 2000, 20_000).astype(np.uint64)
    shares = np.bincount(deal_photographs(photographs, FRACTIONS, 7)) / 20_000
    np.testing.assert_allclose(shares, [0.8, 0.1, 0.1], atol=0.002)


@pytest.mark.parametrize("distance", [0, 1, 4, 9])
def test_near_pairs_are_those_of_brute_force(distance):
    rng = np.random.default_rng(distance)
    base = rng.integers(0, 2**64, 60, dtype=np.uint64)
    noise = [
        sum(1 << int(b) for b in rng.choice(64, rng.integers(0, 12), replace=False))
        for _ in range(240)
    ]
    hashes = np.unique(np.tile(base, 4) ^ np.array(noise, object).astype(np.uint64))
    found = {
        frozenset(pair)
        for one, two in near_pairs(hashes, distance)
        for pair in zip(one.tolist(), two.tolist(), strict=True)
    }
    every = itertools.combinations(range(len(hashes)), 2)
    values = hashes.tolist()
    expected = {
        frozenset((i, j)) for i, j in every if (values[i] ^ values[j]).bit_count() <= distance
    }
    assert found == expected
    assert expected or distance == 0


@pytest.mark.slow
def test_memory_stays_flat():
    """Beyond the batches in work a candidate costs bytes, not a dictionary (2,000 of them)."""
    command = [sys.executable, ROOT / "benchmarks" / "curation.py"]
    done = subprocess.run(
        [*command, "--sizes", "50000", "500000", "--json"],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    small, large = json.loads(done.stdout)
    for row in (small, large):
        assert row["kept"] + row["rejected"] == row["candidates"]
    assert small["mib"] > 10  # it was measured at all
    assert (large["mib"] - small["mib"]) * 2**20 < 400 * (500_000 - 50_000)


def test_memory_is_that_of_the_process_on_a_gpu_machine_too(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    curation = importlib.import_module("curation")
    for name, told in {
        "is_available": True,
        "memory_allocated": 0,
        "max_memory_allocated": 0,
    }.items():
        monkeypatch.setattr(torch.cuda, name, lambda told=told: told)
    for name in ("synchronize", "reset_peak_memory_stats"):
        monkeypatch.setattr(torch.cuda, name, lambda: None)
    assert curation.measure(2000, load_params(ROOT / "params" / "livec.yaml"))["mib"] > 1


def test_examples_stay_in_the_split_of_their_photograph():
    rows = make(300)
    rows["split"] = rows["photograph"] % 3
    chosen = select(rows, with_rules(splits=None), seed=0)
    kept = chosen.reason == KEPT
    assert kept.sum() > 200
    assert (chosen.split[kept] == rows["split"][kept]).all()
