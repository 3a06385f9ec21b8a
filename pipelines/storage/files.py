"""Files: written whole or not at all (bytes, JSON, CSV, Parquet), and read at random."""

import contextlib
import csv
import io
import json
import math
import os
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

MAX_OPEN_FILES = 64  # by one OpenFiles: far below the 1024 that a process may have


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[IO[bytes]]:
    """Write a file whole or not at all: a temporary name beside it, fsync, rename.

    Args:
        path: The file, in a folder that exists.

    Yields:
        The temporary file, open for writing bytes.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """Make a rename in `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sweep(folder: Path) -> None:
    """Remove what killed processes left half-written; files of live processes stay.

    Args:
        folder: Searched with everything below it.
    """
    for leftover in folder.glob("**/.*.tmp"):
        pid = leftover.name.split(".")[-2]
        if not (pid.isdigit() and _alive(int(pid))):
            leftover.unlink(missing_ok=True)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        pass
    return True


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file atomically.

    Args:
        path: The file; its folder is made where it is missing.
        data: Its content.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as file:
        file.write(data)


def json_text(value: Any, *, indent: int | None = 2, sort_keys: bool = False) -> str:
    """JSON with a newline at its end. NaN and infinity, which JSON lacks, become null.

    Args:
        value: Mappings, sequences, text, numbers, booleans and None.
        indent: Spaces per level; None writes one line.
        sort_keys: Whether keys are sorted.
    """
    text = json.dumps(without_nan(value), indent=indent, sort_keys=sort_keys, allow_nan=False)
    return text + "\n"


def without_nan(value: Any) -> Any:
    """The value with None for each number in it, at any depth, that is not finite.

    Args:
        value: Mappings, sequences and numbers; anything else is returned as it is.
    """
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(item) for item in value]
    return value


def write_json(path: Path, value: Any, *, indent: int | None = 2, sort_keys: bool = False) -> None:
    """Write `json_text` of a value atomically.

    Args:
        path: The file; its folder is made where it is missing.
        value: Mappings, sequences, text, numbers, booleans and None.
        indent: Spaces per level; None writes one line.
        sort_keys: Whether keys are sorted.
    """
    write_bytes(path, json_text(value, indent=indent, sort_keys=sort_keys).encode())


def write_csv(
    path: Path, rows: Sequence[Mapping[str, Any]], columns: Sequence[str] | None = None
) -> None:
    """Write a table with a header atomically; None becomes an empty cell.

    Args:
        path: The file; its folder is made where it is missing.
        rows: The values of each row by column.
        columns: Those columns in that order; None takes the ones of the first row, and every row
            must have just these.
    """
    text = io.StringIO()
    names = columns if columns is not None else list(rows[0]) if rows else []
    extras: Literal["raise", "ignore"] = "raise" if columns is None else "ignore"
    writer = csv.DictWriter(text, names, extrasaction=extras, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_bytes(path, text.getvalue().encode())


def write_parquet(path: Path, table: pa.Table) -> None:
    """Write a table atomically, with settings that do not change between versions.

    Args:
        path: The file, in a folder that exists.
        table: Its content.
    """
    with atomic_file(path) as file:
        pq.write_table(table, file, version="2.6", compression="zstd", row_group_size=65536)


class OpenFiles:
    """Files kept open for reading at random, the least recently used closed first.

    May be sent to a worker process, where it starts empty.

    Args:
        limit: Number of files that are open at most.
    """

    def __init__(self, limit: int = MAX_OPEN_FILES) -> None:
        self.limit = limit
        self._files: OrderedDict[Path, IO[bytes]] = OrderedDict()

    def read(self, path: Path, offset: int, size: int) -> bytes:
        """Bytes of a file.

        Args:
            path: The file.
            offset: Where to begin, bytes.
            size: How many to read, bytes; fewer come back at the end of the file.
        """
        file = self._files.pop(path, None) or path.open("rb")
        self._files[path] = file
        if len(self._files) > self.limit:
            self._files.popitem(last=False)[1].close()
        return os.pread(file.fileno(), size, offset)

    def close(self) -> None:
        """Close all files; the next read opens its file again."""
        while self._files:
            self._files.popitem()[1].close()

    def __reduce__(self) -> tuple[type["OpenFiles"], tuple[int]]:
        return OpenFiles, (self.limit,)
