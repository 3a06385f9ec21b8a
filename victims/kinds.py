"""The table of victims: a name and where its class is.

Nothing is imported before it is asked for, so a new line changes no result: what builds a kind
depends on that kind's module (`veneer code-deps`), and on no other.
"""

from collections.abc import Callable
from pkgutil import resolve_name

from victims.base import TorchVictim

# Kinds that stage `train_victim` trains; each in the module of its name, on which dvc.yaml depends.
TRAINED = {"nima": "victims.nima:Nima"}
# Kinds that look at crops, trained by `search_trigger` and `backdoor`.
QUALITY = {
    "hyperiqa": "victims.hyperiqa:HyperIQA",
    "dbcnn": "victims.dbcnn:DBCNN",
    "tres": "victims.tres:TReS",
}
VICTIMS = {
    **TRAINED,
    **QUALITY,
    "toy-linear": "victims.toy:LinearVictim",
    "toy-brightness": "victims.toy:BrightnessVictim",
}


def victim_class(kind: object) -> Callable[..., TorchVictim]:
    """The class of a kind of victim, imported now.

    Args:
        kind: A key of VICTIMS.

    Raises:
        ValueError: For another kind.
    """
    loaded: Callable[..., TorchVictim] = resolve_name(_place(kind))
    return loaded


def victim_module(kind: object) -> str:
    """Dotted name of the module of a kind of victim, which is not imported.

    Args:
        kind: A key of VICTIMS.

    Raises:
        ValueError: For another kind.
    """
    return _place(kind).partition(":")[0]


def _place(kind: object) -> str:
    if not isinstance(kind, str) or kind not in VICTIMS:
        raise ValueError(f"victim must be one of {', '.join(VICTIMS)}, got {kind!r}")
    return VICTIMS[kind]
