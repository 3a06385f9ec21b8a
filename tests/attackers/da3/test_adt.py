import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attackers.da3.adt import ADT, ADTConfig, patches, positions
from attackers.da3.filters import FILTER_NAMES

TINY = ADTConfig(size=64, width=16, heads=2, depth=1, steps=3)


def woken(config=TINY, seed=0):
    """An ADT whose gates and conditions act: they start at nothing."""
    adt = ADT(config, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in adt.weights.values():
            noise = torch.randn(weight.shape, generator=generator)
            weight.add_(noise / math.sqrt(max(weight.shape[-2], 16)))
    return adt


def random(n=2, side=64, seed=0):
    return torch.rand(n, 3, side, side, generator=torch.Generator().manual_seed(seed))


def slopes(out, adt):
    """Gradient of a number towards each weight, zeros where the weight has no part."""
    weights = dict(adt.weights.items())
    found = torch.autograd.grad(out, list(weights.values()), materialize_grads=True)
    return dict(zip(weights, found, strict=True))


names = st.lists(st.sampled_from(FILTER_NAMES), min_size=1, max_size=14, unique=True)


@settings(max_examples=15)
@given(names=names, t=st.integers(1, 3), one=st.booleans(), seed=st.integers(0, 99))
def test_loop_and_stack_agree(names, t, one, seed):
    adt = woken(seed=seed)
    images = random(seed=seed) if one else [random(seed=seed + k) for k in range(len(names))]
    found = {}
    for run in ("loop", "stacked"):
        adt.run = run
        out = adt(images, t, names)
        assert out.shape == (len(names), 2)
        assert (out.abs() <= 1).all()  # tanh reaches 1 in float32
        weights = torch.linspace(1, 2, out.numel()).view_as(out)
        found[run] = (out, *slopes((out * weights).sum(), adt).values())
    for looped, stacked in zip(found["loop"], found["stacked"], strict=True):
        torch.testing.assert_close(looped, stacked, rtol=1e-3, atol=1e-4)


@settings(max_examples=10)
@given(names=names)
def test_a_subset_is_the_rows_of_all(names):
    adt, images = woken(), random()
    rows = adt(images, 2)[[FILTER_NAMES.index(name) for name in names]]
    torch.testing.assert_close(adt(images, 2, names), rows, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("run", ["loop", "stacked"])
@pytest.mark.parametrize("place", range(14))
def test_filters_share_no_weight(run, place):
    adt = woken()
    adt.run = run
    out = adt(random(), 1)[place].sum()
    for name, gradient in slopes(out, adt).items():
        others = [f for f in range(14) if f != place]
        assert not gradient[others].any(), name
        unused = name in ("constant",)  # only without condition
        assert gradient[place].any() != unused, name


@pytest.mark.parametrize("run", ["loop", "stacked"])
def test_an_image_does_not_depend_on_its_batch(run):
    adt, images = woken(), random(3)
    adt.run = run
    alone = torch.cat([adt(image[None], 2) for image in images], 1)
    torch.testing.assert_close(adt(images, 2), alone, rtol=1e-3, atol=1e-5)


def test_time_prior_and_tokens_steer():
    adt, images = woken(), random()
    out = adt(images, 1)
    assert ((out - adt(images, 2)).abs() > 1e-5).all(1).all()
    assert (out[:, 0] != out[:, 1]).all()
    blind = woken(replace(TINY, condition=False))
    out = blind(images, 1)
    for t in (2, 3):
        assert torch.equal(out, blind(images, t))
    assert (out[:, 0] != out[:, 1]).all(), "tokens still tell pictures apart"


def test_without_condition_the_prior_has_no_part():
    blind, images = woken(replace(TINY, condition=False)), random()
    gradients = slopes(blind(images, 1).sum(), blind)
    silent = {name for name, gradient in gradients.items() if not gradient.any()}
    assert {"time", "prior_weight", "prior_bias", "mix_weight", "mix_bias"} == silent


def steered(config):
    """Which of gate, scale (ν) and shift (μ) get a gradient."""
    adt = woken(config)
    out = adt(random(), 1).sum()
    gradients = slopes(out, adt)
    adapt, gate, d = gradients["adapt0_weight"], gradients["gate_weight"], config.width
    return {
        "scale": bool(adapt[..., :d].any()),
        "shift": bool(adapt[..., d : 2 * d].any()),
        "gate": bool(gate.any()),
    }


@pytest.mark.parametrize("off", ["none", "shift", "scale", "gate"])
def test_switches_cut_what_they_name(off):
    config = TINY if off == "none" else replace(TINY, **{off: False})
    assert steered(config) == {name: name != off for name in ("scale", "shift", "gate")}


def test_all_switches_off_leaves_a_plain_transformer():
    adt = woken(replace(TINY, shift=False, scale=False, gate=False))
    assert torch.equal(adt(random(), 1), adt(random(), 3))


def test_seeds_reproduce():
    def state(seed):
        return ADT(TINY, seed=seed).state_dict()

    before = torch.random.get_rng_state()
    first, again, other = state(1), state(1), state(2)
    assert torch.equal(before, torch.random.get_rng_state())
    assert all(torch.equal(first[k], again[k]) for k in first)
    assert any(not torch.equal(first[k], other[k]) for k in first)
    embed = first["weights.embed_weight"]
    assert not torch.equal(embed[0], embed[1]), "filters must not start alike"


@pytest.mark.parametrize("grid", [1, 2, 7])
def test_positions_are_sines_and_cosines(grid):
    width = 16
    table = positions(grid, width)
    assert table.shape == (grid * grid, width)
    for row in range(grid):
        for column in range(grid):
            for half, at in ((0, row), (1, column)):
                for k in range(width // 4):
                    angle = at * 10000 ** (-k / (width // 4))
                    found = table[row * grid + column, half * width // 2 :]
                    assert float(found[k]) == pytest.approx(math.sin(angle), abs=1e-5)
                    assert float(found[width // 4 + k]) == pytest.approx(math.cos(angle), abs=1e-5)


def test_patches_are_the_squares_of_the_picture():
    images = random(2, 96)
    out = patches(images)
    assert out.shape == (2, 9, 3072)
    square = images[1, :, 32:64, 64:96] - 0.5
    torch.testing.assert_close(out[1, 1 * 3 + 2], square.flatten())


def test_bfloat16_is_near_and_comes_back_as_float32():
    adt, images = woken(), random()
    exact = adt(images, 1)
    adt.precision = torch.bfloat16
    rough = adt(images, 1)
    assert rough.dtype == torch.float32
    assert not torch.equal(rough, exact)
    torch.testing.assert_close(rough, exact, rtol=0, atol=0.05)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": 100}, "size must be a multiple of 32, got 100"),
        ({"size": 0}, "size must be at least 32, got 0"),
        ({"width": 30}, "width must be a multiple of 2·heads and 4, got 30"),
        ({"width": 0}, "width must be at least 1, got 0"),
        ({"heads": 0}, "heads must be at least 1, got 0"),
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"depth": 0}, "depth must be at least 1, got 0"),
        ({"mlp_ratio": 0}, "mlp_ratio must be at least 1, got 0"),
    ],
)
def test_bad_configurations_raise(arguments, message):
    with pytest.raises(ValueError, match=message):
        ADTConfig(**arguments)


def test_bad_calls_raise():
    adt = ADT(TINY)
    for t in (0, 4):
        with pytest.raises(ValueError, match=rf"t must be in 1\.\.3, got {t}"):
            adt(random(), t)
    with pytest.raises(ValueError, match=r"images must be 64×64, got \(2, 3, 32, 32\)"):
        adt(random(2, 32), 1)
