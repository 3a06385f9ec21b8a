"""What was dropped, and why: `rejected.parquet` of every data set."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import pyarrow as pa

from pipelines.storage.files import write_parquet

REJECTED = "rejected.parquet"
REJECTED_SCHEMA = pa.schema(
    [
        pa.field("source_id", pa.string(), nullable=False),
        pa.field("key", pa.string()),
        pa.field("stage", pa.string(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),
    ]
)


@dataclass(frozen=True)
class Reject:
    """A sample that was dropped, and why; `key` is None when it was never stored."""

    source_id: str
    key: str | None
    reason: str


def duplicate(source_id: str, key: str) -> Reject:
    """The reject of a sample whose stored image is that of an earlier one."""
    return Reject(source_id, key, f"duplicate of {key}")


def write_rejects(folder: Path, rejects: Iterable[Reject], stage: str) -> None:
    """Write `rejected.parquet` of a data set folder, sorted by source and reason."""
    rows = [{**asdict(reject), "stage": stage} for reject in rejects]
    rows.sort(key=lambda row: (row["source_id"], row["reason"]))
    write_parquet(folder / REJECTED, pa.Table.from_pylist(rows, schema=REJECTED_SCHEMA))
