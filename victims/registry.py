"""Victims built from their descriptions, and the folders they are kept in."""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from victims.base import ScoreScale, TorchVictim, stored_state
from victims.checks import check_path, check_whole_number, shown
from victims.kinds import victim_class

WEIGHTS, CONFIG = "model.safetensors", "config.json"
CODE = "code"  # entry of the config: the version of the source of the kind


def build_victim(config: Mapping[str, Any], seed: int = 0) -> TorchVictim:
    """Build a victim from its description; random weights come from the seed alone.

    Args:
        config: "kind" (a key of victims.kinds.VICTIMS), "scale" (a ScoreScale, or a mapping with
            low, high and, if it is not 0.55 of the range, threshold), and the arguments of the
            class of that kind.
        seed: Of the random weights.

    Raises:
        ValueError: For an unknown kind or argument, or a missing one.
    """
    arguments = dict(config)
    kind, scale = arguments.pop("kind", None), arguments.pop("scale", None)
    build = victim_class(kind)
    signature = inspect.signature(build)
    scale = _scale(scale)
    try:
        signature.bind(scale, **arguments)
    except TypeError as error:
        known = ", ".join(name for name in signature.parameters if name != "scale")
        raise ValueError(
            f"config of a {kind} victim must have arguments among {known}, got: {error}"
        ) from None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build(scale, **arguments)


def save_victim(victim: TorchVictim, folder: Path | str, *, code: str | None = None) -> None:
    """Write model.safetensors and config.json, the same bytes for the same victim.

    The folder appears whole or not at all; one that exists is replaced.

    Args:
        victim: The model.
        folder: Where it goes.
        code: Version of the source of its kind, an entry of the config: what depends on the folder
            goes stale with that source, though the weights stay.
    """
    folder = Path(folder)
    scale = {
        "low": victim.scale.low,
        "high": victim.scale.high,
        "threshold": victim.scale.threshold,
    }
    about = victim.config() | {"scale": scale} | ({CODE: code} if code else {})
    config = json.dumps(about, indent=2, sort_keys=True) + "\n"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as scratch:
        new, old = Path(scratch, "new"), Path(scratch, "old")
        new.mkdir()
        for name, content in ((WEIGHTS, save(stored_state(victim))), (CONFIG, config.encode())):
            with (new / name).open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        if folder.exists():
            shutil.move(folder, old)
        new.rename(folder)


def load_victim(
    folder: Path | str, device: torch.device | str = "cpu", input_size: int | None = None
) -> TorchVictim:
    """Load a victim that `save_victim` wrote, ready for scoring and attacks.

    Args:
        folder: Where it lies.
        device: Where it goes.
        input_size: Pixels, in place of those of its config.

    Raises:
        ValueError: For a bad argument, if a file is missing or damaged, the weights do not match
            the config, or the victim has no input size to change.
    """
    folder = check_path("folder", folder)
    device = _device(device)
    config = _read_config(folder)
    config.pop(CODE, None)
    if input_size is not None:
        check_whole_number("input_size", input_size, 1)
        if "input_size" not in config:
            raise ValueError(
                f"victim must have an input size to change it to {input_size}, got {folder} "
                f"(kind {config.get('kind')})"
            )
        config["input_size"] = input_size
    if "pretrained" in config:
        config["pretrained"] = "none"  # The weights come from the folder.
    victim = build_victim(config)
    try:
        state = load_file(_file(folder, WEIGHTS))
    except SafetensorError as error:
        raise ValueError(
            f"weights must be a safetensors file, got {folder / WEIGHTS} ({error})"
        ) from None
    _check_state(state, victim.state_dict(), folder / WEIGHTS)
    victim.load_state_dict(state)
    victim.freeze()
    return victim.to(device)


def state_sha256(model: nn.Module) -> str:
    """SHA-256 over the weights of a model in memory.

    Args:
        model: Any module.

    Returns:
        The digest of its state as a safetensors file, 64 hexadecimal digits.
    """
    return hashlib.sha256(save(stored_state(model))).hexdigest()


def victim_sha256(folder: Path | str) -> str:
    """SHA-256 over the config and the weights of a saved victim.

    Args:
        folder: What `save_victim` wrote.

    Returns:
        The digest, 64 hexadecimal digits.

    Raises:
        ValueError: If a file is missing.
    """
    digest = hashlib.sha256()
    for name in (CONFIG, WEIGHTS):
        digest.update(hashlib.sha256(_file(Path(folder), name).read_bytes()).digest())
    return digest.hexdigest()


def _device(device: torch.device | str) -> torch.device:
    try:
        return torch.device(device)
    except (RuntimeError, TypeError):
        raise ValueError(f"device must be one of torch's, got {shown(device)}") from None


def _scale(scale: Any) -> ScoreScale:
    if isinstance(scale, ScoreScale):
        return scale
    if not isinstance(scale, Mapping) or not {"low", "high"} <= set(scale) <= {
        "low",
        "high",
        "threshold",
    }:
        raise ValueError(f"scale must have low, high and perhaps threshold, got {scale!r}")
    if "threshold" in scale:
        return ScoreScale(scale["low"], scale["high"], scale["threshold"])
    return ScoreScale.of(scale["low"], scale["high"])


def _file(folder: Path, name: str) -> Path:
    path = folder / name
    if not path.is_file():
        raise ValueError(f"victim folder must hold {WEIGHTS} and {CONFIG}, got none at {path}")
    return path


def _read_config(folder: Path) -> dict[str, Any]:
    path = _file(folder, CONFIG)
    try:
        config = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"config must be JSON, got {path} ({error})") from None
    if not isinstance(config, dict):
        raise ValueError(f"config must be a JSON object, got {path}")
    return config


def _check_state(state: Mapping[str, Tensor], expected: Mapping[str, Tensor], path: Path) -> None:
    for name in sorted(expected.keys() | state.keys()):
        got = tuple(state[name].shape) if name in state else "none"
        want = tuple(expected[name].shape) if name in expected else "none"
        if got != want:
            raise ValueError(
                f"weights must match the config, got {got} for {want} at {name!r} in {path}"
            )
