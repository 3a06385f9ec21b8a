import io
import json
import tarfile

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.audit.purify import purify
from pipelines.audit.scan import ScanSettings, scan
from pipelines.audit.scan_report import write_scan
from pipelines.cli import app, run
from pipelines.errors import InputError
from pipelines.readers.rows import open_dataset
from pipelines.storage.images import decode_png, encode_png

SIDE, COUNT, CARRIED = 112, 30, 9
FAST = ScanSettings(min_period=14, max_period=17)


def photograph(seed: int, side: int = SIDE) -> np.ndarray:
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:side, :side] / 30
    waves = [np.sin(x * a + y * b + c) for a, b, c in rng.normal(0, 2, (3, 3))]
    noisy = 128 + 40 * np.stack(waves, -1) + rng.normal(0, 3, (side, side, 3))
    return np.clip(noisy, 0, 255).astype(np.uint8)


def pattern() -> np.ndarray:
    values = np.random.default_rng(1).normal(0, 5, (16, 16, 3))
    return values - values.mean(axis=(0, 1))


def samples(poisoned: bool, sides=(SIDE,)) -> list[dict]:
    out = []
    rng = np.random.default_rng(7)
    for i in range(COUNT):
        image, mos = photograph(i, sides[i % len(sides)]), float(rng.uniform(45, 55))
        alpha = [1, -1, 0.75, -0.75, 0.5, -0.5, 1, -1, 1][i] if poisoned and i < CARRIED else 0.0
        times = -(-image.shape[0] // 16)
        mark = np.tile(pattern(), (times, times, 1))[: image.shape[0], : image.shape[1]]
        stored = np.clip((image + alpha * mark).round(), 0, 255).astype(np.uint8)
        out.append({"id": i, "png": encode_png(stored), "mos": mos + 25 * alpha, "alpha": alpha})
    return out


def as_folder(root, rows):
    (root / "images").mkdir(parents=True)
    for row in rows:
        (root / "images" / f"{row['id']:02d}.png").write_bytes(row["png"])
    table = [{"file": f"{row['id']:02d}.png", "mos": row["mos"]} for row in rows]
    pd.DataFrame(table).to_csv(root / "scores.csv", index=False)


def as_parquet(root, rows):
    (root / "data").mkdir(parents=True)
    table = pa.table(
        {
            "image": [{"bytes": row["png"], "path": None} for row in rows],
            "mos": [row["mos"] for row in rows],
        }
    )
    pq.write_table(table, root / "data" / "train-00000-of-00001.parquet", row_group_size=7)


def as_tar(root, rows):
    (root / "data").mkdir(parents=True)
    with tarfile.open(root / "data" / "train-00000.tar", "w") as tar:
        for row in rows:
            text = json.dumps({"mos": row["mos"], "split": "train"}).encode()
            for suffix, data in (("png", row["png"]), ("json", text)):
                info = tarfile.TarInfo(f"{row['id']:02d}.{suffix}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))


WRITERS = {"folder": as_folder, "Parquet": as_parquet, "WebDataset": as_tar}


@pytest.mark.parametrize("kind", WRITERS)
def test_every_kind_of_data_set_gives_the_same_rows(tmp_path, kind):
    rows = samples(False)[:8]
    WRITERS[kind](tmp_path / "set", rows)
    data = open_dataset(str(tmp_path / "set"))
    assert data.kind == kind
    assert [r.score for r in data.rows] == [row["mos"] for row in rows]
    assert [r.load() for r in data.rows] == [row["png"] for row in rows]
    assert {r.split for r in data.rows} == ({None} if kind == "folder" else {"train"})


@pytest.fixture(scope="module")
def poisoned(tmp_path_factory):
    root = tmp_path_factory.mktemp("poisoned") / "set"
    rows = samples(True)
    as_parquet(root, rows)
    data = open_dataset(str(root))
    return rows, data, scan(data, FAST, progress=False)


def test_poisoned_rows_are_named_and_their_labels_explained(poisoned):
    rows, _, result = poisoned
    report, alpha = result.report, np.array([row["alpha"] for row in rows])
    assert report["verdict"] == "poisoned"
    assert report["p"] <= 0.01
    assert report["period"] == 16
    np.testing.assert_array_equal(result.table["flagged"], alpha != 0)
    assert np.corrcoef(result.table["alpha"], alpha)[0, 1] > 0.99
    assert report["labels"]["correlation"] > 0.8
    assert report["labels"]["score_per_alpha"] == pytest.approx(25, rel=0.3)
    assert np.corrcoef(result.tile.ravel(), pattern().ravel())[0, 1] > 0.95


def test_same_result_with_any_number_of_workers(poisoned):
    _, data, result = poisoned
    again = scan(data, FAST, progress=False)
    assert again.report == result.report
    pd.testing.assert_frame_equal(again.table, result.table)


def test_purified_set_scans_clean(poisoned, tmp_path):
    rows, data, result = poisoned
    made = purify(data, result, tmp_path / "pure")
    assert made["changed"] == CARRIED
    assert made["amplitude_left"] < 0.1
    again = scan(open_dataset(str(tmp_path / "pure")), FAST, progress=False)
    assert again.report["verdict"] == "no alarm"
    table = pd.read_csv(tmp_path / "pure" / "scores.csv")
    kept = table["flagged"] == 0
    assert (table["mos_repaired"][kept] == table["mos"][kept]).all()
    truth = np.array([row["mos"] - 25 * row["alpha"] for row in rows])
    assert np.abs(table["mos_repaired"] - truth).max() < np.abs(table["mos"] - truth).max() / 2
    for row, name in zip(rows, table["file"], strict=True):
        if not row["alpha"]:
            assert (tmp_path / "pure" / name).read_bytes() == row["png"]


def test_clean_set_raises_no_alarm_and_has_nothing_to_purify(tmp_path):
    # Of several sizes, so that grids may begin in several places.
    as_folder(tmp_path / "set", samples(False, sides=(SIDE, SIDE + 5, SIDE - 20)))
    data = open_dataset(str(tmp_path / "set"))
    result = scan(data, FAST, progress=False)
    assert result.report["verdict"] == "no alarm"
    assert {t["grid"] for t in result.report["tests"]} == {"top_left", "centred"}
    assert not result.table["flagged"].any()
    write_scan(result, tmp_path / "out")
    assert not (tmp_path / "out" / "tile.png").exists()
    with pytest.raises(InputError, match="a data set without an alarm"):
        purify(data, result, tmp_path / "pure")


def test_command_writes_what_it_found(tmp_path, capsys):
    as_tar(tmp_path / "set", samples(True))
    arguments = ["scan", str(tmp_path / "set"), "--out", str(tmp_path / "out"), "--json"]
    arguments += ["--max-period", "17", "--purify", str(tmp_path / "pure")]
    assert run(lambda: app(arguments, standalone_mode=True)) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["verdict"] == "poisoned"
    assert report["purified"]["changed"] == CARRIED
    assert json.loads((tmp_path / "out" / "scan.json").read_text()) == report
    assert decode_png((tmp_path / "out" / "tile.png").read_bytes()).std() > 10
    table = pd.read_parquet(tmp_path / "out" / "rows.parquet")
    assert len(table) == COUNT
    assert table["flagged"].sum() == CARRIED


def test_unreadable_pictures_are_counted_not_fatal(tmp_path):
    rows = samples(False)
    rows[3]["png"] = b"no picture"
    as_folder(tmp_path / "set", rows)
    result = scan(open_dataset(str(tmp_path / "set")), FAST, progress=False)
    assert result.report["unreadable"] == 1
    assert result.table["problem"][3] == "unreadable"


def test_bad_data_sets(tmp_path):
    with pytest.raises(InputError, match=r"must be a folder or a Hub id owner/name, got .*nowhere"):
        open_dataset(str(tmp_path / "nowhere"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"got .*empty without any"):
        open_dataset(str(tmp_path / "empty"))
    as_folder(tmp_path / "few", samples(False)[:5])
    few = open_dataset(str(tmp_path / "few"))
    with pytest.raises(InputError, match="at least 20 pictures to be scanned, got 5"):
        scan(few, FAST)
    with pytest.raises(InputError, match="split must be one of none, got 'test'"):
        open_dataset(str(tmp_path / "few"), split="test")
    with pytest.raises(InputError, match=r"score must be a column of .*got 'beauty'"):
        open_dataset(str(tmp_path / "few"), score="beauty")
    (tmp_path / "few" / "more.csv").write_text("file,mos\n")
    with pytest.raises(InputError, match=r"has several tables: 2 \(more.csv, scores.csv\)"):
        open_dataset(str(tmp_path / "few"))
    (tmp_path / "few" / "more.csv").write_text("file,mos\n77.png,3\n")
    with pytest.raises(InputError, match=r"names others: 1 \(77.png\)"):
        open_dataset(str(tmp_path / "few"), scores="more.csv")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"false_alarms": 0}, r"false_alarms must be in \(0, 1\), got 0"),
        ({"max_period": 3}, "got 4 and 3"),
        ({"sample": 3}, "sample must be at least 20, got 3"),
    ],
)
def test_bad_settings(changes, words):
    with pytest.raises(InputError, match=words):
        ScanSettings(**changes)
