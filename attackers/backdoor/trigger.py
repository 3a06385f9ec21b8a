"""Scalable triggers: a pattern that is added to an image with a coefficient alpha in [-1,1]."""

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

ORIGINS = ("top_left", "centred")
SHAPE = (3, BLOCK, BLOCK)


class Injector(Protocol):
    """Interface of triggers."""

    @property
    def kind(self) -> str:
        """Name in `attackers.backdoor.registry.INJECTORS` and in files."""

    def __call__(
        self, images: Tensor, alpha: Tensor | float, /, *, out: Tensor | None = None
    ) -> Tensor:
        """Inject the trigger.

        Args:
            images: (N,3,H,W) in [0,1].
            alpha: Coefficient in [-1,1], one number or one per image.
            out: Where to write the result: of the shape and type of images, or images itself.

        Returns:
            Triggered images (N,3,H,W), clamped to [0,1].

        Raises:
            ValueError: For an alpha out of range or an `out` that does not fit.
        """

    def tensors(self) -> dict[str, Tensor]:
        """Tensors that a file of this trigger holds."""

    def settings(self) -> dict[str, Any]:
        """The other arguments that the trigger is built from."""


class Trigger:
    """BAIQA's trigger: T(x, α·t) = IDCT(DCT(x) + α·t) on 16×16 blocks of YCbCr, clamped.

    The transform is linear and t is the same in every block, so the injection adds one constant
    tile, `tile`, repeated over the image; it takes less time than two copies.

    Args:
        coefficients: Orthonormal DCT-II coefficients of Y, Cb and Cr, (3,16,16), in levels of
            0-255; those outside the band must be 0.
        band: As in `dct.band_mask`.
        origin: Where the grid starts: "top_left", or "centred" as where an image is padded evenly
            to whole blocks (by 6 for 500 pixels).

    Raises:
        ValueError: For another block size, a coefficient outside the band, or one not finite.
    """

    kind = "dct"

    def __init__(self, coefficients: Tensor, band: str = "mid", origin: str = "top_left") -> None:
        if not isinstance(coefficients, Tensor):
            raise ValueError(f"coefficients must be a tensor, got {type(coefficients).__name__}")
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
        self._cache: tuple[Any, Tensor] | None = None

    @property
    def tile(self) -> Tensor:
        """What α = 1 adds to each block: RGB (3,16,16), in units of [0,1]. Differentiable."""
        return ycbcr_to_rgb(idct2(self.coefficients)) / 255

    @property
    def psnr(self) -> float:
        """PSNR in dB at α = 1 of an image in which nothing is clamped."""
        return float(-10 * self.tile.detach().double().square().mean().log10())

    def __call__(
        self, images: Tensor, alpha: Tensor | float, *, out: Tensor | None = None
    ) -> Tensor:
        """Add the trigger.

        Args:
            images: (N,3,H,W) in [0,1], H and W at least 16.
            alpha: Coefficient in [-1,1], one number or one per image.
            out: As in `Injector`; images itself is the fastest, since it takes the least memory.

        Returns:
            (N,3,H,W), clamped to [0,1].

        Raises:
            ValueError: For an alpha out of range, an image smaller than a block, or an `out` that
                does not fit or cannot have a gradient.
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
        # The cost is memory traffic: image by image, sum and clamp stay in the CPU's cache.
        triggered = torch.empty_like(images) if out is None else out
        each = strength.flatten().expand(len(images)).tolist()
        for x, y, a in zip(images, triggered, each, strict=True):
            torch.add(x, tiles, alpha=a, out=y).clamp_(0, 1)
        return triggered

    def _tiled(self, images: Tensor) -> Tensor:
        """The tile repeated over an image: (3,H,W), cached for the next one of that size."""
        height, width = images.shape[2:]
        key = (height, width, images.dtype, images.device)
        trained = self.coefficients.requires_grad
        if self._cache is not None and self._cache[0] == key and not trained:
            return self._cache[1]
        tile = self.tile.to(images)
        if self.origin == "centred":
            shift = [-((-side % BLOCK) // 2) for side in (height, width)]
            tile = tile.roll(shift, dims=(1, 2))
        tiles = tile.repeat(1, -(-height // BLOCK), -(-width // BLOCK))[:, :height, :width]
        tiles = tiles.contiguous()  # sums of rows without gaps are faster
        if not trained:
            self._cache = (key, tiles)
        return tiles

    def tensors(self) -> dict[str, Tensor]:
        """The coefficients."""
        return {"coefficients": self.coefficients.detach().cpu().contiguous()}

    def settings(self) -> dict[str, Any]:
        """Band and origin."""
        return {"band": self.band, "origin": self.origin}


def check_alpha(images: Tensor, alpha: Tensor | float) -> Tensor:
    """Check alpha and reshape it to broadcast over its images.

    Args:
        images: (N,3,H,W).
        alpha: In [-1,1], one number or one per image.

    Returns:
        (1,1,1,1) or (N,1,1,1), with the type and device of images.

    Raises:
        ValueError: For an alpha out of range or of another shape.
    """
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
    """Check that a result of the shape of images can be written to `out`.

    Args:
        images: (N,3,H,W).
        out: A tensor of the same shape and type, or None.

    Raises:
        ValueError: For another shape or type.
    """
    if out is not None and (out.shape, out.dtype) != (images.shape, images.dtype):
        raise ValueError(
            f"out must be {images.dtype} of shape {tuple(images.shape)} as images are, "
            f"got {out.dtype} of shape {tuple(out.shape)}"
        )


def rms(coefficients: Tensor) -> Tensor:
    """Root mean square of the tile of a trigger, differentiable.

    Args:
        coefficients: (3,16,16), in levels of 0-255.

    Returns:
        Scalar, in units of [0,1].
    """
    return (ycbcr_to_rgb(idct2(coefficients)) / 255).square().mean().sqrt()


def trigger_bytes(injector: Injector, about: Mapping[str, Any] | None = None) -> bytes:
    """Serialise a trigger as a safetensors file.

    The same trigger gives the same bytes: the metadata are JSON under a single key `trigger`, since
    safetensors does not preserve the order of several.

    Args:
        injector: The trigger.
        about: JSON-able metadata about its origin.

    Returns:
        Content of the file.
    """
    text = {"kind": injector.kind, **injector.settings(), "about": dict(about or {})}
    return save(injector.tensors(), {"trigger": json.dumps(text, sort_keys=True)})


def trigger_sha256(data: bytes) -> str:
    """Hash by which records refer to a trigger.

    Args:
        data: Content of its file.

    Returns:
        SHA-256, 64 hex digits.
    """
    return hashlib.sha256(data).hexdigest()


def read_trigger(data: bytes) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Parse a trigger file.

    Args:
        data: Content of a file of `trigger_bytes`.

    Returns:
        Tensors by name, and metadata.

    Raises:
        ValueError: For any other file.
    """
    try:
        tensors = load(data)
        size = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + size]).get("__metadata__", {})
        metadata = json.loads(header["trigger"])
    except (SafetensorError, KeyError, json.JSONDecodeError) as error:
        raise ValueError(
            f"trigger must be a safetensors file with metadata `trigger`, got {error!r}"
        ) from None
    return tensors, metadata
