"""What the commands share: options, reading the parameters, printing results."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

STAGES, TOOLS = "Stages, in the order of the pipeline", "Tools"

ParamsOption = Annotated[
    Path, typer.Option("--params", metavar="FILE", help="Parameters of the pipeline.")
]
RootOption = Annotated[
    Path,
    typer.Option("--root", metavar="DIR", help="Where datasets/, models/ and reports/ lie."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]
PARAMS, ROOT = Path("params.yaml"), Path(".")


def say(result: dict[str, Any], text: str, as_json: bool) -> None:
    """Print a result for people, or as JSON for programs."""
    print(json.dumps(result, indent=2) if as_json else text)


def setup(params: Path, root: Path) -> tuple[Any, Any]:
    """The parameters (Params) and the folders (Layout) of a command."""
    from pipelines.params import load_params

    loaded = load_params(params)
    from pipelines.storage.layout import Layout

    return loaded, Layout(root)


def say_counts(manifest: Any, folder: Path, as_json: bool) -> None:
    """Print what a stage kept and rejected, or its manifest as JSON."""
    counts = manifest.counts
    splits = ", ".join(f"{split} {n}" for split, n in counts.splits.items())
    say(
        manifest.model_dump(by_alias=True),
        f"{folder}: {counts.in_} in, {counts.kept} kept ({splits}), {counts.rejected} rejected",
        as_json,
    )
