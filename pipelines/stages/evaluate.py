"""Stage `evaluate`: the stored examples, read back and scored again, as robustness metrics."""

import csv
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch

from attackers.da3.filters import FILTER_NAMES
from attackers.metrics import attack_convergence, basr, filter_shares, msi, rasr
from pipelines.errors import InputError, StageError
from pipelines.execution.devices import device, hardware, torch_threads
from pipelines.params import Params
from pipelines.readers.pictures import batches_of
from pipelines.readers.selection import report_split
from pipelines.storage.checkpoints import HISTORY
from pipelines.storage.files import without_nan, write_csv, write_json
from pipelines.storage.images import decode_png, planes
from pipelines.storage.layout import Layout, trained_victim
from pipelines.storage.manifest import METADATA, read_manifest
from pipelines.storage.records import image_key
from pipelines.storage.shards import ShardIndex
from victims.base import TorchVictim, score_images
from victims.registry import load_victim

AGREEMENT = 1e-3  # of the scale: a stored score against the score of the file read back


def run_evaluate(params: Params, layout: Layout) -> dict[str, Any]:
    """Measure every attacked victim; write reports/robustness.json and the data of the plots.

    Args:
        params: All parameters.
        layout: Folders of the project.

    Returns:
        The report: `about`, and the measures of each victim and mode.

    Raises:
        InputError: Photographs, a victim, an attacker or examples are missing.
        StageError: A stored score is not what its file scores.
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
                test = [("split", "=", report_split(params.attack.protocol))]
                row = robustness(folder, victim, history, params.evaluate.by, test)
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
    write_json(layout.reports / "robustness.json", report)
    write_csv(layout.reports / "filters.csv", shares)
    write_csv(layout.reports / "attack_curves.csv", curves)
    return report


def check_scores(victim: TorchVictim, folder: Path) -> float:
    """Score each stored example again.

    Args:
        victim: The victim that the examples were made against.
        folder: Their data set folder.

    Returns:
        The largest error as a share of the scale.

    Raises:
        StageError: An error is above AGREEMENT, or table and shards disagree.
    """
    worst = 0.0
    with ShardIndex(folder) as index:
        _check_listed(index, folder)
        for keys in batches_of(sorted(index.records), 64):
            images = [_read_image(index, key, folder) for key in keys]
            scores = score_images(victim, images, batch_size=16, device=device())
            stored = torch.tensor([index.records[key]["score_adv"] for key in keys])
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
    table = pq.read_table(folder / METADATA, columns=names).to_pylist()
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
    filters: list[tuple[str, str, Any]] | None = None,
) -> dict[str, Any]:
    """BASR, RASR, MSI, ART and company of a folder of adversarial examples.

    Args:
        folder: Their data set folder.
        victim: The victim that they were made against.
        history: Rows of the attacker's training, for ART.
        by: Whether poor images are told by the victim's `score` or by their `mos` (BASR).
        filters: Conditions on the rows, as pyarrow's: [("split", "=", "test")].

    Returns:
        The measures; `filters` holds the share of examples in whose two strongest each filter is.
        A measure with an empty denominator is None.
    """
    columns = ["score_clean", "score_adv", "mos", "psnr", "ssim", "linf", "weights", "direction"]
    columns += ["queries", "strengths"]
    path = folder / METADATA
    table = pq.read_table(path, columns=columns, filters=filters).to_pandas()
    x, y = table["score_clean"], table["score_adv"]
    direction = table["direction"].iloc[0]
    reference = table["mos"].to_numpy() if by == "mos" else None
    convergence = attack_convergence(history)
    shares = filter_shares(table["weights"].to_list(), table["strengths"].to_list())
    top = sorted(FILTER_NAMES, key=lambda f: -shares[f])[:2]
    values = {
        "n": len(table),
        "basr": basr(x, y, victim.scale.threshold, direction=direction, mos=reference),
        "rasr": rasr(x, y, direction=direction),
        "msi": msi(x, y, direction=direction),
        "art_hours": convergence["hours"],
        "art_steps": convergence["steps"],
        "art_calls": convergence["calls"],
        "psnr": float(table["psnr"].mean()),
        "psnr_min": float(table["psnr"].min()),
        "ssim": float(table["ssim"].mean()),
        "linf": float(table["linf"].mean()),
        "queries": float(table["queries"].mean()),
        "top_filters": " ".join(top),
        "filters": shares,
    }
    measures: dict[str, Any] = without_nan(values)
    return measures


def read_history(path: Path) -> list[dict[str, float]]:
    """Rows of the training of an attacker.

    Args:
        path: Its history.csv.

    Raises:
        InputError: The file is missing.
    """
    try:
        with path.open(newline="") as file:
            return [{k: float(v) for k, v in row.items()} for row in csv.DictReader(file)]
    except FileNotFoundError:
        raise InputError(
            f"{path.parent} must hold a trained attacker, got no {path.name} there: "
            "run `veneer attack` first"
        ) from None
