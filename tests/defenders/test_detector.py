import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from defenders.detector import (
    MAX_PARAMETERS,
    Detector,
    accuracy,
    auc,
    augment,
    compress,
    crop_and_flip,
    half_size,
    probabilities,
    tpr_at_fpr,
    train_detector,
)


class Toys:
    """Smooth pictures; the adversarial ones carry a weak chessboard."""

    def __init__(self, count: int, seed: int) -> None:
        self.adversarial = [i % 2 == 1 for i in range(count)]
        self.seed = seed

    def __len__(self) -> int:
        return len(self.adversarial)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, bool]:
        rng = np.random.default_rng((self.seed, index))
        y, x = np.mgrid[:48, :64] / 20
        a, b, c = rng.normal(0, 1, 3)
        image = 128 + 50 * np.sin(a * x + b * y + c)[None] + rng.normal(0, 1, (3, 48, 64))
        if self.adversarial[index]:
            image += 4 * ((np.add.outer(np.arange(48), np.arange(64)) % 2) - 0.5)
        return torch.from_numpy(image.clip(0, 255).astype(np.uint8)), self.adversarial[index]


def fresh(seed: int = 0) -> Detector:
    torch.manual_seed(seed)
    return Detector()


def test_detector_is_small_and_takes_any_size():
    detector = fresh().eval()
    assert sum(p.numel() for p in detector.parameters()) <= MAX_PARAMETERS
    for size in ((32, 32), (45, 71)):
        assert detector(torch.rand(2, 3, *size)).shape == (2,)
    with pytest.raises(ValueError, match=r"width must leave at most 600000 parameters, got \d+"):
        Detector(4)


@pytest.fixture(scope="module")
def trained() -> tuple[Detector, list[dict[str, float]]]:
    detector = fresh()
    return detector, train_detector(
        detector, Toys(64, 0), Toys(8, 1), epochs=8, crop=32, batch_size=16
    )


def test_learns_a_trace_that_no_resize_would_leave(trained):
    detector, history = trained
    test = Toys(20, 2)
    assert auc(probabilities(detector, test), test.adversarial) > 0.9
    assert [row["epoch"] for row in history] == list(range(1, 9))
    blurred = probabilities(detector, test, half_size)
    assert auc(blurred, test.adversarial) < auc(probabilities(detector, test), test.adversarial)


def test_resumed_training_ends_in_the_same_weights(trained):
    states: list = []
    detector = fresh()

    def stop_after_three(state):
        states.append({k: torch_copy(v) for k, v in state.items()})
        if len(states) == 3:
            raise KeyboardInterrupt

    arguments = {"epochs": 8, "crop": 32, "batch_size": 16}
    with pytest.raises(KeyboardInterrupt):
        train_detector(detector, Toys(64, 0), Toys(8, 1), **arguments, save=stop_after_three)
    again = fresh(seed=9)
    train_detector(again, Toys(64, 0), Toys(8, 1), **arguments, resume=states[-1])
    for name, value in trained[0].state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name


def torch_copy(value):
    import copy

    return copy.deepcopy(value)


def test_metrics_against_their_definitions():
    rng = np.random.default_rng(0)
    truth = rng.random(300) < 0.4
    p = np.round(rng.random(300) * 0.6 + 0.3 * truth, 2)
    assert auc(p, truth) == pytest.approx(roc_auc_score(truth, p))
    hits = ((p > 0.5) & truth).sum() / truth.sum(), ((p <= 0.5) & ~truth).sum() / (~truth).sum()
    assert accuracy(p, truth) == pytest.approx(50 * sum(hits))
    best = max((p[truth] > t).mean() for t in np.unique(p) if (p[~truth] > t).mean() <= 0.01)
    assert tpr_at_fpr(p, truth) == pytest.approx(100 * best)
    for metric in (auc, accuracy, tpr_at_fpr):
        assert np.isnan(metric([0.1, 0.2], [True, True]))


def test_crops_are_windows_of_the_picture():
    image = torch.arange(3 * 20 * 30).remainder(251).byte().view(3, 20, 30)
    rng = np.random.default_rng(0)
    for _ in range(20):
        window = crop_and_flip(image, 16, rng)
        every = image.unfold(1, 16, 1).unfold(2, 16, 1)
        mirrors = [window.flip(d) for d in ((), (1,), (2,), (1, 2))]
        assert any((every == m[:, None, None]).all(-1).all(-1).all(0).any() for m in mirrors)
    wrapped = crop_and_flip(image, 48, rng)
    assert wrapped.shape == (3, 48, 48)
    assert set(wrapped.flatten().tolist()) <= set(image.flatten().tolist())


def test_disturbances():
    image = Toys(1, 0)[0][0]
    assert half_size(image).shape == (3, 24, 32)
    near = (compress(image, 95).float() - image.float()).abs().mean()
    far = (compress(image, 10).float() - image.float()).abs().mean()
    assert 0 < near < far
    rng = np.random.default_rng(0)
    kept = sum(torch.equal(augment(image, rng), image) for _ in range(200))
    assert 70 < kept < 130  # smaller than 64: only JPEG, for one half


@pytest.mark.parametrize(
    ("train", "changes", "words"),
    [
        (Toys(1, 0), {}, "train must hold photographs and adversarial examples, got 1 and 0"),
        (Toys(0, 0), {}, "train must hold .* got 0 and 0"),
        (Toys(8, 0), {"epochs": 0}, "epochs must be at least 1, got 0"),
        (Toys(8, 0), {"crop": 8}, "crop must be at least 32, got 8"),
        (Toys(8, 0), {"epochs": 4, "lr": float("inf")}, "loss must be finite"),
    ],
)
def test_bad_arguments(train, changes, words):
    with pytest.raises((ValueError, RuntimeError), match=words):
        train_detector(fresh(), train, Toys(4, 1), **changes)
