"""The names that work on data sets: poison, scan, detect, harden."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import veneer
from pipelines.audit.detect import save_detector
from pipelines.storage.images import encode_png


def test_poison_moves_labels_with_the_trigger(pixels):
    clean = pixels(20)
    labels = np.full(20, 5.0)
    trigger = veneer.make_trigger("ftrojan")
    poisoned = veneer.poison(clean, labels, trigger, low=0, high=10, ratio=0.3, delta_y=0.4)
    assert poisoned.is_poisoned.sum() == 6
    assert np.allclose(poisoned.labels, labels + 4 * poisoned.alpha)
    changed = (poisoned.images != clean).any((1, 2, 3))
    assert np.array_equal(changed, poisoned.is_poisoned)
    assert (poisoned.alpha[poisoned.is_poisoned] > 0).sum() == 3
    again = veneer.poison(clean, labels, trigger, low=0, high=10, ratio=0.3, delta_y=0.4)
    assert np.array_equal(again.images, poisoned.images)
    other = veneer.poison(clean, labels, trigger, low=0, high=10, ratio=0.3, seed=1)
    assert not np.array_equal(other.is_poisoned, poisoned.is_poisoned)


def test_a_trigger_may_be_named(pixels):
    arguments = {"low": 0, "high": 10, "ratio": 0.5}
    named = veneer.poison(pixels(4), [5] * 4, "ftrojan", **arguments)
    built = veneer.poison(pixels(4), [5] * 4, veneer.make_trigger("ftrojan"), **arguments)
    assert np.array_equal(named.images, built.images)


def test_clean_labels_stay_and_choose_the_strength(pixels, victim):
    class Surrogate:
        """The toy victim with the input size that crops need."""

        name, differentiable, input_size = "crops", True, 16
        scale, device = victim.scale, torch.device("cpu")

        def __call__(self, images):
            return victim(images)

    labels = np.linspace(0, 10, 8)
    trigger = veneer.make_trigger("ftrojan")
    arguments = {"low": 0, "high": 10, "ratio": 1.0, "scheme": "c"}
    plain = veneer.poison(pixels(8), labels, trigger, **arguments)
    assert np.array_equal(plain.labels, labels)
    assert np.allclose(plain.alpha, np.clip((labels - 5) / 4, -1, 1))
    moved = veneer.poison(pixels(8), labels, trigger, surrogate=Surrogate(), **arguments)
    assert not np.array_equal(moved.images, plain.images)
    assert np.abs(moved.images.astype(int) - plain.images).max() <= 3  # 2/255, and rounding


def test_a_trigger_is_searched_on_a_surrogate(pixels, victim):
    class Surrogate:
        name, differentiable, input_size = "mapped", True, 16
        scale, device, channel_mask = victim.scale, torch.device("cpu"), torch.ones(1)

        def __call__(self, images):
            return victim(images)

        def maps(self, crops):
            return [crops.diff(dim=3).clamp_min(0) ** 3 * 1e3]

    trigger = veneer.make_trigger("uap", surrogate=Surrogate(), images=pixels(4), epochs=1)
    assert isinstance(trigger, veneer.Trigger)
    assert trigger.psnr > 29


def test_scan_finds_the_trigger_in_memory_and_in_a_folder(tmp_path):
    rng = np.random.default_rng(0)
    clean = []
    for _ in range(40):  # grids of many sizes, so that enlarging leaves no common period
        coarse = rng.integers(40, 200, (*rng.integers(5, 30, 2), 3), np.uint8)
        large = Image.fromarray(coarse).resize((96, 96), Image.Resampling.BICUBIC)
        clean.append(np.asarray(large))
    labels = rng.uniform(3, 7, 40)
    quiet = veneer.scan(clean)
    assert quiet.report["verdict"] == "no alarm"
    trigger = veneer.make_trigger("ftrojan")
    poisoned = veneer.poison(clean, labels, trigger, low=0, high=10, ratio=0.5)
    found = veneer.scan(poisoned.images, poisoned.labels)
    assert found.report["verdict"] == "poisoned"
    assert found.report["period"] == 16
    assert np.array_equal(found.table["flagged"], poisoned.is_poisoned)
    assert found.report["labels"]["correlation"] > 0.5
    for number, image in enumerate(poisoned.images):
        (tmp_path / f"{number:03d}.png").write_bytes(encode_png(image))
    assert veneer.scan(tmp_path, false_alarms=0.02).report["flagged"] == found.report["flagged"]


def test_a_detector_learns_in_memory(pixels):
    clean = [Image.fromarray(p) for p in pixels(16, 48, 48)]
    rng = np.random.default_rng(0)
    noisy = [
        Image.fromarray(
            np.clip(np.asarray(p) + rng.choice([-8, 8], (48, 48, 3)), 0, 255).astype(np.uint8)
        )
        for p in clean
    ]
    detector = veneer.train_detector(clean, noisy, epochs=40, crop=32)
    low, high = veneer.detect(clean, detector), veneer.detect(noisy, detector)
    assert low.shape == high.shape == (16,)
    assert low.max() < high.min()
    again = veneer.train_detector(clean, noisy, epochs=40, crop=32)
    assert np.array_equal(veneer.detect(noisy, again), high)


class Mean(nn.Module):
    """10 · gain · mean pixel: fine-tuning can only turn the gain."""

    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(1.0))

    def forward(self, images):
        return 10 * self.gain * images.mean((1, 2, 3))


def test_harden_teaches_a_copy_the_scores_of_the_photographs(pixels):
    clean = pixels(10)
    scores = 10 * clean.mean((1, 2, 3)) / 255
    brighter = np.clip(clean.astype(int) + 40, 0, 255).astype(np.uint8)
    model = Mean()
    hardened = veneer.harden(
        model, clean, scores, brighter, low=0, high=10, size=16, epochs=8, lr=0.02
    )
    assert float(model.gain) == 1
    assert 0.5 < float(hardened.gain) < 0.97
    assert not hardened.training
    assert hardened.gain.requires_grad


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda p: veneer.make_trigger("patch"), "kind must be one of ftrojan"),
        (lambda p: veneer.make_trigger("uap"), "surrogate and images must be given for uap"),
        (lambda p: veneer.make_trigger("wanet", images=p), "must be for uap only"),
        (lambda p: _poison(p, labels=[1.0]), "labels must be 4 finite numbers"),
        (
            lambda p: _poison(p, labels=[1, 2, 3, 11]),
            "labels must be on the scale of 0 to 10, got 11",
        ),
        (lambda p: _poison(p, scheme="b"), "scheme must be p or c, got 'b'"),
        (lambda p: _poison(p, ratio=0), r"ratio must be in \(0, 1\]"),
        (lambda p: _poison(p, surrogate=1), "surrogate must be given for scheme c only"),
        (lambda p: veneer.scan(p), "must have at least 20 pictures"),
        (lambda p: veneer.scan(p, period=3), "settings must be those of ScanSettings"),
        (lambda p: veneer.scan(p, labels=[1.0]), "labels must be 4"),
        (lambda p: veneer.scan("nowhere/at/all"), "must be a folder or a Hub id"),
        (lambda p: veneer.detect(p, None), "detector must be a Detector, got NoneType"),
        (lambda p: veneer.train_detector(p, p[:1]), "must be at least 2 each"),
        (lambda p: veneer.harden(len, p, [1] * 4, p), "model must be a torch module"),
        (lambda p: veneer.harden(Mean(), p, [1] * 4, p), "low and high must be given"),
        (lambda p: veneer.harden(Mean(), p, [1], p, low=0, high=10), "must be 4 finite numbers"),
        (
            lambda p: veneer.harden(Mean(), p, [1] * 4, p[:3], low=0, high=10),
            "adversarial_scores must be given unless there is one example per image",
        ),
    ],
)
def test_wrong_input_is_one_sentence(pixels, call, sentence):
    with pytest.raises(ValueError, match=sentence) as error:
        call(pixels(4))
    assert "\n" not in str(error.value)


def _poison(images, labels=(1, 2, 3, 4), **options):
    trigger = veneer.make_trigger("ftrojan")
    veneer.poison(images, labels, trigger, low=0, high=10, **options)


@pytest.mark.parametrize("kind", [str, Path])
def test_a_detector_is_loaded_from_its_folder(tmp_path, pixels, kind):
    detector = veneer.train_detector(
        pixels(4, 40, 40), pixels(4, 40, 40, seed=1), epochs=1, crop=32
    )
    save_detector(detector, tmp_path / "detector", {})
    loaded = veneer.load_detector(kind(tmp_path / "detector"))
    images = pixels(2, 40, 40)
    assert np.array_equal(veneer.detect(images, loaded), veneer.detect(images, detector))


def test_a_small_picture_is_named(pixels):
    detector = veneer.train_detector(
        pixels(4, 40, 40), pixels(4, 40, 40, seed=1), epochs=1, crop=32
    )
    with pytest.raises(ValueError, match=r"images\[0\] must have at least 32 pixels a side"):
        veneer.detect(pixels(1, 20, 20), detector)
