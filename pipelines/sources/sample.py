"""A small data set without network: photographs that ship in the wheels of two libraries.

Crops of them are distorted, and labelled by how far the distortion took them from the crop.
"""

from dataclasses import dataclass
from functools import cache, lru_cache, partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pipelines.errors import InputError, StageError
from pipelines.sources.base import Photo, SourceItem, SourceListing
from pipelines.sources.distortions import DISTORTIONS
from pipelines.storage.manifest import ScaleInfo, file_sha256, sample_seed

SKIMAGE, SKLEARN = ("skimage", "data"), ("sklearn", "datasets/images")

# Photograph -> its files: the two views of a stereo pair are one photograph.
PHOTOGRAPHS: dict[str, tuple[tuple[tuple[str, str], str], ...]] = {
    "astronaut": ((SKIMAGE, "astronaut.png"),),
    "chelsea": ((SKIMAGE, "chelsea.png"),),
    "china": ((SKLEARN, "china.jpg"),),
    "coffee": ((SKIMAGE, "coffee.png"),),
    "flower": ((SKLEARN, "flower.jpg"),),
    "hubble": ((SKIMAGE, "hubble_deep_field.jpg"),),
    "ihc": ((SKIMAGE, "ihc.png"),),
    "motorcycle": ((SKIMAGE, "motorcycle_left.png"), (SKIMAGE, "motorcycle_right.png")),
    "retina": ((SKIMAGE, "retina.jpg"),),
    "rocket": ((SKIMAGE, "rocket.jpg"),),
}

ASPECTS = ((256, 256), (256, 192), (192, 256))  # width, height
MIN_CONTRAST = 30.0  # standard deviation of grey levels: below, a crop shows next to nothing
MOS_STD = 0.5  # stated, not measured: nobody voted

SCALE = ScaleInfo(
    low=0.0,
    high=10.0,
    label_source="simulated",
    license="mixed: public domain, CC0 1.0, CC BY 2.0, see attribution",
    attribution=(
        "Photographs shipped with scikit-image: Eileen Collins (NASA Great Images, public domain); "
        "Chelsea (Stefan van der Walt, CC0); coffee (Rachel Michetti, courtesy of Pikolo Espresso "
        "Bar, CC0); Hubble extreme deep field (NASA, public domain); immunohistochemical staining "
        "(no known copyright restrictions); motorcycle (Middlebury 2014 stereo benchmark by "
        "D. Scharstein et al., GCPR 2014, as redistributed by scikit-image; no licence stated); "
        "retina (Mikael Haggstrom, CC0); Falcon 9 launch (SpaceX, public domain). Shipped with "
        "scikit-learn: china (danielbuechele, CC BY 2.0) and flower (vultilion, CC BY 2.0). Each "
        "was cropped and distorted here."
    ),
)


@dataclass(frozen=True)
class _Recipe:
    path: Path
    kind: str
    severity: float
    seed: int


def sample(seed: int, *, count: int = 240) -> SourceListing:
    """`count` distorted crops of ten photographs, the same number of each (to within one).

    Crops show at least 256 source pixels on their longer side, at a random place and size, and
    are stored with 256. Each gets one of nine distortions (one is none) of random severity, and a
    simulated score: see `simulated_score`.

    Args:
        seed: What crops, distortions and severities are drawn from.
        count: Number of crops, at least ten.

    Raises:
        InputError: `count` is below ten.
        StageError: A library with photographs is not installed.
    """
    if count < len(PHOTOGRAPHS):
        raise InputError(f"count must be at least {len(PHOTOGRAPHS)}, got {count}")
    items = []
    for number in range(count):
        name = list(PHOTOGRAPHS)[number % len(PHOTOGRAPHS)]
        items.append(_item(name, number // len(PHOTOGRAPHS), seed))
    return SourceListing(items, SCALE)


def _item(photograph: str, turn: int, seed: int) -> SourceItem:
    files = PHOTOGRAPHS[photograph]
    kinds = list(DISTORTIONS)
    # Each photograph starts elsewhere in the list, or the last kinds would be rarer.
    kind = kinds[(turn + list(PHOTOGRAPHS).index(photograph)) % len(kinds)]
    item_seed = sample_seed(seed, "sample", f"{photograph}/{turn}")
    severity = np.random.default_rng(item_seed).uniform(0.02, 1)
    source_id = f"{photograph}/{turn:04d} {kind} {severity:.2f}"
    package, file = files[turn % len(files)]
    path = _installed(package) / file
    recipe = _Recipe(path, kind, severity, item_seed)
    return SourceItem(
        source_id=source_id,
        group=photograph,
        load=partial(_make, recipe),
        version=f"{_digest(path)}:{kind}:{severity!r}:{item_seed}",
    )


@cache
def _installed(place: tuple[str, str]) -> Path:
    package, folder = place
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise StageError(f"source sample needs the photographs of {package}, which is not there")
    return Path(spec.origin).parent / folder


@cache
def _digest(path: Path) -> str:
    return file_sha256(path)


def _make(recipe: _Recipe) -> Photo:
    rng = np.random.default_rng(recipe.seed)
    pristine = _crop(_read(recipe.path), rng)
    image = DISTORTIONS[recipe.kind](pristine, recipe.severity, rng)
    return Photo(image, simulated_score(pristine, image), MOS_STD, 0)


@lru_cache(maxsize=4)
def _read(path: Path) -> Image.Image:
    return Image.open(path).convert("RGB")


def _crop(photograph: Image.Image, rng: np.random.Generator) -> np.ndarray:
    """A window with something to see in it, reduced to a longer side of 256 pixels."""
    best, most = None, -1.0
    width, height = ASPECTS[rng.integers(len(ASPECTS))]
    for _ in range(16):
        scale = rng.uniform(1, min(photograph.width / width, photograph.height / height))
        left = rng.uniform(0, photograph.width - scale * width)
        top = rng.uniform(0, photograph.height - scale * height)
        box = (left, top, left + scale * width, top + scale * height)
        window = photograph.resize((width, height), Image.Resampling.LANCZOS, box=box)
        contrast = float(np.asarray(window.convert("L")).std())
        if contrast > most:
            best, most = window, contrast
        if most >= MIN_CONTRAST:
            break
    return np.array(best)


def simulated_score(pristine: np.ndarray, image: np.ndarray) -> float:
    """A score in [0, 10] from the SSIM of an image to what it was before it was distorted.

    The score is 10 (1 - sqrt(1 - SSIM)): the root spreads the crowded upper end, where small losses
    are plainly visible. SSIM as in Wang, Bovik, Sheikh and Simoncelli 2004 (Gaussian window of 1.5
    pixels, mean over the three colours).

    Args:
        pristine: The image before, uint8 (H,W,3).
        image: The image after, uint8 (H,W,3).
    """
    from skimage.metrics import structural_similarity

    measure: Any = structural_similarity  # not typed
    ssim = measure(
        pristine,
        image,
        channel_axis=2,
        data_range=255,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
    )
    return float(np.clip(10 * (1 - np.sqrt(max(0.0, 1 - ssim))), 0, 10))
