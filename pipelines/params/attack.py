"""Sections of DA3Attacker: both stages, generation and evaluation."""

from typing import Literal, Self

from pydantic import Field, model_validator

from pipelines.params.section import Section

Mode = Literal["restricted", "unrestricted"]


class Perturb(Section):
    """Forward process of the cold diffusion, on whose pictures the first stage trains.

    Attributes:
        per_filter: Perturbed copies of each photograph per filter, their steps drawn in turn.
        filters: How many of the 14, drawn for each photograph; null is all.
        shard_size: Photographs per shard.
        limit: Photographs of each split at most; null is all.
        held_out: Photographs of validation and of test at most; null is `limit`.
    """

    per_filter: int = Field(1, ge=1)
    filters: int | None = Field(None, ge=1, le=14)
    shard_size: int = Field(256, ge=1)
    limit: int | None = Field(None, ge=1)
    held_out: int | None = Field(None, ge=1)


class ADTParams(Section):
    """Shape of the Attack Diffusion Transformer and its ablation switches.

    Attributes:
        size: Side in pixels of the pictures that it sees.
        steps: Steps T of the cold diffusion.
        width: Of a token.
        depth: Blocks.
        heads: Of the attention.
        mlp_ratio: Width of the hidden layer in tokens' widths.
        shift: Whether the condition shifts tokens.
        scale: Whether it scales them.
        gate: Whether it gates them.
        condition: Whether there is a condition, time and prior.
    """

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
    """First stage.

    Attributes:
        epochs: At most.
        batch_size: Pictures per filter and step.
        lr: Learning rate.
        patience: Epochs without gain before it falls.
    """

    epochs: int = Field(5, ge=0)
    batch_size: int = Field(8, ge=1)
    lr: float = Field(2e-4, gt=0)
    patience: int = Field(4, ge=0)


class ObjectiveParams(Section):
    """Formula 6 of DA3Attacker: arguments of attackers.objectives.Objective.

    Attributes:
        eta: Gain aimed at, in tenths of the victim's scale.
        alpha: Weight of the distance to the photograph.
        lam: Weight of the evenness of the filters' weights.
        pixels: Share of the pixels that the distance is measured on.
        min_psnr: dB that every example keeps; null is no bound.
    """

    eta: float = Field(3.0, ge=0)
    alpha: float = Field(0.0, ge=0)
    lam: float = Field(0.1, ge=0)
    pixels: float = Field(1.0, gt=0, le=1)
    min_psnr: float | None = Field(None, gt=0, lt=100)


class Attack(Section):
    """Second stage and generation.

    Attributes:
        victims: What is attacked; each pair of victim and mode is a DVC stage.
        modes: How.
        objectives: Of each mode.
        direction: Whether scores are to rise or to fall.
        protocol: Split (train DA3 on train and validation, report on test) or paper (report on
            photographs that the victim was trained on, train DA3 on the others).
        exclude_pretraining: Leave out the photographs that the first stage learned from (those of
            train and validation that `perturb` took), in training and in generation: without them
            first stage, second stage and report have no photograph in common.
        pretrained: Whether the second stage begins with the weights of the first.
        epochs: The learning rate falls to nothing over them.
        batch_size: Pictures per step.
        lr: Learning rate.
        patience: Epochs without gain before it falls.
        held_out: Photographs of the fixed validation subset of ART.
        refine: 0 as in the paper, or k ≤ 15: of the attack and its k-1 strongest filters alone
            (weight 0.15) what the victim scores best, k queries per photograph.
        score_only: Hide the victim's gradient and estimate it with `queries` calls per photograph.
        queries: See there.
        shard_size: Examples per shard.
        size: Side in pixels of the pictures that the second stage trains on, best the victim's;
            null is the ADT's size.
        photographs: Report makes examples of the report split; all, of every split, for training
            defenders (only the report split counts in robustness).
        limit: Photographs of each split that are attacked at most; null is all.
    """

    victims: list[str] = Field(min_length=1)
    modes: list[Mode] = Field(min_length=1)
    objectives: dict[Mode, ObjectiveParams]
    direction: Literal["raise", "lower"] = "raise"
    protocol: Literal["split", "paper"] = "split"
    exclude_pretraining: bool = False
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
    """Robustness metrics.

    Attributes:
        by: Whether BASR counts as poor what the victim scores so, or what people do (MOS).
    """

    by: Literal["score", "mos"] = "score"
