"""Tables of all triggers and of those of earlier attacks; building and loading them."""

from collections.abc import Callable
from typing import Any

from attackers.backdoor.blended import Blended
from attackers.backdoor.ftrojan import ftrojan
from attackers.backdoor.trigger import Injector, Trigger, read_trigger
from attackers.backdoor.wanet import WaNet
from victims.checks import shown

# Triggers that are built from their settings; `uap` is optimised (attackers.backdoor.uap).
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
    """Build the trigger of a baseline.

    Args:
        kind: One of BASELINES.
        **settings: Arguments of the baseline.

    Returns:
        The trigger.

    Raises:
        ValueError: For an unknown kind or setting.
    """
    if not isinstance(kind, str) or kind not in BASELINES:
        raise ValueError(f"kind must be one of {', '.join(BASELINES)}, got {shown(kind)}")
    try:
        return BASELINES[kind](**settings)
    except TypeError as error:
        raise ValueError(f"settings of {kind} must fit it: {error}") from None


def load_trigger(data: bytes) -> tuple[Injector, dict[str, Any]]:
    """Load a trigger from the bytes of its file.

    Args:
        data: Content of a file of `trigger.trigger_bytes`.

    Returns:
        The trigger, and the metadata about its origin.

    Raises:
        ValueError: For another kind of file, another block size or a value out of range.
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
