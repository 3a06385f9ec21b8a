"""Which modules a result depends on."""

import pytest

from pipelines.storage.code import ROOT, code_files, code_of, code_version, sources_sha256
from victims.base import ScoreScale


def names(*modules: str) -> set[str]:
    return {file.relative_to(ROOT).as_posix() for file in code_files(*modules)}


def test_imports_are_followed():
    used = names("pipelines.stages.perturb")
    assert {"attackers/da3/filters.py", "pipelines/storage/shards.py", "victims/base.py"} <= used
    assert not any(file.startswith("pipelines/sources") for file in used)


def test_imports_inside_functions_count():
    assert "victims/registry.py" in names("pipelines.stages.attack")


def test_modules_without_result_are_left_out():
    used = names("pipelines.stages.attack")
    assert not any(file.startswith("pipelines/params") for file in used)
    assert {f for f in used if f.startswith("pipelines/execution")} == {
        "pipelines/execution/devices.py"
    }
    assert not {"pipelines/storage/cards.py", "pipelines/errors.py"} & used


def test_packages_that_hold_a_docstring_are_left_out():
    assert "attackers/da3/__init__.py" not in names("attackers.da3.filters")
    assert "pipelines/cli/__init__.py" in names("pipelines.cli.tools")


def test_attacks_do_not_depend_on_triggers():
    assert not any(f.startswith("attackers/backdoor") for f in names("pipelines.stages.attack"))


def test_the_version_follows_the_content(tmp_path, monkeypatch):
    monkeypatch.setattr("pipelines.storage.code.ROOT", tmp_path)
    (tmp_path / "victims").mkdir()
    (tmp_path / "victims" / "a.py").write_text("from victims.b import x\n")
    (tmp_path / "victims" / "b.py").write_text("x = 1\n")
    before = code_version("victims.a")
    assert before == code_version("victims.a")
    (tmp_path / "victims" / "b.py").write_text("x = 2\n")
    assert code_version("victims.a") != before


def test_the_version_follows_the_place(tmp_path, monkeypatch):
    monkeypatch.setattr("pipelines.storage.code.ROOT", tmp_path)
    for name in ("a.py", "b.py"):
        (tmp_path / name).write_text("x = 1\n")
    assert sources_sha256([tmp_path / "a.py"]) != sources_sha256([tmp_path / "b.py"])


def test_the_version_of_an_object_is_that_of_its_class():
    assert code_of(ScoreScale.of(0, 1)) == code_version("victims.base")
    assert code_of(1) is None


@pytest.mark.parametrize("name", ["torch", "victims.no_such_module"])
def test_modules_of_others_are_refused(name):
    with pytest.raises(ModuleNotFoundError, match=name):
        code_version(name)
