"""The resumable work folder of a stage, and the data set folder published from it."""

import contextlib
import json
import os
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.errors import InputError, StageError
from pipelines.storage.cards import Card, dataset_card
from pipelines.storage.manifest import Counts, Manifest, ScaleInfo, ShardInfo
from pipelines.storage.records import Sample, arrow_schema
from pipelines.storage.shards import atomic_file, read_shard, sweep, write_shard


@dataclass(frozen=True)
class Reject:
    """A sample that was dropped, and why; `key` is None when it was never stored."""

    source_id: str
    key: str | None
    reason: str


def duplicate(source_id: str, key: str) -> Reject:
    """The reject of a sample whose stored image is that of an earlier one."""
    return Reject(source_id, key, f"duplicate of {key}")


@dataclass(frozen=True)
class FinishedShard:
    """A shard on disk with what was dropped while making it."""

    info: ShardInfo
    rejects: tuple[Reject, ...]


@dataclass(frozen=True)
class WorkFolder:
    """Shards in the making: `{root}/{stage}/{artefact}-{fingerprint}/`.

    A shard is finished when `{name}` and, written after it, `{name}.done.json` are both there. A
    shard without samples has only the latter. `{name}.rows.json` holds its records once more, so
    that publishing many shards reads none. May be sent to a worker process.
    """

    root: Path
    stage: str
    artefact: str
    fingerprint: str

    @property
    def path(self) -> Path:
        """The folder."""
        return self.root / self.stage / f"{self.artefact}-{self.fingerprint[:16]}"

    def create(self) -> None:
        """Make the folder and clear what a killed run left half-written in it."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(
                f"work folder must be a folder that can be written, got {self.root} "
                f"({error.strerror})"
            ) from None
        sweep(self.path)

    def write(
        self, name: str, members: Iterable[tuple[Sample, bytes]], rejects: Iterable[Reject] = ()
    ) -> FinishedShard:
        """Write shard `name` and mark it finished. Raises StageError when the disk refuses."""
        done = self._done(name)
        kept = list(members)
        try:
            # While a shard is replaced it counts as unfinished.
            done.unlink(missing_ok=True)
            if kept:
                info = write_shard(self.path / name, kept)
            else:
                (self.path / name).unlink(missing_ok=True)
                info = ShardInfo(name=name, sha256="", bytes=0, samples=0)
            with atomic_file(self._rows(name)) as file:
                rows = [sample.model_dump() for sample, _ in kept]
                file.write(json.dumps(rows, allow_nan=False).encode())
            finished = FinishedShard(info, tuple(rejects))
            text = {
                "info": info.model_dump(),
                "rejects": [asdict(reject) for reject in finished.rejects],
            }
            with atomic_file(done) as file:
                file.write(json.dumps(text).encode())
        except OSError as error:
            raise StageError(
                f"shard {self.path / name} cannot be written ({error.strerror}): finished shards "
                "are kept, and running the same command again redoes only the rest"
            ) from error
        return finished

    def finished(self, name: str) -> FinishedShard | None:
        """Shard `name` if it is whole, else None."""
        try:
            text = json.loads(self._done(name).read_bytes())
            info = ShardInfo(**text["info"])
            self._rows(name).stat()
            if info.samples and (self.path / name).stat().st_size != info.bytes:
                return None
        except FileNotFoundError:
            return None
        return FinishedShard(info, tuple(Reject(**reject) for reject in text["rejects"]))

    def rows(self, name: str) -> list[dict[str, Any]]:
        """The records of a finished shard."""
        rows: list[dict[str, Any]] = json.loads(self._rows(name).read_bytes())
        return rows

    def pending(self, names: Iterable[str]) -> list[str]:
        """Those of `names` that are still to be made."""
        return [name for name in names if self.finished(name) is None]

    def _done(self, name: str) -> Path:
        return self.path / f"{name}.done.json"

    def _rows(self, name: str) -> Path:
        return self.path / f"{name}.rows.json"

    def remove_older(self) -> None:
        """Remove the work folders of other fingerprints of this stage and artefact."""
        for other in self.path.parent.glob(f"{self.artefact}-*"):
            if other != self.path and len(other.name) == len(self.path.name):
                shutil.rmtree(other, ignore_errors=True)


def check_out(out: Path) -> None:
    """Make the data set folder; InputError when it cannot be made or written."""
    try:
        (out / "data").mkdir(parents=True, exist_ok=True)
        reason = None if os.access(out, os.W_OK) else "permission denied"
    except OSError as error:
        reason = error.strerror
    if reason:
        raise InputError(f"out must be a folder that can be written, got {out} ({reason})")


def publish(
    work: WorkFolder,
    out: Path,
    names: Sequence[str],
    *,
    record: type[Sample],
    n_in: int,
    scale: ScaleInfo,
    card: Card,
    parameters: dict[str, Any],
    inputs: dict[str, str],
    rejects: Iterable[Reject] = (),
) -> Manifest:
    """Make `out` the data set of the finished shards `names`.

    `n_in` is the number of samples that came in, `rejects` those dropped before any shard. Shards
    are hard-linked (copied across file systems), so the work folder costs no disk and the next
    run with the same fingerprint only publishes. The manifest goes first and comes back last: a
    folder with a manifest is whole, and a killed publish is run again. Files of others in `out`
    stay. An image that an earlier shard of `names` holds too is rejected: keys are unique.
    Afterwards the work folders that other fingerprints left for the same stage and artefact are
    removed, so the disk does not grow. Raises StageError when a shard is missing, nothing was
    kept, or in = kept + rejected does not hold.
    """
    rows = _unique_rows(work, names, record)
    shards = []
    dropped = list(rejects)
    for name in names:
        finished = work.finished(name)
        if finished is None:
            raise StageError(f"shard {work.path / name} must be finished before publishing")
        dropped += finished.rejects
        if finished.info.samples:
            shards.append(finished.info)
    counts = _reconcile(n_in, shards, dropped)
    manifest = Manifest.build(
        stage=work.stage,
        counts=counts,
        shards={shard.name: shard for shard in shards},
        parameters=parameters,
        inputs=inputs,
        scale=scale,
    )
    check_out(out)
    try:
        (out / "manifest.json").unlink(missing_ok=True)
        _link_shards(work.path, out / "data", manifest.shards)
        _write_table(out / "metadata.parquet", _metadata(rows, record))
        _write_table(out / "rejected.parquet", _rejected(dropped, work.stage))
        _write_text(out / "README.md", dataset_card(card, manifest, record))
        _write_text(out / "manifest.json", manifest.to_json())
    except OSError as error:
        raise StageError(
            f"data set {out} cannot be written ({error.strerror}): finished shards are kept in "
            f"{work.path}"
        ) from error
    work.remove_older()
    return manifest


def _unique_rows(
    work: WorkFolder, names: Sequence[str], record: type[Sample]
) -> list[dict[str, Any]]:
    """The records of all shards, each with its shard, after duplicates were rejected.

    A shard cannot know the others while it is made: the few concerned are written again.
    """
    unique: list[dict[str, Any]] = []
    seen: set[str] = set()
    for name in names:
        finished = work.finished(name)
        if finished is None or not finished.info.samples:
            continue
        rows = work.rows(name)
        twice = [duplicate(row["source_id"], row["key"]) for row in rows if row["key"] in seen]
        if twice:
            members = [
                (record(**row), image)
                for row, image in read_shard(work.path / name)
                if row["key"] not in seen
            ]
            work.write(name, members, [*finished.rejects, *twice])
        unique += [{**row, "shard": name} for row in rows if row["key"] not in seen]
        seen.update(row["key"] for row in rows)
    return unique


def _reconcile(n_in: int, shards: list[ShardInfo], dropped: list[Reject]) -> Counts:
    kept = sum(shard.samples for shard in shards)
    if n_in != kept + len(dropped):
        raise StageError(
            f"in = kept + rejected must hold, got {n_in} in, {kept} kept, {len(dropped)} rejected"
        )
    if not kept:
        first = f", the first as {dropped[0].reason!r}" if dropped else ""
        raise StageError(f"no sample was kept: {len(dropped)} of {n_in} were rejected{first}")
    splits: dict[str, int] = {}
    for shard in sorted(shards, key=lambda shard: shard.name):
        split = shard.name.rpartition("-")[0]
        splits[split] = splits.get(split, 0) + shard.samples
    return Counts(in_=n_in, kept=kept, rejected=len(dropped), splits=splits)


def _link_shards(source: Path, data: Path, shards: dict[str, ShardInfo]) -> None:
    for stale in data.iterdir():
        if stale.suffix in (".tar", ".tmp") and stale.name not in shards:
            stale.unlink()
    for name in shards:
        _replace_by_link(source / name, data / name)


def _replace_by_link(source: Path, target: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        if target.samefile(source):
            return
    temporary = target.with_name(f".{target.name}.tmp")
    temporary.unlink(missing_ok=True)
    try:
        temporary.hardlink_to(source)
    except OSError:  # another file system, or one without links
        shutil.copyfile(source, temporary)
    temporary.replace(target)


def _metadata(rows: list[dict[str, Any]], record: type[Sample]) -> pa.Table:
    rows.sort(key=lambda row: (row["split"], row["key"]))
    schema = arrow_schema(record).append(pa.field("shard", pa.string(), nullable=False))
    return pa.Table.from_pylist(rows, schema=schema)


def _rejected(dropped: list[Reject], stage: str) -> pa.Table:
    rows = [{**asdict(reject), "stage": stage} for reject in dropped]
    rows.sort(key=lambda row: (row["source_id"], row["reason"]))
    names = ("source_id", "key", "stage", "reason")
    schema = pa.schema([pa.field(name, pa.string(), nullable=name == "key") for name in names])
    return pa.Table.from_pylist(rows, schema=schema)


def _write_table(path: Path, table: pa.Table) -> None:
    with atomic_file(path) as file:
        # Stated rather than left to defaults, which change between versions.
        pq.write_table(table, file, version="2.6", compression="zstd", row_group_size=65536)


def _write_text(path: Path, text: str) -> None:
    with atomic_file(path) as file:
        file.write(text.encode())
