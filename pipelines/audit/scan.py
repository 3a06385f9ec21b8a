"""`veneer scan`: is a data set poisoned by a repeated tile, which rows, and what is left after."""

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from defenders.labels import LabelEvidence, content, label_evidence
from defenders.scan import (
    JPEG,
    CommonTile,
    RowScores,
    agreement,
    best_periods,
    common_tile,
    exact_fold,
    fold,
    high_pass,
    match,
    origin,
    remove_tile,
    residual,
    tile_of,
    without_period,
)
from pipelines.errors import InputError, StageError
from pipelines.execution.engine import map_shards
from pipelines.readers.rows import DataSet, Row
from pipelines.storage.files import atomic_file
from pipelines.storage.images import RejectedImage, decode_image, encode_png

BATCH = 16
MIN_SIDE = 64  # smaller pictures hold too few blocks to tell a tile from content
MIN_ROWS = 20
GRIDS = ("top_left", "centred")


@dataclass(frozen=True)
class ScanSettings:
    """How to scan. false_alarms: share of clean data sets in which an alarm is accepted.
    row_false_alarms: the same for the rows of a poisoned set. sample: rows that the period and
    the tile are looked for in. jpeg: leave out what repeats with JPEG's blocks."""

    false_alarms: float = 0.01
    row_false_alarms: float = 1e-3
    sample: int = 400
    min_period: int = 4
    max_period: int = 32
    jpeg: bool = True
    seed: int = 0
    workers: int = 1

    def __post_init__(self) -> None:
        for name in ("false_alarms", "row_false_alarms"):
            if not 0 < getattr(self, name) < 1:
                raise InputError(f"{name} must be in (0, 1), got {getattr(self, name)}")
        if not 2 <= self.min_period <= self.max_period:
            raise InputError(
                "periods must be 2 ≤ min_period ≤ max_period, got "
                f"{self.min_period} and {self.max_period}"
            )
        if self.sample < MIN_ROWS:
            raise InputError(f"sample must be at least {MIN_ROWS}, got {self.sample}")


@dataclass(frozen=True)
class ScanJob:
    """A few rows to look at. periods: empty for the content features and sizes alone."""

    rows: tuple[Row, ...]
    periods: tuple[int, ...]
    only_agreement: bool
    jpeg: bool

    @property
    def count(self) -> int:
        """Pictures to look at."""
        return len(self.rows)


@dataclass(frozen=True)
class RowFeatures:
    """What was seen of one row: its size, agreement of each period or folds of each, or why not.

    folds[P]: (3,P,P,3): the two halves without JPEG's period, and the whole fold with it.
    """

    reason: str | None = None
    shape: tuple[int, int] = (0, 0)
    agreements: tuple[float, ...] = ()
    folds: dict[int, Any] | None = None
    features: Any = None


def look_at(job: ScanJob) -> list[RowFeatures]:
    """Decode and fold the rows of a job."""
    return [_look(row, job) for row in job.rows]


def _look(row: Row, job: ScanJob) -> RowFeatures:
    try:
        image = decode_image(row.load(), min_side=MIN_SIDE)
    except RejectedImage as error:
        return RowFeatures(reason=error.reason)
    whole, weight = residual(image)
    quiet = without_period(whole, JPEG) if job.jpeg else whole
    shape = image.shape[:2]
    periods = [p for p in job.periods if 2 * p <= min(shape)]
    if job.only_agreement:
        found = {p: agreement(fold(quiet, p)) for p in periods}
        return RowFeatures(shape=shape, agreements=tuple(found.get(p, 0.0) for p in job.periods))
    folds = {
        p: np.concatenate([fold(quiet, p), exact_fold(whole, weight, p)[None]]) for p in periods
    }
    return RowFeatures(shape=shape, folds=folds, features=content(image))


@dataclass(frozen=True)
class Scan:
    """The result of a scan: the report (JSON), a table with a row per picture, and the tile.

    tile: (P,P,3) RGB grey levels at α = 1, None where there is no alarm.
    """

    report: dict[str, Any]
    table: pd.DataFrame
    tile: np.ndarray | None
    grid: str


def scan(data: DataSet, settings: ScanSettings, *, progress: bool = True) -> Scan:
    """Look for a common tile in a data set; score every row. Raises InputError for too few rows."""
    if len(data.rows) < MIN_ROWS:
        raise InputError(
            f"data set must have at least {MIN_ROWS} pictures to be scanned, got {len(data.rows)}"
        )
    chosen = sorted(data.rows, key=lambda r: hashlib.sha256(r.id.encode()).digest())
    some = chosen[: settings.sample]
    periods = tuple(range(settings.min_period, settings.max_period + 1))
    first = [v for v in _looks(some, periods, True, settings, "period", progress) if not v.reason]
    if len(first) < MIN_ROWS:
        raise InputError(
            f"data set must have at least {MIN_ROWS} pictures of {MIN_SIDE} pixels or more that "
            f"can be read, got {len(first)} of {len(some)}"
        )
    table = np.array([v.agreements for v in first])
    candidates = best_periods(table, periods, 3)
    looks = _looks(data.rows, tuple(candidates), False, settings, "rows", progress)
    order = {id(row): i for i, row in enumerate(data.rows)}
    sampled = [order[id(row)] for row in some]
    found, tests = _test(looks, sampled, candidates, settings)
    alarm = found is not None and found.p_total <= settings.false_alarms
    report: dict[str, Any] = {
        "data": str(data.path),
        "kind": data.kind,
        "rows": len(data.rows),
        "unreadable": sum(v.reason is not None for v in looks),
        "verdict": "poisoned" if alarm else "no alarm",
        "p": None if found is None else found.p_total,
        "false_alarm_rate": settings.false_alarms,
        "tests": tests,
        "jpeg_period_left_out": settings.jpeg,
    }
    if found is None or not alarm:
        return Scan(report, _table(data, looks, None, None, None), None, "top_left")
    return _explain(data, looks, found, report, settings)


@dataclass(frozen=True)
class _Found:
    period: int
    grid: str
    test: CommonTile
    p_total: float


def _looks(
    rows: Sequence[Row],
    periods: tuple[int, ...],
    only_agreement: bool,
    settings: ScanSettings,
    what: str,
    progress: bool,
) -> list[RowFeatures]:
    jobs = [
        ScanJob(tuple(rows[i : i + BATCH]), periods, only_agreement, settings.jpeg)
        for i in range(0, len(rows), BATCH)
    ]
    workers = settings.workers if len(rows) > 8 * BATCH else 1
    done = map_shards(
        look_at, jobs, workers=workers, description=f"scan: {what}", progress=progress
    )
    return [look for part in done for look in part]


def _aligned(looks: Sequence[RowFeatures], period: int, grid: str) -> np.ndarray:
    """Folds (n,3,P,P,3) with the corner of the grid at 0."""
    rolled = []
    for look in looks:
        assert look.folds is not None
        top, left = origin(look.shape, period, grid)
        rolled.append(np.roll(look.folds[period], (-top, -left), (1, 2)))
    return np.stack(rolled)


def _test(
    looks: Sequence[RowFeatures],
    sampled: Sequence[int],
    periods: Sequence[int],
    settings: ScanSettings,
) -> tuple[_Found | None, list[dict[str, Any]]]:
    """Test each candidate; the first whose p-value, times the number of tests, is low enough.

    The choice of candidates looks at each picture alone and does not change when it is moved, so
    it costs nothing; the number of tests does (Bonferroni).
    """
    cases = []
    for period in periods:
        some = [looks[i] for i in sampled if period in (looks[i].folds or {})]
        if len(some) < MIN_ROWS:
            continue
        alike = len({origin(v.shape, period, "centred") for v in some}) == 1
        cases += [(period, grid, some) for grid in (GRIDS[:1] if alike else GRIDS)]
    rows, best = [], None
    draws = max(199, math.ceil(2 * len(cases) / settings.false_alarms))
    for period, grid, some in cases:
        folds = _aligned(some, period, grid)[:, :2].mean(axis=1)
        test = common_tile(folds, draws=draws, seed=settings.seed)
        total = min(1.0, test.p * len(cases))
        mean, deviation = test.null
        rows.append(
            {
                "period": period,
                "grid": grid,
                "rows": len(some),
                "share": test.share,
                "null_mean": mean,
                "null_std": deviation,
                "p": test.p,
            }
        )
        if best is None or total < best.p_total:
            best = _Found(period, grid, test, total)
        if total <= settings.false_alarms:
            break
    return best, rows


def _explain(
    data: DataSet,
    looks: Sequence[RowFeatures],
    found: _Found,
    report: dict[str, Any],
    settings: ScanSettings,
) -> Scan:
    """Rows, tile and labels after an alarm."""
    usable = [i for i, v in enumerate(looks) if found.period in (v.folds or {})]
    folds = _aligned([looks[i] for i in usable], found.period, found.grid)
    rows = match(folds[:, :2], found.test.direction, false_alarms=settings.row_false_alarms)
    # A second look with the flagged rows alone: their own tile, free of the others' noise.
    flagged = rows.flagged
    if flagged.sum() >= 2:
        mean = np.tensordot(rows.amplitude[flagged], folds[flagged][:, :2].mean(axis=1), 1)
        direction = (mean / np.linalg.norm(mean)).astype(np.float32)
        rows = match(folds[:, :2], direction, false_alarms=settings.row_false_alarms)
        flagged = rows.flagged
    unit = float(np.quantile(np.abs(rows.amplitude[flagged]), 0.95)) if flagged.any() else 1.0
    alpha = rows.amplitude / unit
    evidence = _labels(data, looks, usable, alpha, flagged)
    if evidence and evidence.correlation < 0:  # the sign of a tile is a matter of taste
        alpha, evidence = -alpha, _mirrored(evidence)
    tile = tile_of(folds[:, 2], np.where(flagged, alpha, 0.0)) if flagged.any() else None
    report |= {
        "period": found.period,
        "grid": found.grid,
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
        report, _table(data, looks, usable, (rows, alpha, flagged), evidence), tile, found.grid
    )


def _labels(
    data: DataSet,
    looks: Sequence[RowFeatures],
    usable: Sequence[int],
    alpha: np.ndarray,
    flagged: np.ndarray,
) -> LabelEvidence | None:
    scores = [data.rows[i].score for i in usable]
    if any(s is None or not math.isfinite(s) for s in scores):
        return None
    features = np.stack([looks[i].features for i in usable])
    return label_evidence(np.array(scores, float), features, alpha, flagged)


def _mirrored(evidence: LabelEvidence) -> LabelEvidence:
    return LabelEvidence(evidence.residual, -evidence.correlation, evidence.p, -evidence.slope)


def _table(
    data: DataSet,
    looks: Sequence[RowFeatures],
    usable: Sequence[int] | None,
    seen: tuple[RowScores, np.ndarray, np.ndarray] | None,
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
            "problem": [look.reason for look in looks],
        }
    )
    if usable is not None and seen is not None:
        rows, alpha, flagged = seen
        at = list(usable)
        table.loc[at, "score"] = np.abs(rows.z)
        table.loc[at, "alpha"] = alpha
        table.loc[at, "flagged"] = flagged
        if evidence is not None:
            table.loc[at, "label_residual"] = evidence.residual
    return table


def write_scan(result: Scan, out: Path) -> None:
    """scan.json, rows.parquet, and tile.png where there is a tile."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        with atomic_file(out / "rows.parquet") as file:
            result.table.to_parquet(file, index=False)
        (out / "tile.png").unlink(missing_ok=True)
        if result.tile is not None:
            with atomic_file(out / "tile.png") as file:
                file.write(encode_png(tile_picture(result.tile)))
        with atomic_file(out / "scan.json") as file:
            file.write((json.dumps(result.report, indent=2) + "\n").encode())
    except OSError as error:
        raise StageError(f"{out} cannot be written ({error.strerror})") from error


def scan_text(report: dict[str, Any], out: Path) -> str:
    """The result in a few lines."""
    lines = [
        f"{report['data']}: {report['verdict']} (p = {report['p']:.2g}, alarms on "
        f"{report['false_alarm_rate']:.2g} of clean sets; {report['rows']} rows, "
        f"{report['unreadable']} not used)"
    ]
    if "flagged" in report:
        lines.append(
            f"tile of {report['period']}×{report['period']} pixels, RMS "
            f"{report['tile_rms'] or 0:.1f} levels; {report['flagged']} rows carry it "
            f"({100 * report['flagged_share']:.1f} %)"
        )
        labels = report["labels"] or {}
        if labels.get("correlation") is not None:
            lines.append(
                f"labels follow it with r = {labels['correlation']:.2f} (p = {labels['p']:.2g}), "
                f"{labels['score_per_alpha']:.3g} per unit of α"
            )
    if report.get("purified"):
        made = report["purified"]
        lines.append(
            f"{made['out']}: {made['changed']} of {made['rows']} pictures changed, "
            f"{100 * (made['amplitude_left'] or 0):.1f} % of the tile's amplitude left"
        )
    return "\n".join([*lines, f"{out}/: scan.json, rows.parquet and, after an alarm, tile.png"])


def tile_picture(tile: np.ndarray, side: int = 512) -> np.ndarray:
    """The tile on grey with its contrast stretched, four times repeated, as uint8 (H,W,3)."""
    peak = float(np.abs(tile).max()) or 1.0
    levels = np.clip(127.5 + 127.5 * np.tile(tile, (2, 2, 1)) / peak, 0, 255).round()
    zoom = max(1, side // levels.shape[0])
    size = (levels.shape[1] * zoom, levels.shape[0] * zoom)
    return np.array(Image.fromarray(levels.astype(np.uint8)).resize(size, Image.Resampling.NEAREST))


def purify(data: DataSet, result: Scan, out: Path) -> dict[str, Any]:
    """Write the data set to `out` less the tile: images/*.png and scores.csv.

    Flagged rows lose α·tile; `mos_repaired` is their score less α times the score per α, where the
    labels follow the tile (P-BAIQA changes labels, C-BAIQA does not and needs `mos`). Returns: how
    many were changed and what is left of the amplitude, measured again on the stored pictures.
    """
    if result.tile is None:
        raise InputError("purify must have a tile to remove, got a data set without an alarm")
    slope = (result.report["labels"] or {}).get("score_per_alpha")
    period = result.report["period"]
    before, after, lines = [], [], []
    try:
        (out / "images").mkdir(parents=True, exist_ok=True)
        for number, (row, seen) in enumerate(
            zip(data.rows, result.table.to_dict("records"), strict=True)
        ):
            if seen["problem"]:
                continue
            image = decode_image(row.load())
            stored = image
            if seen["flagged"]:
                corner = origin(image.shape[:2], period, result.grid)
                stored = remove_tile(image, seen["alpha"] * result.tile, corner)
                before.append(_projection(image, result))
                after.append(_projection(stored, result))
            name = f"images/{number:06d}.png"
            with atomic_file(out / name) as file:
                file.write(encode_png(stored))
            repaired = row.score
            if seen["flagged"] and slope is not None and row.score is not None:
                repaired = row.score - slope * seen["alpha"]
            lines.append(
                {
                    "file": name,
                    "id": row.id,
                    "split": row.split,
                    "mos": row.score,
                    "mos_repaired": repaired,
                    "alpha": seen["alpha"],
                    "flagged": seen["flagged"],
                }
            )
        with atomic_file(out / "scores.csv") as file:
            file.write(pd.DataFrame(lines).to_csv(index=False).encode())
    except OSError as error:
        raise StageError(f"{out} cannot be written ({error.strerror})") from error
    power = sum(a * a for a in before)
    return {
        "out": str(out),
        "rows": len(lines),
        "changed": len(before),
        "amplitude_left": math.sqrt(sum(a * a for a in after) / power) if power else None,
    }


def _projection(image: np.ndarray, result: Scan) -> float:
    """Amplitude of the removed tile in a picture, up to a constant."""
    assert result.tile is not None
    period = result.tile.shape[0]
    corner = origin(image.shape[:2], period, result.grid)
    around = high_pass(np.tile(result.tile, (3, 3, 1)))
    pattern = around[period : 2 * period, period : 2 * period]
    seen = exact_fold(*residual(image), period)
    seen = np.roll(seen, (-corner[0], -corner[1]), (0, 1))
    return float((seen * pattern).sum() / (pattern**2).sum())
