"""UAP-DCT (Algorithm 1 of BAIQA): a universal perturbation in the DCT domain as the trigger."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Unpack

import torch
from torch import Tensor, nn

from attackers.backdoor.dct import BLOCK, band_mask, dct_matrix
from attackers.backdoor.trigger import Trigger, rms
from victims.batches import ImageStream, read_batches
from victims.checks import check_number, check_whole_number
from victims.crops import CropVictim, MappedVictim, random_crops
from victims.loop import Hooks, RandomState, Row, fit, take_steps

EFFECTS = ("features", "signed", "absolute")


def search_trigger(
    surrogate: MappedVictim,
    images: Sequence[Tensor] | ImageStream,
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
    **hooks: Unpack[Hooks],
) -> tuple[Trigger, list[Row]]:
    """Search the trigger that moves the surrogate's scores most within an RMS of eps.

    Minimises L = -|f(T(x,t)) - f(x)| + lam·max(mean square of t, eps²) with Adam over t; x is a
    picture with its trigger **before** the random crop and flip, as in a stored file. |Δ| is
    taken on a scale of 100, that lam is made for. The mean square is the tile's: that of the
    picture up to clamping. In the end the bound holds exactly, and t gets the sign under which +t
    scores above -t on `images`.

    Args:
        surrogate: Model whose scores, or maps, the trigger moves.
        images: uint8 (3, H, W) of any sizes, read by index when needed, or a stream of them.
        band: Frequencies of the trigger.
        origin: Where its tiles begin.
        eps: Bound on the root mean square of t, in (0, 1].
        lam: Weight of the bound in the loss, at least 0.
        project: Beyond the paper, scale t back onto the bound after each step, so that lam's term
            stays constant. Without it the first step over the bound has a gradient a hundred times
            that of |Δ|, and Adam's second moment then holds t where it is for hundreds of steps.
        effect: "absolute" is |f(T(x,t)) - f(x)| as in the paper. Its maximum is even in α where a
            texture as such changes the score: measured on LIVEC, +t and -t both raised it by 11 of
            100, while the backdoor must tell them apart. "signed" is (f(T(x,t)) - f(T(x,-t))) / 2,
            its odd part. "features" asks no score: it drives apart what the surrogate's maps,
            pooled, say of +t and of -t, the squared distance of the means in standard deviations
            over pictures. What a network sees apart before it is trained, it learns to score apart
            from few pictures.
        epochs: Number of epochs, at least 1.
        lr: In levels of a coefficient, of the first epoch; it falls linearly.
        batch_size: Images per step, at least 1.
        seed: Seed of the start, the order and the crops.
        **hooks: Resumption, checkpoints and progress, see `victims.loop.Hooks`.

    Returns:
        The trigger, and a row per epoch: loss, effect (mean |Δ| in % of the scale; for "features"
        the mean squared distance), psnr (dB).

    Raises:
        ValueError: For bad arguments.
        RuntimeError: If the loss is not finite.
    """
    _check(images, eps, lam, epochs, lr, batch_size)
    if effect not in EFFECTS:
        raise ValueError(f"effect must be one of {', '.join(EFFECTS)}, got {effect!r}")
    generator = torch.Generator().manual_seed(seed)
    mask = band_mask(band).to(surrogate.device)
    start = _start(effect, band_mask(band), eps, generator).to(surrogate.device)
    search = nn.ParameterDict({"coefficients": start})
    coefficients = search["coefficients"]
    optimizer = torch.optim.Adam([coefficients], lr=lr)
    if project:
        optimizer.register_step_post_hook(lambda *_: _project(coefficients, mask, eps))
    lr_decay = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 1 / epochs, epochs)
    measure = _measure(effect, surrogate, images, generator, batch_size)

    def run_epoch(_: int) -> Row:
        changes: list[Tensor] = []

        def losses() -> Iterator[tuple[Tensor, int]]:
            for part, batch in read_batches(images, batch_size, generator):
                in_band = coefficients * mask
                change = measure(batch, Trigger(in_band, band, origin))
                changes.append(change.detach().double() * len(part) / len(images))
                # Projected, t is on the bound to rounding, which must not switch the penalty on.
                size = coefficients.new_tensor(eps**2)
                if not project:
                    size = rms(in_band).square().clamp_min(size)
                yield lam * size - change, len(part)

        loss = take_steps(losses(), optimizer)
        lr_decay.step()
        trigger = Trigger(coefficients * mask, band, origin)
        return {"loss": loss, "effect": float(sum(changes)), "psnr": trigger.psnr}

    history = fit(
        search,
        run_epoch,
        epochs=epochs,
        state={"optimizer": optimizer, "lr_decay": lr_decay, "random": RandomState(generator)},
        **hooks,
    )
    _project(coefficients, mask, eps)
    found = coefficients.detach()
    # Crops of its own: a search that was finished before has kept no state of the generator.
    generator.manual_seed(seed)
    sign = _sign(surrogate, images, Trigger(found, band, origin), generator, batch_size)
    return Trigger((sign * found).cpu(), band, origin), history


def _measure(
    effect: str,
    surrogate: MappedVictim,
    images: Sequence[Tensor] | ImageStream,
    generator: torch.Generator,
    batch_size: int,
) -> Callable[[Sequence[Tensor], Trigger], Tensor]:
    """What the search maximises, as a function of some of the images and a trigger: ()."""
    if effect == "features":
        spread = _spread(surrogate, images, generator, batch_size)
        return lambda batch, trigger: _separation(surrogate, batch, trigger, generator, spread)
    percent = 100 / surrogate.scale.range
    return lambda batch, trigger: _effect(surrogate, batch, trigger, generator, effect) * percent


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
    surrogate: MappedVictim,
    images: Sequence[Tensor] | ImageStream,
    generator: torch.Generator,
    batch_size: int,
) -> Tensor:
    """Standard deviation of each pooled feature over one random crop of each picture: (F,)."""
    seen = []
    for _, batch in read_batches(images, batch_size):
        crops = random_crops(_floats(surrogate, batch), surrogate.input_size, generator)
        seen.append(_pooled(surrogate, crops[:, 0]))
    return torch.cat(seen).std(0, correction=0) + 1e-3


def _pooled(surrogate: MappedVictim, crops: Tensor) -> Tensor:
    """Means over the places of all maps: (N, F)."""
    return torch.cat([maps.mean((2, 3)) for maps in surrogate.maps(crops)], 1)


@torch.no_grad()
def _sign(
    surrogate: CropVictim,
    images: Sequence[Tensor] | ImageStream,
    trigger: Trigger,
    generator: torch.Generator,
    batch_size: int,
) -> float:
    """1 where +t scores above -t in the mean, else -1."""
    total = 0.0
    for _, batch in read_batches(images, batch_size):
        total += len(batch) * float(_effect(surrogate, batch, trigger, generator, "signed"))
    return 1.0 if total >= 0 else -1.0


def _check(
    images: Sequence[Tensor] | ImageStream,
    eps: float,
    lam: float,
    epochs: int,
    lr: float,
    batch_size: int,
) -> None:
    if not len(images):
        raise ValueError("images must be at least one, got none")
    check_whole_number("epochs", epochs, 1)
    check_whole_number("batch_size", batch_size, 1)
    for name, value in (("eps", eps), ("lam", lam), ("lr", lr)):
        check_number(name, value)
    if not 0 < eps <= 1:
        hint = f" (did you mean {eps:g}/255?)" if 1 < eps <= 255 else ""
        raise ValueError(f"eps must be in (0, 1], got {eps:g}{hint}")
    if not (lam >= 0 and lr > 0):
        raise ValueError(f"lam must be at least 0 and lr above 0, got {lam:g} and {lr:g}")
