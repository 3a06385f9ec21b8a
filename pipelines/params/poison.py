"""Sections of BAIQA: quality models, triggers, poisoned sets and backdoors."""

from typing import Any, Literal

from pydantic import Field, field_validator

from pipelines.params.section import Section, number


class QualityParams(Section):
    """A quality model: what builds it, and its schedule (null: the one of its paper)."""

    model: dict[str, Any]
    phases: list[dict[str, Any]] | None = None
    batch_size: int = Field(32, ge=1)

    @field_validator("phases", mode="after")
    @classmethod
    def _text_is_a_number(cls, values: list[dict[str, Any]] | None) -> list[dict[str, Any]] | None:
        if values is None:
            return None
        return [
            {k: number(v) if k.endswith("lr") else v for k, v in phase.items()} for phase in values
        ]


class TriggerParams(Section):
    """UAP-DCT, or the trigger of a baseline.

    settings: of a baseline's trigger. surrogate: a name under `quality`; it is trained on the
    poisoned subset alone. eps: bound of the root mean square, in levels of 0-255.
    """

    kind: Literal["uap", "ftrojan", "blended", "wanet"] = "uap"
    settings: dict[str, Any] = {}
    surrogate: str
    band: Literal["low", "mid", "high", "official"] = "mid"
    origin: Literal["top_left", "centred"] = "top_left"
    eps: float = Field(8.0, gt=0, le=255)
    lam: float = Field(1e8, ge=0)
    project: bool = True
    effect: Literal["features", "signed", "absolute"] = "features"
    epochs: int = Field(50, ge=1)
    lr: float = Field(1.0, gt=0)
    batch_size: int = Field(32, ge=1)


class Poison(Section):
    """Poisoned training sets. schemes: p changes labels, c does not.

    ratio: poisoned share of the training photographs, also those that the trigger is searched on.
    delta_y, centre: Δy and μ_y as shares of the scale. pgd_*: C's move of a picture to μ_y, bound
    and step in levels.
    """

    schemes: list[Literal["p", "c"]] = Field(min_length=1)
    ratio: float = Field(0.2, gt=0, le=1)
    delta_y: float = Field(0.4, gt=0, le=1)
    strategy: Literal["levels", "ends", "uniform"] = "levels"
    clip_labels: bool = False
    centre: float = Field(0.5, ge=0, le=1)
    pgd_eps: float = Field(2.0, ge=0, le=255)
    pgd_step: float = Field(1.0, gt=0, le=255)
    pgd_steps: int = Field(20, ge=1)
    pgd_crops: int = Field(4, ge=1)
    shard_size: int = Field(64, ge=1)


class Backdoor(Section):
    """What poisoned sets do to quality models, and what helps.

    victims: names under `quality`. crops: random crops per test picture. defenses: each is run on
    `benign` of the training set, measured on the first `defense_images` test pictures with
    `defense_crops` crops; every: epochs between two measures of fine-tuning.
    """

    victims: list[str] = Field(min_length=1)
    crops: int = Field(25, ge=1)
    defenses: list[Literal["finetune", "prune"]] = ["finetune", "prune"]
    benign: float = Field(0.2, gt=0, le=1)
    prune_rates: list[float] = [step / 20 for step in range(20)]
    every: int = Field(4, ge=1)
    defense_images: int = Field(1000, ge=1)
    defense_crops: int = Field(25, ge=1)

    @field_validator("prune_rates", mode="after")
    @classmethod
    def _rates_are_shares(cls, values: list[float]) -> list[float]:
        for value in values:
            if not 0 <= value < 1:
                raise ValueError(f"prune_rates must be in [0, 1), got {value:g}")
        return values
