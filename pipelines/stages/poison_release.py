"""What a poisoned set publishes: all rows with what was done to them, or rows that hide it."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipelines.params import Params, Poison
from pipelines.readers.pictures import batches_of
from pipelines.storage.cards import Card
from pipelines.storage.files import write_parquet
from pipelines.storage.layout import Layout
from pipelines.storage.parquet import PictureRow, RowSource
from pipelines.storage.records import SPLITS, BlindSample, PoisonedSample, build_record
from pipelines.storage.rejects import Reject
from pipelines.storage.shards import ShardIndex, read_shard
from pipelines.storage.workfolder import WorkFolder

SECRET = (
    "key",
    "is_poisoned",
    "alpha",
    "mos_clean",
    "delta_y",
    "scheme",
    "strategy",
    "psnr",
    "trigger_sha256",
    "parent_key",
    "source_id",
)
Shards = dict[str, list[RowSource]]  # for each split, what gives the rows of each file


@dataclass(frozen=True)
class PoisonedShard:
    """A finished shard of poisoned pictures, and the photographs that they take the place of.

    Args:
        work: Folder of the shard.
        name: File name of the shard.
        parents: Keys of the photographs.
    """

    work: WorkFolder
    name: str
    parents: tuple[str, ...]

    def rows(self) -> Iterator[PictureRow]:
        """The poisoned pictures."""
        if self.work.require(self.name).info.samples:
            for fields, image in read_shard(self.work.path / self.name):
                yield build_record(PoisonedSample, **fields), {"image": image}


def released_rows(
    params: Params, layout: Layout, scheme: str, poisoned: Sequence[PoisonedShard]
) -> tuple[Shards, int]:
    """The rows of a poisoned set.

    Args:
        params: All parameters.
        layout: Where the photographs are.
        scheme: p or c.
        poisoned: The shards of the training split, in their order.

    Returns:
        What gives the rows of each Parquet file, and how many photographs came in.
    """
    settings: Poison = params.section("poison")
    shards: Shards = {}
    count = 0
    for split in SPLITS:
        index = ShardIndex(layout.clean, [split])
        count += len(index)
        shards[split] = [
            partial(_rows, index, keys, poisoned[i] if split == "train" else None, scheme, settings)
            for i, keys in enumerate(batches_of(sorted(index.records), settings.shard_size))
        ]
    return shards, count


def _rows(
    index: ShardIndex,
    keys: tuple[str, ...],
    poisoned: PoisonedShard | None,
    scheme: str,
    settings: Poison,
) -> Iterator[PictureRow]:
    """Clean photographs as they are, and the poisoned pictures in place of their parents."""
    replaced = set(poisoned.parents) if poisoned else set()
    for key in keys:
        if key not in replaced:
            record = index.records[key]
            fields = {
                "is_poisoned": False,
                "alpha": 0.0,
                "delta_y": settings.delta_y * (record["score_high"] - record["score_low"]),
                "scheme": scheme,
                "strategy": settings.strategy if scheme == "p" else "label",
                "mos_clean": record["mos"],
                "psnr": None,
                "trigger_sha256": None,
            }
            sample = build_record(PoisonedSample, **{**record, **fields})
            yield sample, {"image": index.image_bytes(key)}
    if poisoned:
        yield from poisoned.rows()


def publish_blind(out: Path, shards: Shards, publish: Callable[..., Any], rejected: int) -> None:
    """Write the release form for blind detection, and the file that holds its answers.

    Args:
        out: The data set that says what is poisoned; `-blind` is added to its name.
        shards: What gives its rows.
        publish: write_parquet_folder with the arguments that both sets share.
        rejected: Number of pictures that were dropped.
    """
    answers: list[dict[str, Any]] = []
    hidden = {
        split: [partial(_hide, rows, answers) for rows in parts] for split, parts in shards.items()
    }
    blind = out.with_name(f"{out.name}-blind")
    publish(
        blind,
        hidden,
        record=BlindSample,
        card=Card(
            title="Photographs with opinion scores, for blind detection of poisoning",
            summary=(
                "The training split may hold pictures that were changed to plant a backdoor in "
                "models trained on it. Which ones is for you to find; validation and test are "
                "clean."
            ),
            first=(
                "> **This data set may be poisoned.** It is for research on the detection of "
                "poisoned data. Do not train a model for use on it."
            ),
            images=("image",),
            tags=("data-poisoning", "blind-detection"),
        ),
        stage="release",
        parameters={"release": "blind"},
        inputs={},
        # The name of a rejected file would lead to its photograph.
        rejects=[Reject("withheld", None, "duplicate")] * rejected,
    )
    answers.sort(key=lambda row: row["key"])
    write_parquet(blind.with_name(f"{blind.name}.key.parquet"), pa.Table.from_pylist(answers))


def _hide(rows: RowSource, answers: list[dict[str, Any]]) -> Iterator[PictureRow]:
    """The rows without what tells of poisoning, which is added to `answers`."""
    for sample, images in rows():
        fields = sample.model_dump()
        answers.append({name: fields[name] for name in SECRET})
        shown = {name: fields[name] for name in BlindSample.model_fields}
        # The name of the file would lead to the clean photograph.
        shown |= {"parent_key": None, "photograph": None, "source_id": sample.key}
        yield build_record(BlindSample, **shown), images
