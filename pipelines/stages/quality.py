"""A trained quality model, for the stages `search_trigger` and `backdoor`."""

import json

from pipelines.execution.devices import device, epoch_reporter
from pipelines.params import QualityParams
from pipelines.readers.pictures import Originals
from pipelines.readers.poisoned import build_quality
from pipelines.storage.checkpoints import TrainingFolder
from pipelines.storage.files import atomic_file
from pipelines.storage.manifest import ScaleInfo
from victims.quality import QualityModel
from victims.registry import load_victim, save_victim
from victims.regression import phases_of, train_regressor

ROWS = "rows.json"


def trained_quality(
    work: TrainingFolder,
    settings: QualityParams,
    name: str,
    scale: ScaleInfo,
    train: Originals,
    validation: Originals | None = None,
    *,
    seed: int,
    what: str,
) -> tuple[QualityModel, list[dict[str, float]]]:
    """A quality model: as stored in the work folder where finished, else trained or resumed.

    Args:
        work: Work folder of the training.
        settings: Parameters of the quality model.
        name: Name of the model.
        scale: Scale and terms of the scores.
        train: Pictures that it learns from.
        validation: Pictures that choose the epoch; None keeps the last one.
        seed: What weights and batches are drawn from.
        what: Name of the training in progress lines.

    Returns:
        The model and a row per epoch.
    """
    rows = work.path / ROWS
    if rows.exists():
        loaded = load_victim(work.model, device())
        assert isinstance(loaded, QualityModel)
        return loaded, json.loads(rows.read_text())
    model = build_quality(settings, name, scale, seed).to(device())
    phases = phases_of(settings.model["kind"], settings.phases)
    columns = ("loss",) if validation is None else ("loss", "srocc", "rmse")
    history = train_regressor(
        model,
        train,
        train.mos,
        validation=None if validation is None else (validation, validation.mos),
        phases=phases,
        batch_size=settings.batch_size,
        seed=seed,
        report=epoch_reporter(what, sum(phase.epochs for phase in phases), columns),
        resume=work.checkpoint(),
        save=work.save,
    )
    # JSON has no NaN: the loss of epoch 0, a correlation of constant scores.
    history = [{k: v if v == v else -1.0 for k, v in row.items()} for row in history]
    save_victim(model, work.model)
    with atomic_file(rows) as file:
        file.write(json.dumps(history).encode())
    work.done()
    return model, history
