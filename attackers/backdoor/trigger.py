"""Scalable triggers: a pattern that is added to a picture with a coefficient alpha in [-1, 1]."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any, Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from attackers.backdoor.dct import BANDS, BLOCK, band_mask, idct2, ycbcr_to_rgb
from victims.base import check_images

ORIGINS = ("top-left", "centred")
SHAPE = (3, BLOCK, BLOCK)


class Injector(Protocol):
    """What every trigger can do. `kind` names it in the table and in files."""

    @property
    def kind(self) -> str:
        """Name in `attackers.backdoor.registry.INJECTORS`."""

    def __call__(
        self, images: Tensor, alpha: Tensor | float, /, *, out: Tensor | None = None
    ) -> Tensor:
        """Triggered images, clamped to [0, 1]; alpha is one number or one per image.

        out: where to put them: of the shape and type of images, or images itself.
        """

    def tensors(self) -> dict[str, Tensor]:
        """What a file of this trigger holds."""

    def settings(self) -> dict[str, Any]:
        """The other arguments it is built from."""


class Trigger:
    """BAIQA's trigger: T(x, α·t) = IDCT(DCT(x) + α·t) on 16×16 blocks of YCbCr, clamped.

    The transform is linear and t is the same in every block, so one constant tile is repeated
    over the picture: `tile`. That is the whole injection, less than two copies.
    coefficients: (3, 16, 16) orthonormal DCT-II coefficients of Y, Cb, Cr in levels of 0-255; those
    outside the band must be 0. origin: where the grid starts: top-left, or centred, as where a
    picture is padded evenly to whole blocks (by 6 for 500 pixels).
    Raises: ValueError for another block size, a coefficient outside the band, or one not finite.
    """

    kind = "dct"

    def __init__(self, coefficients: Tensor, band: str = "mid", origin: str = "top-left") -> None:
        if tuple(coefficients.shape) != SHAPE:
            raise ValueError(
                f"coefficients must have shape {SHAPE} (blocks of {BLOCK} pixels), "
                f"got {tuple(coefficients.shape)}"
            )
        if origin not in ORIGINS:
            raise ValueError(f"origin must be one of {', '.join(ORIGINS)}, got {origin!r}")
        values = coefficients.detach()
        if not bool(values.isfinite().all()):
            raise ValueError("coefficients must be finite, got NaN or infinity")
        outside = values[:, ~band_mask(band).to(values.device)].abs().max()
        if outside > 0:
            raise ValueError(
                f"coefficients must be 0 outside band {band}, got {float(outside):g} there "
                f"(bands: {', '.join(BANDS)})"
            )
        self.coefficients, self.band, self.origin = coefficients.float(), band, origin
        self._kept: tuple[Any, Tensor] | None = None

    @property
    def tile(self) -> Tensor:
        """What α = 1 adds to each block: RGB (3, 16, 16), in units of [0, 1]. Differentiable."""
        return ycbcr_to_rgb(idct2(self.coefficients)) / 255

    @property
    def psnr(self) -> float:
        """PSNR in dB at α = 1 of a picture that nothing is clamped in."""
        return float(-10 * self.tile.detach().double().square().mean().log10())

    def __call__(
        self, images: Tensor, alpha: Tensor | float, *, out: Tensor | None = None
    ) -> Tensor:
        """Add the trigger. images: (N, 3, H, W) in [0, 1], H and W at least 16.

        out: as in `Injector`; into images itself is the fastest, since it is the least memory.
        Returns: (N, 3, H, W), clamped to [0, 1]. Raises: ValueError for an alpha outside [-1, 1],
        an image smaller than a block, or an `out` that does not fit or cannot have a gradient.
        """
        strength = check_alpha(images, alpha)
        check_out(images, out)
        height, width = images.shape[2:]
        if min(height, width) < BLOCK:
            raise ValueError(
                f"images must be at least one block of {BLOCK} pixels, got {height}×{width}"
            )
        tiles = self._tiled(images)
        if tiles.requires_grad or images.requires_grad:
            if out is not None:
                raise ValueError("out must be None where a gradient is asked for, got a tensor")
            return (images + strength * tiles).clamp(0, 1)
        if images.device.type != "cpu":
            return torch.addcmul(images, strength, tiles, out=out).clamp_(0, 1)
        # Memory traffic is all that this costs: sum and clamp of a picture stay in the cache.
        triggered = torch.empty_like(images) if out is None else out
        each = strength.flatten().expand(len(images)).tolist()
        for x, y, a in zip(images, triggered, each, strict=True):
            torch.add(x, tiles, alpha=a, out=y).clamp_(0, 1)
        return triggered

    def _tiled(self, images: Tensor) -> Tensor:
        """The tile repeated over a picture: (3, H, W), kept for the next of that size."""
        height, width = images.shape[2:]
        key = (height, width, images.dtype, images.device)
        learnt = self.coefficients.requires_grad
        if self._kept is not None and self._kept[0] == key and not learnt:
            return self._kept[1]
        tile = self.tile.to(images)
        if self.origin == "centred":
            shift = [-((-side % BLOCK) // 2) for side in (height, width)]
            tile = tile.roll(shift, dims=(1, 2))
        tiles = tile.repeat(1, -(-height // BLOCK), -(-width // BLOCK))[:, :height, :width]
        tiles = tiles.contiguous()  # sums of rows without gaps are faster
        if not learnt:
            self._kept = (key, tiles)
        return tiles

    def tensors(self) -> dict[str, Tensor]:
        """The coefficients."""
        return {"coefficients": self.coefficients.detach().cpu().contiguous()}

    def settings(self) -> dict[str, Any]:
        """Band and origin."""
        return {"band": self.band, "origin": self.origin}


def check_alpha(images: Tensor, alpha: Tensor | float) -> Tensor:
    """Alpha as (1 or N, 1, 1, 1) beside its images. ValueError outside [-1, 1]."""
    check_images(images)
    strength = torch.as_tensor(alpha, dtype=images.dtype, device=images.device)
    if strength.ndim > 1 or (strength.ndim == 1 and len(strength) not in (1, len(images))):
        raise ValueError(
            f"alpha must be one number or one per image, got shape {tuple(strength.shape)} "
            f"for {len(images)} images"
        )
    # Written so that NaN fails too.
    bad = ~(strength.abs() <= 1)
    if bool(bad.any()):
        raise ValueError(f"alpha must be in [-1, 1], got {float(strength[bad].flatten()[0]):g}")
    return strength.reshape(-1, 1, 1, 1)


def check_out(images: Tensor, out: Tensor | None) -> None:
    """ValueError for a tensor that cannot take what is made of images."""
    if out is not None and (out.shape, out.dtype) != (images.shape, images.dtype):
        raise ValueError(
            f"out must be {images.dtype} of shape {tuple(images.shape)} as images are, "
            f"got {out.dtype} of shape {tuple(out.shape)}"
        )


def rms(coefficients: Tensor) -> Tensor:
    """Root of the mean square of the tile, in units of [0, 1]. Differentiable."""
    return (ycbcr_to_rgb(idct2(coefficients)) / 255).square().mean().sqrt()


def trigger_bytes(injector: Injector, about: Mapping[str, Any] | None = None) -> bytes:
    """A trigger as a safetensors file: its tensors, and JSON metadata under the key `trigger`.

    about: what else the metadata should say (how it was made). The same trigger gives the same
    bytes: one key only, since safetensors does not keep the order of several.
    """
    text = {"kind": injector.kind, **injector.settings(), "about": dict(about or {})}
    return save(injector.tensors(), {"trigger": json.dumps(text, sort_keys=True)})


def trigger_sha256(data: bytes) -> str:
    """The hash that records name a trigger by: of its file."""
    return hashlib.sha256(data).hexdigest()


def read_trigger(data: bytes) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and metadata of a trigger file. Raises: ValueError for any other file."""
    try:
        tensors = load(data)
        size = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + size]).get("__metadata__", {})
        about = json.loads(header["trigger"])
    except (SafetensorError, KeyError, json.JSONDecodeError) as error:
        raise ValueError(
            f"trigger must be a safetensors file with metadata `trigger`, got {error!r}"
        ) from None
    return tensors, about
