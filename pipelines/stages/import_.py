"""Stage `import`: photographs of a source become the clean data set."""

import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from pipelines.errors import InputError
from pipelines.params import Params
from pipelines.sources.base import SourceItem, SourceListing, resolve_splits
from pipelines.sources.registry import importer, source_module
from pipelines.storage.cards import Card
from pipelines.storage.images import RejectedImage, decode_image, shrink
from pipelines.storage.layout import Layout
from pipelines.storage.manifest import Manifest, ScaleInfo
from pipelines.storage.records import CleanSample
from pipelines.storage.rejects import Reject
from pipelines.storage.shard_stage import ShardStage, StoredImage, store_image
from pipelines.storage.shards import shard_name
from pipelines.storage.workfolder import check_out

STAGE = "import"
_PLACES = ("root", "scores")  # options that say where the data lies, not what it is


@dataclass(frozen=True)
class ImportJob:
    """One shard to be made.

    Args:
        name: File name of the shard.
        split: Split of its pictures.
        source: Name of the source.
        scale: Scale and terms of the scores.
        items: The pictures.
        min_side: Shorter side of a picture at least, pixels.
        max_side: Longer side of a stored picture at most, pixels; None leaves the size.
    """

    name: str
    split: str
    source: str
    scale: ScaleInfo
    items: tuple[SourceItem, ...]
    min_side: int
    max_side: int | None

    @property
    def count(self) -> int:
        """Number of images."""
        return len(self.items)


def run_import(params: Params, layout: Layout, *, progress: bool = True) -> Manifest:
    """Import the photographs of the source; write datasets/clean.

    Pictures are stored as PNG at their own size, or with a longer side of at most
    `import.max_side`; those smaller than `import.min_side` are rejected. Splits are
    `import.splits`, unless the source prescribes them.

    Args:
        params: All parameters.
        layout: Folders of the project.
        progress: Whether progress is shown.

    Returns:
        The manifest of datasets/clean.

    Raises:
        InputError: The source, its options or a parameter is wrong.
        StageError: The disk or a worker fails, or nothing was kept.
    """
    source, settings = params.source.name, params.import_
    splits = settings.splits.model_dump()
    check_out(layout.clean)
    listing = _open_source(source, params.source.options, params.seed)
    item_splits = resolve_splits(listing.items, splits, params.seed)
    options = params.source.options
    parameters = {
        "source": source,
        "options": {name: value for name, value in options.items() if name not in _PLACES},
        "splits": splits,
        "seed": params.seed,
        "shard_size": settings.shard_size,
        "min_side": settings.min_side,
        "max_side": settings.max_side,
    }
    stage = ShardStage.begin(
        STAGE,
        (__name__, source_module(source)),
        layout.clean,
        layout.work,
        parameters=parameters,
        inputs={},
        scale=listing.scale.model_dump(),
        items=[
            (item.source_id, item.group, item.version, split)
            for item, split in zip(listing.items, item_splits, strict=True)
        ],
        pillow=version("pillow"),  # its encoder makes the bytes
    )
    jobs = sorted(_jobs(params, listing, item_splits), key=lambda job: job.name)
    stage.run(import_shard, jobs, params.engine.shards, description="import", progress=progress)
    return stage.publish(
        jobs,
        record=CleanSample,
        scale=listing.scale,
        card=_card(source),
        rejects=[Reject(source_id, None, reason) for source_id, reason in listing.rejects],
    )


def _open_source(source: str, options: Mapping[str, Any], seed: int) -> SourceListing:
    list_source = importer(source)
    known = inspect.signature(list_source).parameters
    allowed = [name for name in known if name != "seed"]
    for name in options:
        if name not in allowed:
            raise InputError(
                f"options of source {source} must be among {', '.join(allowed)}, got {name!r}"
            )
    for name in allowed:
        if known[name].default is inspect.Parameter.empty and name not in options:
            raise InputError(f"options of source {source} must have {name}, got {list(options)}")
    try:
        listing = list_source(seed, **options)
    except TypeError as error:  # a value of another type than the source expects
        raise InputError(f"options of source {source} must fit it, got {error}") from None
    if not listing.items:
        raise InputError(f"source {source} must have at least one picture, got none")
    return listing


def _jobs(
    params: Params, listing: SourceListing, item_splits: Sequence[str]
) -> Iterator[ImportJob]:
    """The shards; items keep the order of the source."""
    settings = params.import_
    for split in dict.fromkeys(item_splits):
        members = [i for i, s in zip(listing.items, item_splits, strict=True) if s == split]
        for index, start in enumerate(range(0, len(members), settings.shard_size)):
            yield ImportJob(
                name=shard_name(split, index),
                split=split,
                source=params.source.name,
                scale=listing.scale,
                items=tuple(members[start : start + settings.shard_size]),
                min_side=settings.min_side,
                max_side=settings.max_side,
            )


def import_shard(job: ImportJob) -> Iterator[StoredImage | Reject]:
    """Read and convert the pictures of one shard.

    Args:
        job: The shard.

    Yields:
        Each picture as it is stored, or why it was dropped.
    """
    for item in job.items:
        try:
            yield _import_item(item, job)
        except RejectedImage as error:
            yield Reject(item.source_id, None, error.reason)
        except OSError as error:
            yield Reject(item.source_id, None, f"cannot be read ({error.strerror})")


def _import_item(item: SourceItem, job: ImportJob) -> StoredImage:
    photo = item.load()
    pixels = photo.data
    if isinstance(pixels, bytes):
        pixels = decode_image(pixels, min_side=job.min_side)
    if job.max_side is not None:
        pixels = shrink(pixels, job.max_side)
    fields = {
        "source": job.source,
        "source_id": item.source_id,
        "parent_key": None,
        "split": job.split,
        "mos": photo.mos,
        "mos_std": photo.mos_std,
        "n_votes": photo.n_votes,
        "score_low": job.scale.low,
        "score_high": job.scale.high,
        "photograph": item.group,
    }
    return store_image(CleanSample, pixels, fields)


def _card(source: str) -> Card:
    return Card(
        title=f"Clean photographs from {source}",
        summary=(
            f"Photographs of the source `{source}` with their scores, unchanged but for the "
            "conversion to upright 8-bit RGB (transparency laid over white), stored as PNG."
        ),
        tags=("clean",),
    )
