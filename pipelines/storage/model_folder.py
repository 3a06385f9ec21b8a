"""Folders of attackers."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import nn

from attackers.da3.adt import ADT, ADTConfig
from attackers.da3.attacker import DA3Attacker
from pipelines.errors import InputError, StageError
from pipelines.storage.checkpoints import CONFIG, HISTORY, WEIGHTS, read_model
from pipelines.storage.files import write_bytes, write_csv, write_json
from victims.base import stored_state


def save_model(
    model: ADT | DA3Attacker,
    folder: Path,
    about: Mapping[str, Any],
    history: Sequence[Mapping[str, float]],
) -> None:
    """Write weights, config and training history of a model.

    Args:
        model: An attacker, or its latent spaces alone.
        folder: Where the files go.
        about: What config.json says beside the ADT's shape.
        history: Rows of the training.

    Raises:
        StageError: The disk is full or refuses.
    """
    config = model.config if isinstance(model, ADT) else model.adt.config
    try:
        write_bytes(folder / WEIGHTS, save(stored_state(model)))
        write_csv(folder / HISTORY, history)
        write_json(folder / CONFIG, {"adt": asdict(config), **about}, sort_keys=True)
    except OSError as error:
        raise StageError(f"model folder {folder} cannot be written ({error.strerror})") from error


def load_weights(model: nn.Module, folder: Path, command: str) -> dict[str, Any]:
    """Load weights that save_model wrote.

    Args:
        model: What they are loaded into.
        folder: The model's folder.
        command: The `veneer` command that makes it, for the message.

    Returns:
        The config.

    Raises:
        InputError: Files are missing, damaged or do not fit the model.
    """
    config: dict[str, Any]
    config, state = read_model(folder, command)
    try:
        model.load_state_dict(state)
    except RuntimeError:
        raise InputError(
            f"weights in {folder} must match the adt parameters, got those of {config.get('adt')}"
        ) from None
    return config


def load_attacker(folder: Path) -> DA3Attacker:
    """A trained attacker, ready to generate: in evaluation mode, without gradients of its weights.

    Args:
        folder: Folder of the attacker.

    Raises:
        InputError: The folder holds no trained attacker, or its files are damaged.
    """
    try:
        config = json.loads((folder / CONFIG).read_text())["adt"]
    except (OSError, KeyError, json.JSONDecodeError):
        raise InputError(f"{folder} must hold a trained attacker, got no {CONFIG} there") from None
    attacker = DA3Attacker(ADTConfig(**config))
    load_weights(attacker, folder, "attack")
    return attacker.eval().requires_grad_(False)
