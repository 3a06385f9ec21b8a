"""What was dropped, and why: `rejected.parquet` of every data set."""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.storage.files import atomic_file, write_parquet

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


@contextlib.contextmanager
def reject_writer(folder: Path, stage: str) -> Iterator[Callable[..., None]]:
    """Write `rejected.parquet` of a data set folder in batches, in the order in which they come.

    Args:
        folder: The data set folder.
        stage: Name of the stage that dropped the samples.

    Yields:
        What writes a batch: a function of the columns source_id and key and the list of reasons.
    """

    def write(source_ids: pa.Array, keys: pa.Array, reasons: list[str]) -> None:
        stages = pa.array([stage] * len(reasons), pa.string())
        columns = [source_ids, keys, stages, pa.array(reasons, pa.string())]
        writer.write_table(pa.Table.from_arrays(columns, schema=REJECTED_SCHEMA))

    with (
        atomic_file(folder / REJECTED) as file,
        pq.ParquetWriter(file, REJECTED_SCHEMA, compression="zstd") as writer,
    ):
        yield write
