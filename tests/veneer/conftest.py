import numpy as np
import pytest
import torch

from victims.base import ScoreScale
from victims.toy import LinearVictim


@pytest.fixture
def victim():
    return LinearVictim(ScoreScale.of(0, 10))


def coloured(count, height=32, width=40, seed=0):
    """Smooth colour pictures, uint8 (count,H,W,3)."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 4, 4, generator=generator)
    fine = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")
    return (fine * 200 + 25).round().byte().permute(0, 2, 3, 1).numpy()


@pytest.fixture
def pixels():
    return coloured


def levels(images):
    """Any images as a list of integer arrays (H,W,3)."""
    arrays = [np.asarray(image) for image in images]
    arrays = [a if a.shape[-1] == 3 else a.transpose(1, 2, 0) for a in arrays]
    return [
        a.astype(np.int64) if a.dtype == np.uint8 else np.rint(a * 255).astype(int) for a in arrays
    ]


@pytest.fixture
def to_levels():
    return levels
