"""Random state in a checkpoint: a training that was killed goes on as if it had not been."""

from __future__ import annotations

import torch
from torch import Tensor


def random_state(
    generator: torch.Generator, device: torch.device | str = "cpu"
) -> dict[str, Tensor]:
    """States of all that draws: `generator`, and torch's own ones (dropout) on CPU and device."""
    states = {"own": generator.get_state(), "cpu": torch.get_rng_state()}
    if torch.device(device).type == "cuda":
        states["device"] = torch.cuda.get_rng_state(device)
    return states


def set_random_state(
    states: dict[str, Tensor], generator: torch.Generator, device: torch.device | str = "cpu"
) -> None:
    """Put back what `random_state` gave."""
    generator.set_state(states["own"])
    torch.set_rng_state(states["cpu"])
    if "device" in states:
        torch.cuda.set_rng_state(states["device"], device)
