import math

import pytest
import torch
from torch import nn

from victims.loop import RandomState, best_epoch, fit, take_steps


class Walk:
    """A training that adds a random number to a weight in every epoch."""

    def __init__(self):
        self.model = nn.Linear(1, 1, bias=False)
        nn.init.zeros_(self.model.weight)
        self.generator = torch.Generator().manual_seed(0)
        self.weights = []

    def run_epoch(self, epoch):
        with torch.no_grad():
            self.model.weight += torch.rand((), generator=self.generator)
        self.weights.append(self.model.weight.item())
        return {"loss": float(epoch)}

    def fit(self, epochs=4, **arguments):
        state = {"random": RandomState(self.generator)}
        return fit(self.model, self.run_epoch, epochs=epochs, state=state, **arguments)


def test_the_last_epoch_stays_without_a_score():
    walk = Walk()
    assert [row["epoch"] for row in walk.fit()] == [1, 2, 3, 4]
    assert walk.model.weight.item() == walk.weights[-1]


@pytest.mark.parametrize(("prefer_later", "chosen"), [(False, 0), (True, 2)])
def test_of_equal_epochs_the_first_or_the_last_stays(prefer_later, chosen):
    scores = iter([1.0, 0.0, 1.0, math.nan])
    walk = Walk()
    walk.fit(
        validate=lambda epoch: {"score": next(scores)},
        score=lambda row: row["score"],
        prefer_later=prefer_later,
    )
    assert walk.model.weight.item() == walk.weights[chosen]


@pytest.mark.parametrize("stop", range(1, 5))
def test_random_numbers_go_on_where_they_were(stop):
    checkpoints = []

    def save(checkpoint):
        state = {name: {**part} for name, part in checkpoint.get("state", {}).items()}
        model = {name: value.clone() for name, value in checkpoint["model"].items()}
        history = list(checkpoint["history"])
        checkpoints.append(checkpoint | {"state": state, "model": model, "history": history})

    whole = Walk()
    history = whole.fit(save=save)
    part = Walk()
    assert part.fit(resume=checkpoints[stop - 1]) == history
    assert part.model.weight.item() == whole.model.weight.item()
    assert len(part.weights) == 4 - stop


def test_a_finished_training_is_not_run_again():
    checkpoints = []
    history = Walk().fit(save=checkpoints.append)
    again = Walk()
    assert again.fit(resume=checkpoints[-1]) == history
    assert not again.weights
    assert "state" not in checkpoints[-1]


def test_an_epoch_without_a_batch_raises():
    optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=1.0)
    with pytest.raises(ValueError, match="at least 1 batch, got none"):
        take_steps([], optimizer)


def test_the_best_epoch_is_the_first_of_equal_ones():
    rows = [{"epoch": float(i), "auc": value} for i, value in enumerate([math.nan, 1, 2, 2])]
    assert best_epoch(rows, "auc") == 2
