"""The command line, `veneer`: stages in pipeline order, then tools."""

import os
import sys
from collections.abc import Callable
from importlib.metadata import version
from typing import Annotated, Any

import typer

from pipelines.cli import annotation, attacking, defending, operations, poisoning, tools
from pipelines.cli.common import STAGES, TOOLS

# Imports of torch, timm and datasets stand inside the commands: --help must not wait for them.

app = typer.Typer(
    name="veneer",
    help=(
        "Adversarial and poisoned image data sets against models that score pictures. "
        "`dvc repro` runs the stages below in order; each also runs alone."
    ),
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
# In the order of --help: that of the pipeline. Those without a name give their commands.
app.add_typer(attacking.app)
app.add_typer(annotation.app, name="annotate", rich_help_panel=STAGES)
app.add_typer(defending.app)
app.add_typer(poisoning.app)
app.add_typer(tools.app)
app.add_typer(operations.app)
app.add_typer(poisoning.trigger_app, name="trigger", rich_help_panel=TOOLS)

INTERRUPTED = 130


def _print_version(requested: bool) -> None:
    if requested:
        typer.echo(f"veneer {version('veneer')}")
        raise typer.Exit


@app.callback()
def _options(
    _version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    pass


def _print_error(error: BaseException, code: int) -> int:
    if os.environ.get("VENEER_DEBUG"):
        raise error
    text = " ".join(str(error).split())
    print(f"veneer: {text}", file=sys.stderr)
    return code


def run(command: Callable[[], Any]) -> int:
    """Run a command and turn its errors into one sentence on stderr and an exit code.

    Args:
        command: What to run. With VENEER_DEBUG=1 its errors are raised, to show where they come
            from.

    Returns:
        0 done, 1 a failure (what was finished is kept), 2 the caller's mistake, 130 interrupted.
    """
    from pipelines.errors import StageError
    from pipelines.execution.memory import keep_heap

    keep_heap()
    try:
        command()
    except typer.Exit as error:
        return error.exit_code
    except SystemExit as error:  # typer's own: done, bad usage, or an interrupt
        if error.code == INTERRUPTED:
            print("veneer: interrupted; finished shards and epochs are kept", file=sys.stderr)
        return error.code if isinstance(error.code, int) else 0
    except (StageError, RuntimeError) as error:
        return _print_error(error, 1)
    except OSError as error:
        file = f" ({error.filename})" if error.filename else ""
        return _print_error(OSError(f"{error.strerror or error}{file}"), 1)
    except ValueError as error:  # InputError, and arguments that attackers and victims refuse
        return _print_error(error, 2)
    except KeyboardInterrupt:
        print("veneer: interrupted; finished shards and epochs are kept", file=sys.stderr)
        return INTERRUPTED
    return 0


def main() -> None:
    """Entry point of `veneer`."""
    sys.exit(run(lambda: app(standalone_mode=True)))
