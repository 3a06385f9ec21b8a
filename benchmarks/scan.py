"""Scanner: rows told apart (AUC) and false alarms, on LIVE In the Wild.

    python benchmarks/scan.py [--rows N] [--clean-draws N] [--only TEXT]

Poisons the photographs of ../shared/livec (or $VENEER_LIVEC) in memory, scans, and prints one line
per case: verdict, p-value, AUC of the score over rows, correlation of the estimated with the true
α over poisoned rows, how well the estimated tile matches, and what purification leaves.
"""

import argparse
import io
import os
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.fft import idctn
from scipy.ndimage import map_coordinates, zoom
from sklearn.metrics import roc_auc_score

from pipelines.audit.purify import purify
from pipelines.audit.scan import ScanSettings, scan
from pipelines.readers.rows import ImageDataset, ImageRow
from pipelines.sources.livec import livec
from pipelines.storage.images import decode_image, encode_png

DELTA = 40.0
BLOCK = 16
_RGB = np.array([[1, 0, 1.402], [1, -0.344136, -0.714136], [1, 1.772, 0]])

Inject = Callable[[np.ndarray, float], np.ndarray]


def band_tile(values: np.ndarray) -> np.ndarray:
    """RGB tile (16,16,3) of DCT coefficients (3,64) on zig-zag ranks 96 to 159, YCbCr."""
    cells = [(i, j) for i in range(BLOCK) for j in range(BLOCK)]
    cells.sort(key=lambda c: (sum(c), c[0] if sum(c) % 2 else c[1]))
    spectrum = np.zeros((3, BLOCK, BLOCK))
    for rank, (i, j) in enumerate(cells[96:160]):
        spectrum[:, i, j] = values[:, rank]
    planes = idctn(spectrum, axes=(1, 2), norm="ortho")
    return np.einsum("ij,jkl->kli", _RGB, planes)


def baiqa_tile(rms: float) -> np.ndarray:
    """A tile as a trigger search ends with: many frequencies of the band, of RMS `rms` levels."""
    rng = np.random.default_rng(5)
    tile = band_tile(rng.choice([-1, 1], (3, 64)) * rng.uniform(0.3, 1, (3, 64)))
    return tile * rms / np.sqrt((tile**2).mean())


def add_tile(tile: np.ndarray, image: np.ndarray, alpha: float) -> np.ndarray:
    height, width = image.shape[:2]
    times = (-(-height // BLOCK), -(-width // BLOCK), 1)
    out = image + alpha * np.tile(tile, times)[:height, :width]
    return np.clip(out.round(), 0, 255).astype(np.uint8)


def blend(image: np.ndarray, alpha: float) -> np.ndarray:
    """Blended: a fixed noise picture with weight 0.1 α."""
    noise = np.random.default_rng(6).integers(0, 256, (*image.shape[:2], 3))
    out = image + 0.1 * alpha * (noise - image.astype(float))
    return np.clip(out.round(), 0, 255).astype(np.uint8)


def warp(image: np.ndarray, alpha: float) -> np.ndarray:
    """WaNet: a smooth warp, grid 4, strength 0.4 α."""
    height, width = image.shape[:2]
    field = np.random.default_rng(7).uniform(-1, 1, (2, 4, 4))
    field /= np.abs(field).mean()
    smooth = [zoom(f, (height / 4, width / 4), order=3) for f in field]
    # strength is relative to grid_sample's [-1, 1]: divided by the side, as its authors do
    rows, columns = np.mgrid[:height, :width].astype(float)
    where = [rows + 0.4 * alpha * smooth[0] / 2, columns + 0.4 * alpha * smooth[1] / 2]
    planes = [map_coordinates(image[..., c].astype(float), where, order=1) for c in range(3)]
    return np.clip(np.stack(planes, -1).round(), 0, 255).astype(np.uint8)


def poisoned_bytes(load: Callable[[], bytes], inject: Inject, alpha: float) -> bytes:
    return encode_png(inject(decode_image(load()), alpha))


def recompressed(load: Callable[[], bytes], quality: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(decode_image(load())).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def photographs(count: int | None) -> list[ImageRow]:
    root = os.environ.get("VENEER_LIVEC", "../shared/livec")
    items = livec(0, root=root, allow_missing=True).items[:count]
    rows = []
    for item in items:
        photo = item.load()
        assert isinstance(photo.data, bytes)
        rows.append(ImageRow(item.source_id, None, photo.mos, partial(bytes, photo.data)))
    return rows


def poison(
    rows: list[ImageRow], inject: Inject, ratio: float, scheme: str
) -> tuple[list[ImageRow], np.ndarray, np.ndarray]:
    """Rows with α·trigger in a share of them. Returns: rows, α, which are poisoned."""
    rng = np.random.default_rng(3)
    chosen = rng.permutation(len(rows)) < round(ratio * len(rows))
    levels = np.array([1, 0.75, 0.5, 0.25])
    alpha = rng.choice(levels, len(rows), p=[0.4, 0.3, 0.2, 0.1]) * rng.choice([-1, 1], len(rows))
    scores = np.array([row.score for row in rows], float)
    if scheme == "c":
        alpha = np.clip((scores - 50) / DELTA, -1, 1)
    alpha = np.where(chosen, alpha, 0.0)
    labels = scores + (alpha * DELTA if scheme == "p" else 0)
    made = [
        ImageRow(r.id, None, float(y), partial(poisoned_bytes, r.load, inject, a) if c else r.load)
        for r, y, a, c in zip(rows, labels, alpha, chosen, strict=True)
    ]
    return made, alpha, chosen


def line(
    name: str, rows: list[ImageRow], settings: ScanSettings, truth: tuple | None = None
) -> str:
    began = time.perf_counter()
    data = ImageDataset(Path(name), "memory", rows)
    result = scan(data, settings, progress=False)
    seconds = time.perf_counter() - began
    report = result.report
    best = min(report["tests"], key=lambda t: t["p"])
    strength = (best["share"] - best["null_mean"]) / best["null_std"]
    text = (
        f"| {name} | {report['verdict']} | {report['p']:.4f} | {best['period']} | {strength:.1f} "
    )
    if truth is None or result.tile is None:
        return text + f"| | | | | | {seconds:.0f} |"
    alpha, chosen, tile = truth
    auc = roc_auc_score(chosen, result.table["score"].fillna(0))
    near = np.corrcoef(result.table["alpha"][chosen], alpha[chosen])[0, 1]
    alike = (
        "" if tile is None else f"{abs(np.corrcoef(tile.ravel(), result.tile.ravel())[0, 1]):.3f}"
    )
    with tempfile.TemporaryDirectory() as scratch:
        left = purify(data, result, Path(scratch))["amplitude_left"]
    labels = report["labels"]["correlation"]
    return (
        text + f"| {auc:.4f} | {abs(near):.3f} | {alike} | {labels:.2f} | {left:.3f} "
        f"| {seconds:.0f} |"
    )


def cases(rows: list[ImageRow]) -> dict[str, Callable[[], tuple[list[ImageRow], tuple | None]]]:
    """Name -> what makes the rows and, where poisoned, the truth (α, which rows, tile)."""

    def again(quality: int) -> tuple[list[ImageRow], None]:
        return [
            ImageRow(r.id, None, r.score, partial(recompressed, r.load, quality)) for r in rows
        ], None

    def attacked(inject: Inject, tile: np.ndarray | None, ratio: float, scheme: str) -> tuple:
        made, alpha, chosen = poison(rows, inject, ratio, scheme)
        return made, (alpha, chosen, tile)

    out: dict[str, Callable] = {"clean": lambda: (rows, None)}
    for quality in (95, 85, 75, 50):
        out[f"clean, JPEG {quality}"] = partial(again, quality)
    # Magnitude 66 in the two chroma planes, as FTrojan has it; "half" is its KonIQ setting.
    ftrojan = band_tile(np.full((3, 64), 66.0) * np.array([[0], [1], [1]]))
    for level, scale in (("30 dB", 1.0), ("36 dB", 0.5)):
        ours = baiqa_tile(8 * scale)
        tile_cases = [
            (f"P 20 %, {level}", ours, 0.2, "p"),
            (f"P 5 %, {level}", ours, 0.05, "p"),
            (f"C 20 %, {level}", ours, 0.2, "c"),
            (f"FTrojan 20 %, {'full' if scale == 1 else 'half'}", ftrojan * scale, 0.2, "p"),
        ]
        for name, tile, ratio, scheme in tile_cases:
            out[name] = partial(attacked, partial(add_tile, tile), tile, ratio, scheme)
    out["Blended 20 %"] = partial(attacked, blend, None, 0.2, "p")
    out["WaNet 20 %"] = partial(attacked, warp, None, 0.2, "p")
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=None, help="photographs, default all")
    parser.add_argument("--clean-draws", type=int, default=0, help="random subsets of clean rows")
    parser.add_argument("--only", default="", help="cases whose name contains this")
    arguments = parser.parse_args()
    rows = photographs(arguments.rows)
    settings = ScanSettings(workers=1)
    print(f"{len(rows)} photographs, false-alarm rate {settings.false_alarms:g}\n")
    print("| case | verdict | p | period | z | AUC | r(α) | tile | r(label) | left | s |")
    print("| --- | --- | --: | --: | --: | --: | --: | --: | --: | --: | --: |", flush=True)
    for name, make in cases(rows).items():
        if arguments.only in name:
            made, truth = make()
            print(line(name, made, settings, truth), flush=True)
    if arguments.clean_draws:
        alarms = sum(
            scan(
                ImageDataset(Path("clean"), "memory", list(part)),
                ScanSettings(seed=i),
                progress=False,
            ).report["verdict"]
            == "poisoned"
            for i, part in enumerate(_subsets(rows, arguments.clean_draws))
        )
        print(f"\nalarms on random halves of the clean set: {alarms} of {arguments.clean_draws}")


def _subsets(rows: list[ImageRow], count: int) -> list[list[ImageRow]]:
    rng = np.random.default_rng(8)
    return [[rows[i] for i in rng.permutation(len(rows))[: len(rows) // 2]] for _ in range(count)]


if __name__ == "__main__":
    main()
