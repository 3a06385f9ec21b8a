"""What the benchmarks on real photographs share: the import of them."""

import os

from pipelines.params import Params
from pipelines.stages.common import Layout
from pipelines.stages.import_ import run_import


def import_photographs(params: Params, layout: Layout) -> None:
    """datasets/clean, of $VENEER_LIVEC where the source is livec and the variable is set."""
    options = dict(params.source.options)
    if "VENEER_LIVEC" in os.environ and params.source.name == "livec":
        options["root"] = os.environ["VENEER_LIVEC"]
    run_import(
        source=params.source.name,
        options=options,
        out=layout.clean,
        work_root=layout.work,
        splits=params.import_.splits.model_dump(),
        seed=params.seed,
        shard_size=params.import_.shard_size,
        workers=params.engine.workers,
        min_side=params.import_.min_side,
    )
