"""Stage `backdoor@scheme-victim`: a quality model on a poisoned set, attacked and defended."""

import copy
import math
import shutil
import sys
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from attackers.backdoor.metrics import backdoor_metrics, score_changes
from attackers.backdoor.trigger import Injector
from defenders.cleansing import fine_tune
from defenders.pruning import channel_activity, prune
from pipelines.errors import InputError
from pipelines.execution.devices import device, hardware, torch_threads
from pipelines.params import Backdoor, Params, QualityParams
from pipelines.readers.pictures import PictureDataset, parquet_pictures, shard_pictures
from pipelines.readers.poisoned import build_quality, open_trigger
from pipelines.readers.stream import PictureStream
from pipelines.storage.checkpoints import TrainingFolder
from pipelines.storage.code import code_of, code_version
from pipelines.storage.files import without_nan, write_json
from pipelines.storage.layout import Layout
from pipelines.storage.manifest import (
    Manifest,
    fingerprint,
    read_manifest,
    sample_generator,
    sample_seed,
)
from pipelines.storage.records import SPLITS
from victims.kinds import victim_module
from victims.loop import Row, best_epoch
from victims.metrics import agreement
from victims.quality import QualityModel
from victims.registry import save_victim, victim_sha256
from victims.regression import phases_of, train_regressor

STAGE = "backdoor"
# filtered: the rows of `p` that are not marked as poisoned, what its card tells a careful user.
SCHEMES = ("clean", "p", "c", "filtered")
METRICS = ("rmse", "plcc", "srocc", "mmae", "mmra")
Report = dict[str, Any]
Pictures = PictureDataset[dict[str, Any]]


def run_backdoor(params: Params, layout: Layout, scheme: str, name: str) -> Report:
    """Train a quality model on a poisoned set (or on the clean one) and measure it.

    The epoch is chosen on validation, never on test. Writes models/backdoored/<scheme>-<name> and
    reports/backdoor/<scheme>-<name>.json.

    Args:
        params: All parameters.
        layout: Folders of the project.
        scheme: "p" or "c", "filtered" for the benign rows of P, or "clean".
        name: Name of the quality model.

    Returns:
        The report.

    Raises:
        InputError: The scheme is unknown, or the trigger or the data set is missing.
    """
    if scheme not in SCHEMES:
        raise InputError(f"scheme must be one of {', '.join(SCHEMES)}, got {scheme!r}")
    settings: Backdoor = params.section("backdoor")
    quality = params.quality_model(name)
    trigger, about, digest = open_trigger(layout.trigger)
    manifest, pictures = open_set(layout, scheme)
    delta_y = params.section("poison").delta_y * (manifest.scale.high - manifest.scale.low)
    mark = fingerprint(
        quality=quality.model_dump(),
        seed=params.seed,
        threads=params.engine.threads,
        data=manifest.content_sha256,
        code=code_version(__name__, victim_module(quality.model.get("kind"))),
    )
    work = TrainingFolder(layout.work, STAGE, f"{scheme}-{name}", mark)
    with torch_threads(params.engine.threads):
        victim = build_quality(quality, f"{scheme}-{name}", manifest.scale, params.seed)
        train = _training_data(params, layout, scheme, pictures["train"])
        validation = pictures["validation"]
        history = _train(work, victim.to(device()), quality, train, validation, params.seed)
        save_victim(victim, layout.backdoored(scheme, name), code=code_of(victim))
        measure = _meter(params.seed, trigger, pictures["test"], delta_y)
        row = measure(victim, len(pictures["test"]), settings.crops)
        stored = victim_sha256(layout.backdoored(scheme, name))
        tuning_mark = fingerprint(
            victim=stored,
            trigger=digest,
            delta_y=delta_y,
            settings=settings.model_dump(exclude={"victims"}),
            training=mark,
            code=code_version(__name__),
        )
        tuning = TrainingFolder(layout.work, STAGE, f"{scheme}-{name}-finetune", tuning_mark)
        defenses = _defend(tuning, params, quality, victim, pictures["train"], measure)
        shutil.rmtree(tuning.path)
    records = pictures["train"].records
    report = {
        "scheme": scheme,
        "victim": name,
        "trigger": about.get("search", {}).get("kind"),
        "trigger_sha256": digest,
        "victim_sha256": stored,
        "poisoned": sum(bool(record.get("is_poisoned")) for record in records),
        "train": len(records),
        "test": len(pictures["test"]),
        "crops": settings.crops,
        "delta_y": delta_y,
        "best_epoch": best_epoch(history, "srocc"),
        **row,
        "defenses": defenses,
        "label_source": manifest.scale.label_source,
        "seed": params.seed,
        "hardware": hardware(),
    }
    write_json(layout.backdoor_report(scheme, name), report)
    return report


def _train(
    work: TrainingFolder,
    victim: QualityModel,
    quality: QualityParams,
    train: tuple[Pictures | PictureStream, list[float]],
    validation: Pictures,
    seed: int,
) -> list[Row]:
    """Train in place on pictures and their labels, from the checkpoint in `work`."""
    phases = phases_of(quality.model["kind"], quality.phases)
    epochs = sum(phase.epochs for phase in phases)
    return train_regressor(
        victim,
        *train,
        (validation, _labels(validation)),
        phases=phases,
        batch_size=quality.batch_size,
        seed=seed,
        **work.hooks(f"backdoor {victim.name}", epochs, ("loss", "srocc", "rmse")),
    )


def poisoned_scheme(scheme: str) -> str:
    """The scheme of `veneer poison` whose set a model is trained on.

    Args:
        scheme: "p" or "c", "filtered" for the benign rows of P, or "clean".
    """
    return "p" if scheme == "filtered" else scheme


def open_set(layout: Layout, scheme: str) -> tuple[Manifest, dict[str, Pictures]]:
    """Manifest and pictures of the splits of a poisoned set, or of the clean one.

    Args:
        layout: Folders of the project.
        scheme: "p" or "c", "filtered" for the benign rows of P, or "clean".

    Raises:
        InputError: The data set is missing or unfinished.
    """
    if scheme == "clean":
        manifest = read_manifest(layout.clean, "import")
        return manifest, {s: shard_pictures(layout.clean, [s]) for s in SPLITS}
    published = poisoned_scheme(scheme)
    folder = layout.poisoned(published)
    manifest = read_manifest(folder, f"poison {published}")
    pictures = {s: parquet_pictures(folder, s) for s in SPLITS}
    if scheme == "filtered":
        pictures["train"] = pictures["train"].filter(lambda record: not record["is_poisoned"])
    return manifest, pictures


def _training_data(
    params: Params, layout: Layout, scheme: str, train: Pictures
) -> tuple[Pictures | PictureStream, list[float]]:
    """Pictures and labels to learn from: the clean shards as a stream, else Parquet rows."""
    if scheme != "clean":
        return train, _labels(train)
    workers = params.engine.loader_workers
    stream = PictureStream(layout.clean, ["train"], columns=["mos"], num_workers=workers)
    return stream, stream.rows["mos"].to_pylist()


def _labels(pictures: Pictures) -> list[float]:
    return [record["mos"] for record in pictures.records]


Meter = Callable[[QualityModel, int, int], Report]


def _meter(seed: int, trigger: Injector, pictures: Pictures, delta_y: float) -> Meter:
    """What measures a victim on the first test pictures with so many crops of each."""

    def measure(victim: QualityModel, images: int, crops: int) -> Report:
        count = min(images, len(pictures))
        records = pictures.records[:count]
        # Crops depend on the picture alone: every model sees the same.
        generators = [sample_generator(seed, "crops", record["key"]) for record in records]
        measured = score_changes(victim, trigger, pictures[:count], generators, crops=crops)
        benign = agreement(measured.scores, [record["mos"] for record in records], victim.scale)
        found = backdoor_metrics(measured.changes, delta_y)
        values = {
            "rmse": benign["rmse"],
            "plcc": benign["plcc"],
            "srocc": benign["srocc"],
            "mmae": found["mmae"],
            "mmra": found["mmra"],
            "psnr": measured.psnr,
            "curve": found["curve"],
        }
        finite: Report = without_nan(values)  # a correlation of constant scores is null
        return finite

    return measure


def _defend(
    work: TrainingFolder,
    params: Params,
    quality: QualityParams,
    victim: QualityModel,
    train: Pictures,
    measure: Meter,
) -> dict[str, list[Report]]:
    """Curves of the defenses, each on a copy of the victim and the same benign samples."""
    settings: Backdoor = params.section("backdoor")
    benign = _benign(params, train)
    images = [train[i] for i in benign]

    def look(model: QualityModel) -> Report:
        row = measure(model, settings.defense_images, settings.defense_crops)
        srocc = math.nan if row["srocc"] is None else row["srocc"]
        print(
            f"backdoor: mMAE {row['mmae']:.2f}, mMRA {row['mmra']:.2f}, SROCC {srocc:.3f}",
            file=sys.stderr,
        )
        return {name: row[name] for name in METRICS}

    curves: dict[str, list[Report]] = {}
    if "finetune" in settings.defenses:
        labels = [train.records[i]["mos"] for i in benign]
        tuned = copy.deepcopy(victim)
        rows = _fine_tuned(work, params, quality, tuned, images, labels, lambda: look(tuned))
        curves["finetune"] = [
            {"x": row["epoch"], **{name: row[name] for name in METRICS}} for row in rows
        ]
    if "prune" in settings.defenses:
        pruned = copy.deepcopy(victim)
        activity = channel_activity(pruned, images)
        curves["prune"] = []
        for rate in settings.prune_rates:
            prune(pruned, activity, rate)
            curves["prune"].append({"x": rate, **look(pruned)})
    return curves


def _fine_tuned(
    work: TrainingFolder,
    params: Params,
    quality: QualityParams,
    victim: QualityModel,
    images: Sequence[Tensor],
    labels: Sequence[float],
    measure: Callable[[], Report],
) -> list[Report]:
    """Rows of the epochs that are measured while the victim is fine-tuned."""
    phases = phases_of(quality.model["kind"], quality.phases)
    epochs = sum(phase.epochs for phase in phases)
    return fine_tune(
        lambda metrics: train_regressor(
            victim,
            images,
            labels,
            phases=phases,
            batch_size=quality.batch_size,
            seed=params.seed,
            measure=metrics,
            **work.hooks("backdoor, fine-tuning", epochs),
        ),
        epochs=epochs,
        measure=measure,
        every=params.section("backdoor").every,
    )


def _benign(params: Params, train: Pictures) -> list[int]:
    """Places of benign training samples that a defender has: a share of the training set."""
    clean = [i for i, r in enumerate(train.records) if not r.get("is_poisoned")]
    clean.sort(key=lambda i: sample_seed(params.seed, "benign", train.records[i]["key"]))
    count = max(1, round(params.section("backdoor").benign * len(train)))
    return sorted(clean[:count])
