import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from victims.crops import (
    crop_scores,
    draw_corners,
    enlarge,
    enlarged_sides,
    five_crop_corners,
    random_crops,
    take_crops,
)

sides = st.integers(1, 90)


@settings(deadline=None)
@given(sides, sides, st.integers(0, 1000))
def test_drawn_crops_lie_inside_and_reach_every_place(height, width, seed):
    image = torch.zeros(1, 3, height, width)
    room = enlarged_sides(image, 32)
    corners = draw_corners(room, 32, 200, torch.Generator().manual_seed(seed))
    assert list(enlarge(image, 32).shape[2:]) == room
    assert min(room) >= 32
    for axis in (0, 1):
        assert corners[:, axis].min() >= 0
        assert corners[:, axis].max() <= room[axis] - 32
    assert take_crops(image[0], corners, 32).shape == (200, 3, 32, 32)
    if room[0] == 33:
        assert set(corners[:, 0].tolist()) == {0, 1}


def test_views_get_the_same_crop_and_flip():
    image = torch.rand(1, 3, 60, 50)
    crops = random_crops([torch.cat([image, image + 1])] * 8, 32, torch.Generator().manual_seed(0))
    assert crops.shape == (8, 2, 3, 32, 32)
    torch.testing.assert_close(crops[:, 1], crops[:, 0] + 1)
    assert len({crop.sum().item() for crop in crops[:, 0]}) > 4
    windows = image[0].unfold(1, 32, 1).unfold(2, 32, 1).permute(1, 2, 0, 3, 4).flatten(0, 1)
    flipped = sum(bool((windows == crop.flip(2)).flatten(1).all(1).any()) for crop in crops[:, 0])
    assert 0 < flipped < 8


def test_spread_corners():
    assert five_crop_corners([64, 48], 32).tolist() == [[0, 0], [0, 16], [16, 8], [32, 0], [32, 16]]
    assert five_crop_corners([32, 32], 32).tolist() == [[0, 0]]


def test_scores_of_crops_do_not_depend_on_the_batch():
    class Mean:
        input_size = 32

        def __call__(self, images):
            return images.mean(dim=(1, 2, 3))

    image = torch.rand(3, 80, 70)
    corners = draw_corners([80, 70], 32, 7, torch.Generator().manual_seed(0))
    expected = [image[:, t : t + 32, c : c + 32].mean() for t, c in corners.tolist()]
    for batch in (1, 3, 32):
        found = crop_scores(Mean(), image, corners, batch)
        assert found.tolist() == pytest.approx([float(e) for e in expected], abs=1e-6)
