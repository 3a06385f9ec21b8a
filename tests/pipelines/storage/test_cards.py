from pathlib import Path

import pytest
import yaml
from test_records import AE, PRETRAIN
from test_shards import members
from test_workfolder import SCALE, published, work_folder

from pipelines.storage.cards import Card
from pipelines.storage.records import AESample, CleanSample, PretrainSample, Sample, arrow_schema

datasets = pytest.importorskip("datasets")
SPLITS = ("train", "validation", "test")


def folder_of(record: type[Sample], extra: dict, root: Path, **changes) -> Path:
    """A published folder of seven samples a split; optional fields are null in the first six."""
    work = work_folder(root)
    names = []
    for seed, split in enumerate(SPLITS):
        made = sorted(members(7, split, seed), key=lambda member: member[0].key)
        shard = []
        for number, (sample, image) in enumerate(made):
            late = {"mos_std": 1.5, "n_votes": 3, "parent_key": "0" * 16} if number == 6 else {}
            shard.append((record(**{**extra, **sample.model_dump(), **late}), image))
        names.append(f"{split}-00000.tar")
        work.write(names[-1], shard)
    from pipelines.storage.workfolder import publish

    publish(
        work,
        root / "set",
        sorted(names),
        **{
            "record": record,
            "n_in": 21,
            "scale": SCALE,
            "card": Card("A set", "It is a set."),
            "parameters": {},
            "inputs": {},
            **changes,
        },
    )
    return root / "set"


@pytest.mark.parametrize(
    ("record", "extra"), [(CleanSample, {}), (PretrainSample, PRETRAIN), (AESample, AE)]
)
@pytest.mark.parametrize("streaming", [False, True])
def test_load_dataset_opens_every_split_with_every_field(tmp_path, record, extra, streaming):
    folder = folder_of(record, extra, tmp_path)
    cache = None if streaming else str(tmp_path / "cache")
    data = datasets.load_dataset(str(folder), streaming=streaming, cache_dir=cache)
    assert list(data) == list(SPLITS)
    for split in SPLITS:
        features = data[split].features
        assert features["json"] == datasets.Features.from_arrow_schema(arrow_schema(record))
        assert features["png"] == datasets.Image()
        rows = list(data[split])
        assert len(rows) == 7
        for row in rows:
            assert set(row["json"]) == set(record.model_fields)
            assert row["json"]["split"] == split
            assert row["json"]["key"] == row["__key__"].rpartition("/")[2]
            assert row["png"].size == (row["json"]["width"], row["json"]["height"])
        assert [row["json"]["n_votes"] for row in rows] == [None] * 6 + [3]
        assert isinstance(rows[0]["json"]["mos"], float)


def test_card_says_what_is_adversarial_first(tmp_path):
    card = Card("AE", "Attacked.", adversarial=True, tags=("da3",))
    folder = folder_of(AESample, AE, tmp_path, card=card)
    text = (folder / "README.md").read_text()
    front, body = text.split("---\n", 2)[1:]
    assert "Adversarial data" in "\n".join(body.splitlines()[:5])
    assert {"adversarial", "da3", "labels-human"} <= set(yaml.safe_load(front)["tags"])


def test_card_says_that_scores_are_simulated(tmp_path):
    scale = SCALE.model_copy(update={"label_source": "simulated"})
    text = (folder_of(CleanSample, {}, tmp_path, scale=scale) / "README.md").read_text()
    assert "scores are simulated" in text
    assert "Adversarial" not in text


def test_card_lists_splits_that_exist_fields_and_terms(tmp_path):
    work = work_folder(tmp_path)
    work.write("train-00000.tar", members(4))
    work.write("test-00000.tar", [])
    published(work, tmp_path / "set", n_in=5)
    text = (tmp_path / "set" / "README.md").read_text()
    front = yaml.safe_load(text.split("---\n")[1])
    files = front["configs"][0]["data_files"]
    assert files == [{"split": "train", "path": "data/train-*.tar"}]
    assert all(f"| `{name}` |" in text for name in CleanSample.model_fields)
    assert SCALE.license in text
    assert SCALE.attribution in text
    assert "| train | 4 |" in text
