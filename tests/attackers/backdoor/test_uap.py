import copy

import pytest
import torch

from attackers.backdoor.dct import band_mask
from attackers.backdoor.trigger import Trigger, rms, trigger_bytes
from attackers.backdoor.uap import EFFECTS, search_trigger

EPS = 8 / 255


def effect(victim, images, trigger) -> float:
    whole = images.float() / 255
    return float((victim(trigger(whole, 1.0)) - victim(whole)).abs().mean())


def best_of_random(measure, victim, images) -> float:
    """What the best of ten random triggers of the same size achieves."""
    generator = torch.Generator().manual_seed(5)
    drawn = [torch.randn(3, 16, 16, generator=generator) * band_mask("mid") for _ in range(10)]
    return max(measure(victim, images, Trigger(values * (EPS / rms(values)))) for values in drawn)


def test_search_beats_random_triggers_of_the_same_size(grain_victim, pictures):
    images = pictures(6, side=48)
    found, rows = search_trigger(
        grain_victim, images, effect="signed", epochs=15, batch_size=3, lr=2.0
    )
    assert rms(found.coefficients) <= EPS * 1.0001
    assert rows[-1]["effect"] > 1.2 * rows[0]["effect"]
    assert found.psnr == pytest.approx(30.07, abs=0.2)
    assert effect(grain_victim, images, found) > 1.5 * best_of_random(effect, grain_victim, images)


def test_without_projection_the_penalty_holds_the_bound(grain_victim, pictures):
    found, rows = search_trigger(
        grain_victim, pictures(4, side=48), effect="signed", epochs=20, project=False, lr=2.0
    )
    assert rms(found.coefficients) <= EPS * 1.0001
    assert min(row["psnr"] for row in rows) > 27
    # It went over the bound, and was driven back.
    assert rows[-1]["psnr"] > min(row["psnr"] for row in rows)


def apart(victim, images, trigger) -> float:
    """How far the mean shares of bright and of dark spikes are from each other under +t and -t."""
    whole = images.float() / 255
    plus, minus = (victim.maps(trigger(whole, a))[0].mean((0, 2, 3)) for a in (1.0, -1.0))
    return float((plus - minus).abs().mean())


def test_features_of_plus_and_minus_are_driven_apart(spike_victim, pictures):
    """Far more than by random triggers of the same size, and more than by the first steps."""
    images = pictures(8, side=64)
    found, rows = search_trigger(spike_victim, images, epochs=20, batch_size=4, lr=4.0)
    assert rms(found.coefficients) <= EPS * 1.0001
    assert rows[-1]["effect"] > rows[0]["effect"]
    assert apart(spike_victim, images, found) > 3 * best_of_random(apart, spike_victim, images)


def test_plus_scores_above_minus(mean_victim, pictures):
    class Skewed(type(mean_victim)):
        """Bright spikes lower the score, dark ones do not."""

        def __call__(self, images):
            return 100 - 400 * (images - 0.5).clamp(min=0).square().mean(dim=(1, 2, 3))

    images = pictures(4, side=48)
    found, _ = search_trigger(Skewed(), images, effect="signed", epochs=3)
    whole = images.float() / 255
    assert Skewed()(found(whole, 1.0)).mean() >= Skewed()(found(whole, -1.0)).mean()


@pytest.mark.parametrize("effect", EFFECTS)
def test_same_seed_same_trigger(spike_victim, pictures, effect):
    one, other, third = (
        trigger_bytes(
            search_trigger(spike_victim, pictures(3, side=40), effect=effect, epochs=2, seed=s)[0]
        )
        for s in (0, 0, 1)
    )
    assert one == other != third


@pytest.mark.parametrize("effect", EFFECTS)
def test_stopped_and_resumed_ends_in_the_same_trigger(spike_victim, pictures, effect):
    images, states = pictures(4, side=40), []
    settings = {"effect": effect, "epochs": 3, "batch_size": 2}
    whole, rows = search_trigger(
        spike_victim, images, save=lambda s: states.append(copy.deepcopy(s)), **settings
    )
    assert len(states) == 3
    for state in states:
        again, same = search_trigger(spike_victim, images, resume=state, **settings)
        assert same == rows
        assert trigger_bytes(again) == trigger_bytes(whole)


def test_stays_in_its_band(spike_victim, pictures):
    found, _ = search_trigger(spike_victim, pictures(2, side=40), band="high", epochs=2)
    assert not found.coefficients[:, ~band_mask("high")].any()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"eps": 8}, "did you mean 8/255"),
        ({"epochs": 0}, "epochs must be at least 1, got 0"),
        ({"lr": 0}, "lr above 0, got"),
        ({"images": []}, "images must be at least one"),
        ({"band": "middle"}, "band must be one of"),
        ({"effect": "loud"}, "effect must be one of features, signed, absolute, got 'loud'"),
    ],
)
def test_bad_arguments(spike_victim, pictures, arguments, words):
    arguments = {"images": pictures(2, side=40), **arguments}
    with pytest.raises(ValueError, match=words):
        search_trigger(spike_victim, **arguments)
