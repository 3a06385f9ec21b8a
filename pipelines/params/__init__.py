"""params.yaml as frozen models: the only place where configuration is read."""

import re
from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import Field, ValidationError, model_validator

from pipelines.errors import InputError
from pipelines.params.annotation import Annotate, Campaign, Curate, CurationSplits, Package
from pipelines.params.attack import (
    ADTParams,
    Attack,
    Evaluate,
    Mode,
    ObjectiveParams,
    Perturb,
    Pretrain,
)
from pipelines.params.defense import DetectorParams, FinetuneParams
from pipelines.params.poison import Backdoor, Poison, QualityParams, TriggerParams
from pipelines.params.section import Section
from pipelines.params.sources import Engine, Import, Source, Splits, VictimParams

__all__ = [
    "ADTParams",
    "Annotate",
    "Attack",
    "Backdoor",
    "Campaign",
    "Curate",
    "CurationSplits",
    "DetectorParams",
    "Engine",
    "Evaluate",
    "FinetuneParams",
    "Import",
    "Mode",
    "ObjectiveParams",
    "Package",
    "Params",
    "Perturb",
    "Poison",
    "Pretrain",
    "QualityParams",
    "Source",
    "Splits",
    "TriggerParams",
    "VictimParams",
    "load_params",
]


class Params(Section):
    """All parameters of the pipeline."""

    seed: int = Field(0, ge=0)
    source: Source
    import_: Import = Field(Import(), alias="import")
    engine: Engine = Engine()
    victims: dict[str, VictimParams]
    perturb: Perturb = Perturb()
    adt: ADTParams = ADTParams()
    pretrain: Pretrain = Pretrain()
    attack: Attack
    evaluate: Evaluate = Evaluate()
    detector: DetectorParams = DetectorParams()
    finetune: FinetuneParams = FinetuneParams()
    curate: Curate = Curate()
    campaign: Campaign = Campaign()
    annotate: Annotate = Annotate()
    package: Package = Package()
    quality: dict[str, QualityParams] = {}
    trigger: TriggerParams | None = None
    poison: Poison | None = None
    backdoor: Backdoor | None = None

    @model_validator(mode="after")
    def _quality_models_exist(self) -> Self:
        named = [] if self.trigger is None else [("trigger.surrogate", self.trigger.surrogate)]
        if self.backdoor is not None:
            named += [("backdoor.victims", name) for name in self.backdoor.victims]
        for parameter, name in named:
            if name not in self.quality:
                known = ", ".join(self.quality) or "(none)"
                raise ValueError(f"{parameter} must be among quality: {known}, got {name!r}")
        return self

    @model_validator(mode="after")
    def _attacked_victims_exist(self) -> Self:
        for section, names in (
            ("attack", self.attack.victims),
            ("finetune", self.finetune.victims),
        ):
            for name in names:
                if name not in self.victims:
                    known = ", ".join(self.victims)
                    raise ValueError(f"{section}.victims must be among {known}, got {name!r}")
        return self

    def victim(self, name: str) -> VictimParams:
        """A victim.

        Args:
            name: Under `victims`.

        Raises:
            InputError: For another name.
        """
        if name not in self.victims:
            known = ", ".join(self.victims)
            raise InputError(f"victim must be one of {known}; got {name!r}")
        return self.victims[name]

    def quality_model(self, name: str) -> QualityParams:
        """A quality model.

        Args:
            name: Under `quality`.

        Raises:
            InputError: For another name.
        """
        if name not in self.quality:
            known = ", ".join(self.quality) or "(none)"
            raise InputError(f"victim must be one of {known} (quality), got {name!r}")
        return self.quality[name]

    def section(self, name: Literal["trigger", "poison", "backdoor"]) -> Any:
        """An optional section.

        Args:
            name: Of the section.

        Raises:
            InputError: Where the file has none.
        """
        value = getattr(self, name)
        if value is None:
            raise InputError(f"params must have a section {name}, got none")
        return value

    def mode(self, name: str) -> Mode:
        """An attack mode.

        Args:
            name: Under `attack.objectives`.

        Raises:
            InputError: For another name.
        """
        for mode in self.attack.objectives:
            if mode == name:
                return mode
        known = ", ".join(self.attack.objectives)
        raise InputError(f"mode must be one of {known} (attack.objectives), got {name!r}")


def load_params(path: Path) -> Params:
    """Read a parameter file.

    Args:
        path: YAML.

    Raises:
        InputError: Where it is none or a value breaks a rule, in a sentence that names them.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"params must be a readable file, got {path} ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path} must be UTF-8 text: {error.reason}") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" in line {mark.line + 1}" if mark else ""
        raise InputError(f"{path} must be YAML: {getattr(error, 'problem', error)}{line}") from None
    if not isinstance(values, dict):
        raise InputError(f"{path} must be a mapping of sections, got {type(values).__name__}")
    try:
        return Params.model_validate(values)
    except ValidationError as error:
        raise InputError(_sentence(path, error)) from None


def _sentence(path: Path, error: ValidationError) -> str:
    problems = error.errors(include_url=False)
    first = problems[0]
    name = ".".join(str(part) for part in first["loc"])
    rule = first["msg"].removeprefix("Value error, ")
    rule = re.sub(r"^\w+ should ", "", rule)  # "Input should be ...", "List should have ..."
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    if first["type"] == "missing":
        return f"{path}: {name} is required{more}"
    if first["type"] == "extra_forbidden":
        return f"{path}: {name} is not a parameter{more}"
    must = rule if first["type"] == "value_error" else f"must {rule}"
    value = first["input"]
    shown = f", got {value!r}" if not isinstance(value, dict) else ""
    # A rule between sections has no place of its own; its text names the parameter.
    return f"{path}: {f'{name} ' if name else ''}{must}{shown}{more}"
