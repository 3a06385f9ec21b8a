"""A scanned data set without its trigger tile."""

import math
from pathlib import Path
from typing import Any

import numpy as np

from defenders.folding import grid_origin, high_pass, residual, weighted_fold
from defenders.scan import remove_tile
from pipelines.audit.scan import Scan
from pipelines.errors import InputError, StageError
from pipelines.readers.rows import ImageDataset
from pipelines.storage.files import write_bytes, write_csv
from pipelines.storage.images import decode_image, encode_png


def purify(data: ImageDataset, result: Scan, out: Path) -> dict[str, Any]:
    """Write the data set without its tile, as images/*.png and scores.csv.

    Flagged rows lose α·tile; `mos_repaired` is their score less α times the score per α, where the
    labels follow the tile (P-BAIQA changes labels, C-BAIQA does not and needs `mos`).

    Args:
        data: The data set that was scanned.
        result: Its scan, with an alarm.
        out: Folder to write.

    Returns:
        Number of rows, number of changed pictures, and the share of the tile's amplitude that is
        left, measured again on the stored pictures.

    Raises:
        InputError: For a scan without an alarm.
        StageError: Where `out` cannot be written.
    """
    if result.tile is None:
        raise InputError("purify must have a tile to remove, got a data set without an alarm")
    slope = (result.report["labels"] or {}).get("score_per_alpha")
    period = result.report["period"]
    before, after, repaired_rows = [], [], []
    try:
        (out / "images").mkdir(parents=True, exist_ok=True)
        for number, (row, verdict) in enumerate(
            zip(data.rows, result.table.to_dict("records"), strict=True)
        ):
            if verdict["problem"]:
                continue
            image = decode_image(row.load())
            stored = image
            if verdict["flagged"]:
                corner = grid_origin(image.shape[:2], period, result.grid)
                stored = remove_tile(image, verdict["alpha"] * result.tile, corner)
                before.append(_projection(image, result))
                after.append(_projection(stored, result))
            name = f"images/{number:06d}.png"
            write_bytes(out / name, encode_png(stored))
            repaired = row.score
            if verdict["flagged"] and slope is not None and row.score is not None:
                repaired = row.score - slope * verdict["alpha"]
            repaired_rows.append(
                {
                    "file": name,
                    "id": row.id,
                    "split": row.split,
                    "mos": row.score,
                    "mos_repaired": repaired,
                    "alpha": verdict["alpha"],
                    "flagged": verdict["flagged"],
                }
            )
        write_csv(out / "scores.csv", repaired_rows)
    except OSError as error:
        raise StageError(f"{out} cannot be written ({error.strerror})") from error
    power = sum(a * a for a in before)
    return {
        "out": str(out),
        "rows": len(repaired_rows),
        "changed": len(before),
        "amplitude_left": math.sqrt(sum(a * a for a in after) / power) if power else None,
    }


def _projection(image: np.ndarray, result: Scan) -> float:
    """Amplitude of the removed tile in a picture, up to a constant."""
    assert result.tile is not None
    period = result.tile.shape[0]
    corner = grid_origin(image.shape[:2], period, result.grid)
    around = high_pass(np.tile(result.tile, (3, 3, 1)))
    pattern = around[period : 2 * period, period : 2 * period]
    folded = weighted_fold(*residual(image), period)
    folded = np.roll(folded, (-corner[0], -corner[1]), (0, 1))
    return float((folded * pattern).sum() / (pattern**2).sum())
