"""Images as users hold them (PIL, numpy, torch) to tensors and back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

Images = Any
"""One image, a batch, or a sequence of images: see `read_images`."""


@dataclass(frozen=True)
class _Kind:
    """How one image came: its library, layout and dtype."""

    library: str  # pil, numpy or torch
    channels_last: bool
    dtype: Any
    device: torch.device | None = None

    def restore(self, image: Tensor) -> Any:
        """A uint8 image (3,H,W) as it came."""
        if self.library == "pil":
            return Image.fromarray(image.permute(1, 2, 0).cpu().numpy())
        values = image.permute(1, 2, 0) if self.channels_last else image
        if self.library == "torch":
            if self.dtype == torch.uint8:
                return values.contiguous().to(self.device)
            return values.double().div(255).to(self.device, self.dtype).contiguous()
        array = np.ascontiguousarray(values.cpu().numpy())
        return array if self.dtype == np.uint8 else (array / 255.0).astype(self.dtype)


@dataclass(frozen=True)
class ReadImages:
    """Images as uint8 tensors, and what it takes to give others back in the same form.

    Attributes:
        tensors: Each uint8 (3,H,W) RGB on the CPU.
        names: What each image is called in a message: `images[3]`.
    """

    tensors: list[Tensor]
    names: list[str]
    _kinds: list[_Kind]
    _form: str  # one, batch or list

    def __len__(self) -> int:
        return len(self.tensors)

    def restore(self, images: Sequence[Tensor]) -> Any:
        """Convert images back to the library, layout, dtype and device of those that were read.

        Args:
            images: uint8 (3,H,W), one for each that was read, in their order.

        Returns:
            One image, a batch or a list, as was read; floating point values in [0,1].

        Raises:
            ValueError: For another number of images.
        """
        restored = [kind.restore(image) for kind, image in zip(self._kinds, images, strict=True)]
        if self._form == "one":
            return restored[0]
        if self._form == "batch":
            return torch.stack(restored) if torch.is_tensor(restored[0]) else np.stack(restored)
        return restored


def read_images(images: Images, name: str = "images") -> ReadImages:
    """Read RGB images of any sizes from what Python libraries hold them in.

    Args:
        images: A PIL image, an array or tensor (3,H,W) or (H,W,3), a batch of them with a leading
            dimension, or a sequence of such images, whose sizes and kinds may differ. uint8, or
            floating point in [0,1], which is rounded to 8 bits. Where both ends of the shape are 3,
            numpy is read as (H,W,3) and torch as (3,H,W). Grey pictures and pictures with an alpha
            channel are refused: what they would be as RGB is the caller's choice.
        name: Name of the argument, for messages.

    Returns:
        The images as uint8 tensors.

    Raises:
        ValueError: For no images, another type, shape, mode or dtype, or values outside [0,1].
    """
    if isinstance(images, Image.Image):
        return _collect([images], name, "one")
    if isinstance(images, (np.ndarray, Tensor)):
        if images.ndim == 4:
            return _collect(list(images), name, "batch")
        return _collect([images], name, "one")
    if not isinstance(images, Sequence) or isinstance(images, (str, bytes)):
        raise ValueError(
            f"{name} must be PIL images, numpy arrays or torch tensors, got {type(images).__name__}"
        )
    return _collect(list(images), name, "list")


def _collect(images: list[Any], name: str, form: str) -> ReadImages:
    if not images:
        raise ValueError(f"{name} must be at least one, got none")
    names = [name] if form == "one" else [f"{name}[{i}]" for i in range(len(images))]
    read = [_read(image, name) for image, name in zip(images, names, strict=True)]
    return ReadImages([tensor for tensor, _ in read], names, [kind for _, kind in read], form)


def _read(image: Any, name: str) -> tuple[Tensor, _Kind]:
    if isinstance(image, Image.Image):
        if image.mode != "RGB":
            raise ValueError(
                f'{name} must be of mode RGB, got {image.mode} (use image.convert("RGB"))'
            )
        return torch.from_numpy(np.array(image)).permute(2, 0, 1), _Kind("pil", True, np.uint8)
    if isinstance(image, np.ndarray):
        last = _channels_last(image.shape, True, name)
        if not (image.dtype == np.uint8 or np.issubdtype(image.dtype, np.floating)):
            raise ValueError(f"{name} must be uint8 or float in [0, 1], got {image.dtype}")
        floating = image.dtype != np.uint8
        values = torch.from_numpy(np.array(image, np.float64 if floating else np.uint8))
        kind = _Kind("numpy", last, image.dtype)
    elif isinstance(image, Tensor):
        last = _channels_last(tuple(image.shape), False, name)
        if not (image.dtype == torch.uint8 or image.is_floating_point()):
            raise ValueError(f"{name} must be uint8 or float in [0, 1], got {image.dtype}")
        floating = image.dtype != torch.uint8
        values = image.detach().cpu()
        values = values.double() if floating else values.clone()
        kind = _Kind("torch", last, image.dtype, image.device)
    else:
        raise ValueError(
            f"{name} must be a PIL image, a numpy array or a torch tensor, "
            f"got {type(image).__name__}"
        )
    values = values.permute(2, 0, 1) if last else values
    return (_eight_bits(values, name) if floating else values).contiguous(), kind


def _channels_last(shape: tuple[int, ...], prefer_last: bool, name: str) -> bool:
    if len(shape) != 3 or 3 not in (shape[0], shape[2]) or 0 in shape:
        raise ValueError(
            f"{name} must be RGB of shape (3, H, W) or (H, W, 3), got {shape}; "
            "convert grey or RGBA images to RGB first"
        )
    return shape[2] == 3 and (prefer_last or shape[0] != 3)


def _eight_bits(values: Tensor, name: str) -> Tensor:
    low, high = float(values.min()), float(values.max())
    if not (low >= 0 and high <= 1):  # so that NaN fails too
        hint = " (divide by 255?)" if 1 < high <= 255 else ""
        raise ValueError(f"{name} must be in [0, 1], got {low:g} to {high:g}{hint}")
    return values.mul(255).round().byte()
