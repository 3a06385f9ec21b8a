import csv
import json

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import tiny

from attackers.da3.filters import FILTER_NAMES
from pipelines.errors import InputError, StageError
from pipelines.stages.evaluate import robustness, run_evaluate
from pipelines.storage.images import decode_png, encode_png
from pipelines.storage.records import AESample
from pipelines.storage.shards import read_shard, write_shard
from victims.registry import load_victim


def table_of(project: tiny.Project, mode: str) -> pd.DataFrame:
    return pd.read_parquet(project.layout.examples("net", mode) / "metadata.parquet")


@pytest.mark.parametrize("mode", tiny.MODES)
def test_metrics_are_those_of_the_table(project, results, mode):
    row, table = results["evaluate"]["net"][mode], table_of(project, mode)
    x, y = table["score_clean"], table["score_adv"]
    poor = x <= 5.5  # 0.55 of the scale
    assert row["n"] == len(table) == 5
    assert row["rasr"] == pytest.approx(100 * (y > x).mean())
    assert row["msi"] == pytest.approx((y - x).mean())
    basr = 100 * (y[poor] > 5.5).mean() if poor.any() else None
    assert row["basr"] == pytest.approx(basr)
    for name in ("psnr", "ssim", "linf", "queries"):
        assert row[name] == pytest.approx(table[name].mean())
    assert row["psnr_min"] == table["psnr"].min()
    top = [sorted(range(14), key=lambda i: -w[i])[:2] for w in table["weights"]]
    shares = [100 * np.mean([i in pair for pair in top]) for i in range(14)]
    csv_rows = pd.read_csv(project.layout.reports / "filters.csv").query("mode == @mode")
    assert list(csv_rows["filter"]) == list(FILTER_NAMES)
    assert list(csv_rows["top2"]) == pytest.approx(shares)
    assert row["top_filters"].split()[0] == FILTER_NAMES[int(np.argmax(shares))]
    assert 0 <= row["score_error"] <= 1e-3


def test_attack_reach_is_that_of_the_history(project, results):
    with (project.layout.attacker("net", "restricted") / "history.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    best = max(float(row["rasr"]) for row in rows)
    first = next(row for row in rows if float(row["rasr"]) >= best - 0.5)
    row = results["evaluate"]["net"]["restricted"]
    assert row["art_steps"] == float(first["steps"])
    assert row["art_hours"] == float(first["hours"])
    assert row["art_calls"] == float(first["calls"])


def test_reports_are_json_and_tables(project, results):
    reports = project.layout.reports
    assert json.loads((reports / "robustness.json").read_text()) == results["evaluate"]
    filters = pd.read_csv(reports / "filters.csv")
    assert len(filters) == 2 * 14
    assert filters.groupby("mode")["top2"].sum().tolist() == pytest.approx([200, 200])
    curves = pd.read_csv(reports / "attack_curves.csv")
    assert {"victim", "mode", "steps", "rasr"} <= set(curves.columns)
    assert len(curves) == 2 * 2  # two modes, before and after one epoch


@pytest.mark.parametrize("direction", ["raise", "lower"])
@pytest.mark.parametrize("by", ["score", "mos"])
def test_hand_made_scores(project, tmp_path, direction, by):
    table = pq.read_table(project.layout.examples("net", "restricted") / "metadata.parquet")
    rows = table.to_pylist()
    given = [(2.0, 6.0, 7.0), (4.0, 3.0, 2.0), (5.0, 5.6, 3.0), (5.5, 5.5, 9.0), (8.0, 4.0, 1.0)]
    for row, (x, y, mos) in zip(rows, given, strict=True):
        row |= {"score_clean": x, "score_adv": y, "mos": mos, "direction": direction}
    pq.write_table(
        type(table).from_pylist(rows, schema=table.schema), tmp_path / "metadata.parquet"
    )
    victim = load_victim(project.layout.victim("net"))
    got = robustness(tmp_path, victim, [], by)
    wanted = {
        # raise: poor are those at most 5.5, hits rise above it; lower: the other way round.
        ("raise", "score"): 100 * 2 / 4,
        ("raise", "mos"): 100 * 1 / 3,
        ("lower", "score"): 100 * 1 / 1,
        ("lower", "mos"): 100 * 1 / 2,
    }[direction, by]
    assert got["basr"] == pytest.approx(wanted)
    sign = 1 if direction == "raise" else -1
    assert got["msi"] == pytest.approx(sign * (4 - 1 + 0.6 + 0 - 4) / 5)
    assert got["rasr"] == pytest.approx(40)  # two up, two down, one as it was


def test_what_has_no_denominator_is_null(project, tmp_path):
    table = pq.read_table(project.layout.examples("net", "restricted") / "metadata.parquet")
    rows = [{**row, "score_clean": 9.0, "score_adv": 9.5} for row in table.to_pylist()]
    pq.write_table(
        type(table).from_pylist(rows, schema=table.schema), tmp_path / "metadata.parquet"
    )
    victim = load_victim(project.layout.victim("net"))
    with pytest.warns(UserWarning, match="BASR is NaN"):
        row = robustness(tmp_path, victim, [])
    assert (row["basr"], row["art_hours"], row["art_steps"]) == (None, None, None)
    assert "NaN" not in json.dumps(row)


def tampered(project: tiny.Project, tmp_path, change) -> tiny.Project:
    """A copy in which `change` has turned one (record, PNG) of a shard into another."""
    other = project.copy(tmp_path / "p")
    path = other.layout.examples("net", "restricted") / "data" / "test-00001.tar"
    members = list(read_shard(path))
    members[0] = change(*members[0])
    path.unlink()  # a hard link: the work folder keeps the true one
    write_shard(path, [(AESample(**row), image) for row, image in members])
    return other


def other_picture(row, image):
    return row, encode_png(255 - decode_png(image))


def other_score(row, image):
    return {**row, "score_adv": row["score_adv"] + 0.05}, image


def damaged(row, image):
    return row, image[:200] + bytes(40) + image[240:]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (other_picture, "must be the one that was stored"),
        (damaged, "must be the one that was stored"),
        (other_score, "metadata.parquet in .* must list the scores of the shards"),
    ],
)
def test_tampering_with_a_shard_is_found(project, tmp_path, change, words):
    other = tampered(project, tmp_path, change)
    (other.layout.reports / "robustness.json").unlink()
    with pytest.raises(StageError, match=words):
        run_evaluate(other.params(), other.layout)
    assert not (other.layout.reports / "robustness.json").exists()


def rewrite_table(folder, change: float) -> None:
    path = folder / "metadata.parquet"
    table = pq.read_table(path)
    rows = table.to_pylist()
    rows[2]["score_adv"] += change
    pq.write_table(type(table).from_pylist(rows, schema=table.schema), path)


def test_tampering_with_the_table_is_found(project, tmp_path):
    other = project.copy(tmp_path / "p")
    rewrite_table(other.layout.examples("net", "restricted"), 0.5)
    with pytest.raises(StageError, match=r"metadata.parquet .* must list"):
        run_evaluate(other.params(), other.layout)


@pytest.mark.parametrize("change", [0.05, -0.5, float("nan")])
def test_a_score_that_is_not_the_victims_is_found(project, tmp_path, change):
    # In both places, so that only scoring again can tell.
    def changed(row, image):
        return {**row, "score_adv": row["score_adv"] + change}, image

    if change != change:
        with pytest.raises(ValueError, match="finite"):
            tampered(project, tmp_path, changed)
        return
    other = tampered(project, tmp_path, changed)
    folder = other.layout.examples("net", "restricted")
    rows = {r["key"]: r for p in (folder / "data").iterdir() for r, _ in read_shard(p)}
    table = pq.read_table(folder / "metadata.parquet")
    listed = [{**row, "score_adv": rows[row["key"]]["score_adv"]} for row in table.to_pylist()]
    pq.write_table(
        type(table).from_pylist(listed, schema=table.schema), folder / "metadata.parquet"
    )
    with pytest.raises(StageError, match=r"score_adv in .* must be what the stored file scores"):
        run_evaluate(other.params(), other.layout)


@pytest.mark.parametrize(
    ("missing", "words"),
    [
        ("datasets/clean", "run `veneer import` first"),
        ("models/victims/net", "run `veneer train_victim net` first"),
        ("datasets/aes/net-unrestricted", "run `veneer attack net unrestricted` first"),
        ("models/da3/net-unrestricted", "run `veneer attack` first"),
    ],
)
def test_inputs_that_are_not_there_name_their_command(project, tmp_path, missing, words):
    other = project.copy(tmp_path / "p")
    (other.root / missing).rename(tmp_path / "elsewhere")
    with pytest.raises(InputError, match=words):
        run_evaluate(other.params(), other.layout)
