import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from test_images import animation, picture, saved
from test_sources import make_folder, make_livec, table

from pipelines.errors import InputError, StageError
from pipelines.stages.import_ import run_import
from pipelines.storage.images import decode_png
from pipelines.storage.manifest import Manifest
from pipelines.storage.records import image_key
from pipelines.storage.shards import read_shard

SPLITS = {"train": 0.6, "validation": 0.2, "test": 0.2}


def run(root: Path, name: str = "clean", **changes) -> Manifest:
    arguments = {
        "source": "sample",
        "options": {"count": 20},
        "out": root / name,
        "work_root": root / f"work-{name}",
        "splits": SPLITS,
        "seed": 0,
        "shard_size": 5,
        "workers": 1,
        "min_side": 32,
        "progress": False,
    }
    return run_import(**{**arguments, **changes})


def all_bytes(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def stored(folder: Path) -> dict[str, tuple[dict, bytes]]:
    shards = sorted((folder / "data").glob("*.tar"))
    return {row["source_id"]: (row, image) for path in shards for row, image in read_shard(path)}


def test_one_and_two_workers_give_the_same_bytes(tmp_path):
    first = run(tmp_path, "clean", work_root=tmp_path / "a")
    one = all_bytes(tmp_path / "clean")
    (tmp_path / "clean").rename(tmp_path / "one")
    second = run(tmp_path, "clean", work_root=tmp_path / "b", workers=2)
    assert first == second
    assert all_bytes(tmp_path / "clean") == one
    assert first.counts.splits == {"test": 4, "train": 12, "validation": 4}


def test_records_describe_the_stored_images(tmp_path):
    run(tmp_path)
    samples = stored(tmp_path / "clean")
    assert len(samples) == 20
    for row, image in samples.values():
        assert row["key"] == image_key(image)
        assert decode_png(image).shape == (row["height"], row["width"], 3)
        assert row["parent_key"] is None
        assert row["source"] == "sample"
    groups: dict[str, set[str]] = {}
    for row, _ in samples.values():
        groups.setdefault(row["source_id"].split("/")[0], set()).add(row["split"])
    assert all(len(splits) == 1 for splits in groups.values())


def test_shard_size_changes_no_sample(tmp_path):
    run(tmp_path, "a")
    run(tmp_path, "b", shard_size=3)
    assert stored(tmp_path / "a") == stored(tmp_path / "b")


def strange_files(images: Path) -> dict[str, str | None]:
    """Writes one file of each kind; the reason why it is rejected, None if it is kept."""
    exif = Image.Exif()
    exif[0x0112] = 6
    rgba = np.dstack([np.asarray(picture()), np.full((48, 64), 128, np.uint8)])
    grey16 = np.linspace(0, 65535, 48 * 64).reshape(48, 64).astype(np.uint16)
    jpeg = saved(picture(), "JPEG")
    files: dict[str, tuple[bytes, str | None]] = {
        "grey.jpg": (saved(picture().convert("L"), "JPEG"), None),
        "cmyk.jpg": (saved(picture().convert("CMYK"), "JPEG"), None),
        "sixteen.png": (saved(Image.fromarray(grey16), "PNG"), None),
        "alpha.png": (saved(Image.fromarray(rgba), "PNG"), None),
        "palette.png": (saved(picture().quantize(16), "PNG"), None),
        "rotated.jpg": (saved(picture(), "JPEG", exif=exif), None),
        "still.gif": (saved(picture(), "GIF"), None),
        "truncated.jpg": (jpeg[: len(jpeg) // 2], "truncated"),
        "animated.gif": (animation("GIF"), "animated"),
        "animated.webp": (animation("WEBP"), "animated"),
        "animated.png": (animation("PNG"), "animated"),
        "text.png": (b"this is no image", "unreadable"),
        "tiny.png": (saved(picture().resize((40, 12)), "PNG"), "too small (12 px < 32)"),
    }
    for name, (data, _) in files.items():
        (images / name).write_bytes(data)
    return {name: reason for name, (_, reason) in files.items()}


def test_strange_files_are_imported_or_rejected_with_a_reason(tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    expected = strange_files(images)
    scores = tmp_path / "scores.csv"
    pd.DataFrame({"file": list(expected), "mos": 5}).to_csv(scores, index=False)
    options = {"root": str(images), "scores": str(scores), "score_low": 0, "score_high": 10}
    manifest = run(tmp_path, source="folder", options=options, shard_size=4, splits={"train": 1})
    rejected = pd.read_parquet(tmp_path / "clean" / "rejected.parquet")
    reasons = dict(zip(rejected["source_id"], rejected["reason"], strict=True))
    assert reasons == {name: reason for name, reason in expected.items() if reason}
    samples = stored(tmp_path / "clean")
    assert set(samples) == {name for name, reason in expected.items() if not reason}
    assert (samples["rotated.jpg"][0]["width"], samples["rotated.jpg"][0]["height"]) == (48, 64)
    assert (manifest.counts.in_, manifest.counts.kept, manifest.counts.rejected) == (13, 7, 6)


def test_places_are_not_part_of_the_content(tmp_path):
    hashes = []
    for name in ("here", "there"):
        make_folder(tmp_path / name)
        scores = table(tmp_path / name, mos=[1, 2, 3, 4])
        options = {
            "root": str(tmp_path / name / "images"),
            "scores": scores,
            "score_low": 0,
            "score_high": 10,
        }
        manifest = run(tmp_path, name + "-out", source="folder", options=options, splits={"a": 1})
        hashes.append(manifest.content_sha256)
        assert str(tmp_path) not in manifest.to_json()
    assert hashes[0] == hashes[1]


def test_duplicates_within_and_across_shards_are_rejected(tmp_path):
    images = make_folder(tmp_path)
    names = [f"{number:03d}.png" for number in range(4)]
    first = (images / "deep" / names[0]).read_bytes()
    (images / "deep" / names[1]).write_bytes(first)
    # The same pixels in another file format, in another shard.
    Image.open(images / "deep" / names[0]).save(images / "deep" / "x.bmp")
    (images / "deep" / names[3]).unlink()
    scores = table(tmp_path, mos=[1, 2, 3, 4], file=[f"deep/{n}" for n in [*names[:3], "x.bmp"]])
    options = {
        "root": str(images),
        "scores": scores,
        "score_low": 0,
        "score_high": 10,
    }
    for attempt in range(2):  # the second run finds everything finished
        manifest = run(tmp_path, source="folder", options=options, shard_size=2, splits={"a": 1})
        samples = stored(tmp_path / "clean")
        assert set(samples) == {"deep/000.png", "deep/002.png"}, attempt
        assert manifest.counts.rejected == 2
    rejected = pd.read_parquet(tmp_path / "clean" / "rejected.parquet")
    key = samples["deep/000.png"][0]["key"]
    assert rejected["source_id"].tolist() == ["deep/001.png", "deep/x.bmp"]
    assert set(rejected["reason"]) == {f"duplicate of {key}"}
    assert set(rejected["key"]) == {key}


def test_max_side_shrinks(tmp_path):
    run(tmp_path, max_side=64)
    sizes = {(row["width"], row["height"]) for row, _ in stored(tmp_path / "clean").values()}
    assert {max(size) for size in sizes} == {64}


def test_livec_counts_reconcile(tmp_path):
    options = {"root": str(make_livec(tmp_path / "livec", present=4)), "allow_missing": True}
    manifest = run(tmp_path, source="livec", options=options, splits={"train": 0.5, "test": 0.5})
    assert (manifest.counts.in_, manifest.counts.kept, manifest.counts.rejected) == (13, 4, 9)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"source": "flickr"}, "source must be one of ava, .*, tad66k, got 'flickr'"),
        ({"options": {"counts": 1}}, "must be among count, got 'counts'"),
        ({"source": "livec", "options": {}}, "must have root"),
        ({"shard_size": 0}, "shard_size must be at least 1"),
        ({"min_side": 0}, "min_side must be at least 1"),
        ({"max_side": 8}, "max_side must be at least min_side 32, got 8"),
        ({"workers": 0}, "workers must be at least 1"),
        ({"splits": {"train": 0.5}}, "splits must be fractions"),
    ],
)
def test_bad_arguments(tmp_path, changes, words):
    with pytest.raises(InputError, match=words):
        run(tmp_path, **changes)


def test_out_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="out must be a folder that can be written"):
        run(tmp_path, out=tmp_path / "file" / "clean")


def test_everything_rejected_is_a_failure(tmp_path):
    images = make_folder(tmp_path)
    scores = table(tmp_path, mos=[1, 2, 3, 4])
    options = {"root": str(images), "scores": scores, "score_low": 0, "score_high": 10}
    with pytest.raises(StageError, match="no sample was kept"):
        run(tmp_path, source="folder", options=options, splits={"a": 1}, min_side=41)


SLOW_IMPORT = """
import os, sys, time
from pathlib import Path
sys.path[:0] = sys.argv[1].split(os.pathsep)
import test_import
from pipelines.stages import import_
fast = import_.encode_png
def slow(pixels):
    time.sleep(0.1)
    return fast(pixels)
import_.encode_png = slow
test_import.run(Path(sys.argv[2]))
"""


def test_killed_and_restarted_keeps_finished_shards(tmp_path):
    places = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    command = [sys.executable, "-c", SLOW_IMPORT, places, str(tmp_path)]
    process = subprocess.Popen(command)
    try:
        while len(done := sorted(tmp_path.rglob("*.done.json"))) < 2:
            assert process.poll() is None
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
    finally:
        process.kill()
        process.wait(60)
    shards = [path.with_name(path.name.removesuffix(".done.json")) for path in done]
    before = [(os.stat(path).st_ino, os.stat(path).st_mtime_ns) for path in shards]
    assert not (tmp_path / "clean" / "manifest.json").exists()
    resumed = run(tmp_path)
    assert before == [(os.stat(path).st_ino, os.stat(path).st_mtime_ns) for path in shards]
    published = [tmp_path / "clean" / "data" / path.name for path in shards]
    assert before == [(os.stat(path).st_ino, os.stat(path).st_mtime_ns) for path in published]
    whole = run(tmp_path, "whole")
    assert resumed.shards == whole.shards
