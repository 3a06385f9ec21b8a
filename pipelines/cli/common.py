"""Options that the commands share, reading parameters and printing results."""

from pathlib import Path
from typing import Annotated, Any

import typer

STAGES, TOOLS = "Stages, in the order of the pipeline", "Tools"

ParamsOption = Annotated[
    Path, typer.Option("--params", metavar="FILE", help="Parameters of the pipeline.")
]
RootOption = Annotated[
    Path,
    typer.Option("--root", metavar="DIR", help="Folder of datasets/, models/ and reports/."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]
PARAMS, ROOT = Path("params.yaml"), Path(".")


def print_result(result: dict[str, Any], text: str, as_json: bool) -> None:
    """Print the result of a command.

    Args:
        result: What programs read.
        text: What people read.
        as_json: Whether to print `result` as JSON in place of `text`; NaN is null there.
    """
    if as_json:
        from pipelines.storage.files import json_text

        text = json_text(result).rstrip("\n")
    print(text)


def setup(params: Path, root: Path) -> tuple[Any, Any]:
    """Read the parameters of a command.

    Args:
        params: The parameter file.
        root: Folder of datasets/, models/ and reports/.

    Returns:
        Params and Layout; untyped, as importing them would slow down --help.
    """
    from pipelines.params import load_params

    loaded = load_params(params)
    from pipelines.storage.layout import Layout

    return loaded, Layout(root)


def print_counts(manifest: Any, folder: Path, as_json: bool) -> None:
    """Print how many samples a stage kept and rejected, or its manifest as JSON.

    Args:
        manifest: Manifest of the data set that the stage wrote.
        folder: Where it is.
        as_json: Whether to print the manifest.
    """
    counts = manifest.counts
    splits = ", ".join(f"{split} {n}" for split, n in counts.splits.items())
    print_result(
        manifest.model_dump(by_alias=True),
        f"{folder}: {counts.in_} in, {counts.kept} kept ({splits}), {counts.rejected} rejected",
        as_json,
    )
