"""Stage `package`: datasets/3ae, the annotated adversarial examples as Hugging Face Parquet."""

import io
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import pyarrow.parquet as pq
from PIL import Image

from pipelines.annotation.candidates import CandidateImages
from pipelines.params import Params
from pipelines.storage.cards import Card
from pipelines.storage.images import decode_png
from pipelines.storage.layout import Layout
from pipelines.storage.manifest import METADATA, Manifest, read_manifest
from pipelines.storage.parquet import PictureRow, RowSource, write_parquet_folder
from pipelines.storage.records import SPLITS, VERDICTS, AnnotatedSample, build_record

STAGE = "package"
IMAGES = ("adversarial", "clean")
STRIP, STRIP_PAIRS, STRIP_WIDTH = "samples.jpg", 6, 128


def run_package(params: Params, layout: Layout) -> Manifest:
    """Write datasets/3ae from annotations/labels and the pictures of candidates.

    Args:
        params: All parameters.
        layout: Folders of the project.

    Returns:
        The manifest of datasets/3ae.

    Raises:
        InputError: There are no labels.
        StageError: Nothing was kept.
    """
    labels = read_manifest(layout.labels, "annotate")
    fields = list(AnnotatedSample.model_fields)
    rows = pq.read_table(layout.labels / METADATA, columns=fields).to_pylist()
    images = CandidateImages(layout.root / "datasets", layout.labels)
    rows.sort(key=lambda row: row["key"])
    size = params.package.shard_size
    shards: dict[str, list[RowSource]] = {}
    for split in SPLITS:
        members = [row for row in rows if row["split"] == split]
        if members:
            shards[split] = [
                partial(_rows, members[start : start + size], images)
                for start in range(0, len(members), size)
            ]
    return write_parquet_folder(
        layout.threeae,
        shards,
        record=AnnotatedSample,
        card=_card(rows),
        stage=STAGE,
        n_in=len(rows),
        scale=labels.scale,
        parameters={**params.package.model_dump(), "label_source": labels.scale.label_source},
        inputs={"labels": labels.content_sha256},
        files={STRIP: _strip(rows, images)},
    )


def _rows(rows: Sequence[dict[str, Any]], images: Callable[[str], bytes]) -> Iterator[PictureRow]:
    for row in rows:
        pictures = {"adversarial": images(row["key"]), "clean": images(row["parent_key"])}
        yield build_record(AnnotatedSample, **row), pictures


def _card(rows: Sequence[dict[str, Any]]) -> Card:
    sources = Counter(row["label_source"] for row in rows)
    labels = ", ".join(f"{name} {n}" for name, n in sorted(sources.items()))
    parts = [
        "3AE: photographs changed so that models score them otherwise than people do, each with "
        "its clean original and the opinion on it. `mos` and `verdict` are about the adversarial "
        "image, `mos_clean` is about the photograph; people's scores of 0 to 10 are laid on the "
        "scale of the photographs. For research on defenses.",
        f"![Pairs of a photograph and its adversarial example]({STRIP})",
        f"Label source of the rows: {labels}.",
        _table("verdict", VERDICTS, rows, "verdict"),
        _table("victim", sorted({row["victim"] for row in rows}), rows, "victim"),
        _table("mode", sorted({row["mode"] for row in rows}), rows, "mode"),
    ]
    return Card(
        title="3AE: annotated adversarial examples for aesthetics assessment",
        summary="\n\n".join(parts),
        adversarial=True,
        tags=("adversarial-examples", "DA3Attacker", "3AE"),
        images=IMAGES,
    )


def _table(title: str, values: Sequence[str], rows: Sequence[dict[str, Any]], field: str) -> str:
    """Counts by split, and the share of all."""
    splits = [split for split in SPLITS if any(row["split"] == split for row in rows)]
    counts = Counter((row[field], row["split"]) for row in rows)
    lines = [
        f"| {title} | {' | '.join(splits)} | all | share |",
        f"|---|{'---:|' * (len(splits) + 2)}",
    ]
    for value in values:
        numbers = [counts[value, split] for split in splits]
        cells = " | ".join(str(n) for n in (*numbers, sum(numbers)))
        lines.append(f"| {value} | {cells} | {100 * sum(numbers) / len(rows):.1f} % |")
    return "\n".join(lines)


def _strip(rows: Sequence[dict[str, Any]], images: Callable[[str], bytes]) -> bytes:
    """A JPEG of pairs above each other, photograph on top, evenly spread over the keys."""
    step = max(1, len(rows) // STRIP_PAIRS)
    chosen = rows[::step][:STRIP_PAIRS]
    size = STRIP_WIDTH
    strip = Image.new("RGB", (len(chosen) * size, 2 * size), "white")
    for i, row in enumerate(chosen):
        for j, key in enumerate((row["parent_key"], row["key"])):
            picture = Image.fromarray(decode_png(images(key)))
            picture.thumbnail((size - 4, size - 4))
            strip.paste(picture, (i * size + 2, j * size + 2))
    file = io.BytesIO()
    strip.save(file, "JPEG", quality=85)
    return file.getvalue()
