"""The result of a scan as files and as text."""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pipelines.audit.scan import Scan
from pipelines.errors import StageError
from pipelines.storage.files import atomic_file, write_bytes, write_json
from pipelines.storage.images import encode_png


def write_scan(result: Scan, out: Path) -> None:
    """Write scan.json, rows.parquet and, after an alarm, tile.png.

    Args:
        result: The scan.
        out: Folder to write.

    Raises:
        StageError: Where `out` cannot be written.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        with atomic_file(out / "rows.parquet") as file:
            result.table.to_parquet(file, index=False)
        (out / "tile.png").unlink(missing_ok=True)
        if result.tile is not None:
            write_bytes(out / "tile.png", encode_png(tile_picture(result.tile)))
        write_json(out / "scan.json", result.report)
    except OSError as error:
        raise StageError(f"{out} cannot be written ({error.strerror})") from error


def scan_text(report: dict[str, Any], out: Path) -> str:
    """The result of a scan in a few lines.

    Args:
        report: Content of scan.json.
        out: Folder that holds it.
    """
    lines = [
        f"{report['data']}: {report['verdict']} (p = {report['p']:.2g}, alarms on "
        f"{report['false_alarm_rate']:.2g} of clean sets; {report['rows']} rows, "
        f"{report['unreadable']} not used)"
    ]
    if "flagged" in report:
        lines.append(
            f"tile of {report['period']}×{report['period']} pixels, RMS "
            f"{report['tile_rms'] or 0:.1f} levels; {report['flagged']} rows carry it "
            f"({100 * report['flagged_share']:.1f} %)"
        )
        labels = report["labels"] or {}
        if labels.get("correlation") is not None:
            lines.append(
                f"labels follow it with r = {labels['correlation']:.2f} (p = {labels['p']:.2g}), "
                f"{labels['score_per_alpha']:.3g} per unit of α"
            )
    if report.get("purified"):
        purified = report["purified"]
        lines.append(
            f"{purified['out']}: {purified['changed']} of {purified['rows']} pictures changed, "
            f"{100 * (purified['amplitude_left'] or 0):.1f} % of the tile's amplitude left"
        )
    return "\n".join([*lines, f"{out}/: scan.json, rows.parquet and, after an alarm, tile.png"])


def tile_picture(tile: np.ndarray, side: int = 512) -> np.ndarray:
    """The tile on grey with its contrast stretched, four times repeated.

    Args:
        tile: (P,P,3) grey levels.
        side: Side of the picture in pixels, about.

    Returns:
        uint8 (H,W,3).
    """
    peak = float(np.abs(tile).max()) or 1.0
    levels = np.clip(127.5 + 127.5 * np.tile(tile, (2, 2, 1)) / peak, 0, 255).round()
    zoom = max(1, side // levels.shape[0])
    size = (levels.shape[1] * zoom, levels.shape[0] * zoom)
    return np.array(Image.fromarray(levels.astype(np.uint8)).resize(size, Image.Resampling.NEAREST))
