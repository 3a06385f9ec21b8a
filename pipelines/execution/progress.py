"""How far a run is: a bar on a terminal, lines elsewhere."""

import contextlib
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

_LINE_EVERY = 10.0  # seconds between progress lines when stderr is no terminal


class Reporter(Protocol):
    """Receives what was finished, and what else a person should know."""

    def done(self, count: int) -> None:
        """Count units as finished.

        Args:
            count: Number of units finished since the last call.
        """

    def note(self, text: str) -> None:
        """Show a line.

        Args:
            text: The line.
        """


@contextlib.contextmanager
def reporter(
    description: str, total: int, *, show: bool, unit: str = "images"
) -> Iterator[Reporter]:
    """A progress bar on a terminal, progress lines elsewhere, on stderr.

    Args:
        description: What the run is called.
        total: Number of units of the whole run.
        show: Whether progress is shown; notes always are.
        unit: What is counted.
    """
    console = Console(stderr=True)
    if show and console.is_terminal:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        with Progress(*columns, _Throughput(unit), TimeRemainingColumn(), console=console) as bar:
            yield _Bar(bar, bar.add_task(description, total=total))
    else:
        yield _Lines(description, total, show, unit)


def epoch_reporter(
    description: str, epochs: int, columns: Sequence[str]
) -> Callable[[dict[str, float]], None]:
    """A line on stderr for each epoch of a training.

    Args:
        description: What is trained.
        epochs: Number of epochs.
        columns: Metrics that the line shows, where a row has them; epoch 0 has no loss, say.
    """

    def report(row: dict[str, float]) -> None:
        shown = [name for name in columns if not math.isnan(row.get(name, math.nan))]
        parts = [f"{description}: epoch {row['epoch']:.0f}/{epochs}"]
        parts += [f"{name} {row[name]:.4g}" for name in shown]
        print(", ".join(parts), file=sys.stderr, flush=True)

    return report


class _Throughput(ProgressColumn):
    def __init__(self, unit: str) -> None:
        super().__init__()
        self.unit = unit

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:.1f} {self.unit}/s")


class _Bar:
    def __init__(self, bar: Progress, task: TaskID) -> None:
        self.bar, self.task = bar, task

    def done(self, count: int) -> None:
        self.bar.advance(self.task, count)

    def note(self, text: str) -> None:
        self.bar.console.print(text, markup=False)


class _Lines:
    def __init__(self, description: str, total: int, show: bool, unit: str) -> None:
        self.description, self.total, self.show, self.unit = description, total, show, unit
        self.count = 0
        self.start = self.last = time.monotonic()

    def done(self, count: int) -> None:
        self.count += count
        now = time.monotonic()
        if not self.show or (self.count < self.total and now - self.last < _LINE_EVERY):
            return
        self.last = now
        speed = self.count / max(now - self.start, 1e-9)
        self.note(f"{self.count}/{self.total} {self.unit}, {speed:.1f} {self.unit}/s")

    def note(self, text: str) -> None:
        label = f"{self.description}: " if self.description else ""
        print(f"{label}{text}", file=sys.stderr, flush=True)
