import hashlib
import json
import math
import re

import numpy as np
import pyarrow.parquet as pq
import pytest
import tiny
import yaml
from datasets import Features, Image, List, Value, load_dataset
from test_hub import stated

from pipelines import cli
from pipelines.annotation.labels import human_labels
from pipelines.annotation.votes import REPLACED, write_votes
from pipelines.errors import InputError, StageError
from pipelines.params import Annotate
from pipelines.publishing.checks import check
from pipelines.publishing.croissant import published_card
from pipelines.reports.tables import annotation_table
from pipelines.stages.annotate import run_annotate
from pipelines.stages.curate import run_curate
from pipelines.stages.package import run_package
from pipelines.storage.images import decode_png
from pipelines.storage.manifest import Manifest
from pipelines.storage.records import SPLITS, AnnotatedSample
from pipelines.storage.shards import ShardIndex
from pipelines.storage.webdataset_export import export_webdataset

LOOSE = {"curate__phash_distance": 0, "curate__colour_distance": 0, "annotate__bootstrap": 50}


@pytest.fixture(scope="module")
def curated(project, tmp_path_factory) -> tiny.Project:
    """The tiny project with candidates. Not to be changed: copy it."""
    own = project.copy(tmp_path_factory.mktemp("curated") / "p")
    run_curate(own.params(**LOOSE), own.layout, progress=False)
    return own


@pytest.fixture
def own(curated, tmp_path) -> tiny.Project:
    return curated.copy(tmp_path / "p")


def candidates(project) -> list[dict]:
    return pq.read_table(project.layout.candidates / "metadata.parquet").to_pylist()


def labels(project) -> dict[str, dict]:
    rows = pq.read_table(project.layout.labels / "metadata.parquet").to_pylist()
    return {row["key"]: row for row in rows}


def vote(key, annotator, score, number, **more) -> dict:
    row = {
        "task": key,
        "key": key,
        "kind": "item",
        "expected": None,
        "left": "original",
        "annotator": annotator,
        "score": score,
        "verdict": "degraded",
        "artefacts": [],
        "seconds": 3.0,
        "created_at": "2026-01-01T00:00:00Z",
        "server": "s",
        "task_id": number,
        "annotation_id": number,
        "reason": None,
    }
    return {**row, **more}


def write(project, votes) -> None:
    rows = [{**v, "task_id": i, "annotation_id": i} for i, v in enumerate(votes)]
    write_votes(project.layout.votes, rows, {})


def test_votes_become_opinion_scores(own):
    keys = [row["key"] for row in candidates(own)]
    assert len(keys) >= 3
    few, tie = keys[0], keys[1]
    votes = [vote(few, "1", 5.0, 0), vote(few, "2", 5.0, 0)]
    votes.append(vote(few, "3", 55.0, 0, reason="score 55 is not in [0, 10]"))
    votes += [
        vote(key, str(who), 2.0 + 1.5 * who, 0, verdict=("enhanced", "degraded", "degraded")[who])
        for key in keys[1:]
        for who in range(3)
    ]
    votes.append(vote(tie, "9", 5.0, 0, verdict="enhanced"))
    votes.append(vote("f" * 16, "1", 5.0, 0))
    votes.append(vote(keys[1], "1", 9.0, 0, kind="repeat", task=f"{keys[1]}-repeat"))
    votes.append(vote(keys[1], "1", 9.0, 0, kind="gold", expected="degraded"))
    write(own, votes)
    report = run_annotate(own.params(**LOOSE), own.layout)
    found = labels(own)
    assert set(found) == set(keys[1:])
    rejected = pq.read_table(own.layout.labels / "rejected.parquet").to_pylist()
    assert [(r["key"], r["reason"]) for r in rejected] == [(few, "2 votes, fewer than 3")]
    clean = {row["key"]: row["mos"] for row in candidates(own)}
    row = found[keys[2]]
    assert row["mos"] == pytest.approx(3.5)
    assert row["mos_std"] == pytest.approx(1.5)
    assert row["mos_ci95"] == pytest.approx(4.302653 * 1.5 / math.sqrt(3), rel=1e-5)
    assert (row["n_votes"], row["verdict"], row["label_source"]) == (3, "degraded", "human")
    assert row["mos_clean"] == clean[keys[2]]
    assert found[tie]["verdict"] == "unchanged"  # two and two
    assert (report["in"], report["kept"], report["rejected"]) == (len(keys), len(keys) - 1, 1)
    assert report["votes"]["invalid"] == {"score 55 is not in [0, 10]": 1}
    assert report["votes"]["of_no_candidate"] == 1
    one = next(a for a in report["annotators"] if a["annotator"] == "1")
    assert (one["gold_accuracy"], one["repeat_difference"]) == (1.0, 5.5)
    assert Manifest.read(own.layout.labels).scale.label_source == "human"
    text = (own.layout.reports / "annotation.json").read_text()
    assert json.loads(text) == report


def test_scores_are_laid_on_the_scale_of_the_photographs(own):
    path = own.layout.candidates / "metadata.parquet"
    table = pq.read_table(path)
    at = table.schema.get_field_index("score_high")
    hundred = table["score_high"].to_numpy() * 10
    pq.write_table(table.set_column(at, table.schema.field(at), [hundred]), path)
    keys = [row["key"] for row in candidates(own)]
    write(own, [vote(key, str(who), 6.0 + who, 0) for key in keys for who in range(3)])
    run_annotate(own.params(**LOOSE), own.layout)
    assert {round(row["mos"], 6) for row in labels(own).values()} == {70.0}
    assert {round(row["mos_std"], 6) for row in labels(own).values()} == {10.0}


def test_random_annotator_is_screened_out(curated):
    row = candidates(curated)[0]
    many = [{**row, "key": f"{i:016x}"} for i in range(100)]
    rng = np.random.default_rng(0)
    truth = rng.uniform(2, 8, 100)
    votes = []
    for i, image in enumerate(many):
        for who in range(10):
            value = rng.uniform(0, 10) if who == 7 else truth[i] + rng.normal(0, 0.8)
            votes.append(vote(image["key"], str(who), float(np.clip(value, 0, 10)), 0))
    settings = Annotate(bootstrap=50)
    kept, lost, report = human_labels(many, votes, settings, 0)
    assert (len(kept), lost) == (100, [])
    screened = {a["annotator"]: a["screened"] for a in report["annotators"] if a["screened"]}
    assert screened == {"7": "ITU-R BT.500"}
    assert {row["n_votes"] for row in kept} == {9}
    assert report["votes"]["screened_out"] == 100
    _, _, off = human_labels(many, votes, Annotate(bootstrap=50, screen=False), 0)
    assert off["agreement"]["icc_2k"]["value"] < report["agreement"]["icc_2k"]["value"]
    for found in report["agreement"].values():
        assert found["low"] < found["value"] < found["high"]


def test_one_person_counts_once_on_an_image(own):
    key, *rest = [row["key"] for row in candidates(own)]
    early, late = "2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z"
    votes = [
        vote(key, "1", 9.0, 0, server="http://a project 1", created_at=late),
        vote(key, "1", 1.0, 0, server="http://a project 1", created_at=early),  # another task
        vote(key, "1", 1.0, 0, server="http://a project 2", created_at=early),
        vote(key, "1", 55.0, 0, server="http://a project 2", reason="score 55 is not in [0, 10]"),
        vote(key, "2", 5.0, 0, server="http://a project 2"),
        vote(key, "1", 1.0, 0, server="http://b project 1"),  # somebody else
    ]
    votes += [vote(k, w, 5.0, 0, server="http://a project 1") for k in rest for w in "123"]
    write(own, votes)
    report = run_annotate(own.params(**LOOSE), own.layout)
    assert labels(own)[key]["n_votes"] == 3
    assert labels(own)[key]["mos"] == pytest.approx((9 + 5 + 1) / 3)
    assert report["votes"]["invalid"] == {REPLACED: 2, "score 55 is not in [0, 10]": 1}
    assert report["votes"]["in"] == report["votes"]["valid"] + 3
    given = {a["annotator"]: a["votes"] for a in report["annotators"]}
    every = {f"{who} of http://a": len(rest) + (who < 3) for who in (1, 2, 3)}
    assert given == {**every, "1 of http://b": 1}


@pytest.mark.parametrize(("panel", "judged"), [(5, 0), (6, 7)])
def test_report_says_how_many_images_bt500_could_judge(curated, panel, judged):
    row = candidates(curated)[0]
    many = [{**row, "key": f"{i:016x}"} for i in range(8)]
    votes = [vote(m["key"], str(who), 5.0, 0) for m in many[:7] for who in range(panel)]
    _, _, report = human_labels(many, votes, Annotate(bootstrap=0), 0)
    assert report["screening"] == {"on": True, "images": 7, "bt500_images": judged}
    table = annotation_table({"in": 8, "kept": 7, "rejected": 1, "verdicts": {}, **report})
    assert f"ITU-R BT.500 could judge {judged} of 7 images" in table


def test_without_votes_labels_are_simulated_and_say_so(own):
    params = own.params(**LOOSE, annotate__labels="simulated")
    report = run_annotate(params, own.layout)
    assert "SSIM" in report["model"]
    for row in labels(own).values():
        assert (row["label_source"], row["n_votes"]) == ("simulated", 0)
        expected = row["mos_clean"] * (1 - math.sqrt(1 - row["ssim"]))
        assert row["mos"] == pytest.approx(expected)
        assert row["verdict"] == ("degraded" if row["mos_clean"] - expected > 0.5 else "unchanged")


def test_without_votes_and_simulation_it_says_what_to_do(own):
    with pytest.raises(InputError, match="run `veneer annotate pull`"):
        run_annotate(own.params(**LOOSE), own.layout)


def test_too_few_votes_for_anything(own):
    write(own, [vote(candidates(own)[0]["key"], "1", 5.0, 0)])
    with pytest.raises(StageError, match=r"annotate\.min_votes is 3, and 1 votes count"):
        run_annotate(own.params(**LOOSE), own.layout)


# package and export


@pytest.fixture(scope="module")
def packaged(curated, tmp_path_factory) -> tiny.Project:
    """The tiny project with datasets/3ae. Not to be changed."""
    own = curated.copy(tmp_path_factory.mktemp("packaged") / "p")
    params = own.params(**LOOSE, annotate__labels="simulated", package__shard_size=2)
    run_annotate(params, own.layout)
    run_package(params, own.layout)
    return own


@pytest.mark.parametrize("streaming", [False, True])
def test_load_dataset_opens_it(packaged, tmp_path, streaming):
    folder = packaged.layout.threeae
    data = load_dataset(str(folder), streaming=streaming, cache_dir=str(tmp_path))
    front = yaml.safe_load((folder / "README.md").read_text().split("---")[1])
    declared = Features._from_yaml_list(front["dataset_info"]["features"])
    assert list(declared) == ["adversarial", "clean", *AnnotatedSample.model_fields]
    types = {"adversarial": Image(), "weights": List(Value("float64")), "verdict": Value("string")}
    types |= {"mos": Value("float64"), "n_votes": Value("int64"), "photograph": Value("string")}
    assert {name: declared[name] for name in types} == types
    expected = labels(packaged)
    clean = ShardIndex(packaged.layout.clean)
    seen = {}
    for split, rows in data.items():
        assert rows.features == declared
        # The files say the same without the card.
        files = {split: str(folder / "data" / f"{split}-*.parquet")}
        alone = load_dataset("parquet", data_files=files, split=split, streaming=True)
        assert alone.features == declared
        for row in rows:
            assert row["split"] == split
            seen[row["key"]] = row
            image = np.asarray(row["clean"].convert("RGB"))
            stored = decode_png(clean.image_bytes(row["parent_key"]))
            np.testing.assert_array_equal(image, stored)
            changed = np.asarray(row["adversarial"].convert("RGB")).astype(int)
            assert np.abs(changed - image).max() / 255 == pytest.approx(row["linf"], abs=1e-6)
    assert seen.keys() == expected.keys()
    for key, row in seen.items():
        for field in AnnotatedSample.model_fields:
            assert row[field] == expected[key][field]


def test_no_photograph_is_in_two_splits(packaged):
    rows = list(labels(packaged).values())
    splits = {}
    for row in rows:
        splits.setdefault(row["photograph"], set()).add(row["split"])
    assert max(map(len, splits.values())) == 1
    assert len({row["split"] for row in rows}) == min(3, len(splits))


def test_card_says_what_is_in_it(packaged):
    text = (packaged.layout.threeae / "README.md").read_text()
    rows = list(labels(packaged).values())
    assert "Adversarial data" in text
    assert "scores are simulated" in text
    assert f"Label source of the rows: simulated {len(rows)}." in text
    degraded = sum(row["verdict"] == "degraded" for row in rows)
    line = next(line for line in text.splitlines() if line.startswith("| degraded |"))
    assert f"| {degraded} | {100 * degraded / len(rows):.1f} % |" in line
    assert (packaged.layout.threeae / "samples.jpg").stat().st_size < 100_000
    assert "![Pairs of a photograph and its adversarial example](samples.jpg)" in text
    assert f"{len(rows)} samples came in, {len(rows)} were kept, 0 were rejected" in text
    splits = [split for split in SPLITS if any(row["split"] == split for row in rows)]
    assert len(splits) > 1
    for split in splits:
        assert f"| {split} | {sum(row['split'] == split for row in rows)} |" in text.splitlines()
    for field in ("verdict", "victim", "mode"):
        assert f"| {field} | {' | '.join(splits)} | all | share |" in text
        for value in {row[field] for row in rows}:
            own = [row["split"] for row in rows if row[field] == value]
            counts = " | ".join(str(own.count(split)) for split in splits)
            share = f"{100 * len(own) / len(rows):.1f} %"
            assert f"| {value} | {counts} | {len(own)} | {share} |" in text.splitlines()


def test_published_card_shows_pictures_that_are_published(packaged, tmp_path):
    folder = stated(packaged.copy(tmp_path / "p").layout.threeae, label_source="simulated")
    publishable = check(folder, allow_simulated=True)
    card = published_card(publishable, (folder / "README.md").read_text(), "0")
    assert re.findall(r"!\[[^\]]+\]\((.+?)\)", card) == ["samples.jpg"]
    assert "samples.jpg" in publishable.files
    (folder / "samples.jpg").unlink()
    with pytest.raises(InputError, match=r"its card shows samples\.jpg, which is not published"):
        check(folder, allow_simulated=True)


def test_a_folder_with_a_manifest_has_its_strip(packaged, tmp_path):
    own = packaged.copy(tmp_path / "p")
    params = own.params(**LOOSE, annotate__labels="simulated")
    strip = own.layout.threeae / "samples.jpg"
    strip.unlink()
    strip.mkdir()  # no file can take its place
    with pytest.raises(OSError, match="samples"):
        run_package(params, own.layout)
    assert not (own.layout.threeae / "manifest.json").exists()
    strip.rmdir()
    run_package(params, own.layout)
    assert strip.stat().st_mtime_ns <= (own.layout.threeae / "manifest.json").stat().st_mtime_ns


def test_package_gives_the_same_bytes_again(packaged, tmp_path):
    other = packaged.copy(tmp_path / "q")
    before = {p.name: p.read_bytes() for p in (other.layout.threeae / "data").iterdir()}
    params = other.params(**LOOSE, annotate__labels="simulated", package__shard_size=2)
    run_annotate(params, other.layout)
    run_package(params, other.layout)
    assert before == {p.name: p.read_bytes() for p in (other.layout.threeae / "data").iterdir()}
    assert len(before) > 1


def test_export_webdataset(packaged, tmp_path):
    shards = export_webdataset(packaged.layout.threeae, tmp_path / "out")
    rows = labels(packaged)
    assert sum(shard.samples for shard in shards) == len(rows)
    files = {"data": str(tmp_path / "out" / "data" / "*.tar")}
    data = load_dataset(
        "webdataset", data_files=files, split="data", cache_dir=str(tmp_path / "cache")
    )
    clean = ShardIndex(packaged.layout.clean)
    assert {row["json"]["key"] for row in data} == rows.keys()
    for row in data:
        expected = rows[row["json"]["key"]]
        assert row["json"]["mos"] == pytest.approx(expected["mos"])
        stored = decode_png(clean.image_bytes(expected["parent_key"]))
        np.testing.assert_array_equal(np.asarray(row["clean.png"].convert("RGB")), stored)
    again = export_webdataset(packaged.layout.threeae, tmp_path / "again")
    assert [shard.sha256 for shard in again] == [shard.sha256 for shard in shards]


def test_export_leaves_nothing_of_an_earlier_one(packaged, tmp_path):
    out = tmp_path / "out"
    export_webdataset(packaged.layout.threeae, out)
    (out / "data" / "train-00099.tar").write_bytes(b"of a larger set")
    shards = export_webdataset(packaged.layout.threeae, out)
    assert {p.name for p in (out / "data").iterdir()} == {shard.name for shard in shards}


def test_export_keeps_the_shards_of_a_data_set(packaged, tmp_path):
    clean = packaged.copy(tmp_path / "p").layout.clean
    before = sorted((clean / "data").iterdir())
    with pytest.raises(InputError, match=r"out must be no data set itself, got .*clean"):
        export_webdataset(packaged.layout.threeae, clean)
    assert sorted((clean / "data").iterdir()) == before


def test_export_command(packaged, tmp_path, capsys):
    out = tmp_path / "out"
    command = ["export", str(packaged.layout.threeae), str(out), "--format", "webdataset"]
    assert cli.run(lambda: cli.app([*command, "--json"])) == 0
    printed = json.loads(capsys.readouterr().out)["shards"]
    found = {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in (out / "data").iterdir()}
    assert {shard["name"]: shard["sha256"] for shard in printed} == found
    count = len(labels(packaged))
    assert sum(shard["samples"] for shard in printed) == count
    assert Manifest.model_validate_json((out / "source-manifest.json").read_text()) == (
        Manifest.read(packaged.layout.threeae)
    )
    assert cli.run(lambda: cli.app(command)) == 0
    assert capsys.readouterr().out == f"{out}: {count} samples in {len(found)} shards\n"


def test_export_refuses_other_folders_and_formats(packaged, tmp_path, capsys):
    with pytest.raises(InputError, match="must be a data set of Parquet files"):
        export_webdataset(packaged.layout.clean, tmp_path / "out")
    command = ["export", str(packaged.layout.threeae), str(tmp_path / "out")]
    assert cli.run(lambda: cli.app([*command, "--format", "zip"])) == 2
    assert "format must be webdataset, got 'zip'" in capsys.readouterr().err


def test_commands(curated, tmp_path, capsys):
    own = curated.copy(tmp_path / "p")
    own.params(**LOOSE, annotate__labels="simulated")
    places = ["--params", str(own.file), "--root", str(own.root)]
    for command in (["curate", "--dry-run"], ["annotate"], ["package"]):
        assert cli.run(lambda c=command: cli.app([*c, *places])) == 0
        assert "kept" in (out := capsys.readouterr().out) or "labelled" in out
