"""The skeleton of a stage that writes shards: what import, perturb, attack and poison share."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np

from pipelines.execution.engine import map_shards
from pipelines.storage.cards import Card
from pipelines.storage.code import code_version
from pipelines.storage.images import encode_png
from pipelines.storage.manifest import Manifest, ScaleInfo, fingerprint
from pipelines.storage.records import Sample, build_record, image_key
from pipelines.storage.rejects import Reject, duplicate
from pipelines.storage.workfolder import FinishedShard, WorkFolder, check_out, publish

StoredImage = tuple[Sample, bytes]  # a record and its PNG
S = TypeVar("S", bound=Sample)


class NamedJob(Protocol):
    """One shard to be made: its file name and its number of samples that come in."""

    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def count(self) -> int: ...  # noqa: D102


@dataclass(frozen=True)
class ShardStage:
    """One run of a stage that writes shards.

    The stage brings a function that yields the samples of a shard; resumption, duplicates, rejects,
    workers, progress and the published folder come with this class.

    Args:
        work: Where finished shards are kept.
        out: The data set folder.
        parameters: What the shards are made with, as the manifest names it.
        inputs: content_sha256 of each input, by name.
    """

    work: WorkFolder
    out: Path
    parameters: dict[str, Any]
    inputs: dict[str, str]

    @classmethod
    def begin(
        cls,
        name: str,
        modules: Sequence[str],
        out: Path,
        work_root: Path,
        *,
        parameters: dict[str, Any],
        inputs: dict[str, str],
        **depends: Any,
    ) -> "ShardStage":
        """Check the folders and find the work of an earlier run.

        Args:
            name: Name of the stage.
            modules: The modules whose code, imports included, makes the shards.
            out: The data set folder.
            work_root: Root of the work folders.
            parameters: See the class.
            inputs: See the class.
            depends: What else the bytes depend on, such as versions of libraries.

        Raises:
            InputError: A folder cannot be written.
        """
        check_out(out)
        digest = fingerprint(
            parameters=parameters, inputs=inputs, code=code_version(*modules), **depends
        )
        work = WorkFolder(work_root, name, out.name, digest)
        work.create()
        return cls(work, out, parameters, inputs)

    def run(
        self,
        make: Callable[..., Iterable[StoredImage | Reject]],
        jobs: Sequence[NamedJob],
        engine: Mapping[str, Any],
        *,
        setup: Callable[[], Any] | None = None,
        description: str = "",
        progress: bool = True,
    ) -> list[FinishedShard]:
        """Make the shards that are not finished yet.

        Args:
            make: Yields what becomes of each sample of a job: a record with its PNG, or a reject.
                Called as `fn` of map_shards.
            jobs: All shards of the run.
            engine: Arguments of map_shards: engine, workers and company.
            setup: Of map_shards.
            description: What the progress line calls the run.
            progress: Whether progress is shown.

        Returns:
            The finished shards, in the order of `jobs`.

        Raises:
            StageError: The disk or a worker fails.
        """
        pending = set(self.work.pending(job.name for job in jobs))
        map_shards(
            _ShardWriter(self.work, make),
            [job for job in jobs if job.name in pending],
            **engine,
            setup=setup,
            description=description,
            progress=progress,
        )
        return [self.work.require(job.name) for job in jobs]

    def publish(
        self,
        jobs: Sequence[NamedJob],
        *,
        record: type[Sample],
        scale: ScaleInfo,
        card: Card,
        rejects: Sequence[Reject] = (),
    ) -> Manifest:
        """Make `out` the data set of the finished shards, see workfolder.publish.

        Args:
            jobs: All shards of the run.
            record: Type of the records.
            scale: Scale and terms of the scores.
            card: What the data set card says of this stage.
            rejects: Samples that were dropped before any shard.
        """
        return publish(
            self.work,
            self.out,
            [job.name for job in jobs],
            record=record,
            n_in=sum(job.count for job in jobs) + len(rejects),
            scale=scale,
            card=card,
            parameters=self.parameters,
            inputs=self.inputs,
            rejects=rejects,
        )


@dataclass(frozen=True)
class _ShardWriter:
    """Stores what `make` yields for a job; the first of equal images is kept."""

    work: WorkFolder
    make: Callable[..., Iterable[StoredImage | Reject]]

    def __call__(self, job: NamedJob, *state: Any) -> None:
        members: dict[str, StoredImage] = {}
        rejects: list[Reject] = []
        for result in self.make(job, *state):
            if isinstance(result, Reject):
                rejects.append(result)
            elif (sample := result[0]).key in members:
                rejects.append(duplicate(sample.source_id, sample.key))
            else:
                members[sample.key] = result
        self.work.write(job.name, members.values(), rejects)


def store_image(record: type[S], pixels: np.ndarray, fields: Mapping[str, Any]) -> tuple[S, bytes]:
    """The record of an image and its PNG.

    Args:
        record: Type of the record.
        pixels: uint8 (H,W,3).
        fields: Fields of the record; key, width and height are those of `pixels`.

    Raises:
        InputError: A field breaks a rule of the record.
    """
    image = encode_png(pixels)
    height, width = pixels.shape[:2]
    size = {"key": image_key(image), "width": width, "height": height}
    return build_record(record, **{**fields, **size}), image
