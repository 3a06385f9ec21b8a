"""Stage `annotate`: the candidates with the opinions on them, from votes or from a stated model."""

import csv
import io
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.annotation.candidates import read_candidates
from pipelines.annotation.opinion import (
    PANEL,
    Opinions,
    Votes,
    biases,
    bootstrap_interval,
    bt500_outliers,
    correlations,
    icc_2k,
    krippendorff_alpha,
    low_correlation,
    mean_opinions,
)
from pipelines.annotation.votes import HIGH, LOW, only_last, person, read_votes
from pipelines.errors import InputError, StageError
from pipelines.params import Annotate, Params
from pipelines.stages.curate import REJECTED, REJECTED_SCHEMA, TABLE
from pipelines.storage.files import atomic_file
from pipelines.storage.layout import Layout
from pipelines.storage.manifest import (
    Counts,
    Manifest,
    ShardInfo,
    file_sha256,
    fingerprint,
    read_manifest,
    sample_seed,
)
from pipelines.storage.records import AnnotatedSample, arrow_schema

STAGE = "annotate"
LABEL_SCHEMA = arrow_schema(AnnotatedSample)
for _name in ("shard", "folder"):
    LABEL_SCHEMA = LABEL_SCHEMA.append(pa.field(_name, pa.string(), nullable=False))
SIMULATED_DROP = 0.05  # of the scale: a smaller loss is simulated as no change
MODEL = (
    "simulated from SSIM to the photograph: mos = low + (mos_clean - low)(1 - sqrt(1 - SSIM)); "
    f"degraded where that is more than {SIMULATED_DROP:.0%} of the scale below mos_clean, else "
    "unchanged; a full-reference measure knows no enhancement"
)

Row = dict[str, Any]
Person = tuple[str, str]  # address of the server, number there


def run_annotate(params: Params, layout: Layout) -> dict[str, Any]:
    """Join candidates and votes; write annotations/labels and reports/annotation.json.

    Without any vote labels are simulated where `annotate.labels` says so. Returns: the report.
    """
    settings = params.annotate
    manifest = read_manifest(layout.candidates, "curate")
    rows = read_candidates(layout.candidates).to_pylist()
    votes = read_votes(layout.votes).to_pylist()
    if not votes and settings.labels == "human":
        raise InputError(
            f"{layout.votes} must hold votes, got none: run `veneer annotate pull`, or set "
            "annotate.labels to simulated"
        )
    if votes:
        labels, lost, report = human_labels(rows, votes, settings, params.seed)
    else:
        labels, lost = [simulated_label(row) for row in rows], []
        report = {"label_source": "simulated", "model": MODEL}
    report = {
        **report,
        "in": len(rows),
        "kept": len(labels),
        "rejected": len(lost),
        "verdicts": _shares(labels),
        "mos": {
            "clean": _mean([row["mos_clean"] for row in labels]),
            "adversarial": _mean([row["mos"] for row in labels]),
        },
    }
    if not labels:
        raise StageError(
            f"annotate must keep at least one image, got none of {len(rows)}: annotate.min_votes "
            f"is {settings.min_votes}, and {report.get('votes', {}).get('valid', 0)} votes count"
        )
    _write_reports(layout, report, labels)
    _write_labels(params, layout, manifest, labels, lost)
    return report


def simulated_label(row: Mapping[str, Any]) -> Row:
    """A candidate with the label of MODEL."""
    low, high = row["score_low"], row["score_high"]
    loss = (row["mos"] - low) * math.sqrt(max(0.0, 1 - row["ssim"]))
    mos = min(max(row["mos"] - loss, low), high)
    verdict = "degraded" if loss > SIMULATED_DROP * (high - low) else "unchanged"
    return {
        **row,
        "mos_clean": row["mos"],
        "mos": mos,
        "mos_std": None,
        "mos_ci95": None,
        "n_votes": 0,
        "verdict": verdict,
        "label_source": "simulated",
    }


def human_labels(
    rows: Sequence[Row], votes: Sequence[Row], settings: Annotate, seed: int
) -> tuple[list[Row], list[Row], dict[str, Any]]:
    """Labels, rejects and report of a campaign.

    Scores of 0 to 10 are laid on the scale of the photographs. Votes of repeated and of gold items
    tell about annotators, not about images. Nobody votes twice on an image: the last vote counts.
    """
    votes = only_last(votes)
    place = {row["key"]: i for i, row in enumerate(rows)}
    counted = [v for v in votes if v["reason"] is None]
    items = [v for v in counted if v["kind"] == "item" and v["key"] in place]
    people = sorted({person(v) for v in counted}, key=lambda p: (len(p[1]), p[1], p[0]))
    every = _as_votes(items, place, people)
    screened = _screen(every, settings) if settings.screen else {}
    stays = ~np.isin(every.annotator, list(screened))
    kept = every.where(stays)
    opinions = mean_opinions(kept, images=len(rows))
    verdicts: dict[int, Counter[str]] = {}
    for vote, image, stay in zip(items, every.image.tolist(), stays.tolist(), strict=True):
        if stay:
            verdicts.setdefault(image, Counter())[vote["verdict"]] += 1
    labels, lost = [], []
    for i, row in enumerate(rows):
        if opinions.n[i] < settings.min_votes:
            reason = f"{opinions.n[i]} votes, fewer than {settings.min_votes}"
            lost.append({"source_id": row["source_id"], "key": row["key"], "reason": reason})
        else:
            labels.append(_label(row, opinions, i, verdicts[i]))
    reasons = Counter(v["reason"] for v in votes if v["reason"] is not None)
    report = {
        "label_source": "human",
        "votes": {
            "in": len(votes),
            "valid": len(counted),
            "invalid": dict(sorted(reasons.items())),
            "items": len(items),
            "of_no_candidate": sum(v["key"] not in place for v in counted),
            "screened_out": int((~stays).sum()),
        },
        "screening": {
            "on": settings.screen,
            "images": int((np.bincount(every.image) > 0).sum()),
            "bt500_images": int((np.bincount(every.image) >= PANEL).sum()),
        },
        "agreement": _agreement(kept, settings.bootstrap, seed),
        "annotators": _annotators(every, people, screened, counted),
    }
    return labels, lost, report


def _as_votes(items: Sequence[Row], place: Mapping[str, int], people: Sequence[Person]) -> Votes:
    number = {who: i for i, who in enumerate(people)}
    return Votes(
        np.array([place[v["key"]] for v in items], np.int64),
        np.array([number[person(v)] for v in items], np.int64),
        np.array([v["score"] for v in items], np.float64),
    )


def _screen(votes: Votes, settings: Annotate) -> dict[int, str]:
    """Annotators left out, and by which rule."""
    out = {int(i): "ITU-R BT.500" for i in np.flatnonzero(bt500_outliers(votes))}
    if settings.min_correlation is not None:
        for i in np.flatnonzero(low_correlation(votes, settings.min_correlation)):
            out.setdefault(int(i), f"correlation below {settings.min_correlation:g}")
    return out


def _label(row: Row, opinions: Opinions, i: int, verdicts: Counter[str]) -> Row:
    low, width = row["score_low"], row["score_high"] - row["score_low"]
    factor = width / (HIGH - LOW)
    best = max(verdicts.values())
    most = [name for name, n in verdicts.items() if n == best]
    return {
        **row,
        "mos_clean": row["mos"],
        "mos": low + (float(opinions.mean[i]) - LOW) * factor,
        "mos_std": _number(opinions.std[i] * factor),
        "mos_ci95": _number(opinions.half[i] * factor),
        "n_votes": int(opinions.n[i]),
        "verdict": most[0] if len(most) == 1 else "unchanged",  # opinions that cancel out
        "label_source": "human",
    }


def _agreement(votes: Votes, resamples: int, seed: int) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for name, measure in (("icc_2k", icc_2k), ("krippendorff_alpha", krippendorff_alpha)):
        own = sample_seed(seed, STAGE, name)
        low, high = bootstrap_interval(measure, votes, resamples=resamples, seed=own)
        out[name] = {
            "value": _number(measure(votes)),
            "low": _number(low),
            "high": _number(high),
        }
    return out


def _annotators(
    votes: Votes, people: Sequence[Person], screened: Mapping[int, str], counted: Sequence[Row]
) -> list[dict[str, Any]]:
    bias, correlation = biases(votes), correlations(votes)
    given = np.bincount(votes.annotator, minlength=len(people))
    by_person: dict[Person, list[Row]] = {who: [] for who in people}
    for vote in counted:
        by_person[person(vote)].append(vote)
    servers = {address for address, _ in people}
    out = []
    for i, (address, name) in enumerate(people):
        own = by_person[address, name]
        gold = [v["verdict"] == v["expected"] for v in own if v["kind"] == "gold"]
        first = {v["key"]: v for v in own if v["kind"] == "item"}
        pairs = [(v, first[v["key"]]) for v in own if v["kind"] == "repeat" and v["key"] in first]
        seconds = [v["seconds"] for v in own if v["seconds"] is not None]
        out.append(
            {
                "annotator": name if len(servers) == 1 else f"{name} of {address}",
                "votes": int(given[i]),
                "bias": _number(bias[i]) if i < len(bias) else None,
                "correlation": _number(correlation[i]) if i < len(correlation) else None,
                "gold": len(gold),
                "gold_accuracy": _mean(gold),
                "repeats": len(pairs),
                "repeat_difference": _mean([abs(a["score"] - b["score"]) for a, b in pairs]),
                "repeat_same_verdict": _mean([a["verdict"] == b["verdict"] for a, b in pairs]),
                "median_seconds": _number(np.median(seconds)) if seconds else None,
                "screened": screened.get(i),
            }
        )
    return out


def _number(value: Any) -> float | None:
    return float(value) if np.isfinite(value) else None


def _mean(values: Sequence[Any]) -> float | None:
    return float(np.mean(values)) if len(values) else None


def _shares(labels: Sequence[Row]) -> dict[str, float]:
    counts = Counter(row["verdict"] for row in labels)
    names = ("degraded", "unchanged", "enhanced")
    return {name: counts[name] / max(1, len(labels)) for name in names}


def _write_reports(layout: Layout, report: dict[str, Any], labels: Sequence[Row]) -> None:
    layout.reports.mkdir(parents=True, exist_ok=True)
    with atomic_file(layout.reports / "annotation.json") as file:
        file.write((json.dumps(report, indent=2, allow_nan=False) + "\n").encode())
    edges = np.linspace(0, 1, 21)
    columns = {}
    for name, field in (("photographs", "mos_clean"), ("adversarial", "mos")):
        scaled = [
            (row[field] - row["score_low"]) / (row["score_high"] - row["score_low"])
            for row in labels
        ]
        columns[name] = np.histogram(scaled, edges)[0] / len(labels)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["score", *columns])
    for i, middle in enumerate((edges[:-1] + edges[1:]) / 2):
        writer.writerow([f"{middle:.3f}", *(f"{share[i]:.4f}" for share in columns.values())])
    with atomic_file(layout.reports / "annotation_scores.csv") as file:
        file.write(text.getvalue().encode())


def _write_labels(
    params: Params, layout: Layout, source: Manifest, labels: list[Row], lost: list[Row]
) -> Manifest:
    out = layout.labels
    out.mkdir(parents=True, exist_ok=True)
    (out / "manifest.json").unlink(missing_ok=True)
    for name, table in (
        (TABLE, pa.Table.from_pylist(labels, schema=LABEL_SCHEMA)),
        (REJECTED, pa.Table.from_pylist([{**r, "stage": STAGE} for r in lost], REJECTED_SCHEMA)),
    ):
        with atomic_file(out / name) as file:
            pq.write_table(table, file, version="2.6", compression="zstd")
    info = ShardInfo(
        name=TABLE,
        sha256=file_sha256(out / TABLE),
        bytes=(out / TABLE).stat().st_size,
        samples=len(labels),
    )
    votes = file_sha256(layout.votes) if layout.votes.exists() else fingerprint(votes=None)
    kind = labels[0]["label_source"]
    manifest = Manifest.build(
        stage=STAGE,
        counts=Counts(
            in_=source.counts.kept,
            kept=len(labels),
            rejected=len(lost),
            splits=dict(sorted(Counter(row["split"] for row in labels).items())),
        ),
        shards={TABLE: info},
        parameters={**params.annotate.model_dump(), "label_source": kind},
        inputs={"candidates": source.content_sha256, "votes": votes},
        scale=source.scale.model_copy(update={"label_source": kind}),
    )
    with atomic_file(out / "manifest.json") as file:
        file.write(manifest.to_json().encode())
    return manifest
