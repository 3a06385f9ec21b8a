"""LIVE In the Wild Image Quality Challenge Database, official layout (ChallengeDB_release)."""

import re
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.errors import InputError
from pipelines.sources.base import SourceListing, file_item, named
from pipelines.storage.manifest import ScaleInfo

TRAINING_IMAGES = 7  # t1..t7, shown to the raters for practice: they come first in the lists

SCALE = ScaleInfo(
    low=0.0,
    high=100.0,
    label_source="human",
    license="LIVE: use with acknowledgement",
    attribution=(
        "LIVE In the Wild Image Quality Challenge Database, Laboratory for Image and Video "
        "Engineering (LIVE, http://live.ece.utexas.edu), The University of Texas at Austin. "
        "Copyright (c) 2015 The University of Texas at Austin, all rights reserved; use, copying, "
        "modification and distribution are permitted with this notice and acknowledgement. "
        "Cite: D. Ghadiyaram and A.C. Bovik, Massive Online Crowdsourced Study of Subjective and "
        "Objective Picture Quality, IEEE Transactions on Image Processing 25(1), 2016; and "
        "D. Ghadiyaram and A.C. Bovik, LIVE In the Wild Image Quality Challenge Database, "
        "http://live.ece.utexas.edu/research/ChallengeDB/index.html, 2015."
    ),
)


def livec(seed: int, *, root: str, allow_missing: bool = False) -> SourceListing:
    """The 1,162 photographs under `root`, MOS on 0-100.

    The seven training images are rejected. The release gives no number of votes per image.

    Args:
        seed: Unused: nothing is drawn.
        root: The folder ChallengeDB_release.
        allow_missing: Whether photographs without a file are rejects instead of an error.

    Raises:
        InputError: A photograph is missing, or a table of the release is missing or damaged.
    """
    folder = Path(root)
    names = [str(name) for name in _column(folder, "AllImages_release")]
    scores = _column(folder, "AllMOS_release").astype(float)
    spreads = _column(folder, "AllStdDev_release").astype(float)
    _check(folder, names, scores, spreads)
    rejects = [(name, "training image") for name in names[:TRAINING_IMAGES]]
    # Copies differ in the case of the extension (.JPG, .jpg).
    files = {path.name.lower(): path for path in sorted((folder / "Images").glob("*"))}
    items, missing = [], []
    rows = zip(names, scores.tolist(), spreads.tolist(), strict=True)
    for name, mos, mos_std in list(rows)[TRAINING_IMAGES:]:
        path = files.get(name.lower())
        if path is None:
            missing.append(name)
        else:
            items.append(file_item(path, name, mos=mos, mos_std=mos_std, n_votes=None))
    if missing and not allow_missing:
        raise InputError(
            f"root must hold every photograph under Images/ (or set allow_missing), missing in "
            f"{root}: {named(missing)}"
        )
    rejects += [(name, "missing file") for name in missing]
    return SourceListing(items, SCALE, rejects)


def _column(folder: Path, name: str) -> np.ndarray:
    from scipy.io import loadmat

    path = folder / "Data" / f"{name}.mat"
    if not path.is_file():
        raise InputError(f"root must be a ChallengeDB_release folder, got {folder} without {path}")
    try:
        content: dict[str, Any] = loadmat(path, squeeze_me=True)
        return np.atleast_1d(content[name])
    except Exception as error:  # scipy raises many kinds for a damaged file
        raise InputError(f"root holds a {path} that cannot be read: {error}") from error


def _check(folder: Path, names: list[str], scores: np.ndarray, spreads: np.ndarray) -> None:
    if not len(names) == len(scores) == len(spreads):
        raise InputError(
            f"root must list as many names as scores and deviations, got {len(names)}, "
            f"{len(scores)} and {len(spreads)} in {folder / 'Data'}"
        )
    others = [name for name in names[:TRAINING_IMAGES] if not re.match(r"t\d+\.", name)]
    if others or len(names) <= TRAINING_IMAGES:
        raise InputError(
            f"root must list the training images t1 to t7 first, got {names[:TRAINING_IMAGES]} "
            f"in {folder / 'Data'}"
        )
    bad = [n for n, s in zip(names, scores, strict=True) if not SCALE.low <= s <= SCALE.high]
    if bad:
        raise InputError(
            f"root must hold scores in [{SCALE.low:g}, {SCALE.high:g}], got others for {named(bad)}"
        )
