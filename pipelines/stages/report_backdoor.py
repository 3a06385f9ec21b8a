"""Stage `report_backdoor`: what the poisoned sets did, side by side, with the data of the plots."""

import json
from typing import Any

from pipelines.errors import InputError
from pipelines.params import Params
from pipelines.storage.files import write_csv, write_json
from pipelines.storage.layout import Layout

REFERENCES = ("clean", "filtered")  # what the others are compared with
COLUMNS = ("x", "rmse", "plcc", "srocc", "mmae", "mmra")


def run_report_backdoor(params: Params, layout: Layout) -> dict[str, Any]:
    """Join the reports of each scheme and victim into reports/backdoor.json and two tables.

    Models trained on clean data and on the benign rows of P are listed where there are any.

    Args:
        params: All parameters.
        layout: Folders of the project.

    Returns:
        The report.

    Raises:
        InputError: The report of a scheme and victim is missing.
    """
    schemes = params.section("poison").schemes
    report: dict[str, Any] = {}
    curves, defenses = [], []
    for name in params.section("backdoor").victims:
        for scheme in (*REFERENCES, *schemes):
            path = layout.backdoor_report(scheme, name)
            if not path.exists():
                if scheme in REFERENCES:
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
    write_json(layout.reports / "backdoor.json", report)
    for name, rows, columns in (
        ("backdoor_curves.csv", curves, ("model", "alpha", "mae", "mra")),
        ("backdoor_defenses.csv", defenses, ("model", "defense", *COLUMNS)),
    ):
        write_csv(layout.reports / name, rows, columns)
    return report
