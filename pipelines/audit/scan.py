"""`veneer scan`: is a data set poisoned by a repeated tile, which rows, and what is left after."""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from defenders.folding import (
    JPEG,
    agreement,
    fold,
    grid_origin,
    remove_period,
    residual,
    weighted_fold,
)
from defenders.labels import LabelEvidence, content_features, label_evidence
from defenders.scan import (
    CommonTile,
    RowScores,
    best_periods,
    common_tile,
    estimate_tile,
    matched_filter,
)
from pipelines.errors import InputError
from pipelines.execution.engine import map_shards
from pipelines.readers.rows import ImageDataset, ImageRow
from pipelines.storage.images import RejectedImage, decode_image
from victims.checks import check_seed, check_share, check_whole_number

BATCH = 16
MIN_SIDE = 64  # smaller pictures hold too few blocks to tell a tile from content
MIN_ROWS = 20
GRIDS = ("top_left", "centred")


@dataclass(frozen=True)
class ScanSettings:
    """Settings of a scan.

    Args:
        false_alarms: Share of clean data sets in which an alarm is accepted, in (0, 1).
        row_false_alarms: Share of the clean rows of a poisoned set that may be flagged, in (0, 1).
        sample: Number of rows in which period and tile are searched, at least 20.
        min_period: Smallest period of a tile, in pixels.
        max_period: Largest period of a tile, in pixels.
        jpeg: Leave out what repeats with the 8-pixel blocks of JPEG.
        seed: Seed of the permutation test.
        workers: Processes that decode pictures.
    """

    false_alarms: float = 0.01
    row_false_alarms: float = 1e-3
    sample: int = 400
    min_period: int = 4
    max_period: int = 32
    jpeg: bool = True
    seed: int = 0
    workers: int = 1

    def __post_init__(self) -> None:
        try:
            check_share("false_alarms", self.false_alarms)
            check_share("row_false_alarms", self.row_false_alarms)
            check_whole_number("sample", self.sample, MIN_ROWS)
            check_whole_number("min_period", self.min_period, 2)
            check_whole_number("max_period", self.max_period, 2)
            check_whole_number("workers", self.workers, 1)
            check_seed(self.seed)
        except ValueError as error:
            raise InputError(str(error)) from None
        if not self.min_period <= self.max_period:
            raise InputError(
                "min_period must be at most max_period, got "
                f"{self.min_period} and {self.max_period}"
            )


@dataclass(frozen=True)
class ScanJob:
    """A batch of rows whose features are wanted.

    Args:
        rows: The rows.
        periods: Periods in pixels; empty for content features and sizes alone.
        only_agreement: Measure how well the periods agree, without keeping their folds.
        jpeg: Leave out what repeats with the blocks of JPEG.
    """

    rows: tuple[ImageRow, ...]
    periods: tuple[int, ...]
    only_agreement: bool
    jpeg: bool

    @property
    def count(self) -> int:
        """Number of pictures."""
        return len(self.rows)


@dataclass(frozen=True)
class RowFeatures:
    """Features of one row.

    Args:
        reason: Why the picture could not be used, None where it could.
        shape: Height and width in pixels.
        agreements: Agreement of each period, for a search among periods.
        folds: By period P an array (3,P,P,3): the two halves without JPEG's period, and the whole
            fold with it.
        features: Content features, for the evidence of the labels.
    """

    reason: str | None = None
    shape: tuple[int, int] = (0, 0)
    agreements: tuple[float, ...] = ()
    folds: dict[int, Any] | None = None
    features: Any = None


def extract_features(job: ScanJob) -> list[RowFeatures]:
    """Features of the rows of a job, in their order.

    Args:
        job: Rows and periods.
    """
    return [_row_features(row, job) for row in job.rows]


def _row_features(row: ImageRow, job: ScanJob) -> RowFeatures:
    try:
        image = decode_image(row.load(), min_side=MIN_SIDE)
    except RejectedImage as error:
        return RowFeatures(reason=error.reason)
    whole, weight = residual(image)
    quiet = remove_period(whole, JPEG) if job.jpeg else whole
    shape = image.shape[:2]
    periods = [p for p in job.periods if 2 * p <= min(shape)]
    if job.only_agreement:
        agreements = {p: agreement(fold(quiet, p)) for p in periods}
        return RowFeatures(
            shape=shape, agreements=tuple(agreements.get(p, 0.0) for p in job.periods)
        )
    folds = {
        p: np.concatenate([fold(quiet, p), weighted_fold(whole, weight, p)[None]]) for p in periods
    }
    return RowFeatures(shape=shape, folds=folds, features=content_features(image))


@dataclass(frozen=True)
class Scan:
    """The result of a scan.

    Args:
        report: What scan.json holds.
        table: A row per picture: id, split, mos, score, alpha, flagged, label_residual, problem.
        tile: (P,P,3) RGB grey levels at α = 1, None where there is no alarm.
        grid: Where the grid of tiles begins: "top_left" or "centred".
    """

    report: dict[str, Any]
    table: pd.DataFrame
    tile: np.ndarray | None
    grid: str


def scan(data: ImageDataset, settings: ScanSettings, *, progress: bool = True) -> Scan:
    """Search a data set for a tile that its pictures share, and score every row.

    Args:
        data: The data set, at least 20 pictures of 64 pixels or more.
        settings: How to scan.
        progress: Show a progress bar.

    Returns:
        Report, table and tile; the tile is None where there is no alarm.

    Raises:
        InputError: For too few rows that can be read.
    """
    if len(data.rows) < MIN_ROWS:
        raise InputError(
            f"data set must have at least {MIN_ROWS} pictures to be scanned, got {len(data.rows)}"
        )
    shuffled = sorted(data.rows, key=lambda r: hashlib.sha256(r.id.encode()).digest())
    sample = shuffled[: settings.sample]
    periods = tuple(range(settings.min_period, settings.max_period + 1))
    first_pass = _extract(sample, periods, True, settings, "period", progress)
    readable = [features for features in first_pass if not features.reason]
    if len(readable) < MIN_ROWS:
        raise InputError(
            f"data set must have at least {MIN_ROWS} pictures of {MIN_SIDE} pixels or more that "
            f"can be read, got {len(readable)} of {len(sample)}"
        )
    agreements = np.array([features.agreements for features in readable])
    candidates = best_periods(agreements, periods, 3)
    features = _extract(data.rows, tuple(candidates), False, settings, "rows", progress)
    order = {id(row): i for i, row in enumerate(data.rows)}
    sampled = [order[id(row)] for row in sample]
    best, tests = _test(features, sampled, candidates, settings)
    alarm = best is not None and best.p_total <= settings.false_alarms
    report: dict[str, Any] = {
        "data": str(data.path),
        "kind": data.kind,
        "rows": len(data.rows),
        "unreadable": sum(v.reason is not None for v in features),
        "verdict": "poisoned" if alarm else "no alarm",
        "p": None if best is None else best.p_total,
        "false_alarm_rate": settings.false_alarms,
        "tests": tests,
        "jpeg_period_left_out": settings.jpeg,
    }
    if best is None or not alarm:
        return Scan(report, _table(data, features, None, None, None), None, "top_left")
    return _explain(data, features, best, report, settings)


@dataclass(frozen=True)
class _BestTest:
    period: int
    grid: str
    test: CommonTile
    p_total: float


def _extract(
    rows: Sequence[ImageRow],
    periods: tuple[int, ...],
    only_agreement: bool,
    settings: ScanSettings,
    description: str,
    progress: bool,
) -> list[RowFeatures]:
    jobs = [
        ScanJob(tuple(rows[i : i + BATCH]), periods, only_agreement, settings.jpeg)
        for i in range(0, len(rows), BATCH)
    ]
    workers = settings.workers if len(rows) > 8 * BATCH else 1
    done = map_shards(
        extract_features,
        jobs,
        workers=workers,
        description=f"scan: {description}",
        progress=progress,
    )
    return [row_features for part in done for row_features in part]


def _aligned(features: Sequence[RowFeatures], period: int, grid: str) -> np.ndarray:
    """Folds (n,3,P,P,3) with the corner of the grid at 0."""
    rolled = []
    for row_features in features:
        assert row_features.folds is not None
        top, left = grid_origin(row_features.shape, period, grid)
        rolled.append(np.roll(row_features.folds[period], (-top, -left), (1, 2)))
    return np.stack(rolled)


def _test(
    features: Sequence[RowFeatures],
    sampled: Sequence[int],
    periods: Sequence[int],
    settings: ScanSettings,
) -> tuple[_BestTest | None, list[dict[str, Any]]]:
    """Test each candidate; the first whose p-value, times the number of tests, is low enough.

    The choice of candidates looks at each picture alone and does not change when it is moved, so
    it costs nothing; the number of tests does (Bonferroni).
    """
    cases = []
    for period in periods:
        sample = [features[i] for i in sampled if period in (features[i].folds or {})]
        if len(sample) < MIN_ROWS:
            continue
        alike = len({grid_origin(v.shape, period, "centred") for v in sample}) == 1
        cases += [(period, grid, sample) for grid in (GRIDS[:1] if alike else GRIDS)]
    rows, best = [], None
    draws = max(199, math.ceil(2 * len(cases) / settings.false_alarms))
    for period, grid, sample in cases:
        folds = _aligned(sample, period, grid)[:, :2].mean(axis=1)
        test = common_tile(folds, draws=draws, seed=settings.seed)
        total = min(1.0, test.p * len(cases))
        mean, deviation = test.null
        rows.append(
            {
                "period": period,
                "grid": grid,
                "rows": len(sample),
                "share": test.share,
                "null_mean": mean,
                "null_std": deviation,
                "p": test.p,
            }
        )
        if best is None or total < best.p_total:
            best = _BestTest(period, grid, test, total)
        if total <= settings.false_alarms:
            break
    return best, rows


def _explain(
    data: ImageDataset,
    features: Sequence[RowFeatures],
    best: _BestTest,
    report: dict[str, Any],
    settings: ScanSettings,
) -> Scan:
    """Rows, tile and labels after an alarm."""
    usable = [i for i, v in enumerate(features) if best.period in (v.folds or {})]
    folds = _aligned([features[i] for i in usable], best.period, best.grid)
    rows = matched_filter(folds[:, :2], best.test.direction, false_alarms=settings.row_false_alarms)
    # A second look with the flagged rows alone: their own tile, free of the others' noise.
    flagged = rows.flagged
    if flagged.sum() >= 2:
        mean = np.tensordot(rows.amplitude[flagged], folds[flagged][:, :2].mean(axis=1), 1)
        direction = (mean / np.linalg.norm(mean)).astype(np.float32)
        rows = matched_filter(folds[:, :2], direction, false_alarms=settings.row_false_alarms)
        flagged = rows.flagged
    unit = float(np.quantile(np.abs(rows.amplitude[flagged]), 0.95)) if flagged.any() else 1.0
    alpha = rows.amplitude / unit
    evidence = _labels(data, features, usable, alpha, flagged)
    if evidence and evidence.correlation < 0:  # the sign of a tile is a matter of taste
        alpha, evidence = -alpha, _mirrored(evidence)
    tile = estimate_tile(folds[:, 2], np.where(flagged, alpha, 0.0)) if flagged.any() else None
    report |= {
        "period": best.period,
        "grid": best.grid,
        "flagged": int(flagged.sum()),
        "flagged_share": float(flagged.mean()),
        "row_false_alarm_rate": settings.row_false_alarms,
        "z_threshold": rows.threshold,
        "tile_rms": None if tile is None else float(np.sqrt((tile**2).mean())),
        "labels": None
        if evidence is None
        else {
            name: None if math.isnan(v) else v
            for name, v in (
                ("correlation", evidence.correlation),
                ("p", evidence.p),
                ("score_per_alpha", evidence.slope),
            )
        },
    }
    return Scan(
        report, _table(data, features, usable, (rows, alpha, flagged), evidence), tile, best.grid
    )


def _labels(
    data: ImageDataset,
    features: Sequence[RowFeatures],
    usable: Sequence[int],
    alpha: np.ndarray,
    flagged: np.ndarray,
) -> LabelEvidence | None:
    scores = [data.rows[i].score for i in usable]
    if any(s is None or not math.isfinite(s) for s in scores):
        return None
    content_features = np.stack([features[i].features for i in usable])
    return label_evidence(np.array(scores, float), content_features, alpha, flagged)


def _mirrored(evidence: LabelEvidence) -> LabelEvidence:
    return LabelEvidence(evidence.residual, -evidence.correlation, evidence.p, -evidence.slope)


def _table(
    data: ImageDataset,
    features: Sequence[RowFeatures],
    usable: Sequence[int] | None,
    flags: tuple[RowScores, np.ndarray, np.ndarray] | None,
    evidence: LabelEvidence | None,
) -> pd.DataFrame:
    """One row per picture. score is |z| of the matched filter; NaN where there was no alarm."""
    n = len(data.rows)
    table = pd.DataFrame(
        {
            "id": [row.id for row in data.rows],
            "split": [row.split for row in data.rows],
            "mos": pd.array([row.score for row in data.rows], dtype="Float64"),
            "score": np.full(n, np.nan),
            "alpha": np.full(n, np.nan),
            "flagged": np.zeros(n, bool),
            "label_residual": np.full(n, np.nan),
            "problem": [row_features.reason for row_features in features],
        }
    )
    if usable is not None and flags is not None:
        rows, alpha, flagged = flags
        at = list(usable)
        table.loc[at, "score"] = np.abs(rows.z)
        table.loc[at, "alpha"] = alpha
        table.loc[at, "flagged"] = flagged
        if evidence is not None:
            table.loc[at, "label_residual"] = evidence.residual
    return table
