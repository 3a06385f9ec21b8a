"""params.yaml as frozen models: the only place where configuration is read."""

import re
from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from pipelines.errors import InputError

Mode = Literal["restricted", "unrestricted"]


def _number(value: Any) -> Any:
    """A float for text that YAML should have read as one (2e-4), else the value itself."""
    try:
        return float(value)
    except ValueError:
        return value


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, strict=True)

    @model_validator(mode="before")
    @classmethod
    def _whole_numbers_are_floats(cls, values: Any) -> Any:
        # YAML reads 1 as an integer and 2e-4 (no dot) as text; both mean a float here.
        if not isinstance(values, dict):
            return values
        out = dict(values)
        for name, field in cls.model_fields.items():
            value = out.get(name)
            if field.annotation in (float, float | None) and isinstance(value, (int, str)):
                if isinstance(value, bool):
                    continue
                out[name] = _number(value)
        return out


class Source(_Section):
    """Which photographs: an importer of pipelines.sources and its arguments.

    `hf:<id or local folder>` stands for the source hf with this path.
    """

    name: str
    options: dict[str, Any] = {}

    @model_validator(mode="before")
    @classmethod
    def _path_in_the_name(cls, values: Any) -> Any:
        if isinstance(values, dict) and str(values.get("name", "")).startswith("hf:"):
            path = values["name"].removeprefix("hf:")
            return {"name": "hf", "options": {"path": path, **values.get("options", {})}}
        return values


class Splits(_Section):
    """Shares of the photographs in each split."""

    train: float = Field(0.7, gt=0, lt=1)
    validation: float = Field(0.1, gt=0, lt=1)
    test: float = Field(0.2, gt=0, lt=1)

    @model_validator(mode="after")
    def _whole(self) -> Self:
        total = self.train + self.validation + self.test
        if abs(total - 1) > 1e-9:
            raise ValueError(f"train + validation + test must be 1, got {total:g}")
        return self


class Import(_Section):
    """How photographs are stored. min_side: smaller ones are rejected, pixels."""

    splits: Splits = Splits()
    shard_size: int = Field(64, ge=1)
    min_side: int = Field(32, ge=16)


class Engine(_Section):
    """kind: what runs the workers that make shards: this process, processes of this machine, or a
    Ray cluster (extra `ray`). workers: their number. max_retries: of a shard whose worker died.
    memory: MiB of a worker. address: of a running Ray cluster; null starts one on this machine.
    gpus: of a Ray worker; null shares those of the cluster. None of these changes a byte.
    threads: torch threads of a training; they change the order of sums, so they are a parameter
    and not the number of cores at hand. dtype: of the latent spaces; auto takes bfloat16 where the
    processor multiplies it: about twice as fast."""

    kind: Literal["inline", "processes", "ray"] = "processes"
    workers: int = Field(2, ge=1)
    max_retries: int = Field(2, ge=0)
    memory: int | None = Field(None, ge=64)
    address: str | None = None
    gpus: float | None = Field(None, ge=0)
    threads: int = Field(2, ge=1)
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"

    @property
    def shards(self) -> dict[str, Any]:
        """Arguments of pipelines.engine.map_shards."""
        names = {"workers", "max_retries", "memory", "address", "gpus"}
        return {"engine": self.kind, **self.model_dump(include=names)}


class VictimParams(_Section):
    """One victim: what builds it and how it is trained (arguments of train_victim)."""

    model: dict[str, Any]
    training: dict[str, Any] = {}

    @field_validator("training", mode="after")
    @classmethod
    def _text_is_a_number(cls, values: dict[str, Any]) -> dict[str, Any]:
        return {k: _number(v) if isinstance(v, str) else v for k, v in values.items()}


class Perturb(_Section):
    """Forward process of the cold diffusion. per_filter: perturbed copies of each photograph per
    filter, their steps drawn in turn. filters: how many of the 14, drawn for each photograph; null
    is all. limit: photographs of each split; held_out: of validation and of test, where fewer."""

    per_filter: int = Field(1, ge=1)
    filters: int | None = Field(None, ge=1, le=14)
    shard_size: int = Field(256, ge=1)
    limit: int | None = Field(None, ge=1)
    held_out: int | None = Field(None, ge=1)


class ADTParams(_Section):
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


class Pretrain(_Section):
    """First stage. batch_size: images per filter and step."""

    epochs: int = Field(5, ge=0)
    batch_size: int = Field(8, ge=1)
    lr: float = Field(2e-4, gt=0)
    patience: int = Field(4, ge=0)


class ObjectiveParams(_Section):
    """Formula 6: see attackers.objectives.Objective."""

    eta: float = Field(3.0, ge=0)
    alpha: float = Field(0.0, ge=0)
    lam: float = Field(0.1, ge=0)
    pixels: float = Field(1.0, gt=0, le=1)
    min_psnr: float | None = Field(None, gt=0, lt=100)


class Attack(_Section):
    """Second stage and generation.

    victims, modes: what is attacked and how; each pair is a DVC stage. objectives: per mode.
    protocol: split (train DA3 on train and validation, report on test) or paper (report on images
    that the victim was trained on, train DA3 on the others). held_out: images of the fixed
    validation subset of ART. refine: k score-only queries per image, 0 as in the paper.
    score_only: hide the victim's gradient and estimate it with `queries` calls per image.
    size: side in pixels of the pictures that the second stage trains on, best the victim's own;
    null is the ADT's size. limit: photographs of the report split that are attacked.
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
    refine: int = Field(0, ge=0)
    score_only: bool = False
    queries: int = Field(8, ge=2, multiple_of=2)
    shard_size: int = Field(32, ge=1)
    size: int | None = Field(None, ge=32)
    limit: int | None = Field(None, ge=1)

    @model_validator(mode="after")
    def _modes_have_objectives(self) -> Self:
        for mode in self.modes:
            if mode not in self.objectives:
                raise ValueError(f"objectives must have an entry for mode {mode}")
        return self


class Evaluate(_Section):
    """by: whether poor images are told by the victim's own score or by their MOS (BASR)."""

    by: Literal["score", "mos"] = "score"


class CurationSplits(Splits):
    """Shares of the photographs in each split of 3AE."""

    train: float = Field(0.8, gt=0, lt=1)
    validation: float = Field(0.1, gt=0, lt=1)
    test: float = Field(0.1, gt=0, lt=1)


class Curate(_Section):
    """Which adversarial examples are annotated.

    target: how many at most, balanced over victim, mode and score bin; null is all.
    per_photograph: of one photograph at most. bins: of the adversarial score over its scale.
    phash_distance, colour_distance: bits (of 64 and 42) that near-duplicates differ in at most.
    """

    target: int | None = Field(60000, ge=1)
    per_photograph: int = Field(12, ge=1)
    bins: int = Field(10, ge=1, le=1000)
    phash_distance: int = Field(4, ge=0, le=31)
    colour_distance: int = Field(3, ge=0, le=42)
    splits: CurationSplits = CurationSplits()


class Annotate(_Section):
    """Opinion scores. min_votes: images with fewer stay out. labels: human, or simulated where
    there are no votes at all. screen: leave out annotators as ITU-R BT.500 does, and those whose
    correlation with the others is below min_correlation (null: that rule is off). bootstrap:
    resamples for the intervals of the agreement."""

    labels: Literal["human", "simulated"] = "human"
    min_votes: int = Field(3, ge=1)
    screen: bool = True
    min_correlation: float | None = Field(0.2, ge=-1, le=1)
    bootstrap: int = Field(1000, ge=0)


class Campaign(_Section):
    """Labelling campaign in Label Studio. name: finds the project again. votes: wanted per image.
    gold, repeats: shares of control items and of items asked twice. images: inline (in the task),
    local (folder of the server) or url (url_template with {key}, or addresses given to push)."""

    name: str = Field("veneer 3AE", min_length=3, max_length=50, pattern=r"^[\w .,:()-]+$")
    votes: int = Field(5, ge=1)
    gold: float = Field(0.05, ge=0, le=1)
    repeats: float = Field(0.05, ge=0, le=1)
    images: Literal["inline", "local", "url"] = "inline"
    url_template: str | None = Field(None, pattern=r"^https?://\S*\{key\}\S*$")
    artefacts: list[str] = ["colour", "exposure", "contrast", "blur", "noise", "edges", "texture"]


class Package(_Section):
    """Published data set. shard_size: samples per Parquet file."""

    shard_size: int = Field(2000, ge=1)


class QualityParams(_Section):
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
            {k: _number(v) if k.endswith("lr") else v for k, v in phase.items()} for phase in values
        ]


class TriggerParams(_Section):
    """UAP-DCT, or the trigger of a baseline.

    settings: of a baseline's trigger. surrogate: a name under `quality`; it is trained on the
    poisoned subset alone. eps: bound of the root mean square, in levels of 0-255.
    """

    kind: Literal["uap", "ftrojan", "blended", "wanet"] = "uap"
    settings: dict[str, Any] = {}
    surrogate: str
    band: Literal["low", "mid", "high", "official"] = "mid"
    origin: Literal["top-left", "centred"] = "top-left"
    eps: float = Field(8.0, gt=0, le=255)
    lam: float = Field(1e8, ge=0)
    project: bool = True
    effect: Literal["signed", "absolute"] = "signed"
    epochs: int = Field(50, ge=1)
    lr: float = Field(1.0, gt=0)
    batch_size: int = Field(32, ge=1)


class Poison(_Section):
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


class Backdoor(_Section):
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


class DetectorParams(_Section):
    """AE detector, arguments of defenders.detector.train_detector. robust: also train with JPEG
    and half-size copies. leave_one_out: also train once without each victim."""

    epochs: int = Field(20, ge=1)
    crop: int = Field(96, ge=32)
    batch_size: int = Field(32, ge=2)
    lr: float = Field(3e-3, gt=0)
    robust: bool = True
    leave_one_out: bool = True
    onnx: bool = True


class FinetuneParams(_Section):
    """Adversarial fine-tuning, arguments of defenders.finetuning.finetune. victims: each is a DVC
    stage. retrain: also train a new attacker, of these modes, against the fine-tuned victim."""

    victims: list[str] = []
    epochs: int = Field(5, ge=1)
    batch_size: int = Field(16, ge=1)
    lr: float = Field(1e-4, gt=0)
    clean_share: float = Field(0.5, gt=0, lt=1)
    retrain: list[Mode] = ["unrestricted"]


class Params(_Section):
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
        for where, name in named:
            if name not in self.quality:
                known = ", ".join(self.quality) or "(none)"
                raise ValueError(f"{where} must be among quality: {known}, got {name!r}")
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
        """The victim of that name; InputError names those that there are."""
        if name not in self.victims:
            known = ", ".join(self.victims)
            raise InputError(f"victim must be one of {known}; got {name!r}")
        return self.victims[name]

    def quality_model(self, name: str) -> QualityParams:
        """The quality model of that name; InputError names those that there are."""
        if name not in self.quality:
            known = ", ".join(self.quality) or "(none)"
            raise InputError(f"victim must be one of {known} (quality), got {name!r}")
        return self.quality[name]

    def section(self, name: Literal["trigger", "poison", "backdoor"]) -> Any:
        """An optional section; InputError where the file has none."""
        value = getattr(self, name)
        if value is None:
            raise InputError(f"params must have a section {name}, got none")
        return value

    def mode(self, name: str) -> Mode:
        """The attack mode of that name; InputError names those that have objectives."""
        for mode in self.attack.objectives:
            if mode == name:
                return mode
        known = ", ".join(self.attack.objectives)
        raise InputError(f"mode must be one of {known} (attack.objectives), got {name!r}")


def load_params(path: Path) -> Params:
    """Read a parameter file. InputError says in a sentence which value breaks which rule."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"params must be a readable file, got {path} ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path} must be UTF-8 text: {error.reason}") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" in line {mark.line + 1}" if mark else ""
        raise InputError(
            f"{path} must be YAML: {getattr(error, 'problem', error)}{where}"
        ) from None
    if not isinstance(values, dict):
        raise InputError(f"{path} must be a mapping of sections, got {type(values).__name__}")
    try:
        return Params.model_validate(values)
    except ValidationError as error:
        raise InputError(_sentence(path, error)) from None


def _sentence(path: Path, error: ValidationError) -> str:
    problems = error.errors(include_url=False)
    first = problems[0]
    where = ".".join(str(part) for part in first["loc"])
    rule = first["msg"].removeprefix("Value error, ")
    rule = re.sub(r"^\w+ should ", "", rule)  # "Input should be ...", "List should have ..."
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    if first["type"] == "missing":
        return f"{path}: {where} is required{more}"
    if first["type"] == "extra_forbidden":
        return f"{path}: {where} is not a parameter{more}"
    must = rule if first["type"] == "value_error" else f"must {rule}"
    value = first["input"]
    shown = f", got {value!r}" if not isinstance(value, dict) else ""
    # A rule between sections has no place of its own; its text names the parameter.
    return f"{path}: {f'{where} ' if where else ''}{must}{shown}{more}"
