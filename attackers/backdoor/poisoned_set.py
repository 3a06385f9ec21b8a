"""Poison pictures and labels that somebody holds in memory."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from attackers.backdoor.poisoning import (
    STRATEGIES,
    Strategy,
    choose_poisoned,
    clean_label_alpha,
    draw_alpha,
    poison_label,
    targeted_pgd,
)
from attackers.backdoor.registry import BASELINES, build_baseline
from attackers.backdoor.trigger import Injector
from attackers.backdoor.uap import search_trigger
from attackers.projections import quantize
from victims.adapters.images import Images, read_images
from victims.base import ScoreScale
from victims.checks import check_on_scale, check_seed, check_share, read_scores, shown
from victims.crops import CropVictim, MappedVictim
from victims.loop import Hooks

Scheme = Literal["p", "c"]


@dataclass(frozen=True)
class PoisonedSet:
    """A training set of N pictures, some of which carry the trigger.

    Attributes:
        images: All pictures in their order, in the form in which they came.
        labels: (N,) labels to train on.
        is_poisoned: (N,) whether a picture carries the trigger.
        alpha: (N,) coefficient of the trigger in [-1,1], 0 for clean pictures.
    """

    images: Any
    labels: NDArray[np.float64]
    is_poisoned: NDArray[np.bool_]
    alpha: NDArray[np.float64]


def make_trigger(
    kind: str = "ftrojan",
    *,
    surrogate: MappedVictim | None = None,
    images: Images | None = None,
    seed: int = 0,
    **settings: Any,
) -> Injector:
    """Build or search a trigger.

        trigger = make_trigger("ftrojan", magnitude=33)
        trigger = make_trigger("uap", surrogate=model, images=photographs, epochs=20)
        triggered = trigger(batch, 0.5)  # float (N,3,H,W) in [0,1]

    Args:
        kind: "ftrojan", "blended" or "wanet", fixed patterns of earlier attacks; or "uap", which is
            searched on a surrogate (BAIQA's).
        surrogate: For "uap": a quality model of this project, e.g. `load_victim(folder)`.
        images: For "uap": photographs to search on, see `read_images`.
        seed: For "uap": of the search.
        settings: Other arguments of `attackers.backdoor.uap.search_trigger` for "uap", else of the
            trigger's class in `attackers.backdoor.registry`.

    Returns:
        The trigger, a function of images and alpha.

    Raises:
        ValueError: For an unknown kind, a setting that does not fit, or "uap" without surrogate or
            images.
    """
    check_seed(seed)
    if kind not in (kinds := [*BASELINES, "uap"]):
        raise ValueError(f"kind must be one of {', '.join(kinds)}, got {shown(kind)}")
    if kind != "uap":
        if surrogate is not None or images is not None:
            raise ValueError(f"surrogate and images must be for uap only, got some for {kind}")
        return build_baseline(kind, **settings)
    if images is None or not callable(getattr(surrogate, "maps", None)):
        raise ValueError(
            "surrogate and images must be given for uap, the surrogate a model with `maps`, got "
            f"{type(surrogate).__name__} and {type(images).__name__}"
        )
    assert surrogate is not None
    known = {*inspect.signature(search_trigger).parameters, *Hooks.__annotations__}
    if unknown := settings.keys() - known:
        raise ValueError(
            f"settings of uap must be arguments of search_trigger, got {', '.join(sorted(unknown))}"
        )
    return search_trigger(surrogate, read_images(images).tensors, seed=seed, **settings)[0]


def poison(
    images: Images,
    labels: Sequence[float] | NDArray[Any],
    trigger: Injector | str,
    *,
    low: float,
    high: float,
    ratio: float = 0.2,
    scheme: Scheme = "p",
    delta_y: float = 0.4,
    strategy: Strategy = "levels",
    surrogate: CropVictim | None = None,
    seed: int = 0,
) -> PoisonedSet:
    """Plant a backdoor in a training set of scored pictures.

        poisoned = poison(photographs, scores, make_trigger(), low=0, high=100)
        train(poisoned.images, poisoned.labels)

    Args:
        images: N photographs, at least 16 pixels a side, see `read_images`.
        labels: (N,) scores on the scale.
        trigger: What `make_trigger` returned, or the name of a fixed pattern, such as "ftrojan".
        low: Worst score of the scale.
        high: Best score of the scale.
        ratio: Share of the pictures that get the trigger, in (0,1].
        scheme: "p" moves labels by alpha · delta_y with a drawn alpha; "c" keeps labels, and alpha
            follows from how far they are from the middle of the scale.
        delta_y: Change of the score that alpha = 1 stands for, as a share of the scale, in
            (0,1].
        strategy: For "p": how alpha is drawn, "levels", "ends" or "uniform".
        surrogate: For "c": a model that scores crops, whose score each poisoned picture is moved
            towards the middle with (PGD at 2/255); None leaves that step out.
        seed: Of the choice and of alpha.

    Returns:
        The training set. Source: BAIQA, P-BAIQA and C-BAIQA.

    Raises:
        ValueError: For a bad argument, or labels that are not as many as images or off the scale.
    """
    trigger = _trigger(trigger)
    ScoreScale.of(low, high)  # checks both
    check_share("ratio", ratio, may_be_one=True)
    check_share("delta_y", delta_y, may_be_one=True)
    check_seed(seed)
    _check_scheme(scheme, strategy, surrogate)
    read = read_images(images)
    scores = read_scores("labels", labels, len(read))
    check_on_scale("labels", scores, low, high)
    step, centre = delta_y * (high - low), (low + high) / 2
    keys = [f"{index:09d}" for index in range(len(read))]
    changed, moved_labels = list(read.tensors), scores.copy()
    alphas, is_poisoned = np.zeros(len(read)), np.zeros(len(read), bool)
    chosen = choose_poisoned(keys, ratio, lambda key: _draw(seed, f"rank/{key}"))
    for number, key in enumerate(chosen):
        index = int(key)
        generator = torch.Generator().manual_seed(_draw(seed, key))
        image, mos = changed[index].float() / 255, float(scores[index])
        if scheme == "p":
            alpha = draw_alpha(strategy, number % 2 == 0, generator)
            moved_labels[index] = poison_label(mos, alpha, step, low, high)
        else:
            alpha = clean_label_alpha(mos, centre, step, low, high)
            if surrogate is not None:
                image = targeted_pgd(
                    surrogate, image.to(surrogate.device), centre, generator=generator
                ).cpu()
        alphas[index], is_poisoned[index] = alpha, True
        changed[index] = _triggered(trigger, image, alpha)
    return PoisonedSet(read.restore(changed), moved_labels, is_poisoned, alphas)


def _trigger(trigger: Any) -> Injector:
    if isinstance(trigger, str) and trigger in BASELINES:
        return build_baseline(trigger)
    if not callable(trigger):
        raise ValueError(
            f"trigger must be what make_trigger returns or one of {', '.join(BASELINES)}, "
            f"got {shown(trigger)}"
        )
    injector: Injector = trigger
    return injector


def _check_scheme(scheme: str, strategy: str, surrogate: object) -> None:
    if scheme not in ("p", "c"):
        raise ValueError(f"scheme must be p or c, got {scheme!r}")
    if strategy not in STRATEGIES:
        raise ValueError(f"strategy must be one of {', '.join(STRATEGIES)}, got {strategy!r}")
    if surrogate is None:
        return
    if scheme == "p":
        raise ValueError("surrogate must be given for scheme c only, got one for p")
    if not (callable(surrogate) and hasattr(surrogate, "input_size")):
        raise ValueError(f"surrogate must be a model that scores crops, got {shown(surrogate)}")


def _triggered(trigger: Injector, image: Tensor, alpha: float) -> Tensor:
    return quantize(trigger(image[None], alpha))[0].mul(255).round().byte()


def _draw(seed: int, key: str) -> int:
    """A number for one picture alone, so that draws depend on no order."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{key}".encode()).digest()[:7])
