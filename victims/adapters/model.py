"""Any model or function that scores pictures as a victim."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from typing_extensions import TypeIs

from victims.adapters.probe import probe
from victims.base import ScoreScale, Victim, check_images, resize
from victims.checks import check_whole_number, shown

Takes = Literal["torch", "numpy", "pil"]
PROBE_SIZE = 224


class CallableVictim:
    """A torch module or a function behind the victim contract: see `as_victim`.

    Args:
        function: Torch module or function, called with what `takes` says.
        scale: Of the scores; None where it is not known, `scale` then raises.
        name: Short name for tables and messages.
        takes: "torch", "numpy" or "pil", see `as_victim`; the latter two have no gradient.
        lower_is_better: Return `low + high - score`; needs a scale.
        input_size: Side in pixels to which images are squashed; None leaves them as they are.
        max_batch: Most images in one call of the function; None is without limit.
        differentiable: Whether gradients flow from the scores to the images; not with pictures.
    """

    def __init__(
        self,
        function: Callable[[Any], Any],
        scale: ScoreScale | None,
        *,
        name: str,
        takes: Takes = "torch",
        lower_is_better: bool = False,
        input_size: int | None = None,
        max_batch: int | None = None,
        differentiable: bool = True,
    ) -> None:
        self.function, self.name, self.takes = function, name, takes
        self.input_size, self.max_batch = input_size, max_batch
        self.lower_is_better, self.differentiable = lower_is_better, differentiable
        self._scale = scale

    @property
    def scale(self) -> ScoreScale:
        """Scale of the scores. Raises: ValueError where none was given."""
        if self._scale is None:
            raise ValueError(
                f"{self.name} must have a scale for this (low and high of as_victim), got none"
            )
        return self._scale

    @property
    def device(self) -> torch.device:
        """Where the model computes."""
        return device_of(self.function)

    def __call__(self, images: Tensor, /) -> Tensor:
        """Score RGB images (N,3,H,W) in [0,1]: (N,), on the device of the images."""
        check_images(images)
        if not self.differentiable:
            images = images.detach()
        with frozen(self.function), torch.set_grad_enabled(self._wants_gradient()):
            parts = images.split(self.max_batch) if self.max_batch else (images,)
            scores = torch.cat([self._score(part) for part in parts])
        if self.lower_is_better:
            scores = self.scale.low + self.scale.high - scores
        return scores.to(images.device)

    def _wants_gradient(self) -> bool:
        return self.differentiable and torch.is_grad_enabled()

    def _score(self, images: Tensor) -> Tensor:
        if self.input_size is not None:
            images = resize(images, self.input_size)
        if self.takes == "torch":
            scores = self.function(images.to(self.device))
            if isinstance(scores, Tensor) and scores.ndim == 2 and scores.shape[1] == 1:
                scores = scores.squeeze(1)
            return check_scores(scores, len(images), self.name)
        pixels = images.clamp(0, 1).mul(255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
        scores = [self._score_picture(picture) for picture in pixels]
        return torch.tensor(scores, dtype=torch.float32)

    def _score_picture(self, picture: Any) -> float:
        if self.takes == "pil":
            from PIL import Image

            picture = Image.fromarray(picture)
        score = self.function(picture)
        try:
            return float(score)
        except (TypeError, ValueError):
            raise ValueError(
                f"{self.name} must return one number for one picture, got {type(score).__name__}"
            ) from None


def check_scores(scores: Any, count: int, name: str) -> Tensor:
    """Check that scores are a floating point tensor, one per image.

    Args:
        scores: What the model returned.
        count: Number N of images scored.
        name: Name of the model, for the message.

    Returns:
        The scores (N,), unchanged.

    Raises:
        ValueError: For another type or shape.
    """
    if not isinstance(scores, Tensor) or not scores.is_floating_point():
        got = scores.dtype if isinstance(scores, Tensor) else type(scores).__name__
        raise ValueError(f"{name} must return a floating point tensor of scores, got {got}")
    if scores.shape != (count,):
        raise ValueError(
            f"{name} must return scores of shape (N,), got {tuple(scores.shape)} for {count} images"
        )
    return scores


def as_victim(
    model: Victim | Callable[[Any], Any],
    low: float | None = None,
    high: float | None = None,
    *,
    threshold: float | None = None,
    takes: Takes = "torch",
    lower_is_better: bool = False,
    input_size: int | None = None,
    max_batch: int | None = None,
    differentiable: bool | None = None,
    name: str | None = None,
    probe_size: tuple[int, int] | None = None,
) -> Victim:
    """Wrap a model or a function that scores pictures, and probe what it promises.

    A module is put into eval mode for each call and left as it was. Seven
    probe images are scored without a gradient, and three more to look for one.

        victim = as_victim(my_module, low=0, high=10)
        victim = as_victim(my_metric, low=0, high=100, takes="pil", lower_is_better=True)

    Args:
        model: A `Victim` (returned as it is, after the probe), a torch module, or a function.
        low: Worst score of the scale, in the model's own unit. Without `low` and `high` the victim
            has no scale: enough for `attack`, too little for BASR or a training.
        high: Best score of the scale (with `lower_is_better` still the larger number).
        threshold: Score that separates poor from good; 0.55 of the range unless given.
        takes: What one call of the function gets: "torch", a batch (N,3,H,W) of RGB in [0,1], to
            return (N,) or (N,1) scores; "numpy", one picture as uint8 (H,W,3); "pil", one RGB
            picture; the latter two return one number and never have a gradient.
        lower_is_better: The victim's scores are then `low + high - score`.
        input_size: Side in pixels to which images are squashed, for models of one input size.
        max_batch: Most images in one call of the model.
        differentiable: Whether gradients reach the pixels; None finds out.
        name: For tables and messages; the class or function's name unless given.
        probe_size: Height and width of the probe images, pixels; 224 by 224 unless given.

    Returns:
        A victim that satisfies `victims.base.Victim`.

    Raises:
        ValueError: For a bad argument, or where the probe finds a broken promise: scores of another
            shape, not finite, off the scale, that differ between calls or depend on batch mates,
            or a gradient that is claimed and does not reach the pixels.
    """
    _check_sizes(input_size, max_batch, probe_size)
    size = probe_size or (input_size or PROBE_SIZE,) * 2
    if is_victim(model):
        given = (low, high, threshold, input_size, max_batch, differentiable, name)
        if any(v is not None for v in given) or lower_is_better or takes != "torch":
            raise ValueError(
                f"options must be none for a model that is a Victim already, got some for "
                f"{model.name}"
            )
        if not isinstance(model, CallableVictim):  # those were probed when they were wrapped
            with frozen(model):
                gradient = probe(model, model.scale, size, device_of(model))
            if model.differentiable and not gradient:
                raise ValueError(_without_gradient(model.name))
        return model
    _check(model, low, high, takes, lower_is_better, differentiable)
    if threshold is not None and low is None:
        raise ValueError("threshold must come with low and high, got no scale")
    if name is not None and not isinstance(name, str):
        raise ValueError(f"name must be text, got {shown(name)}")
    scale = None
    if low is not None and high is not None:
        middle = ScoreScale.of(low, high).threshold if threshold is None else threshold
        scale = ScoreScale(low, high, middle)
    victim = CallableVictim(
        model,
        scale,
        name=name or str(getattr(model, "__name__", type(model).__name__)),
        takes=takes,
        lower_is_better=lower_is_better,
        input_size=input_size,
        max_batch=max_batch,
        differentiable=takes == "torch" and differentiable is not False,
    )
    gradient = probe(victim, scale, size, victim.device)
    if differentiable and not gradient:
        raise ValueError(_without_gradient(victim.name))
    victim.differentiable = gradient
    return victim


def is_victim(model: object) -> TypeIs[Victim]:
    """Whether a model satisfies the victim contract, as far as its attributes show.

    Args:
        model: Anything.

    Returns:
        True for a `CallableVictim`, and for what has the attributes of `Victim`.
    """
    return isinstance(model, (CallableVictim, Victim))


def device_of(model: object) -> torch.device:
    """Where a model computes.

    Args:
        model: Anything.

    Returns:
        Its `device` if that is a torch.device, else that of a module's first parameter or
        buffer, else the CPU.
    """
    device = getattr(model, "device", None)
    if isinstance(device, torch.device):
        return device
    if isinstance(model, nn.Module):
        for tensor in (*model.parameters(), *model.buffers()):
            return tensor.device
    return torch.device("cpu")


@contextmanager
def frozen(model: object) -> Iterator[None]:
    """Hold a module in eval mode with frozen parameters; mode and flags come back afterwards.

    Gradients of parameters are not touched.

    Args:
        model: A torch module; anything else is left alone.
    """
    if not isinstance(model, nn.Module):
        yield
        return
    training = [module for module in model.modules() if module.training]
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        for module in training:
            module.training = False
        for parameter in learning:
            parameter.requires_grad_(False)
        yield
    finally:
        for module in training:
            module.training = True
        for parameter in learning:
            parameter.requires_grad_(True)


def _without_gradient(name: str) -> str:
    return (
        f"{name} must pass a gradient to the pixels where differentiable is True, got none: "
        "a victim must not look robust because it could not be attacked"
    )


def _check_sizes(input_size: object, max_batch: object, probe_size: object) -> None:
    for name, value in (("input_size", input_size), ("max_batch", max_batch)):
        if value is not None:
            check_whole_number(name, value, 1)
    if probe_size is None:
        return
    if not isinstance(probe_size, Sequence) or len(probe_size) != 2:
        raise ValueError(f"probe_size must be height and width, got {shown(probe_size)}")
    for side in probe_size:
        check_whole_number("probe_size", side, 1)


def _check(
    model: object,
    low: float | None,
    high: float | None,
    takes: str,
    lower_is_better: bool,
    differentiable: bool | None,
) -> None:
    if not callable(model):
        raise ValueError(
            f"model must be a Victim, a torch module or a function, got {type(model).__name__}"
        )
    if (low is None) != (high is None):
        raise ValueError(f"low and high must be given together, got {low} and {high}")
    if takes not in get_args(Takes):
        raise ValueError(f"takes must be one of {', '.join(get_args(Takes))}, got {takes!r}")
    if lower_is_better and low is None:
        raise ValueError("lower_is_better must come with low and high, got no scale")
    if differentiable and takes != "torch":
        raise ValueError(f"differentiable must not be True for a function that takes {takes}")
