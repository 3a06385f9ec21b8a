"""Clean and adversarial pairs on one picture."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from pipelines.errors import InputError
from pipelines.storage.images import decode_png
from pipelines.storage.shards import ShardIndex

TEXT_HEIGHT = 26


def contact_sheet(
    clean: Path, folders: Sequence[Path], out: Path, *, pairs: int = 3, width: int = 120
) -> None:
    """Draw pairs of clean and adversarial pictures with their scores and strongest filters.

    One row per folder of adversarial examples; its pairs are spread evenly over the gain in score,
    from the largest to the median.

    Args:
        clean: Data set of the photographs.
        folders: Data sets of adversarial examples.
        out: Picture to write; its suffix decides the format.
        pairs: Pairs of each folder.
        width: Width of one picture, in pixels.

    Raises:
        InputError: Where a folder holds no example, or a photograph is missing.
    """
    photographs = ShardIndex(clean)
    rows = []
    for folder in folders:
        index = ShardIndex(folder)
        if not len(index):
            raise InputError(f"{folder} must hold adversarial examples, got none")
        ranked = sorted(
            index.records,
            key=lambda k: -abs(index.records[k]["score_adv"] - index.records[k]["score_clean"]),
        )
        # Not the best ones only: from the largest gain to the median.
        keys = [ranked[i * (len(ranked) // 2) // max(pairs, 1)] for i in range(pairs)]
        rows.append((folder.name, [_pair(photographs, index, key, width) for key in keys]))
    title = 16
    heights = [max(tile.height for tile in tiles) + title for _, tiles in rows]
    gap = 8
    total = max(sum(tile.width + gap for tile in tiles) for _, tiles in rows)
    sheet = Image.new("RGB", (total, sum(heights)), "white")
    draw = ImageDraw.Draw(sheet)
    y = 0
    for (name, tiles), height in zip(rows, heights, strict=True):
        draw.text((2, y + 2), f"{name}: clean, adversarial", fill="black", font=_font(11))
        x = 0
        for tile in tiles:
            sheet.paste(tile, (x, y + title))
            x += tile.width + gap
        y += height
    out.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(out, optimize=True, quality=85)


def _font(size: int) -> Any:
    return ImageFont.load_default(size)


def _pair(photographs: ShardIndex, index: ShardIndex, key: str, width: int) -> Image.Image:
    from attackers.metrics import top_filters  # torch: seconds that the tables do not need

    record = index.records[key]
    if record["parent_key"] not in photographs.records:
        raise InputError(f"photograph {record['parent_key']} of example {key} is not in the data")
    pictures = [
        Image.fromarray(decode_png(data))
        for data in (photographs.image_bytes(record["parent_key"]), index.image_bytes(key))
    ]
    height = max(1, round(width * record["height"] / record["width"]))
    tile = Image.new("RGB", (2 * width + 2, height + TEXT_HEIGHT), "white")
    draw = ImageDraw.Draw(tile)
    scores = (record["score_clean"], record["score_adv"])
    for i, (picture, score) in enumerate(zip(pictures, scores, strict=True)):
        tile.paste(picture.resize((width, height), Image.Resampling.LANCZOS), (i * (width + 2), 0))
        draw.text((i * (width + 2) + 2, height), f"{score:.2f}", fill="black", font=_font(10))
    top = top_filters([record["weights"]], [record["strengths"]])[0]
    text = [*top, f"{record['psnr']:.0f} dB"]
    draw.text((2, height + 12), ", ".join(text), fill="black", font=_font(10))
    return tile
