import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from attackers.da3.adt import ADT
from attackers.da3.filters import FILTER_NAMES, FILTERS
from attackers.da3.pretraining import (
    MAX_STRENGTH,
    draw_strengths,
    held_out_errors,
    pretrain,
    reconstruction,
)


@given(
    name=st.sampled_from(FILTER_NAMES),
    steps=st.integers(1, 5),
    step=st.integers(1, 5),
    seed=st.integers(0, 99),
)
def test_strengths_grow_with_the_step_and_have_both_signs(name, steps, step, seed):
    step = min(step, steps)
    s = draw_strengths(name, step, steps, 400, torch.Generator().manual_seed(seed))
    most = MAX_STRENGTH[name] * step / steps
    assert s.shape == (400,)
    assert s.abs().max() <= most + 1e-6
    assert s.abs().max() > 0.9 * most
    assert 0.35 < float((s > 0).float().mean()) < 0.65
    assert abs(float(s.abs().mean()) - most / 2) < 0.1 * most
    again = draw_strengths(name, step, steps, 400, torch.Generator().manual_seed(seed))
    assert torch.equal(s, again)


def test_every_filter_has_a_largest_strength():
    assert MAX_STRENGTH.keys() == FILTERS.keys()
    assert all(0 < s <= 1 for s in MAX_STRENGTH.values())


@pytest.mark.parametrize("step", [0, 4])
def test_a_step_out_of_range_raises(step):
    with pytest.raises(ValueError, match=rf"step must be in 1\.\.3, got {step}"):
        draw_strengths("hue", step, 3, 2, torch.Generator())


def pairs_of(clean, names, t, steps, seed):
    generator = torch.Generator().manual_seed(seed)
    return {
        name: (
            FILTERS[name](clean, draw_strengths(name, t, steps, len(clean), generator)),
            clean,
        )
        for name in names
    }


def test_reconstruction_is_formula_3(tiny, pictures):
    adt = ADT(tiny)
    clean = pictures(3).float() / 255
    names = ["hue", "blur", "bright"]
    pairs = pairs_of(clean, names, 2, 2, 0)
    errors, nothing = reconstruction(adt, pairs, 2)
    p = adt([pairs[name][0] for name in names], 2, names)
    for i, name in enumerate(names):
        for k in range(3):
            perturbed = pairs[name][0][k : k + 1]
            undone = FILTERS[name](perturbed, p[i, k : k + 1].detach())
            wanted = float((clean[k] - undone[0]).square().sum())
            assert float(errors[i, k].detach()) == pytest.approx(wanted, rel=1e-4, abs=1e-4)
            wanted = float((clean[k] - perturbed[0]).square().sum())
            assert float(nothing[i, k]) == pytest.approx(wanted, rel=1e-4)


def test_held_out_errors_are_means_per_value(tiny, pictures):
    adt = ADT(tiny)
    clean = pictures(4).float() / 255
    batches = [(t, pairs_of(clean, ["hue", "gamma"], t, 2, t)) for t in (1, 2)]
    found = held_out_errors(adt, batches)
    assert found.keys() == {"hue", "gamma"}
    for name, row in found.items():
        assert row["n"] == 8
        nothing = [(p[name][0] - p[name][1]).square().mean() for _, p in batches]
        assert row["nothing"] == pytest.approx(float(sum(nothing)) / 2, rel=1e-4)
        assert row["ratio"] == pytest.approx(row["error"] / row["nothing"])


def test_learns_to_undo_brightness_and_leaves_the_rest_alone(tiny, pictures):
    adt = ADT(tiny)
    before = {k: v.clone() for k, v in adt.state_dict().items()}
    train, held_out = pictures(32, seed=1).float() / 255, pictures(32, seed=2).float() / 255

    def batches(epoch):
        for k in range(20):
            yield 1 + k % 2, pairs_of(train, ["bright"], 1 + k % 2, 2, 1000 * epoch + k)

    def held():
        return [(t, pairs_of(held_out, ["bright"], t, 2, 77 + t)) for t in (1, 2)]

    history = pretrain(adt, batches, held, epochs=4, lr=5e-3)
    row = held_out_errors(adt, held())["bright"]
    assert row["error"] < 0.6 * row["nothing"]
    assert min(r["loss"] for r in history) == pytest.approx(row["ratio"])
    place = FILTER_NAMES.index("bright")
    for name, value in adt.state_dict().items():
        others = [f for f in range(14) if f != place]
        assert torch.equal(value[others], before[name][others]), name
