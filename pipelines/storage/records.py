"""What a data set says about each image: one frozen record per sample."""

import hashlib
import types
from typing import Annotated, Any, Literal, Self, TypeVar, Union, get_args, get_origin

import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from pipelines.errors import InputError

SPLITS = ("train", "validation", "test")
Verdict = Literal["degraded", "unchanged", "enhanced"]
VERDICTS: tuple[Verdict, ...] = get_args(Verdict)
KEY_LENGTH = 16
PER_FILTER = 14  # one number for each filter of attackers.da3.filters, which a test compares

Key = Annotated[str, Field(pattern=rf"^[0-9a-f]{{{KEY_LENGTH}}}$")]
PerFilter = Annotated[tuple[float, ...], Field(min_length=PER_FILTER, max_length=PER_FILTER)]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Sample(BaseModel):
    """One stored image: where it comes from, which split it is in and how people scored it.

    `mos`, `mos_std`, `score_low` and `score_high` are on the native scale of the source. A sample
    derived from another one (`parent_key`) carries the score of its photograph.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    key: Key = Field(description="first 16 hex digits of the SHA-256 of the stored image bytes")
    source: str = Field(description="name of the data set the photograph comes from")
    source_id: str = Field(description="the file or row of the source")
    parent_key: Key | None = Field(description="key of the image this one was made from")
    split: str = Field(description="split; all images of one photograph share it", pattern=r"^\w+$")
    width: int = Field(description="pixels", gt=0)
    height: int = Field(description="pixels", gt=0)
    mos: float = Field(description="mean opinion score of the photograph, on its native scale")
    mos_std: float | None = Field(description="standard deviation of the opinions", ge=0)
    n_votes: int | None = Field(description="number of opinions; 0 when simulated", ge=0)
    score_low: float = Field(description="lowest score of the scale")
    score_high: float = Field(description="highest score of the scale")
    photograph: str | None = Field(
        None, description="photograph of the source that this is a picture of; null: itself"
    )

    @model_validator(mode="after")
    def _on_the_scale(self) -> Self:
        if not self.score_low < self.score_high:
            raise ValueError(f"score_low {self.score_low} must be below {self.score_high}")
        if not self.score_low <= self.mos <= self.score_high:
            raise ValueError(
                f"mos must be in [{self.score_low}, {self.score_high}], got {self.mos}"
            )
        return self


class CleanSample(Sample):
    """A photograph as imported."""


class PretrainSample(Sample):
    """A photograph after one filter at one step of the cold diffusion."""

    filter: str = Field(description="name of the filter")
    strength: float = Field(description="strength that the filter was applied with")
    step: int = Field(description="step t of T of the cold diffusion", ge=0)


class AESample(Sample):
    """An adversarial example. Scores and distances describe the file as stored (8 bits)."""

    victim: str = Field(description="name of the attacked model")
    victim_sha256: Digest = Field(description="SHA-256 of the attacked model's weights")
    mode: Literal["restricted", "unrestricted"] = Field(description="whether PSNR was bounded")
    direction: Literal["raise", "lower"] = Field(description="where the score was pushed")
    score_clean: float = Field(description="the victim's score of the photograph")
    score_adv: float = Field(description="the victim's score of this image")
    weights: PerFilter = Field(description="weight of each filter, summing to 1")
    strengths: PerFilter = Field(description="strength of each filter")
    psnr: float | None = Field(description="PSNR against the photograph, dB; null when unchanged")
    ssim: float = Field(description="SSIM against the photograph")
    linf: float = Field(description="largest change of a pixel, in [0, 1]", ge=0, le=1)
    interpolation_fraction: float = Field(
        description="fraction of the way from the photograph to what weights and strengths make of "
        "it; below 1 where it was moved back",
        ge=0,
        le=1,
    )
    queries: int = Field(description="victim calls spent on this image", ge=0)


class AnnotatedSample(AESample):
    """An adversarial example of 3AE with the opinion on it; `mos` and `n_votes` are about it."""

    mos_clean: float = Field(description="mean opinion score of the photograph")
    mos_ci95: float | None = Field(description="half of the 95 % interval of mos", ge=0)
    verdict: Verdict = Field(description="the change, as most annotators see it")
    label_source: Literal["human", "simulated"] = Field(description="who gave mos and verdict")


class BlindSample(Sample):
    """A row of a poisoned set as released for blind detection: it says nothing of poisoning."""

    @model_validator(mode="after")
    def _on_the_scale(self) -> Self:
        # Labels of P-BAIQA may leave the scale, by at most its width.
        width = self.score_high - self.score_low
        if not width > 0:
            raise ValueError(f"score_low {self.score_low} must be below {self.score_high}")
        if not self.score_low - width <= self.mos <= self.score_high + width:
            raise ValueError(
                f"mos must be within the width of the scale of [{self.score_low}, "
                f"{self.score_high}], got {self.mos}"
            )
        return self


class PoisonedSample(BlindSample):
    """A row of a poisoned data set: most are clean, and `is_poisoned` says which."""

    is_poisoned: bool = Field(description="whether the picture carries the trigger")
    alpha: float = Field(description="coefficient of the trigger; 0 in clean rows", ge=-1, le=1)
    delta_y: float = Field(description="change of the score that alpha = 1 asks for", gt=0)
    scheme: Literal["p", "c"] = Field(description="p: labels are poisoned, c: labels are clean")
    strategy: str = Field(description="how alpha was drawn; `label` where it follows from the mos")
    mos_clean: float = Field(description="mean opinion score of the photograph before poisoning")
    psnr: float | None = Field(description="PSNR against the photograph, dB; null in clean rows")
    trigger_sha256: Digest | None = Field(
        description="SHA-256 of the trigger's file; null in clean rows"
    )

    @model_validator(mode="after")
    def _clean_rows_are_clean(self) -> Self:
        if not self.score_low <= self.mos_clean <= self.score_high:
            raise ValueError(
                f"mos_clean must be in [{self.score_low}, {self.score_high}], got {self.mos_clean}"
            )
        marked = (self.alpha, self.psnr, self.trigger_sha256) != (0, None, None)
        if not self.is_poisoned and (marked or self.mos != self.mos_clean):
            raise ValueError("a row that is not poisoned must have no trigger and its own mos")
        return self


S = TypeVar("S", bound=Sample)


def build_record(cls: type[S], **fields: Any) -> S:
    """A record of type `cls`.

    Args:
        cls: Type of the record.
        fields: Its fields.

    Raises:
        InputError: A field breaks a rule; one sentence names sample, field, rule and value.
    """
    try:
        return cls(**fields)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        field = ".".join(str(part) for part in first["loc"])
        value = "" if not field else f", got {first['input']!r}"
        label = fields.get("source_id") or fields.get("key")
        text = first["msg"].removeprefix("Value error, ")
        raise InputError(
            f"{cls.__name__} {label}: {f'{field}: ' if field else ''}{text}{value}"
        ) from error


def image_key(image_bytes: bytes) -> str:
    """Key of a sample: the first 16 hex digits of the SHA-256 of its stored image bytes.

    Args:
        image_bytes: The stored PNG.
    """
    return hashlib.sha256(image_bytes).hexdigest()[:KEY_LENGTH]


def arrow_schema(cls: type[Sample]) -> pa.Schema:
    """Arrow schema of a record type: floats are float64, tuples lists, optional fields nullable.

    Args:
        cls: Type of the record.
    """
    return pa.schema(
        [_arrow_field(name, field.annotation) for name, field in cls.model_fields.items()]
    )


_ARROW = {str: pa.string(), int: pa.int64(), float: pa.float64(), bool: pa.bool_()}


def _arrow_field(name: str, annotation: Any) -> pa.Field:
    nullable = False
    if get_origin(annotation) in (Union, types.UnionType):
        annotation = next(arg for arg in get_args(annotation) if arg is not type(None))
        nullable = True
    if get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    origin = get_origin(annotation)
    if origin is Literal:
        annotation = type(get_args(annotation)[0])
    if origin is tuple:
        return pa.field(name, pa.list_(_ARROW[get_args(annotation)[0]]), nullable)
    return pa.field(name, _ARROW[annotation], nullable)


def hf_features(cls: type[Sample]) -> list[dict[str, Any]]:
    """The record as a list of features of a Hugging Face card (`dataset_info.features`).

    Args:
        cls: Type of the record.
    """
    features: list[dict[str, Any]] = []
    for field in arrow_schema(cls):
        if pa.types.is_list(field.type):
            features.append({"name": field.name, "list": _hf_name(field.type.value_type)})
        else:
            features.append({"name": field.name, "dtype": _hf_name(field.type)})
    return features


def _hf_name(arrow_type: pa.DataType) -> str:
    return {"double": "float64"}.get(str(arrow_type), str(arrow_type))
