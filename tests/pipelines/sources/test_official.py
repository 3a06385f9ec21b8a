"""Sources in the layouts that their authors publish, on small trees built here."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from pipelines.errors import InputError
from pipelines.params import Source, load_params
from pipelines.sources.ava import ava
from pipelines.sources.flickr_aes import flickr_aes, ratings
from pipelines.sources.hf import _open, hf
from pipelines.sources.koniq import koniq
from pipelines.sources.registry import SOURCES, importer
from pipelines.sources.tad66k import tad66k


def picture(path: Path, number: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((40, 50, 3), number * 5, np.uint8)).save(path)


def splits_of(listing) -> dict[str, str]:
    return {item.source_id: item.split for item in listing.items}


# KonIQ-10k


def make_koniq(root: Path) -> Path:
    """Ten photographs; votes of the first: 1 to 5 given 1, 2, 3, 4, 90 times."""
    rows = []
    for number in range(10):
        name = f"{10004473376 + number}.jpg"
        picture(root / "1024x768" / name, number)
        kind = "training" if number < 7 else "validation" if number < 8 else "test"
        rows.append([name, 0.01, 0.02, 0.03, 0.04, 0.9, 100 + number, 10.0 * number, 0.5, kind])
    columns = ["image_name", "c1", "c2", "c3", "c4", "c5", "c_total", "MOS", "SD", "set"]
    pd.DataFrame(rows, columns=columns).to_csv(
        root / "koniq10k_distributions_sets.csv", index=False
    )
    return root


def test_koniq_official_split_and_scores(tmp_path):
    listing = koniq(0, root=str(make_koniq(tmp_path)))
    splits = splits_of(listing)
    assert list(splits.values()).count("train") == 7
    assert splits["10004473383.jpg"] == "validation"
    photo = listing.items[3].load()
    # A deviation of 0.5 on 1 to 5 is an eighth of the scale.
    assert (photo.mos, photo.mos_std, photo.n_votes) == (30.0, 12.5, 103)
    assert (listing.scale.low, listing.scale.high) == (0, 100)
    limited = koniq(0, root=str(tmp_path), limits={"train": 2})
    assert list(splits_of(limited).values()).count("train") == 2
    assert [reason for _, reason in limited.rejects] == ["beyond the limit of train"] * 5
    assert splits_of(limited) == splits_of(koniq(0, root=str(tmp_path), limits={"train": 2}))


def test_koniq_bad_input(tmp_path):
    with pytest.raises(InputError, match=r"got no .*koniq10k_distributions_sets.csv"):
        koniq(0, root=str(tmp_path))
    root = make_koniq(tmp_path)
    (root / "1024x768" / "10004473376.jpg").unlink()
    with pytest.raises(InputError, match=r"missing 1 \(.*10004473376.jpg\)"):
        koniq(0, root=str(root))
    listing = koniq(0, root=str(root), allow_missing=True)
    assert listing.rejects == [("10004473376.jpg", "missing file")]
    with pytest.raises(InputError, match="limits must name splits of the source, got dev"):
        koniq(0, root=str(root), allow_missing=True, limits={"dev": 3})
    table = root / "koniq10k_distributions_sets.csv"
    good = table.read_text()
    for old, new, words in (
        (",training", ",practice", "set in .* must be one of training"),
        (",30.0,", ",many,", "MOS in .* must be a number, got 'many'"),
        (",30.0,", ",130.0,", r"scores in \[0, 100\], got others: 1"),
        ("c_total", "votes", "must have the columns image_name, c_total"),
        ("10004473377.jpg", "10004473378.jpg", "each picture once"),
    ):
        table.write_text(good.replace(old, new))
        with pytest.raises(InputError, match=words):
            koniq(0, root=str(root), allow_missing=True)


# AVA


def make_ava(root: Path, count: int = 40) -> Path:
    """AVA.txt with `count` photographs; every fourth is in the test list, every second in ls."""
    lines = []
    for number in range(count):
        name = 953600 + number
        picture(root / "images" / f"{name}.jpg", number)
        votes = [0] * 10
        votes[number % 10] += 3
        votes[4] += 1
        lines.append(" ".join(map(str, [number + 1, name, *votes, 1, 22, 1396])))
    (root / "AVA.txt").write_text("\n".join(lines) + "\n")
    lists = root / "aesthetics_image_lists"
    lists.mkdir()
    test = [953600 + n for n in range(0, count, 4)]
    ls = [953600 + n for n in range(1, count, 2)]
    (lists / "generic_test.jpgl").write_text("".join(f"{name}\n" for name in test))
    (lists / "generic_ls_train.jpgl").write_text("".join(f"{name}\n" for name in ls))
    (lists / "generic_ss_train.jpgl").write_text("".join(f"{name}\n" for name in ls[:5]))
    return root


def test_ava_moments_of_the_votes(tmp_path):
    listing = ava(0, root=str(make_ava(tmp_path)))
    photo = next(i for i in listing.items if i.source_id == "953609.jpg").load()
    votes = np.array([10, 10, 10, 5])
    assert photo.mos == pytest.approx(votes.mean())
    assert photo.mos_std == pytest.approx(votes.std())
    assert photo.n_votes == 4


@pytest.mark.parametrize(
    ("split", "test", "train", "left_out"),
    [("official", 10, 30, 0), ("generic_ls", 10, 20, 10), ("generic_ss", 10, 5, 25)],
)
def test_ava_split_lists(tmp_path, split, test, train, left_out):
    listing = ava(0, root=str(make_ava(tmp_path)), split=split, validation=0.2)
    splits = list(splits_of(listing).values())
    assert splits.count("test") == test
    assert splits.count("train") + splits.count("validation") == train
    assert abs(splits.count("validation") - 0.2 * train) <= 1
    assert [reason for _, reason in listing.rejects] == [f"not in the lists of {split}"] * left_out


def test_ava_without_a_split_leaves_it_to_the_import(tmp_path):
    listing = ava(0, root=str(make_ava(tmp_path)), split="none")
    assert set(splits_of(listing).values()) == {None}


def test_ava_dead_images_and_bad_lists(tmp_path):
    root = make_ava(tmp_path)
    (root / "images" / "953601.jpg").unlink()
    with pytest.raises(InputError, match=r"missing 1 \(.*953601.jpg\)"):
        ava(0, root=str(root))
    listing = ava(0, root=str(root), allow_missing=True)
    assert listing.rejects == [("953601.jpg", "missing file")]
    assert len(listing.items) == 39
    test_list = root / "aesthetics_image_lists" / "generic_test.jpgl"
    good = test_list.read_text()
    test_list.write_text(good + "77\n")
    with pytest.raises(InputError, match=r"photographs of AVA.txt, got others: 1 \(77\)"):
        ava(0, root=str(root), allow_missing=True)
    test_list.write_text(good + "953603\n")
    with pytest.raises(InputError, match="must be disjoint, 953603 is in two"):
        ava(0, root=str(root), split="generic_ls", allow_missing=True)
    test_list.unlink()
    with pytest.raises(InputError, match=r"split official needs .*generic_test.jpgl"):
        ava(0, root=str(root), allow_missing=True)


def test_ava_bad_input(tmp_path):
    with pytest.raises(InputError, match="must be the folder of the AVA release"):
        ava(0, root=str(tmp_path))
    root = make_ava(tmp_path)
    with pytest.raises(InputError, match="split must be official, generic_ls"):
        ava(0, root=str(root), split="random")
    with pytest.raises(InputError, match=r"validation must be in \(0, 1\), got 2"):
        ava(0, root=str(root), validation=2)
    lines = (root / "AVA.txt").read_text().splitlines()
    for bad in ("1 2 3", lines[1].replace("1396", "x"), "2 953601 " + "0 " * 10 + "1 22 1396"):
        (root / "AVA.txt").write_text("\n".join([lines[0], bad, *lines[2:]]))
        with pytest.raises(InputError, match="must have 15 numbers in line 2"):
            ava(0, root=str(root))


# TAD66K


def make_tad66k(root: Path) -> Path:
    for split, numbers in (("train", range(16)), ("test", range(16, 20))):
        rows = []
        for number in numbers:
            picture(root / "TAD66K" / f"{number}_a.jpg", number)
            rows.append((f"{number}_a.jpg", number / 2))
        path = root / "labels" / "merge" / f"{split}.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        pd.DataFrame(rows, columns=["image", "score"]).to_csv(path, index=False)
    return root


def test_tad66k_merged_lists(tmp_path):
    listing = tad66k(0, root=str(make_tad66k(tmp_path)), validation=0.25)
    splits = list(splits_of(listing).values())
    assert (splits.count("train"), splits.count("validation"), splits.count("test")) == (12, 4, 4)
    photo = next(i for i in listing.items if i.source_id == "17_a.jpg").load()
    assert (photo.mos, photo.mos_std, photo.n_votes) == (8.5, None, None)
    (tmp_path / "labels" / "merge" / "test.csv").unlink()
    with pytest.raises(InputError, match=r"must hold test.csv"):
        tad66k(0, root=str(tmp_path))


def test_tad66k_needs_its_pictures(tmp_path):
    make_tad66k(tmp_path)
    (tmp_path / "TAD66K").rename(tmp_path / "photos")
    with pytest.raises(InputError, match="its pictures in TAD66K or images or imgs"):
        tad66k(0, root=str(tmp_path))


# FLICKR-AES


def make_flickr_aes(root: Path) -> Path:
    """Twelve photographs, four workers; worker w rates photographs 3w to 3w+2 and number 0."""
    rows = []
    for number in range(12):
        picture(root / "40K" / f"farm1_{number}.jpg", number)
    for worker in range(4):
        for number in sorted({0, *range(3 * worker, 3 * worker + 3)}):
            rows.append((f"A{worker}", f"farm1_{number}.jpg", 1 + (worker + number) % 5))
    text = "worker, imagePair, score\n" + "".join(f"{w}, {i}, {s}\n" for w, i, s in rows)
    (root / "FLICKR-AES_image_labeled_by_each_worker.csv").write_text(text)
    return root


def test_flickr_aes_general(tmp_path):
    root = make_flickr_aes(tmp_path)
    listing = flickr_aes(0, root=str(root), test_workers=1, validation=0.2)
    photo = listing.items[0].load()
    assert photo.mos == pytest.approx(np.mean([1, 2, 3, 4]))
    assert photo.mos_std == pytest.approx(np.std([1, 2, 3, 4]))
    assert photo.n_votes == 4
    splits = splits_of(listing)
    table = ratings(root)
    test = {name for name, split in splits.items() if split == "test"}
    # The test photographs are those that one worker rated.
    assert test in [set(own["image"]) for _, own in table.groupby("worker")]
    assert "validation" in splits.values()
    assert len(splits) == 12


def test_flickr_aes_personal(tmp_path):
    listing = flickr_aes(0, root=str(make_flickr_aes(tmp_path)), worker="A1")
    photos = {item.source_id: item.load() for item in listing.items}
    assert {name: photo.mos for name, photo in photos.items()} == {
        "farm1_0.jpg": 2,
        "farm1_3.jpg": 5,
        "farm1_4.jpg": 1,
        "farm1_5.jpg": 2,
    }
    assert {photo.n_votes for photo in photos.values()} == {1}
    assert set(splits_of(listing).values()) == {None}
    assert len(ratings(tmp_path)) == 4 * 3 + 3


def test_flickr_aes_bad_input(tmp_path):
    root = make_flickr_aes(tmp_path)
    with pytest.raises(InputError, match=r"worker must be one of those .* got 'A9'"):
        flickr_aes(0, root=str(root), worker="A9")
    with pytest.raises(InputError, match="test_workers must be from 1 to 3"):
        flickr_aes(0, root=str(root), test_workers=4)
    table = root / "FLICKR-AES_image_labeled_by_each_worker.csv"
    table.write_text(table.read_text().replace("farm1_3.jpg, 5", "farm1_3.jpg, 6"))
    with pytest.raises(InputError, match=r"score in .* \[1, 5\], got others: 1 \(A1 farm1_3.jpg"):
        flickr_aes(0, root=str(root))


# Hugging Face


def make_hf(root: Path) -> Path:
    import datasets

    for split, numbers in (("train", range(6)), ("test", range(6, 8))):
        rows = []
        for number in numbers:
            picture(root / "tmp.png", number)
            data = (root / "tmp.png").read_bytes()
            mos = None if number == 2 else float(number)
            rows.append(
                {
                    "photo": {"bytes": data, "path": None},
                    "label": {"mos": mos, "n": number},
                    "name": f"p{number // 2}",
                }
            )
        features = datasets.Features(
            {
                "photo": datasets.Image(),
                "label": {"mos": datasets.Value("float64"), "n": datasets.Value("int64")},
                "name": datasets.Value("string"),
            }
        )
        data = datasets.Dataset.from_list(rows, features=features)
        data.to_parquet(root / f"data/{split}-00000-of-00001.parquet")
    (root / "tmp.png").unlink()
    return root


@pytest.fixture
def hub_cache(tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    _open.cache_clear()


def test_hf_folder(tmp_path, hub_cache):
    root = make_hf(tmp_path / "set")
    listing = hf(
        0,
        path=str(root),
        image="photo",
        mos="label.mos",
        n_votes="label.n",
        group="name",
        score_low=0,
        score_high=10,
    )
    assert listing.rejects == [("train/2", "no score on the scale")]
    splits = splits_of(listing)
    assert splits == {**{f"train/{n}": "train" for n in (0, 1, 3, 4, 5)}, "test/0": "test",
                      "test/1": "test"}  # fmt: skip
    item = listing.items[2]
    photo = item.load()
    assert (item.source_id, item.group, photo.mos, photo.n_votes) == ("train/3", "p1", 3.0, 3)
    picture(tmp_path / "same.png", 3)
    assert photo.data == (tmp_path / "same.png").read_bytes()


def test_hf_bad_input(tmp_path, hub_cache):
    arguments = {"path": str(make_hf(tmp_path / "set")), "score_low": 0, "score_high": 10}
    with pytest.raises(InputError, match="image must be a column of the data set, got 'image'"):
        hf(0, **arguments)
    with pytest.raises(InputError, match="image must be a column of pictures, got 'name'"):
        hf(0, **arguments, image="name", mos="label.mos")
    with pytest.raises(InputError, match="mos must be a column"):
        hf(0, **arguments, image="photo")
    with pytest.raises(InputError, match="score_low must be below"):
        hf(0, **{**arguments, "score_high": 0})
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="path must be a data set"):
        hf(0, **{**arguments, "path": str(tmp_path / "empty")})


def test_hf_id_that_does_not_exist(monkeypatch, hub_cache):
    import datasets
    from datasets.exceptions import DatasetNotFoundError

    def not_there(*arguments, **more):
        raise DatasetNotFoundError("no such data set")

    monkeypatch.setattr(datasets, "load_dataset", not_there)
    with pytest.raises(InputError, match=r"a data set of the Hub that you may read, .*'me/none'"):
        hf(0, path="me/none", score_low=0, score_high=10)


def test_hf_path_stands_in_the_options():
    with pytest.raises(ValueError, match=r"must be hf, with options\.path: me/set"):
        Source.model_validate({"name": "hf:me/set", "options": {"score_low": 0}})


# Parameters


@pytest.mark.parametrize("name", ["ava", "flickr_aes", "koniq", "tad66k"])
def test_parameters_fit_the_source(name, tmp_path):
    params = load_params(Path(__file__).parents[3] / "params" / f"{name}.yaml")
    make = {"ava": make_ava, "flickr_aes": make_flickr_aes, "koniq": make_koniq}
    make.get(name, make_tad66k)(tmp_path)
    options = {**params.source.options, "root": str(tmp_path)}
    if "validation" in options:  # a share for thousands of photographs
        options["validation"] = 0.2
    if name == "flickr_aes":
        options["test_workers"] = 1
    listing = importer(params.source.name)(params.seed, **options)
    assert {"train", "validation", "test"} == set(splits_of(listing).values())


def test_every_source_is_tested():
    here = {"ava", "flickr_aes", "hf", "koniq", "tad66k"}
    elsewhere = (Path(__file__).parent / "test_sources.py").read_text()
    assert here | {"folder", "livec", "sample"} == set(SOURCES)
    assert all(f"{name}(" in elsewhere for name in set(SOURCES) - here)
