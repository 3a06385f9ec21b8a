import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save
from scipy.fft import dctn, idctn
from skimage import data

from attackers.backdoor.dct import BANDS, BLOCK, band_mask
from attackers.backdoor.registry import (
    BASELINES,
    INJECTORS,
    Blended,
    WaNet,
    build_baseline,
    ftrojan,
    load_trigger,
)
from attackers.backdoor.trigger import Trigger, check_alpha, rms, trigger_bytes, trigger_sha256
from attackers.projections import psnr, quantize

TO_YCBCR = np.array(
    [[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]]
)


def drawn(band: str = "mid", size: float = 9.0, seed: int = 0, **kwargs) -> Trigger:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(3, BLOCK, BLOCK, generator=generator) * size * band_mask(band)
    return Trigger(values, band, **kwargs)


def by_blocks(
    image: np.ndarray, coefficients: np.ndarray, alpha: float, centred: bool
) -> np.ndarray:
    """The oracle: pad, YCbCr, scipy's DCT of each block, add, and back. image: (3,H,W) in [0,1]."""
    height, width = image.shape[1:]
    pads = [-side % BLOCK for side in (height, width)]
    before = [pad // 2 if centred else 0 for pad in pads]
    widths = [(0, 0), *((b, p - b) for b, p in zip(before, pads, strict=True))]
    planes = np.einsum("cr,rhw->chw", TO_YCBCR, np.pad(image * 255, widths, mode="reflect"))
    for top in range(0, planes.shape[1], BLOCK):
        for left in range(0, planes.shape[2], BLOCK):
            block = planes[:, top : top + BLOCK, left : left + BLOCK]
            spectrum = dctn(block, axes=(1, 2), norm="ortho") + alpha * coefficients
            planes[:, top : top + BLOCK, left : left + BLOCK] = idctn(
                spectrum, axes=(1, 2), norm="ortho"
            )
    rgb = np.einsum("rc,chw->rhw", np.linalg.inv(TO_YCBCR), planes)
    window = rgb[:, before[0] : before[0] + height, before[1] : before[1] + width]
    return np.clip(window / 255, 0, 1)


@settings(max_examples=25, deadline=None)
@given(
    height=st.integers(16, 90),
    width=st.integers(16, 90),
    alpha=st.floats(-1, 1),
    seed=st.integers(0, 1000),
    band=st.sampled_from(BANDS),
    origin=st.sampled_from(["top_left", "centred"]),
)
def test_the_tile_is_the_block_transform(height, width, alpha, seed, band, origin):
    trigger = drawn(band, seed=seed, origin=origin)
    image = np.random.default_rng(seed).random((3, height, width))
    triggered = trigger(torch.tensor(image, dtype=torch.float32)[None], alpha)[0].numpy()
    expected = by_blocks(image, trigger.coefficients.numpy(), alpha, origin == "centred")
    assert np.abs(triggered - expected).max() <= 1e-5


def test_centred_origin_of_500_pixels_is_shifted_by_6():
    plain = drawn()(torch.full((1, 3, 500, 500), 0.5), 1.0)
    centred = drawn(origin="centred")(torch.full((1, 3, 500, 500), 0.5), 1.0)
    assert torch.equal(centred[..., 10:, 10:], plain[..., :490, :490])


def test_alpha_zero_is_the_identity_to_the_bit_and_alpha_is_per_image():
    images = torch.rand(3, 3, 40, 33)
    trigger = drawn()
    assert torch.equal(trigger(images, 0.0), images)
    each = trigger(images, torch.tensor([-1.0, 0.0, 0.5]))
    for i, alpha in enumerate((-1.0, 0.0, 0.5)):
        assert torch.equal(each[i : i + 1], trigger(images[i : i + 1], alpha))


@pytest.mark.parametrize("kind", ["dct", *BASELINES])
def test_out_holds_the_same_bits_also_where_it_is_the_images(kind):
    images, alpha = torch.rand(3, 3, 40, 33), torch.tensor([-1.0, 0.3, 0.5])
    trigger = drawn() if kind == "dct" else build_baseline(kind)
    expected, other = trigger(images, alpha), torch.full_like(images, torch.nan)
    assert trigger(images, alpha, out=other) is other
    assert torch.equal(other, expected)
    assert not torch.equal(images, expected)
    assert trigger(images, alpha, out=images) is images
    assert torch.equal(images, expected)


def test_rms_of_8_levels_measures_30_07_db_on_photographs():
    trigger = drawn()
    scaled = Trigger(trigger.coefficients * (8 / 255) / rms(trigger.coefficients))
    assert scaled.psnr == pytest.approx(30.07, abs=0.005)
    # Photographs in which next to nothing is clamped.
    for photograph in (data.chelsea(), data.cat(), data.immunohistochemistry()):
        image = torch.tensor(photograph.transpose(2, 0, 1) / 255, dtype=torch.float32)[None]
        assert float(psnr(image, quantize(scaled(image, 1.0)))) == pytest.approx(30.07, abs=0.1)


def test_gradient_runs_through_the_tile():
    values = (torch.randn(3, BLOCK, BLOCK) * band_mask("mid")).requires_grad_(True)
    images = torch.full((1, 3, 33, 20), 0.5)
    scaled = Trigger(values)(images, 0.5)
    (gradient,) = torch.autograd.grad(scaled.square().sum(), values)
    assert gradient[:, band_mask("mid")].abs().min() > 0
    assert not torch.equal(scaled.detach(), images)


def test_same_trigger_same_bytes_and_back():
    trigger = drawn("official", origin="centred")
    first = trigger_bytes(trigger, {"b": 1, "a": [2]})
    assert first == trigger_bytes(drawn("official", origin="centred"), {"a": [2], "b": 1})
    again, about = load_trigger(first)
    assert isinstance(again, Trigger)
    assert (again.band, again.origin, about) == ("official", "centred", {"a": [2], "b": 1})
    assert torch.equal(again.coefficients, trigger.coefficients)
    assert trigger_sha256(first) != trigger_sha256(trigger_bytes(drawn("official")))
    assert len(trigger_sha256(first)) == 64


@pytest.mark.parametrize("kind", BASELINES)
def test_every_baseline_is_an_injector_with_an_alpha_and_a_file(kind):
    trigger = build_baseline(kind)
    assert INJECTORS.keys() == {"dct", "blended", "wanet"}
    photograph = torch.tensor(data.astronaut().transpose(2, 0, 1) / 255, dtype=torch.float32)[None]
    weak, strong = (
        float((trigger(photograph, a) - photograph).square().mean()) for a in (0.25, 1.0)
    )
    assert 0 < 4 * weak < strong
    assert torch.equal(trigger(photograph, 0.0), photograph)
    assert not torch.equal(trigger(photograph, -1.0), trigger(photograph, 1.0))
    triggered = trigger(photograph.expand(2, -1, -1, -1), torch.tensor([0.5, -0.5]))
    assert triggered.min() >= 0
    assert triggered.max() <= 1
    again, _ = load_trigger(trigger_bytes(trigger))
    assert torch.equal(again(photograph, 0.7), trigger(photograph, 0.7))


def test_ftrojan_is_as_visible_as_in_the_paper():
    assert ftrojan().psnr == pytest.approx(29.80, abs=0.2)  # Table 2, with what is clamped


def test_blended_is_the_weighted_noise():
    images = torch.rand(1, 3, 20, 30)
    moved = Blended(0.1, seed=3)(images, 1.0)
    noise = torch.rand(3, 20, 30, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(moved, 0.9 * images + 0.1 * noise[None])


def test_wanet_moves_pixels_by_its_field():
    # A ramp moves by its slope times the displacement.
    width = 64
    ramp = torch.linspace(0.2, 0.8, width).expand(1, 3, width, width).contiguous()
    trigger = WaNet(strength=0.4)
    change = ((trigger(ramp, 1.0) - ramp) * (width - 1) / 0.6)[0, 0, 8:-8, 8:-8]
    field = torch.nn.functional.interpolate(
        trigger.lattice[None], (width, width), mode="bicubic", align_corners=True
    )[0, 0, 8:-8, 8:-8]
    torch.testing.assert_close(change, 0.4 * field, atol=1e-3, rtol=0)
    assert trigger.lattice.abs().mean() == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Trigger(torch.zeros(3, 8, 8)), r"shape \(3, 16, 16\) .* got \(3, 8, 8\)"),
        (lambda: Trigger(torch.ones(3, 16, 16)), "must be 0 outside band mid, got 1"),
        (lambda: Trigger(torch.full((3, 16, 16), torch.nan)), "must be finite"),
        (lambda: Trigger(torch.zeros(3, 16, 16), origin="left"), "origin must be .*'left'"),
        (lambda: drawn()(torch.rand(1, 3, 12, 40), 1.0), "at least one block of 16 .*12×40"),
        (lambda: drawn()(torch.rand(1, 3, 40, 40), 1.5), r"alpha must be in \[-1, 1\], got 1.5"),
        (lambda: drawn()(torch.rand(1, 3, 40, 40), torch.nan), "alpha must be in"),
        (
            lambda: drawn()(torch.rand(2, 3, 40, 40), 1.0, out=torch.rand(1, 3, 40, 40)),
            r"out must be torch.float32 of shape \(2, 3, 40, 40\)",
        ),
        (
            lambda: WaNet()(torch.rand(1, 3, 9, 9), 1.0, out=torch.rand(1, 3, 9, 9).double()),
            "out must be .* got torch.float64",
        ),
        (
            lambda: drawn()(
                torch.rand(1, 3, 16, 16).requires_grad_(), 0.5, out=torch.rand(1, 3, 16, 16)
            ),
            "out must be None where a gradient",
        ),
        (lambda: check_alpha(torch.rand(3, 3, 4, 4), torch.zeros(2)), "one per image, got shape"),
        (lambda: Blended(weight=2), r"weight must be in \(0, 1\], got 2"),
        (lambda: WaNet(grid=1), "grid must be at least 2, got 1"),
        (lambda: WaNet(strength=0), "strength must be above 0, got 0"),
        (lambda: ftrojan(magnitude=-1), "magnitude must be above 0, got -1"),
        (lambda: ftrojan(frequencies=((0, 0),)), "must be 0 outside band mid"),
        (lambda: build_baseline("badnet"), "kind must be one of ftrojan.*'badnet'"),
        (lambda: build_baseline("wanet", size=3), "settings of wanet must fit"),
    ],
)
def test_bad_arguments(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def other_file(tensor: torch.Tensor, **about: object) -> bytes:
    return save({"coefficients": tensor}, {"trigger": json.dumps(about)})


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"no trigger", "safetensors file"),
        (save({"coefficients": torch.zeros(3, 16, 16)}), "metadata `trigger`"),
        (other_file(torch.zeros(3, 8, 8), kind="dct", band="mid"), r"shape \(3, 16, 16\)"),
        (other_file(torch.zeros(3, 16, 16), kind="patch"), "of kind dct, .*'patch'"),
        (other_file(torch.zeros(3, 16, 16), kind="dct", size=3), "must have its settings"),
        (save({"x": torch.zeros(1)}, {"trigger": '{"kind": "dct"}'}), "hold `coefficients`"),
    ],
)
def test_bad_files(content, words):
    with pytest.raises(ValueError, match=words):
        load_trigger(content)


def test_a_kept_tile_is_that_of_the_size_the_type_and_the_coefficients():
    drawn = torch.randn(3, 16, 16, generator=torch.Generator().manual_seed(0)) * band_mask("mid")
    trigger = Trigger(drawn, origin="centred")
    for height, width, dtype in ((40, 50, torch.float32), (50, 40, torch.float32)) * 2 + (
        (50, 40, torch.float64),
    ):
        images = torch.full((2, 3, height, width), 0.5, dtype=dtype)
        found = trigger(images, torch.tensor([0.5, -0.25], dtype=dtype))
        assert found.dtype == dtype
        assert torch.equal(
            found, Trigger(drawn, origin="centred")(images, torch.tensor([0.5, -0.25]))
        )
    trained = Trigger(drawn.clone().requires_grad_())
    with torch.no_grad():
        trained(images, 0.5)
    assert trained(images, 0.5).requires_grad
