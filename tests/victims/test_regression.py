import copy
import math

import pytest
import torch

from victims.registry import build_victim
from victims.regression import (
    LOSSES,
    SCHEDULES,
    Phase,
    mean_scores,
    phases_of,
    ranking_loss,
    train_regressor,
)

SCALE = {"low": 0, "high": 10}


def build(kind="hyperiqa", **more):
    config = {"kind": kind, "backbone": "test_efficientnet", "input_size": 32, "scale": SCALE}
    return build_victim(config | more)


def grey(count, seed=0):
    """Pictures of several sizes whose brightness is their label."""
    generator = torch.Generator().manual_seed(seed)
    levels = torch.rand(count, generator=generator)
    images = [
        (255 * level * torch.ones(3, 40 + 4 * (i % 3), 44)).byte() for i, level in enumerate(levels)
    ]
    return images, (10 * levels).tolist()


@pytest.mark.parametrize("kind", SCHEDULES)
def test_every_kind_learns_brightness(kind):
    model = build(kind)
    images, labels = grey(16)
    rows = train_regressor(
        model, images, labels, grey(10, seed=1), phases=[Phase(8, 3e-3, 3e-3)], batch_size=4
    )
    assert max(row["srocc"] for row in rows) > 0.9
    assert rows[-1]["loss"] < rows[1]["loss"]
    assert not model.training
    assert not any(p.requires_grad for p in model.parameters())


def test_the_best_epoch_on_validation_is_kept():
    model = build()
    images, labels = grey(12)
    other = grey(8, seed=1)
    rows = train_regressor(model, images, labels, other, phases=[Phase(4, 3e-3, 3e-3)])
    best = max(rows, key=lambda row: row["srocc"])
    scores, wanted = mean_scores(model, other[0]), torch.tensor(other[1])
    assert float((scores - wanted).square().mean().sqrt()) == pytest.approx(best["rmse"], abs=1e-3)


def test_same_seed_same_weights_whatever_the_global_state():
    weights = []
    for seed in (0, 0, 1):
        model = build("tres")
        torch.manual_seed(len(weights))
        before = torch.get_rng_state()
        train_regressor(model, *grey(6), phases=[Phase(1, 1e-3, 1e-3)], seed=seed, batch_size=3)
        assert torch.equal(torch.get_rng_state(), before)
        weights.append(torch.cat([p.flatten() for p in model.parameters()]))
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_stopped_and_resumed_ends_in_the_same_weights():
    phases = [Phase(2, 1e-2, 1e-2, "sgd", backbone=False), Phase(2, 1e-3, 1e-3, drop_every=1)]
    states, data = [], (*grey(6), grey(4, seed=1))
    whole = build("tres")
    rows = train_regressor(
        whole,
        *data,
        phases=phases,
        batch_size=3,
        save=lambda s: states.append(copy.deepcopy(s)),
    )
    assert len(states) == 5
    for state in states:
        model = build("tres")
        again = train_regressor(model, *data, phases=phases, batch_size=3, resume=state)
        assert again[1:] == rows[1:]
        for name, tensor in model.state_dict().items():
            assert torch.equal(tensor, whole.state_dict()[name]), name


def test_phases_freeze_what_they_say_and_drop_the_rate():
    model = build(frozen_stages=2)
    start = {name: p.clone() for name, p in model.named_parameters()}
    frozen = model.frozen()
    seen = []
    phases = [
        Phase(1, 1e-2, 1e-2, "sgd", backbone=False),
        Phase(4, 1e-3, 1e-3, drop_every=2),
    ]

    def measure(epoch):
        moved = {n for n, p in model.named_parameters() if not torch.equal(p, start[n])}
        seen.append(any(n.startswith("backbone.") for n in moved))
        return {"moved": float(len(moved))}

    rows = train_regressor(model, *grey(6), phases=phases, measure=measure)
    assert seen == [False, False, True, True, True, True]
    assert [row["moved"] > 0 for row in rows] == [False] + 5 * [True]
    assert [row["lr"] for row in rows] == pytest.approx([0, 1e-2, 1e-3, 1e-3, 1e-4, 1e-4])
    for name, p in model.named_parameters():
        if p in frozen:
            assert torch.equal(p, start[name])
    assert math.isnan(rows[0]["loss"])


def test_running_statistics_of_the_backbone_stay():
    model = build()
    before = {n: b.clone() for n, b in model.backbone.named_buffers() if "running" in n}
    train_regressor(model, *grey(6), phases=[Phase(1, 1e-3, 1e-3)])
    assert before
    for name, buffer in model.backbone.named_buffers():
        if name in before:
            assert torch.equal(buffer, before[name])


def test_losses_are_0_at_the_labels_and_in_per_cent():
    class Told:
        """A model that answers what it is told, for crops that say it."""

        def quality(self, crops):
            return crops[:, 0, 0, 0] + self.error

    wanted = torch.tensor([0.1, 0.9, 0.5, 0.3])
    crops = wanted[:, None, None, None].expand(4, 3, 2, 2)
    model = Told()
    for error, expected in ((0.0, {"l1": 0, "mse": 0}), (0.1, {"l1": 10, "mse": 100})):
        model.error = error
        for name, value in expected.items():
            assert float(LOSSES[name](model, crops, wanted)) == pytest.approx(value, abs=1e-4)
    model.error = 0.0
    assert float(LOSSES["tres"](model, crops, wanted)) == pytest.approx(0, abs=1e-4)


def test_ranking_loss():
    wanted = torch.tensor([0.2, 0.8, 0.4, 1.0])
    assert float(ranking_loss(wanted, wanted)) == pytest.approx(0, abs=1e-6)
    # All equal: both triplets lose their margin, 0.8 - 0.2 and 1.0 - 0.4.
    assert float(ranking_loss(torch.full((4,), 0.5), wanted)) == pytest.approx(1.2)
    assert float(ranking_loss(wanted[:2], wanted[:2])) == 0


def test_schedules_are_those_of_the_papers():
    assert phases_of("hyperiqa", None) == (Phase(24, 2e-5, 2e-4, drop_every=8),)
    assert [p.epochs for p in phases_of("dbcnn", None)] == [8, 8]
    assert [p.optimizer for p in phases_of("dbcnn", None)] == ["sgd", "adam"]
    assert phases_of("tres", [{"epochs": 1, "lr": 1.0, "head_lr": 2.0}]) == (Phase(1, 1.0, 2.0),)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: train_regressor(build(), [], [], phases=[]), "equally many, at least 1, got 0"),
        (
            lambda: train_regressor(build(), *grey(2), phases=[], loss="emd"),
            "loss must be one of l1, mse, tres, got 'emd'",
        ),
        (lambda: train_regressor(build(), *grey(2), phases=[], batch_size=0), "batch_size must"),
        (lambda: Phase(-1, 1.0, 1.0), "epochs and drop_every must be at least 0, got -1"),
        (lambda: Phase(1, 0.0, 1.0), "lr and head_lr must be above 0, got 0, 1"),
        (lambda: Phase(1, 1.0, 1.0, "lbfgs"), "optimizer must be adam or sgd, got 'lbfgs'"),
        (lambda: phases_of("nima", None), "victim must be one of hyperiqa, dbcnn, tres"),
        (lambda: phases_of("tres", [{"rate": 1}]), "phases must fit a training phase"),
    ],
)
def test_bad_arguments(make, words):
    with pytest.raises(ValueError, match=words):
        make()
