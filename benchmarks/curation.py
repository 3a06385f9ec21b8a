"""Memory and time of `veneer curate` over synthetic metadata: 5,000 to 500,000 candidates.

Hashes are given (they are made shard by shard and cached); what is measured is reading the
metadata, selecting, and writing kept and rejected rows, and what memory grew by at its peak. Each
size runs in a process of its own. Run: python benchmarks/curation.py
"""

import argparse
import json
import multiprocessing
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from _timing import hardware, process_memory

from pipelines.curation.candidates import BATCH, curation_report, select_candidates
from pipelines.curation.hashes import HASHED
from pipelines.curation.select import Rules
from pipelines.params import Params, load_params
from pipelines.stages.curate import write_tables
from pipelines.storage.manifest import METADATA
from pipelines.storage.records import AESample, arrow_schema
from pipelines.storage.table_folder import begin_tables

ROOT = Path(__file__).parents[1]
PER_PHOTOGRAPH = 20


def write_metadata(folder: Path, count: int) -> tuple[np.ndarray, np.ndarray]:
    """metadata.parquet of `count` examples. Returns: hashes of examples and of photographs."""
    rng = np.random.default_rng(count)
    schema = arrow_schema(AESample).append(pa.field("shard", pa.string(), nullable=False))
    keys = np.unique(rng.integers(0, 2**63, count + 64, dtype=np.uint64))[:count]
    parents = np.unique(rng.integers(0, 2**63, count // PER_PHOTOGRAPH + 1, dtype=np.uint64))
    with pq.ParquetWriter(folder / METADATA, schema, compression="zstd") as writer:
        for start in range(0, count, BATCH):
            writer.write_table(_rows(keys[start : start + BATCH], parents, schema, rng))
    return _hashes(keys, rng), _hashes(parents, rng)


def _hashes(keys: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    out = np.zeros(len(keys), HASHED)
    out["key"] = keys
    out["phash"] = rng.integers(0, 2**64, len(keys), dtype=np.uint64)
    out["colour"] = rng.integers(0, 2**42, len(keys), dtype=np.uint64)
    return out


def _rows(
    keys: np.ndarray, parents: np.ndarray, schema: pa.Schema, rng: np.random.Generator
) -> pa.Table:
    n = len(keys)
    own = parents[rng.integers(0, len(parents), n)]
    values: dict[str, Any] = {
        "key": [f"{key:016x}" for key in keys.tolist()],
        "source": ["synthetic"] * n,
        "source_id": [f"photograph {key:016x} of a long name.jpg" for key in own.tolist()],
        "parent_key": [f"{key:016x}" for key in own.tolist()],
        "split": ["test"] * n,
        "shard": ["test-00000.tar"] * n,
        "victim": [f"victim{i}" for i in rng.integers(0, 26, n)],
        "victim_sha256": ["0" * 64] * n,
        "mode": [("restricted", "unrestricted")[i] for i in rng.integers(0, 2, n)],
        "direction": ["raise"] * n,
        "score_low": np.zeros(n),
        "score_high": np.full(n, 10.0),
        "score_clean": rng.normal(5, 1, n).clip(0, 10),
        "score_adv": rng.normal(6, 1, n).clip(0, 10),
        "weights": [[1 / 14] * 14] * n,
        "strengths": [[0.0] * 14] * n,
    }
    for field in schema:
        if field.name not in values:
            plain = np.ones(n) if pa.types.is_floating(field.type) else np.ones(n, np.int64)
            values[field.name] = [None] * n if pa.types.is_string(field.type) else plain
    return pa.Table.from_pydict(values, schema=schema)


def measure(count: int, params: Params) -> dict[str, Any]:
    """Curate `count` synthetic candidates: seconds, MiB, counts."""
    settings = params.curate
    rules = Rules(
        target=settings.target,
        per_photograph=settings.per_photograph,
        phash_distance=settings.phash_distance,
        colour_distance=settings.colour_distance,
        splits=settings.splits.model_dump() if settings.splits else None,
    )
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        hashes, clean = write_metadata(root, count)
        pa.default_memory_pool().release_unused()
        began = time.perf_counter()
        with process_memory() as grown:
            begin_tables(root / "out")
            curated = select_candidates(
                [root / METADATA], hashes, clean, rules, bins=settings.bins, seed=params.seed
            )
            write_tables(root / "out", [root], curated)
        took = time.perf_counter() - began
        report = curation_report(curated)
    return {
        "candidates": count,
        "seconds": took,
        "mib": grown[0],
        "kept": report["kept"],
        "rejected": report["rejected"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[5_000, 50_000, 500_000])
    parser.add_argument("--params", type=Path, default=ROOT / "params" / "livec.yaml")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    params = load_params(options.params)
    context = multiprocessing.get_context("spawn")
    rows = []
    for size in options.sizes:
        with context.Pool(1) as pool:
            rows.append(pool.apply(measure, (size, params)))
    if options.json:
        print(json.dumps(rows))
        return
    print(hardware())
    print("| candidates | kept | seconds | memory grew by, MiB | bytes per candidate |")
    print("| --: | --: | --: | --: | --: |")
    for row in rows:
        each = row["mib"] * 2**20 / row["candidates"]
        print(
            f"| {row['candidates']:,} | {row['kept']:,} | {row['seconds']:.1f} "
            f"| {row['mib']:.0f} | {each:,.0f} |"
        )


if __name__ == "__main__":
    main()
