"""Work folders of trainings: checkpoints that survive a kill."""

import contextlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from pipelines.errors import InputError, StageError
from pipelines.execution.progress import epoch_reporter
from pipelines.storage.files import atomic_file, sweep
from victims.loop import Hooks

WEIGHTS, CONFIG, HISTORY = "model.safetensors", "config.json", "history.csv"


class TrainingFolder:
    """Work folder of one training: `{root}/{stage}/{artefact}-{fingerprint}/`.

    Holds the checkpoint of the last whole epoch, then the finished model in `model/`.

    Args:
        root: Folder of unfinished work.
        stage: Name of the stage.
        artefact: What is trained, such as "nima-restricted".
        fingerprint: Hex digest of all that the result depends on; 16 digits are used.

    Raises:
        InputError: The folder cannot be made.
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

    def hooks(self, description: str, epochs: int, columns: Sequence[str] = ("loss",)) -> Hooks:
        """What a training needs to go on from here, to be kept here and to be seen.

        Args:
            description: What is trained, for the line that each epoch prints.
            epochs: Number of epochs.
            columns: Metrics in that line.

        Returns:
            Keyword arguments of the training.
        """
        report = epoch_reporter(description, epochs, columns)
        return {"resume": self.checkpoint(), "save": self.save, "report": report}

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
        """Replace the checkpoint, whole or not at all.

        Args:
            state: What `torch.load` reads with `weights_only`: tensors, numbers, text, containers.

        Raises:
            StageError: The disk is full or refuses; the last whole checkpoint stays.
        """
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
        """Copy the model to `out`; drop the checkpoint and the folders of other fingerprints.

        Args:
            out: Folder of the published model.

        Raises:
            StageError: `out` cannot be written.
        """
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


def read_model(folder: Path, command: str) -> tuple[Any, dict[str, torch.Tensor]]:
    """Read config and weights of a model folder.

    Args:
        folder: The model's folder.
        command: The `veneer` command that makes it, for the message.

    Returns:
        The content of config.json, and the weights by name.

    Raises:
        InputError: Files are missing or damaged.
    """
    try:
        return json.loads((folder / CONFIG).read_text()), load_file(folder / WEIGHTS)
    except FileNotFoundError:
        raise InputError(
            f"{folder} must hold {WEIGHTS} and {CONFIG}: run `veneer {command}` first"
        ) from None
    except (SafetensorError, json.JSONDecodeError) as error:
        raise InputError(f"{folder} must hold whole model files, got {error}") from None
