"""A campaign of 5,000 tasks on a real Label Studio server: push, push again, pull, pull again.

Time, and what the memory of this process grew by at its peak. Pictures go inline (the heaviest
way). Each task gets one vote as it is imported, because voting through the interface would take
longer than all the rest. Needs `make labelstudio-server`. Run: python benchmarks/annotation.py
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from _timing import hardware, process_memory

from pipelines.annotation import sync
from pipelines.annotation.campaign import CampaignPlan, Inline, Pair, plan_tasks
from pipelines.annotation.label_studio import LabelStudio
from pipelines.annotation.status import status
from pipelines.annotation.sync import pull, push
from pipelines.storage.images import encode_png

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "pipelines"))
import label_studio_server


class Voting(LabelStudio):
    """Imports each task with a vote on it."""

    def add_tasks(self, project: int, tasks: Sequence[Mapping[str, Any]]) -> None:
        """Import tasks, each with a vote."""
        result = [
            {"from_name": "score", "to_name": "left", "type": "number", "value": {"number": 4.5}},
            {
                "from_name": "verdict",
                "to_name": "left",
                "type": "choices",
                "value": {"choices": ["degraded"]},
            },
        ]
        super().add_tasks(project, [{**t, "annotations": [{"result": result}]} for t in tasks])


def picture(key: str, side: int) -> bytes:
    """A smooth picture of its own for each key, about as large as a photograph of that size."""
    rng = np.random.default_rng(int(key, 16))
    ramp = np.linspace(0, 200, side)[:, None, None] * rng.uniform(0.3, 1, 3)
    noise = rng.integers(0, 24, (side, side, 3))
    return encode_png((ramp + noise).clip(0, 255).astype(np.uint8))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", type=int, default=5000)
    parser.add_argument("--side", type=int, default=96, help="of a picture, pixels")
    options = parser.parse_args()
    plan = CampaignPlan("Benchmark", 1, 0, 0, ("blur",), 0)
    pairs = [Pair(f"{2 * i:016x}", f"{2 * i + 1:016x}") for i in range(options.tasks)]
    tasks = plan_tasks(pairs, plan)
    if not label_studio_server.TEMPLATE.exists():
        sys.exit("benchmarks/annotation.py needs a server: run `make labelstudio-server` first")
    with tempfile.TemporaryDirectory() as name, label_studio_server.fresh(Path(name) / "d") as on:
        server = Voting(on.url, label_studio_server.TOKEN)
        file = Path(name) / "votes.parquet"

        def image(key: str) -> bytes:
            return picture(key, options.side)

        steps: dict[str, Callable[[], Any]] = {
            "push": lambda: push(server, plan, tasks, image, Inline())["added"],
            "push again": lambda: push(server, plan, tasks, image, Inline())["added"],
            "status": lambda: status(server, plan.name)["votes"],
            "pull": lambda: pull(server, plan.name, file)["new"],
            "pull again, a day later": lambda: _later(server, plan, file)["new"],
        }
        print(f"{hardware()}; {options.tasks:,} tasks, two pictures of {options.side} px inline")
        print("| step | changes | seconds | tasks/s | memory grew by, MiB |")
        print("| --- | --: | --: | --: | --: |")
        for step, work in steps.items():
            began = time.perf_counter()
            with process_memory() as grown:
                changes = work()
            took = time.perf_counter() - began
            print(
                f"| {step} | {changes:,} | {took:.1f} | {options.tasks / took:,.0f} "
                f"| {grown[0]:.0f} |",
                flush=True,
            )


def _later(server: LabelStudio, plan: CampaignPlan, file: Path) -> dict[str, Any]:
    """Nothing was voted on since: the minute that pull looks back has passed."""
    sync.OVERLAP = sync.timedelta(0)
    return pull(server, plan.name, file)


if __name__ == "__main__":
    main()
