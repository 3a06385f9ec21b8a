"""Any folder of pictures with a table of scores."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from pipelines.errors import InputError
from pipelines.sources.base import IMAGE_SUFFIXES, SourceItem, SourceListing, file_item, named
from pipelines.storage.manifest import ScaleInfo

_REQUIRED = ("file", "mos")
_OPTIONAL = ("mos_std", "n_votes", "group", "split")
_NUMBERS = ("mos", "mos_std", "n_votes")


def folder(
    seed: int,
    *,
    root: str,
    scores: str,
    score_low: float,
    score_high: float,
    columns: Mapping[str, str] | None = None,
    label_source: Literal["human", "simulated"] = "human",
    license: str = "not stated",
    attribution: str = "Not stated.",
    allow_missing: bool = False,
    on_bad_row: Literal["error", "reject"] = "error",
) -> SourceListing:
    """The pictures under `root` (recursive) that the table `scores` rates.

    Args:
        seed: Unused: nothing is drawn.
        root: Folder of the pictures.
        scores: A .csv or .parquet with the columns `file` (path below root) and `mos`, and if
            there `mos_std`, `n_votes`, `group` (photograph) and `split`.
        score_low: Lowest score of the scale.
        score_high: Highest score of the scale.
        columns: Names of these columns in the table, where they differ.
        label_source: Who gave the scores.
        license: Name of the licence, or the terms in a few words.
        attribution: Whom to name, in full sentences.
        allow_missing: Whether pictures without a row and rows without a picture are rejects
            instead of an error.
        on_bad_row: Whether a score that is no number or off the scale is an `error` or a `reject`.

    Raises:
        InputError: The folder, the table, a column or a row breaks one of these rules.
    """
    if not score_low < score_high:
        raise InputError(f"score_low must be below score_high, got {score_low} and {score_high}")
    if on_bad_row not in ("error", "reject"):
        raise InputError(f"on_bad_row must be error or reject, got {on_bad_row!r}")
    files = _images(Path(root))
    table = _read_table(Path(scores), columns or {})
    rejects = _bad_rows(table, score_low, score_high)
    if rejects and on_bad_row == "error":
        faults = [f"{file}: {reason}" for file, reason in rejects]
        raise InputError(f"scores must be numbers on the scale in every row, bad {named(faults)}")
    missing = [(f, "missing file") for f in table["file"] if f not in files]
    rated = set(table["file"])
    missing += [(file, "no row in the scores") for file in files if file not in rated]
    if missing and not allow_missing:
        faults = [f"{file}: {reason}" for file, reason in missing]
        raise InputError(
            f"root and scores must name the same pictures (or set allow_missing), {named(faults)}"
        )
    # A row may be bad and its file missing: one reject.
    reasons = {**dict(missing), **dict(rejects)}
    items = [_item(row, files) for row in table.to_dict("records") if row["file"] not in reasons]
    scale = ScaleInfo(
        low=score_low,
        high=score_high,
        label_source=label_source,
        license=license,
        attribution=attribution,
    )
    return SourceListing(items, scale, list(reasons.items()))


def _images(root: Path) -> dict[str, Path]:
    files = {
        path.relative_to(root).as_posix(): path
        for path in sorted(root.rglob("*"))
        if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()
    }
    if not files:
        raise InputError(f"root must be a folder with images, got {root}")
    return files


def _read_table(path: Path, columns: Mapping[str, str]) -> pd.DataFrame:
    unknown = sorted(set(columns) - {*_REQUIRED, *_OPTIONAL})
    if unknown:
        known = ", ".join((*_REQUIRED, *_OPTIONAL))
        raise InputError(f"columns may map {known}, got {', '.join(unknown)}")
    if path.suffix.lower() not in (".csv", ".parquet") or not path.is_file():
        raise InputError(f"scores must be a .csv or .parquet file, got {path}")
    try:
        # As text, so that a file named 0012 keeps its zeros.
        raw = (
            pd.read_csv(path, dtype=str) if path.suffix.lower() == ".csv" else pd.read_parquet(path)
        )
    except Exception as error:  # parsers raise many kinds
        raise InputError(f"scores must be a readable table, got {path} ({error})") from None
    table = pd.DataFrame(index=raw.index)
    for name in (*_REQUIRED, *_OPTIONAL):
        column = columns.get(name, name)
        if column in raw.columns:
            table[name] = _numbers(raw[column], name) if name in _NUMBERS else raw[column]
        elif name in _REQUIRED or name in columns:
            raise InputError(
                f"scores must have a column {column!r} for {name}, got {', '.join(raw.columns)}"
            )
    return _checked_files(table, path)


def _numbers(column: pd.Series, name: str) -> pd.Series:
    numbers = pd.to_numeric(column, errors="coerce").astype(float)
    if pd.api.types.is_bool_dtype(column) or (len(column) and numbers.isna().all()):
        first = column.iloc[0] if len(column) else None
        raise InputError(
            f"scores must have numbers in column {column.name!r} for {name}, got "
            f"{column.dtype} with {first!r} first"
        )
    return numbers


def _checked_files(table: pd.DataFrame, path: Path) -> pd.DataFrame:
    if table["file"].isna().any():
        rows = [int(row) + 1 for row in table.index[table["file"].isna()]]
        raise InputError(
            f"scores must name a file in every row of {path}, missing in {named(rows)}"
        )
    table["file"] = table["file"].astype(str)
    twice = table["file"][table["file"].duplicated()].unique().tolist()
    if twice:
        raise InputError(f"scores must have one row for each file, got several for {named(twice)}")
    return table


def _bad_rows(table: pd.DataFrame, low: float, high: float) -> list[tuple[str, str]]:
    rejects = []
    for row in table.to_dict("records"):
        mos = row["mos"]
        if not math.isfinite(mos):
            rejects.append((row["file"], "score is not a number"))
        elif not low <= mos <= high:
            rejects.append((row["file"], f"score {mos:g} off the scale {low:g} to {high:g}"))
        elif row.get("mos_std", 0) < 0 or row.get("n_votes", 0) < 0:
            rejects.append((row["file"], "negative mos_std or n_votes"))
        elif any(pd.isna(row.get(name, "")) for name in ("group", "split")):
            rejects.append((row["file"], "no group or split"))
    return rejects


def _item(row: Mapping[Any, Any], files: Mapping[str, Path]) -> SourceItem:
    n_votes = _optional(row, "n_votes")
    return file_item(
        files[row["file"]],
        row["file"],
        mos=row["mos"],
        mos_std=_optional(row, "mos_std"),
        n_votes=None if n_votes is None else round(n_votes),
        group=str(row["group"]) if "group" in row else None,
        split=str(row["split"]) if "split" in row else None,
    )


def _optional(row: Mapping[Any, Any], name: str) -> float | None:
    value = row.get(name)
    return value if value is not None and math.isfinite(value) else None
