"""The detector of adversarial examples on images that somebody holds in memory."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from defenders.detector import MIN_SIDE, Detector
from defenders.detector import train_detector as train_in_place
from victims.adapters.images import Images, read_images
from victims.adapters.model import device_of, frozen
from victims.checks import check_seed, check_share, check_whole_number
from victims.splits import hold_out


def detect(images: Images, detector: Detector) -> NDArray[np.float64]:
    """Say how likely each picture is an adversarial example.

        detector = load_detector("models/detector")  # or train_detector(photographs, examples)
        probabilities = detect(pictures, detector)
        suspects = probabilities > 0.5

    Args:
        images: Pictures of at least 32 pixels a side, not resized since, see `read_images`.
        detector: A trained detector.

    Returns:
        (N,) probabilities.

    Raises:
        ValueError: For images that cannot be read or are too small, or another kind of detector.
    """
    if not isinstance(detector, Detector):
        raise ValueError(f"detector must be a Detector, got {type(detector).__name__}")
    read = read_images(images)
    for image, name in zip(read.tensors, read.names, strict=True):
        if min(image.shape[1:]) < MIN_SIDE:
            raise ValueError(
                f"{name} must have at least {MIN_SIDE} pixels a side, got {tuple(image.shape[1:])}"
            )
    device = device_of(detector)
    with frozen(detector), torch.no_grad():
        logits = [float(detector(image[None].to(device).float() / 255)) for image in read.tensors]
    return np.asarray(torch.tensor(logits, dtype=torch.float64).sigmoid().numpy())


def train_detector(
    photographs: Images,
    adversarial: Images,
    *,
    epochs: int = 20,
    crop: int = 96,
    validation: float = 0.2,
    robust: bool = False,
    seed: int = 0,
) -> Detector:
    """Train a detector on photographs and on adversarial examples.

        detector = train_detector(photographs, attack(model, photographs).images)

    Args:
        photographs: Unchanged pictures, at least two, see `read_images`.
        adversarial: Examples, at least two; best of the photographs, in their order.
        epochs: Passes over the examples, at least 1.
        crop: Side of the training crops, pixels, at least 32.
        validation: Share of both, in (0,1), that chooses the epoch. Where there are as many
            examples as photographs they are taken for pairs, which stay together.
        robust: Also learn from JPEG-compressed and reduced copies.
        seed: Of the weights, the split and the order.

    Returns:
        The detector in eval mode.

    Raises:
        ValueError: For a bad argument or too few images.
    """
    check_whole_number("epochs", epochs, 1)
    check_whole_number("crop", crop, MIN_SIDE)
    check_share("validation", validation)
    check_seed(seed)
    clean = read_images(photographs, "photographs").tensors
    examples = read_images(adversarial, "adversarial").tensors
    if min(len(clean), len(examples)) < 2:
        raise ValueError(
            "photographs and adversarial must be at least 2 each, "
            f"got {len(clean)} and {len(examples)}"
        )
    parts = _Labelled([], []), _Labelled([], [])
    for group, label in ((clean, False), (examples, True)):
        # The same seed: equal counts split alike, so that pairs stay together.
        for part, indices in zip(parts, hold_out(len(group), validation, seed), strict=True):
            part.images.extend(group[i] for i in indices)
            part.adversarial.extend(label for _ in indices)
    train, held_out = parts
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        detector = Detector()
    train_in_place(detector, train, held_out, epochs=epochs, crop=crop, robust=robust, seed=seed)
    return detector.eval().requires_grad_(False)


@dataclass
class _Labelled:
    """Images uint8 (3,H,W) with their labels, as `defenders.detector` takes them."""

    images: list[Tensor]
    adversarial: list[bool]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int, /) -> tuple[Tensor, bool]:
        return self.images[index], self.adversarial[index]
