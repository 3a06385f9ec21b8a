"""Which photographs each stage uses."""

import pytest

from pipelines.errors import InputError
from pipelines.readers.selection import attack_keys, pretraining_keys, report_split

KEYS = ["d", "b", "a", "c"]


@pytest.mark.parametrize(("protocol", "split"), [("split", "test"), ("paper", "train")])
def test_report_split(protocol, split):
    assert report_split(protocol) == split


@pytest.mark.parametrize(
    ("split", "limit", "held_out", "chosen"),
    [
        ("train", None, 1, "abcd"),
        ("train", 3, 1, "abc"),
        ("validation", 3, 1, "a"),
        ("test", 3, None, "abc"),
        ("test", None, None, "abcd"),
    ],
)
def test_the_first_stage_learns_from_the_first_keys(split, limit, held_out, chosen):
    assert pretraining_keys(split, KEYS, limit=limit, held_out=held_out) == list(chosen)


@pytest.mark.parametrize(
    ("split", "exclude", "left"),
    [
        ("train", False, "abcd"),
        ("train", True, "d"),
        ("validation", True, "bcd"),
        ("test", True, "abcd"),
    ],
)
def test_the_attack_uses_the_others(split, exclude, left):
    found = attack_keys(split, KEYS, exclude_pretraining=exclude, limit=3, held_out=1)
    assert found == list(left)


def test_a_split_of_which_none_is_left_is_refused():
    with pytest.raises(InputError, match=r"must leave photographs of train, but .* all 4"):
        attack_keys("train", KEYS, exclude_pretraining=True, limit=None, held_out=None)
    empty = attack_keys("train", [], exclude_pretraining=True, limit=None, held_out=None)
    assert empty == []
