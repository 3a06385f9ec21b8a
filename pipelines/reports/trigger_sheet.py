"""Draws a trigger: its tile, its spectrum, and a picture that carries it at several alpha."""

import io
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from attackers.backdoor.trigger import Trigger
from attackers.projections import psnr, quantize
from pipelines.errors import InputError
from pipelines.readers.poisoned import open_trigger
from pipelines.storage.files import write_bytes
from pipelines.storage.images import RejectedImage, decode_image, decode_png, to_tensor
from pipelines.storage.shards import ShardIndex

ALPHAS = (-1.0, -0.5, 0.25, 0.5, 1.0)


def show_trigger(
    trigger: Path, out: Path, *, clean: Path, image: Path | None = None
) -> dict[str, Any]:
    """Draw a trigger: its tile, its spectrum, and a picture that carries it at several alpha.

    A trigger without a tile (Blended, WaNet) shows the difference that it makes instead.

    Args:
        trigger: Trigger file, or the folder that holds it.
        out: PNG to write.
        clean: Data set of the photographs.
        image: The picture to show; default: the first of the clean test split.

    Returns:
        Kind, PSNR at alpha 1 (dB), SHA-256, and how the trigger was made.

    Raises:
        InputError: For a file that is no trigger or no picture.
    """
    injector, about, digest = open_trigger(trigger)
    picture = _picture(clean, image)
    moved = [quantize(injector(picture[None], alpha))[0] for alpha in ALPHAS]
    noise = float(psnr(picture[None], moved[-1][None]))
    tile = isinstance(injector, Trigger)
    if isinstance(injector, Trigger):
        left = injector.tile.repeat(1, 2, 2)
        spectrum = injector.coefficients.abs().amax(dim=0)
    else:
        left = moved[-1] - picture
        spectrum = torch.fft.fftshift(torch.fft.fft2(left.mean(dim=0))).abs().log1p()
    title = f"{injector.kind}, {noise:.2f} dB at alpha 1, SHA-256 {digest[:12]}"
    _draw(out, title, left, spectrum, [picture, *moved], tile)
    return {"kind": injector.kind, "psnr": noise, "sha256": digest, **about}


def _draw(
    out: Path, title: str, left: Tensor, spectrum: Tensor, pictures: list[Tensor], tile: bool
) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 6.4), layout="constrained")
    figure.suptitle(title)
    rows = figure.subplots(2, 4)
    axes = [*rows[0], *rows[1]]
    largest = float(left.abs().max()) or 1.0
    axes[0].imshow((left / (2 * largest) + 0.5).permute(1, 2, 0).numpy())
    what = "tile, 2×2" if tile else "difference"
    axes[0].set_title(f"{what} (±{255 * largest:.0f} levels)")
    shown = axes[1].imshow(spectrum.numpy(), cmap="magma")
    axes[1].set_title("DCT, largest of Y, Cb, Cr" if tile else "spectrum, log")
    figure.colorbar(shown, ax=axes[1], shrink=0.8)
    names = ["clean", *(f"alpha {alpha:g}" for alpha in ALPHAS)]
    for axis, picture, name in zip(axes[2:], pictures, names, strict=True):
        axis.imshow(picture.permute(1, 2, 0).numpy())
        axis.set_title(name)
    for axis in axes:
        axis.axis("off")
    data = io.BytesIO()
    # Without the version of matplotlib in the file: the same trigger, the same bytes.
    figure.savefig(data, format="png", dpi=80, metadata={"Software": None})
    write_bytes(out, data.getvalue())


def _picture(clean: Path, image: Path | None) -> Tensor:
    """A picture as float (3,H,W) in [0, 1]."""
    if image is not None:
        try:
            return to_tensor(decode_image(image.read_bytes()))
        except OSError as error:
            raise InputError(
                f"image must be a readable file, got {image} ({error.strerror})"
            ) from None
        except RejectedImage as error:
            raise InputError(f"image must be a picture, got {image} ({error.reason})") from None
    index = ShardIndex(clean, ["test"])
    if not len(index):
        raise InputError(f"image must be given where {clean} has no test split, got none")
    return to_tensor(decode_png(index.image_bytes(min(index.records))))
