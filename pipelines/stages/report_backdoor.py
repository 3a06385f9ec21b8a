"""Stage `report_backdoor`: what the poisoned sets did, side by side, with the data of the plots."""

import json
from typing import Any

from pipelines.errors import InputError
from pipelines.params import Params
from pipelines.storage.files import atomic_file
from pipelines.storage.layout import Layout

ASIDE = ("clean", "filtered")  # what the others are compared with
COLUMNS = ("x", "rmse", "plcc", "srocc", "mmae", "mmra")


def run_report_backdoor(params: Params, layout: Layout) -> dict[str, Any]:
    """Join the reports of each scheme and victim into reports/backdoor.json and two tables.

    Models trained on clean data and on the benign rows of P are listed where there are any.
    Returns the report.
    """
    schemes = params.section("poison").schemes
    report: dict[str, Any] = {}
    curves, defenses = [], []
    for name in params.section("backdoor").victims:
        for scheme in (*ASIDE, *schemes):
            path = layout.backdoor_report(scheme, name)
            if not path.exists():
                if scheme in ASIDE:
                    continue
                raise InputError(
                    f"{path} must be there, got none: run `veneer backdoor {scheme} {name}` first"
                )
            row = json.loads(path.read_text())
            label = f"{scheme}-{name}"
            curves += [{"model": label, **point} for point in row.pop("curve")]
            for defense, points in row.pop("defenses").items():
                defenses += [{"model": label, "defense": defense, **p} for p in points]
            report[label] = row
    layout.reports.mkdir(parents=True, exist_ok=True)
    for name, text in (
        ("backdoor.json", json.dumps(report, indent=2) + "\n"),
        ("backdoor_curves.csv", _table(curves, ("model", "alpha", "mae", "mra"))),
        ("backdoor_defenses.csv", _table(defenses, ("model", "defense", *COLUMNS))),
    ):
        with atomic_file(layout.reports / name) as file:
            file.write(text.encode())
    return report


def _table(rows: list[dict[str, Any]], columns: tuple[str, ...]) -> str:
    lines = [",".join(columns)]
    lines += [",".join("" if row[c] is None else str(row[c]) for c in columns) for row in rows]
    return "\n".join(lines) + "\n"
