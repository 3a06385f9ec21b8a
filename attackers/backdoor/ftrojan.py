"""FTrojan: fixed magnitudes at two fixed frequencies of the two chroma planes."""

from collections.abc import Sequence

import torch

from attackers.backdoor.dct import BLOCK
from attackers.backdoor.trigger import Trigger
from victims.checks import check_number

# The two frequencies of the main diagonal that are nearest to the middle of the zig-zag order.
FREQUENCIES = ((7, 7), (8, 8))


def ftrojan(
    magnitude: float = 66.0,
    frequencies: Sequence[tuple[int, int]] = FREQUENCIES,
    band: str = "mid",
    origin: str = "top_left",
) -> Trigger:
    """Build FTrojan's trigger, scaled by alpha like any other: 29.6 dB where nothing is clamped.

    Two frequencies of the chroma planes, as in FTrojan; BAIQA moves them to its own band (its Table
    2: 29.80 dB).
    Source: Wang et al., An Invisible Black-box Backdoor Attack through Frequency Domain, 2022.

    Args:
        magnitude: Of each coefficient, in levels of 0-255, above 0 (KonIQ-10k: 33).
        frequencies: (row, column) of the coefficients, within the band.
        band: As in `dct.band_mask`.
        origin: As in `Trigger`.

    Returns:
        The trigger.

    Raises:
        ValueError: If magnitude is not above 0 or a frequency lies outside the band.
    """
    check_number("magnitude", magnitude, above=0)
    coefficients = torch.zeros(3, BLOCK, BLOCK)
    for row, column in frequencies:
        coefficients[1:, row, column] = magnitude
    return Trigger(coefficients, band, origin)
