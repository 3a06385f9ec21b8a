"""3AE from real photographs, and what it is good for: detector and adversarial fine-tuning.

Runs the stages of params/livec.yaml under .cache/livec3ae with two victims and examples of every
split. Labels are simulated unless votes lie in annotations/3ae.parquet there.
Prints Markdown tables. Everything finished is kept. The photographs are looked for in
$VENEER_LIVEC, else where the parameters say.
"""

import argparse
import sys
import time
from pathlib import Path

from _livec import changed, prepare

from pipelines.cli import run
from pipelines.params import load_params
from pipelines.reports.tables import (
    curation_table,
    detector_table,
    finetune_table,
    robustness_table,
)
from pipelines.stages.annotate import run_annotate
from pipelines.stages.attack import run_attack
from pipelines.stages.curate import run_curate
from pipelines.stages.evaluate import run_evaluate
from pipelines.stages.finetune import run_finetune
from pipelines.stages.package import run_package
from pipelines.stages.pretrain import run_pretrain
from pipelines.stages.train_detector import run_train_detector
from pipelines.storage.layout import Layout

VICTIMS = ["nima", "lite0"]


def main() -> None:
    """Run every stage in order."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--params", type=Path, default=Path("params/livec.yaml"))
    parser.add_argument("--root", type=Path, default=Path(".cache/livec3ae"))
    parser.add_argument("--attack", nargs="+", choices=VICTIMS, help="only attack these")
    arguments = parser.parse_args()
    layout = Layout(arguments.root)
    params = changed(
        load_params(arguments.params),
        attack={"victims": VICTIMS, "photographs": "all"},
        curate={"splits": None},
    )
    began = time.perf_counter()
    prepare(params, layout)
    run_pretrain(params, layout)
    for name in arguments.attack or VICTIMS:
        for mode in params.attack.modes:
            run_attack(params, layout, name, mode)
    if arguments.attack:
        return
    print(f"\n{robustness_table(run_evaluate(params, layout))}", flush=True)
    print(f"\n{curation_table(run_curate(params, layout))}", flush=True)
    run_annotate(params, layout)
    run_package(params, layout)
    detector = run_train_detector(params, layout)
    print(f"\n### Detector: {detector['about']}\n\n{detector_table(detector)}", flush=True)
    for name in params.finetune.victims:
        print(f"\n### Fine-tuning {name}\n\n{finetune_table(run_finetune(params, layout, name))}")
    print(f"\n{time.perf_counter() - began:.0f} s in this run")


if __name__ == "__main__":
    sys.exit(run(main))
