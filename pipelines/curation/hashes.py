"""Perceptual hashes of stored images, one cached file per shard.

No torch here: worker processes start in half a second.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import imagehash
import numpy as np
from PIL import Image

from pipelines.errors import StageError
from pipelines.execution.engine import map_shards
from pipelines.storage.code import code_version
from pipelines.storage.files import atomic_file
from pipelines.storage.images import decode_png
from pipelines.storage.manifest import Manifest, fingerprint
from pipelines.storage.shards import read_shard

HASHED = np.dtype([("key", np.uint64), ("phash", np.uint64), ("colour", np.uint64)])


def hash_image(pixels: np.ndarray) -> tuple[int, int]:
    """Perceptual hash and colour hash of an image, imagehash's phash and colorhash.

    Luma alone would take a rotated hue for no change.

    Args:
        pixels: uint8 (H,W,3).

    Returns:
        64 bits of the DCT of luma, and 42 bits of colour (3 for each of 14 bins).
    """
    image = Image.fromarray(pixels)
    return _bits(imagehash.phash(image)), _bits(imagehash.colorhash(image))


def _bits(hashed: imagehash.ImageHash) -> int:
    return int("".join("1" if bit else "0" for bit in hashed.hash.flatten()), 2)


@dataclass(frozen=True)
class HashJob:
    """One shard to be hashed.

    Args:
        shard: The shard.
        out: File of its hashes.
        count: Number of its images.
    """

    shard: Path
    out: Path
    count: int


def hash_shard(job: HashJob) -> None:
    """Hash the images of one shard; the file is whole or not there.

    Args:
        job: The shard and the file.
    """
    rows = [
        (int(record["key"], 16), *hash_image(decode_png(image)))
        for record, image in read_shard(job.shard)
    ]
    with atomic_file(job.out) as file:
        np.save(file, np.array(rows, HASHED))


def hash_folders(
    folders: Iterable[Path], cache: Path, *, progress: bool = True, **engine: Any
) -> dict[Path, list[Path]]:
    """Hash the shards of data set folders that are not in the cache.

    Hash files are named by the SHA-256 of the shard, so a shard is hashed once, by whichever run.

    Args:
        folders: The data set folders.
        cache: Where hash files are kept.
        progress: Whether progress is shown.
        engine: Arguments of map_shards: engine, workers and company.

    Returns:
        The hash files of each folder.

    Raises:
        StageError: The disk or a worker fails.
    """
    digest = fingerprint(code=code_version(__name__), lib=version("imagehash"))
    cache = cache / digest[:16]
    try:
        cache.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StageError(f"work folder {cache} cannot be made ({error.strerror})") from None
    files: dict[Path, list[Path]] = {}
    jobs: dict[Path, HashJob] = {}
    for folder in folders:
        files[folder] = []
        for shard in Manifest.read(folder).shards.values():
            out = cache / f"{shard.sha256}.npy"
            files[folder].append(out)
            if not out.exists():
                jobs[out] = HashJob(folder / "data" / shard.name, out, shard.samples)
    todo: Sequence[HashJob] = list(jobs.values())
    map_shards(hash_shard, todo, **engine, description="hash", progress=progress)
    return files


def load_hashes(files: Iterable[Path]) -> np.ndarray:
    """All hashes of some files.

    Args:
        files: What `hash_shard` wrote.

    Returns:
        Array of HASHED, sorted by key.
    """
    parts = [np.load(file) for file in files]
    hashes = np.concatenate(parts) if parts else np.empty(0, HASHED)
    return hashes[np.argsort(hashes["key"], kind="stable")]
