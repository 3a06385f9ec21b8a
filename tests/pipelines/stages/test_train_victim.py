import json
from functools import partial

import pytest
import tiny
import torch

from pipelines.errors import InputError
from pipelines.readers.pictures import shard_pictures, squashed
from pipelines.stages.train_victim import run_train_victim
from pipelines.storage.code import code_version
from pipelines.storage.shards import ShardIndex
from victims.base import score_images
from victims.metrics import agreement
from victims.registry import load_victim, victim_sha256


def test_report_is_what_the_saved_victim_does(project, results):
    layout = project.layout
    report = results["train_victim"]
    assert json.loads((layout.reports / "victims" / "net.json").read_text()) == report
    victim = load_victim(layout.victim("net"))
    assert report["victim_sha256"] == victim_sha256(layout.victim("net"))
    config = json.loads((layout.victim("net") / "config.json").read_text())
    assert config["code"] == code_version("victims.nima")
    for split in ("validation", "test"):
        some = shard_pictures(layout.clean, [split], partial(squashed, size=victim.input_size))
        images, mos = list(some), [record["mos"] for record in some.records]
        scores = score_images(victim, images).numpy()
        expected = agreement(scores, mos, victim.scale)
        assert report[split]["n"] == len(some) == 5
        for name, value in expected.items():
            assert report[split][name] == pytest.approx(value, abs=1e-4)
    assert (victim.scale.low, victim.scale.high) == (0, 10)
    assert report["label_source"] == "simulated"


def test_victim_answers_to_the_picture(project):
    # Otherwise nothing that the other tests say of scores would mean anything.
    victim = load_victim(project.layout.victim("net"))
    index = ShardIndex(project.layout.clean)
    scores = [victim(tiny.pixels(index, key).unsqueeze(0)).item() for key in index.records]
    assert torch.tensor(scores).std() > 0.1


def test_same_seed_gives_the_same_victim(project, tmp_path):
    other = project.copy(tmp_path / "p")
    run_train_victim(other.params(), other.layout, "net")
    same = tiny.weights(other.layout.victim("net"))
    assert same == tiny.weights(project.layout.victim("net"))
    run_train_victim(other.params(seed=1), other.layout, "net")
    assert tiny.weights(other.layout.victim("net")) != same


def test_resumed_after_a_kill_gives_the_same_victim(project, tmp_path, monkeypatch, capsys):
    settings = {"epochs": 3, "lr": 1e-3, "batch_size": 4}
    whole, killed = (project.copy(tmp_path / name) for name in ("whole", "killed"))
    params = whole.params(victims__net__training=settings)
    report = run_train_victim(params, whole.layout, "net")
    with tiny.dies_after_save(monkeypatch, lambda state: len(state["history"]) == 3):
        run_train_victim(params, killed.layout, "net")
    capsys.readouterr()
    assert run_train_victim(params, killed.layout, "net") == report
    stderr = capsys.readouterr().err
    assert "epoch 3/3" in stderr
    assert "epoch 2/3" not in stderr
    assert tiny.weights(killed.layout.victim("net")) == tiny.weights(whole.layout.victim("net"))
    assert not list((killed.layout.work / "train_victim").iterdir())


def test_a_correlation_that_is_undefined_is_null(project, tmp_path):
    other = project.copy(tmp_path / "p")
    index = ShardIndex(other.layout.clean)
    assert len({record["mos"] for record in index.records.values()}) == len(index)
    # One test photograph has no rank to correlate.
    split = {"train": 0.9, "validation": 0.05, "test": 0.05}
    params = other.params(import__splits=split, victims__net__training={"epochs": 0})
    tiny.import_all(other, params)
    with pytest.warns(UserWarning, match="correlation is undefined"):
        report = run_train_victim(params, other.layout, "net")
    assert report["test"]["srocc"] is None
    text = (other.layout.reports / "victims" / "net.json").read_text()
    assert "NaN" not in text
    assert json.loads(text)["test"]["n"] == 1


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"victims__net__model": {"kind": "toy-linear"}}, "model.kind must be one that trains"),
        ({"victims__net__model": {"kind": "niima"}}, "victim must be one of nima, .*'niima'"),
        ({"victims__net__model__backbone": "nothing"}, "backbone"),
        ({"victims__net__model__input_size": 8}, "input_size must be at least 32, got 8"),
        ({"victims__net__training": {"epoch": 1}}, "victims.net.training must fit .*'epoch'"),
        ({"victims__net__training": {"epochs": [1]}}, "victims.net.training must fit"),
        ({"victims__net__training": {"loss": "l3"}}, "loss must be one of emd, l1, mse, got 'l3'"),
    ],
)
def test_bad_settings(project, tmp_path, changes, words):
    other = tiny.Project(tmp_path)
    params = other.params(**changes)
    (tmp_path / "datasets").symlink_to(project.root / "datasets")
    with pytest.raises(ValueError, match=words):
        run_train_victim(params, other.layout, "net")
    assert not other.layout.victim("net").exists()


def test_unwritable_model_folder_is_found_before_the_training(project, tmp_path, monkeypatch):
    other = tiny.Project(tmp_path)
    (tmp_path / "datasets").symlink_to(project.root / "datasets")
    (tmp_path / "models").write_text("a file")
    monkeypatch.setattr("pipelines.stages.train_victim.train_victim", None)
    with pytest.raises(InputError, match="models/victims/net must be one that can be written"):
        run_train_victim(other.params(), other.layout, "net")


def test_data_that_is_not_there_names_its_command(tmp_path):
    other = tiny.Project(tmp_path)
    with pytest.raises(InputError, match="run `veneer import` first"):
        run_train_victim(other.params(), other.layout, "net")
