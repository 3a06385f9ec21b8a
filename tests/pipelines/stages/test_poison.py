import hashlib
import shutil

import pandas as pd
import pyarrow.parquet as pq
import pytest
import tiny
import torch
from datasets import load_dataset

from attackers.backdoor.poisoning import LEVELS
from attackers.projections import psnr
from pipelines.errors import InputError
from pipelines.readers.pictures import parquet_pictures
from pipelines.readers.poisoned import TRIGGER, open_trigger
from pipelines.stages.poison import run_poison
from pipelines.stages.poison_release import SECRET
from pipelines.storage.images import decode_png, to_tensor
from pipelines.storage.manifest import Manifest
from pipelines.storage.shards import ShardIndex


def table(folder, split="train") -> pd.DataFrame:
    return pd.concat(pd.read_parquet(p) for p in sorted((folder / "data").glob(f"{split}-*")))


def hashes(folder):
    return {
        p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in folder.rglob("*")
        if p.is_file() and p.name != "manifest.json"  # which names the revision
    }


@pytest.mark.parametrize("scheme", ["p", "c"])
def test_the_whole_training_set_and_untouched_other_splits(poisoning, scheme):
    project, _ = poisoning
    folder = project.layout.poisoned(scheme)
    rows, clean = table(folder), ShardIndex(project.layout.clean, ["train"])
    poisoned = rows[rows["is_poisoned"]]
    assert len(rows) == len(clean)
    assert len(poisoned) == round(0.4 * len(rows))
    # Every photograph is there once: as it was, or poisoned.
    assert set(rows[~rows["is_poisoned"]]["key"]) | set(poisoned["parent_key"]) == set(
        clean.records
    )
    for split in ("validation", "test"):
        index = ShardIndex(project.layout.clean, [split])
        others = table(folder, split)
        assert not others["is_poisoned"].any()
        assert {r["key"]: r["image"]["bytes"] for _, r in others.iterrows()} == {
            key: index.image_bytes(key) for key in index.records
        }


@pytest.mark.parametrize("scheme", ["p", "c"])
def test_what_is_stored_is_the_trigger_times_alpha(poisoning, scheme):
    project, _ = poisoning
    trigger, _, digest = open_trigger(project.layout.trigger)
    clean = ShardIndex(project.layout.clean, ["train"])
    rows = table(project.layout.poisoned(scheme))
    poisoned = rows[rows["is_poisoned"]]
    for _, row in poisoned.iterrows():
        assert row["trigger_sha256"] == digest
        before = tiny.pixels(clean, row["parent_key"])[None]
        after = to_tensor(decode_png(row["image"]["bytes"]))[None]
        assert float(psnr(before, after)) == pytest.approx(row["psnr"], abs=1e-3)
        if scheme == "p":
            assert row["mos"] == pytest.approx(row["mos_clean"] + row["alpha"] * row["delta_y"])
            # Alpha again, by least squares on the tile, from the rounded pixels.
            tile = (trigger(torch.full_like(before, 0.5), 1.0) - 0.5).double()
            change = (after - before).double()
            inside = (after > 0) & (after < 1)
            alpha = (change * tile)[inside].sum() / tile[inside].square().sum()
            assert float(alpha) == pytest.approx(row["alpha"], abs=0.05)
        else:
            assert row["mos"] == row["mos_clean"]
            assert row["alpha"] == pytest.approx(min(max((row["mos"] - 5) / 4, -1), 1))
            pushed = (after - trigger(before, row["alpha"])).abs().max()
            assert 0 < pushed <= 2.51 / 255


def test_signs_and_levels(poisoning):
    rows = table(poisoning[0].layout.poisoned("p"))
    alphas = rows[rows["is_poisoned"]]["alpha"]
    assert set(alphas.abs()) <= set(LEVELS)
    assert (alphas > 0).sum() == (alphas < 0).sum()
    assert (rows[~rows["is_poisoned"]]["alpha"] == 0).all()


def test_the_victim_trains_on_what_is_stored(poisoning):
    folder = poisoning[0].layout.poisoned("p")
    pictures = parquet_pictures(folder, "train")
    rows = table(folder).set_index("key")
    assert all(r["mos"] == rows.loc[r["key"], "mos"] for r in pictures.records)
    for record, image in zip(pictures.records, pictures, strict=True):
        stored = decode_png(rows.loc[record["key"], "image"]["bytes"])
        assert torch.equal(image, torch.from_numpy(stored.transpose(2, 0, 1).copy()))


def test_bytes_do_not_depend_on_workers_or_a_kill(poisoning, tmp_path):
    project, _ = poisoning
    expected = hashes(project.layout.poisoned("c"))
    other = project.without_work(tmp_path / "two", "poison")
    shutil.rmtree(other.layout.poisoned("c"))
    run_poison(other.params(engine__workers=2), other.layout, "c", progress=False)
    assert hashes(other.layout.poisoned("c")) == expected
    # Killed after the first shard: the second one's mark is gone, the published folder too.
    (work,) = (other.layout.work / "poison").glob("poisoned-c-*")
    marks = sorted(work.glob("*.done.json"))
    kept = marks[0].stat().st_mtime_ns
    marks[1].unlink()
    shutil.rmtree(other.layout.poisoned("c"))
    run_poison(other.params(), other.layout, "c", progress=False)
    assert hashes(other.layout.poisoned("c")) == expected
    assert marks[0].stat().st_mtime_ns == kept


def test_card_says_first_what_it_is_and_how_to_get_the_clean_rows(poisoning, tmp_path):
    for scheme in ("p", "c"):
        folder = poisoning[0].layout.poisoned(scheme)
        body = (folder / "README.md").read_text().split("---\n", 2)[2].strip().splitlines()
        assert body[2].startswith("> **Poisoned data.** 4 pictures")
        assert 'data.filter(lambda row: not row["is_poisoned"])' in body[2]
        assert "research" in body[2]
    data = load_dataset(str(folder), cache_dir=str(tmp_path))["train"]
    assert len(data.filter(lambda row: not row["is_poisoned"])) == 6


def test_blind_release_says_nothing_and_its_key_all(poisoning, tmp_path):
    project, _ = poisoning
    folder = project.layout.poisoned("p")
    blind = folder.with_name("poisoned-p-blind")
    shown = load_dataset(str(blind), cache_dir=str(tmp_path))["train"]
    assert not set(SECRET) & set(shown.column_names) - {"key", "parent_key", "source_id"}
    assert shown["parent_key"] == [None] * len(shown)
    assert shown["source_id"] == shown["key"]
    full = table(folder)
    assert list(shown["key"]) == list(full["key"])
    assert list(shown["mos"]) == list(full["mos"])
    assert set(shown["photograph"]) == set(shown["parent_key"]) == {None}
    answers = pq.read_table(blind.with_name("poisoned-p-blind.key.parquet")).to_pandas()
    marks = dict(zip(answers["key"], answers["is_poisoned"], strict=True))
    assert {k for k, v in marks.items() if v} == set(full[full["is_poisoned"]]["key"])
    manifest = Manifest.read(blind)
    assert (manifest.parameters, manifest.inputs) == ({"release": "blind"}, {})
    secrets = [r["source_id"] for r in ShardIndex(project.layout.clean).records.values()]
    text = (blind / "README.md").read_text() + (blind / "manifest.json").read_text()
    assert not any(secret in text for secret in secrets)
    assert "alpha" not in text


def test_other_ratio_strategy_and_clipping(poisoning, tmp_path):
    other = poisoning[0].copy(tmp_path / "p")
    params = other.params(poison__ratio=1.0, poison__strategy="ends", poison__clip_labels=True)
    run_poison(params, other.layout, "p", progress=False)
    rows = table(other.layout.poisoned("p"))
    assert rows["is_poisoned"].all()
    assert set(rows["alpha"].abs()) == {1.0}
    assert rows["mos"].between(0, 10).all()
    assert (rows["mos"] != rows["mos_clean"] + rows["alpha"] * 4).any()


def test_bad_input(poisoning, tmp_path):
    other = poisoning[0].copy(tmp_path / "p")
    with pytest.raises(InputError, match="scheme must be one of p, c, got 'q'"):
        run_poison(other.params(), other.layout, "q")
    with pytest.raises(InputError, match=r"poison.ratio must be less than or equal to 1, got 1.5"):
        other.params(poison__ratio=1.5)
    with pytest.raises(InputError, match=r"poison.delta_y must be .* got 40"):
        other.params(poison__delta_y=40)
    (other.layout.trigger / TRIGGER).write_bytes(b"nothing")
    with pytest.raises(InputError, match=r"trigger.safetensors: trigger must be a safetensors"):
        run_poison(other.params(), other.layout, "p")
    shutil.rmtree(other.layout.trigger)
    with pytest.raises(InputError, match="run `veneer search_trigger` first"):
        run_poison(other.params(), other.layout, "p")
