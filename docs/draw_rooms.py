"""The drawing of the rooms on the architecture page, made from the imports that exist.

Rows are the layers that import-linter enforces (pyproject.toml), so every arrow points downwards.
An arrow is left out where a chain of arrows already implies it. `mkdocs build` calls this module;
to look at the drawing alone run: python docs/draw_rooms.py rooms.svg
"""

import ast
import sys
import tomllib
from html import escape
from pathlib import Path

import grimp

ROOT = Path(__file__).parents[1]
Arrows = set[tuple[str, str]]

WIDTH, ROW, BOX_WIDTH, BOX_HEIGHT, MARGIN = 900, 96, 150, 54, 12
IN_PIPELINES, BESIDE = "#e8eaf6", "#e8f5e9"


def layers() -> list[list[str]]:
    """The layers of import-linter's first contract, the importing ones first."""
    config = tomllib.loads((ROOT / "pyproject.toml").read_text())
    contract = config["tool"]["importlinter"]["contracts"][0]
    return [[room.strip() for room in layer.split("|")] for layer in contract["layers"]]


def import_graph() -> grimp.ImportGraph:
    """Every import between modules of this project."""
    config = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packages = config["tool"]["importlinter"]["root_packages"]
    return grimp.build_graph(*packages, cache_dir=None)


def modules_of(graph: grimp.ImportGraph, room: str) -> set[str]:
    """The modules of a room, its packages' own files included."""
    return {room, *graph.find_descendants(room)}


def arrows_between(graph: grimp.ImportGraph, rooms: list[str]) -> Arrows:
    """Pairs (importing room, imported room)."""
    room_of = {module: room for room in rooms for module in modules_of(graph, room)}
    return {
        (room, room_of[imported])
        for module, room in room_of.items()
        for imported in graph.find_modules_directly_imported_by(module)
        if room_of.get(imported, room) != room
    }


def without_implied(arrows: Arrows) -> Arrows:
    """The arrows that no chain of other arrows implies (transitive reduction)."""

    def reachable(start: str) -> set[str]:
        found, todo = set(), [start]
        while todo:
            room = todo.pop()
            targets = {target for source, target in arrows if source == room} - found
            found |= targets
            todo += targets
        return found

    return {
        (source, target)
        for source, target in arrows
        if not any(
            target in reachable(between)
            for start, between in arrows
            if start == source and between != target
        )
    }


def rooms_svg(graph: grimp.ImportGraph) -> str:
    """The drawing as an SVG document."""
    rows = layers()
    rooms = [room for row in rows for room in row]
    left_top: dict[str, tuple[float, float]] = {}
    for number, row in enumerate(rows):
        gap = (WIDTH - len(row) * BOX_WIDTH) / (len(row) + 1)
        for i, room in enumerate(row):
            left_top[room] = (gap + i * (BOX_WIDTH + gap), MARGIN + number * ROW)
    height = MARGIN * 2 + (len(rows) - 1) * ROW + BOX_HEIGHT
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
        'font-family="system-ui, sans-serif" text-anchor="middle">',
        "<title>The rooms of veneer and which imports which</title>",
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="7" '
        'markerHeight="7" orient="auto"><path d="M0 0 8 4 0 8z" fill="#5c6bc0"/></marker></defs>',
        f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>',
    ]
    for source, target in sorted(without_implied(arrows_between(graph, rooms))):
        x1, y1 = left_top[source][0] + BOX_WIDTH / 2, left_top[source][1] + BOX_HEIGHT
        x2, y2 = left_top[target][0] + BOX_WIDTH / 2, left_top[target][1]
        bend = (y2 - y1) / 2
        parts.append(
            f'<path d="M{x1:.0f} {y1:.0f}C{x1:.0f} {y1 + bend:.0f} {x2:.0f} {y2 - bend:.0f} '
            f'{x2:.0f} {y2 - 2:.0f}" fill="none" stroke="#5c6bc0" stroke-width="1.3" '
            'marker-end="url(#tip)"/>'
        )
    for room, (x, y) in left_top.items():
        count = len([name for name in modules_of(graph, room) if not _is_package(name)])
        parts += [
            f'<rect x="{x:.0f}" y="{y}" width="{BOX_WIDTH}" height="{BOX_HEIGHT}" rx="6" '
            f'fill="{IN_PIPELINES if room.startswith("pipelines.") else BESIDE}" '
            'stroke="#3f51b5"/>',
            f'<text x="{x + BOX_WIDTH / 2:.0f}" y="{y + 23}" font-size="14" font-weight="600">'
            f"{escape(room.removeprefix('pipelines.'))}</text>",
            f'<text x="{x + BOX_WIDTH / 2:.0f}" y="{y + 42}" font-size="12" fill="#555">'
            f"{_plural(count)}</text>",
        ]
    return "\n".join([*parts, "</svg>"]) + "\n"


def rooms_table(graph: grimp.ImportGraph) -> str:
    """A Markdown table: each room, what it is for (its docstring), which rooms it imports."""
    rooms = [room for row in layers() for room in row]
    arrows = arrows_between(graph, rooms)
    lines = ["| room | what it is for | imports |", "| --- | --- | --- |"]
    for room in rooms:
        imported = ", ".join(_short(name) for name in rooms if (room, name) in arrows)
        lines.append(f"| {_short(room)} | {purpose(room)} | {imported or 'nothing of veneer'} |")
    return "\n".join(lines)


def purpose(module: str) -> str:
    """First line of a module's docstring."""
    path = ROOT / Path(*module.split("."))
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return (ast.get_docstring(ast.parse(file.read_text())) or "").split("\n")[0]


def _short(room: str) -> str:
    return f"`{room.removeprefix('pipelines.')}`"


def _is_package(module: str) -> bool:
    return (ROOT / Path(*module.split("."))).is_dir()


def _plural(count: int) -> str:
    return f"{count} module" + ("s" if count != 1 else "")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python docs/draw_rooms.py OUT.svg")
    Path(sys.argv[1]).write_text(rooms_svg(import_graph()))
