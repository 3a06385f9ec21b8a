"""Sections of DA3Attacker: both stages, generation and evaluation."""

from typing import Literal, Self

from pydantic import Field, model_validator

from pipelines.params.section import Section

Mode = Literal["restricted", "unrestricted"]


class Perturb(Section):
    """Forward process of the cold diffusion. per_filter: perturbed copies of each photograph per
    filter, their steps drawn in turn. filters: how many of the 14, drawn for each photograph; null
    is all. limit: photographs of each split; held_out: of validation and of test, where fewer."""

    per_filter: int = Field(1, ge=1)
    filters: int | None = Field(None, ge=1, le=14)
    shard_size: int = Field(256, ge=1)
    limit: int | None = Field(None, ge=1)
    held_out: int | None = Field(None, ge=1)


class ADTParams(Section):
    """Shape of the Attack Diffusion Transformer and its ablation switches."""

    size: int = Field(224, ge=32, multiple_of=32)
    steps: int = Field(3, ge=1)
    width: int = Field(256, ge=4, multiple_of=4)
    depth: int = Field(2, ge=1)
    heads: int = Field(4, ge=1)
    mlp_ratio: int = Field(2, ge=1)
    shift: bool = True
    scale: bool = True
    gate: bool = True
    condition: bool = True


class Pretrain(Section):
    """First stage. batch_size: images per filter and step."""

    epochs: int = Field(5, ge=0)
    batch_size: int = Field(8, ge=1)
    lr: float = Field(2e-4, gt=0)
    patience: int = Field(4, ge=0)


class ObjectiveParams(Section):
    """Formula 6: see attackers.objectives.Objective."""

    eta: float = Field(3.0, ge=0)
    alpha: float = Field(0.0, ge=0)
    lam: float = Field(0.1, ge=0)
    pixels: float = Field(1.0, gt=0, le=1)
    min_psnr: float | None = Field(None, gt=0, lt=100)


class Attack(Section):
    """Second stage and generation.

    victims, modes: what is attacked and how; each pair is a DVC stage. objectives: per mode.
    protocol: split (train DA3 on train and validation, report on test) or paper (report on images
    that the victim was trained on, train DA3 on the others). held_out: images of the fixed
    validation subset of ART. epochs: the learning rate falls to nothing over them. refine: 0 as in
    the paper, or k ≤ 15: of the attack and its k-1 strongest filters alone (weight 0.15) what the
    victim scores best, k queries per image. score_only: hide the victim's gradient and estimate it
    with `queries` calls per image. size: side in pixels of the pictures that the second stage
    trains on, best the victim's own; null is the ADT's size. photographs: report makes examples of
    the report split; all, of every split, for training defenders (only the report split counts in
    robustness). limit: photographs of each split that are attacked.
    """

    victims: list[str] = Field(min_length=1)
    modes: list[Mode] = Field(min_length=1)
    objectives: dict[Mode, ObjectiveParams]
    direction: Literal["raise", "lower"] = "raise"
    protocol: Literal["split", "paper"] = "split"
    pretrained: bool = True
    epochs: int = Field(5, ge=0)
    batch_size: int = Field(8, ge=1)
    lr: float = Field(2e-4, gt=0)
    patience: int = Field(4, ge=0)
    held_out: int = Field(32, ge=1)
    refine: int = Field(0, ge=0, le=15)
    score_only: bool = False
    queries: int = Field(8, ge=2, multiple_of=2)
    shard_size: int = Field(32, ge=1)
    size: int | None = Field(None, ge=32)
    photographs: Literal["report", "all"] = "report"
    limit: int | None = Field(None, ge=1)

    @model_validator(mode="after")
    def _modes_have_objectives(self) -> Self:
        for mode in self.modes:
            if mode not in self.objectives:
                raise ValueError(f"objectives must have an entry for mode {mode}")
        return self


class Evaluate(Section):
    """by: whether poor images are told by the victim's own score or by their MOS (BASR)."""

    by: Literal["score", "mos"] = "score"


def report_split(protocol: str) -> str:
    """The split whose examples count; DA3 trains on the other two.

    By default no photograph that DA3 or the victim saw is reported on. `paper`: reports on images
    that the victim was trained on.
    """
    return "train" if protocol == "paper" else "test"
