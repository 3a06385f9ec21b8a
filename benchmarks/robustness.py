"""Robustness of a victim on real photographs, with the ablations of Tables VI and VIII.

Runs the stages of params/livec.yaml under .cache/livec, then again with refine 4, without
pretraining, without the condition, and against the victim with frozen features. Prints Markdown
tables. Everything finished is kept: a second run only prints. The photographs are looked for in
$VENEER_LIVEC, else where the parameters say.
"""

import argparse
import sys
import time
from pathlib import Path

from _livec import changed, prepare

from pipelines.cli import run
from pipelines.params import Params, load_params
from pipelines.reports.tables import pretrain_table, robustness_table
from pipelines.stages.attack import run_attack
from pipelines.stages.evaluate import run_evaluate
from pipelines.stages.pretrain import run_pretrain
from pipelines.storage.layout import Layout

SHARED = ("datasets/clean", "datasets/pretrain", "models/victims")
# Filters raise nearly every score of a ridge regression on frozen features, but few by much: asking
# for 0.6 of 100 points fools more photographs than asking for 2, which oversteps on some.
FROZEN = {"victims": ["lite0"], "epochs": 4}
FROZEN_ETA = 0.06


def beside(layout: Layout, name: str, *more: str) -> Layout:
    """A root of its own for a variant that shares data, victims and `more` with `layout`."""
    root = layout.root / "variants" / name
    for folder in (*SHARED, *more):
        link = root / folder
        link.parent.mkdir(parents=True, exist_ok=True)
        if not link.is_symlink():
            link.symlink_to((layout.root / folder).resolve())
    return Layout(root)


def measure(title: str, params: Params, layout: Layout) -> None:
    """Attack, evaluate and print one variant."""
    began = time.perf_counter()
    if params.attack.pretrained:
        report = run_pretrain(params, layout)
        print(f"\n### Stage 1, {title}\n\n{pretrain_table(report)}", flush=True)
    for victim in params.attack.victims:
        for mode in params.attack.modes:
            run_attack(params, layout, victim, mode)
    table = robustness_table(run_evaluate(params, layout))
    took = time.perf_counter() - began
    print(f"\n### {title}\n\n{table}\n\n{took:.0f} s in this run", flush=True)


def main() -> None:
    """Run all variants, or those named."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--params", type=Path, default=Path("params/livec.yaml"))
    parser.add_argument("--root", type=Path, default=Path(".cache/livec"))
    names = ("full", "refine", "scratch", "unconditioned", "frozen")
    parser.add_argument("--variants", nargs="+", choices=names, default=names)
    arguments = parser.parse_args()
    params, layout = load_params(arguments.params), Layout(arguments.root)
    prepare(params, layout)
    if "full" in arguments.variants:
        measure("DA3Attacker", params, layout)
    if "refine" in arguments.variants:
        # The same trained attackers: only what is kept of each differs.
        refined = beside(layout, "refine", ".cache", "models/da3")
        measure("with refine 4", changed(params, attack={"refine": 4}), refined)
    if "frozen" in arguments.variants:
        objectives = {
            mode: objective.model_copy(update={"eta": FROZEN_ETA})
            for mode, objective in params.attack.objectives.items()
        }
        frozen = changed(params, attack={**FROZEN, "objectives": objectives})
        prepare(frozen, layout)
        measure("victim of frozen features", frozen, beside(layout, "frozen", ".cache"))
    one = {"modes": ["unrestricted"]}
    if "scratch" in arguments.variants:
        scratch = changed(params, attack={**one, "pretrained": False})
        measure("without pretraining (Table VI)", scratch, beside(layout, "scratch"))
    if "unconditioned" in arguments.variants:
        bare = changed(params, attack=one, adt={"condition": False})
        measure("condition: false (Table VIII)", bare, beside(layout, "unconditioned"))


if __name__ == "__main__":
    sys.exit(run(main))
