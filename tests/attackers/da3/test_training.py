import io

import pytest
import torch
from torch import nn

from attackers.da3.training import train_stage


class Problem:
    """Least squares with noise drawn by epoch, and a script of held-out losses if given."""

    def __init__(self, script=None):
        torch.manual_seed(0)
        self.model = nn.Linear(4, 1)
        self.goal = torch.randn(4, 1)
        self.script = iter(script) if script else None
        self.states = []

    def losses(self, epoch):
        generator = torch.Generator().manual_seed(epoch)
        for _ in range(3):
            x = torch.randn(8, 4, generator=generator)
            yield (self.model(x) - x @ self.goal).square().mean(), len(x)

    def validate(self):
        self.states.append({k: v.clone() for k, v in self.model.state_dict().items()})
        with torch.no_grad():
            x = torch.randn(64, 4, generator=torch.Generator().manual_seed(999))
            loss = float((self.model(x) - x @ self.goal).square().mean())
        return {"loss": next(self.script) if self.script else loss}

    def train(self, **arguments):
        return train_stage(self.model, self.losses, self.validate, **arguments)


def without_hours(history):
    return [{k: v for k, v in row.items() if k != "hours"} for row in history]


@pytest.mark.parametrize("stop", [0, 1, 3, 5, 6])
@pytest.mark.parametrize("decay_steps", [None, 18])
def test_resumed_is_run_through_bit_for_bit(stop, decay_steps):
    kept = []
    arguments = {"epochs": 6, "lr": 0.05, "patience": 0, "decay_steps": decay_steps}

    def save(state):
        buffer = io.BytesIO()
        torch.save(state, buffer)
        kept.append(buffer.getvalue())

    whole = Problem()
    history = whole.train(**arguments, save=save)
    assert len(kept) == 7  # the untrained model among them
    part = Problem()
    with torch.no_grad():
        part.model.weight.zero_()  # nothing but the checkpoint counts
    resume = torch.load(io.BytesIO(kept[stop]))
    again = part.train(**arguments, resume=resume)
    assert without_hours(again) == without_hours(history)
    for ours, theirs in zip(part.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_rows_count_epochs_and_steps():
    reported = []
    history = Problem().train(epochs=3, lr=0.05, report=reported.append)
    assert reported == history
    assert [row["epoch"] for row in history] == [0, 1, 2, 3]
    assert [row["steps"] for row in history] == [0, 3, 6, 9]
    hours = [row["hours"] for row in history]
    assert hours[0] == 0
    assert hours == sorted(hours)
    assert history[-1]["loss"] < history[0]["loss"]


@pytest.mark.parametrize("best", range(5))
def test_the_best_epoch_stays(best):
    script = [5.0, 6.0, 7.0, 8.0, 9.0]
    script[best] = 1.0
    problem = Problem(script)
    problem.train(epochs=4, lr=0.05)
    for name, value in problem.model.state_dict().items():
        assert torch.equal(value, problem.states[best][name])
    assert not torch.equal(problem.states[0]["weight"], problem.states[1]["weight"])


def test_the_first_of_equal_epochs_stays():
    problem = Problem([2.0, 1.0, 1.0])
    problem.train(epochs=2, lr=0.05)
    assert torch.equal(problem.model.weight, problem.states[1]["weight"])


def test_the_rate_falls_on_a_plateau():
    history = Problem([1.0] * 9).train(epochs=8, lr=0.1, patience=2)
    rates = [row["lr"] for row in history]
    assert rates[:5] == [0.1] * 5
    assert rates[5:8] == pytest.approx([0.01] * 3)


def test_the_rate_falls_linearly_over_the_training_and_on_a_plateau():
    history = Problem([1.0] * 5).train(epochs=4, lr=0.12, patience=1, decay_steps=12)
    rates = [row["lr"] for row in history]
    left = [1 - 11 / 12 * steps / 12 for steps in (0, 3, 6, 9, 12)]
    plateau = [1, 1, 1, 1, 0.1]
    assert rates == pytest.approx([0.12 * a * b for a, b in zip(left, plateau, strict=True)])


def test_no_epochs_only_validates():
    problem = Problem()
    assert [row["epoch"] for row in problem.train(epochs=0)] == [0]
    assert torch.equal(problem.model.weight, problem.states[0]["weight"])


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_raises(bad):
    problem = Problem()

    def losses(epoch):
        yield from problem.losses(epoch)
        yield problem.model.weight.sum() * bad, 8

    with pytest.raises(RuntimeError, match=r"loss must be finite, got .*: lower lr"):
        train_stage(problem.model, losses, problem.validate, epochs=2)


@pytest.mark.parametrize("arguments", [{"epochs": -1}, {"epochs": 1, "lr": 0}])
def test_bad_arguments_raise(arguments):
    with pytest.raises(ValueError, match="epochs must be ≥ 0 and lr > 0"):
        Problem().train(**arguments)
