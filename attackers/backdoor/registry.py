"""Triggers of earlier attacks, with the same alpha; and the table of all triggers."""

from collections.abc import Callable
from typing import Any

from attackers.backdoor.blended import Blended
from attackers.backdoor.ftrojan import ftrojan
from attackers.backdoor.trigger import Injector, Trigger, read_trigger
from attackers.backdoor.wanet import WaNet

# What builds a trigger that is not searched for; `uap` is searched (attackers.backdoor.uap).
BASELINES: dict[str, Callable[..., Injector]] = {
    "ftrojan": ftrojan,
    "blended": Blended,
    "wanet": WaNet,
}
INJECTORS: dict[str, Callable[..., Injector]] = {
    "dct": Trigger,
    "blended": Blended,
    "wanet": WaNet,
}


def build_baseline(kind: str, **settings: Any) -> Injector:
    """Build the trigger of a baseline. Raises: ValueError for an unknown kind or setting."""
    if kind not in BASELINES:
        raise ValueError(f"trigger must be one of {', '.join(BASELINES)}, got {kind!r}")
    try:
        return BASELINES[kind](**settings)
    except TypeError as error:
        raise ValueError(f"settings of {kind} must fit it: {error}") from None


def load_trigger(data: bytes) -> tuple[Injector, dict[str, Any]]:
    """A trigger from the bytes of its file, and what the file says of how it was made.

    Raises: ValueError for another kind of file, block size or value.
    """
    tensors, settings = read_trigger(data)
    kind, about = settings.pop("kind", None), settings.pop("about", {})
    if kind not in INJECTORS:
        raise ValueError(f"trigger must be of kind {', '.join(INJECTORS)}, got {kind!r}")
    if kind == Trigger.kind:
        if "coefficients" not in tensors:
            raise ValueError(f"trigger must hold `coefficients`, got {', '.join(tensors)}")
        settings["coefficients"] = tensors["coefficients"]
    try:
        return INJECTORS[kind](**settings), about
    except TypeError as error:
        raise ValueError(f"trigger of kind {kind} must have its settings: {error}") from None
