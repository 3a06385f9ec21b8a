"""Stage `finetune@victim`: a victim learns from 3AE; old and new attacks are measured on it."""

import copy
import hashlib
import importlib
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

from attackers.metrics import basr, msi, rasr
from defenders.detector import compress
from defenders.finetuning import Scored, blend, finetune, scores_of
from pipelines.errors import InputError
from pipelines.execution.devices import device, hardware, torch_threads
from pipelines.params import Params
from pipelines.readers.pictures import loaded_pictures
from pipelines.readers.rows import ImageRow, open_dataset
from pipelines.readers.threeae import Picture, read_3ae
from pipelines.stages.attack import run_attack
from pipelines.stages.evaluate import read_history, robustness
from pipelines.storage.checkpoints import HISTORY, WEIGHTS, TrainingFolder
from pipelines.storage.code import code_of, code_version
from pipelines.storage.files import without_nan, write_bytes, write_json
from pipelines.storage.images import decode_image, planes
from pipelines.storage.layout import Layout, trained_victim
from pipelines.storage.manifest import fingerprint, read_manifest
from pipelines.storage.records import SPLITS
from victims.base import ScoreScale, squash, stored_state
from victims.metrics import agreement
from victims.registry import load_victim, save_victim, state_sha256

# Quality of the files in which the old examples are tried too: a platform stores what it gets so.
JPEG = 95
# Shares of the fine-tuned weights at which validation is looked at, to choose finetune.blend by.
SHARES = (0.5, 0.6, 0.7, 0.8, 0.9, 1.0)

Pairs = tuple[Sequence[Tensor], Sequence[Tensor]]  # photographs, and an example of each


def run_finetune(
    params: Params, layout: Layout, name: str, *, data: str | None = None
) -> dict[str, Any]:
    """Fine-tune a victim; write models/finetuned/<name> and reports/finetune/<name>.json.

    The photographs of the clean training set and the examples of 3AE train, with the scores of the
    re-annotation; validation chooses the epoch. Reported on the clean test photographs of which 3AE
    showed none in train or validation, and on its test examples made against this victim (all of
    them where there are none).

    Args:
        params: All parameters.
        layout: Folders of the project.
        name: Name of the victim under `victims`.
        data: A 3AE data set: a folder below the project's, or what `read_3ae` opens; None takes
            datasets/3ae.

    Returns:
        The report.

    Raises:
        InputError: The victim or a data set is missing, or `finetune.size` does not fit the victim.
    """
    settings = params.finetune
    place = layout.threeae if data is None else layout.root / data
    if place == layout.threeae:
        read_manifest(layout.threeae, "package")
    folder = trained_victim(layout, name)
    victim, original = load_victim(folder, device()), None
    if settings.size is not None:
        try:
            original, victim = victim, load_victim(folder, device(), settings.size)
        except ValueError as error:
            raise InputError(f"finetune.size: {error}") from None
    size = getattr(victim, "input_size", 224)
    examples = read_3ae(str(place) if place.exists() or not data else data, str(layout.clean))
    with torch_threads(params.engine.threads):
        unseen = _unseen(layout.clean, examples)
        clean = {
            split: _clean_images(layout.clean, split, size, unseen if split == "test" else None)
            for split in SPLITS
        }
        work = layout.work / "finetune" / name
        originals = loaded_pictures(open_dataset(str(layout.clean), split="train").rows)
        report = _harden(
            victim, victim.scale, clean, originals, examples, size, params, name, work, original
        )
        save_victim(victim, layout.finetuned(name), code=code_of(victim))
        report["new_attacker"] = {}
        for mode in settings.retrain:
            report["new_attacker"][mode] = _attack_again(params, layout, name, mode, unseen)
    report |= {"victim": name, "seed": params.seed, "hardware": hardware()}
    write_json(layout.reports / "finetune" / f"{name}.json", report)
    shutil.rmtree(work)
    return report


def finetune_model(
    spec: str, data: str, out: Path, scale: ScoreScale, params: Params, clean: str | None, size: int
) -> dict[str, Any]:
    """Fine-tune a user's torch module on a 3AE data set; write its state.

    A new attacker is not trained: it needs a victim of the registry.

    Args:
        spec: `module:callable`, which returns a module from RGB (N,3,H,W) in [0,1] to (N,) scores
            on `scale`.
        data: The 3AE data set.
        out: Folder of the weights and report.json.
        scale: Scale of the scores.
        params: All parameters.
        clean: The data set of the photographs, see `read_3ae`.
        size: Side of the square input of the module, pixels.

    Returns:
        The report.

    Raises:
        InputError: `spec` gives no such module, or 3AE lacks examples in train or test.
    """
    model = _load_callable(spec).to(device())
    pictures = read_3ae(data, clean)
    photographs = {
        split: _images([p for p in pictures if p.split == split and not p.adversarial], size)
        for split in SPLITS
    }
    with torch_threads(params.engine.threads):
        work = out / ".work"
        originals = loaded_pictures(
            [p for p in pictures if p.split == "train" and not p.adversarial]
        )
        report = _harden(model, scale, photographs, originals, pictures, size, params, spec, work)
    write_bytes(out / WEIGHTS, save(stored_state(model)))
    report |= {"victim": spec, "data": data, "new_attacker": {}, "hardware": hardware()}
    write_json(out / "report.json", report)
    shutil.rmtree(work)
    return report


def _harden(
    model: nn.Module,
    scale: ScoreScale,
    clean: dict[str, Scored],
    originals: Sequence[Tensor],
    examples: Sequence[Picture],
    size: int,
    params: Params,
    name: str,
    work: Path,
    original: nn.Module | None = None,
) -> dict[str, Any]:
    """Fine-tune in place and compare.

    original: the model at the size that it was trained for, where `model` sees another one.
    """
    adversarial_pictures = [p for p in examples if p.adversarial]
    parts = {s: [p for p in adversarial_pictures if p.split == s] for s in SPLITS}
    if not parts["train"] or not parts["test"]:
        raise InputError(
            f"3AE must hold examples in train and test, got {len(parts['train'])} and "
            f"{len(parts['test'])}"
        )
    of_victim = {s: [p for p in parts[s] if p.victim == name] or parts[s] for s in SPLITS}
    photographs = {p.parent: p for p in examples if not p.adversarial}

    def pairs(split: str, jpeg: int | None = None) -> Pairs:
        parents = [photographs[p.parent] for p in of_victim[split]]
        return _seen(parents, size, jpeg), _seen(of_victim[split], size, jpeg)

    old = {"old": pairs("test"), "old_jpeg": pairs("test", JPEG)}
    validation = pairs("validation")
    before = {"before": _measure(original or model, scale, clean["test"], old)}
    if getattr(original, "input_size", size) != size:
        before["resized"] = _measure(model, scale, clean["test"], old)
    adversarial = {s: _images(parts[s], size) for s in ("train", "validation") if parts[s]}
    initial = copy.deepcopy(model.state_dict())
    history = _train(
        model, scale, clean, adversarial, originals, size, params, name, work, original
    )
    along = _along(model, initial, scale, clean["validation"], validation) if validation[1] else []
    blend(model, initial, params.finetune.blend)
    return {
        "n_train": {"clean": len(clean["train"][0]), "adversarial": len(parts["train"])},
        "n_test": len(clean["test"][0]),
        "n_old": len(of_victim["test"]),
        "examples_of_this_victim": any(p.victim == name for p in parts["test"]),
        "size": size,
        "jpeg_quality": JPEG,
        "soup": params.finetune.soup,
        "blend": params.finetune.blend,
        "validation": along,
        **before,
        "after": _measure(model, scale, clean["test"], old),
        "history": without_nan(history),
    }


def _train(
    model: nn.Module,
    scale: ScoreScale,
    clean: Mapping[str, Scored],
    adversarial: Mapping[str, Scored],
    originals: Sequence[Tensor],
    size: int,
    params: Params,
    name: str,
    work: Path,
    original: nn.Module | None,
) -> list[dict[str, float]]:
    """Fine-tune in place, from the checkpoints in `work` where some are of these very arguments.

    One run per seed, all from the model as it came; what stays is the mean of their weights.
    """
    settings, initial = params.finetune, copy.deepcopy(model.state_dict())
    recipe = settings.model_dump(
        include={"epochs", "batch_size", "lr", "clean_share", "distillation_weight"}
    )
    validation = adversarial.get("validation")
    data = (clean["train"], adversarial["train"], clean["validation"], validation)
    about = {
        "recipe": recipe,
        "threads": params.engine.threads,
        "size": (getattr(original, "input_size", size), size),
        "model": state_sha256(model),
        "data": [_digest(part) for part in data if part],
        "code": [code_version(__name__), code_of(model)],
    }
    history: list[dict[str, float]] = []
    mean = initial
    for run in range(settings.soup):
        seed = params.seed + run
        mark = fingerprint(**about, seed=seed)
        training = TrainingFolder(work.parent, work.name, "training", mark)
        description = f"finetune {name}" + (f", seed {seed}" if settings.soup > 1 else "")
        model.load_state_dict(initial)
        rows = finetune(
            model,
            scale,
            clean["train"],
            adversarial["train"],
            clean["validation"],
            validation_adversarial=validation,
            photographs=originals,
            teacher=original,
            **recipe,
            seed=seed,
            **training.hooks(
                description, settings.epochs, ("loss", "srocc", "rmse", "rmse_adversarial")
            ),
        )
        history += [{"seed": float(seed), **row} for row in rows]
        blend(model, mean, 1 / (run + 1))
        mean = copy.deepcopy(model.state_dict())
    return history


def _along(
    model: nn.Module,
    initial: Mapping[str, Tensor],
    scale: ScoreScale,
    clean: Scored,
    old: Pairs,
) -> list[dict[str, Any]]:
    """SROCC and RASR on validation for each share of the fine-tuned weights; model stays."""
    tuned = copy.deepcopy(model.state_dict())
    rows = []
    for share in SHARES:
        blend(model, initial, share)
        found = _measure(model, scale, clean, {"old": old})
        model.load_state_dict(tuned)
        rows.append(
            {"blend": share, "srocc": found["clean"]["srocc"], "rasr": found["old"]["rasr"]}
        )
    return rows


def _measure(
    model: nn.Module,
    scale: ScoreScale,
    test: Scored,
    old: Mapping[str, Pairs],
) -> dict[str, Any]:
    """Agreement on test, and for each of `old` (photographs, examples) how far it is fooled."""
    clean = scores_of(model, test[0])
    row: dict[str, Any] = {"clean": agreement(clean, test[1], scale)}
    for name, (photographs, examples) in old.items():
        x, y = scores_of(model, photographs), scores_of(model, examples)
        row[name] = {"basr": basr(x, y, scale.threshold), "rasr": rasr(x, y), "msi": msi(x, y)}
    finite: dict[str, Any] = without_nan(row)
    return finite


def _attack_again(
    params: Params, layout: Layout, name: str, mode: Any, unseen: set[str]
) -> dict[str, Any]:
    """Train a new DA3Attacker against the fine-tuned victim and measure it."""
    folders = layout.attack_on_finetuned(name, mode)
    # `unseen` are photographs of test, whatever the protocol and the limit of the old examples.
    same = {"photographs": "report", "protocol": "split", "limit": None}
    settings = params.attack.model_copy(update=same)
    run_attack(params.model_copy(update={"attack": settings}), layout, name, mode, folders=folders)
    victim = load_victim(folders.victim, device())
    history = read_history(folders.attacker / HISTORY)
    filters = [("parent_key", "in", sorted(unseen))]
    row = robustness(folders.examples, victim, history, params.evaluate.by, filters)
    shutil.rmtree(folders.examples, ignore_errors=True)
    return {k: v for k, v in row.items() if k != "filters"}


def _unseen(folder: Path, examples: Sequence[Picture]) -> set[str]:
    """Keys of the clean test images of which 3AE shows no photograph in train or validation."""
    rows = open_dataset(str(folder)).rows
    shown = {str(r.fields["key"]): r.fields.get("photograph") or r.fields["key"] for r in rows}
    seen = {shown[p.parent] for p in examples if p.split != "test" and p.parent in shown}
    unseen = {
        str(r.fields["key"])
        for r in rows
        if r.split == "test" and shown[str(r.fields["key"])] not in seen
    }
    if not unseen:
        raise InputError(
            "the clean test split must hold photographs that 3AE does not train on, got none: set "
            "attack.photographs: all and curate.splits: null"
        )
    return unseen


def _clean_images(folder: Path, split: str, size: int, only: set[str] | None = None) -> Scored:
    rows = open_dataset(str(folder), split=split).rows
    if only is not None:
        rows = [row for row in rows if row.fields["key"] in only]
    return _seen(rows, size), [float(row.score or 0.0) for row in rows]


def _images(pictures: Sequence[Picture], size: int) -> Scored:
    return _seen(pictures, size), [p.mos for p in pictures]


def _seen(
    pictures: Sequence[Picture | ImageRow], size: int, jpeg: int | None = None
) -> list[Tensor]:
    """What a model of that input size sees; jpeg: of files stored at that quality, where given."""
    seen = []
    for picture in pictures:
        image = planes(decode_image(picture.load()))
        stored = image if jpeg is None else compress(image, jpeg)
        seen.append(squash(stored.float() / 255, size))
    return seen


def _load_callable(spec: str) -> nn.Module:
    module, _, name = spec.partition(":")
    try:
        model = getattr(importlib.import_module(module), name)()
    except (ImportError, AttributeError) as error:
        raise InputError(f"victim must be module:callable, got {spec!r} ({error})") from None
    if not isinstance(model, nn.Module) or not any(True for _ in model.parameters()):
        raise InputError(f"victim must be a torch module with parameters, got {type(model)}")
    with torch.no_grad():
        scores = model.eval()(torch.rand(2, 3, 224, 224))
    if not isinstance(scores, Tensor) or scores.shape != (2,):
        raise InputError(
            f"victim must give one score per image, got {getattr(scores, 'shape', type(scores))}"
        )
    return model


def _digest(scored: Scored) -> str:
    """SHA-256 of pictures and scores, in their order."""
    digest = hashlib.sha256()
    for image, mos in zip(*scored, strict=True):
        digest.update(image.numpy().tobytes() + repr(mos).encode())
    return digest.hexdigest()
