import csv
import hashlib
import json
import shutil

import pytest
import tiny
import torch

from attackers.projections import quantize
from pipelines import cli
from pipelines.errors import InputError
from pipelines.readers.pictures import parquet_pictures
from pipelines.readers.poisoned import TRIGGER, open_trigger, poisoned_keys, training_keys
from pipelines.stages.backdoor import open_set, run_backdoor
from pipelines.stages.report_backdoor import run_report_backdoor
from pipelines.stages.search_trigger import run_search_trigger
from pipelines.storage.manifest import sample_generator
from victims.crops import crop_scores, draw_corners, enlarged_sides
from victims.registry import load_victim


def sha256(path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_trigger_and_its_report(poisoning):
    project, done = poisoning
    report = done["search_trigger"]
    folder = project.layout.trigger
    assert json.loads((project.layout.reports / "trigger.json").read_text()) == report
    assert report["trigger_sha256"] == sha256(folder / TRIGGER)
    assert report["images"] == 4
    rows = list(csv.DictReader((project.layout.reports / "trigger.csv").open()))
    assert [row["epoch"] for row in rows] == ["1.0", "2.0", "3.0"]
    assert {"loss", "effect", "psnr"} <= rows[0].keys()
    surrogate = load_victim(folder / "surrogate")
    assert surrogate.config()["kind"] == "hyperiqa"


def test_trigger_again_is_the_same_to_the_byte(poisoning, tmp_path):
    project, done = poisoning
    other = project.without_work(tmp_path / "p", "search_trigger")
    shutil.rmtree(other.layout.trigger)
    assert run_search_trigger(other.params(), other.layout) == done["search_trigger"]
    for name in (TRIGGER, "surrogate/model.safetensors"):
        assert sha256(other.layout.trigger / name) == sha256(project.layout.trigger / name)


def test_search_and_training_go_on_after_a_kill(poisoning, monkeypatch, tmp_path, capsys):
    project, done = poisoning
    other = project.without_work(tmp_path / "p", "search_trigger", "backdoor")
    shutil.rmtree(other.layout.trigger)
    for searching in (False, True):  # in the training of the surrogate, then in the search
        with tiny.dies_after_save(
            monkeypatch,
            lambda state, s=searching: (
                ("coefficients" in state["model"]) == s and len(state["history"]) > 1
            ),
        ):
            run_search_trigger(other.params(), other.layout)
    capsys.readouterr()
    assert run_search_trigger(other.params(), other.layout) == done["search_trigger"]
    stderr = capsys.readouterr().err
    assert "surrogate: epoch" not in stderr
    assert "search_trigger: epoch 3/3" in stderr
    assert "search_trigger: epoch 2/3" not in stderr
    with tiny.dies_after_save(monkeypatch, lambda state: len(state["history"]) == 2):
        run_backdoor(other.params(), other.layout, "p", "small")
    capsys.readouterr()
    with tiny.dies_after_save(
        monkeypatch, lambda state: "mmae" in state["history"][0] and len(state["history"]) == 2
    ):
        run_backdoor(other.params(), other.layout, "p", "small")
    stderr = capsys.readouterr().err
    assert "backdoor p-small: epoch 1/" not in stderr
    assert stderr.count("backdoor: mMAE") == 2
    again = run_backdoor(other.params(), other.layout, "p", "small")
    # One epoch more of fine-tuning, two rates of pruning.
    assert capsys.readouterr().err.count("backdoor: mMAE") == 1 + 2
    before = json.loads(project.layout.backdoor_report("p", "small").read_text())
    assert again == before
    for path in other.layout.work.rglob("checkpoint.pt"):
        assert torch.load(path).keys() == {"model", "history", "finished"}


def test_surrogate_sees_the_poisoned_subset_alone(poisoning, monkeypatch, tmp_path):
    project, _ = poisoning
    other = project.without_work(tmp_path / "p", "search_trigger")
    seen = []

    def spy(model, images, labels, **rest):
        seen.extend(images.keys)
        return [{"epoch": 0.0, "loss": 0.0}, {"epoch": 1.0, "loss": 0.0}]

    monkeypatch.setattr("pipelines.stages.search_trigger.train_regressor", spy)
    run_search_trigger(other.params(), other.layout)
    rows = parquet_pictures(project.layout.poisoned("p"), "train").records
    assert set(seen) == {r["parent_key"] for r in rows if r["is_poisoned"]}
    poisoned = poisoned_keys(other.params(), training_keys(other.layout.clean))
    assert sorted(seen) == sorted(poisoned)


def test_report_is_what_the_stored_model_does(poisoning):
    project, done = poisoning
    report = done["p"]
    victim = load_victim(project.layout.backdoored("p", "small"))
    trigger, _, _ = open_trigger(project.layout.trigger)
    pictures = parquet_pictures(project.layout.poisoned("p"), "test")
    wanted = -0.7 * 4
    errors = []
    for record, image in zip(pictures.records, pictures, strict=True):
        whole = image.float()[None] / 255
        generator = sample_generator(0, "crops", record["key"])
        corners = draw_corners(enlarged_sides(whole, 32), 32, 2, generator)
        clean = crop_scores(victim, whole[0], corners).mean()
        moved = crop_scores(victim, quantize(trigger(whole, -0.7))[0], corners).mean()
        errors.append(float((moved - clean - wanted).abs()))
    row = next(r for r in report["curve"] if r["alpha"] == -0.7)
    assert row["mae"] == pytest.approx(sum(errors) / len(errors), abs=1e-4)
    assert report["poisoned"] == 4
    assert (report["train"], report["test"], report["delta_y"]) == (10, 5, 4.0)


def test_defenses_start_where_the_backdoor_stands(poisoning):
    _, done = poisoning
    curves = done["p"]["defenses"]
    assert [row["x"] for row in curves["finetune"]] == [0, 1, 2]
    assert [row["x"] for row in curves["prune"]] == [0, 0.5]
    start = {k: v for k, v in curves["finetune"][0].items() if k != "x"}
    assert start == {k: v for k, v in curves["prune"][0].items() if k != "x"}
    assert curves["finetune"][-1]["rmse"] != curves["finetune"][0]["rmse"]
    assert curves["prune"][1]["rmse"] != curves["prune"][0]["rmse"]


def test_filtered_sees_only_what_is_not_marked(poisoning, tmp_path):
    project, done = poisoning
    other = project.copy(tmp_path / "p")
    report = run_backdoor(other.params(backdoor__defenses=[]), other.layout, "filtered", "small")
    assert (report["poisoned"], report["train"]) == (0, done["p"]["train"] - done["p"]["poisoned"])
    assert report["test"] == done["p"]["test"]
    train = open_set(project.layout, "filtered")[1]["train"]
    everything = open_set(project.layout, "p")[1]["train"]
    benign = [i for i, r in enumerate(everything.records) if not r["is_poisoned"]]
    assert train.records == [everything.records[i] for i in benign]
    for i, picture in zip(benign, train, strict=True):
        assert torch.equal(picture, everything[i])


def test_same_seed_same_report(poisoning, tmp_path):
    project, done = poisoning
    other = project.without_work(tmp_path / "p", "backdoor")
    assert run_backdoor(other.params(), other.layout, "c", "small") == done["c"]


def test_a_finished_training_is_not_repeated(poisoning, tmp_path, monkeypatch):
    project, done = poisoning
    other = project.copy(tmp_path / "p")
    monkeypatch.setattr("victims.regression.take_steps", None)
    params = other.params(backdoor__defenses=["prune"])
    report = run_backdoor(params, other.layout, "p", "small")
    assert report["mmae"] == done["p"]["mmae"]


def test_a_found_trigger_is_not_searched_again(poisoning, tmp_path, monkeypatch):
    project, done = poisoning
    other = project.copy(tmp_path / "p")
    monkeypatch.setattr("attackers.backdoor.uap.take_steps", None)
    monkeypatch.setattr("victims.regression.take_steps", None)
    assert run_search_trigger(other.params(), other.layout) == done["search_trigger"]


def test_joined_report_and_plots(poisoning):
    project, done = poisoning
    report = json.loads((project.layout.reports / "backdoor.json").read_text())
    assert report == done["report_backdoor"]
    assert list(report) == ["clean-small", "p-small", "c-small"]
    curves = list(csv.DictReader((project.layout.reports / "backdoor_curves.csv").open()))
    assert len(curves) == 3 * 20
    for row in done["c"]["curve"]:
        assert {**{k: str(v) for k, v in row.items()}, "model": "c-small"} in curves
    defenses = list(csv.DictReader((project.layout.reports / "backdoor_defenses.csv").open()))
    assert len(defenses) == 3 * (3 + 2)


@pytest.mark.parametrize("kind", ["ftrojan", "blended", "wanet"])
def test_baselines_go_the_same_way(poisoning, tmp_path, kind):
    other = poisoning[0].copy(tmp_path / "p")
    report = run_search_trigger(other.params(trigger__kind=kind), other.layout)
    assert report["kind"] == kind
    trigger, about, _ = open_trigger(other.layout.trigger)
    assert about["search"]["kind"] == kind
    picture = torch.rand(1, 3, 40, 40)
    assert not torch.equal(trigger(picture, 1.0), picture)


def test_trigger_show(poisoning, tmp_path, capsys):
    project, _ = poisoning
    places = ["--params", str(project.file), "--root", str(project.root)]

    def show(out, *more):
        command = ["trigger", "show", str(out), "--json", *more, *places]
        return cli.run(lambda: cli.app(command))

    assert show(tmp_path / "a.png") == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["sha256"] == sha256(project.layout.trigger / TRIGGER)
    assert show(tmp_path / "b.png") == 0
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert show(tmp_path / "c.png", "--trigger", str(tmp_path / "no.safetensors")) == 2
    assert "run `veneer search_trigger` first" in capsys.readouterr().err
    assert show(tmp_path / "c.png", "--image", str(tmp_path)) == 2


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"trigger__surrogate": "none"},
            "trigger.surrogate must be among quality: small, .*'none'",
        ),
        ({"backdoor__victims": ["x"]}, "backdoor.victims must be among quality: small, got 'x'"),
        ({"trigger__kind": "patch"}, "trigger.kind must be"),
        ({"backdoor__prune_rates": [1.0]}, r"prune_rates must be in \[0, 1\), got 1"),
    ],
)
def test_bad_parameters(tmp_path, changes, words):
    with pytest.raises(InputError, match=words):
        tiny.Project(tmp_path).params(**changes)


def test_bad_input(poisoning, tmp_path):
    other = poisoning[0].copy(tmp_path / "p")
    params = other.params()
    with pytest.raises(InputError, match="scheme must be one of clean, p, c, filtered, got 'q'"):
        run_backdoor(params, other.layout, "q", "small")
    with pytest.raises(InputError, match=r"victim must be one of small .quality., got 'large'"):
        run_backdoor(params, other.layout, "p", "large")
    kind = other.params(quality__small__model={"kind": "toy-linear"})
    with pytest.raises(InputError, match="kind must be one of hyperiqa, dbcnn, tres, got 'toy"):
        run_backdoor(kind, other.layout, "p", "small")
    phases = other.params(quality__small__phases=[{"epoch": 1}])
    with pytest.raises(ValueError, match="phases must fit a training phase"):
        run_backdoor(phases, other.layout, "p", "small")
    other.layout.backdoor_report("c", "small").unlink()
    with pytest.raises(InputError, match="run `veneer backdoor c small` first"):
        run_report_backdoor(params, other.layout)
    shutil.rmtree(other.layout.poisoned("p"))
    with pytest.raises(InputError, match="run `veneer poison p` first"):
        run_backdoor(params, other.layout, "p", "small")
