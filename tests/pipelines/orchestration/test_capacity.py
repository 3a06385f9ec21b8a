import math

import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st

from pipelines.orchestration.capacity import Costs, makespan, measure, scale_page, simulate
from pipelines.params import Params

COSTS = Costs(
    store=1.0,
    perturb=2.0,
    generate=3.0,
    train_attacker=14.0,
    train_victim=5.0,
    image_bytes=1000,
    perturbed_bytes=100,
)


def params(tmp_path, **changes) -> Params:
    return Params.model_validate(tiny.settings(tmp_path, **changes))


@given(st.lists(st.floats(0.1, 9), min_size=1, max_size=40), st.integers(1, 9))
def test_makespan_is_within_its_bounds(lengths, workers):
    found = makespan(lengths, workers)
    lowest = max(sum(lengths) / workers, max(lengths))
    # Graham's bound for giving jobs to the first that is free.
    assert lowest - 1e-9 <= found <= sum(lengths) / workers + max(lengths) + 1e-9


def test_equal_jobs_have_a_closed_form():
    assert makespan([2.0] * 10, 4) == 2.0 * math.ceil(10 / 4)


def test_counts_and_hours_add_up(tmp_path):
    p = params(tmp_path, attack__shard_size=10, import__shard_size=10, perturb__limit=20)
    steps = {s.name: s for s in simulate(COSTS, p, images=105, victims=3, workers=1)}
    made = steps["attack: make"]
    assert made.images == 105 * 3 * 2  # two modes
    assert made.jobs == 11 * 3 * 2  # the last shard of each is smaller
    assert made.core_hours == pytest.approx(105 * 6 * COSTS.generate / 3600)
    assert made.gigabytes == pytest.approx(105 * 6 * 1000 / 1e9)
    assert made.hours == pytest.approx(made.core_hours)  # one worker
    assert steps["perturb"].images == 20 * 14
    assert steps["train_victim"].core_hours == pytest.approx(3 * 105 * 10 * 5 / 3600)
    four = {s.name: s for s in simulate(COSTS, p, images=105, victims=3, workers=4)}
    assert four["attack: make"].core_hours == pytest.approx(made.core_hours)
    assert made.hours / 4 <= four["attack: make"].hours < made.hours / 3


def test_measured_costs_and_page(tmp_path):
    p = params(tmp_path)
    costs = measure(p, (48, 64), rounds=1)
    assert all(value > 0 for value in vars(costs).values())
    assert costs.generate > costs.perturb
    steps = simulate(costs, p, images=1000, victims=26, workers=8)
    page = scale_page(
        costs,
        steps,
        p,
        images=1000,
        victims=26,
        workers=8,
        side=(48, 64),
        gpu_factor=None,
        command="veneer plan",
    )
    assert "No GPU was measured" in page or "Measured on the GPU" in page
    assert f"{steps[-1].jobs:,}" in page
