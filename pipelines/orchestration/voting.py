"""Waiting for the votes of a labelling campaign."""

import json
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipelines.errors import StageError


def wait_for_votes(
    root: Path, poll: float, limit: float, report: Callable[[int, int, int], None]
) -> dict[str, Any]:
    """Push the campaign, wait until it has its votes, pull them.

    Args:
        root: Folder of the project.
        poll: Seconds between two looks.
        limit: Seconds to wait at most.
        report: Called at each look with the finished tasks, all tasks and the votes wanted of
            each.

    Returns:
        The status of the campaign at the last look, as `veneer annotate status --json` prints it.

    Raises:
        StageError: When the time is over or the server refuses.
    """
    _annotate(root, "push")
    end = time.monotonic() + limit
    while True:
        status: dict[str, Any] = json.loads(_annotate(root, "status", "--json"))
        tasks = status["item"] + status["repeat"] + status["gold"]
        report(status["finished"], tasks, status["votes_wanted"])
        if status["finished"] >= tasks:
            _annotate(root, "pull")
            return status
        if time.monotonic() > end:
            raise StageError(
                f"{status['finished']} of {tasks} tasks have their votes after "
                f"{limit / 3600:g} h: run the flow again, the votes are kept"
            )
        time.sleep(poll)


def _annotate(root: Path, *arguments: str) -> str:
    command = ["veneer", "annotate", *arguments]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    if done.returncode:
        raise StageError(f"{' '.join(command)} failed: {done.stderr.strip()[-500:]}")
    return done.stdout
