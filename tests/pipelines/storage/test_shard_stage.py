from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from test_workfolder import SCALE

from pipelines.errors import InputError, StageError
from pipelines.storage.cards import Card
from pipelines.storage.images import decode_png
from pipelines.storage.records import CleanSample
from pipelines.storage.rejects import Reject
from pipelines.storage.shard_stage import ShardStage, StoredImage, store_image
from pipelines.storage.shards import read_shard

FIELDS = {
    "source": "test",
    "parent_key": None,
    "split": "train",
    "mos": 5.0,
    "mos_std": None,
    "n_votes": None,
    "score_low": 0.0,
    "score_high": 100.0,
}
INLINE = {"workers": 1, "engine": "inline"}


@dataclass(frozen=True)
class Job:
    name: str
    levels: tuple[int, ...]  # grey of each picture; below 0 it is rejected

    @property
    def count(self) -> int:
        return len(self.levels)


JOBS = [Job("train-00000.tar", (1, 2, 1)), Job("train-00001.tar", (3, -1))]


def grey(job: Job, brightness: int) -> Iterator[StoredImage | Reject]:
    for number, level in enumerate(job.levels):
        source_id = f"{job.name} {number}"
        if level < 0:
            yield Reject(source_id, None, "too dark")
        else:
            pixels = np.full((8, 9, 3), level + brightness, np.uint8)
            yield store_image(CleanSample, pixels, {**FIELDS, "source_id": source_id})


def refuse(job: Job, brightness: int) -> Iterator[StoredImage]:
    raise AssertionError(f"{job.name} is finished")


def bright() -> int:
    return 100


def stage(root: Path, **changes) -> ShardStage:
    arguments = {"parameters": {"seed": 0}, "inputs": {"clean": "0" * 64}, **changes}
    return ShardStage.begin(
        "import", ["pipelines.storage.images"], root / "out", root / "work", **arguments
    )


def published(run: ShardStage, rejects=()):
    return run.publish(
        JOBS, record=CleanSample, scale=SCALE, card=Card("Title", "Summary."), rejects=rejects
    )


def test_samples_duplicates_and_rejects_reconcile(tmp_path):
    run = stage(tmp_path)
    finished = run.run(grey, JOBS, INLINE, setup=bright, progress=False)
    assert [shard.info.samples for shard in finished] == [2, 1]
    manifest = published(run, [Reject("gone", None, "missing file")])
    assert manifest.counts.model_dump(by_alias=True) == {
        "in": 6,
        "kept": 3,
        "rejected": 3,
        "splits": {"train": 3},
    }
    assert (manifest.stage, manifest.parameters, manifest.inputs) == (
        "import",
        {"seed": 0},
        {"clean": "0" * 64},
    )
    reasons = pd.read_parquet(tmp_path / "out" / "rejected.parquet")["reason"].tolist()
    assert [reason.split()[0] for reason in reasons] == ["missing", "duplicate", "too"]
    for fields, image in read_shard(tmp_path / "out" / "data" / JOBS[1].name):
        assert (fields["width"], fields["height"]) == (9, 8)
        assert (decode_png(image) == 103).all()


def test_finished_shards_are_not_made_again(tmp_path):
    first = stage(tmp_path)
    first.run(grey, JOBS[:1], INLINE, setup=bright, progress=False)
    again = stage(tmp_path)
    assert again.work == first.work
    again.run(refuse, JOBS[:1], INLINE, setup=bright, progress=False)
    again.run(grey, JOBS, INLINE, setup=bright, progress=False)
    assert published(again, [Reject("gone", None, "missing file")]).counts.kept == 3


@pytest.mark.parametrize("changes", [{"parameters": {"seed": 1}}, {"inputs": {}}, {"pillow": "1"}])
def test_work_of_other_parameters_or_inputs_is_not_used(tmp_path, changes):
    stage(tmp_path).run(grey, JOBS, INLINE, setup=bright, progress=False)
    other = stage(tmp_path, **changes)
    assert other.work.pending([job.name for job in JOBS]) == [job.name for job in JOBS]
    with pytest.raises(StageError, match="must be finished before publishing"):
        published(other)


def test_out_must_be_writable(tmp_path):
    (tmp_path / "out").write_text("")
    with pytest.raises(InputError, match="out must be a folder that can be written"):
        stage(tmp_path)


def test_a_bad_field_names_the_sample():
    fields = {**FIELDS, "source_id": "a.png", "mos": 101.0}
    with pytest.raises(InputError, match=r"CleanSample a.png: mos must be in \[0.0, 100.0\], got"):
        store_image(CleanSample, np.zeros((8, 8, 3), np.uint8), fields)
