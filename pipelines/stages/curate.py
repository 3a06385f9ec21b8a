"""Stage `curate`: the adversarial examples of all victims that are worth a human's time."""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.curation.hashes import hash_folders, load_hashes
from pipelines.curation.select import CANDIDATE, KEPT, Rules, Selection, select
from pipelines.errors import InputError, StageError
from pipelines.params import Params
from pipelines.storage.files import atomic_file
from pipelines.storage.layout import Layout
from pipelines.storage.manifest import (
    Counts,
    Manifest,
    ShardInfo,
    file_sha256,
    read_manifest,
    sample_seed,
)
from pipelines.storage.records import SPLITS, AESample, arrow_schema

STAGE = "curate"
TABLE, REJECTED = "metadata.parquet", "rejected.parquet"
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
    """Candidates, what became of each, and the names behind the numbers."""

    candidates: np.ndarray
    selection: Selection
    rules: Rules
    victims: Sequence[str]
    modes: Sequence[str]
    bins: int


def run_curate(
    params: Params, layout: Layout, *, dry_run: bool = False, progress: bool = True
) -> dict[str, Any]:
    """Choose candidates from every finished folder of datasets/aes.

    Writes annotations/candidates (metadata, rejects, manifest; no pixels) and
    reports/curation.json, or nothing when `dry_run`. Hashes of images stay in the work folder
    either way. Returns: the report; `unfinished` names the folders that were left out.
    """
    read_manifest(layout.clean, "import")
    folders = finished_folders(layout)
    files = hash_folders(
        [layout.clean, *folders],
        layout.work / "hashes",
        **params.engine.shards,
        progress=progress,
    )
    curated = curate(
        [folder / TABLE for folder in folders],
        load_hashes(file for folder in folders for file in files[folder]),
        load_hashes(files[layout.clean]),
        params,
    )
    report = {**curation_report(curated), "unfinished": unfinished_folders(layout)}
    if not dry_run:
        if not report["kept"]:
            raise StageError(
                f"curate must keep at least one candidate, got none of {report['in']}: "
                f"{report['reasons']}"
            )
        write_candidates(params, layout, folders, curated)
        layout.reports.mkdir(parents=True, exist_ok=True)
        with atomic_file(layout.reports / "curation.json") as file:
            file.write((json.dumps(report, indent=2) + "\n").encode())
    return report


def finished_folders(layout: Layout) -> list[Path]:
    """The folders of adversarial examples; InputError where there is none."""
    root = layout.root / "datasets" / "aes"
    folders = sorted(path.parent for path in root.glob("*/manifest.json"))
    if not folders:
        raise InputError(
            f"{root} must hold adversarial examples, got none: run `veneer attack` first"
        )
    return folders


def unfinished_folders(layout: Layout) -> list[str]:
    """Names of the folders without a manifest: an attack that was never run, or runs, or died."""
    folders = (layout.root / "datasets" / "aes").iterdir()
    return sorted(f.name for f in folders if f.is_dir() and not (f / "manifest.json").exists())


def curate(
    tables: Sequence[Path], hashes: np.ndarray, clean: np.ndarray, params: Params
) -> Curated:
    """Read the candidates of all metadata tables, batch by batch, and select.

    `hashes` and `clean` are those of the examples and of the photographs (HASHED, by key).
    """
    settings = params.curate
    victims: dict[str, int] = {}
    modes: dict[str, int] = {}
    total = sum(pq.read_metadata(table).num_rows for table in tables)
    candidates = np.zeros(total, CANDIDATE)
    start = 0
    for batch in _batches(tables):
        part = candidates[start : start + len(batch)]
        _fill(part, batch, victims, modes, settings.bins, params.seed)
        start += len(batch)
    _look_up(candidates, "key", hashes, {"phash": "phash", "colour": "colour"})
    _look_up(candidates, "parent", clean, {"parent_phash": "phash"})
    rules = Rules(
        target=settings.target,
        per_photograph=settings.per_photograph,
        phash_distance=settings.phash_distance,
        colour_distance=settings.colour_distance,
        splits=settings.splits.model_dump() if settings.splits else None,
    )
    chosen = select(candidates, rules, seed=params.seed)
    return Curated(candidates, chosen, rules, list(victims), list(modes), settings.bins)


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


def _look_up(candidates: np.ndarray, by: str, hashes: np.ndarray, names: dict[str, str]) -> None:
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
    """Counts: in, kept, rejected by reason, and the kept ones by split, victim, mode and bin."""
    rows, chosen = curated.candidates, curated.selection
    kept = chosen.reason == KEPT
    reasons = Counter(_short(code) for code in chosen.reason[~kept].tolist())
    cells = []
    for v, victim in enumerate(curated.victims):
        for m, mode in enumerate(curated.modes):
            cell = (rows["victim"] == v) & (rows["mode"] == m)
            if cell.any():
                cells.append(
                    {
                        "victim": victim,
                        "mode": mode,
                        "in": int(cell.sum()),
                        "kept": int((cell & kept).sum()),
                        "bins": np.bincount(
                            rows["bin"][cell & kept], minlength=curated.bins
                        ).tolist(),
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


def write_candidates(
    params: Params, layout: Layout, folders: Sequence[Path], curated: Curated
) -> Manifest:
    """Write annotations/candidates: kept rows with their new split, rejects, manifest."""
    out = layout.candidates
    (out / "manifest.json").unlink(missing_ok=True)
    write_tables(out, folders, curated)
    manifests = {folder.name: read_manifest(folder, "attack") for folder in folders}
    clean = read_manifest(layout.clean, "import")
    report = curation_report(curated)
    table = out / TABLE
    manifest = Manifest.build(
        stage=STAGE,
        counts=Counts(
            in_=report["in"],
            kept=report["kept"],
            rejected=report["rejected"],
            splits={name: n for name, n in report["splits"].items() if n},
        ),
        shards={
            TABLE: ShardInfo(
                name=TABLE,
                sha256=file_sha256(table),
                bytes=table.stat().st_size,
                samples=report["kept"],
            )
        },
        parameters={**params.curate.model_dump(), "seed": params.seed},
        inputs={
            "clean": clean.content_sha256,
            **{f"aes/{name}": manifest.content_sha256 for name, manifest in manifests.items()},
        },
        scale=clean.scale,
    )
    with atomic_file(out / "manifest.json") as file:
        file.write(manifest.to_json().encode())
    return manifest


CANDIDATE_SCHEMA = arrow_schema(AESample).append(pa.field("shard", pa.string(), nullable=False))
CANDIDATE_SCHEMA = CANDIDATE_SCHEMA.append(pa.field("folder", pa.string(), nullable=False))
REJECTED_SCHEMA = pa.schema(
    [pa.field(n, pa.string(), nullable=n == "key") for n in ("source_id", "key", "stage", "reason")]
)


def write_tables(out: Path, folders: Sequence[Path], curated: Curated) -> None:
    """Write kept and rejected rows of `folders`: a second pass, in the order of the first."""
    out.mkdir(parents=True, exist_ok=True)
    chosen, start = curated.selection, 0
    with (
        atomic_file(out / TABLE) as kept_file,
        atomic_file(out / REJECTED) as rejected_file,
        pq.ParquetWriter(kept_file, CANDIDATE_SCHEMA, compression="zstd") as kept,
        pq.ParquetWriter(rejected_file, REJECTED_SCHEMA, compression="zstd") as rejected,
    ):
        for folder in folders:
            with pq.ParquetFile(folder / TABLE) as source:
                for batch in source.iter_batches(BATCH):
                    here = slice(start, start + len(batch))
                    stays = chosen.reason[here] == KEPT
                    kept.write_table(_kept_rows(batch, stays, chosen.split[here], folder.name))
                    lost = np.flatnonzero(~stays)
                    texts = [chosen.text(start + i, curated.rules) for i in lost.tolist()]
                    rejected.write_table(_rejected_rows(batch, lost, texts))
                    start += len(batch)


def _kept_rows(batch: pa.RecordBatch, stays: np.ndarray, split: np.ndarray, name: str) -> pa.Table:
    table = pa.Table.from_batches([batch.filter(pa.array(stays))])
    names = pa.array([SPLITS[i] for i in split[stays]], pa.string())
    table = table.set_column(table.schema.get_field_index("split"), "split", names)
    table = table.append_column("folder", pa.array([name] * len(table), pa.string()))
    return table.select(CANDIDATE_SCHEMA.names).cast(CANDIDATE_SCHEMA)


def _rejected_rows(batch: pa.RecordBatch, lost: np.ndarray, texts: list[str]) -> pa.Table:
    rows = batch.take(pa.array(lost))
    columns = [rows["source_id"], rows["key"], pa.array([STAGE] * len(lost), pa.string())]
    return pa.Table.from_arrays([*columns, pa.array(texts, pa.string())], schema=REJECTED_SCHEMA)
