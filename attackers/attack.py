"""One call from a model and pictures to adversarial examples, and one to a trained attacker."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import psutil
import torch
from numpy.typing import NDArray
from torch import Tensor

from attackers.baselines.pgd import pgd
from attackers.da3.adt import ADTConfig
from attackers.da3.attacker import DA3Attacker, Plan
from attackers.da3.attacking import train_attacker as train_in_place
from attackers.da3.refinement import refine
from attackers.metrics import top_filters
from attackers.objectives import Direction, Objective
from attackers.projections import (
    MAX_PSNR,
    SSIM_WINDOW,
    project_to_min_psnr,
    psnr,
    quantize,
    ssim,
)
from victims.adapters.images import Images, read_images
from victims.adapters.model import as_victim, device_of, frozen, is_victim
from victims.base import ScoreScale, Victim, squash
from victims.checks import check_number, check_seed, check_share, check_whole_number, shown
from victims.splits import hold_out

Method = Literal["da3", "pgd"]
Array = NDArray[np.float64]
MAX_BATCH = 64
_UNLIMITED_PROBE = 512 * 512  # larger pictures are not what a model is probed with


@dataclass(frozen=True)
class AttackResult:
    """Adversarial examples of N pictures, and what is known of them.

    Attributes:
        images: The examples, on the 8-bit grid, in the form and dtype of the pictures.
        scores_clean: (N,) scores of the pictures, rounded to 8 bits, in the victim's unit.
        scores: (N,) scores of `images`.
        weights: (N,14) weights of the filters, rows sum to 1; None unless the method is "da3".
        strengths: (N,14) strengths of the filters in (-1,1), in the order of
            `attackers.da3.filters.FILTER_NAMES`; None unless the method is "da3".
        psnr: (N,) dB between picture and example; 100 where they are equal.
        ssim: (N,) structural similarity of them; NaN for pictures below 11 pixels.
        linf: (N,) largest change of a value, in [0,1].
        queries: (N,) images scored by the victim for each picture, without the probe's.
        direction: "raise" or "lower".
    """

    images: Any
    scores_clean: Array
    scores: Array
    weights: Array | None
    strengths: Array | None
    psnr: Array
    ssim: Array
    linf: Array
    queries: NDArray[np.int64]
    direction: Direction

    @property
    def gain(self) -> Array:
        """Change of each score in the direction of the attack: (N,), never below 0."""
        change = self.scores - self.scores_clean
        return change if self.direction == "raise" else -change

    def top_filters(self, count: int = 2) -> list[tuple[str, ...]]:
        """The filters that each example owes most to, by weight.

        Args:
            count: Names per image, at least 1.

        Returns:
            N tuples of at most `count` names, in descending order of weight; a filter of strength 0
            is not named.

        Raises:
            ValueError: For another count, or without a plan, that is unless the method is "da3".
        """
        if self.weights is None or self.strengths is None:
            raise ValueError("method must be da3 for a plan of filters, got one without a plan")
        return top_filters(self.weights, self.strengths, count)

    def __str__(self) -> str:
        """Say in a line what came of the attack."""
        return (
            f"{len(self.scores)} images: mean score {self.scores_clean.mean():.3f} -> "
            f"{self.scores.mean():.3f}, {100 * (self.gain > 0).mean():.0f} % moved, "
            f"PSNR {self.psnr.mean():.1f} dB (least {self.psnr.min():.1f}), "
            f"{self.queries.mean():.0f} victim calls per image"
        )


@dataclass(frozen=True)
class _Settings:
    direction: Direction
    min_psnr: float | None
    eps: float | None
    steps: int | None
    attacker: DA3Attacker | None
    queries: int
    seed: int


# (victim, images) -> examples on the 8-bit grid, plan, scores of the images and of the examples.
_AttackedBatch = tuple[Tensor, Plan | None, Tensor, Tensor]


class _Counted:
    """A victim that counts the images it scores."""

    def __init__(self, victim: Victim) -> None:
        self.victim, self.images = victim, 0

    @property
    def name(self) -> str:
        return self.victim.name

    @property
    def scale(self) -> ScoreScale:
        return self.victim.scale

    @property
    def differentiable(self) -> bool:
        return self.victim.differentiable

    def __call__(self, images: Tensor, /) -> Tensor:
        self.images += len(images)
        return self.victim(images)


def attack(
    model: Victim | Callable[[Any], Any],
    images: Images,
    *,
    method: Method = "da3",
    direction: Direction = "raise",
    min_psnr: float | None = None,
    eps: float | None = None,
    steps: int | None = None,
    attacker: DA3Attacker | None = None,
    queries: int = 8,
    batch_size: int | None = None,
    seed: int = 0,
) -> AttackResult:
    """Make an adversarial example of each picture; no example scores worse than its picture.

        result = attack(my_module, pictures, min_psnr=35)
        print(result)
        result.images[0].save("adversarial.png")  # PIL, as the pictures were

    "da3" combines 14 photographic filters. With a trained `attacker` their weights and strengths
    come from one pass of it; without, or where `steps` are given, they are optimised for each
    picture: by gradient, or by estimates of it (SPSA) where the model has none. "pgd" moves each
    pixel within an L-infinity ball. The model's mode, gradients and parameters stay as they are.

    Args:
        model: A `Victim`, a torch module or a function from RGB (N,3,H,W) in [0,1] to (N,) scores;
            see `as_victim` for other kinds of models. It is probed first.
        images: PIL, numpy or torch pictures of any sizes, see `read_images`; float pictures are
            rounded to 8 bits first. Grey and RGBA are refused.
        method: "da3" or "pgd".
        direction: "raise" or "lower" the score.
        min_psnr: dB that each returned example keeps to its picture, exactly; None is free.
        eps: For "pgd": largest change of a value in [1/255, 1], rounded down to 1/255;
            8/255 unless given, with `min_psnr` what allows for it.
        steps: Gradient steps; 20 unless given, 0 for "da3" with an attacker.
        attacker: What `train_attacker` returned, for the same model and direction.
        queries: For "da3" on a model without gradient: calls per step, even, at least 2.
        batch_size: Images of one size per batch; unless given what fits the memory of the device.
        seed: Of the estimates for a model without gradient; the other methods draw nothing.

    Returns:
        The examples in the form of the pictures, with scores, plans and distances.

    Raises:
        ValueError: For a bad argument, or a model that breaks the contract (see `as_victim`).
    """
    settings = _Settings(direction, min_psnr, eps, steps, attacker, queries, seed)
    _check(method, settings, batch_size)
    read = read_images(images)
    victim = _probed(model, read.tensors[0])
    by_size: dict[tuple[int, ...], list[int]] = {}
    for index, image in enumerate(read.tensors):
        by_size.setdefault(tuple(image.shape), []).append(index)
    device = device_of(victim)
    rows: dict[int, dict[str, Any]] = {}
    with frozen(victim), frozen(attacker):
        for shape, members in by_size.items():
            size = batch_size or batch_limit(shape, device)
            for start in range(0, len(members), size):
                indices = members[start : start + size]
                batch = torch.stack([read.tensors[i] for i in indices]).to(device)
                results = _rows(victim, batch, METHODS[method], settings)
                rows |= dict(zip(indices, results, strict=True))
    ordered = [rows[index] for index in range(len(read))]
    planned = ordered[0]["weights"] is not None

    def column(name: str) -> Any:
        return np.array([row[name] for row in ordered])

    return AttackResult(
        images=read.restore([row["image"] for row in ordered]),
        weights=column("weights") if planned else None,
        strengths=column("strengths") if planned else None,
        direction=direction,
        **{
            name: column(name)
            for name in ("scores_clean", "scores", "psnr", "ssim", "linf", "queries")
        },
    )


def train_attacker(
    model: Victim,
    images: Images,
    *,
    objective: Objective | None = None,
    epochs: int = 5,
    size: int | None = None,
    held_out: float = 0.2,
    config: ADTConfig | None = None,
    batch_size: int = 8,
    lr: float = 2e-4,
    seed: int = 0,
    report: Callable[[dict[str, float]], None] | None = None,
) -> DA3Attacker:
    """Train a DA3Attacker against a model, so that later examples take one pass each.

        attacker = train_attacker(victim, photographs, objective=Objective(min_psnr=35))
        result = attack(victim, others, attacker=attacker, min_psnr=35)

    It starts without the first stage (the stages `perturb` and `pretrain` of the pipeline), which
    is enough for a few pictures.

    Args:
        model: A victim with a scale (`as_victim` with low and high).
        images: Photographs, at least two, see `read_images`; squashed to `size`. No labels.
        objective: What to learn; `Objective()` unless given.
        epochs: Passes over the photographs, at least 0.
        size: Side in pixels of the training images, at least the ADT's; unless given the model's
            input size where it has one, else the ADT's size.
        held_out: Share of the photographs, in (0,1), that chooses the epoch.
        config: Shape of the ADT; smaller ones train faster.
        batch_size: Photographs per step, at least 1.
        lr: Learning rate of Adam, above 0.
        seed: Of the weights and of the order.
        report: Called with the row of each epoch: loss, rasr (%), msi (victim's unit), calls.

    Returns:
        The attacker, frozen, on the device of the model.

    Raises:
        ValueError: For a bad argument, fewer than two images, or a model without a scale.
    """
    _check_training(objective, epochs, held_out, batch_size, lr)
    if report is not None and not callable(report):
        raise ValueError(f"report must be a function, got {shown(report)}")
    check_seed(seed)
    attacker = DA3Attacker(config, seed=seed)
    least = attacker.adt.config.size
    if size is not None:
        check_whole_number("size", size, least)
    victim = as_victim(model)
    _ = victim.scale  # refuses a victim without one
    attacker = attacker.to(device_of(victim))
    read = read_images(images)
    if len(read) < 2:
        raise ValueError(f"images must be at least 2, got {len(read)}")
    side = size or max(getattr(victim, "input_size", None) or 0, least)
    squashed = torch.stack([squash(image.float() / 255, side) for image in read.tensors])
    train, validation = hold_out(len(read), held_out, seed)
    with frozen(victim):
        train_in_place(
            attacker,
            victim,
            squashed[train],
            squashed[validation],
            objective=objective or Objective(),
            epochs=epochs,
            batch_size=batch_size,
            lr=lr,
            seed=seed,
            report=report,
        )
    return attacker.eval().requires_grad_(False)


def batch_limit(shape: tuple[int, ...], device: torch.device) -> int:
    """How many images of a shape to attack together: a fifth of the device's memory.

    Of its whole memory, not of what is free: the same batches in each run, so the same pixels.

    Args:
        shape: (3,H,W) of one image.
        device: Where the attack runs; for other than CUDA, the memory of the host counts.

    Returns:
        Images per batch, from 1 to `MAX_BATCH`.
    """
    if device.type == "cuda":
        memory = torch.cuda.get_device_properties(device).total_memory
    else:
        memory = psutil.virtual_memory().total
    # 14 filters hold about ten pictures each for the gradient; then what a victim may need.
    needed = 140 * 4 * math.prod(shape) + 2**27
    return min(max(1, int(memory / 5 / needed)), MAX_BATCH)


def _probed(model: Victim | Callable[[Any], Any], image: Tensor) -> Victim:
    height, width = image.shape[1:]
    fits = not is_victim(model) and height * width <= _UNLIMITED_PROBE
    return as_victim(model, probe_size=(height, width) if fits else None)


def _rows(
    victim: Victim, batch: Tensor, method: Callable[..., _AttackedBatch], settings: _Settings
) -> list[dict[str, Any]]:
    """What is known of each of a batch of uint8 pictures; in halves where memory runs out."""
    images = batch.float() / 255
    counted = _Counted(victim)
    try:
        examples, plan, clean, scores = method(counted, images, settings)
    except torch.OutOfMemoryError:
        if len(batch) == 1:
            raise
        halves = batch.split(-(-len(batch) // 2))
        return [row for half in halves for row in _rows(victim, half, method, settings)]
    distances = psnr(images, examples).clamp_max(MAX_PSNR)
    similarity = _ssim(images, examples)
    change = (examples - images).abs().flatten(1).amax(1)
    return [
        {
            "image": examples[i].mul(255).round().byte().cpu(),
            "weights": None if plan is None else plan.weights[i].double().cpu().numpy(),
            "strengths": None if plan is None else plan.strengths[i].double().cpu().numpy(),
            "scores_clean": float(clean[i]),
            "scores": float(scores[i]),
            "psnr": float(distances[i]),
            "ssim": float(similarity[i]),
            "linf": float(change[i]),
            "queries": counted.images // len(batch),
        }
        for i in range(len(batch))
    ]


def _ssim(images: Tensor, others: Tensor) -> Tensor:
    if min(images.shape[2:]) < SSIM_WINDOW:
        return images.new_full((len(images),), torch.nan)
    return ssim(images, others)


def _da3(victim: Victim, images: Tensor, settings: _Settings) -> _AttackedBatch:
    plan = None
    if settings.attacker is not None:
        with torch.no_grad():
            _, plan = settings.attacker(images.to(device_of(settings.attacker)))
        plan = Plan(plan.weights.to(images.device), plan.strengths.to(images.device))
    steps = settings.steps
    return refine(
        victim,
        images,
        plan,
        direction=settings.direction,
        min_psnr=settings.min_psnr,
        steps=(0 if plan is not None else 20) if steps is None else steps,
        queries=settings.queries,
        seed=settings.seed,
    )


def _pgd(victim: Victim, images: Tensor, settings: _Settings) -> _AttackedBatch:
    # Down to the 8-bit grid, or rounding would leave the ball; up where min_psnr is the bound.
    if settings.eps is not None:
        eps = math.floor(settings.eps * 255 + 1e-6) / 255
    elif settings.min_psnr is None:
        eps = 8 / 255
    else:
        eps = math.ceil(255 * 10 ** (-settings.min_psnr / 20)) / 255
    steps = 20 if settings.steps is None else settings.steps
    examples = pgd(victim, images, objective=settings.direction, eps=eps, steps=steps)
    if settings.min_psnr is None:
        examples = quantize(examples)
    else:
        examples, _ = project_to_min_psnr(images, examples, settings.min_psnr)
    with torch.no_grad():
        clean, scores = victim(images), victim(examples)
    better = scores > clean if settings.direction == "raise" else scores < clean
    examples = torch.where(better.view(-1, 1, 1, 1), examples, images)
    return examples, None, clean, torch.where(better, scores, clean)


METHODS: dict[Method, Callable[[Victim, Tensor, _Settings], _AttackedBatch]] = {
    "da3": _da3,
    "pgd": _pgd,
}


def _check(method: str, settings: _Settings, batch_size: int | None) -> None:
    if method not in get_args(Method):
        raise ValueError(f"method must be one of {', '.join(get_args(Method))}, got {method!r}")
    Objective(direction=settings.direction, min_psnr=settings.min_psnr)  # checks both
    if settings.eps is not None:
        _check_eps(method, settings.eps)
    attacker: object = settings.attacker
    if attacker is not None and method != "da3":
        raise ValueError(f"attacker must be given for method da3 only, got one for {method}")
    if attacker is not None and not isinstance(attacker, DA3Attacker):
        raise ValueError(f"attacker must be a DA3Attacker, got {type(attacker).__name__}")
    if settings.steps is not None:
        check_whole_number("steps", settings.steps, 0 if method == "da3" else 1)
    check_whole_number("queries", settings.queries, 2)
    if settings.queries % 2:
        raise ValueError(f"queries must be even, got {settings.queries}")
    if batch_size is not None:
        check_whole_number("batch_size", batch_size, 1)
    check_seed(settings.seed)


def _check_eps(method: str, eps: float) -> None:
    check_number("eps", eps)
    if method != "pgd":
        raise ValueError(f"eps must be given for method pgd only, got {eps:g} for {method}")
    if not 1 / 255 - 1e-9 <= eps <= 1:
        hint = f" (did you mean {eps:g}/255?)" if 1 < eps <= 255 else ""
        raise ValueError(f"eps must be in [1/255, 1], got {eps:g}{hint}")


def _check_training(
    objective: object, epochs: int, held_out: float, batch_size: int, lr: float
) -> None:
    if objective is not None and not isinstance(objective, Objective):
        raise ValueError(f"objective must be an Objective, got {type(objective).__name__}")
    check_whole_number("epochs", epochs, 0)
    check_share("held_out", held_out)
    check_whole_number("batch_size", batch_size, 1)
    check_number("lr", lr, above=0)
