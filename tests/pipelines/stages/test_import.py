import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image
from test_images import animation, picture, saved
from test_sources import make_folder, make_livec, table

from pipelines.errors import InputError, StageError
from pipelines.params import load_params
from pipelines.stages.import_ import run_import
from pipelines.storage.images import decode_png
from pipelines.storage.layout import Layout
from pipelines.storage.manifest import Manifest
from pipelines.storage.records import image_key
from pipelines.storage.shards import read_shard

SPLITS = {"train": 0.6, "validation": 0.2, "test": 0.2}


def run(project: Path, **changes) -> Manifest:
    """`veneer import` in a project; `min_side=64` changes import.min_side."""
    values = {
        "source": {"name": "sample", "options": {"count": 20}},
        "import": {"splits": SPLITS, "shard_size": 5},
        "engine": {"workers": 1},
        # Sections that every file must have.
        "victims": {"net": {"model": {"kind": "nima"}}},
        "attack": {
            "victims": ["net"],
            "modes": ["restricted"],
            "objectives": {"restricted": {"alpha": 0}},
        },
    }
    for name, value in changes.items():
        section = {"source": "source", "workers": "engine"}.get(name, "import")
        values[section] = values[section] | (value if section == "source" else {name: value})
    file = project / "params.yaml"
    project.mkdir(exist_ok=True)
    file.write_text(yaml.safe_dump(values))
    return run_import(load_params(file), Layout(project), progress=False)


def folder_source(images: Path, scores: Path, **options) -> dict[str, Any]:
    """The source `folder` with a scale of 0 to 10."""
    scale = {"score_low": 0, "score_high": 10}
    return {
        "name": "folder",
        "options": {"root": str(images), "scores": str(scores), **scale, **options},
    }


def clean(project: Path) -> Path:
    return Layout(project).clean


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
    first, second = run(tmp_path / "one"), run(tmp_path / "two", workers=2)
    assert first == second
    assert all_bytes(clean(tmp_path / "one")) == all_bytes(clean(tmp_path / "two"))
    assert first.counts.splits == {"test": 4, "train": 12, "validation": 4}


def test_records_describe_the_stored_images(tmp_path):
    run(tmp_path)
    samples = stored(clean(tmp_path))
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
    run(tmp_path / "a")
    run(tmp_path / "b", shard_size=3)
    assert stored(clean(tmp_path / "a")) == stored(clean(tmp_path / "b"))


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
    pd.DataFrame({"file": list(expected), "mos": 5, "split": "train"}).to_csv(scores, index=False)
    manifest = run(tmp_path, source=folder_source(images, scores), shard_size=4)
    rejected = pd.read_parquet(clean(tmp_path) / "rejected.parquet")
    reasons = dict(zip(rejected["source_id"], rejected["reason"], strict=True))
    assert reasons == {name: reason for name, reason in expected.items() if reason}
    samples = stored(clean(tmp_path))
    assert set(samples) == {name for name, reason in expected.items() if not reason}
    assert (samples["rotated.jpg"][0]["width"], samples["rotated.jpg"][0]["height"]) == (48, 64)
    assert (manifest.counts.in_, manifest.counts.kept, manifest.counts.rejected) == (13, 7, 6)


def test_places_are_not_part_of_the_content(tmp_path):
    hashes = []
    for name in ("here", "there"):
        make_folder(tmp_path / name)
        scores = Path(table(tmp_path / name, mos=[1, 2, 3, 4]))
        manifest = run(
            tmp_path / f"{name}-out", source=folder_source(tmp_path / name / "images", scores)
        )
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
    files = [f"deep/{name}" for name in [*names[:3], "x.bmp"]]
    scores = Path(table(tmp_path, mos=[1, 2, 3, 4], file=files, split="a"))
    for attempt in range(2):  # the second run finds everything finished
        manifest = run(tmp_path, source=folder_source(images, scores), shard_size=2)
        samples = stored(clean(tmp_path))
        assert set(samples) == {"deep/000.png", "deep/002.png"}, attempt
        assert manifest.counts.rejected == 2
    rejected = pd.read_parquet(clean(tmp_path) / "rejected.parquet")
    key = samples["deep/000.png"][0]["key"]
    assert rejected["source_id"].tolist() == ["deep/001.png", "deep/x.bmp"]
    assert set(rejected["reason"]) == {f"duplicate of {key}"}
    assert set(rejected["key"]) == {key}


def test_max_side_shrinks(tmp_path):
    run(tmp_path, max_side=64)
    sizes = {(row["width"], row["height"]) for row, _ in stored(clean(tmp_path)).values()}
    assert {max(size) for size in sizes} == {64}


def test_livec_counts_reconcile(tmp_path):
    options = {"root": str(make_livec(tmp_path / "livec", present=4)), "allow_missing": True}
    manifest = run(tmp_path, source={"name": "livec", "options": options})
    assert (manifest.counts.in_, manifest.counts.kept, manifest.counts.rejected) == (13, 4, 9)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"source": {"name": "x"}}, "source must be one of ava, .*, tad66k, got 'x'"),
        ({"source": {"options": {"counts": 1}}}, "must be among count, got 'counts'"),
        ({"source": {"name": "livec", "options": {}}}, "must have root"),
        ({"shard_size": 0}, "import.shard_size must be greater than or equal to 1, got 0"),
        ({"min_side": 0}, "import.min_side must be greater than or equal to 16, got 0"),
        ({"max_side": 20}, "max_side must be at least min_side 32, got 20"),
        ({"workers": 0}, "engine.workers must be greater than or equal to 1, got 0"),
        ({"splits": {"train": 0.5}}, "train . validation . test must be 1, got 0.8"),
    ],
)
def test_bad_arguments(tmp_path, changes, words):
    with pytest.raises(InputError, match=words):
        run(tmp_path, **changes)


def test_out_that_cannot_be_written(tmp_path):
    (tmp_path / "datasets").write_text("")
    with pytest.raises(InputError, match="out must be a folder that can be written"):
        run(tmp_path)


def test_everything_rejected_is_a_failure(tmp_path):
    images = make_folder(tmp_path)
    scores = Path(table(tmp_path, mos=[1, 2, 3, 4]))
    with pytest.raises(StageError, match="no sample was kept"):
        run(tmp_path, source=folder_source(images, scores), min_side=41)


SLOW_IMPORT = """
import sys, time
from pathlib import Path
sys.path[:0] = sys.argv[1].split(":")
import test_import
from pipelines.storage import shard_stage
fast = shard_stage.encode_png
def slow(pixels):
    time.sleep(0.1)
    return fast(pixels)
shard_stage.encode_png = slow
test_import.run(Path(sys.argv[2]))
"""


def test_killed_and_restarted_keeps_finished_shards(tmp_path):
    places = ":".join([str(Path(__file__).parent), *sys.path])
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
    assert not (clean(tmp_path) / "manifest.json").exists()
    resumed = run(tmp_path)
    assert before == [(os.stat(path).st_ino, os.stat(path).st_mtime_ns) for path in shards]
    published = [clean(tmp_path) / "data" / path.name for path in shards]
    assert before == [(os.stat(path).st_ino, os.stat(path).st_mtime_ns) for path in published]
    whole = run(tmp_path / "whole")
    assert resumed.shards == whole.shards
