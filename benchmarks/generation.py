"""Adversarial examples per second: DA3Attacker's `generate` beside PGD with 20 steps.

Both attack the same NIMA on tf_efficientnet_lite0. No weights are trained: they do not change
what a step costs. PGD moves the pixels of the full picture, as DA3 does; the victim sees 224×224
of either. Also in bfloat16 where the machine multiplies it itself: what `dtype: auto` chooses.
Run: python benchmarks/generation.py [--quick] [--profile]
"""

import argparse
from collections.abc import Callable
from functools import partial

import torch
from _timing import best_of, default_device, hardware, peak_memory
from rich.console import Console
from rich.table import Table
from torch import Tensor

from attackers.baselines.pgd import pgd
from attackers.da3.attacker import DA3Attacker, generate
from attackers.objectives import Objective
from attackers.projections import quantize
from pipelines.execution.devices import has_bfloat16
from victims.registry import build_victim

GOAL = 10  # times as many examples per second as PGD
STEPS = 20
VICTIM = {
    "kind": "nima",
    "backbone": "tf_efficientnet_lite0",
    "pretrained": "none",
    "scale": {"low": 0, "high": 10},
}
OBJECTIVES = {
    "unrestricted": Objective(),
    "35 dB": Objective(alpha=1.0, min_psnr=35.0),
}


def pictures(count: int, side: int, device: torch.device) -> Tensor:
    """Smooth random pictures on the 8-bit grid."""
    coarse = torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    fine = torch.nn.functional.interpolate(coarse, (side, side), mode="bicubic")
    return quantize(fine).to(device)


def profile(work: Callable[[], object]) -> None:
    with torch.profiler.profile() as found:
        work()
    print(found.key_averages().table(sort_by="self_cpu_time_total", row_limit=20))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one round, 224 pixels only")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--profile", action="store_true", help="also where generate spends time")
    arguments = parser.parse_args()
    rounds, sides = (1, [224]) if arguments.quick else (arguments.rounds, [224, 500])
    device, batch = default_device(), arguments.batch
    victim = build_victim(VICTIM).to(device)
    attackers = {"float32": DA3Attacker().to(device)}
    if has_bfloat16():
        attackers["bfloat16"] = DA3Attacker().to(device)
        attackers["bfloat16"].adt.precision = torch.bfloat16
    print(hardware())
    for side in sides:
        images = pictures(batch, side, device)
        eps = 8 / 255
        works = {
            f"PGD, {STEPS} steps": partial(
                pgd, victim, images, objective="raise", eps=eps, steps=STEPS
            )
        }
        for dtype, attacker in attackers.items():
            for mode, objective in OBJECTIVES.items():
                works[f"DA3, {mode}, {dtype}"] = partial(
                    generate, attacker, victim, images, objective=objective
                )
        memory = {}
        for name, work in works.items():  # warm-up and memory in one
            work()
            with peak_memory() as found:
                work()
            memory[name] = found[0]
        seconds = best_of(works, rounds, warm_up=False)
        yardstick = next(iter(seconds.values()))
        table = Table(title=f"batch {batch}, {side}×{side}")
        for column in ("", "s", "AEs/s", f"times PGD (goal ≥ {GOAL})", "peak MiB"):
            table.add_column(column, justify="right" if column else "left")
        for name, spent in seconds.items():
            table.add_row(
                name,
                f"{spent:.3f}",
                f"{batch / spent:.2f}",
                f"{yardstick / spent:.1f}",
                f"{memory[name]:.0f}",
            )
        Console().print(table)
        if arguments.profile:
            for name, work in works.items():
                print(name)
                profile(work)


if __name__ == "__main__":
    main()
