"""Pages that `mkdocs build` makes: the API, the drawing of the rooms, files of the root folder."""

import ast
import sys
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

sys.path.insert(0, str(Path(__file__).parent))

import draw_rooms

ROOT = draw_rooms.ROOT
# In the order of the navigation.
API = ["veneer", "attackers", "victims", "defenders", "pipelines"]
# Kept beside the code, shown in the site as well.
ROOT_PAGES = {"contributing.md": "CONTRIBUTING.md", "changelog.md": "CHANGELOG.md"}
ROOMS_TABLE = "<!-- rooms: the table of docs/draw_rooms.py -->"
# How the page of `veneer` shows a name: with its signature.
SHOWN = (
    "{show_root_heading: true, show_root_toc_entry: true, heading_level: 2, "
    "show_root_full_path: false}"
)

graph = draw_rooms.import_graph()


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages and the drawing; complete the navigation."""
    files.append(File.generated(config, "rooms.svg", content=draw_rooms.rooms_svg(graph)))
    for name, source in ROOT_PAGES.items():
        text = (ROOT / source).read_text().replace("](docs/", "](")
        files.append(File.generated(config, name, content=text))
    api = []
    for package in API:
        for uri, text in api_pages(package).items():
            files.append(File.generated(config, uri, content=text))
            api.append(uri)
    config.nav = [*(config.nav or []), {"API": api}]
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Put the table of the rooms where the architecture page asks for it."""
    return markdown.replace(ROOMS_TABLE, draw_rooms.rooms_table(graph))


def api_pages(package: str) -> dict[str, str]:
    """One page per room (a package with modules of its own), from the docstrings."""
    pages = {}
    folder = ROOT / package
    for init in sorted(folder.rglob("__init__.py")):
        room = ".".join(init.parent.relative_to(ROOT).parts)
        modules = sorted(file.stem for file in init.parent.glob("*.py") if file != init)
        blocks = [f"# {room}", f"::: {room}" if defines(init) else draw_rooms.purpose(room)]
        blocks += [f"## {name}\n\n::: {room}.{name}" for name in modules]
        blocks += [
            f"::: {room}.{name}\n    options: {SHOWN}" for name in exported(init) if not modules
        ]
        pages[f"api/{room}.md"] = "\n\n".join(blocks) + "\n"
    return pages


def defines(init: Path) -> bool:
    """Whether a package's own file holds public functions or classes."""
    return any(
        isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_")
        for node in ast.parse(init.read_text()).body
    )


def exported(init: Path) -> list[str]:
    """Names that a package imports for its users, functions before classes."""
    names = [
        alias.name
        for node in ast.walk(ast.parse(init.read_text()))
        if isinstance(node, ast.ImportFrom) and (ROOT / node.module.split(".")[0]).is_dir()
        for alias in node.names
    ]
    return sorted(names, key=lambda name: (name[0].isupper(), name))
