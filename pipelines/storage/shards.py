"""WebDataset shards: byte-identical for the same samples, whole or not there at all.

A shard is a USTAR file with `{key}.json` and `{key}.png` for each sample, sorted by key.
webdataset's TarWriter writes it. Reading has an index of its own: access by key costs a header
instead of the samples before it.
"""

import copy
import hashlib
import json
import tarfile
from collections.abc import Container, Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from pipelines.errors import StageError
from pipelines.storage.files import OpenFiles, atomic_file
from pipelines.storage.manifest import ShardInfo
from pipelines.storage.records import Sample


def shard_name(split: str, index: int) -> str:
    """File name of a shard within `data/`.

    Args:
        split: Split of its samples.
        index: Number of the shard in its split, from 0.
    """
    return f"{split}-{index:05d}.tar"


def write_shard(path: Path, members: Iterable[tuple[Sample, bytes]]) -> ShardInfo:
    """Write one shard atomically.

    Args:
        path: The shard.
        members: Records and their PNGs in any order. They are sorted by key, so those of one shard
            are held in memory.

    Raises:
        StageError: Two members have the same key.
    """
    ordered = sorted(members, key=lambda member: member[0].key)
    return write_tar(path, _tar_samples(ordered, path.name))


def _tar_samples(
    members: list[tuple[Sample, bytes]], name: str
) -> Iterator[tuple[str, dict[str, bytes]]]:
    previous = None
    for record, image in members:
        if record.key == previous:
            raise StageError(f"shard {name}: key {record.key} must be there once, got it twice")
        previous = record.key
        text = json.dumps(record.model_dump(), sort_keys=True, allow_nan=False)
        yield record.key, {"png": image, "json": text.encode()}


def write_tar(path: Path, samples: Iterable[tuple[str, dict[str, bytes]]]) -> ShardInfo:
    """Write a tar atomically: the same bytes for the same samples.

    Args:
        path: The file.
        samples: The key of each sample and its contents by extension.

    Returns:
        Name, size and number of samples of the tar, and the SHA-256 that was taken on the way.
    """
    # Imported where it is used: it brings torch along, which readers of shards have no need of.
    from webdataset import TarWriter

    count = 0
    with atomic_file(path) as file:
        hashed = _Hashed(file)
        with TarWriter(hashed, user="", group="", mode=0o644, mtime=0, encoder=False) as tar:
            for key, contents in samples:
                tar.write({"__key__": key, **contents})
                count += 1
    return ShardInfo(
        name=path.name, sha256=hashed.digest.hexdigest(), bytes=hashed.size, samples=count
    )


class _Hashed:
    """A file to be written that keeps size and SHA-256 of what it was given."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file, self.digest, self.size = file, hashlib.sha256(), 0

    def write(self, data: bytes) -> int:
        self.digest.update(data)
        self.size += len(data)
        return self.file.write(data)


def tar_members(path: Path) -> Iterator[tuple[str, int, int]]:
    """The members of a tar file, from the headers alone.

    Args:
        path: The file.

    Yields:
        Name, offset of the data in bytes, and size in bytes of each member.

    Raises:
        StageError: A header is damaged.
    """
    with path.open("rb") as file:
        yield from _headers(file, path)


def _headers(file: IO[bytes], path: Path) -> Iterator[tuple[str, int, int]]:
    offset = 0
    while True:
        file.seek(offset)
        block = file.read(tarfile.BLOCKSIZE)
        if block == bytes(tarfile.BLOCKSIZE):
            return
        try:
            info = tarfile.TarInfo.frombuf(block, "utf-8", "strict")
        except tarfile.HeaderError as error:
            raise StageError(f"shard {path} is damaged at byte {offset}: {error}") from None
        offset += tarfile.BLOCKSIZE
        yield info.name, offset, info.size
        offset += -(-info.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE


def _read(file: IO[bytes], path: Path, name: str, offset: int, size: int) -> bytes:
    file.seek(offset)
    data = file.read(size)
    if len(data) != size:
        raise StageError(f"shard {path} ends within member {name}")
    return data


def read_shard(path: Path) -> Iterator[tuple[dict[str, Any], bytes]]:
    """The samples of a shard, in order of key.

    Args:
        path: The shard.

    Yields:
        Record fields and PNG of each sample.

    Raises:
        StageError: The shard is damaged or cut.
    """
    contents: dict[str, bytes] = {}
    with path.open("rb") as file:
        for name, offset, size in _headers(file, path):
            contents[name.rpartition(".")[2]] = _read(file, path, name, offset, size)
            if len(contents) == 2:
                yield json.loads(contents["json"]), contents["png"]
                contents = {}


def read_records(path: Path) -> Iterator[dict[str, Any]]:
    """The record fields of a shard, without reading the images.

    Args:
        path: The shard.

    Raises:
        StageError: The shard is damaged or cut.
    """
    with path.open("rb") as file:
        for name, offset, size in _headers(file, path):
            if name.endswith(".json"):
                yield json.loads(_read(file, path, name, offset, size))


def image_places(path: Path, keys: Container[str]) -> Iterator[tuple[str, int, int]]:
    """Where images lie in a shard; only headers are read.

    Args:
        path: The shard.
        keys: Keys of the images that are wanted.

    Yields:
        Key, offset in bytes and size in bytes of each of those images that the shard holds.

    Raises:
        StageError: A header is damaged.
    """
    for name, offset, size in tar_members(path):
        key, _, suffix = name.partition(".")
        if suffix == "png" and key in keys:
            yield key, offset, size


class ShardIndex:
    """Random access to the images of a data set folder by key, for jobs that make shards.

    Keeps a bounded number of shards open and may be sent to a worker process. As a context it
    closes them at the end.

    Args:
        folder: The data set folder.
        splits: Only the shards of these splits; None takes `folder/data/*.tar`.
    """

    def __init__(self, folder: Path, splits: Iterable[str] | None = None) -> None:
        wanted = None if splits is None else set(splits)
        self._places: dict[str, tuple[Path, int, int]] = {}
        self.records: dict[str, dict[str, Any]] = {}
        for path in sorted((folder / "data").glob("*.tar")):
            if wanted is None or path.stem.rpartition("-")[0] in wanted:
                self._add(path)
        self._files = OpenFiles()

    def _add(self, path: Path) -> None:
        with path.open("rb") as file:
            for name, offset, size in _headers(file, path):
                key, _, suffix = name.partition(".")
                if suffix == "json":
                    self.records[key] = json.loads(_read(file, path, name, offset, size))
                else:
                    self._places[key] = (path, offset, size)

    def of(self, keys: Iterable[str]) -> "ShardIndex":
        """The index of a part of the samples: small enough to go with a job to a worker.

        Args:
            keys: Keys of those samples.

        Raises:
            KeyError: There is no sample of a key.
        """
        part = copy.copy(self)
        wanted = list(keys)
        part.records = {key: self.records[key] for key in wanted}
        part._places = {key: self._places[key] for key in wanted}
        part._files = OpenFiles()
        return part

    def __len__(self) -> int:
        return len(self.records)

    def image_bytes(self, key: str) -> bytes:
        """The stored PNG of a sample.

        Args:
            key: Key of the sample.

        Raises:
            KeyError: There is no sample of that key.
        """
        return self._files.read(*self._places[key])

    def close(self) -> None:
        """Close the shards; the next read opens them again."""
        self._files.close()

    def __enter__(self) -> "ShardIndex":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
