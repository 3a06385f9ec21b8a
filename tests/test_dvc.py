"""dvc.yaml says what each stage reads: what it forgets goes stale without a word."""

import itertools
import re
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from pipelines.cli import app
from pipelines.orchestration.code_deps import with_code_dependencies
from pipelines.params import load_params

ROOT = Path(__file__).parents[1]
PIPELINE: dict[str, Any] = yaml.safe_load((ROOT / "dvc.yaml").read_text())
VALUES: dict[str, Any] = yaml.safe_load((ROOT / "params.yaml").read_text())
PARAMS = load_params(ROOT / "params.yaml")


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


def test_code_dependencies_are_what_the_stages_import():
    text = (ROOT / "dvc.yaml").read_text()
    assert with_code_dependencies(text) == text, "run `python -m pipelines.orchestration.code_deps`"


def test_code_dependencies_are_written_where_they_were():
    deps = "    deps:\n      - some/data\n      - attackers\n"
    text = f"stages:\n  perturb:\n{deps}    outs:\n      - x\n"
    lines = with_code_dependencies(text).splitlines()
    assert lines[:4] == text.splitlines()[:4]
    assert lines[-2:] == ["    outs:", "      - x"]
    assert "      - attackers/da3/filters.py" in lines
    assert "      - attackers" not in lines


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
