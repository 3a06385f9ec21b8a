import csv
import json

import pytest
import tiny
import torch

from attackers.da3.adt import ADT, ADTConfig
from attackers.da3.filters import FILTER_NAMES, FILTERS
from pipelines.errors import InputError
from pipelines.stages.pretrain import PerturbedPairs, run_pretrain
from pipelines.storage.images import decode_png, encode_png, to_uint8
from pipelines.storage.model_folder import load_weights
from pipelines.storage.records import image_key
from pipelines.storage.shards import ShardIndex
from victims.base import squash

SIZE = 64


def test_errors_are_those_of_the_held_out_photographs(project, results):
    layout = project.layout
    report = results["pretrain"]
    assert json.loads((layout.reports / "pretrain.json").read_text()) == report
    assert report["split"] == "test"
    assert list(report["filters"]) == list(FILTER_NAMES)
    adt = ADT(ADTConfig(**project.params().adt.model_dump()))
    load_weights(adt, layout.pretrained, "pretrain")
    index, clean = ShardIndex(layout.perturbed, ["test"]), ShardIndex(layout.clean, ["test"])
    for name in ("bright", "hue", "rgb2yuv"):
        errors, nothing = [], []
        for key, row in index.records.items():
            if row["filter"] != name:
                continue
            made = torch.from_numpy(decode_png(index.image_bytes(key))).permute(2, 0, 1) / 255
            photograph = squash(tiny.pixels(clean, row["parent_key"]), SIZE) / 255
            with torch.no_grad():
                p = adt(made.unsqueeze(0), row["step"], [name])[0]
                undone = FILTERS[name](made.unsqueeze(0), p)[0]
            errors.append((undone - photograph).square().mean().item())
            nothing.append((made - photograph).square().mean().item())
        row = report["filters"][name]
        assert row["n"] == len(errors)
        assert row["error"] == pytest.approx(sum(errors) / len(errors), rel=1e-3)
        assert row["nothing"] == pytest.approx(sum(nothing) / len(nothing), rel=1e-3)
        assert row["ratio"] == pytest.approx(row["error"] / row["nothing"], rel=1e-6)


def test_pairs_belong_together_and_every_sample_is_used(project):
    layout = project.layout
    pairs = PerturbedPairs(layout.perturbed, layout.clean, "train", SIZE, 4, 0)
    index, clean = ShardIndex(layout.perturbed, ["train"]), ShardIndex(layout.clean, ["train"])
    seen = set()
    for step, groups in pairs.epoch(torch.Generator().manual_seed(7)):
        for name, (perturbed, photographs) in groups.items():
            for made, photograph in zip(perturbed, photographs, strict=True):
                key, mirrored = stored_as(made, index)
                assert (index.records[key]["filter"], index.records[key]["step"]) == (name, step)
                small = squash(tiny.pixels(clean, index.records[key]["parent_key"]), SIZE)
                shown = photograph.flip(2) if mirrored else photograph
                assert torch.equal((shown * 255).round().byte(), small)
                seen.add(key)
    assert seen == set(index.records)
    assert sum(len(x) for _, groups in pairs.all() for x, _ in groups.values()) == len(index)


def stored_as(image: torch.Tensor, index: ShardIndex) -> tuple[str, bool]:
    """Key of the sample that a picture of a batch is, and whether it was mirrored."""
    for mirrored in (False, True):
        key = image_key(encode_png(to_uint8(image.flip(2) if mirrored else image)))
        if key in index.records:
            return key, mirrored
    raise AssertionError("not one of the stored samples")


def order_of(pairs: PerturbedPairs, seed: int) -> list[float]:
    batches = pairs.epoch(torch.Generator().manual_seed(seed))
    return [float(x.sum()) for _, groups in batches for x, _ in groups.values()]


def test_order_comes_from_the_seed(project):
    layout = project.layout
    pairs = PerturbedPairs(layout.perturbed, layout.clean, "validation", SIZE, 2, 0)
    assert order_of(pairs, 0) == order_of(pairs, 0)
    assert order_of(pairs, 0) != order_of(pairs, 1)


def test_resumed_after_a_kill_gives_the_same_weights(project, tmp_path, monkeypatch, capsys):
    changes = {"pretrain__epochs": 3}
    whole = project.without_work(tmp_path / "whole", "pretrain")
    run_pretrain(whole.params(**changes), whole.layout)
    assert "pretrain: epoch 0/3" in capsys.readouterr().err
    killed = project.without_work(tmp_path / "killed", "pretrain")
    with tiny.dies_after_save(monkeypatch, lambda state: len(state["history"]) == 3):
        run_pretrain(killed.params(**changes), killed.layout)
    capsys.readouterr()
    run_pretrain(killed.params(**changes), killed.layout)
    stderr = capsys.readouterr().err
    assert "epoch 3/3" in stderr
    assert "epoch 2/3" not in stderr
    assert tiny.weights(killed.layout.pretrained) == tiny.weights(whole.layout.pretrained)
    assert history(killed) == history(whole)
    leftovers = list((killed.layout.work / "pretrain").rglob("checkpoint.pt"))
    assert not leftovers


def history(project: tiny.Project) -> list[dict[str, str]]:
    """Rows of the training but for the time they took."""
    with (project.layout.pretrained / "history.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["0.0", "1.0", "2.0", "3.0"]
    return [{k: v for k, v in row.items() if k != "hours"} for row in rows]


def test_a_finished_training_is_not_repeated(project, tmp_path, monkeypatch):
    other = project.copy(tmp_path / "p")
    monkeypatch.setattr("pipelines.stages.pretrain.pretrain", None)
    run_pretrain(other.params(), other.layout)
    assert tiny.weights(other.layout.pretrained) == tiny.weights(project.layout.pretrained)


def test_no_epochs_keep_the_untrained_weights(project, tmp_path):
    other = project.without_work(tmp_path / "p", "pretrain")
    params = other.params(pretrain__epochs=0)
    run_pretrain(params, other.layout)
    adt, fresh = (ADT(ADTConfig(**params.adt.model_dump()), seed=params.seed) for _ in range(2))
    load_weights(adt, other.layout.pretrained, "pretrain")
    assert all(torch.equal(a, b) for a, b in zip(adt.parameters(), fresh.parameters(), strict=True))


def test_data_that_is_not_there_names_its_command(tmp_path):
    other = tiny.Project(tmp_path)
    with pytest.raises(InputError, match="run `veneer perturb` first"):
        run_pretrain(other.params(), other.layout)


def test_work_folder_that_cannot_be_written(project, tmp_path):
    other = tiny.Project(tmp_path)
    (tmp_path / "datasets").symlink_to(project.root / "datasets")
    (tmp_path / ".cache").write_text("a file")
    with pytest.raises(InputError, match="work folder must be a folder that can be written"):
        run_pretrain(other.params(), other.layout)
