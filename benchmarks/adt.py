"""The 14 latent spaces of the Attack Diffusion Transformer: in one stack and in a loop.

Both hold the same weights and see the same perturbed pictures, as in the reverse process. `auto`
is what DA3Attacker uses on this kind of device. Exits with 1 where `auto` is the slower one (mean
over the rows), and on a GPU where it is less than three times as fast as the loop.
Run: python benchmarks/adt.py [--quick]
"""

import argparse
import sys
from collections.abc import Callable

import torch
from _timing import best_of, default_device, geometric_mean, hardware
from rich.console import Console
from rich.table import Table
from torch import Tensor

from attackers.da3.adt import ADT
from attackers.da3.filters import FILTERS

GOAL = 3  # on a GPU, times the loop


def forward(adt: ADT, run: str, images: list[Tensor]) -> Callable[[], None]:
    @torch.no_grad()
    def work() -> None:
        adt.run = run
        adt(images, 1)

    return work


def both_ways(adt: ADT, run: str, images: list[Tensor]) -> Callable[[], None]:
    def work() -> None:
        adt.run = run
        adt.zero_grad(set_to_none=True)
        adt(images, 1).sum().backward()

    return work


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="two small batches, one round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--bfloat16", action="store_true", help="in mixed precision")
    arguments = parser.parse_args()
    rounds, batches = (1, [1, 4]) if arguments.quick else (arguments.rounds, [1, 8, 16, 32])
    device = default_device()
    adt = ADT().to(device)
    adt.precision = torch.bfloat16 if arguments.bfloat16 else None
    chosen = "stacked" if device.type == "cuda" else "loop"
    print(hardware())
    table = Table(title=f"14 latent spaces, {'bfloat16' if arguments.bfloat16 else 'float32'}")
    for column in ("batch", "", "loop ms", "stacked ms", "loop / stacked", "faster"):
        table.add_column(column, justify="right")
    ratios = []
    for batch in batches:
        clean = torch.rand(batch, 3, adt.config.size, adt.config.size, device=device)
        images = [f(clean, clean.new_full((batch,), 0.3)) for f in FILTERS.values()]
        for title, side in (("forward", forward), ("forward and backward", both_ways)):
            sides = {run: side(adt, run, images) for run in ("loop", "stacked")}
            spent = best_of(sides, rounds)
            ratios.append(spent["loop"] / spent["stacked"])
            table.add_row(
                str(batch),
                title,
                f"{1000 * spent['loop']:.1f}",
                f"{1000 * spent['stacked']:.1f}",
                f"{ratios[-1]:.2f}",
                min(spent, key=spent.__getitem__),
            )
    Console().print(table)
    mean = geometric_mean(ratios)
    faster = "stacked" if mean > 1 else "loop"
    print(f"stacked is {mean:.2f} times as fast as the loop; `auto` uses {chosen} on {device.type}")
    if chosen != faster:
        sys.exit(f"`auto` must use the faster one, {faster}")
    if device.type == "cuda" and mean < GOAL:
        sys.exit(f"on a GPU the stack must be at least {GOAL} times as fast as the loop")


if __name__ == "__main__":
    main()
