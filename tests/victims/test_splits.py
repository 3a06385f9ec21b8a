import pytest

from victims.splits import hold_out


@pytest.mark.parametrize(("count", "share", "held"), [(10, 0.2, 2), (2, 0.9, 1), (5, 0.01, 1)])
def test_a_share_is_held_out_and_something_stays(count, share, held):
    kept, held_out = hold_out(count, share, seed=0)
    assert len(held_out) == held
    assert sorted(kept + held_out) == list(range(count))


def test_the_draw_follows_the_seed_and_the_count_alone():
    assert hold_out(50, 0.2, seed=1) == hold_out(50, 0.2, seed=1)
    assert hold_out(50, 0.2, seed=1) != hold_out(50, 0.2, seed=2)
