import pytest
import torch
from hypothesis import settings

from attackers.da3.adt import ADTConfig
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


class MeanVictim:
    """Score = 100 · mean pixel: its best attack is the corner of the ball."""

    name, differentiable, input_size = "mean", True, 32
    scale = ScoreScale.of(0, 100)
    device = torch.device("cpu")

    def __call__(self, images):
        return 100 * images.mean(dim=(1, 2, 3))


class GrainVictim(MeanVictim):
    """Score = 1000 · mean squared difference of neighbouring columns of the luma.

    The best trigger puts all it may into the luma's highest frequency along rows; chroma is lost.
    """

    def __call__(self, images):
        luma = images.transpose(1, 3) @ torch.tensor([0.299, 0.587, 0.114])
        return 1000 * luma.diff(dim=1).square().mean(dim=(1, 2))


class SpikeVictim(MeanVictim):
    """Its two maps are bright and dark spikes: what stands out from its surroundings, cubed."""

    def maps(self, crops):
        luma = crops.mean(dim=1, keepdim=True)
        spikes = luma - torch.nn.functional.avg_pool2d(luma, 5, 1, 2, count_include_pad=False)
        return [torch.cat([spikes.clamp(min=0), (-spikes).clamp(min=0)], dim=1) ** 3 * 1e3]


@pytest.fixture
def spike_victim():
    return SpikeVictim()


@pytest.fixture
def mean_victim():
    return MeanVictim()


@pytest.fixture
def grain_victim():
    return GrainVictim()
