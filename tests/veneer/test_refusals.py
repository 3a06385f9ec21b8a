"""What the names of `veneer` refuse: each time one sentence with argument, rule and value."""

import re

import numpy as np
import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from torch import nn

import veneer
from attackers.metrics import top_filters
from victims.checks import check_seed, read_scores, shown


class Mean(nn.Module):
    """A model that can be trained."""

    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(10.0))

    def forward(self, images):
        return self.gain * images.mean((1, 2, 3))


class Refusals:
    """Calls with one bad argument, on four pictures."""

    def __init__(self, victim, pictures):
        self.victim, self.pictures = victim, pictures

    def attack(self, **bad):
        veneer.attack(self.victim, self.pictures, **bad)

    def train_attacker(self, **bad):
        config = veneer.ADTConfig(size=32, width=16, heads=2, depth=1, steps=2)
        veneer.train_attacker(self.victim, self.pictures, **{"config": config, **bad})

    def evaluate(self, **bad):
        veneer.evaluate(self.victim, self.pictures, self.pictures, **bad)

    def as_victim(self, **bad):
        veneer.as_victim(lambda x: x.mean((1, 2, 3)), **bad)

    def load_victim(self, folder="nowhere", **bad):
        veneer.load_victim(folder, **bad)

    def load_detector(self, folder):
        veneer.load_detector(folder)

    def make_trigger(self, kind="ftrojan", **bad):
        veneer.make_trigger(kind, **bad)

    def search_trigger(self, **bad):
        class Surrogate:
            name, differentiable, input_size = "mapped", True, 16
            scale, device = self.victim.scale, torch.device("cpu")

            def maps(self, crops):
                return [crops]

        veneer.make_trigger("uap", surrogate=Surrogate(), images=self.pictures, **bad)

    def poison(self, **bad):
        arguments = {"labels": [1, 2, 3, 4], "trigger": "ftrojan", "low": 0, "high": 10, **bad}
        veneer.poison(self.pictures, **arguments)

    def train_detector(self, **bad):
        veneer.train_detector(self.pictures, self.pictures, **bad)

    def harden(self, scores=(1, 2, 3, 4), **bad):
        arguments = {"adversarial": self.pictures, "low": 0, "high": 10, **bad}
        veneer.harden(Mean(), self.pictures, scores, **arguments)

    def scan(self, **bad):
        veneer.scan(self.pictures, **bad)

    def top_filters(self, count):
        top_filters(np.ones((1, 14)), np.ones((1, 14)), count)

    def objective(self, **bad):
        veneer.Objective(**bad)

    def adt_config(self, **bad):
        veneer.ADTConfig(**bad)

    def score_scale(self, low=0, high=10, threshold=5):
        veneer.ScoreScale(low, high, threshold)

    def da3_attacker(self, **bad):
        veneer.DA3Attacker(**bad)

    def trigger(self, coefficients):
        veneer.Trigger(coefficients)


SEEDED = ["attack", "train_attacker", "make_trigger", "poison", "train_detector", "harden"]

CASES = [
    ("attack", {"min_psnr": "35"}, "min_psnr must be a finite number, got '35'"),
    ("attack", {"method": "pgd", "eps": "8"}, "eps must be a finite number, got '8'"),
    ("attack", {"eps": "8"}, "eps must be a finite number, got '8'"),
    ("attack", {"steps": 1.5}, "steps must be a whole number, got 1.5"),
    ("attack", {"steps": True}, "steps must be a whole number, got True"),
    ("attack", {"batch_size": 1.5}, "batch_size must be a whole number, got 1.5"),
    ("attack", {"queries": "8"}, "queries must be a whole number, got '8'"),
    ("attack", {"queries": 3}, "queries must be even, got 3"),
    ("attack", {"queries": 0}, "queries must be at least 2, got 0"),
    *((name, {"seed": "x"}, "seed must be a whole number, got 'x'") for name in SEEDED),
    *((name, {"seed": -1}, "seed must be at least 0, got -1") for name in SEEDED),
    ("train_attacker", {"batch_size": 0}, "batch_size must be at least 1, got 0"),
    ("train_attacker", {"size": -5}, "size must be at least 32, got -5"),
    ("train_attacker", {"size": 0}, "size must be at least 32, got 0"),
    ("train_attacker", {"size": 8}, "size must be at least 32, got 8"),
    ("train_attacker", {"size": 40.0}, "size must be a whole number, got 40.0"),
    ("train_attacker", {"objective": 3}, "objective must be an Objective, got int"),
    ("train_attacker", {"config": 3}, "config must be an ADTConfig, got int"),
    ("train_attacker", {"epochs": -1}, "epochs must be at least 0, got -1"),
    ("train_attacker", {"lr": 0}, "lr must be above 0, got 0"),
    ("train_attacker", {"lr": "x"}, "lr must be a finite number, got 'x'"),
    ("train_attacker", {"report": "x"}, "report must be a function, got 'x'"),
    ("train_attacker", {"held_out": 1}, "held_out must be in (0, 1), got 1"),
    ("train_attacker", {"held_out": None}, "held_out must be a finite number, got None"),
    ("evaluate", {"direction": "x"}, "direction must be raise or lower, got 'x'"),
    ("evaluate", {"mos": [1.0]}, "mos must be 4 finite numbers in one row, got shape (1,)"),
    ("evaluate", {"mos": "high"}, "mos must be 4 finite numbers in one row, got str"),
    ("evaluate", {"batch_size": "x"}, "batch_size must be a whole number, got 'x'"),
    ("as_victim", {"low": "0", "high": 10}, "low must be a finite number, got '0'"),
    ("as_victim", {"low": 10, "high": 0}, "low must be below high, got 10 and 0"),
    (
        "as_victim",
        {"low": 0, "high": 1, "threshold": "x"},
        "threshold must be a finite number, got 'x'",
    ),
    ("as_victim", {"threshold": 5}, "threshold must come with low and high, got no scale"),
    ("as_victim", {"name": 3}, "name must be text, got 3"),
    ("as_victim", {"input_size": "x"}, "input_size must be a whole number, got 'x'"),
    ("as_victim", {"max_batch": 0}, "max_batch must be at least 1, got 0"),
    ("as_victim", {"probe_size": 8}, "probe_size must be height and width, got 8"),
    ("as_victim", {"probe_size": (8, 0)}, "probe_size must be at least 1, got 0"),
    ("load_victim", {"folder": None}, "folder must be a path, got None"),
    ("load_victim", {"device": "gpu"}, "device must be one of torch's, got 'gpu'"),
    ("load_detector", {"folder": None}, "folder must be a path, got NoneType"),
    ("make_trigger", {"kind": "x"}, "kind must be one of ftrojan, blended, wanet, uap, got 'x'"),
    ("make_trigger", {"kind": []}, "kind must be one of ftrojan, blended, wanet, uap, got list"),
    ("make_trigger", {"magnitude": "x"}, "magnitude must be a finite number, got 'x'"),
    ("make_trigger", {"kind": "blended", "weight": []}, "weight must be a finite number, got list"),
    ("make_trigger", {"kind": "wanet", "grid": 2.5}, "grid must be a whole number, got 2.5"),
    ("make_trigger", {"kind": "wanet", "size": 2}, "settings of wanet must fit it"),
    ("search_trigger", {"size": 3}, "settings of uap must be arguments of search_trigger, got"),
    ("search_trigger", {"epochs": "x"}, "epochs must be a whole number, got 'x'"),
    ("search_trigger", {"batch_size": 0}, "batch_size must be at least 1, got 0"),
    ("search_trigger", {"eps": "x"}, "eps must be a finite number, got 'x'"),
    (
        "poison",
        {"trigger": "uap"},
        "trigger must be what make_trigger returns or one of ftrojan, blended, wanet, got 'uap'",
    ),
    ("poison", {"trigger": 3}, "trigger must be what make_trigger returns or one of"),
    ("poison", {"scheme": "c", "surrogate": 3}, "surrogate must be a model that scores crops"),
    ("poison", {"low": 10, "high": 0}, "low must be below high, got 10 and 0"),
    ("poison", {"low": "0"}, "low must be a finite number, got '0'"),
    ("poison", {"labels": ["a"] * 4}, "labels must be 4 finite numbers in one row, got list"),
    ("poison", {"labels": [1, 2, 3, np.nan]}, "got nan among them"),
    ("poison", {"delta_y": 4}, "delta_y must be in (0, 1], got 4"),
    ("poison", {"ratio": "x"}, "ratio must be a finite number, got 'x'"),
    ("poison", {"scheme": "c", "strategy": "x"}, "strategy must be one of levels, ends, uniform"),
    ("train_detector", {"epochs": 0}, "epochs must be at least 1, got 0"),
    ("train_detector", {"epochs": 1.5}, "epochs must be a whole number, got 1.5"),
    ("train_detector", {"crop": 16}, "crop must be at least 32, got 16"),
    ("train_detector", {"validation": 0}, "validation must be in (0, 1), got 0"),
    ("harden", {"adversarial": []}, "adversarial must be at least one, got none"),
    ("harden", {"batch_size": 0}, "batch_size must be at least 1, got 0"),
    ("harden", {"lr": -1}, "lr must be above 0, got -1"),
    ("harden", {"epochs": 0}, "epochs must be at least 1, got 0"),
    ("harden", {"size": 0}, "size must be at least 1, got 0"),
    ("harden", {"validation": "x"}, "validation must be a finite number, got 'x'"),
    ("harden", {"high": None}, "low and high must be given together, got 0 and None"),
    ("harden", {"scores": (1, 2, 3, 40)}, "scores must be on the scale of 0 to 10, got 40"),
    (
        "harden",
        {"adversarial_scores": (1, 2, 3, -1)},
        "adversarial_scores must be on the scale of 0 to 10, got -1",
    ),
    ("scan", {"false_alarms": "x"}, "false_alarms must be a finite number, got 'x'"),
    ("scan", {"sample": 20.5}, "sample must be a whole number, got 20.5"),
    ("scan", {"min_period": 9, "max_period": 8}, "min_period must be at most max_period, got 9"),
    ("scan", {"workers": 0}, "workers must be at least 1, got 0"),
    ("scan", {"seed": "x"}, "seed must be a whole number, got 'x'"),
    ("scan", {"labels": ["a"] * 4}, "labels must be numbers, got list"),
    ("top_filters", {"count": 0}, "count must be at least 1, got 0"),
    ("top_filters", {"count": -1}, "count must be at least 1, got -1"),
    ("objective", {"eta": "x"}, "eta must be a finite number, got 'x'"),
    ("objective", {"pixels": "x"}, "pixels must be a finite number, got 'x'"),
    ("adt_config", {"size": "x"}, "size must be a whole number, got 'x'"),
    ("adt_config", {"depth": 1.5}, "depth must be a whole number, got 1.5"),
    ("score_scale", {"threshold": None}, "threshold must be a finite number, got None"),
    ("da3_attacker", {"seed": "x"}, "seed must be a whole number, got 'x'"),
    ("da3_attacker", {"config": {}}, "config must be an ADTConfig, got dict"),
    ("trigger", {"coefficients": 3}, "coefficients must be a tensor, got int"),
]


@pytest.mark.parametrize(("call", "bad", "sentence"), CASES)
def test_a_bad_argument_is_one_sentence(victim, pixels, call, bad, sentence):
    with pytest.raises(ValueError, match=re.escape(sentence)) as error:
        getattr(Refusals(victim, pixels(4, 40, 40)), call)(**bad)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["load_victim", "load_detector", "scan"])
def test_a_path_may_be_text(tmp_path, name):
    sentences = []
    for folder in (tmp_path, str(tmp_path)):
        with pytest.raises(ValueError, match=re.escape(str(tmp_path))) as error:
            getattr(veneer, name)(folder)
        sentences.append(str(error.value))
    assert sentences[0] == sentences[1]


def test_the_hub_that_cannot_be_reached_is_one_sentence(monkeypatch):
    def unreachable(*_, **__):
        raise LocalEntryNotFoundError("An error happened.\nPlease check your connection.")

    monkeypatch.setattr("huggingface_hub.snapshot_download", unreachable)
    with pytest.raises(ValueError, match=r"got nope/dir \(LocalEntryNotFoundError\)$"):
        veneer.scan("nope/dir")


def test_a_seed_is_one_that_numpy_and_torch_take():
    check_seed(np.int64(2**32 - 1))
    with pytest.raises(ValueError, match="seed must be below 2³², got 4294967296"):
        check_seed(2**32)


def test_scores_come_as_any_numbers():
    for scores in ([1, 2], (1.0, 2.0), np.array([1, 2], np.int8), torch.tensor([1.0, 2])):
        assert read_scores("mos", scores, 2).tolist() == [1, 2]
    with pytest.raises(ValueError, match="mos must be finite numbers in one row, got Tensor"):
        read_scores("mos", torch.ones(2, requires_grad=True))


@pytest.mark.parametrize(
    ("value", "text"), [(None, "None"), (np.float32(1.5), "1.5"), ("a\nb", r"'a\nb'"), ([], "list")]
)
def test_a_message_shows_a_value_on_one_line(value, text):
    assert shown(value) == text
