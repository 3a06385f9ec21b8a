"""The code dependencies in dvc.yaml, written from what each stage imports.

A stage depends on its own module and on all that this imports, step by step and inside functions
too. Left out is what no result depends on: `pipelines.storage.code.WITHOUT_RESULT`. What a stage
imports by a name in the parameters (a victim's kind, a source) is in one of the tables below: the
file of the kind that is named, by interpolation, and what the files of all kinds import.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml

from pipelines.errors import InputError
from pipelines.sources.registry import SOURCES
from pipelines.storage.code import PACKAGES, ROOT, code_files, module_file
from victims.kinds import QUALITY, TRAINED

_CODE_DEPENDENCY = re.compile(rf"\s+- ({'|'.join(PACKAGES)})(/\S*)?")


@dataclass(frozen=True)
class Kinds:
    """What a stage imports by name.

    Attributes:
        table: From name to `module:class`.
        file: How dvc.yaml names the file of the one in the parameters; None where DVC cannot say
            (it does not interpolate within an interpolation): the stage depends on them all.
    """

    table: Mapping[str, str]
    file: str | None

    @property
    def modules(self) -> list[str]:
        """Dotted names of the modules."""
        return sorted({place.partition(":")[0] for place in self.table.values()})


BY_NAME = {
    "import": Kinds(SOURCES, "pipelines/sources/${source.name}.py"),
    "train_victim": Kinds(TRAINED, "victims/${item.model.kind}.py"),
    "search_trigger": Kinds(QUALITY, None),
    "backdoor": Kinds(QUALITY, None),
}


def stage_module(stage: str) -> str:
    """Dotted name of the module of a stage; `import` is a word of Python.

    Args:
        stage: Name in dvc.yaml, before the @.
    """
    return f"pipelines.stages.{stage if module_file(f'pipelines.stages.{stage}') else stage + '_'}"


def code_dependencies(stage: str) -> list[str]:
    """The source files that a stage uses, as dvc.yaml names them.

    Args:
        stage: Name in dvc.yaml, before the @.

    Returns:
        Paths from the root of the project, sorted; one may hold an interpolation.
    """
    files = set(code_files(stage_module(stage)))
    if stage not in BY_NAME:
        return _names(files)
    kinds = BY_NAME[stage]
    if kinds.file is None:
        return _names(files.union(code_files(*kinds.modules)))
    for module in kinds.modules:
        files |= {file for file in code_files(module) if file != module_file(module)}
    return sorted([*_names(files), kinds.file])


def _names(files: Iterable[Path]) -> list[str]:
    return sorted(file.relative_to(ROOT).as_posix() for file in files)


def with_code_dependencies(text: str) -> str:
    """The text of dvc.yaml with the code dependencies of every stage as they should be.

    Args:
        text: The file as it is; comments and all other lines stay.
    """
    stages = yaml.safe_load(text)["stages"]
    lines: list[str] = []
    stage, depth = "", None  # depth: the indentation of `deps:` while inside such a list
    for line in [*text.splitlines(), ""]:
        name = re.fullmatch(r"  (\w+):", line)
        if name and name[1] in stages:
            stage = name[1]
        indentation = len(line) - len(line.lstrip())
        if depth is not None and (indentation <= depth or not line):
            lines += [f"{' ' * (depth + 2)}- {file}" for file in code_dependencies(stage)]
            depth = None
        if line.strip() == "deps:" and stage:
            depth = indentation
        if depth is None or not _CODE_DEPENDENCY.fullmatch(line):
            lines.append(line)
    return "\n".join(lines[:-1]) + "\n"


def update_code_dependencies(root: Path, *, check: bool = False) -> bool:
    """Bring dvc.yaml up to date.

    Args:
        root: Folder of dvc.yaml.
        check: Write nothing.

    Returns:
        Whether it was out of date.

    Raises:
        InputError: Where there is no dvc.yaml.
    """
    path = root / "dvc.yaml"
    try:
        before = path.read_text()
    except OSError as error:
        raise InputError(f"root must hold a dvc.yaml, got {path} ({error.strerror})") from None
    after = with_code_dependencies(before)
    if after != before and not check:
        path.write_text(after)
    return after != before
