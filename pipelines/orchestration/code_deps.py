"""The code dependencies in dvc.yaml, written from what each stage imports."""

import re
from pathlib import Path

import yaml

from pipelines.storage.code import PACKAGES, ROOT, code_files, module_file

_CODE_DEPENDENCY = re.compile(rf"\s+- ({'|'.join(PACKAGES)})(/\S*)?")


def stage_module(stage: str) -> str:
    """Dotted name of the module of a stage; `import` is a word of Python."""
    return f"pipelines.stages.{stage if module_file(f'pipelines.stages.{stage}') else stage + '_'}"


def code_dependencies(stage: str) -> list[str]:
    """The source files that a stage uses, as dvc.yaml names them."""
    return [file.relative_to(ROOT).as_posix() for file in code_files(stage_module(stage))]


def with_code_dependencies(text: str) -> str:
    """The text of dvc.yaml with the code dependencies of every stage as they should be."""
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


def write_code_dependencies(root: Path) -> bool:
    """Bring dvc.yaml up to date. Returns: whether it changed."""
    path = root / "dvc.yaml"
    before = path.read_text()
    after = with_code_dependencies(before)
    if after != before:
        path.write_text(after)
    return after != before


if __name__ == "__main__":
    print("dvc.yaml written" if write_code_dependencies(ROOT) else "dvc.yaml is up to date")
