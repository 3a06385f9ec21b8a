"""The resumable work folder of a stage, and the data set folder published from it."""

import contextlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipelines.errors import InputError, StageError
from pipelines.storage.cards import Card, dataset_card
from pipelines.storage.files import sweep, write_bytes, write_json, write_parquet
from pipelines.storage.manifest import MANIFEST, METADATA, Counts, Manifest, ScaleInfo, ShardInfo
from pipelines.storage.records import Sample, arrow_schema
from pipelines.storage.rejects import Reject, duplicate, write_rejects
from pipelines.storage.shards import read_shard, write_shard


@dataclass(frozen=True)
class FinishedShard:
    """A shard on disk with what was dropped while making it.

    Args:
        info: What the manifest says of it; without samples there is no file.
        rejects: The samples that were dropped.
    """

    info: ShardInfo
    rejects: tuple[Reject, ...]


@dataclass(frozen=True)
class WorkFolder:
    """Shards in the making: `{root}/{stage}/{artefact}-{fingerprint}/`.

    A shard is finished when `{name}` and, written after it, `{name}.done.json` are both there. A
    shard without samples has only the latter. `{name}.rows.json` holds its records once more, so
    that publishing many shards reads none. May be sent to a worker process.

    Args:
        root: Folder of unfinished work.
        stage: Name of the stage.
        artefact: Name of the data set.
        fingerprint: Hex digest of all that the shards depend on; 16 digits are used.
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
        """Write a shard and mark it finished.

        Args:
            name: File name of the shard.
            members: Records and stored PNGs, in any order.
            rejects: What was dropped while the shard was made.

        Raises:
            StageError: The disk is full or refuses.
        """
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
            write_json(self._rows(name), [sample.model_dump() for sample, _ in kept], indent=None)
            finished = FinishedShard(info, tuple(rejects))
            state = {
                "info": info.model_dump(),
                "rejects": [asdict(reject) for reject in finished.rejects],
            }
            write_json(done, state, indent=None)
        except OSError as error:
            raise StageError(
                f"shard {self.path / name} cannot be written ({error.strerror}): finished shards "
                "are kept, and running the same command again redoes only the rest"
            ) from error
        return finished

    def finished(self, name: str) -> FinishedShard | None:
        """A shard if it is whole, else None.

        Args:
            name: File name of the shard.
        """
        try:
            text = json.loads(self._done(name).read_bytes())
            info = ShardInfo(**text["info"])
            self._rows(name).stat()
            if info.samples and (self.path / name).stat().st_size != info.bytes:
                return None
        except FileNotFoundError:
            return None
        return FinishedShard(info, tuple(Reject(**reject) for reject in text["rejects"]))

    def require(self, name: str) -> FinishedShard:
        """A shard that must be whole.

        Args:
            name: File name of the shard.

        Raises:
            StageError: It is not finished.
        """
        found = self.finished(name)
        if found is None:
            raise StageError(f"shard {self.path / name} must be finished before publishing")
        return found

    def rows(self, name: str) -> list[dict[str, Any]]:
        """The records of a finished shard.

        Args:
            name: File name of the shard.
        """
        rows: list[dict[str, Any]] = json.loads(self._rows(name).read_bytes())
        return rows

    def pending(self, names: Iterable[str]) -> list[str]:
        """The names of the shards that are unfinished, in their order.

        Args:
            names: File names of shards.
        """
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
    """Make the data set folder.

    Args:
        out: The folder.

    Raises:
        InputError: It cannot be made or written.
    """
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

    Shards are hard-linked (copied across file systems), so the work folder costs no disk and the
    next run with the same fingerprint only publishes. The manifest goes first and comes back last:
    a folder with a manifest is whole, and a killed publish is run again. Files of others in `out`
    stay. An image that an earlier shard of `names` holds too is rejected: keys are unique.
    Afterwards the work folders that other fingerprints left for the same stage and artefact are
    removed, so the disk does not grow.

    Args:
        work: Where the shards are.
        out: The data set folder.
        names: File names of the shards, in the order in which a duplicate is kept.
        record: Type of the records.
        n_in: Number of samples that came in.
        scale: Scale and terms of the scores.
        card: What the data set card says of this stage.
        parameters: What the shards were made with.
        inputs: content_sha256 of each input, by name.
        rejects: Samples that were dropped before any shard.

    Returns:
        The manifest that was written.

    Raises:
        StageError: A shard is missing, nothing was kept, or in = kept + rejected does not hold.
    """
    rows = _unique_rows(work, names, record)
    shards = []
    dropped = list(rejects)
    for name in names:
        finished = work.require(name)
        dropped += finished.rejects
        if finished.info.samples:
            shards.append(finished.info)
    counts = reconcile(n_in, _count_splits(shards), dropped)
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
        (out / MANIFEST).unlink(missing_ok=True)
        _link_shards(work.path, out / "data", manifest.shards)
        write_parquet(out / METADATA, _metadata(rows, record))
        write_rejects(out, dropped, work.stage)
        write_bytes(out / "README.md", dataset_card(card, manifest, record).encode())
        manifest.write(out)
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


def _count_splits(shards: Iterable[ShardInfo]) -> dict[str, int]:
    splits: Counter[str] = Counter()
    for shard in sorted(shards, key=lambda shard: shard.name):
        splits[shard.name.rpartition("-")[0]] += shard.samples
    return dict(splits)


def reconcile(n_in: int, splits: dict[str, int], rejects: Sequence[Reject]) -> Counts:
    """The counts of a data set.

    Args:
        n_in: Number of samples that came in.
        splits: Number of kept samples of each split.
        rejects: What was dropped.

    Raises:
        StageError: In = kept + rejected does not hold, or nothing was kept.
    """
    kept = sum(splits.values())
    if n_in != kept + len(rejects):
        raise StageError(
            f"in = kept + rejected must hold, got {n_in} in, {kept} kept, {len(rejects)} rejected"
        )
    if not kept:
        first = f", the first as {rejects[0].reason!r}" if rejects else ""
        raise StageError(f"no sample was kept: {len(rejects)} of {n_in} were rejected{first}")
    return Counts(in_=n_in, kept=kept, rejected=len(rejects), splits=splits)


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
