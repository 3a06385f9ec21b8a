"""Folders of attackers, and checkpoints of trainings that survive a kill."""

import contextlib
import csv
import io
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import nn

from attackers.adt import ADT, ADTConfig
from attackers.da3 import DA3Attacker
from pipelines.errors import InputError, StageError
from pipelines.shards import atomic_file, sweep

WEIGHTS, CONFIG, HISTORY = "model.safetensors", "config.json", "history.csv"


def save_model(
    model: ADT | DA3Attacker,
    folder: Path,
    about: Mapping[str, Any],
    history: Sequence[Mapping[str, float]],
) -> None:
    """Write weights, config (the ADT's shape, and `about`) and the rows of the training."""
    config = model.config if isinstance(model, ADT) else model.adt.config
    state = {name: tensor.cpu().contiguous() for name, tensor in model.state_dict().items()}
    text = json.dumps({"adt": asdict(config), **about}, indent=2, sort_keys=True) + "\n"
    table = io.StringIO()
    rows = csv.DictWriter(table, list(history[0]) if history else [])
    rows.writeheader()
    rows.writerows(history)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, data in (
            (WEIGHTS, save(state)),
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


class TrainingFolder:
    """Work folder of one training: `{root}/{stage}/{artefact}-{fingerprint}/`.

    Holds the checkpoint of the last whole epoch, then the finished model in `model/`.
    """

    def __init__(self, root: Path, stage: str, artefact: str, fingerprint: str) -> None:
        self.path = root / stage / f"{artefact}-{fingerprint[:16]}"
        self._siblings = f"{artefact}-{'?' * 16}"
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(
                f"work folder must be a folder that can be written, got {root} ({error.strerror})"
            ) from None
        sweep(self.path)

    @property
    def model(self) -> Path:
        """Where the finished model lies."""
        return self.path / "model"

    @property
    def finished(self) -> bool:
        """Whether the training is done: the config is written last."""
        return (self.model / CONFIG).exists()

    def checkpoint(self) -> dict[str, Any] | None:
        """What `save` wrote last, None at the start."""
        with contextlib.suppress(FileNotFoundError):
            # On the CPU: what loads it moves it, and states of random numbers stay there.
            state: dict[str, Any] = torch.load(
                self.path / "checkpoint.pt", map_location="cpu", weights_only=True
            )
            return state
        return None

    def save(self, state: dict[str, Any]) -> None:
        """Replace the checkpoint, whole or not at all."""
        try:
            with atomic_file(self.path / "checkpoint.pt") as file:
                torch.save(state, file)
        except OSError as error:
            raise StageError(
                f"checkpoint cannot be written in {self.path} ({error.strerror}): the last whole "
                "one is kept, and running the same command again goes on from there"
            ) from error

    def done(self) -> None:
        """Drop the checkpoint: what was trained is stored."""
        (self.path / "checkpoint.pt").unlink(missing_ok=True)

    def publish(self, out: Path) -> None:
        """Copy the model to `out`; drop the checkpoint and the folders of other fingerprints."""
        try:
            out.mkdir(parents=True, exist_ok=True)
            for name in (WEIGHTS, HISTORY, CONFIG):
                temporary = out / f".{name}.tmp"
                shutil.copyfile(self.model / name, temporary)
                temporary.replace(out / name)
        except OSError as error:
            raise StageError(f"model folder {out} cannot be written ({error.strerror})") from error
        self.done()
        for other in self.path.parent.glob(self._siblings):
            if other != self.path:
                shutil.rmtree(other, ignore_errors=True)
