"""How far a model is fooled by examples that somebody holds as images."""

from __future__ import annotations

import torch
from numpy.typing import ArrayLike

from attackers.metrics import basr, msi, rasr
from attackers.objectives import Direction, check_direction
from attackers.projections import MAX_PSNR, psnr
from victims.adapters.images import Images, read_images
from victims.adapters.model import as_victim, device_of, frozen
from victims.base import Victim, score_images
from victims.checks import check_whole_number, read_scores


def evaluate(
    model: Victim,
    clean: Images,
    adversarial: Images,
    *,
    direction: Direction = "raise",
    mos: ArrayLike | None = None,
    batch_size: int = 16,
) -> dict[str, float]:
    """Measure the robustness of a model against adversarial examples.

        victim = as_victim(my_module, low=0, high=10)
        result = attack(victim, pictures)
        evaluate(victim, pictures, result.images)  # {"n": 24, "basr": 61.1, "rasr": 100.0, ...}

    Args:
        model: A victim with a scale (`as_victim` with low and high): BASR needs its threshold.
        clean: The pictures, see `read_images`.
        adversarial: The example of each, of the same size, in the same order.
        direction: What the examples were to do with the score.
        mos: (N,) opinion scores, to tell poor pictures by instead of by the model's own scores.
        batch_size: Images of one size that are scored together, at least 1.

    Returns:
        n; basr: share of poor pictures whose example is scored good, %; rasr: share of examples
        scored higher than their picture, %; msi: mean gain in the victim's unit; score_clean and
        score: mean scores; psnr and psnr_min: dB, an unchanged picture counts as 100. Values are
        NaN, with a warning, where no picture counts. Source: DA3Attacker, Sec. IV-B.

    Raises:
        ValueError: For a bad argument, images that do not pair, or a model without a scale or with
            scores that are not finite.
    """
    check_direction(direction)
    check_whole_number("batch_size", batch_size, 1)
    pictures, examples = read_images(clean, "clean"), read_images(adversarial, "adversarial")
    if len(pictures) != len(examples):
        raise ValueError(
            f"clean and adversarial must be as many, got {len(pictures)} and {len(examples)}"
        )
    opinions = None if mos is None else read_scores("mos", mos, len(pictures))
    for x, y, name in zip(pictures.tensors, examples.tensors, examples.names, strict=True):
        if x.shape != y.shape:
            raise ValueError(
                f"{name} must have the size of its picture, {tuple(x.shape)}, got {tuple(y.shape)}"
            )
    victim = as_victim(model)
    threshold = victim.scale.threshold
    with frozen(victim), torch.no_grad():
        before, after = (
            score_images(victim, part.tensors, batch_size, device_of(victim)).double().numpy()
            for part in (pictures, examples)
        )
    distances = torch.cat(
        [
            psnr(x[None].float() / 255, y[None].float() / 255)
            for x, y in zip(pictures.tensors, examples.tensors, strict=True)
        ]
    ).clamp_max(MAX_PSNR)
    return {
        "n": float(len(before)),
        "basr": basr(before, after, threshold, direction=direction, mos=opinions),
        "rasr": rasr(before, after, direction=direction),
        "msi": msi(before, after, direction=direction),
        "score_clean": float(before.mean()),
        "score": float(after.mean()),
        "psnr": float(distances.mean()),
        "psnr_min": float(distances.min()),
    }
