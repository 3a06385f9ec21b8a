import numpy as np
import pytest
import torch
from scipy.fft import dctn, idctn

from attackers.backdoor.dct import (
    BANDS,
    BLOCK,
    band_mask,
    dct_matrix,
    idct2,
    ycbcr_to_rgb,
    zigzag_ranks,
)


def test_matrix_is_scipys_orthonormal_transform():
    block = np.random.default_rng(0).normal(size=(BLOCK, BLOCK))
    matrix = dct_matrix().double().numpy()
    np.testing.assert_allclose(matrix @ block @ matrix.T, dctn(block, norm="ortho"), atol=1e-5)
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(BLOCK), atol=1e-6)


def test_inverse_is_scipys():
    spectrum = np.random.default_rng(1).normal(size=(3, BLOCK, BLOCK))
    expected = idctn(spectrum, axes=(1, 2), norm="ortho")
    np.testing.assert_allclose(idct2(torch.tensor(spectrum)).numpy(), expected, atol=1e-5)


def test_zigzag_is_that_of_jpeg():
    # The upper left corner of the 8×8 table of ITU-T T.81, figure A.6.
    expected = [[0, 1, 5, 6], [2, 4, 7, 13], [3, 8, 12, 17], [9, 11, 18, 24]]
    assert zigzag_ranks(8)[:4, :4].tolist() == expected
    ranks = zigzag_ranks()
    assert sorted(ranks.flatten().tolist()) == list(range(256))
    assert ranks[15, 15] == 255


@pytest.mark.parametrize("band", BANDS)
def test_bands_have_64_frequencies(band):
    assert band_mask(band).sum() == 64


def test_bands_lie_where_they_say():
    ranks = zigzag_ranks()
    for band, first in (("low", 0), ("mid", 96), ("high", 192)):
        assert sorted(ranks[band_mask(band)].tolist()) == list(range(first, first + 64))
    # As described in the design: only 6 of the published code's 64 lie in the middle band.
    assert (band_mask("official") & band_mask("mid")).sum() == 6


def test_unknown_band():
    with pytest.raises(ValueError, match=r"band must be one of low, mid, .*'middle'"):
        band_mask("middle")


def test_colours_are_bt_601():
    grey = torch.full((3, 1, 1), 0.0)
    grey[0] = 10
    torch.testing.assert_close(ycbcr_to_rgb(grey), torch.full((3, 1, 1), 10.0))
    # Back by the defining sums of BT.601: Y = .299 R + .587 G + .114 B and its colour differences.
    planes = torch.randn(3, 4, 5, dtype=torch.float64)
    red, green, blue = ycbcr_to_rgb(planes)
    luma = 0.299 * red + 0.587 * green + 0.114 * blue
    back = torch.stack([luma, (blue - luma) / 1.772, (red - luma) / 1.402])
    torch.testing.assert_close(back, planes, atol=1e-5, rtol=0)
