import json
from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny

from pipelines import cli
from pipelines.curation.hashes import hash_image
from pipelines.errors import InputError
from pipelines.stages.curate import run_curate
from pipelines.storage.images import decode_png
from pipelines.storage.manifest import Manifest
from pipelines.storage.shards import ShardIndex

LOOSE = {"curate__phash_distance": 0, "curate__colour_distance": 0}


@pytest.fixture
def own(project, tmp_path) -> tiny.Project:
    return project.copy(tmp_path / "p")


def tables(project):
    folder = project.layout.candidates
    return tuple(
        pq.read_table(folder / f"{n}.parquet").to_pandas() for n in ("metadata", "rejected")
    )


def test_every_candidate_is_kept_or_rejected_with_a_reason(own):
    report = run_curate(own.params(**LOOSE), own.layout, progress=False)
    kept, rejected = tables(own)
    before = Counter(
        record["source_id"]
        for mode in tiny.MODES
        for record in ShardIndex(own.layout.examples("net", mode)).records.values()
    )
    assert Counter(kept.source_id) + Counter(rejected.source_id) == before
    assert (report["in"], report["kept"]) == (before.total(), len(kept))
    assert sum(report["reasons"].values()) == report["rejected"] == len(rejected)
    assert rejected.reason.str.len().min() > 3
    assert (kept.score_adv > kept.score_clean).all()
    manifest = Manifest.read(own.layout.candidates)
    assert manifest.counts.kept == len(kept)
    assert kept.groupby("photograph").split.nunique().max() == 1
    assert json.loads((own.layout.reports / "curation.json").read_text()) == report


def test_dry_run_tells_the_same_and_writes_nothing(own):
    params = own.params(**LOOSE)
    dry = run_curate(params, own.layout, dry_run=True, progress=False)
    assert not own.layout.candidates.exists()
    assert not (own.layout.reports / "curation.json").exists()
    assert run_curate(params, own.layout, progress=False) == dry


def test_dry_run_command_prints_what_the_run_writes(own, capsys):
    own.params(**LOOSE)
    places = ["--params", str(own.file), "--root", str(own.root)]
    assert cli.run(lambda: cli.app(["curate", "--dry-run", *places])) == 0
    lines = capsys.readouterr().out.splitlines()
    assert cli.run(lambda: cli.app(["curate", "--dry-run", "--json", *places])) == 0
    report = json.loads(capsys.readouterr().out)
    assert not own.layout.candidates.exists()
    assert run_curate(own.params(**LOOSE), own.layout, progress=False) == report
    kept, rejected = tables(own)
    splits = kept.split.value_counts()
    counts = ", ".join(f"{name} {splits.get(name, 0)}" for name in ("train", "validation", "test"))
    assert lines[0] == f"{report['in']} in, {len(kept)} kept ({counts}), {len(rejected)} rejected"
    not_moved = int((rejected.reason == "score not moved in the direction of the attack").sum())
    assert f"| score not moved | {not_moved} |" in lines
    for mode in tiny.MODES:
        own_kept = kept[kept["mode"] == mode]
        bins = np.bincount((own_kept.score_adv.clip(0, 9.99)).astype(int), minlength=10)
        count = len(ShardIndex(own.layout.examples("net", mode)).records)
        row = f"| net | {mode} | {count} | {len(own_kept)} | {' '.join(map(str, bins))} |"
        assert row in lines


def test_unfinished_folders_are_named(own, capsys):
    aes = own.root / "datasets" / "aes"
    (aes / "net-restricted" / "manifest.json").unlink()
    (aes / "other-unrestricted").mkdir()
    (aes / "notes.txt").write_text("no folder")
    own.params(**LOOSE)
    places = ["--params", str(own.file), "--root", str(own.root)]
    assert cli.run(lambda: cli.app(["curate", "--dry-run", *places])) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.endswith("not finished them: net-restricted, other-unrestricted")
    report = run_curate(own.params(**LOOSE), own.layout, progress=False)
    assert report["unfinished"] == ["net-restricted", "other-unrestricted"]
    assert json.loads((own.layout.reports / "curation.json").read_text()) == report


def test_of_an_attack_that_lowers_scores_what_fell_is_kept(own):
    """Both scores of one mode change places, as if the attack had lowered them."""
    params = own.params(**LOOSE)
    run_curate(params, own.layout, progress=False)
    before, _ = tables(own)
    path = own.layout.examples("net", "unrestricted") / "metadata.parquet"
    table = pq.read_table(path).to_pandas()
    table["score_clean"], table["score_adv"] = table["score_adv"], table["score_clean"]
    table["direction"] = "lower"
    schema = pq.read_schema(path)
    pq.write_table(pa.Table.from_pandas(table, schema, preserve_index=False), path)
    run_curate(params, own.layout, progress=False)
    kept, rejected = tables(own)
    assert set(kept.key) == set(before.key)
    fell = kept[kept.direction == "lower"]
    assert len(fell) > 0
    assert (fell.score_adv < fell.score_clean).all()
    rose = table[table.score_adv > table.score_clean].key
    reasons = rejected.set_index("key").reason
    assert (reasons[rose] == "score not moved in the direction of the attack").all()


def test_same_bytes_with_two_workers_and_again(own, project, tmp_path):
    other = project.copy(tmp_path / "q")
    run_curate(own.params(**LOOSE), own.layout, progress=False)
    run_curate(other.params(**LOOSE, engine__workers=2), other.layout, progress=False)
    files = sorted(own.layout.candidates.glob("*.parquet"))
    assert len(files) == 2
    for file in files:
        assert file.read_bytes() == (other.layout.candidates / file.name).read_bytes()


def test_a_shard_is_hashed_once(own, monkeypatch):
    params = own.params(**LOOSE)
    run_curate(params, own.layout, dry_run=True, progress=False)
    monkeypatch.setattr("pipelines.curation.hashes.hash_image", lambda pixels: 1 / 0)
    run_curate(params, own.layout, progress=False)


def test_hashes_of_a_picture_and_of_its_changes():
    rng = np.random.default_rng(0)
    picture = np.asarray(tiny.colourful(3).resize((128, 96)))
    shape, colour = hash_image(picture)
    grain = np.clip(picture + rng.normal(0, 2, picture.shape), 0, 255).astype(np.uint8)
    near_shape, near_colour = hash_image(grain)
    assert (shape ^ near_shape).bit_count() <= 4
    assert (colour ^ near_colour).bit_count() <= 3
    other, _ = hash_image(np.asarray(tiny.colourful(4).resize((128, 96))))
    assert (shape ^ other).bit_count() > 10
    _, swapped = hash_image(picture[..., ::-1].copy())  # red and blue exchanged
    assert (colour ^ swapped).bit_count() > 3


def test_without_examples_it_says_what_to_run(own):
    import shutil

    shutil.rmtree(own.root / "datasets" / "aes")
    with pytest.raises(InputError, match="run `veneer attack` first"):
        run_curate(own.params(), own.layout)


def test_pictures_carry_their_photograph(project):
    for record in ShardIndex(project.layout.clean).records.values():
        assert record["photograph"] == record["source_id"]
    index = ShardIndex(project.layout.examples("net", "restricted"))
    assert all(r["photograph"] == r["source_id"] for r in index.records.values())
    key = next(iter(index.records))
    assert decode_png(index.image_bytes(key)).ndim == 3
