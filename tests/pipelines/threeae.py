"""A small datasets/3ae made from the examples of the tiny project, as the contract says."""

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import tiny

from pipelines.storage.manifest import Counts, Manifest
from pipelines.storage.shards import ShardIndex

SPLITS = ("train", "train", "validation", "test", "test")


def write_3ae(project: tiny.Project, out: Path, victims: Sequence[str] = ("net",)) -> None:
    """Every example of the project; all of one photograph in one split."""
    clean = ShardIndex(project.layout.clean)
    rows = []
    for number_of_mode, mode in enumerate(tiny.MODES):
        index = ShardIndex(project.layout.examples("net", mode))
        parents = sorted(record["parent_key"] for record in index.records.values())
        for key, record in sorted(index.records.items()):
            parent = record["parent_key"]
            number = parents.index(parent)
            rows.append(
                {
                    **{k: v for k, v in record.items() if k not in ("weights", "strengths")},
                    "split": SPLITS[number % len(SPLITS)],
                    # Not by mode: on some processors both modes make the same example.
                    "victim": victims[(number + number_of_mode) % len(victims)],
                    "mos": record["mos"] * (0.5 + number % 2 / 4),  # people like it less
                    "mos_clean": record["mos"],
                    "image": {"bytes": index.image_bytes(key), "path": None},
                    "clean": {"bytes": clean.image_bytes(parent), "path": None},
                }
            )
    (out / "data").mkdir(parents=True, exist_ok=True)
    splits = {}
    for split in sorted(set(SPLITS)):
        some = [row for row in rows if row["split"] == split]
        splits[split] = len(some)
        pq.write_table(pa.Table.from_pylist(some), out / "data" / f"{split}-00000-of-00001.parquet")
    scale = Manifest.read(project.layout.clean).scale
    counts = Counts(in_=len(rows), kept=len(rows), rejected=0, splits=splits)
    manifest = Manifest.build(
        stage="annotate", counts=counts, shards={}, parameters={}, inputs={}, scale=scale
    )
    (out / "manifest.json").write_text(manifest.to_json())
