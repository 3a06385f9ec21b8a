"""The adversarial examples of all victims as one array of candidates, and what became of each."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.curation.select import CANDIDATE, KEPT, Rules, Selection, select
from pipelines.errors import InputError, StageError
from pipelines.storage.manifest import sample_seed
from pipelines.storage.records import SPLITS

STAGE = "curate"
BATCH = 16384  # rows in memory at a time
_READ = (
    "key",
    "source",
    "photograph",
    "split",
    "parent_key",
    "victim",
    "mode",
    "direction",
    "score_clean",
    "score_adv",
    "score_low",
    "score_high",
)


@dataclass(frozen=True)
class Curated:
    """Candidates, what became of each, and the names behind the numbers.

    Args:
        candidates: Array of CANDIDATE (N,), in the order of the tables.
        selection: What became of each.
        rules: What it was decided by.
        victims: Names of the victims, by number.
        modes: Names of the attack modes, by number.
        bins: Number of bins of the adversarial score.
    """

    candidates: np.ndarray
    selection: Selection
    rules: Rules
    victims: Sequence[str]
    modes: Sequence[str]
    bins: int


def select_candidates(
    tables: Sequence[Path],
    hashes: np.ndarray,
    clean_hashes: np.ndarray,
    rules: Rules,
    *,
    bins: int,
    seed: int,
) -> Curated:
    """Read the candidates of all metadata tables, batch by batch, and select.

    Args:
        tables: metadata.parquet of each folder of examples.
        hashes: Of the examples: an array of HASHED, sorted by key.
        clean_hashes: Of the photographs.
        rules: What is kept.
        bins: Number of bins of the adversarial score.
        seed: What draws depend on, beside the keys.

    Raises:
        InputError: A table is of an older version.
        StageError: An image of a table is in no shard.
    """
    victims: dict[str, int] = {}
    modes: dict[str, int] = {}
    total = sum(pq.read_metadata(table).num_rows for table in tables)
    candidates = np.zeros(total, CANDIDATE)
    start = 0
    for batch in _batches(tables):
        part = candidates[start : start + len(batch)]
        _fill(part, batch, victims, modes, bins, seed)
        start += len(batch)
    _look_up(candidates, "key", hashes, {"phash": "phash", "colour": "colour"})
    _look_up(candidates, "parent", clean_hashes, {"parent_phash": "phash"})
    chosen = select(candidates, rules, seed=seed)
    return Curated(candidates, chosen, rules, list(victims), list(modes), bins)


def _batches(tables: Sequence[Path]) -> Iterator[pa.RecordBatch]:
    for table in tables:
        with pq.ParquetFile(table) as file:
            missing = [name for name in _READ if name not in file.schema_arrow.names]
            if missing:
                raise InputError(
                    f"{table} must have a column {missing[0]}, got none: it was made by an older "
                    "version, run `veneer attack` again"
                )
            yield from file.iter_batches(BATCH, columns=list(_READ))


def _fill(
    part: np.ndarray,
    batch: pa.RecordBatch,
    victims: dict[str, int],
    modes: dict[str, int],
    bins: int,
    seed: int,
) -> None:
    rows = batch.to_pydict()
    part["key"] = [int(key, 16) for key in rows["key"]]
    part["parent"] = [int(key, 16) for key in rows["parent_key"]]
    part["draw"] = [sample_seed(seed, STAGE, key) for key in rows["key"]]
    # A picture without a photograph of its own name is itself the photograph.
    part["photograph"] = [
        int.from_bytes(sha256(f"{source}\0{name or key}".encode()).digest()[:8], "big")
        for source, name, key in zip(
            rows["source"], rows["photograph"], rows["parent_key"], strict=True
        )
    ]
    part["split"] = [SPLITS.index(name) for name in rows["split"]]
    part["victim"] = [victims.setdefault(name, len(victims)) for name in rows["victim"]]
    part["mode"] = [modes.setdefault(name, len(modes)) for name in rows["mode"]]
    low, high = np.array(rows["score_low"]), np.array(rows["score_high"])
    clean, adv = np.array(rows["score_clean"]), np.array(rows["score_adv"])
    sign = np.where(np.array(rows["direction"]) == "lower", -1, 1)
    part["gain"] = sign * (adv - clean) / (high - low)
    part["bin"] = np.clip((adv - low) / (high - low) * bins, 0, bins - 1)


def _look_up(candidates: np.ndarray, by: str, hashes: np.ndarray, names: Mapping[str, str]) -> None:
    """Set columns of the candidates (keys of `names`) from those of their hashes (its values)."""
    keys = hashes["key"]
    places = np.minimum(np.searchsorted(keys, candidates[by]), max(0, len(keys) - 1))
    unknown = np.flatnonzero(keys[places] != candidates[by]) if len(keys) else [0]
    if len(unknown) and len(candidates):
        raise StageError(
            f"image {int(candidates[by][unknown[0]]):016x} is in the metadata and in no shard: "
            "run the stage that made it again"
        )
    for target, source in names.items():
        candidates[target] = hashes[source][places]


def curation_report(curated: Curated) -> dict[str, Any]:
    """Counts: in, kept, rejected by reason, and the kept ones by split, victim, mode and bin.

    Args:
        curated: The candidates and what became of each.
    """
    rows, chosen = curated.candidates, curated.selection
    kept = chosen.reason == KEPT
    reasons = Counter(_short(code) for code in chosen.reason[~kept].tolist())
    cells = []
    for v, victim in enumerate(curated.victims):
        for m, mode in enumerate(curated.modes):
            cell = (rows["victim"] == v) & (rows["mode"] == m)
            if cell.any():
                bins = np.bincount(rows["bin"][cell & kept], minlength=curated.bins)
                cells.append(
                    {
                        "victim": victim,
                        "mode": mode,
                        "in": int(cell.sum()),
                        "kept": int((cell & kept).sum()),
                        "bins": bins.tolist(),
                    }
                )
    return {
        "in": len(rows),
        "kept": int(kept.sum()),
        "rejected": int((~kept).sum()),
        "reasons": dict(sorted(reasons.items())),
        "splits": {name: int((kept & (chosen.split == i)).sum()) for i, name in enumerate(SPLITS)},
        "photographs": {
            name: len(np.unique(rows["photograph"][kept & (chosen.split == i)]))
            for i, name in enumerate(SPLITS)
        },
        "cells": cells,
    }


def _short(code: int) -> str:
    return (
        "kept",
        "score not moved",
        "duplicate",
        "near-duplicate",
        "near-duplicate in another split",
        "cap per photograph",
        "quota",
    )[code]
