"""Folders of attackers."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import nn

from attackers.da3.adt import ADT, ADTConfig
from attackers.da3.attacker import DA3Attacker
from pipelines.errors import InputError, StageError
from pipelines.storage.checkpoints import CONFIG, HISTORY, WEIGHTS
from pipelines.storage.shards import atomic_file
from victims.base import stored_state


def save_model(
    model: ADT | DA3Attacker,
    folder: Path,
    about: Mapping[str, Any],
    history: Sequence[Mapping[str, float]],
) -> None:
    """Write weights, config (the ADT's shape, and `about`) and the rows of the training."""
    config = model.config if isinstance(model, ADT) else model.adt.config
    text = json.dumps({"adt": asdict(config), **about}, indent=2, sort_keys=True) + "\n"
    table = io.StringIO()
    rows = csv.DictWriter(table, list(history[0]) if history else [])
    rows.writeheader()
    rows.writerows(history)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, data in (
            (WEIGHTS, save(stored_state(model))),
            (HISTORY, table.getvalue().encode()),
            (CONFIG, text.encode()),
        ):
            with atomic_file(folder / name) as file:
                file.write(data)
    except OSError as error:
        raise StageError(f"model folder {folder} cannot be written ({error.strerror})") from error


def load_weights(model: nn.Module, folder: Path, made_by: str) -> dict[str, Any]:
    """Load weights that save_model wrote; returns the config. InputError where they do not fit."""
    try:
        config: dict[str, Any] = json.loads((folder / CONFIG).read_text())
        state = load_file(folder / WEIGHTS)
    except FileNotFoundError:
        raise InputError(
            f"{folder} must hold {WEIGHTS} and {CONFIG}: run `veneer {made_by}` first"
        ) from None
    except (SafetensorError, json.JSONDecodeError) as error:
        raise InputError(f"{folder} must hold whole model files, got {error}") from None
    try:
        model.load_state_dict(state)
    except RuntimeError:
        raise InputError(
            f"weights in {folder} must match the adt parameters, got those of {config.get('adt')}"
        ) from None
    return config


def load_attacker(folder: Path) -> DA3Attacker:
    """A trained attacker, ready to generate."""
    try:
        config = json.loads((folder / CONFIG).read_text())["adt"]
    except (OSError, KeyError, json.JSONDecodeError):
        raise InputError(f"{folder} must hold a trained attacker, got no {CONFIG} there") from None
    attacker = DA3Attacker(ADTConfig(**config))
    load_weights(attacker, folder, "attack")
    return attacker.eval().requires_grad_(False)
