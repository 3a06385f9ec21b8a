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
    """A sample that was dropped, and why.

    Args:
        source_id: The file or row of the source.
        key: Key of the stored image; None when it was never stored.
        reason: Why it was dropped, in a few words.
    """

    source_id: str
    key: str | None
    reason: str


def duplicate(source_id: str, key: str) -> Reject:
    """The reject of a sample whose stored image is that of an earlier one.

    Args:
        source_id: The file or row of the source.
        key: Key of the stored image.
    """
    return Reject(source_id, key, f"duplicate of {key}")


def write_rejects(folder: Path, rejects: Iterable[Reject], stage: str) -> None:
    """Write `rejected.parquet` of a data set folder, sorted by source and reason.

    Args:
        folder: The data set folder.
        rejects: The samples that were dropped.
        stage: Name of the stage that dropped them.
    """
    rows = [{**asdict(reject), "stage": stage} for reject in rejects]
    rows.sort(key=lambda row: (row["source_id"], row["reason"]))
    write_parquet(folder / REJECTED, pa.Table.from_pylist(rows, schema=REJECTED_SCHEMA))
