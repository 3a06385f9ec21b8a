import pytest
import torch

from defenders.pruning import RATES, channel_activity, prune
from victims.registry import build_victim


@pytest.fixture
def victim():
    config = {"kind": "hyperiqa", "backbone": "test_efficientnet", "input_size": 32}
    return build_victim(config | {"scale": {"low": 0, "high": 10}})


@pytest.fixture
def images():
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(0, 256, (3, 48, 40), generator=generator).byte() for _ in range(3)]


def test_rates():
    assert pytest.approx([0.05 * i for i in range(20)]) == RATES


def test_activity_is_the_mean_size_of_each_channel(victim, images):
    found = channel_activity(victim, images)
    assert found.shape == (64,)
    # By hand, of one crop-sized picture.
    small = images[0][:, :32, :32]
    expected = victim.maps(small.float()[None] / 255)[-1].abs().mean(dim=(0, 2, 3))
    torch.testing.assert_close(channel_activity(victim, [small]), expected)


def test_the_least_active_channels_go_first_and_rate_0_restores(victim, images):
    activity = channel_activity(victim, images)
    picture = images[0].float()[None] / 255
    whole = victim(picture)
    gone = set()
    for rate in RATES:
        assert prune(victim, activity, rate) == int(round(rate * 64, 9))
        now = set((victim.channel_mask == 0).nonzero().flatten().tolist())
        assert gone <= now
        if now:
            assert activity[sorted(now)].max() <= activity[victim.channel_mask == 1].min()
            assert not victim.maps(picture[..., :32, :32])[-1][:, sorted(now)].any()
        gone = now
    assert not torch.equal(victim(picture), whole)
    prune(victim, activity, 0)
    assert torch.equal(victim(picture), whole)


def test_a_silent_channel_is_pruned_without_a_change(victim, images):
    victim.channel_mask[[5, 9]] = 0
    activity = channel_activity(victim, images)
    assert activity[[5, 9]].tolist() == [0, 0]
    before = victim(images[0].float()[None] / 255)
    assert prune(victim, activity, 2 / 64) == 2
    assert torch.equal(victim(images[0].float()[None] / 255), before)


def test_bad_arguments(victim, images):
    with pytest.raises(ValueError, match="at least one benign image"):
        channel_activity(victim, [])
    with pytest.raises(ValueError, match=r"rate must be in \[0, 1\), got 1"):
        prune(victim, torch.zeros(64), 1)
    with pytest.raises(ValueError, match=r"shape \(64,\), got \(3,\)"):
        prune(victim, torch.zeros(3), 0.5)
