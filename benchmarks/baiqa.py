"""The table of BAIQA on real photographs: clean, P-ours, P-FTrojan, P-Blended, C-ours.

Every row has the same data, seed, victim and budget (params/livec.yaml). The clean model is
measured with our trigger, the others with their own. P-filtered is trained on the rows of P-ours
that are not poisoned: what a benign score loses by fewer photographs alone. P-purified is trained
on what `veneer scan --purify` leaves of the set of P-ours, with repaired scores. --seen asks of
each trigger how much of alpha the victim's backbone can tell before any training. All that was
finished is kept under .cache/livec: a second run only measures. The photographs are looked for in
$VENEER_LIVEC, else where the parameters say.
"""

import argparse
import shutil
import sys
import time
from pathlib import Path

import numpy as np
import torch
from _livec import import_photographs, import_source
from sklearn.linear_model import RidgeCV
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from attackers.projections import quantize
from pipelines.audit.purify import purify
from pipelines.audit.scan import ScanSettings, scan
from pipelines.audit.scan_report import scan_text, write_scan
from pipelines.cli import run
from pipelines.params import Params, load_params
from pipelines.readers.pictures import shard_pictures
from pipelines.readers.poisoned import build_quality, open_trigger
from pipelines.readers.rows import open_dataset
from pipelines.reports.tables import backdoor_table
from pipelines.stages.backdoor import poisoned_scheme, run_backdoor
from pipelines.stages.poison import run_poison
from pipelines.stages.search_trigger import run_search_trigger
from pipelines.storage.layout import Layout
from pipelines.storage.manifest import read_manifest
from victims.crops import random_crops

# row -> (kind of trigger, scheme)
ROWS = {
    "clean": ("uap", "clean"),
    "P-ours": ("uap", "p"),
    "P-FTrojan": ("ftrojan", "p"),
    "P-Blended": ("blended", "p"),
    "P-WaNet": ("wanet", "p"),
    "C-ours": ("uap", "c"),
    "P-filtered": ("uap", "filtered"),
    "P-purified": ("uap", "p"),
}
DEFAULT = ("clean", "P-ours", "P-FTrojan", "P-Blended", "C-ours")


def variant(params: Params, layout: Layout, kind: str, defended: bool) -> tuple[Params, Layout]:
    """Parameters and a root of its own for a trigger, over the same photographs and work folder."""
    section = params.section("trigger").model_copy(update={"kind": kind})
    backdoor = params.section("backdoor")
    if not defended:
        backdoor = backdoor.model_copy(update={"defenses": []})
    root = layout.root / "triggers" / kind
    for shared in ("datasets/clean", ".cache"):
        link = root / shared
        link.parent.mkdir(parents=True, exist_ok=True)
        (layout.root / shared).mkdir(parents=True, exist_ok=True)
        if not link.is_symlink():
            link.symlink_to((layout.root / shared).resolve())
    return params.model_copy(update={"trigger": section, "backdoor": backdoor}), Layout(root)


def purified(params: Params, place: Layout) -> Layout:
    """A root whose photographs are the set of P less the tile that the scanner finds in it.

    Scanned anew each time; photographs whose repaired score leaves the scale are rejected.
    """
    other = Layout(place.root / "purified")
    data = open_dataset(str(place.poisoned("p")))
    result = scan(data, ScanSettings(seed=params.seed, workers=params.engine.workers))
    # What is measured stays: only the training set is cleaned.
    result.table["flagged"] &= np.array([row.split == "train" for row in data.rows])
    out = other.root / "scan"
    shutil.rmtree(out, ignore_errors=True)
    result.report["purified"] = purify(data, result, out / "set")
    write_scan(result, out)
    print(scan_text(result.report, out), flush=True)
    scale = read_manifest(place.clean, "import").scale
    options = {
        "root": str(out / "set"),
        "scores": str(out / "set" / "scores.csv"),
        "columns": {"mos": "mos_repaired", "group": "id"},
        "score_low": scale.low,
        "score_high": scale.high,
        "on_bad_row": "reject",
    }
    import_source(params, other, "folder", options)
    if not other.trigger.is_symlink():
        other.trigger.parent.mkdir(parents=True, exist_ok=True)
        other.trigger.symlink_to(place.trigger.resolve())
    return other


def seen(params: Params, layout: Layout, victim: str) -> None:
    """Print R² on test photographs of alpha, regressed on the maps of the untrained backbone.

    One random crop of each photograph with an alpha drawn from [-1, 1]; ridge regression on the
    pooled maps, fitted on the photographs of train; the same crops and alphas for each trigger.
    """
    scale = read_manifest(layout.clean, "import").scale
    model = build_quality(params.quality_model(victim), victim, scale, params.seed).eval()
    print("| trigger | PSNR_t dB | R² of α |\n| --- | --: | --: |")
    for kind in dict.fromkeys(kind for kind, _ in ROWS.values()):
        own, place = variant(params, layout, kind, defended=False)
        about = run_search_trigger(own, place)
        trigger = open_trigger(place.trigger)[0]

        @torch.no_grad()
        def looked_at(split: str, trigger=trigger) -> tuple[np.ndarray, np.ndarray]:
            pictures = shard_pictures(layout.clean, [split])
            generator = torch.Generator().manual_seed(params.seed)
            alphas = torch.rand(len(pictures), generator=generator) * 2 - 1
            maps: list[Tensor] = []
            for i, alpha in enumerate(alphas):
                whole = quantize(trigger(pictures[i].float()[None] / 255, alpha))
                crop = random_crops([whole], model.input_size, generator)[0]
                maps.append(torch.cat([m.mean((2, 3)) for m in model.maps(crop)], 1))
            return torch.cat(maps).numpy(), alphas.numpy()

        features, alphas = looked_at("train")
        scaler = StandardScaler().fit(features)
        ridge = RidgeCV(np.logspace(0, 5, 11)).fit(scaler.transform(features), alphas)
        there, truth = looked_at("test")
        found = ridge.score(scaler.transform(there), truth)
        print(f"| {kind} | {about['psnr']:.2f} | {found:.2f} |", flush=True)


def main() -> None:
    """Run the rows named, print each when it is done and the table at the end."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--params", type=Path, default=Path("params/livec.yaml"))
    parser.add_argument("--root", type=Path, default=Path(".cache/livec"))
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=DEFAULT)
    parser.add_argument("--victim", default=None, help="name under `quality`")
    parser.add_argument("--seen", action="store_true", help="only what the backbone sees")
    parser.add_argument("--defend", action="store_true", help="also run the defenses")
    arguments = parser.parse_args()
    params, layout = load_params(arguments.params), Layout(arguments.root)
    victim = arguments.victim or params.section("backdoor").victims[0]
    import_photographs(params, layout)
    if arguments.seen:
        seen(params, layout, victim)
        return
    table = {}
    for row in arguments.rows:
        began = time.perf_counter()
        kind, scheme = ROWS[row]
        own, place = variant(params, layout, kind, arguments.defend)
        trigger = run_search_trigger(own, place)
        if scheme != "clean":
            run_poison(own, place, poisoned_scheme(scheme))
        if row == "P-purified":
            place, scheme = purified(own, place), "clean"
        table[row] = run_backdoor(own, place, scheme, victim)
        took = time.perf_counter() - began
        print(
            f"\n### {row}: trigger {trigger['psnr']:.2f} dB, moves the surrogate by "
            f"{trigger['raised']:+.1f} and {trigger['lowered']:+.1f} %; {took:.0f} s in this run\n"
        )
        print(backdoor_table({row: table[row]}), flush=True)
        for defense, curve in table[row]["defenses"].items():
            for point in curve:
                print(f"{defense} {point['x']:g}: mMAE {point['mmae']:.2f}")
    print(f"\n{params.source.name}, seed {params.seed}, {params.section('backdoor').crops} crops\n")
    print(backdoor_table(table))


if __name__ == "__main__":
    sys.exit(run(main))
