"""Labels of candidates: from the votes of a campaign, or simulated by a stated model."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

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
from pipelines.annotation.votes import HIGH, LOW, only_last, person
from pipelines.params import Annotate
from pipelines.storage.files import without_nan
from pipelines.storage.manifest import sample_seed
from pipelines.storage.records import VERDICTS
from pipelines.storage.rejects import Reject

STAGE = "annotate"
SIMULATED_DROP = 0.05  # of the scale: a smaller loss is simulated as no change
MODEL = (
    "simulated from SSIM to the photograph: mos = low + (mos_clean - low)(1 - sqrt(1 - SSIM)); "
    f"degraded where that is more than {SIMULATED_DROP:.0%} of the scale below mos_clean, else "
    "unchanged; a full-reference measure knows no enhancement"
)

Fields = dict[str, Any]  # of a candidate, a label or a vote
Person = tuple[str, str]  # address of the server, number there


def simulated_label(row: Mapping[str, Any]) -> Fields:
    """A candidate with the label that MODEL gives it.

    mos = low + (mos_clean - low)(1 - sqrt(1 - SSIM)), within the scale.

    Args:
        row: The candidate; mos is that of its photograph, ssim the SSIM to it, and score_low and
            score_high the ends of the scale.

    Returns:
        The fields of the candidate, with mos_clean, mos, verdict ("degraded" where the loss exceeds
        SIMULATED_DROP of the scale, else "unchanged"), no spread, no votes and label_source
        "simulated".
    """
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
    rows: Sequence[Fields], votes: Sequence[Fields], settings: Annotate, seed: int
) -> tuple[list[Fields], list[Reject], dict[str, Any]]:
    """Labels of the candidates from the votes of a campaign.

    Scores of 0 to 10 are laid on the scale of the photographs. Votes of repeated and of gold items
    tell about annotators, not about images. Nobody votes twice on an image: the last vote counts.

    Args:
        rows: The candidates.
        votes: Rows of votes.SCHEMA.
        settings: Screening, fewest votes of an image, resamples of the bootstrap.
        seed: What the bootstrap is drawn from.

    Returns:
        Labelled candidates, those with too few votes, and the report of the campaign.
    """
    votes = only_last(votes)
    place = {row["key"]: i for i, row in enumerate(rows)}
    counted = [v for v in votes if v["reason"] is None]
    items = [v for v in counted if v["kind"] == "item" and v["key"] in place]
    people = sorted({person(v) for v in counted}, key=lambda p: (len(p[1]), p[1], p[0]))
    given = _as_votes(items, place, people)
    screened = _screen(given, settings) if settings.screen else {}
    valid = ~np.isin(given.annotator, list(screened))
    kept = given.filter(valid)
    opinions = mean_opinions(kept, images=len(rows))
    verdicts: dict[int, Counter[str]] = {}
    for vote, image, is_valid in zip(items, given.image.tolist(), valid.tolist(), strict=True):
        if is_valid:
            verdicts.setdefault(image, Counter())[vote["verdict"]] += 1
    labels, rejects = [], []
    for i, row in enumerate(rows):
        if opinions.n[i] < settings.min_votes:
            reason = f"{opinions.n[i]} votes, fewer than {settings.min_votes}"
            rejects.append(Reject(row["source_id"], row["key"], reason))
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
            "screened_out": int((~valid).sum()),
        },
        "screening": {
            "on": settings.screen,
            "images": int((np.bincount(given.image) > 0).sum()),
            "bt500_images": int((np.bincount(given.image) >= PANEL).sum()),
        },
        "agreement": _agreement(kept, settings.bootstrap, seed),
        "annotators": _annotators(given, people, screened, counted),
    }
    return labels, rejects, report


def _as_votes(items: Sequence[Fields], place: Mapping[str, int], people: Sequence[Person]) -> Votes:
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


def _label(row: Fields, opinions: Opinions, i: int, verdicts: Counter[str]) -> Fields:
    low, width = row["score_low"], row["score_high"] - row["score_low"]
    factor = width / (HIGH - LOW)
    best = max(verdicts.values())
    most = [name for name, n in verdicts.items() if n == best]
    return {
        **row,
        "mos_clean": row["mos"],
        "mos": low + (float(opinions.mean[i]) - LOW) * factor,
        "mos_std": without_nan(float(opinions.std[i] * factor)),
        "mos_ci95": without_nan(float(opinions.half[i] * factor)),
        "n_votes": int(opinions.n[i]),
        "verdict": most[0] if len(most) == 1 else "unchanged",  # opinions that cancel out
        "label_source": "human",
    }


def _agreement(votes: Votes, resamples: int, seed: int) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for name, measure in (("icc_2k", icc_2k), ("krippendorff_alpha", krippendorff_alpha)):
        low, high = bootstrap_interval(
            measure, votes, resamples=resamples, seed=sample_seed(seed, STAGE, name)
        )
        out[name] = without_nan({"value": measure(votes), "low": low, "high": high})
    return out


def _annotators(
    votes: Votes, people: Sequence[Person], screened: Mapping[int, str], counted: Sequence[Fields]
) -> list[dict[str, Any]]:
    bias, correlation = biases(votes), correlations(votes)
    given = np.bincount(votes.annotator, minlength=len(people))
    by_person: dict[Person, list[Fields]] = {who: [] for who in people}
    for vote in counted:
        by_person[person(vote)].append(vote)
    servers = {address for address, _ in people}
    out = []
    for i, (address, name) in enumerate(people):
        answers = by_person[address, name]
        gold = [v["verdict"] == v["expected"] for v in answers if v["kind"] == "gold"]
        first = {v["key"]: v for v in answers if v["kind"] == "item"}
        pairs = [
            (v, first[v["key"]]) for v in answers if v["kind"] == "repeat" and v["key"] in first
        ]
        seconds = [v["seconds"] for v in answers if v["seconds"] is not None]
        out.append(
            {
                "annotator": name if len(servers) == 1 else f"{name} of {address}",
                "votes": int(given[i]),
                "bias": float(bias[i]) if i < len(bias) else None,
                "correlation": float(correlation[i]) if i < len(correlation) else None,
                "gold": len(gold),
                "gold_accuracy": mean(gold),
                "repeats": len(pairs),
                "repeat_difference": mean([abs(a["score"] - b["score"]) for a, b in pairs]),
                "repeat_same_verdict": mean([a["verdict"] == b["verdict"] for a, b in pairs]),
                "median_seconds": float(np.median(seconds)) if seconds else None,
                "screened": screened.get(i),
            }
        )
    rows: list[dict[str, Any]] = without_nan(out)
    return rows


def mean(values: Sequence[Any]) -> float | None:
    """Mean of numbers.

    Args:
        values: Numbers or booleans.

    Returns:
        The mean, None where there are none.
    """
    return float(np.mean(values)) if len(values) else None


def verdict_shares(labels: Sequence[Fields]) -> dict[str, float]:
    """Share of each verdict.

    Args:
        labels: Labelled candidates.

    Returns:
        Verdict -> share in [0, 1], for all VERDICTS; zeros where there are no labels.
    """
    counts = Counter(row["verdict"] for row in labels)
    return {name: counts[name] / max(1, len(labels)) for name in VERDICTS}
