from pathlib import Path

import pytest
import tiny
import yaml

from attackers.da3.filters import FILTER_NAMES
from pipelines.errors import InputError
from pipelines.params import Attack, Perturb, load_params

REPOSITORY = Path(__file__).parents[3]
FILES = [REPOSITORY / "params.yaml", *sorted((REPOSITORY / "params").glob("*.yaml"))]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(REPOSITORY).as_posix())
def test_files_of_the_repository_load(path):
    params = load_params(path)
    assert set(params.attack.victims) <= set(params.victims)


@pytest.mark.parametrize(
    ("section", "name", "most"),
    [(Perturb, "filters", len(FILTER_NAMES)), (Attack, "refine", len(FILTER_NAMES) + 1)],
)
def test_bounds_follow_the_number_of_filters(section, name, most):
    metadata = section.model_fields[name].metadata
    assert [bound.le for bound in metadata if hasattr(bound, "le")] == [most]


def refused(path: Path) -> str:
    with pytest.raises(InputError) as caught:
        load_params(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"seed": "one"}, "seed must be a valid integer, got 'one'"),
        ({"seed": -1}, "seed must be greater than or equal to 0, got -1"),
        ({"engine__workers": 1.5}, "engine.workers must be a valid integer"),
        ({"engine__workers": True}, "engine.workers must be a valid integer, got True"),
        ({"engine__workers": 0}, "engine.workers must be greater than or equal to 1, got 0"),
        ({"attack__lr": "fast"}, "attack.lr must be a valid number, got 'fast'"),
        ({"attack__lr": True}, "attack.lr must be a valid number, got True"),
        ({"attack__lr": [1]}, "attack.lr must be a valid number, got [1]"),
        ({"attack__lr": float("nan")}, "attack.lr must be a finite number, got nan"),
        ({"attack__lr": "inf"}, "attack.lr must be a finite number, got inf"),
        ({"pretrain__lr": 0}, "pretrain.lr must be greater than 0, got 0.0"),
        (
            {"attack__objectives__restricted__min_psnr": float("inf")},
            "attack.objectives.restricted.min_psnr must be a finite number, got inf",
        ),
        (
            {"attack__objectives__restricted__min_psnr": 100},
            "attack.objectives.restricted.min_psnr must be less than 100, got 100.0",
        ),
        ({"attack__epoch": 3}, "attack.epoch is not a parameter"),
        ({"import__splits__val": 0.1}, "import.splits.val is not a parameter"),
        ({"extra": {}}, "extra is not a parameter"),
        (
            {"import__splits__test": 0.2},
            "import.splits train + validation + test must be 1, got 0.95",
        ),
        ({"attack__victims": ["other"]}, "attack.victims must be among net, got 'other'"),
        ({"attack__victims": []}, "attack.victims must have at least 1 item"),
        ({"attack__modes": ["free"]}, "attack.modes.0 must be 'restricted' or 'unrestricted'"),
        (
            {"attack__objectives": {"restricted": {}}},
            "attack objectives must have an entry for mode unrestricted",
        ),
        ({"attack__direction": "up"}, "attack.direction must be 'raise' or 'lower', got 'up'"),
        ({"attack__queries": 3}, "attack.queries must be a multiple of 2, got 3"),
        ({"adt__size": 100}, "adt.size must be a multiple of 32, got 100"),
        ({"adt__heads": 0}, "adt.heads must be greater than or equal to 1, got 0"),
        ({"victims": {"net": {}}}, "victims.net.model is required"),
        ({"victims": ["net"]}, "victims must be a valid dictionary, got ['net']"),
    ],
)
def test_each_rule_is_a_sentence(tmp_path, changes, words):
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump(tiny.settings(tmp_path, **changes)))
    assert refused(path).startswith(f"{path}: {words}")


@pytest.mark.parametrize("section", ["source", "victims", "attack"])
def test_missing_sections(tmp_path, section):
    values = tiny.settings(tmp_path)
    del values[section]
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump(values))
    assert refused(path) == f"{path}: {section} is required"


def test_several_problems_are_counted(tmp_path):
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump(tiny.settings(tmp_path, seed="a", attack__lr=0)))
    assert refused(path) == f"{path}: seed must be a valid integer, got 'a' (and 1 more)"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"seed: [1", "must be YAML: "),
        (b"seed: 0\n  b: {", "in line 2"),
        (b"- seed", "must be a mapping of sections, got list"),
        (b"", "must be a mapping of sections, got NoneType"),
        (b"seed: \xff", "must be UTF-8 text: invalid start byte"),
    ],
)
def test_files_that_are_no_parameters(tmp_path, content, words):
    path = tmp_path / "params.yaml"
    path.write_bytes(content)
    assert words in refused(path)
    assert refused(path).startswith(str(path))


def test_missing_file(tmp_path):
    path = tmp_path / "none.yaml"
    words = f"params must be a readable file, got {path} (No such file or directory)"
    assert refused(path) == words
    assert "Is a directory" in refused(tmp_path)


def test_numbers_as_people_write_them(tmp_path):
    # YAML 1.1 takes 2e-4 (no dot) for text, and 1 for an integer.
    text = yaml.safe_dump(tiny.settings(tmp_path, attack__lr="LR", pretrain__lr=1))
    text = text.replace("lr: 0.01\n", "lr: 1e-2\n").replace("lr: LR", "lr: 2e-4")
    path = tmp_path / "params.yaml"
    path.write_text(text)
    assert yaml.safe_load(text)["attack"]["lr"] == "2e-4"
    params = load_params(path)
    assert (params.attack.lr, params.pretrain.lr) == (2e-4, 1.0)
    assert isinstance(params.pretrain.lr, float)
    assert params.victim("net").training["lr"] == 0.01


def test_unknown_victim_and_mode(tmp_path):
    params = tiny.Project(tmp_path).params()
    with pytest.raises(InputError, match="victim must be one of net; got 'nat'"):
        params.victim("nat")
    with pytest.raises(InputError, match="mode must be one of restricted, unrestricted"):
        params.mode("free")


def test_parameters_are_frozen(tmp_path):
    params = tiny.Project(tmp_path).params()
    with pytest.raises(ValueError, match="frozen"):
        params.seed = 1
