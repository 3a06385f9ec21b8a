"""What the benchmarks on real photographs share: data, victims, changed parameters."""

import os
from typing import Any

from pipelines.params import Params, Source
from pipelines.stages.import_ import run_import
from pipelines.stages.perturb import run_perturb
from pipelines.stages.train_victim import run_train_victim
from pipelines.storage.layout import Layout


def import_photographs(params: Params, layout: Layout) -> None:
    """datasets/clean, of $VENEER_LIVEC where the source is livec and the variable is set."""
    options = dict(params.source.options)
    if "VENEER_LIVEC" in os.environ and params.source.name == "livec":
        options["root"] = os.environ["VENEER_LIVEC"]
    import_source(params, layout, params.source.name, options)


def import_source(params: Params, layout: Layout, source: str, options: dict[str, Any]) -> None:
    """datasets/clean, of any source."""
    chosen = Source(name=source, options=options)
    run_import(params.model_copy(update={"source": chosen}), layout)


def prepare(params: Params, layout: Layout) -> None:
    """Data and victims, once for all variants."""
    import_photographs(params, layout)
    for name in params.attack.victims:
        report = layout.reports / "victims" / f"{name}.json"
        if not report.exists():
            run_train_victim(params, layout, name)
        print(f"\nVictim {name}: {report.read_text()}")
    run_perturb(params, layout)


def changed(params: Params, **sections: dict[str, object]) -> Params:
    """The parameters with some values of some sections replaced."""
    updates = {
        name: getattr(params, name).model_copy(update=values) for name, values in sections.items()
    }
    return params.model_copy(update=updates)
