"""dvc.yaml says what each stage reads: what it forgets goes stale without a word."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from dvc.dependency.param import ParamsDependency
from dvc.repo import Repo
from dvc.stage import PipelineStage

from pipelines.cli import app
from pipelines.orchestration.code_deps import (
    BY_NAME,
    code_dependencies,
    update_code_dependencies,
    with_code_dependencies,
)
from pipelines.params import Params, load_params
from pipelines.readers.selection import attack_keys, pretraining_keys
from pipelines.storage.code import PACKAGES
from victims.kinds import QUALITY

ROOT = Path(__file__).parents[1]
PIPELINE: dict[str, Any] = yaml.safe_load((ROOT / "dvc.yaml").read_text())
FILES = [ROOT / "params.yaml", *sorted((ROOT / "params").glob("*.yaml"))]
PARAMS = load_params(ROOT / "params.yaml")


def stages_of(root: Path) -> dict[str, PipelineStage]:
    """Every stage as DVC reads it, by name."""
    return {stage.name: stage for stage in Repo(str(root)).index.stages}


STAGES = stages_of(ROOT)
by_stage = pytest.mark.parametrize("name", STAGES)


def parameters(stage: PipelineStage) -> list[str]:
    deps = (dep for dep in stage.deps if isinstance(dep, ParamsDependency))
    return [name for dep in deps for name in dep.params]


def dependencies(stage: PipelineStage) -> list[str]:
    return [dep.def_path for dep in stage.deps if not isinstance(dep, ParamsDependency)]


def outputs(stage: PipelineStage) -> list[str]:
    return [out.def_path for out in stage.outs]


def inside(path: str, folders: list[str]) -> bool:
    return any(path == folder or path.startswith(f"{folder}/") for folder in folders)


@by_stage
def test_command_exists_with_these_arguments(name):
    program, command, *arguments = STAGES[name].cmd.split()
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
    for path in dependencies(STAGES[name]):
        # A folder of outputs counts: datasets/aes holds those of each attack.
        known = inside(path, made) or any(inside(out, [path]) for out in made)
        assert known or (ROOT / path).exists(), path
    assert not set(outputs(STAGES[name])) & set(made)


# Code


def test_code_dependencies_are_what_the_stages_import():
    text = (ROOT / "dvc.yaml").read_text()
    assert with_code_dependencies(text) == text, "run `veneer code-deps`"


def test_code_dependencies_are_written_where_they_were():
    deps = "    deps:\n      - some/data\n      - attackers\n"
    text = f"stages:\n  perturb:\n{deps}    outs:\n      - x\n"
    lines = with_code_dependencies(text).splitlines()
    assert lines[:4] == text.splitlines()[:4]
    assert lines[-2:] == ["    outs:", "      - x"]
    assert "      - attackers/da3/filters.py" in lines
    assert "      - attackers" not in lines


def test_code_dependencies_are_checked_and_written(tmp_path):
    path = tmp_path / "dvc.yaml"
    before = "stages:\n  perturb:\n    deps:\n      - attackers\n"
    path.write_text(before)
    assert update_code_dependencies(tmp_path, check=True)
    assert path.read_text() == before
    assert update_code_dependencies(tmp_path)
    assert not update_code_dependencies(tmp_path, check=True)


@pytest.mark.parametrize("stage", BY_NAME)
def test_the_module_of_what_a_parameter_names_is_a_dependency(stage):
    kinds = BY_NAME[stage]
    for name, place in kinds.table.items():
        file = f"{place.partition(':')[0].replace('.', '/')}.py"
        if kinds.file is None:
            assert file in code_dependencies(stage)
        else:
            assert re.sub(r"\$\{.*\}", name, kinds.file) == file


def test_examples_depend_on_no_victim_but_theirs():
    for stage in ("attack", "evaluate", "poison"):
        used = code_dependencies(stage)
        assert "victims/base.py" in used
        kinds = {"nima", "toy", *QUALITY}
        assert not {f"victims/{kind}.py" for kind in kinds} & set(used)


# Parameters


def looked_up(values: Any, key: str) -> Any:
    for part in key.split("."):
        assert part in values, f"{key} is not there"
        values = values[part]
    return values


@pytest.fixture(params=FILES, ids=lambda path: path.stem, scope="module")
def parameter_file(request) -> Path:
    """params.yaml and each file that can stand in its place."""
    return request.param


@pytest.fixture(scope="module")
def with_file(parameter_file, tmp_path_factory) -> Iterator[Path]:
    """A project with that file as params.yaml; outputs that stand in for those of its stages."""
    root = new_project(tmp_path_factory.mktemp("params") / "project", parameter_file)
    before = Path.cwd()
    os.chdir(root)
    yield root
    os.chdir(before)


def new_project(root: Path, parameter_file: Path) -> Path:
    """A copy of the code in which every stage seems to have run, but DVC does not know."""
    for package in PACKAGES:
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / package, root / package, ignore=ignored)
    shutil.copytree(ROOT / "annotations", root / "annotations")
    shutil.copy(ROOT / "dvc.yaml", root)
    shutil.copy(parameter_file, root / "params.yaml")
    Repo.init(str(root), no_scm=True).close()
    for name, stage in stages_of(root).items():
        for out in outputs(stage):
            path = root / out
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.suffix:
                path.write_text(name)
            elif not path.exists():
                path.mkdir()
                (path / "file").write_text(name)
    return root


def test_dvc_takes_the_file(with_file):
    repo = Repo(str(with_file))
    params = load_params(with_file / "params.yaml")
    listed = [stage.name for stage in repo.index.stages]  # dvc stage list
    assert [stage.name for stage in repo.reproduce(dry=True)] == listed  # dvc repro --dry
    pairs = {f"attack@{v}-{m}" for v in params.attack.victims for m in params.attack.modes}
    assert {name for name in listed if name.startswith("attack@")} == pairs


def test_parameters_of_stages_are_spelled_out(with_file):
    """DVC compares what the file says: a default that changes in the code would go unnoticed."""
    said = yaml.safe_load((with_file / "params.yaml").read_text())
    params = load_params(with_file / "params.yaml").model_dump(by_alias=True)
    for name, stage in stages_of(with_file).items():
        for key in parameters(stage):
            assert looked_up(said, key) == looked_up(params, key), f"{key} of {name}"


def sees(stage: PipelineStage, key: str) -> bool:
    """Whether DVC compares this parameter, or the section that it is in."""
    return any(key == name or key.startswith(f"{name}.") for name in parameters(stage))


def test_lists_of_stages_are_no_parameter_of_one_of_them():
    lists = ("attack.victims", "attack.modes", "finetune.victims", "poison.schemes")
    for name, stage in STAGES.items():
        if "@" in name:
            assert not any(sees(stage, key) for key in (*lists, "backdoor.victims")), name


@pytest.mark.parametrize(
    ("stage", "sections", "unused"),
    [
        ("attack@lite0-restricted", ["attack", "adt"], {"attack.victims", "attack.modes"}),
        ("poison@p", ["poison"], {"poison.schemes"}),
        ("backdoor@p-hyper", ["backdoor"], {"backdoor.victims"}),
        ("finetune@resnet", ["finetune"], {"finetune.victims"}),
        (
            "finetune@resnet",
            ["attack"],
            {f"attack.{k}" for k in ("victims", "modes", "protocol", "photographs", "limit")},
        ),
    ],
)
def test_all_other_parameters_of_a_section_are(stage, sections, unused):
    """Listed one by one: a new one must not be forgotten."""
    keys = {f"{s}.{k}" for s in sections for k in type(getattr(PARAMS, s)).model_fields}
    seen = {key for key in keys if sees(STAGES[stage], key)}
    mode = {"attack.objectives"} if stage.startswith("attack@") else set()  # that of its mode
    assert seen == keys - unused - mode
    if mode:
        assert sees(STAGES[stage], "attack.objectives.restricted")
        assert not sees(STAGES[stage], "attack.objectives.unrestricted")


@pytest.mark.parametrize("path", FILES[1:], ids=lambda path: path.stem)
def test_stages_of_an_attack_share_no_photograph(path):
    params: Params = load_params(path)
    limits = params.perturb.model_dump(include={"limit", "held_out"})
    exclude = params.attack.exclude_pretraining
    keys = [f"{i:05d}" for i in range(50_000)]
    for split in ("train", "validation", "test"):
        second = set(attack_keys(split, keys, exclude_pretraining=exclude, **limits))
        first = set(pretraining_keys(split, keys, **limits))
        assert split == "test" or not first & second


# What makes what stale

VERSIONS = """
import json
from pathlib import Path
import yaml
from pipelines.orchestration.code_deps import stage_module, update_code_dependencies
from pipelines.storage.code import code_version
from victims.kinds import VICTIMS, victim_module
update_code_dependencies(Path())
stages = yaml.safe_load(Path("dvc.yaml").read_text())["stages"]
found = {stage: code_version(stage_module(stage)) for stage in stages}
found |= {kind: code_version(victim_module(kind)) for kind in VICTIMS}
print(json.dumps(found))
"""
NEW_KIND = '"""A new kind."""\n\nfrom victims.nima import Nima\n\n\nclass Tiny(Nima):\n    pass\n'


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A project of which DVC thinks that every stage has run. Not to be changed: copy it."""
    root = new_project(tmp_path_factory.mktemp("stale") / "project", ROOT / "params.yaml")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        Repo(str(root)).commit(force=True)
        assert stale(root) == set()
    return root


@pytest.fixture
def changed(finished, tmp_path, monkeypatch) -> Path:
    """A copy to change."""
    monkeypatch.chdir(shutil.copytree(finished, tmp_path / "project"))
    return Path.cwd()


def stale(root: Path) -> set[str]:
    """What `dvc status` names."""
    return set(Repo(str(root)).status())


def code_versions(root: Path) -> dict[str, str]:
    """Of the stages, as in the names of their work folders, and of kinds; dvc.yaml is written."""
    command = [sys.executable, "-c", VERSIONS]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    done = subprocess.run(command, cwd=root, env=environment, check=True, capture_output=True)
    found: dict[str, str] = json.loads(done.stdout)
    return found


def append(path: Path, text: str = "\n# changed\n") -> None:
    path.write_text(path.read_text() + text)


def test_a_new_kind_of_victim_leaves_all_others_alone(changed):
    before = code_versions(changed)
    (changed / "victims" / "tiny.py").write_text(NEW_KIND)
    kinds = changed / "victims" / "kinds.py"
    line = 'TRAINED = {"tiny": "victims.tiny:Tiny", '
    kinds.write_text(kinds.read_text().replace("TRAINED = {", line))
    values = yaml.safe_load((changed / "params.yaml").read_text())
    values["victims"]["small"] = {"model": {"kind": "tiny"}, "training": {}}
    values["attack"]["victims"].append("small")
    (changed / "params.yaml").write_text(yaml.safe_dump(values))

    after = code_versions(changed)
    assert after.pop("tiny")
    assert after == before
    new = {"train_victim@small", "attack@small-unrestricted", "attack@small-restricted"}
    # What looks at all victims may see the new one; nothing else is touched.
    assert stale(changed) == new | {"evaluate"}
    assert "victims/tiny.py" in dependencies(stages_of(changed)["train_victim@small"])


def test_a_new_quality_model_leaves_all_others_alone(changed):
    values = yaml.safe_load((changed / "params.yaml").read_text())
    values["quality"]["other"] = values["quality"]["hyper"]
    values["backdoor"]["victims"].append("other")
    (changed / "params.yaml").write_text(yaml.safe_dump(values))
    assert stale(changed) == {"backdoor@p-other", "backdoor@c-other", "report_backdoor"}


def test_another_objective_is_of_its_mode_alone(changed):
    values = yaml.safe_load((changed / "params.yaml").read_text())
    values["attack"]["objectives"]["restricted"]["min_psnr"] = 30.0
    (changed / "params.yaml").write_text(yaml.safe_dump(values))
    attacks = {"attack@lite0-restricted", "attack@resnet-restricted"}
    assert stale(changed) == attacks | {"finetune@resnet"}


def test_triggers_are_no_part_of_attacks(changed):
    before = code_versions(changed)
    append(changed / "attackers" / "backdoor" / "uap.py")
    append(changed / "attackers" / "backdoor" / "trigger.py")
    after = code_versions(changed)
    touched = {"search_trigger", "poison", "backdoor"}
    assert {name for name in before if after[name] != before[name]} == touched
    assert {name.split("@")[0] for name in stale(changed)} == touched


def test_the_module_of_a_kind_is_part_of_what_it_made(changed):
    before = code_versions(changed)
    append(changed / "victims" / "nima.py")
    after = code_versions(changed)
    # The rest follows through models/victims, whose config.json holds the version of the kind.
    assert {name for name in before if after[name] != before[name]} == {"nima", "train_victim"}
    assert stale(changed) == {"train_victim@lite0", "train_victim@resnet"}


def test_the_module_of_a_source_is_part_of_what_it_lists(changed):
    append(changed / "pipelines" / "sources" / "ava.py")
    assert stale(changed) == set()
    append(changed / "pipelines" / "sources" / "sample.py")
    assert stale(changed) == {"import"}


TRAININGS = {"train_victim", "pretrain", "attack", "train_detector", "finetune", "backdoor"}


@pytest.mark.parametrize(
    ("file", "stages"),
    [
        # Which photographs are used.
        ("pipelines/readers/selection.py", {"perturb", "attack", "finetune", "evaluate"}),
        # Which precision.
        ("pipelines/execution/devices.py", TRAININGS | {"evaluate", "search_trigger", "poison"}),
        # Where shards are made, what is compared by value, what people read.
        ("pipelines/execution/engine.py", set()),
        ("pipelines/execution/workers.py", set()),
        ("pipelines/params/attack.py", set()),
        ("pipelines/reports/tables.py", set()),
    ],
)
def test_code_is_part_of_the_stages_whose_result_it_decides(changed, file, stages):
    append(changed / file)
    assert {name.split("@")[0] for name in stale(changed)} == stages


# Outputs


def test_plots_are_made():
    made = [out for stage in STAGES.values() for out in outputs(stage)]
    assert {next(iter(plot)) for plot in PIPELINE["plots"]} <= set(made)


def test_what_dvc_does_not_keep_is_small_enough_for_git():
    for stage in STAGES.values():
        for out in stage.outs:
            small = re.search(r"\.(md|json|csv)$", out.def_path)
            small = small and out.def_path.startswith(("datasets", "reports"))
            # What DVC does not cache must be small enough for git: cards and reports.
            assert out.use_cache or small, out.def_path
