"""dvc.yaml says what each stage reads: what it forgets goes stale without a word."""

import ast
import itertools
import re
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from pipelines.cli import app
from pipelines.params import load_params

ROOT = Path(__file__).parents[1]
PIPELINE: dict[str, Any] = yaml.safe_load((ROOT / "dvc.yaml").read_text())
VALUES: dict[str, Any] = yaml.safe_load((ROOT / "params.yaml").read_text())
PARAMS = load_params(ROOT / "params.yaml")
PACKAGES = ("attackers", "victims", "defenders", "pipelines")
FILES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for package in PACKAGES
    for path in (ROOT / package).rglob("*.py")
}
# No result depends on them: exception classes, how memory is reused, the progress bar, and where a
# shard is made (tests hold that the bytes are the same).
SAME_RESULT = {f"pipelines/{name}.py" for name in ("errors", "memory", "progress", "workers")}


def looked_up(text: str) -> list[str]:
    """The list in params.yaml that `${section.name}` stands for."""
    place: Any = VALUES
    for part in text.removeprefix("${").removesuffix("}").split("."):
        place = place[part]
    assert isinstance(place, list)
    return place


def expanded() -> dict[str, dict[str, Any]]:
    """Every stage with its names filled in, as DVC would run it."""
    stages = {}
    for name, stage in PIPELINE["stages"].items():
        if "foreach" in stage:
            assert stage["foreach"] == "${victims}"
            choices = [{"key": victim} for victim in VALUES["victims"]]
            body = stage["do"]
        elif "matrix" in stage:
            lists = {axis: looked_up(text) for axis, text in stage["matrix"].items()}
            choices = [
                {f"item.{axis}": value for axis, value in zip(lists, values, strict=True)}
                for values in itertools.product(*lists.values())
            ]
            body = {k: v for k, v in stage.items() if k != "matrix"}
        else:
            choices, body = [{}], stage
        for choice in choices:
            text = yaml.safe_dump(body)
            for variable, value in choice.items():
                text = text.replace("${" + variable + "}", value)
            assert "${" not in text, text
            stages["@".join([name, *choice.values()])] = yaml.safe_load(text)
    return stages


STAGES = expanded()
by_stage = pytest.mark.parametrize("name", STAGES)


def paths(entries: list[Any]) -> list[str]:
    return [entry if isinstance(entry, str) else next(iter(entry)) for entry in entries]


def outputs(stage: dict[str, Any]) -> list[str]:
    return paths([*stage.get("outs", []), *stage.get("metrics", []), *stage.get("plots", [])])


def inside(path: str, folders: list[str]) -> bool:
    return any(path == folder or path.startswith(f"{folder}/") for folder in folders)


@by_stage
def test_command_exists_with_these_arguments(name):
    program, command, *arguments = STAGES[name]["cmd"].split()
    assert program == "veneer"
    commands = typer.main.get_command(app).commands
    assert command == name.split("@")[0]
    assert command in commands
    # Parses, or raises a usage error.
    context = commands[command].make_context(command, list(arguments))
    if command == "backdoor":
        PARAMS.quality_model(context.params["victim"])
    elif "victim" in context.params:
        PARAMS.victim(context.params["victim"])
    if "mode" in context.params:
        PARAMS.mode(context.params["mode"])


def test_stages_stand_in_the_order_of_the_command_line():
    commands = list(typer.main.get_command(app).commands)
    assert [c for c in commands if c in PIPELINE["stages"]] == list(PIPELINE["stages"])


@by_stage
def test_dependencies_exist_or_are_made(name):
    made = [out for other, stage in STAGES.items() if other != name for out in outputs(stage)]
    for path in paths(STAGES[name]["deps"]):
        # A folder of outputs counts: datasets/aes holds those of each attack.
        known = inside(path, made) or any(inside(out, [path]) for out in made)
        assert known or (ROOT / path).exists(), path
    assert not set(outputs(STAGES[name])) & set(made)


@by_stage
def test_parameters_exist(name):
    for key in STAGES[name].get("params", []):
        place = VALUES
        for part in key.split("."):
            assert part in place, f"{key} is not in params.yaml"
            place = place[part]


def imports(path: Path) -> set[Path]:
    """Modules of this repository that a file imports, anywhere in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return {FILES[name] for name in names if name in FILES}


def reachable(path: Path) -> set[str]:
    seen, todo = set(), {path}
    while todo:
        file = todo.pop()
        seen.add(file)
        todo |= imports(file) - seen
    return {file.relative_to(ROOT).as_posix() for file in seen}


@by_stage
def test_every_module_that_a_stage_uses_is_a_dependency(name):
    stage = name.split("@")[0]
    module = ROOT / "pipelines" / "stages" / f"{'import_' if stage == 'import' else stage}.py"
    used = reachable(module)
    assert len(used) > 6  # found its way through the packages
    missing = {path for path in used if not inside(path, paths(STAGES[name]["deps"]))}
    assert missing <= SAME_RESULT, f"{stage} must depend on {sorted(missing)}"


def test_imports_are_followed():
    used = reachable(ROOT / "pipelines" / "stages" / "perturb.py")
    assert {"attackers/filters.py", "pipelines/shards.py", "victims/base.py"} <= used
    assert not any(path.startswith("pipelines/sources") for path in used)


def test_plots_are_made():
    made = [out for stage in STAGES.values() for out in outputs(stage)]
    assert set(paths(PIPELINE["plots"])) <= set(made)


def test_what_dvc_does_not_keep_is_small_enough_for_git():
    for stage in STAGES.values():
        for entry in [*stage.get("outs", []), *stage.get("metrics", [])]:
            path, options = (entry, {}) if isinstance(entry, str) else next(iter(entry.items()))
            small = re.search(r"\.(md|json|csv)$", path) and path.startswith(
                ("datasets", "reports")
            )
            # What DVC does not cache must be small enough for git: cards and reports.
            assert options.get("cache", True) or small, path
