"""WebDataset shards: byte-identical for the same samples, whole or not there at all.

A shard is a USTAR file with `{key}.png` and `{key}.json` for each sample, sorted by key.
"""

import contextlib
import copy
import hashlib
import json
import os
import tarfile
from collections.abc import Container, Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from pipelines.errors import StageError
from pipelines.storage.manifest import ShardInfo
from pipelines.storage.records import Sample

_MODE = 0o644


def shard_name(split: str, index: int) -> str:
    """File name of a shard within `data/`."""
    return f"{split}-{index:05d}.tar"


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[IO[bytes]]:
    """Write `path` whole or not at all: a temporary name beside it, fsync, rename."""
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


def sweep(folder: Path) -> None:
    """Remove what killed processes left half-written in `folder` and below; live ones go on."""
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


def _sync_folder(folder: Path) -> None:
    """Make a rename in `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_shard(path: Path, members: Iterable[tuple[Sample, bytes]]) -> ShardInfo:
    """Write one shard of (record, PNG bytes) atomically; SHA-256 is taken on the way.

    The members are sorted by key, so those of one shard are held in memory. Raises StageError
    when two have the same key.
    """
    ordered = sorted(members, key=lambda member: member[0].key)
    digest = hashlib.sha256()
    size = 0
    with atomic_file(path) as file:
        for chunk in _tar_chunks(ordered, path.name):
            file.write(chunk)
            digest.update(chunk)
            size += len(chunk)
    return ShardInfo(name=path.name, sha256=digest.hexdigest(), bytes=size, samples=len(ordered))


def _tar_chunks(members: list[tuple[Sample, bytes]], name: str) -> Iterator[bytes]:
    def files() -> Iterator[tuple[str, bytes]]:
        previous = None
        for record, image in members:
            if record.key == previous:
                raise StageError(f"shard {name}: key {record.key} must be there once, got it twice")
            previous = record.key
            text = json.dumps(record.model_dump(), sort_keys=True, allow_nan=False)
            yield f"{record.key}.png", image
            yield f"{record.key}.json", text.encode()

    return tar_blocks(files())


def tar_blocks(files: Iterable[tuple[str, bytes]]) -> Iterator[bytes]:
    """The bytes of a USTAR file of (name, content): the same for the same files."""
    size = 0
    for name, data in files:
        # TarInfo's defaults are mtime 0, uid and gid 0 and no names.
        info = tarfile.TarInfo(name)
        info.size, info.mode = len(data), _MODE
        padding = bytes(-len(data) % tarfile.BLOCKSIZE)
        yield info.tobuf(tarfile.USTAR_FORMAT)
        yield data
        yield padding
        size += tarfile.BLOCKSIZE + len(data) + len(padding)
    end = 2 * tarfile.BLOCKSIZE
    yield bytes(end + -(size + end) % tarfile.RECORDSIZE)


def _headers(file: IO[bytes], path: Path) -> Iterator[tuple[str, int, int]]:
    """(name, offset of the data, size) of each member; seeks over the data."""
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


def read_shard(path: Path) -> Iterator[tuple[dict[str, Any], bytes]]:
    """The (record fields, PNG bytes) of a shard, in order of key."""
    with path.open("rb") as file:
        image = b""
        for name, offset, size in _headers(file, path):
            file.seek(offset)
            data = file.read(size)
            if len(data) != size:
                raise StageError(f"shard {path} ends within member {name}")
            if name.endswith(".json"):
                yield json.loads(data), image
            else:
                image = data


def read_records(path: Path) -> Iterator[dict[str, Any]]:
    """The record fields of a shard, without reading the images."""
    with path.open("rb") as file:
        for name, offset, size in _headers(file, path):
            if name.endswith(".json"):
                file.seek(offset)
                yield json.loads(file.read(size))


def image_places(path: Path, keys: Container[str]) -> Iterator[tuple[str, int, int]]:
    """(key, offset, size) of those images of a shard that are among `keys`; reads headers only."""
    with path.open("rb") as file:
        for name, offset, size in _headers(file, path):
            key, _, suffix = name.partition(".")
            if suffix == "png" and key in keys:
                yield key, offset, size


class ShardIndex:
    """Random access to the images of a data set folder by key, for training loops.

    Opens each shard once per process and may be sent to a worker process.
    """

    def __init__(self, folder: Path, splits: Iterable[str] | None = None) -> None:
        """Index `folder/data/*.tar`, or only the shards of `splits`."""
        wanted = None if splits is None else set(splits)
        self._places: dict[str, tuple[Path, int, int]] = {}
        self.records: dict[str, dict[str, Any]] = {}
        for path in sorted((folder / "data").glob("*.tar")):
            if wanted is None or path.stem.rpartition("-")[0] in wanted:
                self._add(path)
        self._files: dict[Path, IO[bytes]] = {}

    def _add(self, path: Path) -> None:
        with path.open("rb") as file:
            for name, offset, size in _headers(file, path):
                key, _, suffix = name.partition(".")
                if suffix == "json":
                    file.seek(offset)
                    self.records[key] = json.loads(file.read(size))
                else:
                    self._places[key] = (path, offset, size)

    def of(self, keys: Iterable[str]) -> "ShardIndex":
        """The index of these samples only: small enough to go with a job to a worker."""
        part = copy.copy(self)
        wanted = list(keys)
        part.records = {key: self.records[key] for key in wanted}
        part._places = {key: self._places[key] for key in wanted}
        return part

    def __len__(self) -> int:
        return len(self.records)

    def image_bytes(self, key: str) -> bytes:
        """The stored PNG of a sample. Raises KeyError for an unknown key."""
        path, offset, size = self._places[key]
        if path not in self._files:
            self._files[path] = path.open("rb")
        return os.pread(self._files[path].fileno(), size, offset)

    def close(self) -> None:
        """Close the shards; the next read opens them again."""
        while self._files:
            self._files.popitem()[1].close()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_files": {}}
