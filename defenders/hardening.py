"""Fine-tune a model on photographs and adversarial examples that somebody holds in memory."""

from __future__ import annotations

import copy
from typing import TypeVar

from numpy.typing import ArrayLike
from torch import Tensor, nn

from defenders.finetuning import finetune
from victims.adapters.images import Images, read_images
from victims.base import ScoreScale, squash
from victims.checks import (
    check_number,
    check_on_scale,
    check_seed,
    check_share,
    check_whole_number,
    read_scores,
)
from victims.splits import hold_out

Model = TypeVar("Model", bound=nn.Module)
ScoredImages = tuple[list[Tensor], list[float]]  # uint8 (3,S,S) and their scores


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
        epochs: Passes over the photographs, at least 1.
        batch_size: Images per step, at least 1, half of them adversarial.
        lr: Learning rate, above 0.
        validation: Share of the images, in (0,1), that chooses the epoch; the unchanged model is
            among the candidates.
        seed: Of the split and the order.

    Returns:
        The fine-tuned copy in eval mode.

    Raises:
        ValueError: For a bad argument, or scores that are not as many as images or off the scale.
    """
    if not isinstance(model, nn.Module):
        raise ValueError(f"model must be a torch module to be trained, got {type(model).__name__}")
    _check(size, epochs, batch_size, lr, validation)
    check_seed(seed)
    scale = _scale(model, low, high)
    clean = read_images(images).tensors
    examples = read_images(adversarial, "adversarial").tensors
    if min(len(clean), len(examples)) < 2:
        raise ValueError(
            f"images and adversarial must be at least 2 each, got {len(clean)} and {len(examples)}"
        )
    mos = read_scores("scores", scores, len(clean))
    check_on_scale("scores", mos, scale.low, scale.high)
    labels = mos
    if adversarial_scores is not None:
        labels = read_scores("adversarial_scores", adversarial_scores, len(examples))
        check_on_scale("adversarial_scores", labels, scale.low, scale.high)
    elif len(examples) != len(clean):
        raise ValueError(
            f"adversarial_scores must be given unless there is one example per image, got "
            f"{len(examples)} examples of {len(clean)} images"
        )
    side = size or getattr(model, "input_size", None) or 224
    train, held_out = _split(clean, mos.tolist(), side, validation, seed)
    train_adversarial, held_out_adversarial = _split(
        examples, labels.tolist(), side, validation, seed
    )
    hardened = copy.deepcopy(model)
    finetune(
        hardened,
        scale,
        train,
        train_adversarial,
        held_out,
        validation_adversarial=held_out_adversarial,
        epochs=epochs,
        batch_size=batch_size,
        lr=lr,
        seed=seed,
    )
    return hardened.eval()


def _check(size: int | None, epochs: int, batch_size: int, lr: float, validation: float) -> None:
    if size is not None:
        check_whole_number("size", size, 1)
    check_whole_number("epochs", epochs, 1)
    check_whole_number("batch_size", batch_size, 1)
    check_number("lr", lr, above=0)
    check_share("validation", validation)


def _scale(model: nn.Module, low: float | None, high: float | None) -> ScoreScale:
    if (low is None) != (high is None):
        raise ValueError(f"low and high must be given together, got {low} and {high}")
    if low is not None and high is not None:
        return ScoreScale.of(low, high)
    scale = getattr(model, "scale", None)
    if not isinstance(scale, ScoreScale):
        raise ValueError(
            f"low and high must be given for a model without a scale, got {low} and {high}"
        )
    return scale


def _split(
    images: list[Tensor], scores: list[float], side: int, validation: float, seed: int
) -> tuple[ScoredImages, ScoredImages]:
    """Training and validation, squashed; groups of one length split alike: pairs stay together."""
    squashed = [squash(image.float() / 255, side) for image in images]

    def part(indices: list[int]) -> ScoredImages:
        return [squashed[i] for i in indices], [scores[i] for i in indices]

    train, held_out = hold_out(len(images), validation, seed)
    return part(train), part(held_out)
