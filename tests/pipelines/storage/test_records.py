import math

import pyarrow as pa
import pytest

from attackers.da3.filters import FILTER_NAMES
from pipelines.errors import InputError
from pipelines.storage.records import (
    PER_FILTER,
    AESample,
    CleanSample,
    PretrainSample,
    arrow_schema,
    build_record,
    hf_features,
    image_key,
)

CLEAN = {
    "key": "0123456789abcdef",
    "source": "folder",
    "source_id": "a.png",
    "parent_key": None,
    "split": "train",
    "width": 4,
    "height": 3,
    "mos": 5,
    "mos_std": None,
    "n_votes": None,
    "score_low": 0,
    "score_high": 10,
}
AE = {
    **CLEAN,
    "victim": "nima",
    "victim_sha256": "0" * 64,
    "mode": "restricted",
    "direction": "raise",
    "score_clean": 4.0,
    "score_adv": 6.0,
    "weights": [1 / 14] * 14,
    "strengths": [0] * 14,
    "psnr": 40,
    "ssim": 0.99,
    "linf": 0.1,
    "interpolation_fraction": 1,
    "queries": 3,
}
PRETRAIN = {**CLEAN, "filter": "blur", "strength": 0.5, "step": 2}


@pytest.mark.parametrize(
    ("cls", "fields"), [(CleanSample, CLEAN), (PretrainSample, PRETRAIN), (AESample, AE)]
)
def test_record_has_every_key_and_scores_are_floats(cls, fields):
    dumped = build_record(cls, **fields).model_dump()
    assert list(dumped) == list(cls.model_fields)
    assert all(isinstance(dumped[name], float) for name in ("mos", "score_low", "score_high"))
    table = pa.Table.from_pylist([dumped], schema=arrow_schema(cls))
    assert table.schema.names == list(dumped)


def test_arrow_types():
    schema = arrow_schema(AESample)
    assert schema.field("weights").type == pa.list_(pa.float64())
    assert schema.field("parent_key").nullable
    assert not schema.field("key").nullable
    assert schema.field("mode").type == pa.string()
    assert {"name": "weights", "list": "float64"} in hf_features(AESample)
    assert {"name": "n_votes", "dtype": "int64"} in hf_features(AESample)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"mos": 10.5}, "mos must be in [0.0, 10.0], got 10.5"),
        ({"mos": math.nan}, "mos"),
        ({"mos_std": math.inf}, "mos_std"),
        ({"mos": "fine"}, "mos"),
        ({"score_high": 0}, "score_low 0.0 must be below 0.0"),
        ({"split": "my split"}, "split"),
        ({"key": "xyz"}, "key"),
        ({"extra": 1}, "extra"),
    ],
)
def test_bad_field_is_one_sentence_naming_sample_and_field(change, words):
    with pytest.raises(InputError) as caught:
        build_record(CleanSample, **{**CLEAN, **change})
    message = str(caught.value)
    assert words in message
    assert "a.png" in message
    assert "\n" not in message


def test_weights_need_one_number_per_filter():
    with pytest.raises(InputError, match="weights"):
        build_record(AESample, **{**AE, "weights": [1.0]})


def test_records_are_frozen():
    record = build_record(CleanSample, **CLEAN)
    with pytest.raises(ValueError, match="frozen"):
        record.mos = 3.0


def test_image_key_is_a_prefix_of_sha256():
    assert image_key(b"") == "e3b0c44298fc1c14"


def test_a_number_for_each_filter():
    assert len(FILTER_NAMES) == PER_FILTER
