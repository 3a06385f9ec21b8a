"""Which adversarial examples are worth a human's time: selection on arrays, no pixels.

A candidate costs about 80 bytes here, so half a million of them fit in 40 MB.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from pipelines.storage.records import SPLITS
from pipelines.storage.splits import deal, hash_order

KEPT, NOT_MOVED, DUPLICATE, NEAR, LEAK, CAP, QUOTA = range(7)

CANDIDATE = np.dtype(
    [
        ("key", np.uint64),  # 16 hex digits
        ("parent", np.uint64),  # key of the clean image
        ("photograph", np.uint64),  # what may not be in two splits
        ("split", np.uint8),  # of its clean image, index into SPLITS
        ("draw", np.uint64),  # random, from the seed and the key
        ("victim", np.uint16),
        ("mode", np.uint8),
        ("bin", np.uint16),  # of the adversarial score
        ("gain", np.float32),  # in the attack's direction, shares of the scale
        ("phash", np.uint64),
        ("colour", np.uint64),
        ("parent_phash", np.uint64),
    ]
)


@dataclass(frozen=True)
class Rules:
    """What is kept.

    Args:
        target: At most so many; None: all.
        per_photograph: At most so many of a photograph.
        phash_distance: Bits of 64 that perceptual hashes of near-duplicates differ in at most.
        colour_distance: Bits of 42 that their colour hashes differ in at most; both must be small.
        splits: Shares of the photographs; None leaves each example in the split of its photograph.
    """

    target: int | None
    per_photograph: int
    phash_distance: int
    colour_distance: int
    splits: Mapping[str, float] | None


@dataclass(frozen=True)
class Selection:
    """What became of each of N candidates.

    Args:
        reason: (N,) KEPT, or why it was rejected.
        other: (N,) key of the other image that the reason names.
        split: (N,) its split, an index into SPLITS.
    """

    reason: np.ndarray
    other: np.ndarray
    split: np.ndarray

    def text(self, index: int, rules: Rules) -> str:
        """The reason of a reject in words.

        Args:
            index: Number of the candidate, one that was rejected.
            rules: What it was decided by.
        """
        other = f"{self.other[index]:016x}"
        return {
            NOT_MOVED: "score not moved in the direction of the attack",
            DUPLICATE: f"duplicate of {other}",
            NEAR: f"near-duplicate of {other}",
            LEAK: f"near-duplicate of photograph {other} in another split",
            CAP: f"more than {rules.per_photograph} of its photograph",
            QUOTA: "quota of its victim, mode and score bin is full",
        }[int(self.reason[index])]


def select(candidates: np.ndarray, rules: Rules, *, seed: int) -> Selection:
    """Apply the rules in order: moved, unique, no near-duplicate, no leak, cap, balance.

    Draws depend on seed and keys alone, so the order of the candidates does not matter (but for
    equal keys, where the first of the largest gain wins).

    Args:
        candidates: An array of CANDIDATE.
        rules: What is kept.
        seed: What the split of a photograph is drawn from.
    """
    count = len(candidates)
    chosen = Selection(
        np.zeros(count, np.uint8), np.zeros(count, np.uint64), np.zeros(count, np.uint8)
    )
    chosen.reason[~(candidates["gain"] > 0)] = NOT_MOVED
    _drop_duplicates(candidates, chosen)
    _drop_near(candidates, chosen, rules)
    left = np.flatnonzero(chosen.reason == KEPT)
    if rules.splits is None:
        chosen.split[left] = candidates["split"][left]
    else:
        chosen.split[left] = deal_photographs(candidates["photograph"][left], rules.splits, seed)
    _drop_leaks(candidates, chosen, rules)
    _cap(candidates, chosen, rules.per_photograph)
    if rules.target is not None:
        _balance(candidates, chosen, rules.target)
    return chosen


def _drop_duplicates(candidates: np.ndarray, chosen: Selection) -> None:
    left = np.flatnonzero(chosen.reason == KEPT)
    left = left[np.argsort(-candidates["gain"][left], kind="stable")]
    keys = candidates["key"][left]
    first = np.zeros(len(left), bool)
    first[np.unique(keys, return_index=True)[1]] = True
    chosen.reason[left[~first]] = DUPLICATE
    chosen.other[left[~first]] = keys[~first]


def _drop_near(candidates: np.ndarray, chosen: Selection, rules: Rules) -> None:
    """Of examples of one photograph and victim that look alike the one of largest gain stays."""
    left = np.flatnonzero(chosen.reason == KEPT)
    columns = [candidates[name][left] for name in ("key", "gain", "victim", "photograph")]
    columns[1] = -columns[1]
    left = left[np.lexsort(columns)]
    same = np.ones(len(left), bool)
    for name in ("victim", "photograph"):
        same[1:] &= candidates[name][left][1:] == candidates[name][left][:-1]
    starts = np.flatnonzero(~same) if len(left) else left
    if len(left):
        starts = np.union1d([0], starts)
    sizes = np.diff(np.append(starts, len(left)))
    for start, size in zip(starts[sizes > 1], sizes[sizes > 1], strict=True):
        kept: list[int] = []
        for index in left[start : start + size]:
            twin = next((k for k in kept if _alike(candidates[k], candidates[index], rules)), None)
            if twin is None:
                kept.append(index)
            else:
                chosen.reason[index], chosen.other[index] = NEAR, candidates["key"][twin]


def _alike(one: Any, two: Any, rules: Rules) -> bool:
    shape = np.bitwise_count(one["phash"] ^ two["phash"])
    colour = np.bitwise_count(one["colour"] ^ two["colour"])
    return bool(shape <= rules.phash_distance and colour <= rules.colour_distance)


def deal_photographs(
    photographs: np.ndarray, fractions: Mapping[str, float], seed: int
) -> np.ndarray:
    """The split of each item, so that no photograph is in two splits.

    Photographs are put in the order of the SHA-256 of (seed, photograph) and dealt out whole, so
    that each split has its fraction to within the largest photograph. A split that would stay
    empty gets a photograph of the largest split that can spare one, test before validation: with
    two photographs there is no validation split, with one only train.

    Args:
        photographs: The photograph of each item, uint64.
        fractions: Share of the items of each of SPLITS.
        seed: What the order is drawn from.

    Returns:
        An index into SPLITS for each item, uint8.
    """
    unique, inverse, sizes = np.unique(photographs, return_inverse=True, return_counts=True)
    order = hash_order([f"{value:016x}" for value in unique.tolist()], seed)
    split = deal(order, sizes, {name: fractions[name] for name in SPLITS}).astype(np.uint8)
    for name in ("train", "test", "validation"):
        number = SPLITS.index(name)
        counts = np.bincount(split, minlength=len(SPLITS))
        if not counts[number] and counts.max(initial=0) > 1:
            largest = int(np.argmax(counts))
            split[order[np.flatnonzero(split[order] == largest)[-1]]] = number
    return split[inverse]


def near_pairs(hashes: np.ndarray, distance: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Index pairs of different 64-bit hashes that are near each other.

    Two such hashes agree in at least one of distance + 1 parts of their bits, so only hashes that
    share a part are compared. A pair may come more than once.

    Args:
        hashes: uint64 (N,), without repetitions.
        distance: Bits in which the two differ at most, in [0, 63].

    Yields:
        Two index arrays of one length: the first and the second hash of each pair.
    """
    edges = np.linspace(0, 64, distance + 2).astype(int)
    for low, high in pairwise(edges.tolist()):
        part = (hashes >> np.uint64(low)) & np.uint64((1 << (high - low)) - 1)
        order = np.argsort(part, kind="stable")
        part, ordered = part[order], hashes[order]
        left: np.ndarray = np.arange(len(order))
        step = 1
        while True:
            left = left[left + step < len(order)]
            left = left[part[left] == part[left + step]]
            if not len(left):
                break
            close = left[np.bitwise_count(ordered[left] ^ ordered[left + step]) <= distance]
            if len(close):
                yield order[close], order[close + step]
            step += 1


def _drop_leaks(candidates: np.ndarray, chosen: Selection, rules: Rules) -> None:
    """Drop what looks like a photograph of a later split (train < validation < test)."""
    left = np.flatnonzero(chosen.reason == KEPT)
    hashes, inverse = np.unique(candidates["parent_phash"][left], return_inverse=True)
    # The last split that each hash, or one near it, is in, and a photograph that shows it.
    by_split = left[np.argsort(chosen.split[left], kind="stable")]
    last = np.zeros(len(hashes), np.int64)
    example = np.zeros(len(hashes), np.int64)
    places = np.searchsorted(hashes, candidates["parent_phash"][by_split])
    last[places], example[places] = chosen.split[by_split], by_split
    last_of_hash, example_of_hash = last.copy(), example.copy()
    for one, two in near_pairs(hashes, rules.phash_distance):
        for a, b in ((one, two), (two, one)):
            # Pairs of one step have each hash at most once on either side.
            later = last_of_hash[b] > last[a]
            last[a[later]] = last_of_hash[b[later]]
            example[a[later]] = example_of_hash[b[later]]
    leak = last[inverse] > chosen.split[left]
    chosen.reason[left[leak]] = LEAK
    chosen.other[left[leak]] = candidates["parent"][example[inverse[leak]]]


def _rank(groups: list[np.ndarray], draw: np.ndarray) -> np.ndarray:
    """Position of each item among those with equal `groups`, in the order of `draw`."""
    order = np.lexsort([draw, *groups])
    start = np.ones(len(order), bool)
    if len(order):
        start[1:] = False
        for group in groups:
            start[1:] |= group[order][1:] != group[order][:-1]
    firsts = np.maximum.accumulate(np.where(start, np.arange(len(order)), 0))
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order)) - firsts
    return rank


def _cap(candidates: np.ndarray, chosen: Selection, limit: int) -> None:
    """At most `limit` of a photograph, victims and modes taking turns."""
    left = np.flatnonzero(chosen.reason == KEPT)
    rows = candidates[left]
    turn = _rank([rows["mode"], rows["victim"], rows["photograph"]], rows["draw"])
    order = np.lexsort([rows["draw"], turn])
    place = np.empty(len(left), np.int64)
    place[order] = np.arange(len(left))
    chosen.reason[left[_rank([rows["photograph"]], place) >= limit]] = CAP


def _balance(candidates: np.ndarray, chosen: Selection, target: int) -> None:
    """At most `target` in all, as evenly over victim x mode x bin as the candidates allow."""
    left = np.flatnonzero(chosen.reason == KEPT)
    if len(left) <= target:
        return
    rows = candidates[left]
    level = _rank([rows["bin"], rows["mode"], rows["victim"]], rows["draw"])
    # The n-th of every cell before the (n+1)-th of any: water rising to one level.
    order = np.lexsort([rows["draw"], level])
    chosen.reason[left[order[target:]]] = QUOTA
