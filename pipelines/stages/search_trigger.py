"""Stage `search_trigger`: a surrogate on the poisoned subset, then UAP-DCT; or a baseline."""

from typing import Any

import torch

from attackers.backdoor.metrics import score_changes
from attackers.backdoor.registry import build_baseline
from attackers.backdoor.trigger import Injector, trigger_bytes, trigger_sha256
from attackers.backdoor.uap import search_trigger
from pipelines.execution.devices import device, torch_threads
from pipelines.params import Params
from pipelines.readers.pictures import shard_pictures
from pipelines.readers.poisoned import (
    TRIGGER,
    build_quality,
    poisoned_keys,
    training_keys,
)
from pipelines.readers.stream import PictureStream
from pipelines.storage.checkpoints import TrainingFolder
from pipelines.storage.code import code_of, code_version
from pipelines.storage.files import write_bytes, write_csv, write_json
from pipelines.storage.layout import Layout
from pipelines.storage.manifest import Manifest, fingerprint, read_manifest, sample_generator
from victims.kinds import victim_module
from victims.quality import QualityModel
from victims.registry import save_victim, state_sha256, victim_sha256
from victims.regression import phases_of, train_regressor

STAGE = "search_trigger"
SURROGATE = "surrogate"
EFFECT_IMAGES, EFFECT_CROPS = 64, 5  # validation pictures and crops that the effect is stated on


def run_search_trigger(params: Params, layout: Layout) -> dict[str, Any]:
    """Find the trigger on the poisoned subset D_s of the training photographs.

    The surrogate is trained on D_s alone and then left as it is. Writes models/trigger (the
    trigger, the surrogate, the rows of the search), reports/trigger.json, and trigger.csv for the
    plots.

    Args:
        params: All parameters.
        layout: Folders of the project.

    Returns:
        The report.

    Raises:
        InputError: There is no clean data set.
    """
    settings = params.section("trigger")
    clean = read_manifest(layout.clean, "import")
    keys = poisoned_keys(params, training_keys(layout.clean))
    pictures = PictureStream(
        layout.clean,
        ["train"],
        columns=["mos"],
        keys=keys,
        num_workers=params.engine.loader_workers,
    )
    with torch_threads(params.engine.threads):
        surrogate, trained = _surrogate(params, layout, clean, pictures)
        trigger, history = _trigger(params, layout, clean, pictures, surrogate)
        effect = _effect(params, layout, surrogate, trigger)
    about = {"seed": params.seed, "search": settings.model_dump(), "poisoned": len(keys)}
    data = trigger_bytes(trigger, about)
    folder = layout.trigger
    save_victim(surrogate.cpu(), layout.surrogate, code=code_of(surrogate))
    report = {
        "kind": settings.kind,
        "trigger_sha256": trigger_sha256(data),
        "surrogate_sha256": victim_sha256(layout.surrogate),
        "images": len(keys),
        "surrogate": {k: v for k, v in trained[-1].items() if k in ("epoch", "loss")},
        **effect,
        "label_source": clean.scale.label_source,
        "seed": params.seed,
    }
    write_bytes(folder / TRIGGER, data)
    write_csv(folder / "surrogate.csv", trained)
    # A baseline has no search: its table has a head and no rows.
    columns = None if history else ("epoch", "loss", "effect", "psnr")
    write_csv(layout.reports / "trigger.csv", history, columns)
    write_json(layout.reports / "trigger.json", report)
    return report


def _surrogate(
    params: Params, layout: Layout, clean: Manifest, pictures: PictureStream
) -> tuple[QualityModel, list[dict[str, float]]]:
    """The trained surrogate, and a row per epoch of its training."""
    name = params.section("trigger").surrogate
    settings = params.quality_model(name)
    mark = fingerprint(
        quality=settings.model_dump(),
        ratio=params.section("poison").ratio,
        seed=params.seed,
        threads=params.engine.threads,
        clean=clean.content_sha256,
        code=code_version(__name__, victim_module(settings.model.get("kind"))),
    )
    work = TrainingFolder(layout.work, STAGE, SURROGATE, mark)
    model = build_quality(settings, SURROGATE, clean.scale, params.seed).to(device())
    phases = phases_of(settings.model["kind"], settings.phases)
    history = train_regressor(
        model,
        pictures,
        pictures.rows["mos"].to_pylist(),
        phases=phases,
        batch_size=settings.batch_size,
        seed=params.seed,
        **work.hooks(SURROGATE, sum(phase.epochs for phase in phases)),
    )
    return model, history[1:]


def _trigger(
    params: Params,
    layout: Layout,
    clean: Manifest,
    pictures: PictureStream,
    surrogate: QualityModel,
) -> tuple[Injector, list[dict[str, float]]]:
    """The trigger, and a row per epoch of its search."""
    settings = params.section("trigger")
    if settings.kind != "uap":
        return build_baseline(settings.kind, **settings.settings), []
    mark = fingerprint(
        trigger=settings.model_dump(),
        surrogate=state_sha256(surrogate),
        images=pictures.keys,
        clean=clean.content_sha256,
        seed=params.seed,
        threads=params.engine.threads,
        code=[code_version(__name__), code_of(surrogate)],
    )
    work = TrainingFolder(layout.work, STAGE, "trigger", mark)
    return search_trigger(
        surrogate,
        pictures,
        band=settings.band,
        origin=settings.origin,
        eps=settings.eps / 255,
        lam=settings.lam,
        project=settings.project,
        effect=settings.effect,
        epochs=settings.epochs,
        lr=settings.lr,
        batch_size=settings.batch_size,
        seed=params.seed,
        **work.hooks("search_trigger", settings.epochs, ("loss", "effect", "psnr")),
    )


def _effect(
    params: Params, layout: Layout, surrogate: QualityModel, trigger: Injector
) -> dict[str, float]:
    """Mean change of the surrogate's score in % of the scale, on photographs it never saw."""
    pictures = shard_pictures(layout.clean, ["validation"])
    count = min(EFFECT_IMAGES, len(pictures))
    generators = [
        sample_generator(params.seed, STAGE, record["key"]) for record in pictures.records[:count]
    ]
    seen = score_changes(
        surrogate, trigger, pictures[:count], generators, crops=EFFECT_CROPS, alphas=(-1.0, 1.0)
    )
    means = {alpha: float(torch.tensor(rows).mean()) for alpha, rows in seen.changes.items()}
    share = 100 / surrogate.scale.range
    return {"raised": share * means[1.0], "lowered": share * means[-1.0], "psnr": seen.psnr}
