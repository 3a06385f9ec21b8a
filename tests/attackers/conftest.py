import pytest
import torch
from hypothesis import settings

from attackers.adt import ADTConfig
from victims.base import ScoreScale

# Cores are shared in CI: how long one example takes proves nothing.
settings.register_profile("attackers", deadline=None)
settings.load_profile("attackers")


@pytest.fixture
def tiny():
    """An ADT that trains in seconds."""
    return ADTConfig(size=32, width=16, heads=2, depth=1, steps=2)


@pytest.fixture
def scale():
    return ScoreScale.of(0, 10)


def coloured(count, side=32, seed=0, low=0.1, high=0.8):
    """Smooth colour pictures, uint8 (count,3,side,side)."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 4, 4, generator=generator)
    level = torch.rand(count, 1, 1, 1, generator=generator) * 0.5
    fine = torch.nn.functional.interpolate(0.5 * coarse + level, (side, side), mode="bilinear")
    return ((low + (high - low) * fine) * 255).round().byte()


@pytest.fixture
def pictures():
    return coloured
