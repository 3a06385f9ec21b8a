"""The stages of dvc.yaml as DVC itself reports them, and how one of them is run."""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.errors import InputError, StageError

USAGE = 2  # exit code of a command that was called wrongly: no retry will help
_TAIL = 15  # lines of output that an error shows
_METRICS = 4  # numbers of a stage in the table


@dataclass(frozen=True)
class DvcStage:
    """A stage of dvc.yaml.

    Attributes:
        name: As `dvc repro` takes it.
        needs: Names of the stages that it depends on.
        metrics: Its files of metrics, paths from the root.
    """

    name: str
    needs: tuple[str, ...]
    metrics: tuple[str, ...]


@dataclass(frozen=True)
class StageOutcome:
    """What became of a stage.

    Attributes:
        stage: Its name.
        status: `ran`, `cached` (nothing to do) or `restored` (from DVC's cache).
        seconds: That it took.
    """

    stage: str
    status: str
    seconds: float


class StageFailed(StageError):
    """A stage that ended with an error.

    Attributes:
        code: Its exit code, None when it was killed.
    """

    def __init__(self, stage: str, code: int | None, tail: Iterable[str]) -> None:
        super().__init__(f"stage {stage} failed (exit {code}): {' | '.join([*tail][-3:])}")
        self.code = code


def read_stages(root: Path) -> list[DvcStage]:
    """All stages in an order in which each comes after those it needs.

    Args:
        root: Folder of the project.

    Raises:
        InputError: Where there is no DVC project or its dvc.yaml is wrong.
    """
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    try:
        repo = Repo(str(root))
        graph = repo.index.graph
    except DvcException as error:
        text = " ".join(str(error).split())
        raise InputError(f"root must be a DVC project, got {root} ({text})") from None
    stages: dict[str, DvcStage] = {}

    def visit(node: Any) -> None:
        name = _name(node)
        if name in stages:
            return
        above = sorted(
            (other for other in graph.successors(node) if not other.is_data_source), key=_name
        )
        for other in above:
            visit(other)
        metrics = tuple(str(out.def_path) for out in node.outs if out.metric)
        stages[name] = DvcStage(name, tuple(_name(other) for other in above), metrics)

    for node in graph.nodes:  # in the order of dvc.yaml
        if not node.is_data_source:  # a .dvc file: data that no command makes
            visit(node)
    return list(stages.values())


def _name(node: Any) -> str:
    """What `dvc repro` calls a stage from the root of the project."""
    file = str(node.path_in_repo)
    return str(node.name) if file == "dvc.yaml" else f"{file}:{node.name}"


def with_needed(stages: Iterable[DvcStage], names: Iterable[str] | None) -> list[DvcStage]:
    """Some stages and all that they need.

    Args:
        stages: All stages.
        names: Those wanted, before the @; None is every stage.

    Returns:
        The stages, in the order given.

    Raises:
        InputError: Where dvc.yaml has none of these names.
    """
    every = {stage.name: stage for stage in stages}
    if names is None:
        return list(every.values())
    wanted = set(names)
    todo = [stage for stage in every.values() if stage.name.partition("@")[0] in wanted]
    if not todo:
        raise InputError(
            f"dvc.yaml must have one of the stages {', '.join(sorted(wanted))}, got "
            f"{', '.join(every)}"
        )
    keep: set[str] = set()
    while todo:
        stage = todo.pop()
        keep.add(stage.name)
        todo += [every[name] for name in stage.needs if name not in keep]
    return [stage for stage in every.values() if stage.name in keep]


def run_stage(root: Path, name: str, report: Callable[[str], None]) -> StageOutcome:
    """Run `dvc repro --single-item`, beside others of its kind.

    Args:
        root: Folder of the project.
        name: Of the stage.
        report: Called with each line that DVC and the stage print.

    Raises:
        StageFailed: With the exit code of the stage.
    """
    command = [sys.executable, "-m", "dvc", "--wait-for-lock", "repro", "--single-item", name]
    began = time.monotonic()
    lines: list[str] = []
    with subprocess.Popen(
        command,
        cwd=root,
        # Threads that spin while they wait take the cores from the stage beside: five times slower.
        env={"OMP_WAIT_POLICY": "PASSIVE", **os.environ},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.strip():
                lines.append(line.rstrip())
                report(line.rstrip())
    text = "\n".join(lines)
    if process.returncode:
        found = re.search(r"exited with (-?\d+)", text)
        raise StageFailed(name, int(found[1]) if found else None, lines[-_TAIL:])
    status = "cached"
    if "is cached - skipping run" in text:
        status = "restored"
    elif re.search(r"^Running stage", text, re.MULTILINE):
        status = "ran"
    return StageOutcome(name, status, time.monotonic() - began)


def metrics_of(root: Path, stage: DvcStage) -> str:
    """The first numbers of a stage's metrics, in a line.

    Args:
        root: Folder of the project.
        stage: Whose metrics; files that are missing or no JSON are passed over.
    """
    found: list[str] = []
    for name in stage.metrics:
        try:
            values = json.loads((root / name).read_text())
        except (OSError, json.JSONDecodeError):
            continue
        found += _numbers(values)
    return ", ".join(found[:_METRICS])


def _numbers(values: Any, name: str = "") -> list[str]:
    if isinstance(values, dict):
        inner = [_numbers(v, f"{name}.{k}" if name else str(k)) for k, v in values.items()]
        return [text for texts in inner for text in texts]
    if isinstance(values, (int, float)) and not isinstance(values, bool):
        return [f"{name} {values:.4g}"]
    return []
