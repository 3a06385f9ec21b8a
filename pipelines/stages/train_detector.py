"""Stage `train_detector`: AE against photograph, learned from 3AE and measured in every way."""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from defenders.detector import (
    Detector,
    accuracy,
    auc,
    compress,
    half_size,
    probabilities,
    tpr_at_fpr,
    train_detector,
)
from pipelines.audit.detect import ONNX, export_onnx, load_detector, save_detector
from pipelines.errors import InputError
from pipelines.execution.devices import device, hardware, torch_threads
from pipelines.params import Params
from pipelines.readers.threeae import LabelledPictures, Picture, by_split, read_3ae
from pipelines.storage.checkpoints import TrainingFolder
from pipelines.storage.code import code_version
from pipelines.storage.files import without_nan, write_json
from pipelines.storage.layout import Layout
from pipelines.storage.manifest import fingerprint, read_manifest

PSNR_BINS = (0.0, 20.0, 25.0, 30.0, 35.0, 40.0, math.inf)
CHANGES: dict[str, Callable[[torch.Tensor], torch.Tensor] | None] = {
    "as stored": None,
    "JPEG 95": lambda image: compress(image, 95),
    "JPEG 85": lambda image: compress(image, 85),
    "JPEG 75": lambda image: compress(image, 75),
    "half size": half_size,
}


@dataclass(frozen=True)
class _Trainer:
    """Trains detectors on one 3AE data set."""

    params: Params
    layout: Layout
    splits: dict[str, LabelledPictures]
    data_sha256: str

    def train(self, name: str, *, robust: bool, without: str | None = None) -> Detector:
        """The detector `name`, resumed or done before. without: a victim it never sees."""
        settings = self.params.detector
        recipe = settings.model_dump(include={"epochs", "crop", "batch_size", "lr"})
        mark = fingerprint(
            recipe=recipe,
            robust=robust,
            without=without,
            seed=self.params.seed,
            threads=self.params.engine.threads,
            data=self.data_sha256,
            code=code_version(__name__),
        )
        work = TrainingFolder(self.layout.work, "train_detector", name, mark)
        if work.finished:
            return load_detector(work.model)
        with torch.random.fork_rng():
            torch.manual_seed(self.params.seed)
            detector = Detector().to(device())
        train_detector(
            detector,
            self.splits["train"].filter(_not_of(without)),
            self.splits["validation"].filter(_not_of(without)),
            **recipe,
            robust=robust,
            seed=self.params.seed,
            **work.hooks(f"detector {name}", settings.epochs, ("loss", "auc", "accuracy")),
        )
        save_detector(detector, work.model, {"robust": robust, "without": without, **recipe})
        work.done()
        return load_detector(work.model)


def run_train_detector(params: Params, layout: Layout) -> dict[str, Any]:
    """Train on 3AE train; write models/detector (ONNX where the extra is there) and the report.

    One detector learns from pictures as they are, one also from augmented copies;
    `detector.robust` says which is kept. Both are measured, and for each victim one of the kept
    kind that never saw it.

    Args:
        params: All parameters.
        layout: Folders of the project.

    Returns:
        The report.

    Raises:
        InputError: There is no 3AE data set.
    """
    settings = params.detector
    manifest = read_manifest(layout.threeae, "package")
    splits = by_split(read_3ae(str(layout.threeae), str(layout.clean)))
    victims = sorted({p.victim for p in splits["train"].pictures if p.victim})
    trainer = _Trainer(params, layout, splits, manifest.content_sha256)
    with torch_threads(params.engine.threads):
        twins = {name: trainer.train(name, robust=name == "robust") for name in ("plain", "robust")}
        name_kept = "robust" if settings.robust else "plain"
        kept = twins[name_kept]
        report: dict[str, Any] = {
            "about": {
                "label_source": manifest.scale.label_source,
                "seed": params.seed,
                "parameters": sum(p.numel() for p in kept.parameters()),
                "kept": name_kept,
                "augmentation": "random crops and flips, nothing resized"
                + (", JPEG 70 to 98 and half size" if settings.robust else ""),
                "crop": settings.crop,
                "epochs": settings.epochs,
                "train": len(splits["train"]),
                "hardware": hardware(),
            },
            **measure(kept, splits["test"]),
        }
        report["changes"] = {
            name: {
                change: _three(probabilities(d, splits["test"], how), splits["test"])
                for change, how in CHANGES.items()
            }
            for name, d in twins.items()
        }
        report["unseen_victim"] = {}
        for victim in victims if settings.leave_one_out and len(victims) > 1 else []:
            other = trainer.train(f"without-{victim}", robust=settings.robust, without=victim)
            test = splits["test"].filter(_of(victim))
            report["unseen_victim"][victim] = measure(other, test)
    save_detector(kept, layout.detector, {"data": manifest.content_sha256})
    (layout.detector / ONNX).unlink(missing_ok=True)
    report["onnx"] = None
    if settings.onnx:
        try:
            report["onnx"] = {"parity": export_onnx(kept, layout.detector / ONNX)}
        except InputError as error:  # the extra is not installed
            report["onnx"] = {"missing": str(error)}
    report = without_nan(report)  # a group may be empty
    write_json(layout.reports / "detector.json", report)
    return report


def measure(detector: Detector, data: LabelledPictures) -> dict[str, Any]:
    """Overall, and per victim, mode and PSNR bin against all photographs of the split.

    Args:
        detector: The detector.
        data: Photographs and examples of one split.

    Returns:
        Rows under `overall`, `mode`, `victim`, `victim_mode` and `psnr`.
    """
    p = probabilities(detector, data)
    examples = [picture for picture in data.pictures if picture.adversarial]
    modes = sorted({str(picture.mode) for picture in examples})
    victims = sorted({str(picture.victim) for picture in examples})
    bins = list(itertools.pairwise(PSNR_BINS))
    return {
        "overall": _three(p, data),
        "mode": {m: _three(p, data, _is(mode=m)) for m in modes},
        "victim": {v: _three(p, data, _is(victim=v)) for v in victims},
        "victim_mode": {
            f"{v} {m}": _three(p, data, _is(victim=v, mode=m)) for v in victims for m in modes
        },
        "psnr": {
            f"{low:g} to {high:g} dB": _three(p, data, _between(low, high)) for low, high in bins
        },
    }


def _is(**wanted: str) -> Callable[[Picture], bool]:
    return lambda picture: all(getattr(picture, k) == v for k, v in wanted.items())


def _of(victim: str) -> Callable[[Picture], bool]:
    return lambda picture: picture.victim in (None, victim)


def _not_of(victim: str | None) -> Callable[[Picture], bool]:
    return lambda picture: picture.victim is None or picture.victim != victim


def _between(low: float, high: float) -> Callable[[Picture], bool]:
    return lambda picture: picture.psnr is not None and low <= picture.psnr < high


def _three(
    p: np.ndarray, data: LabelledPictures, include: Callable[[Picture], bool] | None = None
) -> dict[str, float]:
    """Accuracy, AUC, TPR at 1 % FPR of the included examples against all photographs."""
    chosen = [
        i
        for i, picture in enumerate(data.pictures)
        if not picture.adversarial or include is None or include(picture)
    ]
    truth: Sequence[bool] = [data.adversarial[i] for i in chosen]
    return {
        "n": sum(truth),
        "accuracy": accuracy(p[chosen], truth),
        "auc": auc(p[chosen], truth),
        "tpr_at_1_fpr": tpr_at_fpr(p[chosen], truth),
    }
