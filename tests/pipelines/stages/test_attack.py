import csv
import json
import math

import datasets
import numpy as np
import pandas as pd
import pytest
import tiny
import torch

from attackers.da3 import attacking
from attackers.da3.attacker import Plan, combine
from attackers.projections import quantize, ssim
from pipelines.errors import InputError
from pipelines.readers.selection import report_split
from pipelines.stages import attack
from pipelines.stages.attack import run_attack
from pipelines.stages.evaluate import robustness
from pipelines.storage.images import decode_png
from pipelines.storage.model_folder import load_attacker
from pipelines.storage.records import SPLITS, AESample
from pipelines.storage.shards import ShardIndex
from victims.base import squash
from victims.registry import load_victim, victim_sha256


def examples(project: tiny.Project, mode: str = "unrestricted") -> ShardIndex:
    return ShardIndex(project.layout.examples("net", mode))


def generated(project: tiny.Project, tmp_path, mode: str, **changes) -> ShardIndex:
    """The examples after another run with changed parameters."""
    other = project.copy(tmp_path)
    run_attack(other.params(**changes), other.layout, "net", mode, progress=False)
    return examples(other, mode)


@pytest.mark.parametrize("mode", tiny.MODES)
def test_every_field_is_true_of_the_stored_file(project, mode):
    layout = project.layout
    index, clean = examples(project, mode), ShardIndex(layout.clean, ["test"])
    victim = load_victim(layout.victim("net"))
    attacker = load_attacker(layout.attacker("net", mode))
    assert {row["parent_key"] for row in index.records.values()} == set(clean.records)
    for key, row in index.records.items():
        parent = clean.records[row["parent_key"]]
        x = tiny.pixels(clean, row["parent_key"]).unsqueeze(0)
        y = tiny.pixels(index, key).unsqueeze(0)
        for name in ("source", "source_id", "split", "width", "height", "mos", "mos_std"):
            assert row[name] == parent[name]
        assert y.shape == x.shape == (1, 3, row["height"], row["width"])
        assert (row["victim"], row["mode"], row["direction"]) == ("net", mode, "raise")
        assert row["victim_sha256"] == victim_sha256(layout.victim("net"))
        # To 1e-3 of a scale of 0 to 10.
        assert victim(x).item() == pytest.approx(row["score_clean"], abs=1e-2)
        assert victim(y).item() == pytest.approx(row["score_adv"], abs=1e-2)
        mse = (x - y).double().square().mean().item()
        assert row["psnr"] == pytest.approx(-10 * math.log10(mse), abs=1e-3)
        assert row["ssim"] == pytest.approx(ssim(y, x).item(), abs=1e-4)
        assert row["linf"] == pytest.approx((x - y).abs().max().item(), abs=1e-6)
        plan = attacker(x)[1]
        np.testing.assert_allclose(row["weights"], plan.weights[0], atol=1e-4)
        np.testing.assert_allclose(row["strengths"], plan.strengths[0], atol=1e-4)
        assert sum(row["weights"]) == pytest.approx(1, abs=1e-5)
        assert row["queries"] == 1
        # The recorded plan, drawn back by the recorded fraction, is the picture.
        plan = Plan(torch.tensor([row["weights"]]), torch.tensor([row["strengths"]]))
        free = combine(x, plan)
        level = (quantize(torch.lerp(x, free, row["interpolation_fraction"])) - y).abs() * 255
        assert level.max() <= 1.01
        assert (level > 0.5).float().mean() < 0.01


def test_restricted_keeps_its_distance_in_every_file(project):
    index, clean = examples(project, "restricted"), ShardIndex(project.layout.clean)
    for key, row in index.records.items():
        levels = [
            decode_png(part.image_bytes(k)).astype(np.float64)
            for part, k in ((clean, row["parent_key"]), (index, key))
        ]
        mse = np.mean((levels[0] - levels[1]) ** 2)
        assert 10 * math.log10(255**2 / mse) >= 55
    drawn_back = [row["interpolation_fraction"] < 1 for row in index.records.values()]
    assert any(drawn_back)
    assert all(row["interpolation_fraction"] == 1 for row in examples(project).records.values())


def test_direction(project, tmp_path):
    gains = {}
    for direction in ("raise", "lower"):
        root = tmp_path / direction
        changes = {"attack__direction": direction, "attack__epochs": 8, "attack__lr": 2e-3}
        rows = generated(project, root, "unrestricted", **changes).records.values()
        assert {row["direction"] for row in rows} == {direction}
        gains[direction] = np.mean([row["score_adv"] - row["score_clean"] for row in rows])
        card = (root / "datasets" / "aes" / "net-unrestricted" / "README.md").read_text()
        assert f"scores them {'higher' if direction == 'raise' else 'lower'}" in card
        # On the pictures beside which it was trained it gained what it was told to.
        with (root / "models" / "da3" / "net-unrestricted" / "history.csv").open() as file:
            best = min(csv.DictReader(file), key=lambda row: float(row["loss"]))
        assert float(best["msi"]) > 0.1
    assert gains["raise"] - gains["lower"] > 0.1


@pytest.mark.parametrize("direction", ["raise", "lower"])
def test_refine_is_never_worse(project, tmp_path, direction):
    rows = []
    for k in (0, 4):
        index = generated(
            project,
            tmp_path / str(k),
            "restricted",
            attack__direction=direction,
            attack__refine=k,
        )
        rows.append({row["parent_key"]: row for row in index.records.values()})
        assert {row["queries"] for row in index.records.values()} == {max(1, k)}
        assert all(row["psnr"] is None or row["psnr"] >= 60 for row in index.records.values())
    plain, refined = rows
    sign = 1 if direction == "raise" else -1
    gains = [sign * (refined[p]["score_adv"] - plain[p]["score_adv"]) for p in plain]
    assert min(gains) >= 0
    for parent, row in refined.items():
        # The same attacker, and its whole plan or one filter of it.
        kept = np.flatnonzero(row["strengths"])
        assert all(row["strengths"][i] == plain[parent]["strengths"][i] for i in kept)
        if len(kept) == 1:
            assert row["weights"][kept[0]] == pytest.approx(0.15)
        else:
            assert row["weights"] == plain[parent]["weights"]


def streamed(images) -> set[bytes]:
    return {image.numpy().tobytes() for _, batch in images.batches(None, 4) for image in batch}


@pytest.mark.parametrize("protocol", ["split", "paper"])
def test_no_reported_photograph_is_trained_on(project, tmp_path, monkeypatch, protocol):
    seen = {}

    def spy(attacker, victim, images, held_out, **rest):
        seen["images"], seen["held_out"] = images, held_out
        return attacking.train_attacker(attacker, victim, images, held_out, **rest)

    monkeypatch.setattr(attack, "train_attacker", spy)
    index = generated(
        project, tmp_path / "p", "unrestricted", attack__protocol=protocol, attack__lr=2e-3
    )
    reported = report_split(protocol)
    assert reported == {"split": "test", "paper": "train"}[protocol]
    trained = [split for split in SPLITS if split != reported]
    assert {row["split"] for row in index.records.values()} == {reported}

    def squashed(splits) -> set[bytes]:
        clean = ShardIndex(project.layout.clean, splits)
        return {squash(tiny.pixels(clean, k), 64).numpy().tobytes() for k in clean.records}

    images = streamed(seen["images"])
    held_out = {image.numpy().tobytes() for image in seen["held_out"]}
    assert len(held_out) == 4
    # Photographs that the victim did not learn from.
    assert held_out <= squashed([split for split in trained if split != "train"])
    assert not images & held_out
    assert images | held_out == squashed(trained)
    assert not (images | held_out) & squashed([reported])
    assert {row["parent_key"] for row in index.records.values()} == set(
        ShardIndex(project.layout.clean, [reported]).records
    )


@pytest.mark.parametrize("protocol", ["split", "paper"])
def test_photographs_of_the_first_stage_are_left_out(project, tmp_path, monkeypatch, protocol):
    seen = {}

    def spy(attacker, victim, images, held_out, **rest):
        seen["images"] = streamed(images) | {image.numpy().tobytes() for image in held_out}
        return attacking.train_attacker(attacker, victim, images, held_out, **rest)

    monkeypatch.setattr(attack, "train_attacker", spy)
    index = generated(
        project,
        tmp_path / "p",
        "unrestricted",
        attack__protocol=protocol,
        attack__exclude_pretraining=True,
        perturb__limit=4,
        perturb__held_out=2,
    )
    learned = {"train": 4, "validation": 2, "test": 0}
    left = {}
    for split, count in learned.items():
        clean = ShardIndex(project.layout.clean, [split])
        left[split] = dict.fromkeys(sorted(clean.records)[count:], clean)
    reported = report_split(protocol)
    assert {row["parent_key"] for row in index.records.values()} == set(left.pop(reported))
    assert seen["images"] == {
        squash(tiny.pixels(clean, k), 64).numpy().tobytes()
        for keys in left.values()
        for k, clean in keys.items()
    }


def test_all_photographs_are_of_the_first_stage(project, tmp_path):
    with pytest.raises(InputError, match="must leave photographs of train, but perturb took all"):
        generated(project, tmp_path / "p", "restricted", attack__exclude_pretraining=True)


def history(project: tiny.Project) -> list[dict[str, str]]:
    with (project.layout.attacker("net", "unrestricted") / "history.csv").open() as file:
        return list(csv.DictReader(file))


def test_score_only_trains_without_a_gradient(project, tmp_path, monkeypatch):
    calls = []
    estimate = attacking.spsa_gradient

    def spy(victim, *rest, **more):
        calls.append((victim.differentiable, more["queries"]))
        return estimate(victim, *rest, **more)

    monkeypatch.setattr(attacking, "spsa_gradient", spy)
    other = project.copy(tmp_path / "p")
    params = other.params(attack__score_only=True, attack__queries=4)
    run_attack(params, other.layout, "net", "unrestricted", progress=False)
    # 11 of 15 pictures in batches of 5.
    assert calls == [(False, 4)] * 3
    assert float(history(other)[-1]["calls"]) == 11 * (2 + 4)
    assert float(history(project)[-1]["calls"]) == 11 * 2
    assert tiny.weights(other.layout.attacker("net", "unrestricted")) != tiny.weights(
        project.layout.attacker("net", "unrestricted")
    )


def test_without_pretraining_starts_from_the_seed(project, tmp_path):
    other = project.copy(tmp_path / "p")
    params = other.params(attack__pretrained=False, attack__epochs=0)
    (other.layout.pretrained / "model.safetensors").unlink()
    run_attack(params, other.layout, "net", "unrestricted", progress=False)
    with pytest.raises(InputError, match="run `veneer pretrain` first"):
        run_attack(other.params(attack__epochs=0), other.layout, "net", "unrestricted")


def test_bfloat16_is_stored_as_truly(project, tmp_path):
    index = generated(project, tmp_path / "p", "restricted", engine__dtype="bfloat16")
    victim = load_victim(project.layout.victim("net"))
    for key, row in index.records.items():
        score = victim(tiny.pixels(index, key).unsqueeze(0)).item()
        assert score == pytest.approx(row["score_adv"], abs=1e-2)
        assert row["psnr"] >= 35


def test_counts_reconcile(project, results):
    for mode in tiny.MODES:
        counts = results[mode].counts
        folder = project.layout.examples("net", mode)
        rejected = pd.read_parquet(folder / "rejected.parquet")
        assert counts.in_ == counts.kept + counts.rejected == 5
        assert len(examples(project, mode)) == counts.kept
        assert len(rejected) == counts.rejected
        manifest = json.loads((folder / "manifest.json").read_text())
        assert set(manifest["inputs"]) == {"clean", "victim"}
        assert set(manifest["shards"]) == set(tiny.shard_hashes(folder))


@pytest.mark.parametrize("streaming", [False, True])
def test_load_dataset(project, tmp_path, streaming):
    folder = project.layout.examples("net", "restricted")
    data = datasets.load_dataset(str(folder), streaming=streaming, cache_dir=str(tmp_path))
    index = examples(project, "restricted")
    rows = {row["__key__"]: row for row in data["test"]}
    assert set(rows) == set(index.records)
    for key, row in rows.items():
        expected = AESample(**index.records[key]).model_dump()
        assert {**row["json"], "weights": tuple(row["json"]["weights"])} | {
            "strengths": tuple(row["json"]["strengths"])
        } == expected
        np.testing.assert_array_equal(np.asarray(row["png"]), decode_png(index.image_bytes(key)))


def test_a_second_run_makes_nothing_again(project, tmp_path, monkeypatch):
    other = project.copy(tmp_path / "p")
    monkeypatch.setattr(attack, "train_attacker", None)
    monkeypatch.setattr(attack, "generate", None)
    folder = other.layout.examples("net", "restricted")
    before = tiny.shard_hashes(folder)
    run_attack(other.params(), other.layout, "net", "restricted", progress=False)
    assert tiny.shard_hashes(folder) == before


def test_a_new_victim_makes_nothing_again(project, tmp_path, monkeypatch):
    other = project.copy(tmp_path / "p")
    monkeypatch.setattr(attack, "train_attacker", None)
    monkeypatch.setattr(attack, "generate", None)
    work = {path for path in other.layout.work.rglob("*") if path.is_dir()}
    more = {**tiny.settings(other.root)["victims"], "new": {"model": {"kind": "toy-linear"}}}
    params = other.params(victims=more, attack__victims=["net", "new"])
    run_attack(params, other.layout, "net", "restricted", progress=False)
    assert {path for path in other.layout.work.rglob("*") if path.is_dir()} == work


def test_refine_alone_trains_nothing_again(project, tmp_path, monkeypatch):
    other = project.copy(tmp_path / "p")
    monkeypatch.setattr(attack, "train_attacker", None)
    run_attack(other.params(attack__refine=2), other.layout, "net", "restricted", progress=False)
    assert {row["queries"] for row in examples(other, "restricted").records.values()} == {2}


@pytest.mark.parametrize(
    ("missing", "words"),
    [
        ("clean", "run `veneer import` first"),
        ("victim", "run `veneer train_victim net` first"),
        ("pretrained", "run `veneer pretrain` first"),
    ],
)
def test_inputs_that_are_not_there_name_their_command(project, tmp_path, missing, words):
    other = project.copy(tmp_path / "p")
    folder = {
        "clean": other.layout.clean,
        "victim": other.layout.victim("net"),
        "pretrained": other.layout.pretrained,
    }[missing]
    folder.rename(tmp_path / "elsewhere")
    with pytest.raises(InputError, match=words):
        run_attack(other.params(), other.layout, "net", "restricted")


def test_adt_of_another_shape_is_refused(project, tmp_path):
    other = project.copy(tmp_path / "p")
    with pytest.raises(InputError, match="must match the adt parameters"):
        run_attack(other.params(adt__width=32), other.layout, "net", "restricted")


def test_examples_of_all_photographs(project, tmp_path):
    """The examples of the report split stay as they were, and alone count."""
    changed = project.copy(tmp_path / "p")
    params = changed.params(attack__photographs="all")
    manifest = run_attack(params, changed.layout, "net", "unrestricted", progress=False)
    clean = ShardIndex(project.layout.clean)
    index = examples(changed)
    assert {row["parent_key"] for row in index.records.values()} == set(clean.records)
    assert manifest.counts.in_ == len(clean.records)
    before = examples(project)
    reported = {k: row for k, row in index.records.items() if row["split"] == "test"}
    assert reported == before.records
    victim = load_victim(project.layout.victim("net"))
    folder = changed.layout.examples("net", "unrestricted")
    row = robustness(folder, victim, [], filters=[("split", "=", "test")])
    assert row == robustness(project.layout.examples("net", "unrestricted"), victim, [])
    assert robustness(folder, victim, [])["n"] == len(clean.records)
