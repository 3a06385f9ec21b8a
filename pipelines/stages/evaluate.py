"""Stage `evaluate`: the stored examples, read back and scored again, as robustness metrics."""

import csv
import json
import math
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch

from attackers.da3.filters import FILTER_NAMES
from attackers.metrics import attack_convergence, basr, filter_shares, msi, rasr
from pipelines.errors import InputError, StageError
from pipelines.execution.devices import device, hardware, torch_threads
from pipelines.params import Params
from pipelines.params.attack import report_split
from pipelines.storage.checkpoints import HISTORY
from pipelines.storage.images import decode_png, planes
from pipelines.storage.layout import Layout, trained_victim
from pipelines.storage.manifest import read_manifest
from pipelines.storage.records import image_key
from pipelines.storage.shards import ShardIndex, atomic_file
from victims.base import TorchVictim, score_images
from victims.registry import load_victim

AGREEMENT = 1e-3  # of the scale: a stored score against the score of the file read back


def run_evaluate(params: Params, layout: Layout) -> dict[str, Any]:
    """Measure every attacked victim; write reports/robustness.json and the data of the plots.

    Raises StageError where a stored score is not what its file scores.
    """
    victims: dict[str, dict[str, Any]] = {}
    shares, curves = [], []
    clean = read_manifest(layout.clean, "import")
    with torch_threads(params.engine.threads):
        for name in params.attack.victims:
            victim = load_victim(trained_victim(layout, name), device())
            victims[name] = {}
            for mode in params.attack.modes:
                folder = layout.examples(name, mode)
                read_manifest(folder, f"attack {name} {mode}")
                error = check_scores(victim, folder)
                history = read_history(layout.attacker(name, mode) / HISTORY)
                where = [("split", "=", report_split(params.attack.protocol))]
                row = robustness(folder, victim, history, params.evaluate.by, where)
                filters = row.pop("filters")  # 14 columns too many for `dvc metrics show`
                victims[name][mode] = {**row, "score_error": error}
                shares += [
                    {"victim": name, "mode": mode, "filter": f, "top2": s}
                    for f, s in filters.items()
                ]
                curves += [{"victim": name, "mode": mode, **h} for h in history]
    report = {
        "about": {
            "data": clean.parameters["source"],
            "label_source": clean.scale.label_source,
            "scale_low": clean.scale.low,
            "scale_high": clean.scale.high,
            "seed": params.seed,
            "direction": params.attack.direction,
            "refine": params.attack.refine,
            "protocol": params.attack.protocol,
            "hardware": hardware(),
        },
        **victims,
    }
    layout.reports.mkdir(parents=True, exist_ok=True)
    _write(layout.reports / "robustness.json", json.dumps(report, indent=2) + "\n")
    _write_rows(layout.reports / "filters.csv", shares)
    _write_rows(layout.reports / "attack_curves.csv", curves)
    return report


def check_scores(victim: TorchVictim, folder: Path) -> float:
    """Score each stored example again. Returns: largest error as a share of the scale."""
    index = ShardIndex(folder)
    _check_listed(index, folder)
    worst = 0.0
    keys = sorted(index.records)
    for start in range(0, len(keys), 64):
        some = keys[start : start + 64]
        images = [_read_image(index, k, folder) for k in some]
        scores = score_images(victim, images, batch_size=16, device=device())
        stored = torch.tensor([index.records[k]["score_adv"] for k in some])
        worst = max(worst, float((scores - stored).abs().max()) / victim.scale.range)
    if not worst <= AGREEMENT:
        raise StageError(
            f"score_adv in {folder} must be what the stored file scores to {AGREEMENT} of the "
            f"scale, got a difference of {worst:.2g}: make the examples again"
        )
    return worst


def _check_listed(index: ShardIndex, folder: Path) -> None:
    """The metrics come from the table: it must say what the shards say."""
    names = ["key", "score_clean", "score_adv"]
    table = pq.read_table(folder / "metadata.parquet", columns=names).to_pylist()
    listed = {row["key"]: (row["score_clean"], row["score_adv"]) for row in table}
    stored = {k: (r["score_clean"], r["score_adv"]) for k, r in index.records.items()}
    odd = sorted(k for k in {*listed, *stored} if listed.get(k) != stored.get(k))
    if odd:
        raise StageError(
            f"metadata.parquet in {folder} must list the scores of the shards, got others for "
            f"{len(odd)} of {len(stored)} examples, first {odd[0]}: make the examples again"
        )


def _read_image(index: ShardIndex, key: str, folder: Path) -> torch.Tensor:
    data = index.image_bytes(key)
    if image_key(data) != key:
        raise StageError(
            f"image of example {key} in {folder} must be the one that was stored, got another: "
            "make the examples again"
        )
    return planes(decode_png(data))


def robustness(
    folder: Path,
    victim: TorchVictim,
    history: list[dict[str, float]],
    by: str = "score",
    where: list[tuple[str, str, Any]] | None = None,
) -> dict[str, Any]:
    """BASR, RASR, MSI, ART and company of a folder of adversarial examples.

    where: conditions on its rows, as pyarrow's filters: [("split", "=", "test")].
    """
    columns = ["score_clean", "score_adv", "mos", "psnr", "ssim", "linf", "weights", "direction"]
    columns += ["queries", "strengths"]
    path = folder / "metadata.parquet"
    table = pq.read_table(path, columns=columns, filters=where).to_pandas()
    x, y = table["score_clean"], table["score_adv"]
    direction = table["direction"].iloc[0]
    judged = table["mos"].to_numpy() if by == "mos" else None
    reach = attack_convergence(history)
    shares = filter_shares(table["weights"].to_list(), table["strengths"].to_list())
    top = sorted(FILTER_NAMES, key=lambda f: -shares[f])[:2]
    values = {
        "n": len(table),
        "basr": basr(x, y, victim.scale.threshold, direction=direction, mos=judged),
        "rasr": rasr(x, y, direction=direction),
        "msi": msi(x, y, direction=direction),
        "art_hours": reach["hours"],
        "art_steps": reach["steps"],
        "art_calls": reach["calls"],
        "psnr": float(table["psnr"].mean()),
        "psnr_min": float(table["psnr"].min()),
        "ssim": float(table["ssim"].mean()),
        "linf": float(table["linf"].mean()),
        "queries": float(table["queries"].mean()),
        "top_filters": " ".join(top),
        "filters": shares,
    }
    # JSON has no NaN: an empty denominator is null in the report.
    return {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in values.items()}


def read_history(path: Path) -> list[dict[str, float]]:
    """Rows of the training of an attacker."""
    try:
        with path.open(newline="") as file:
            return [{k: float(v) for k, v in row.items()} for row in csv.DictReader(file)]
    except FileNotFoundError:
        raise InputError(
            f"{path.parent} must hold a trained attacker, got no {path.name} there: "
            "run `veneer attack` first"
        ) from None


def _write(path: Path, text: str) -> None:
    with atomic_file(path) as file:
        file.write(text.encode())


def _write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    lines = [",".join(rows[0])] + [",".join(str(v) for v in row.values()) for row in rows]
    _write(path, "\n".join(lines) + "\n")
