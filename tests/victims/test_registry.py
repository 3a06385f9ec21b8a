import json

import pytest
import torch

from victims.base import ScoreScale
from victims.registry import build_victim, load_victim, save_victim, victim_sha256

NIMA = {
    "kind": "nima",
    "backbone": "test_efficientnet",
    "input_size": 32,
    "scale": {"low": 0, "high": 100},
}
LINEAR = {"kind": "toy-linear", "scale": {"low": 0, "high": 10, "threshold": 4}}


@pytest.mark.parametrize("config", [NIMA, LINEAR, LINEAR | {"kind": "toy-brightness"}])
def test_saved_and_loaded_victim_scores_the_same(tmp_path, config):
    victim = build_victim(config, seed=3)
    save_victim(victim, tmp_path / "victim")
    loaded = load_victim(tmp_path / "victim")
    images = torch.rand(2, 3, 40, 30)
    assert torch.equal(loaded(images), victim(images))
    assert (loaded.name, loaded.scale) == (victim.name, victim.scale)
    assert not any(parameter.requires_grad for parameter in loaded.parameters())


def test_the_same_weights_at_another_size(tmp_path):
    save_victim(build_victim(NIMA, seed=3), tmp_path / "victim")
    larger = load_victim(tmp_path / "victim", input_size=48)
    assert larger.input_size == larger.config()["input_size"] == 48
    wanted = build_victim(NIMA | {"input_size": 48}, seed=3)
    images = torch.rand(2, 3, 60, 50)
    assert torch.equal(larger(images), wanted(images))
    save_victim(build_victim(LINEAR), tmp_path / "toy")
    with pytest.raises(ValueError, match=r"to change it to 48, got .*toy \(kind toy-linear\)"):
        load_victim(tmp_path / "toy", input_size=48)


def test_the_same_seed_gives_the_same_bytes_and_saving_replaces(tmp_path):
    folders = [tmp_path / "a", tmp_path / "b", tmp_path / "c"]
    for folder, seed in zip(folders, (1, 1, 2), strict=True):
        torch.manual_seed(0 if folder.name == "a" else 9)
        save_victim(build_victim(NIMA, seed), folder)
    first, same, other = map(victim_sha256, folders)
    assert first == same != other
    save_victim(build_victim(NIMA, 2), tmp_path / "a")
    assert victim_sha256(tmp_path / "a") == other
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "c"]
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == [
        "config.json",
        "model.safetensors",
    ]


def test_building_leaves_the_global_random_state_alone():
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    build_victim(NIMA)
    assert torch.equal(torch.rand(1), expected)


def test_the_hash_covers_the_config(tmp_path):
    save_victim(build_victim(NIMA), tmp_path / "v")
    before = victim_sha256(tmp_path / "v")
    config = json.loads((tmp_path / "v" / "config.json").read_text())
    config["input_size"] = 64
    (tmp_path / "v" / "config.json").write_text(json.dumps(config))
    assert victim_sha256(tmp_path / "v") != before


def test_the_hash_covers_the_version_of_the_code(tmp_path):
    victim = build_victim(LINEAR)
    hashes = []
    for code in (None, "1", "2", "1"):
        save_victim(victim, tmp_path / "v", code=code)
        hashes.append(victim_sha256(tmp_path / "v"))
        assert load_victim(tmp_path / "v").config() == victim.config()
    assert hashes[1] == hashes[3]
    assert len(set(hashes)) == 3


def test_a_failed_save_keeps_the_old_folder(tmp_path, monkeypatch):
    save_victim(build_victim(NIMA), tmp_path / "v")
    before = victim_sha256(tmp_path / "v")

    def fail(descriptor):
        raise OSError("No space left on device")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="No space left"):
        save_victim(build_victim(NIMA, 1), tmp_path / "v")
    assert victim_sha256(tmp_path / "v") == before
    assert [path.name for path in tmp_path.iterdir()] == ["v"]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"kind": "nimo"}, "victim must be one of nima, .*toy-brightness, got 'nimo'"),
        ({}, "victim must be one of .*, got None"),
        ({"kind": "nima"}, "scale must have low, high and perhaps threshold, got None"),
        (NIMA | {"scale": {"low": 1, "top": 2}}, "scale must have low, high .* got {'low': 1"),
        (NIMA | {"scale": {"low": 1, "high": 1}}, "low must be below high, got 1 and 1"),
        (NIMA | {"size": 3}, "nima victim must have arguments among backbone, .* 'size'"),
        ({"kind": "nima", "scale": NIMA["scale"]}, "arguments among .* argument: 'backbone'"),
    ],
)
def test_bad_configs_raise(config, message):
    with pytest.raises(ValueError, match=message):
        build_victim(config)


def test_damaged_folders_raise(tmp_path):
    folder = tmp_path / "v"
    with pytest.raises(ValueError, match=r"must hold .* got none at .*config.json"):
        load_victim(folder)
    save_victim(build_victim(NIMA | {"head": "scalar"}), folder)
    wrong = (folder / "model.safetensors").read_bytes()
    save_victim(build_victim(NIMA), folder)
    (folder / "model.safetensors").write_bytes(wrong)
    with pytest.raises(ValueError, match=r"match the config, got \(1,\) for \(10,\) at 'head"):
        load_victim(folder)
    (folder / "model.safetensors").write_bytes(wrong[:1000])
    with pytest.raises(ValueError, match="weights must be a safetensors file, got"):
        load_victim(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(ValueError, match="config must be JSON, got"):
        load_victim(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"got none at .*model.safetensors"):
        victim_sha256(folder)


def test_loading_never_downloads(tmp_path):
    config = NIMA | {"backbone": "tf_efficientnet_lite0", "pretrained": "package"}
    victim = build_victim(config)
    save_victim(victim, tmp_path / "v")
    (tmp_path / "v" / "config.json").write_text(
        (tmp_path / "v" / "config.json").read_text().replace('"package"', '"timm"')
    )
    images = torch.rand(1, 3, 32, 32)
    assert torch.equal(load_victim(tmp_path / "v")(images), victim(images))


def test_a_scale_object_is_taken_as_it_is():
    assert build_victim(LINEAR | {"scale": ScoreScale(0, 1, 0.2)}).scale == ScoreScale(0, 1, 0.2)
