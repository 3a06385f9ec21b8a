"""What the README and the site say can be followed: commands parse, paths exist."""

import importlib.util
import itertools
import re
import shlex
import textwrap
from pathlib import Path

import pytest
import typer

import veneer
from pipelines.cli import app

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
MADE = ("datasets/", "models/", "reports/", "annotations/", "build/", "dvc_plots/")

spec = importlib.util.spec_from_file_location("draw_rooms", ROOT / "docs" / "draw_rooms.py")
draw_rooms = importlib.util.module_from_spec(spec)
spec.loader.exec_module(draw_rooms)


def veneer_commands():
    """Every line of a shell block that starts with `veneer`."""
    for page in PAGES:
        for block in re.findall(r"```sh\n(.*?)```", page.read_text(), re.DOTALL):
            for line in block.splitlines():
                arguments = shlex.split(line, comments=True)
                if arguments[:1] == ["veneer"]:
                    yield pytest.param(arguments[1:], id=" ".join(arguments))


@pytest.mark.parametrize("arguments", veneer_commands())
def test_commands_of_the_pages_parse(arguments):
    command = typer.main.get_command(app)
    if arguments == ["--help"]:
        return
    context = command.make_context("veneer", list(arguments), resilient_parsing=True)
    while hasattr(command, "commands"):
        name, command, arguments = command.resolve_command(context, list(arguments))
        assert name is not None
        context = command.make_context(name, list(arguments), parent=context)  # or a usage error


def paths_named(text: str) -> set[str]:
    """Paths in backticks, braces spelled out: `a/{b,c}.py` names two."""
    found = set()
    for name in re.findall(r"`([\w./{},-]+/[\w./{},-]*)`", text):
        parts = [part.split(",") for part in re.split(r"[{}]", name)]
        found |= {"".join(choice) for choice in itertools.product(*parts)}
    return found


@pytest.mark.parametrize(
    "page", [ROOT / "README.md", ROOT / "CONTRIBUTING.md"], ids=lambda p: p.name
)
def test_paths_of_the_tables_exist(page):
    missing = {
        path
        for path in paths_named(page.read_text())
        if not path.startswith((*MADE, "..", "./")) and not (ROOT / path).exists()
    }
    assert not missing


@pytest.mark.parametrize(
    "page", [ROOT / "README.md", ROOT / "CONTRIBUTING.md"], ids=lambda p: p.name
)
def test_links_resolve(page):
    targets = re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text())
    assert targets
    assert [target for target in targets if not (ROOT / target).exists()] == []


def test_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) < 160


def test_an_arrow_that_others_imply_is_left_out():
    chain = {("a", "b"), ("b", "c"), ("c", "d")}
    assert draw_rooms.without_implied(chain | {("a", "c"), ("a", "d")}) == chain
    fork = {("a", "b"), ("a", "c")}
    assert draw_rooms.without_implied(fork) == fork


def test_drawing_has_every_room_and_points_downwards():
    graph = draw_rooms.import_graph()
    rows = draw_rooms.layers()
    row_of = {room: number for number, row in enumerate(rows) for room in row}
    arrows = draw_rooms.arrows_between(graph, list(row_of))
    assert ("pipelines.cli", "pipelines.stages") in arrows
    assert all(row_of[source] < row_of[target] for source, target in arrows)
    svg, table = draw_rooms.rooms_svg(graph), draw_rooms.rooms_table(graph)
    for room in row_of:
        assert f">{room.removeprefix('pipelines.')}</text>" in svg
        assert f"\n| `{room.removeprefix('pipelines.')}` | " in table


def test_python_of_the_pages_uses_names_that_exist():
    for page in PAGES:
        for block in re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL):
            compile(textwrap.dedent(block), page.name, "exec")
            names = set(re.findall(r"veneer\.(\w+)", block))
            assert names <= set(veneer.__all__), page.name
