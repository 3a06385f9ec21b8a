"""Sections of 3AE: which examples are annotated, how, and the published set."""

from typing import Literal

from pydantic import Field

from pipelines.params.section import Section
from pipelines.params.sources import Splits


class CurationSplits(Splits):
    """Shares of the photographs in each split of 3AE, where only one split was attacked."""

    train: float = Field(0.8, gt=0, lt=1)
    validation: float = Field(0.1, gt=0, lt=1)
    test: float = Field(0.1, gt=0, lt=1)


class Curate(Section):
    """Which adversarial examples are annotated.

    Attributes:
        target: How many at most, balanced over victim, mode and score bin; null is all.
        per_photograph: Of one photograph at most.
        bins: Of the adversarial score over its scale.
        phash_distance: Bits of 64 that perceptual hashes of near-duplicates differ in at most.
        colour_distance: The same of the 42 bits of colour hashes.
        splits: Shares; null keeps the split of the photograph, for attack.photographs: all.
    """

    target: int | None = Field(60000, ge=1)
    per_photograph: int = Field(12, ge=1)
    bins: int = Field(10, ge=1, le=1000)
    phash_distance: int = Field(4, ge=0, le=31)
    colour_distance: int = Field(3, ge=0, le=42)
    splits: CurationSplits | None = CurationSplits()


class Annotate(Section):
    """Opinion scores.

    Attributes:
        labels: Human, or simulated where there are no votes at all.
        min_votes: Images with fewer are rejected.
        screen: Leave out annotators as ITU-R BT.500 does, and by `min_correlation`.
        min_correlation: Annotators whose correlation with the others is lower are left out; null
            turns this rule off.
        bootstrap: Resamples for the intervals of the agreement.
    """

    labels: Literal["human", "simulated"] = "human"
    min_votes: int = Field(3, ge=1)
    screen: bool = True
    min_correlation: float | None = Field(0.2, ge=-1, le=1)
    bootstrap: int = Field(1000, ge=0)


class Campaign(Section):
    """Labelling campaign in Label Studio; no stage of DVC depends on it.

    Attributes:
        name: Title of the project, by which it is found again.
        votes: Wanted per image.
        gold: Share of control items.
        repeats: Share of items asked twice.
        images: Inline (in the task), local (folder of the server) or url (`url_template`, or
            addresses given to push).
        url_template: An address with {key}.
        artefacts: Tags that annotators may set.
    """

    name: str = Field("veneer 3AE", min_length=3, max_length=50, pattern=r"^[\w .,:()-]+$")
    votes: int = Field(5, ge=1)
    gold: float = Field(0.05, ge=0, le=1)
    repeats: float = Field(0.05, ge=0, le=1)
    images: Literal["inline", "local", "url"] = "inline"
    url_template: str | None = Field(None, pattern=r"^https?://\S*\{key\}\S*$")
    artefacts: list[str] = ["colour", "exposure", "contrast", "blur", "noise", "edges", "texture"]


class Package(Section):
    """Published data set.

    Attributes:
        shard_size: Samples per Parquet file.
    """

    shard_size: int = Field(2000, ge=1)
