import errno
import json
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest
import tiny
from test_shards import members

from pipelines.errors import InputError, StageError
from pipelines.storage import workfolder
from pipelines.storage.cards import Card
from pipelines.storage.manifest import Counts, Manifest, ScaleInfo
from pipelines.storage.records import CleanSample, arrow_schema
from pipelines.storage.rejects import Reject
from pipelines.storage.workfolder import WorkFolder, check_out, publish

SCALE = ScaleInfo(low=0, high=100, label_source="human", license="CC0", attribution="Nobody.")
NAMES = ["test-00000.tar", "train-00000.tar"]


def work_folder(root: Path, fingerprint: str = "f" * 64, artefact: str = "clean") -> WorkFolder:
    work = WorkFolder(root / "work", "import", artefact, fingerprint)
    work.create()
    return work


def filled(root: Path, **options: str) -> WorkFolder:
    work = work_folder(root, **options)
    work.write("train-00000.tar", members(4), [Reject("bad.png", None, "truncated")])
    work.write("test-00000.tar", members(2, "test", seed=1))
    return work


def published(work: WorkFolder, out: Path, n_in: int = 8, **changes) -> Manifest:
    arguments = {
        "record": CleanSample,
        "n_in": n_in,
        "scale": SCALE,
        "card": Card("Title", "Summary."),
        "parameters": {"seed": 0},
        "inputs": {},
        "rejects": [Reject("gone.png", None, "missing file")],
    }
    return publish(work, out, NAMES, **{**arguments, **changes})


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_a_shard_counts_only_with_its_mark(tmp_path):
    work = filled(tmp_path)
    assert work.pending([*NAMES, "train-00001.tar"]) == ["train-00001.tar"]
    (work.path / "train-00000.tar.done.json").unlink()
    (work.path / "test-00000.tar").unlink()
    assert work.pending(NAMES) == NAMES


def test_a_cut_shard_is_pending(tmp_path):
    work = filled(tmp_path)
    with (work.path / "train-00000.tar").open("r+b") as file:
        file.truncate(1000)
    assert work.pending(NAMES) == ["train-00000.tar"]


def test_create_clears_half_files_and_keeps_finished_ones(tmp_path):
    work = filled(tmp_path)
    (work.path / f".train-00001.tar.{tiny.NO_PID}.tmp").write_bytes(b"half")
    work.create()
    assert not list(work.path.glob(".*"))
    assert work.pending(NAMES) == []


def test_full_disk_is_one_sentence(tmp_path, monkeypatch):
    work = filled(tmp_path)

    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(workfolder, "write_shard", full)
    with pytest.raises(StageError, match=r"No space left on device.*finished shards are kept"):
        work.write("train-00001.tar", members(1))
    assert work.pending([*NAMES, "train-00001.tar"]) == ["train-00001.tar"]


def test_publish(tmp_path):
    out = tmp_path / "out" / "clean"
    manifest = published(filled(tmp_path), out)
    assert manifest.counts == Counts(in_=8, kept=6, rejected=2, splits={"test": 2, "train": 4})
    assert Manifest.read(out) == manifest
    assert list(manifest.shards) == NAMES
    table = pq.read_table(out / "metadata.parquet")
    assert table.schema.names == [*CleanSample.model_fields, "shard"]
    assert table.schema.field("mos").type == arrow_schema(CleanSample).field("mos").type
    frame = table.to_pandas()
    assert frame.equals(frame.sort_values(["split", "key"], ignore_index=True))
    assert frame["shard"].value_counts().to_dict() == {
        "train-00000.tar": 4,
        "test-00000.tar": 2,
    }
    rejected = pd.read_parquet(out / "rejected.parquet")
    assert rejected[["source_id", "stage", "reason"]].to_numpy().tolist() == [
        ["bad.png", "import", "truncated"],
        ["gone.png", "import", "missing file"],
    ]


def test_publish_twice_is_the_same_and_keeps_files_of_others(tmp_path):
    out = tmp_path / "clean"
    work = filled(tmp_path)
    published(work, out)
    first = contents(out)
    (out / ".gitignore").write_text("/data\n")
    (out / "data" / "train-00007.tar").write_bytes(b"stale")
    published(work, out)
    assert contents(out) == {**first, ".gitignore": b"/data\n"}


def test_publish_shares_the_disk_with_the_work_folder(tmp_path):
    out = tmp_path / "clean"
    work = filled(tmp_path)
    published(work, out)
    assert (out / "data" / NAMES[0]).samefile(work.path / NAMES[0])


def test_publish_copies_where_links_are_impossible(tmp_path, monkeypatch):
    def refuse(self, target):
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    work = filled(tmp_path)
    published(work, tmp_path / "clean")
    data = (tmp_path / "clean" / "data" / NAMES[0]).read_bytes()
    assert data == (work.path / NAMES[0]).read_bytes()


def test_a_publish_cut_short_has_no_manifest_and_is_run_again(tmp_path, monkeypatch):
    out = tmp_path / "clean"
    work = filled(tmp_path)
    published(work, out)
    first = contents(out)

    def killed(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(workfolder, "write_parquet", killed)
        with pytest.raises(KeyboardInterrupt):
            published(work, out)
    assert not (out / "manifest.json").exists()
    published(work, out)
    assert contents(out) == first


def test_older_work_folders_of_the_same_artefact_are_removed(tmp_path):
    old = filled(tmp_path, fingerprint="0" * 64)
    other = filled(tmp_path, fingerprint="0" * 64, artefact="clean-b")
    work = filled(tmp_path)
    published(work, tmp_path / "clean")
    assert not old.path.exists()
    assert other.path.exists()
    assert work.path.exists()


def test_counts_must_reconcile(tmp_path):
    with pytest.raises(StageError, match="got 9 in, 6 kept, 2 rejected"):
        published(filled(tmp_path), tmp_path / "clean", n_in=9)


def test_the_same_image_in_two_shards_is_kept_once(tmp_path):
    work = filled(tmp_path)
    both = members(2, "test", seed=1)
    work.write("train-00000.tar", [*members(4), both[0]], [Reject("bad.png", None, "truncated")])
    for _ in range(2):  # and again when nothing is left to do
        manifest = published(work, tmp_path / "clean", n_in=9)
        assert manifest.counts.splits == {"test": 2, "train": 4}
    rejected = pd.read_parquet(tmp_path / "clean" / "rejected.parquet")
    assert rejected["reason"].tolist()[1] == f"duplicate of {both[0][0].key}"


def test_nothing_kept_is_an_error(tmp_path):
    work = work_folder(tmp_path)
    for name in NAMES:
        work.write(name, [], [Reject("a", None, "truncated")])
    with pytest.raises(StageError, match="no sample was kept: 3 of 3"):
        published(work, tmp_path / "clean", n_in=3)


def test_empty_shards_are_finished_but_not_published(tmp_path):
    work = filled(tmp_path)
    work.write("test-00000.tar", [], [Reject("a", None, "x"), Reject("b", None, "x")])
    manifest = published(work, tmp_path / "clean")
    assert list(manifest.shards) == ["train-00000.tar"]
    assert [path.name for path in (tmp_path / "clean" / "data").iterdir()] == ["train-00000.tar"]


def test_unfinished_shard_cannot_be_published(tmp_path):
    with pytest.raises(StageError, match="must be finished"):
        published(work_folder(tmp_path), tmp_path / "clean")


def test_folders_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="out must be a folder that can be written"):
        check_out(tmp_path / "file" / "clean")
    with pytest.raises(InputError, match="work folder must be a folder"):
        WorkFolder(tmp_path / "file", "import", "clean", "f").create()


def test_manifest_is_plain_json(tmp_path):
    published(filled(tmp_path), tmp_path / "clean")
    manifest = json.loads((tmp_path / "clean" / "manifest.json").read_text())
    assert manifest["counts"]["in"] == manifest["counts"]["kept"] + manifest["counts"]["rejected"]
