"""The scan for a repeated tile on whatever holds the pictures: a folder, the Hub, or memory."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from pipelines.audit.scan import Scan, ScanSettings
from pipelines.audit.scan import scan as scan_rows
from pipelines.errors import InputError
from pipelines.readers.rows import ImageDataset, ImageRow, open_dataset
from pipelines.storage.images import encode_png
from victims.adapters.images import Images, read_images


def scan(
    dataset: str | Path | Images,
    labels: ArrayLike | None = None,
    *,
    progress: bool = False,
    **settings: Any,
) -> Scan:
    """Look for a trigger that a data set's pictures share; needs no model.

        result = scan("datasets/poisoned-p")
        print(result.report["verdict"], result.report["p"])
        suspects = result.table[result.table.flagged]

    Args:
        dataset: A folder of images with a table, of Parquet files or of WebDataset shards; an id
            "owner/name" on the Hub; or at least 20 pictures in memory, see `read_images`.
        labels: For pictures in memory: their (N,) scores, to say whether they follow the trigger.
        progress: Whether to show a progress bar.
        settings: Fields of `pipelines.audit.scan.ScanSettings`, e.g. false_alarms, max_period,
            workers.

    Returns:
        `report` (verdict, p, what was found), `table` (a row per picture: score, alpha, flagged)
        and `tile` (the trigger, or None without an alarm).

    Raises:
        ValueError: For a bad argument, or fewer than 20 pictures of at least 64 pixels.
    """
    try:
        chosen = ScanSettings(**settings)
    except TypeError as error:
        raise InputError(f"settings must be those of ScanSettings: {error}") from None
    if isinstance(dataset, (str, Path)):
        if labels is not None:
            raise InputError("labels must be given for pictures in memory only, got a data set too")
        return scan_rows(open_dataset(str(dataset)), chosen, progress=progress)
    read = read_images(dataset, "dataset")
    scores: list[float | None] = [None] * len(read)
    if labels is not None:
        try:
            values = np.asarray(labels, np.float64)
        except (TypeError, ValueError):
            raise InputError(f"labels must be numbers, got {type(labels).__name__}") from None
        if values.shape != (len(read),):
            raise InputError(f"labels must be {len(read)}, got shape {values.shape}")
        scores = values.tolist()
    rows = [
        ImageRow(f"{i:06d}", None, score, partial(encode_png, image.permute(1, 2, 0).numpy()))
        for i, (image, score) in enumerate(zip(read.tensors, scores, strict=True))
    ]
    return scan_rows(ImageDataset(Path("memory"), "memory", rows), chosen, progress=progress)
