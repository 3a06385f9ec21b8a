"""The candidates that `curate` chose, and their pictures in datasets/aes and datasets/clean."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.annotation.campaign import Pair
from pipelines.errors import InputError, StageError
from pipelines.storage.files import OpenFiles
from pipelines.storage.manifest import METADATA
from pipelines.storage.shards import image_places


def read_pairs(candidates: Path) -> list[Pair]:
    """Read the keys of the candidates and of their photographs.

    Args:
        candidates: Folder of the candidates.

    Returns:
        The pairs, in the order of the table.

    Raises:
        InputError: `curate` has not run.
    """
    table = read_candidates(candidates, ["key", "parent_key"])
    return [Pair(*row) for row in zip(*(c.to_pylist() for c in table.columns), strict=True)]


def read_candidates(candidates: Path, columns: list[str] | None = None) -> pa.Table:
    """Read annotations/candidates.

    Args:
        candidates: The folder.
        columns: Columns to read; all by default.

    Returns:
        The table.

    Raises:
        InputError: `curate` has not run.
    """
    try:
        return pq.read_table(candidates / METADATA, columns=columns)
    except FileNotFoundError:
        raise InputError(
            f"{candidates} must hold candidates, got none there: run `veneer curate` first"
        ) from None


class CandidateImages:
    """Stored PNGs of candidates and their photographs by key: offsets in memory, no pixels.

    Args:
        datasets: Folder of the data sets, with aes and clean.
        candidates: Folder of the candidates.

    Raises:
        InputError: `curate` has not run.
        StageError: A candidate is in no shard.
    """

    def __init__(self, datasets: Path, candidates: Path) -> None:
        table = read_candidates(candidates, ["key", "parent_key", "folder", "shard"])
        rows = table.to_pydict()
        wanted: dict[Path, set[str]] = {}
        for key, folder, shard in zip(rows["key"], rows["folder"], rows["shard"], strict=True):
            wanted.setdefault(datasets / "aes" / folder / "data" / shard, set()).add(key)
        parents = set(rows["parent_key"])
        clean = pq.read_table(datasets / "clean" / METADATA, columns=["key", "shard"])
        for key, shard in zip(*(c.to_pylist() for c in clean.columns), strict=True):
            if key in parents:
                wanted.setdefault(datasets / "clean" / "data" / shard, set()).add(key)
        self._places: dict[str, tuple[Path, int, int]] = {}
        for path, keys in wanted.items():
            self._places.update({k: (path, at, n) for k, at, n in image_places(path, keys)})
        missing = sorted((parents | set(rows["key"])) - self._places.keys())
        if missing:
            raise StageError(
                f"image {missing[0]} is a candidate and in no shard: run `veneer curate` again"
            )
        self._files = OpenFiles()

    def __call__(self, key: str) -> bytes:
        """The stored PNG of a key."""
        return self._files.read(*self._places[key])
