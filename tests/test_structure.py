"""The shape of the code: rooms, size of functions, docstrings, and packages that do real work."""

import ast
import io
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("attackers", "victims", "defenders", "pipelines", "veneer")
FILES = sorted(file for package in PACKAGES for file in (ROOT / package).rglob("*.py"))
LONGEST = 60  # lines of code of a function
# Longer than that, each with its reason.
LONG: dict[str, str] = {}
_NO_CODE = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENDMARKER,
}


def name_of(file: Path) -> str:
    return file.relative_to(ROOT).as_posix()


by_file = pytest.mark.parametrize("file", FILES, ids=name_of)


def lines_of_code(source: str) -> set[int]:
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return {
        line
        for token in tokens
        if token.type not in _NO_CODE
        for line in range(token.start[0], token.end[0] + 1)
    }


def docstring_lines(node: ast.AST) -> set[int]:
    return {
        line
        for inner in ast.walk(node)
        if isinstance(inner, ast.Expr)
        and isinstance(inner.value, ast.Constant)
        and isinstance(inner.value.value, str)
        for line in range(inner.lineno, (inner.end_lineno or inner.lineno) + 1)
    }


def long_functions(file: Path) -> Iterator[str]:
    source = file.read_text()
    code = lines_of_code(source)
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            own = code & set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
            if len(own - docstring_lines(node)) > LONGEST:
                yield f"{name_of(file)}:{node.name}"


def public(tree: ast.Module | ast.ClassDef, prefix: str = "") -> Iterator[tuple[str, ast.AST]]:
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            yield prefix + node.name, node
            if isinstance(node, ast.ClassDef):
                yield from public(node, f"{node.name}.")


def arguments(node: ast.AST) -> list[str]:
    """Arguments that a user gives: those of a function, of __init__, or the fields of a record."""
    if isinstance(node, ast.FunctionDef):
        every = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        return [a.arg for a in every if a.arg not in ("self", "cls")]
    assert isinstance(node, ast.ClassDef)
    for inner in node.body:
        if isinstance(inner, ast.FunctionDef) and inner.name == "__init__":
            return arguments(inner)
    if any("dataclass" in ast.dump(decorator) for decorator in node.decorator_list):
        return [
            ast.unparse(inner.target) for inner in node.body if isinstance(inner, ast.AnnAssign)
        ]
    return []


def is_command(node: ast.AST) -> bool:
    """Typer shows the docstring of a command to its user; its options have their own help."""
    return any("command" in ast.dump(d) or "callback" in ast.dump(d) for d in node.decorator_list)  # type: ignore[attr-defined]


def test_pipelines_holds_rooms():
    loose = {file.name for file in (ROOT / "pipelines").glob("*.py")}
    assert loose == {"__init__.py", "errors.py"}


def test_functions_are_short():
    assert {name for file in FILES for name in long_functions(file)} == set(LONG)
    assert len(LONG) <= 2


@by_file
def test_arguments_are_documented(file):
    missing = [
        name
        for name, node in public(ast.parse(file.read_text()))
        if arguments(node)
        and not is_command(node)
        and not any(
            f"{title}:" in (ast.get_docstring(node) or "") for title in ("Args", "Attributes")
        )  # type: ignore[arg-type]
    ]
    assert not missing


@pytest.mark.parametrize("package", ["kornia", "webdataset", "label_studio_sdk", "timm", "prefect"])
def test_packages_do_real_work(package):
    def imports(node: ast.AST) -> bool:
        if isinstance(node, ast.Import):
            return any(alias.name.split(".")[0] == package for alias in node.names)
        return isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == package

    assert any(imports(node) for file in FILES for node in ast.walk(ast.parse(file.read_text())))
