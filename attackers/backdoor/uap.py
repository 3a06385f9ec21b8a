"""UAP-DCT (Algorithm 1 of BAIQA): a universal perturbation in the DCT domain as the trigger."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from attackers.backdoor.dct import BLOCK, band_mask, dct_matrix
from attackers.backdoor.trigger import Trigger, rms
from victims.crops import CropVictim, MappedVictim, random_crops

Row = dict[str, float]
EFFECTS = ("features", "signed", "absolute")


def search_trigger(
    surrogate: MappedVictim,
    images: Sequence[Tensor],
    *,
    band: str = "mid",
    origin: str = "top_left",
    eps: float = 8 / 255,
    lam: float = 1e8,
    project: bool = True,
    effect: str = "features",
    epochs: int = 50,
    lr: float = 1.0,
    batch_size: int = 32,
    seed: int = 0,
    report: Callable[[Row], None] | None = None,
    resume: dict[str, Any] | None = None,
    save: Callable[[dict[str, Any]], None] | None = None,
) -> tuple[Trigger, list[Row]]:
    """Search the trigger that moves the surrogate's scores most within an RMS of eps.

    Minimises L = -|f(T(x,t)) - f(x)| + lam·max(mean square of t, eps²) with Adam over t; x is a
    picture with its trigger **before** the random crop and flip, as in a stored file. |Δ| is
    taken on a scale of 100, that lam is made for. The mean square is the tile's: that of the
    picture up to clamping.
    Beyond the paper: project scales t back onto the bound after each step, so that lam's term
    stays constant. Without it the first step over the bound has a gradient a hundred times that of
    |Δ|, and Adam's second moment then holds t where it is for hundreds of steps. In the end the
    bound holds exactly, and t gets the sign under which +t scores above -t on `images`.
    effect "absolute" is |f(T(x,t)) - f(x)| as in the paper. Its maximum is even in α where a
    texture as such changes the score: measured on LIVEC, +t and -t both raised it by 11 of 100,
    while the backdoor must tell them apart. "signed" is (f(T(x,t)) - f(T(x,-t))) / 2, its odd part.
    "features" asks no score: it drives apart what the surrogate's maps, pooled, say of +t and of
    -t, the squared distance of the means in standard deviations over pictures. What a network
    sees apart before it is trained, it learns to score apart from few pictures.
    images: uint8 (3, H, W) of any sizes. lr: in levels of a coefficient, of the first epoch; it
    falls linearly. save: called with the state after each epoch; given as `resume`, with the same
    other arguments, the search goes on to the same trigger.
    Returns: the trigger, and a row per epoch: effect (mean |Δ| in % of the scale; for "features"
    the mean squared distance), psnr, loss.
    Raises: ValueError for bad arguments, RuntimeError if the loss is not finite.
    """
    _check(images, eps, lam, epochs, lr)
    if effect not in EFFECTS:
        raise ValueError(f"effect must be one of {', '.join(EFFECTS)}, got {effect!r}")
    generator = torch.Generator().manual_seed(seed)
    mask = band_mask(band)
    coefficients = _start(effect, mask, eps, generator).to(surrogate.device).requires_grad_(True)
    optimizer = torch.optim.Adam([coefficients], lr=lr)
    lr_decay = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 1 / epochs, epochs)
    if effect == "features":
        spread = _spread(surrogate, images, generator, batch_size)

        def measure(some: list[Tensor], trigger: Trigger) -> Tensor:
            return _separation(surrogate, some, trigger, generator, spread)
    else:
        per_cent = 100 / surrogate.scale.range

        def measure(some: list[Tensor], trigger: Trigger) -> Tensor:
            return _effect(surrogate, some, trigger, generator, effect) * per_cent

    history: list[Row] = []
    if resume:
        coefficients.data.copy_(resume["coefficients"])
        optimizer.load_state_dict(resume["optimizer"])
        lr_decay.load_state_dict(resume["lr_decay"])
        generator.set_state(resume["generator"])
        history += resume["history"]
    for epoch in range(len(history) + 1, epochs + 1):
        seen = total = 0.0
        order = torch.randperm(len(images), generator=generator)
        for part in order.split(batch_size):
            kept = coefficients * mask.to(coefficients)
            trigger = Trigger(kept, band, origin)
            some = [images[i] for i in part.tolist()]
            change = measure(some, trigger)
            # Projected, t is on the bound to rounding, which must not switch the penalty on.
            size = kept.new_tensor(eps**2) if project else rms(kept).square().clamp_min(eps**2)
            loss = lam * size - change
            if not math.isfinite(loss.item()):
                raise RuntimeError(f"loss must be finite, got {loss.item()} in epoch {epoch}")
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if project:
                _project(coefficients, mask, eps)
            seen += change.item() * len(part) / len(images)
            total += loss.item() * len(part) / len(images)
        lr_decay.step()
        row = {"epoch": float(epoch), "loss": total, "effect": seen, "psnr": trigger.psnr}
        history.append(row)
        if report:
            report(row)
        if save:
            save(
                {
                    "coefficients": coefficients.detach(),
                    "optimizer": optimizer.state_dict(),
                    "lr_decay": lr_decay.state_dict(),
                    "generator": generator.get_state(),
                    "history": history,
                }
            )
    _project(coefficients, mask, eps)
    found = coefficients.detach()
    sign = _sign(surrogate, images, Trigger(found, band, origin), generator, batch_size)
    return Trigger((sign * found).cpu(), band, origin), history


def _start(effect: str, mask: Tensor, eps: float, generator: torch.Generator) -> Tensor:
    """Where the search starts: noise of one level, but for absolute plus a dot in the luma.

    Crops shift the tile, so what tells +t from -t is its skewness. Noise has none, and at t = 0 the
    odd part of the effect has next to no gradient: a dot, the most skewed pattern, is off there.
    """
    start = torch.randn(3, BLOCK, BLOCK, generator=generator) * mask
    if effect != "absolute":
        # The coefficients of a dot at the middle of the block.
        column = dct_matrix()[:, BLOCK // 2]
        dot = torch.zeros_like(start)
        dot[0] = torch.outer(column, column) * mask
        start = start + dot * (eps / 2 / rms(dot))
    return start


@torch.no_grad()
def _project(coefficients: Tensor, mask: Tensor, eps: float) -> None:
    """Put t into its band and scale it down to the bound, in place."""
    coefficients.mul_(mask.to(coefficients))
    coefficients.mul_((eps / rms(coefficients)).clamp_max(1))


def _effect(
    surrogate: CropVictim,
    images: Sequence[Tensor],
    trigger: Trigger,
    generator: torch.Generator,
    effect: str,
) -> Tensor:
    """What the search maximises, on one random crop of each picture, in units of the scale: ()."""
    if effect == "signed":
        crops = _both_signs(surrogate, images, trigger, generator)
        return (surrogate(crops[:, 0]) - surrogate(crops[:, 1])).mean() / 2
    both = [torch.cat([image, trigger(image, 1.0)]) for image in _floats(surrogate, images)]
    crops = random_crops(both, surrogate.input_size, generator)
    with torch.no_grad():
        before = surrogate(crops[:, 0])
    return (surrogate(crops[:, 1]) - before).abs().mean()


def _both_signs(
    surrogate: CropVictim, images: Sequence[Tensor], trigger: Trigger, generator: torch.Generator
) -> Tensor:
    """The same random crop of each picture with +t and with -t: (n, 2, 3, size, size)."""
    whole = _floats(surrogate, images)
    both = [torch.cat([trigger(image, 1.0), trigger(image, -1.0)]) for image in whole]
    return random_crops(both, surrogate.input_size, generator)


def _floats(surrogate: CropVictim, images: Sequence[Tensor]) -> list[Tensor]:
    """Pictures as batches of one in [0, 1], where the surrogate computes."""
    return [image.to(surrogate.device).float()[None] / 255 for image in images]


def _separation(
    surrogate: MappedVictim,
    images: Sequence[Tensor],
    trigger: Trigger,
    generator: torch.Generator,
    spread: Tensor,
) -> Tensor:
    """Squared distance of what is seen of +t and -t in units of `spread`, mean of features: ().

    Each picture gives both signs at the same place, so its content cancels. The product of the
    means of two halves does not grow with the noise of either, as the square of one would.
    """
    crops = _both_signs(surrogate, images, trigger, generator)
    seen = _pooled(surrogate, crops.flatten(0, 1)).view(len(images), 2, -1)
    shift = (seen[:, 0] - seen[:, 1]) / spread
    if len(shift) == 1:
        return shift.square().mean()
    return (shift[::2].mean(0) * shift[1::2].mean(0)).mean()


@torch.no_grad()
def _spread(
    surrogate: MappedVictim, images: Sequence[Tensor], generator: torch.Generator, batch_size: int
) -> Tensor:
    """Standard deviation of each pooled feature over one random crop of each picture: (F,)."""
    seen = []
    for start in range(0, len(images), batch_size):
        some = images[start : start + batch_size]
        crops = random_crops(_floats(surrogate, some), surrogate.input_size, generator)
        seen.append(_pooled(surrogate, crops[:, 0]))
    return torch.cat(seen).std(0, correction=0) + 1e-3


def _pooled(surrogate: MappedVictim, crops: Tensor) -> Tensor:
    """Means over the places of all maps: (N, F)."""
    return torch.cat([maps.mean((2, 3)) for maps in surrogate.maps(crops)], 1)


@torch.no_grad()
def _sign(
    surrogate: CropVictim,
    images: Sequence[Tensor],
    trigger: Trigger,
    generator: torch.Generator,
    batch_size: int,
) -> float:
    """1 where +t scores above -t in the mean, else -1."""
    total = 0.0
    for start in range(0, len(images), batch_size):
        some = images[start : start + batch_size]
        total += len(some) * float(_effect(surrogate, some, trigger, generator, "signed"))
    return 1.0 if total >= 0 else -1.0


def _check(images: Sequence[Tensor], eps: float, lam: float, epochs: int, lr: float) -> None:
    if not len(images):
        raise ValueError("images must be at least one, got none")
    if not 0 < eps <= 1:
        hint = f" (did you mean {eps:g}/255?)" if 1 < eps <= 255 else ""
        raise ValueError(f"eps must be in (0, 1], got {eps:g}{hint}")
    if epochs < 1:
        raise ValueError(f"epochs must be at least 1, got {epochs}")
    if not (lam >= 0 and lr > 0):
        raise ValueError(f"lam must be at least 0 and lr above 0, got {lam:g} and {lr:g}")
