"""Fine-tune a model on photographs and adversarial examples that somebody holds in memory."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from defenders.finetuning import finetune
from victims.adapters.images import Images, read_images
from victims.base import ScoreScale, resize

Model = TypeVar("Model", bound=nn.Module)


def harden(
    model: Model,
    images: Images,
    scores: ArrayLike,
    adversarial: Images,
    adversarial_scores: ArrayLike | None = None,
    *,
    low: float | None = None,
    high: float | None = None,
    size: int | None = None,
    epochs: int = 5,
    batch_size: int = 16,
    lr: float = 1e-4,
    validation: float = 0.2,
    seed: int = 0,
) -> Model:
    """Teach a copy of a model what its adversarial examples deserve.

        examples = attack(model, photographs).images
        hardened = harden(model, photographs, scores, examples)
        attack(hardened, others)  # only a new attack says what it is worth

    Args:
        model: A torch module from RGB (N,3,S,S) in [0,1] to (N,) scores. It is not changed.
        images: N photographs, at least two, see `read_images`.
        scores: (N,) opinion scores of them.
        adversarial: Examples. Where they are N they are taken for those of the photographs, in
            order.
        adversarial_scores: Their opinion scores. None, for N examples only, gives each the score of
            its photograph; better ask people, as 3AE does.
        low: Worst score of the scale; not needed for a model with a `scale`.
        high: Best score of the scale.
        size: Side in pixels to which images are squashed; the model's `input_size`, or 224.
        epochs: Passes over the photographs.
        batch_size: Images per step, half of them adversarial.
        lr: Learning rate.
        validation: Share of the images, in (0,1), that chooses the epoch; the unchanged model is
            among the candidates.
        seed: Of the split and the order.

    Returns:
        The fine-tuned copy in eval mode.

    Raises:
        ValueError: For a bad argument, or scores that are not as many as images.
    """
    if not isinstance(model, nn.Module):
        raise ValueError(f"model must be a torch module to be trained, got {type(model).__name__}")
    side = size or getattr(model, "input_size", None) or 224
    clean, mos = _scored(images, scores, side, "images")
    if adversarial_scores is None and len(read := read_images(adversarial, "adversarial")) != len(
        clean
    ):
        raise ValueError(
            f"adversarial_scores must be given unless there is one example per image, got "
            f"{len(read)} examples of {len(clean)} images"
        )
    examples, labels = _scored(
        adversarial, mos if adversarial_scores is None else adversarial_scores, side, "adversarial"
    )
    if min(len(clean), len(examples)) < 2 or not 0 < validation < 1:
        raise ValueError(
            "images and adversarial must be at least 2 each and validation in (0, 1), got "
            f"{len(clean)}, {len(examples)} and {validation:g}"
        )
    parts = [_split(i, m, validation, seed) for i, m in ((clean, mos), (examples, labels))]
    hardened = copy.deepcopy(model)
    finetune(
        hardened,
        _scale(model, low, high),
        parts[0][0],
        parts[1][0],
        parts[0][1],
        validation_adversarial=parts[1][1],
        epochs=epochs,
        batch_size=batch_size,
        lr=lr,
        seed=seed,
    )
    return hardened.eval()


def _scale(model: nn.Module, low: float | None, high: float | None) -> ScoreScale:
    if low is not None and high is not None:
        return ScoreScale.of(low, high)
    scale = getattr(model, "scale", None)
    if not isinstance(scale, ScoreScale):
        raise ValueError(
            f"low and high must be given for a model without a scale, got {low} and {high}"
        )
    return scale


def _scored(
    images: Images, scores: ArrayLike, side: int, name: str
) -> tuple[list[Tensor], list[float]]:
    read = read_images(images, name)
    values = np.asarray(scores, np.float64)
    if values.shape != (len(read),) or not np.isfinite(values).all():
        raise ValueError(
            f"scores of {name} must be {len(read)} finite numbers, got shape {values.shape}"
        )
    squashed = [
        resize(image[None].float(), side)[0].round().clamp(0, 255).byte() for image in read.tensors
    ]
    return squashed, values.tolist()


Scored = tuple[list[Tensor], list[float]]


def _split(
    images: list[Tensor], scores: Sequence[float], validation: float, seed: int
) -> tuple[Scored, Scored]:
    """Training and validation; groups of one length split alike, so that pairs stay together."""
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed)).tolist()
    count = min(max(1, round(validation * len(images))), len(images) - 1)

    def part(chosen: list[int]) -> Scored:
        return [images[i] for i in chosen], [scores[i] for i in chosen]

    return part(order[count:]), part(order[:count])
