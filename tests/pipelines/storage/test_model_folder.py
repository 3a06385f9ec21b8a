import errno

import pytest
import tiny
import torch

from attackers.da3.adt import ADT, ADTConfig
from attackers.da3.attacker import DA3Attacker
from pipelines.errors import InputError, StageError
from pipelines.storage import checkpoints
from pipelines.storage.checkpoints import TrainingFolder
from pipelines.storage.files import atomic_file
from pipelines.storage.model_folder import load_attacker, load_weights, save_model

CONFIG = ADTConfig(size=32, width=16, heads=2, depth=1, steps=2)
ROWS = [{"epoch": 0.0, "loss": 1.5}, {"epoch": 1.0, "loss": 0.5}]


def same(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    left, right = a.state_dict(), b.state_dict()
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


def test_attacker_comes_back_as_it_was(tmp_path):
    attacker = DA3Attacker(CONFIG, seed=3)
    save_model(attacker, tmp_path / "a", {"victim": "net"}, ROWS)
    loaded = load_attacker(tmp_path / "a")
    assert same(loaded, attacker)
    assert not any(p.requires_grad for p in loaded.parameters())
    assert loaded.adt.config == CONFIG
    assert (tmp_path / "a" / "history.csv").read_text().split() == [
        "epoch,loss",
        "0.0,1.5",
        "1.0,0.5",
    ]
    save_model(attacker, tmp_path / "b", {"victim": "net"}, ROWS)
    for path in (tmp_path / "a").iterdir():
        assert (tmp_path / "b" / path.name).read_bytes() == path.read_bytes()


def test_weights_go_into_a_model_of_the_same_shape_only(tmp_path):
    save_model(ADT(CONFIG, seed=1), tmp_path, {"seed": 1}, ROWS)
    adt = ADT(CONFIG)
    assert load_weights(adt, tmp_path, "pretrain")["seed"] == 1
    assert same(adt, ADT(CONFIG, seed=1))
    wider = ADT(ADTConfig(size=32, width=32, heads=2, depth=1, steps=2))
    with pytest.raises(InputError, match=r"got those of .*'width': 16"):
        load_weights(wider, tmp_path, "pretrain")


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
@pytest.mark.parametrize("harm", ["missing", "cut", "empty"])
def test_damaged_models(tmp_path, name, harm):
    save_model(DA3Attacker(CONFIG), tmp_path, {}, ROWS)
    path = tmp_path / name
    data = path.read_bytes()
    if harm == "missing":
        path.unlink()
    else:
        path.write_bytes(data[: len(data) // 2] if harm == "cut" else b"")
    words = "run `veneer pretrain` first" if harm == "missing" else "must hold whole model files"
    with pytest.raises(InputError, match=words):
        load_weights(DA3Attacker(CONFIG), tmp_path, "pretrain")
    with pytest.raises(InputError, match=str(tmp_path)):
        load_attacker(tmp_path)


def test_model_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StageError, match="cannot be written"):
        save_model(ADT(CONFIG), tmp_path / "file" / "model", {}, ROWS)


def folder(root, mark: str = "f" * 64) -> TrainingFolder:
    return TrainingFolder(root, "pretrain", "pretrained", mark)


def test_checkpoint_is_whole_or_the_last_one(tmp_path, monkeypatch):
    work = folder(tmp_path)
    assert work.checkpoint() is None
    work.save({"model": {"w": torch.ones(2)}, "progress": {"epoch": 1}})

    def full(state, file):
        file.write(b"half of it")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoints.torch, "save", full)
    with pytest.raises(StageError, match=r"No space left.*last whole one is kept"):
        work.save({"model": {}})
    assert work.checkpoint()["progress"] == {"epoch": 1}
    assert [path.name for path in work.path.iterdir()] == ["checkpoint.pt"]


def test_what_a_killed_run_left_half_written_goes(tmp_path):
    work = folder(tmp_path)
    work.model.mkdir()
    for place in (
        work.path / f".checkpoint.pt.{tiny.NO_PID}.tmp",
        work.model / f".model.safetensors.{tiny.NO_PID}.tmp",
    ):
        place.write_bytes(b"half")
    folder(tmp_path)
    assert [path.name for path in work.path.rglob("*")] == ["model"]


def test_publish_copies_the_model_and_clears_the_work(tmp_path):
    older, work = folder(tmp_path, "0" * 64), folder(tmp_path)
    other = TrainingFolder(tmp_path, "pretrain", "pretrained-x", "0" * 64)
    work.save({"model": {}})
    assert not work.finished
    save_model(ADT(CONFIG), work.model, {}, ROWS)
    assert work.finished
    work.publish(tmp_path / "out")
    assert not older.path.exists()
    assert other.path.exists()
    assert work.finished
    assert work.checkpoint() is None
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "config.json",
        "history.csv",
        "model.safetensors",
    ]
    assert same(_loaded(tmp_path / "out"), ADT(CONFIG))


def _loaded(path) -> ADT:
    adt = ADT(CONFIG, seed=9)
    load_weights(adt, path, "pretrain")
    return adt


def test_work_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="work folder must be a folder that can be written"):
        folder(tmp_path / "file")
    work = folder(tmp_path)
    save_model(ADT(CONFIG), work.model, {}, ROWS)
    with pytest.raises(StageError, match="cannot be written"):
        work.publish(tmp_path / "file" / "out")


def test_what_a_living_process_writes_is_left_alone(tmp_path):
    work = TrainingFolder(tmp_path, "stage", "name", "f" * 64)
    with atomic_file(work.path / "rows.json") as file:
        file.write(b"first")
        TrainingFolder(tmp_path, "stage", "name", "f" * 64)
    assert (work.path / "rows.json").read_bytes() == b"first"
