"""What the stages on poisoned sets share: the poisoned subset, trigger files, quality models."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from attackers.backdoor.poisoning import choose_poisoned
from attackers.backdoor.registry import load_trigger
from attackers.backdoor.trigger import Injector, trigger_sha256
from pipelines.errors import InputError
from pipelines.params import Params, QualityParams
from pipelines.storage.manifest import ScaleInfo, sample_seed
from pipelines.storage.shards import ShardIndex
from victims.quality import QualityModel
from victims.registry import build_victim

TRIGGER = "trigger.safetensors"


def poisoned_keys(params: Params, keys: Iterable[str]) -> tuple[str, ...]:
    """The training photographs that are poisoned, in the order of their draw.

    Args:
        params: The parameters; `poison.ratio` and `seed` decide the draw.
        keys: Keys of all training photographs, in any order.

    Returns:
        The chosen keys, at least one.

    Raises:
        InputError: Where the parameters have no section `poison`.
        ValueError: For no keys.
    """
    every = sorted(keys)
    ratio = params.section("poison").ratio
    return choose_poisoned(every, ratio, lambda key: sample_seed(params.seed, "poison", key))


def training_keys(clean: Path) -> list[str]:
    """Keys of the training photographs.

    Args:
        clean: Folder of the photographs.

    Returns:
        The keys, sorted.
    """
    return sorted(ShardIndex(clean, ["train"]).records)


def open_trigger(path: Path) -> tuple[Injector, dict[str, Any], str]:
    """Read a trigger file.

    Args:
        path: The file, or a folder with the file TRIGGER.

    Returns:
        The trigger, how it was made, and the SHA-256 of the file.

    Raises:
        InputError: Where there is no trigger.
    """
    path = path / TRIGGER if path.is_dir() else path
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(
            f"trigger must be a readable file, got {path} ({error.strerror}): run "
            "`veneer search_trigger` first"
        ) from None
    try:
        injector, about = load_trigger(data)
    except ValueError as error:
        raise InputError(f"{path}: {error}") from None
    return injector, about, trigger_sha256(data)


def build_quality(settings: QualityParams, name: str, scale: ScaleInfo, seed: int) -> QualityModel:
    """An untrained quality model on the scale of the data.

    Args:
        settings: Section of the model; `model` holds its kind and the arguments of its class.
        name: Name of the model, for tables and folders.
        scale: Scale of the scores.
        seed: Seed of the random weights.

    Returns:
        The model.

    Raises:
        InputError: Where the kind is a victim that is no quality model.
        ValueError: For an unknown kind or argument, or a missing one.
    """
    config = {"scale": {"low": scale.low, "high": scale.high}, "name": name, **settings.model}
    model = build_victim(config, seed=seed)
    if not isinstance(model, QualityModel):
        raise InputError(
            f"quality.{name}.model.kind must be one of hyperiqa, dbcnn, tres, "
            f"got {settings.model.get('kind')!r}"
        )
    return model
