import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from defenders.finetuning import blend, finetune, scores_of
from victims.base import ScoreScale

SCALE = ScoreScale.of(0, 10)


class TwoFeatures(nn.Module):
    """Scores brightness and, wrongly, redness: what an attacker would use."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.tensor([8.0, 6.0]))
        self.bias = nn.Parameter(torch.tensor(1.0))
        self.norm = nn.BatchNorm1d(2)

    def forward(self, images: Tensor) -> Tensor:
        luma = images.mean(dim=(1, 2, 3))
        red = images[:, 0].mean(dim=(1, 2)) - luma
        return self.bias + torch.stack([luma, red], 1) @ self.weights


def scenes(count: int, seed: int, red: float = 0.0) -> tuple[list[Tensor], list[float]]:
    """Grey pictures scored by brightness; redder ones get no more."""
    rng = np.random.default_rng(seed)
    images, mos = [], []
    for level in rng.uniform(0.1, 0.7, count):
        image = torch.full((3, 8, 8), level)
        image[0] += red
        images.append((255 * image).round().byte())
        mos.append(1 + 8 * (level + red / 3))
    return images, mos


def test_a_victim_that_can_be_solved_is_solved():
    model = TwoFeatures()
    fooled = scenes(40, 3, red=0.2)
    gain = scores_of(model, fooled[0]) - np.array(fooled[1])
    assert gain.min() > 0.5
    history = finetune(
        model,
        SCALE,
        scenes(60, 0),
        scenes(60, 1, red=0.2),
        scenes(20, 2),
        validation_adversarial=scenes(20, 4, red=0.2),
        epochs=30,
        lr=0.3,
    )
    assert np.abs(scores_of(model, fooled[0]) - np.array(fooled[1])).max() < 0.3
    assert abs(float(model.weights.detach()[1])) < 2
    assert min(r["rmse"] + r["rmse_adversarial"] for r in history) < 0.3
    clean = scenes(20, 5)
    assert np.abs(scores_of(model, clean[0]) - np.array(clean[1])).max() < 0.3
    assert not model.training
    assert torch.equal(model.norm.running_mean, torch.zeros(2))


class Stepped(nn.Module):
    """Scores brightness, and can tell bright pictures from others."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.tensor([1.0, 8.0, 0.0]))

    def forward(self, images: Tensor) -> Tensor:
        luma = images.mean(dim=(1, 2, 3))
        return torch.stack([luma**0, luma, (luma > 0.75).float()], 1) @ self.weights


def test_what_it_knew_of_other_pictures_is_kept():
    """Opinions of dark pictures alone teach nothing of bright ones: views of those do."""
    bright = [torch.full((3, 20, 30), level) for level in (0.8, 0.9, 1.0)]
    photographs = [(255 * image).round().byte() for image in bright]
    at = [image[:, :8, :8] for image in photographs]
    before = scores_of(Stepped(), at)
    moved = {}
    for keep in (0.0, 10.0):
        model = Stepped()
        images, mos = scenes(40, 1)
        dark = images, [m - 2 for m in mos]  # as of examples that people like less
        finetune(
            model,
            SCALE,
            dark,
            dark,
            dark,
            photographs=photographs,
            distillation_weight=keep,
            epochs=20,
            lr=0.1,
        )
        assert np.abs(scores_of(model, images) - np.array(dark[1])).mean() < 0.3
        moved[keep] = np.abs(scores_of(model, at) - before).mean()
    assert moved[0.0] > 1
    assert moved[10.0] < 0.2


def test_a_blend_lies_between_what_came_and_what_is():
    model = TwoFeatures()
    came = copy.deepcopy(model.state_dict())
    with torch.no_grad():
        model.weights += 4
    model.norm.num_batches_tracked += 1
    now = copy.deepcopy(model.state_dict())
    blend(model, came, 1.0)
    assert all(torch.equal(value, now[name]) for name, value in model.state_dict().items())
    blend(model, came, 0.25)
    torch.testing.assert_close(model.weights.detach(), came["weights"] + 1)
    assert model.norm.num_batches_tracked == 1
    with pytest.raises(ValueError, match=r"share must be in \(0, 1\], got 0"):
        blend(model, came, 0)


def test_the_best_epoch_stays_be_it_the_first():
    model = TwoFeatures()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    # Wrong scores for training, right ones for validation: every step makes it worse.
    images, mos = scenes(20, 0)
    wrong = images, [10 - m for m in mos]
    finetune(model, SCALE, wrong, wrong, scenes(20, 0), epochs=2, lr=0.05)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_same_seed_same_weights_whatever_the_global_state():
    ends = []
    for state in (1, 2):
        torch.manual_seed(state)
        model = TwoFeatures()
        data = scenes(10, 0), scenes(10, 1, red=0.2), scenes(5, 2)
        finetune(model, SCALE, *data, epochs=1, lr=0.1)
        ends.append(model.weights.detach().clone())
    assert torch.equal(*ends)


class Forgetful(TwoFeatures):
    """Draws random numbers in training."""

    def forward(self, images: Tensor) -> Tensor:
        return nn.functional.dropout(super().forward(images), 0.3, self.training)


def test_stopped_and_resumed_ends_in_the_same_weights():
    data = scenes(10, 0), scenes(10, 1, red=0.2), scenes(5, 2)
    whole, states = Forgetful(), []
    history = finetune(
        whole, SCALE, *data, epochs=3, lr=0.1, save=lambda s: states.append(copy.deepcopy(s))
    )
    for state in states:
        again = Forgetful()
        assert finetune(again, SCALE, *data, epochs=3, lr=0.1, resume=state)[1:] == history[1:]
        assert torch.equal(again.weights, whole.weights)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"clean": ([], [])}, "clean must hold images and as many scores, got 0 and 0"),
        ({"adversarial": (scenes(2, 0)[0], [1.0])}, "adversarial must hold .* got 2 and 1"),
        (
            {"distillation_weight": 1.0},
            "distillation_weight must be ≥ 0, with photographs to keep .* got 1 with 0",
        ),
        ({"distillation_weight": -1.0}, "distillation_weight must be ≥ 0"),
        ({"epochs": 0}, "epochs must be ≥ 1"),
        ({"clean_share": 1.0}, r"clean_share in \(0, 1\), got 5 and 1.0"),
    ],
)
def test_bad_arguments(changes, words):
    good = {"clean": scenes(2, 0), "adversarial": scenes(2, 1), "validation": scenes(2, 2)}
    with pytest.raises(ValueError, match=words):
        finetune(TwoFeatures(), SCALE, **(good | changes))
