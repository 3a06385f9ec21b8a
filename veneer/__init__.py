"""Attack, poison, audit and harden models that score how beautiful or how good a picture is.

    import veneer

    result = veneer.attack(my_model, pictures, min_psnr=35)

Names are imported when they are first used: torch alone takes seconds.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from attackers.attack import AttackResult, attack, train_attacker
    from attackers.backdoor.poisoned_set import PoisonedSet, make_trigger, poison
    from attackers.backdoor.trigger import Trigger
    from attackers.da3.adt import ADTConfig
    from attackers.da3.attacker import DA3Attacker
    from attackers.evaluation import evaluate
    from attackers.objectives import Objective
    from defenders.detection import detect, train_detector
    from defenders.hardening import harden
    from pipelines.audit.dataset_scan import scan
    from pipelines.audit.detect import load_detector
    from victims.adapters.model import as_victim
    from victims.base import ScoreScale, Victim
    from victims.registry import load_victim

__all__ = [
    "ADTConfig",
    "AttackResult",
    "DA3Attacker",
    "Objective",
    "PoisonedSet",
    "ScoreScale",
    "Trigger",
    "Victim",
    "as_victim",
    "attack",
    "detect",
    "evaluate",
    "harden",
    "load_detector",
    "load_victim",
    "make_trigger",
    "poison",
    "scan",
    "train_attacker",
    "train_detector",
]

_MODULES = {
    "ADTConfig": "attackers.da3.adt",
    "AttackResult": "attackers.attack",
    "DA3Attacker": "attackers.da3.attacker",
    "Objective": "attackers.objectives",
    "PoisonedSet": "attackers.backdoor.poisoned_set",
    "ScoreScale": "victims.base",
    "Trigger": "attackers.backdoor.trigger",
    "Victim": "victims.base",
    "as_victim": "victims.adapters.model",
    "attack": "attackers.attack",
    "detect": "defenders.detection",
    "evaluate": "attackers.evaluation",
    "harden": "defenders.hardening",
    "load_detector": "pipelines.audit.detect",
    "load_victim": "victims.registry",
    "make_trigger": "attackers.backdoor.poisoned_set",
    "poison": "attackers.backdoor.poisoned_set",
    "scan": "pipelines.audit.dataset_scan",
    "train_attacker": "attackers.attack",
    "train_detector": "defenders.detection",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'veneer' has no attribute {name!r}")
    value = getattr(import_module(_MODULES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
