"""Sections of BAIQA: quality models, triggers, poisoned sets and backdoors."""

from typing import Any, Literal

from pydantic import Field, field_validator

from pipelines.params.section import Section, number


class QualityParams(Section):
    """A quality model.

    Attributes:
        model: What builds it: `kind`, and arguments of its class.
        phases: Its schedule, arguments of victims.regression.Phase; null is the one of its paper.
        batch_size: Crops per step.
    """

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

    Attributes:
        kind: Uap is searched for, the others are of earlier papers.
        settings: Arguments of a baseline's trigger.
        surrogate: A name under `quality`; it is trained on the poisoned subset alone.
        band: Of the frequencies; official is what the published code takes for the middle one.
        origin: Of the grid of blocks.
        eps: Bound of the root mean square, in levels of 0-255.
        lam: Weight of what exceeds it.
        project: Whether every step ends within the bound.
        effect: What the search maximises.
        epochs: Of the search.
        lr: Learning rate, in levels of a coefficient.
        batch_size: Photographs per step.
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
    """Poisoned training sets.

    Attributes:
        schemes: p changes labels, c does not; each is a DVC stage.
        ratio: Poisoned share of the training photographs, also those that the trigger is searched
            on.
        delta_y: Δy as a share of the scale.
        strategy: How scheme p draws alpha.
        clip_labels: Whether scheme p keeps labels within the scale.
        centre: μ_y as a share of the scale.
        pgd_eps: Bound of scheme c's move of a picture to μ_y, levels of 0-255.
        pgd_step: Its step, levels.
        pgd_steps: Number of steps.
        pgd_crops: Random crops per step.
        shard_size: Photographs per Parquet file.
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

    Attributes:
        victims: Names under `quality`; each with each scheme is a DVC stage.
        crops: Random crops per test picture.
        defenses: Each is run on a part of the training set.
        benign: That part, a share.
        prune_rates: Shares of channels in [0, 1).
        every: Epochs between two measures of fine-tuning.
        defense_images: Test pictures, the first ones, that defenses are measured on.
        defense_crops: Crops of each.
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
