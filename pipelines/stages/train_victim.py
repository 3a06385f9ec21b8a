"""Stage `train_victim@name`: a model that scores pictures, trained on the clean data set."""

import shutil
from functools import partial
from pathlib import Path
from typing import Any

import torch

from pipelines.errors import InputError
from pipelines.execution.devices import device, hardware, torch_threads
from pipelines.params import Params
from pipelines.readers.pictures import opinions, squashed
from pipelines.readers.stream import PictureStream
from pipelines.storage.checkpoints import TrainingFolder
from pipelines.storage.code import code_of, code_version
from pipelines.storage.files import without_nan, write_json
from pipelines.storage.layout import Layout
from pipelines.storage.manifest import fingerprint, read_manifest
from pipelines.storage.records import SPLITS
from victims.base import score_images
from victims.fitting import ScoredStream
from victims.kinds import victim_module
from victims.metrics import agreement
from victims.nima import Nima
from victims.registry import build_victim, save_victim, victim_sha256
from victims.training import train_victim

SCORING_BATCH = 32


def run_train_victim(params: Params, layout: Layout, name: str) -> dict[str, Any]:
    """Train a victim on train, choose its epoch on validation, report on test.

    Writes models/victims/<name> and reports/victims/<name>.json.

    Args:
        params: All parameters.
        layout: Folders of the project.
        name: Name of the victim under `victims`.

    Returns:
        The report.

    Raises:
        InputError: There is no clean data set, or the victim's parameters do not fit.
    """
    settings = params.victim(name)
    manifest = read_manifest(layout.clean, "import")
    _check_writable(layout.victim(name))
    scale = {"low": manifest.scale.low, "high": manifest.scale.high}
    mark = fingerprint(
        model=settings.model,
        training=settings.training,
        seed=params.seed,
        threads=params.engine.threads,
        clean=manifest.content_sha256,
        code=code_version(__name__, victim_module(settings.model.get("kind"))),
    )
    with torch_threads(params.engine.threads):
        victim = build_victim({"scale": scale, "name": name, **settings.model}, seed=params.seed)
        if not isinstance(victim, Nima):
            raise InputError(
                f"victims.{name}.model.kind must be one that trains (nima), "
                f"got {settings.model.get('kind')!r}"
            )
        victim.to(device())
        work = TrainingFolder(layout.work / "train_victim", name, "training", mark)
        pictures = {split: _scored(params, layout.clean, split, victim) for split in SPLITS}
        try:
            epochs = int(settings.training.get("epochs", 10))
            result = train_victim(
                victim,
                pictures["train"],
                pictures["validation"],
                seed=params.seed,
                **work.hooks(f"train_victim {name}", epochs, ("loss", "srocc", "rmse")),
                **settings.training,
            )
        except TypeError as error:
            raise InputError(f"victims.{name}.training must fit train_victim: {error}") from None
        found = {split: _agreement(victim, pictures[split]) for split in SPLITS if split != "train"}
    save_victim(victim, layout.victim(name), code=code_of(victim))
    report = {
        "victim": name,
        "model": settings.model,
        "best_epoch": result.best_epoch,
        "victim_sha256": victim_sha256(layout.victim(name)),
        "data": manifest.parameters["source"],
        "label_source": manifest.scale.label_source,
        "seed": params.seed,
        "hardware": hardware(),
        **{split: {"n": len(pictures[split]), **row} for split, row in found.items()},
    }
    write_json(layout.reports / "victims" / f"{name}.json", report)
    shutil.rmtree(work.path.parent)
    return report


def _check_writable(folder: Path) -> None:
    """Found out before the training rather than after it."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        reason = "a file is in its place" if folder.is_file() else None
    except OSError as error:
        reason = error.strerror
    if reason:
        raise InputError(f"model folder {folder} must be one that can be written ({reason})")


def _scored(params: Params, folder: Path, split: str, victim: Nima) -> ScoredStream:
    """The photographs of a split at the size of the victim, with their opinions."""
    images = PictureStream(
        folder,
        [split],
        partial(squashed, size=victim.input_size),
        columns=("mos", "mos_std", "score_low", "score_high"),
        num_workers=params.engine.loader_workers,
    )
    mos, std = opinions(images.rows)
    return ScoredStream(images, torch.tensor(mos), torch.tensor(std))


def _agreement(victim: Nima, pictures: ScoredStream) -> dict[str, float | None]:
    scores, mos = [], []
    for images, labels, _ in pictures.batches(SCORING_BATCH, None):
        scores.append(score_images(victim, list(images), device=victim.device))
        mos.append(labels)
    # A correlation is NaN where all scores are equal.
    values: dict[str, float | None] = without_nan(
        agreement(torch.cat(scores).numpy(), torch.cat(mos).numpy(), victim.scale)
    )
    return values
