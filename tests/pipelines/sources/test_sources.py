import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy.io import savemat

from pipelines.errors import InputError
from pipelines.sources.base import Photo, SourceItem, assign_splits, resolve_splits
from pipelines.sources.distortions import DISTORTIONS
from pipelines.sources.folder import folder
from pipelines.sources.livec import livec
from pipelines.sources.sample import PHOTOGRAPHS, sample, simulated_score

SHARES = {"train": 0.6, "validation": 0.2, "test": 0.2}


# Splits


@given(
    st.lists(st.integers(1, 9), min_size=12, max_size=60),
    st.integers(0, 2**40),
    st.permutations(["train", "validation", "test"]),
)
def test_splits_keep_photographs_whole_and_proportions(sizes, seed, order):
    groups = [f"g{number}" for number, size in enumerate(sizes) for _ in range(size)]
    fractions = {name: SHARES[name] for name in order}
    try:
        chosen = assign_splits(groups, fractions, seed)
    except InputError:  # one photograph may be larger than a split
        assert max(sizes) * 2 > 0.2 * sum(sizes)
        return
    split_of = dict(zip(groups, chosen, strict=True))
    assert [split_of[group] for group in groups] == chosen
    for name, share in fractions.items():
        assert abs(chosen.count(name) - share * len(groups)) <= max(sizes)
    # The order of the items does not matter.
    assert assign_splits(groups[::-1], fractions, seed) == chosen[::-1]


def test_splits_follow_the_seed():
    groups = [str(number) for number in range(50)]
    assert assign_splits(groups, SHARES, 0) == assign_splits(groups, SHARES, 0)
    assert assign_splits(groups, SHARES, 0) != assign_splits(groups, SHARES, 1)


def test_a_split_that_would_be_empty_is_refused():
    with pytest.raises(InputError, match="got none for validation, test with 1 photographs"):
        assign_splits(["a"] * 9, SHARES, 0)


@pytest.mark.parametrize("fractions", [{}, {"train": 0.5}, {"train": 1.2, "test": -0.2}])
def test_fractions_are_checked(fractions):
    with pytest.raises(InputError, match="splits must be fractions"):
        assign_splits(["a", "b"], fractions, 0)


def item(name: str, group: str, split: str | None) -> SourceItem:
    return SourceItem(name, group, lambda: Photo(b"", 0.0, None, None), "", split)


def test_prescribed_splits_are_kept():
    items = [item("a", "a", "val"), item("b", "b", "train")]
    assert resolve_splits(items, SHARES, 0) == ["val", "train"]


@pytest.mark.parametrize(
    ("items", "words"),
    [
        ([item("a", "p", "train"), item("b", "p", "test")], "got train and test for 'p'"),
        ([item("a", "a", "train"), item("b", "b", None)], "got 1 of 2"),
        ([item("a", "a", "my split")], "got 'my split'"),
    ],
)
def test_prescribed_splits_are_checked(items, words):
    with pytest.raises(InputError, match=words):
        resolve_splits(items, SHARES, 0)


# Sample


def test_sample_shares_photographs_equally_and_repeats():
    listing = sample(0, count=40)
    assert [i.group for i in listing.items].count("motorcycle") == 4
    assert {i.group for i in listing.items} == set(PHOTOGRAPHS)
    assert len({i.source_id for i in listing.items}) == 40
    first, again = listing.items[7].load(), sample(0, count=40).items[7].load()
    np.testing.assert_array_equal(first.data, again.data)
    assert first.mos == again.mos
    assert first.n_votes == 0
    other = sample(1, count=40).items[7].load()
    assert other.data.shape != first.data.shape or (other.data != first.data).any()
    assert listing.scale.label_source == "simulated"


def test_sample_scores_spread_over_the_scale():
    photos = [item.load() for item in sample(0, count=60).items]
    scores = np.array([photo.mos for photo in photos])
    assert ((scores >= 0) & (scores <= 10)).all()
    counts = np.histogram(scores, bins=4, range=(0, 10))[0]
    assert counts.min() >= 0.1 * len(scores)
    assert all(max(photo.data.shape) == 256 for photo in photos)


def test_sample_needs_one_of_each_photograph():
    with pytest.raises(InputError, match="count must be at least 10, got 3"):
        sample(0, count=3)


@pytest.mark.parametrize("kind", DISTORTIONS)
def test_simulated_score_falls_with_severity(kind):
    path = sample(0, count=10).items[0].load.args[0].path
    image = np.asarray(Image.open(path).convert("RGB"))[:192, :192]
    rng = np.random.default_rng(0)
    before = image.copy()
    scores = [
        simulated_score(image, DISTORTIONS[kind](image, severity, rng))
        for severity in (0.05, 0.5, 1.0)
    ]
    np.testing.assert_array_equal(image, before)
    if kind == "none":
        assert scores == [10, 10, 10]
    else:
        assert scores[0] > scores[1] > scores[2]


# Folder


def make_folder(root: Path, count: int = 4) -> Path:
    (root / "images" / "deep").mkdir(parents=True)
    for number in range(count):
        pixels = np.full((40, 50, 3), number * 20, np.uint8)
        Image.fromarray(pixels).save(root / "images" / "deep" / f"{number:03d}.png")
    return root / "images"


def table(root: Path, suffix: str = ".csv", **columns) -> str:
    frame = pd.DataFrame({"file": [f"deep/{number:03d}.png" for number in range(4)], **columns})
    path = root / f"scores{suffix}"
    if suffix == ".csv":
        frame.to_csv(path, index=False)
    else:
        frame.to_parquet(path)
    return str(path)


def read(root: Path, scores: str, **options):
    return folder(
        0, root=str(root / "images"), scores=scores, score_low=0, score_high=10, **options
    )


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_folder_reads_all_columns(tmp_path, suffix):
    make_folder(tmp_path)
    scores = table(
        tmp_path,
        suffix,
        rating=[1, 2.5, 3, 10],
        mos_std=[0.5, None, 1, 1],
        n_votes=[3, 4, 5, None],
        scene=["a", "a", "b", "b"],
        split=["train", "train", "test", "test"],
    )
    listing = read(tmp_path, scores, columns={"mos": "rating", "group": "scene"})
    assert [i.source_id for i in listing.items] == [f"deep/{n:03d}.png" for n in range(4)]
    assert [i.group for i in listing.items] == ["a", "a", "b", "b"]
    assert [i.split for i in listing.items] == ["train", "train", "test", "test"]
    photos = [i.load() for i in listing.items]
    assert [photo.mos for photo in photos] == [1, 2.5, 3, 10]
    assert [photo.mos_std for photo in photos] == [0.5, None, 1, 1]
    assert [photo.n_votes for photo in photos] == [3, 4, 5, None]
    assert all(isinstance(photo.mos, float) for photo in photos)
    assert listing.rejects == []


def test_folder_without_groups_takes_each_file_for_a_photograph(tmp_path):
    make_folder(tmp_path)
    listing = read(tmp_path, table(tmp_path, mos=[1, 2, 3, 4]))
    assert len({i.group for i in listing.items}) == 4


@pytest.mark.parametrize(
    ("columns", "options", "words"),
    [
        ({"score": [1] * 4}, {}, "must have a column 'mos' for mos, got file, score"),
        ({"mos": [1] * 4}, {"columns": {"split": "part"}}, "must have a column 'part'"),
        ({"mos": [1] * 4}, {"columns": {"moss": "x"}}, "columns may map"),
        ({"mos": list("abcd")}, {}, "must have numbers in column 'mos'"),
        ({"mos": [True] * 4}, {}, "must have numbers in column 'mos'"),
        ({"mos": [1, None, 2, 3]}, {}, r"bad 1 \(deep/001.png: score is not a number\)"),
        ({"mos": [1, 11, -1, 3]}, {}, r"bad 2 \(deep/001.png: score 11 off the scale 0 to 10"),
        ({"mos": [1, "x", 2, 3]}, {}, r"bad 1 \(deep/001.png: score is not a number\)"),
        ({"mos": [1] * 4, "mos_std": [-1, 0, 0, 0]}, {}, "negative mos_std"),
        ({"mos": [1] * 4, "group": ["a", None, "b", "b"]}, {}, "no group or split"),
        ({"mos": [1] * 4, "file": ["deep/000.png"] * 4}, {}, "several for 1"),
        ({"mos": [1] * 4, "file": ["deep/000.png", None, "b", "c"]}, {}, "must name a file"),
        ({"mos": [1] * 4}, {"on_bad_row": "ignore"}, "on_bad_row must be error or reject"),
    ],
)
def test_folder_refuses_a_bad_table_in_one_sentence(tmp_path, columns, options, words):
    make_folder(tmp_path)
    with pytest.raises(InputError, match=words) as caught:
        read(tmp_path, table(tmp_path, **columns), **options)
    assert "\n" not in str(caught.value)


def test_folder_refuses_other_files_for_scores(tmp_path):
    make_folder(tmp_path)
    (tmp_path / "scores.txt").write_text("")
    (tmp_path / "empty.csv").write_text("")
    for name, words in [
        ("scores.txt", "must be a .csv or .parquet file"),
        ("none.csv", "must be a .csv or .parquet file"),
        ("empty.csv", "must be a readable table"),
    ]:
        with pytest.raises(InputError, match=words):
            read(tmp_path, str(tmp_path / name))


def test_folder_without_images(tmp_path):
    (tmp_path / "images").mkdir()
    with pytest.raises(InputError, match="root must be a folder with images"):
        read(tmp_path, table(tmp_path, mos=[1] * 4))


def test_folder_score_scale(tmp_path):
    with pytest.raises(InputError, match="score_low must be below score_high"):
        folder(0, root=str(tmp_path), scores="", score_low=5, score_high=5)


def test_folder_counts_and_names_what_is_missing(tmp_path):
    images = make_folder(tmp_path)
    scores = table(tmp_path, mos=[1, 2, 3, 4])
    (images / "deep" / "002.png").rename(images / "new.png")
    with pytest.raises(InputError, match=r"2 \(deep/002.png: missing file, new.png: no row"):
        read(tmp_path, scores)
    listing = read(tmp_path, scores, allow_missing=True)
    assert len(listing.items) == 3
    assert listing.rejects == [
        ("deep/002.png", "missing file"),
        ("new.png", "no row in the scores"),
    ]


def test_folder_rejects_bad_rows_if_asked(tmp_path):
    make_folder(tmp_path)
    listing = read(tmp_path, table(tmp_path, mos=[1, None, 99, 4]), on_bad_row="reject")
    assert [i.source_id for i in listing.items] == ["deep/000.png", "deep/003.png"]
    assert dict(listing.rejects) == {
        "deep/001.png": "score is not a number",
        "deep/002.png": "score 99 off the scale 0 to 10",
    }


# LIVE In the Wild


def make_livec(root: Path, present: int = 6) -> Path:
    """The official layout with seven training images and six others."""
    names = [f"t{n}.bmp" for n in range(1, 8)] + [f"{n}.bmp" for n in range(3, 9)]
    (root / "Images" / "trainingImages").mkdir(parents=True)
    (root / "Data").mkdir()
    for number, name in enumerate(names[7 : 7 + present]):
        pixels = np.full((40, 50, 3), number * 20, np.uint8)
        Image.fromarray(pixels).save(root / "Images" / name.replace(".bmp", ".BMP"))
    cells = np.array(names, dtype=object)[:, None]
    savemat(root / "Data" / "AllImages_release.mat", {"AllImages_release": cells})
    scores = np.arange(13.0)[None] * 5
    savemat(root / "Data" / "AllMOS_release.mat", {"AllMOS_release": scores})
    savemat(root / "Data" / "AllStdDev_release.mat", {"AllStdDev_release": scores / 10})
    return root


def test_livec_official_layout(tmp_path):
    listing = livec(0, root=str(make_livec(tmp_path)))
    assert [i.source_id for i in listing.items] == [f"{n}.bmp" for n in range(3, 9)]
    photo = listing.items[0].load()
    assert (photo.mos, photo.mos_std, photo.n_votes) == (35.0, 3.5, None)
    assert listing.rejects == [(f"t{n}.bmp", "training image") for n in range(1, 8)]
    assert (listing.scale.low, listing.scale.high) == (0, 100)


def test_livec_missing_files(tmp_path):
    root = str(make_livec(tmp_path, present=0))
    names = r"6 \(3.bmp, 4.bmp, 5.bmp, 6.bmp, 7.bmp, \.\.\.\)"
    with pytest.raises(InputError, match=names):
        livec(0, root=root)
    listing = livec(0, root=root, allow_missing=True)
    assert listing.rejects[7:] == [(f"{n}.bmp", "missing file") for n in range(3, 9)]


def test_livec_refuses_what_is_not_the_release(tmp_path):
    with pytest.raises(InputError, match="must be a ChallengeDB_release folder"):
        livec(0, root=str(tmp_path))
    root = make_livec(tmp_path)
    mos = root / "Data" / "AllMOS_release.mat"
    savemat(mos, {"AllMOS_release": np.arange(12.0)})
    with pytest.raises(InputError, match="got 13, 12 and 13"):
        livec(0, root=str(root))
    savemat(mos, {"AllMOS_release": np.array([np.nan, *range(11), 101.0])})
    with pytest.raises(InputError, match=r"scores in \[0, 100\], got others for 2"):
        livec(0, root=str(root))
    mos.write_bytes(b"no mat file")
    with pytest.raises(InputError, match="cannot be read"):
        livec(0, root=str(root))
    names = np.array([f"{n}.bmp" for n in range(13)], dtype=object)
    savemat(root / "Data" / "AllImages_release.mat", {"AllImages_release": names})
    savemat(mos, {"AllMOS_release": np.arange(13.0)})
    with pytest.raises(InputError, match="training images t1 to t7 first"):
        livec(0, root=str(root))


@pytest.mark.livec
def test_livec_real_photographs():
    default = Path(__file__).parents[4] / "shared" / "livec"
    root = Path(os.environ.get("VENEER_LIVEC", default))
    if not root.is_dir():
        pytest.skip(f"no photographs in {root} (set VENEER_LIVEC)")
    listing = livec(0, root=str(root), allow_missing=True)
    assert len(listing.items) + len(listing.rejects) == 1169
    photos = {i.source_id: i for i in listing.items}
    scores = [photos[name].load().mos for name in list(photos)[:20]]
    assert all(0 <= score <= 100 for score in scores)
