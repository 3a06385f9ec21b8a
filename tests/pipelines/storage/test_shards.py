import errno
import hashlib
import io
import json
import pickle
import tarfile

import numpy as np
import pytest
from webdataset import WebDataset

from pipelines.errors import StageError
from pipelines.storage import files
from pipelines.storage.images import decode_png, encode_png
from pipelines.storage.records import CleanSample, image_key
from pipelines.storage.shards import ShardIndex, read_records, read_shard, shard_name, write_shard


def members(count: int, split: str = "train", seed: int = 0) -> list[tuple[CleanSample, bytes]]:
    rng = np.random.default_rng(seed)
    made = []
    for number in range(count):
        image = encode_png(rng.integers(0, 256, (8, 8 + number, 3), dtype=np.uint8))
        record = CleanSample(
            key=image_key(image),
            source="test",
            source_id=f"bild-ä-{number}.png",
            parent_key=None,
            split=split,
            width=8 + number,
            height=8,
            mos=float(number),
            mos_std=None,
            n_votes=None,
            score_low=0.0,
            score_high=100.0,
        )
        made.append((record, image))
    return made


def test_bytes_do_not_depend_on_order_or_time(tmp_path):
    made = members(5)
    first = write_shard(tmp_path / "a.tar", made)
    second = write_shard(tmp_path / "b.tar", iter(made[::-1]))
    assert first.sha256 == second.sha256
    data = (tmp_path / "a.tar").read_bytes()
    assert data == (tmp_path / "b.tar").read_bytes()
    assert first.sha256 == hashlib.sha256(data).hexdigest()
    assert (first.bytes, first.samples) == (len(data), 5)


def test_shard_is_plain_ustar(tmp_path):
    made = members(3)
    write_shard(tmp_path / "a.tar", made)
    reference = io.BytesIO()
    with tarfile.open(fileobj=reference, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for record, image in sorted(made, key=lambda member: member[0].key):
            text = json.dumps(record.model_dump(), sort_keys=True).encode()
            for suffix, data in (("json", text), ("png", image)):
                info = tarfile.TarInfo(f"{record.key}.{suffix}")
                info.size, info.mode = len(data), 0o644
                tar.addfile(info, io.BytesIO(data))
    assert (tmp_path / "a.tar").read_bytes() == reference.getvalue()
    with tarfile.open(tmp_path / "a.tar") as tar:
        entries = tar.getmembers()
    assert [entry.name for entry in entries] == sorted(entry.name for entry in entries)
    assert {(entry.mtime, entry.uid, entry.gid, entry.mode) for entry in entries} == {
        (0, 0, 0, 0o644)
    }


def test_reading_back(tmp_path):
    made = members(4)
    write_shard(tmp_path / "a.tar", made)
    expected = sorted(((r.model_dump(), i) for r, i in made), key=lambda pair: pair[0]["key"])
    assert list(read_shard(tmp_path / "a.tar")) == expected
    assert list(read_records(tmp_path / "a.tar")) == [fields for fields, _ in expected]


def test_webdataset_reads_what_was_written(tmp_path):
    written = members(3)
    write_shard(tmp_path / "a.tar", written)
    data = WebDataset(str(tmp_path / "a.tar"), shardshuffle=False)
    read = {sample["__key__"]: sample["png"] for sample in data}
    assert read == {record.key: image for record, image in written}


def test_random_access(tmp_path):
    (tmp_path / "data").mkdir()
    train, test = members(4), members(2, "test", seed=1)
    write_shard(tmp_path / "data" / shard_name("train", 0), train[:2])
    write_shard(tmp_path / "data" / shard_name("train", 1), train[2:])
    write_shard(tmp_path / "data" / shard_name("test", 0), test)
    index = ShardIndex(tmp_path)
    assert len(index) == 6
    for record, image in train + test:
        assert index.image_bytes(record.key) == image
        assert index.records[record.key] == record.model_dump()
    assert decode_png(index.image_bytes(train[0][0].key)).shape == (8, 8, 3)
    copy = pickle.loads(pickle.dumps(index))
    assert copy.image_bytes(test[0][0].key) == test[0][1]
    assert set(ShardIndex(tmp_path, ["test"]).records) == {record.key for record, _ in test}
    part = index.of([test[0][0].key])
    assert list(part.records) == [test[0][0].key]
    assert part.image_bytes(test[0][0].key) == test[0][1]
    assert len(pickle.dumps(part)) < len(pickle.dumps(index))
    part.close()
    with pytest.raises(KeyError):
        index.image_bytes("0" * 16)
    index.close()
    copy.close()


def test_same_key_twice_is_an_error_and_leaves_nothing(tmp_path):
    made = members(1)
    with pytest.raises(StageError, match="must be there once"):
        write_shard(tmp_path / "a.tar", made * 2)
    assert list(tmp_path.iterdir()) == []


def test_full_disk_leaves_no_half_file(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_shard(tmp_path / "a.tar", members(3))
    assert list(tmp_path.iterdir()) == []


def test_damaged_shards_are_errors(tmp_path):
    write_shard(tmp_path / "a.tar", members(3))
    data = bytearray((tmp_path / "a.tar").read_bytes())
    (tmp_path / "short.tar").write_bytes(data[:1100])
    with pytest.raises(StageError, match=r"damaged|ends within"):
        list(read_shard(tmp_path / "short.tar"))
    data[3] ^= 1
    (tmp_path / "flipped.tar").write_bytes(data)
    with pytest.raises(StageError, match="damaged at byte 0"):
        list(read_shard(tmp_path / "flipped.tar"))
