"""Stage `import`: photographs of a source become the clean data set."""

import inspect
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pipelines.errors import InputError
from pipelines.execution.engine import map_shards
from pipelines.sources.base import SourceItem, SourceListing, resolve_splits
from pipelines.sources.registry import importer, source_module
from pipelines.storage.cards import Card
from pipelines.storage.code import code_version
from pipelines.storage.images import RejectedImage, decode_image, encode_png, shrink
from pipelines.storage.manifest import Manifest, ScaleInfo, fingerprint
from pipelines.storage.records import CleanSample, build_record, image_key
from pipelines.storage.shards import shard_name
from pipelines.storage.workfolder import Reject, WorkFolder, check_out, duplicate, publish

STAGE = "import"
_PLACES = ("root", "scores")  # options that say where the data lies, not what it is


@dataclass(frozen=True)
class ImportJob:
    """One shard to be made: its items, and how."""

    work: WorkFolder
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


def run_import(
    *,
    source: str,
    options: dict[str, Any],
    out: Path,
    work_root: Path,
    splits: dict[str, float],
    seed: int,
    shard_size: int,
    workers: int,
    min_side: int,
    max_side: int | None = None,
    progress: bool = True,
    **engine: Any,
) -> Manifest:
    """Import `source` with its `options` into the data set folder `out`.

    Pictures are stored as PNG at their own size, or with a longer side of at most `max_side`
    pixels; those smaller than `min_side` are rejected. `splits` are fractions, unless the source
    prescribes splits. Finished shards in `work_root` are kept from an earlier run. `engine`: more
    arguments of map_shards. Raises
    InputError for a bad argument or source, StageError when the disk or a worker fails.
    """
    _check(source, options, shard_size=shard_size, min_side=min_side, max_side=max_side)
    check_out(out)
    try:
        listing = importer(source)(seed, **options)
    except TypeError as error:  # a value of another type than the source expects
        raise InputError(f"options of source {source} must fit it, got {error}") from None
    if not listing.items:
        raise InputError(f"source {source} must have at least one picture, got none")
    chosen = resolve_splits(listing.items, splits, seed)
    parameters = {
        "source": source,
        "options": {name: value for name, value in options.items() if name not in _PLACES},
        "splits": splits,
        "seed": seed,
        "shard_size": shard_size,
        "min_side": min_side,
        "max_side": max_side,
    }
    work = WorkFolder(work_root, STAGE, out.name, _fingerprint(listing, chosen, parameters))
    work.create()
    jobs = [
        ImportJob(work, name, split, source, listing.scale, items, min_side, max_side)
        for name, split, items in _shards(listing.items, chosen, shard_size)
    ]
    names = sorted(job.name for job in jobs)
    pending = set(work.pending(names))
    todo = [job for job in jobs if job.name in pending]
    map_shards(
        import_shard, todo, workers=workers, description="import", progress=progress, **engine
    )
    return publish(
        work,
        out,
        names,
        record=CleanSample,
        n_in=len(listing.items) + len(listing.rejects),
        scale=listing.scale,
        card=_card(source),
        parameters=parameters,
        inputs={},
        rejects=[Reject(source_id, None, reason) for source_id, reason in listing.rejects],
    )


def _check(
    source: str, options: dict[str, Any], *, shard_size: int, min_side: int, max_side: int | None
) -> None:
    known = inspect.signature(importer(source)).parameters
    allowed = [name for name in known if name != "seed"]
    for name in options:
        if name not in allowed:
            raise InputError(
                f"options of source {source} must be among {', '.join(allowed)}, got {name!r}"
            )
    for name in allowed:
        if known[name].default is inspect.Parameter.empty and name not in options:
            raise InputError(f"options of source {source} must have {name}, got {list(options)}")
    if shard_size < 1:
        raise InputError(f"shard_size must be at least 1, got {shard_size}")
    if min_side < 1:
        raise InputError(f"min_side must be at least 1 pixel, got {min_side}")
    if max_side is not None and max_side < min_side:
        raise InputError(f"max_side must be at least min_side {min_side}, got {max_side}")


def _fingerprint(listing: SourceListing, chosen: list[str], parameters: dict[str, Any]) -> str:
    items = [
        (item.source_id, item.group, item.version, split)
        for item, split in zip(listing.items, chosen, strict=True)
    ]
    return fingerprint(
        parameters=parameters,
        scale=listing.scale.model_dump(),
        items=items,
        code=code_version(__name__, source_module(parameters["source"])),
        pillow=version("pillow"),  # its encoder makes the bytes
    )


def _shards(
    items: Sequence[SourceItem], chosen: Sequence[str], shard_size: int
) -> Iterable[tuple[str, str, tuple[SourceItem, ...]]]:
    """(name, split, items) of each shard; items keep the order of the source."""
    for split in dict.fromkeys(chosen):
        members = [item for item, own in zip(items, chosen, strict=True) if own == split]
        for index, start in enumerate(range(0, len(members), shard_size)):
            yield shard_name(split, index), split, tuple(members[start : start + shard_size])


def import_shard(job: ImportJob) -> None:
    """Read, convert and store the pictures of one shard."""
    members: dict[str, tuple[CleanSample, bytes]] = {}
    rejects = []
    for item in job.items:
        try:
            record, image = _import_item(item, job)
        except RejectedImage as error:
            rejects.append(Reject(item.source_id, None, error.reason))
        except OSError as error:
            reason = f"cannot be read ({error.strerror})"
            rejects.append(Reject(item.source_id, None, reason))
        else:
            if record.key in members:
                rejects.append(duplicate(item.source_id, record.key))
            else:
                members[record.key] = (record, image)
    job.work.write(job.name, members.values(), rejects)


def _import_item(item: SourceItem, job: ImportJob) -> tuple[CleanSample, bytes]:
    photo = item.load()
    pixels = photo.data
    if isinstance(pixels, bytes):
        pixels = decode_image(pixels, min_side=job.min_side)
    if job.max_side is not None:
        pixels = shrink(pixels, job.max_side)
    image = encode_png(pixels)
    record = build_record(
        CleanSample,
        key=image_key(image),
        source=job.source,
        source_id=item.source_id,
        parent_key=None,
        split=job.split,
        width=pixels.shape[1],
        height=pixels.shape[0],
        mos=photo.mos,
        mos_std=photo.mos_std,
        n_votes=photo.n_votes,
        score_low=job.scale.low,
        score_high=job.scale.high,
        photograph=item.group,
    )
    return record, image


def _card(source: str) -> Card:
    return Card(
        title=f"Clean photographs from {source}",
        summary=(
            f"Photographs of the source `{source}` with their scores, unchanged but for the "
            "conversion to upright 8-bit RGB (transparency laid over white), stored as PNG."
        ),
        tags=("clean",),
    )
