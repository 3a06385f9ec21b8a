import io
import json

import numpy as np
import pytest
import tiny
import torch
from PIL import Image
from threeae import write_3ae
from torch import nn

from attackers.metrics import msi, rasr
from defenders.finetuning import scores_of
from pipelines.cli import app, run
from pipelines.errors import InputError
from pipelines.readers.threeae import read_3ae
from pipelines.reports.tables import finetune_table
from pipelines.stages.finetune import run_finetune
from pipelines.storage.images import decode_image, to_tensor
from victims.base import squash
from victims.registry import load_victim


@pytest.fixture(scope="module")
def finetuned(project, tmp_path_factory):
    other = project.copy(tmp_path_factory.mktemp("finetune") / "p")
    write_3ae(other, other.layout.threeae)
    return other, run_finetune(other.params(), other.layout, "net")


def through_pillow(data: bytes) -> torch.Tensor:
    file = io.BytesIO()
    Image.fromarray(decode_image(data)).save(file, "JPEG", quality=95)
    return to_tensor(decode_image(file.getvalue()))


def test_report_is_what_the_saved_victim_does(finetuned):
    project, report = finetuned
    layout = project.layout
    assert json.loads((layout.reports / "finetune" / "net.json").read_text()) == report
    pictures = read_3ae(str(layout.threeae))
    own = [p for p in pictures if p.adversarial and p.split == "test"]
    parents = {p.parent: p for p in pictures if not p.adversarial}
    for when, folder in (("before", layout.victim("net")), ("after", layout.finetuned("net"))):
        victim = load_victim(folder)
        y, x = (
            scores_of(victim, [squash(to_tensor(decode_image(p.load())), 32) for p in some])
            for some in (own, [parents[p.parent] for p in own])
        )
        assert report[when]["old"]["rasr"] == pytest.approx(rasr(x, y))
        assert report[when]["old"]["msi"] == pytest.approx(msi(x, y), abs=1e-4)
        x, y = (
            scores_of(victim, [squash(through_pillow(p.load()), 32) for p in some])
            for some in ([parents[p.parent] for p in own], own)
        )
        assert report[when]["old_jpeg"]["msi"] == pytest.approx(msi(x, y), abs=1e-4)
    assert report["examples_of_this_victim"]
    assert report["n_old"] == len(own)


def test_a_new_attacker_is_trained_against_it(finetuned):
    project, report = finetuned
    row = report["new_attacker"]["unrestricted"]
    # Five in the test split; of three 3AE trains or validates on examples.
    assert row["n"] == report["n_test"] == 2
    assert 0 <= row["rasr"] <= 100
    config = project.root / "models" / "finetuned" / "net-unrestricted-attacker" / "config.json"
    assert json.loads(config.read_text())["victim"] == "net"
    # The attacker of the victim as it was is still there, untouched.
    assert project.layout.examples("net", "unrestricted").exists()
    text = finetune_table(report)
    assert "old examples, before" in text
    assert "as JPEG 95, after" in text
    assert "new attacker, unrestricted" in text


def test_another_size_keeps_what_was_known_at_the_old_one(finetuned, tmp_path):
    project, report = finetuned
    other = project.copy(tmp_path / "p")
    params = other.params(
        finetune__retrain=[], finetune__size=48, finetune__distillation_weight=1.0
    )
    larger = run_finetune(params, other.layout, "net")
    saved = load_victim(other.layout.finetuned("net"))
    assert (larger["size"], saved.input_size) == (48, 48)
    rows = read_3ae(str(other.layout.threeae))
    own = [p for p in rows if p.adversarial and p.split == "test"]
    images = [squash(to_tensor(decode_image(p.load())), 48) for p in own]
    for when, victim in (
        ("resized", load_victim(other.layout.victim("net"), input_size=48)),
        ("after", saved),
    ):
        assert larger[when] != larger["before"]
        photographs = {p.parent: p for p in rows if not p.adversarial}
        x = [squash(to_tensor(decode_image(photographs[p.parent].load())), 48) for p in own]
        rise = msi(scores_of(victim, x), scores_of(victim, images))
        assert larger[when]["old"]["msi"] == pytest.approx(rise, abs=1e-4)
    assert "resized" not in report
    assert "| old examples, before, at 48 pixels |" in finetune_table(larger)


def test_what_is_saved_and_measured_is_the_blend(finetuned, tmp_path, monkeypatch):
    def move(model, *data, **settings):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 1
        return []

    monkeypatch.setattr("pipelines.stages.finetune.finetune", move)
    other = finetuned[0].copy(tmp_path / "p")
    params = other.params(finetune__retrain=[], finetune__blend=0.25)
    report = run_finetune(params, other.layout, "net")
    assert report["blend"] == 0.25
    assert report["after"] != report["before"]
    before = load_victim(other.layout.victim("net"))
    for name, value in load_victim(other.layout.finetuned("net")).named_parameters():
        torch.testing.assert_close(value, before.get_parameter(name) + 0.25)


def test_a_soup_is_the_mean_of_runs_of_several_seeds(finetuned, tmp_path, monkeypatch):
    def move(model, *data, seed, **settings):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += seed / 100
        return [{"epoch": 0.0}]

    monkeypatch.setattr("pipelines.stages.finetune.finetune", move)
    other = finetuned[0].copy(tmp_path / "p")
    params = other.params(seed=3, finetune__retrain=[], finetune__soup=3, finetune__blend=0.5)
    report = run_finetune(params, other.layout, "net")
    assert [row["seed"] for row in report["history"]] == [3, 4, 5]
    before = load_victim(other.layout.victim("net"))
    for name, value in load_victim(other.layout.finetuned("net")).named_parameters():
        torch.testing.assert_close(value, before.get_parameter(name) + 0.04 / 2)


def test_validation_along_the_blend(finetuned, tmp_path):
    other = finetuned[0].copy(tmp_path / "p")
    pictures = read_3ae(str(other.layout.threeae))
    own = [p for p in pictures if p.adversarial and p.split == "validation"]
    photographs = {p.parent: p for p in pictures if not p.adversarial}
    shown = (own, [photographs[p.parent] for p in own])
    images = [[squash(to_tensor(decode_image(p.load())), 32) for p in some] for some in shown]
    for share in (0.7, 1.0):
        params = other.params(finetune__retrain=[], finetune__blend=share, finetune__lr=0.01)
        report = run_finetune(params, other.layout, "net")
        assert [row["blend"] for row in report["validation"]] == [0.5, 0.6, 0.7, 0.8, 0.9, 1.0]
        (row,) = (row for row in report["validation"] if row["blend"] == share)
        victim = load_victim(other.layout.finetuned("net"))
        y, x = (scores_of(victim, some) for some in images)
        assert row["rasr"] == pytest.approx(rasr(x, y))
        assert f"| **{share:g}** | " in finetune_table(report)


def test_neither_protocol_nor_limit_takes_the_test_photographs_away(finetuned, tmp_path):
    project, report = finetuned
    other = project.copy(tmp_path / "p")
    params = other.params(attack__protocol="paper", attack__limit=1)
    again = run_finetune(params, other.layout, "net")
    assert again["new_attacker"]["unrestricted"]["n"] == report["n_test"]


def test_a_stopped_stage_goes_on_after_its_last_epoch(finetuned, tmp_path, monkeypatch, capfd):
    project, report = finetuned
    other = project.copy(tmp_path / "p")
    params = other.params(finetune__retrain=[])
    with tiny.dies_after_save(monkeypatch, lambda state: len(state["history"]) == 2):
        run_finetune(params, other.layout, "net")
    capfd.readouterr()
    again = run_finetune(params, other.layout, "net")
    assert "epoch 0/" not in capfd.readouterr().err
    assert again["after"] == report["after"]
    assert again["history"] == report["history"]
    assert not (other.layout.work / "finetune" / "net").exists()


def test_a_stopped_soup_repeats_no_run(finetuned, tmp_path, monkeypatch, capfd):
    whole, other = (finetuned[0].copy(tmp_path / name) for name in "ab")
    changes = {"finetune__retrain": [], "finetune__soup": 2, "finetune__epochs": 1}
    report = run_finetune(whole.params(**changes), whole.layout, "net")
    saved = []
    params = other.params(**changes)
    with tiny.dies_after_save(monkeypatch, lambda state: saved.append(state) or len(saved) == 3):
        run_finetune(params, other.layout, "net")
    capfd.readouterr()
    again = run_finetune(params, other.layout, "net")
    said = capfd.readouterr().err
    assert "seed 0: epoch" not in said
    assert "seed 1: epoch 0/" not in said
    assert "seed 1: epoch 1/1" in said
    assert again == report
    files = [p.layout.finetuned("net") / "model.safetensors" for p in (whole, other)]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert not (other.layout.work / "finetune" / "net").exists()


class Small(nn.Module):
    """A user's own model, so far above the scale that every epoch betters it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 4, 5, 4)
        self.out = nn.Linear(4, 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return 12 + self.out(self.conv(images).relu().mean(dim=(2, 3))).squeeze(1)


def test_a_module_of_ones_own(finetuned, tmp_path, capsys, monkeypatch):
    project, _ = finetuned
    (tmp_path / "mine.py").write_text(f"from {__name__} import Small\n")
    import sys
    import types

    module = types.ModuleType("mine_for_test")
    module.make = Small
    monkeypatch.setitem(sys.modules, "mine_for_test", module)
    arguments = ["finetune", "--victim", "mine_for_test:make", "--size", "32"]
    arguments += ["--data", str(project.layout.threeae), "--out", str(tmp_path / "out"), "--json"]
    arguments += ["--params", str(project.file), "--root", str(project.root)]
    assert run(lambda: app(arguments, standalone_mode=True)) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["new_attacker"] == {}
    from safetensors.torch import load_file

    state = load_file(tmp_path / "out" / "model.safetensors")
    assert not torch.equal(state["out.weight"], Small().out.weight)
    assert np.isfinite(report["after"]["clean"]["rmse"])


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("nowhere_at_all:make", "victim must be module:callable, got 'nowhere_at_all:make'"),
        ("json:nothing", "victim must be module:callable, got 'json:nothing'"),
        ("collections:OrderedDict", "victim must be a torch module with parameters"),
    ],
)
def test_bad_modules(finetuned, capsys, spec, words):
    project, _ = finetuned
    arguments = ["finetune", spec, "--params", str(project.file), "--root", str(project.root)]
    assert run(lambda: app(arguments, standalone_mode=True)) == 2
    assert words in capsys.readouterr().err


def test_missing_3ae_names_its_command(project):
    with pytest.raises(InputError, match="run `veneer package` first"):
        run_finetune(project.params(), project.layout, "net")
