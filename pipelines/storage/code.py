"""Which of the project's modules a result depends on, read from the imports themselves."""

import ast
import functools
import hashlib
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = ("attackers", "victims", "defenders", "pipelines")
# No result depends on them. Engine and workers say where a shard is made, and tests hold that its
# bytes are the same everywhere (devices count: they choose the precision); parameters are compared
# by value, and a test holds that the parameter files spell them out; tables of names import nothing
# by themselves; this module names work folders; the others write text for people.
WITHOUT_RESULT = (
    "pipelines.errors",
    "pipelines.execution.engine",
    "pipelines.execution.memory",
    "pipelines.execution.progress",
    "pipelines.execution.workers",
    "pipelines.params",
    "pipelines.publishing",
    "pipelines.reports",
    "pipelines.sources.registry",
    "pipelines.storage.cards",
    "pipelines.storage.code",
    "victims.kinds",
)


def module_file(name: str) -> Path | None:
    """The source of a module or package of this project.

    Args:
        name: Dotted name.

    Returns:
        The file, None where there is none.
    """
    path = ROOT / Path(*name.split("."))
    for file in (path.with_suffix(".py"), path / "__init__.py"):
        if file.is_file():
            return file
    return None


def code_files(*modules: str) -> list[Path]:
    """The sources that modules use: themselves and, step by step, all that they import.

    Imports inside functions count. Left out are the modules of WITHOUT_RESULT and each package's
    file that holds no more than its docstring.

    Args:
        modules: Dotted names.

    Returns:
        Files, sorted.

    Raises:
        ModuleNotFoundError: For a module that is not of this project.
    """
    for name in modules:
        if name.split(".")[0] not in PACKAGES or module_file(name) is None:
            raise ModuleNotFoundError(f"module must be one of this project, got {name!r}")
    found: dict[str, Path] = {}
    todo = [part for name in modules for part in _with_packages(name)]
    while todo:
        name = todo.pop()
        file = module_file(name)
        if file is None or name in found or _without_result(name):
            continue
        found[name] = file
        todo += _imports(file.read_text())
    return sorted(file for file in found.values() if _has_code(file))


def code_version(*modules: str) -> str:
    """SHA-256 of the sources that modules use.

    Args:
        modules: Dotted names, as for `code_files`.

    Raises:
        ModuleNotFoundError: For a module that is not of this project.
    """
    return sources_sha256(code_files(*modules))


def code_of(thing: object) -> str | None:
    """SHA-256 of the sources that the class of an object uses.

    Args:
        thing: Any object, such as a victim.

    Returns:
        The digest, None for a class that is not of this project.
    """
    module = type(thing).__module__
    return code_version(module) if module.split(".")[0] in PACKAGES else None


def sources_sha256(files: Iterable[Path]) -> str:
    """SHA-256 of source files, by their place in the project and their content.

    Args:
        files: Files under ROOT.
    """
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.relative_to(ROOT).as_posix()}\0".encode())
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()


def _without_result(name: str) -> bool:
    return any(name == left or name.startswith(f"{left}.") for left in WITHOUT_RESULT)


def _with_packages(name: str) -> list[str]:
    """`a.b.c` runs `a` and `a.b` as well."""
    parts = name.split(".")
    return [".".join(parts[: i + 1]) for i in range(len(parts))]


def _has_code(file: Path) -> bool:
    return file.name != "__init__.py" or len(ast.parse(file.read_text()).body) > 1


@functools.cache
def _imports(source: str) -> tuple[str, ...]:
    """Dotted names that a source imports from this project, packages included."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    ours = (name for name in names if name.split(".")[0] in PACKAGES)
    return tuple(sorted({part for name in ours for part in _with_packages(name)}))
