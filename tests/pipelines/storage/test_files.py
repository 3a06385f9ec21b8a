import json
import pickle
import subprocess
import sys

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.storage.files import OpenFiles, json_text, write_csv, write_json, write_parquet
from pipelines.storage.rejects import (
    REJECTED,
    REJECTED_SCHEMA,
    Reject,
    reject_writer,
    write_rejects,
)


def test_json_has_null_for_what_is_no_number(tmp_path):
    value = {"a": float("nan"), "b": [1.5, float("-inf")], "c": {"d": (float("inf"), True, None)}}
    write_json(tmp_path / "new" / "report.json", value)
    text = (tmp_path / "new" / "report.json").read_text()
    assert text.endswith("}\n")
    assert json.loads(text) == {"a": None, "b": [1.5, None], "c": {"d": [None, True, None]}}
    assert json_text({"b": 1, "a": 2}, indent=None, sort_keys=True) == '{"a": 2, "b": 1}\n'


def test_csv_quotes_and_leaves_none_empty(tmp_path):
    rows = [{"name": "a, b", "value": None, "more": 1}, {"name": 'c "d"', "value": 0.5, "more": 2}]
    write_csv(tmp_path / "some.csv", rows, ("value", "name"))
    assert (tmp_path / "some.csv").read_text() == 'value,name\n,"a, b"\n0.5,"c ""d"""\n'
    write_csv(tmp_path / "all.csv", rows)
    assert pd.read_csv(tmp_path / "all.csv")["name"].tolist() == ["a, b", 'c "d"']
    with pytest.raises(ValueError, match="not in fieldnames"):
        write_csv(tmp_path / "odd.csv", [{"a": 1}, {"a": 1, "b": 2}])
    assert not (tmp_path / "odd.csv").exists()


def test_parquet_is_the_same_on_every_run(tmp_path):
    table = pa.table({"key": ["a", "b"], "value": [1.0, 2.0]})
    for name in ("one", "two"):
        write_parquet(tmp_path / name, table)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_rejects_are_sorted_and_have_a_stage(tmp_path):
    rejects = [Reject("b", None, "truncated"), Reject("a", "0" * 16, "duplicate of x")]
    write_rejects(tmp_path, rejects, "import")
    table = pq.read_table(tmp_path / "rejected.parquet")
    assert table.schema.equals(REJECTED_SCHEMA)
    assert table.to_pylist() == [
        {"source_id": "a", "key": "0" * 16, "stage": "import", "reason": "duplicate of x"},
        {"source_id": "b", "key": None, "stage": "import", "reason": "truncated"},
    ]


def test_rejects_are_written_in_batches(tmp_path):
    with reject_writer(tmp_path, "curate") as write:
        write(pa.array(["b"]), pa.array(["0" * 16]), ["near duplicate"])
        write(pa.array([], pa.string()), pa.array([], pa.string()), [])
        write(pa.array(["a"]), pa.array([None], pa.string()), ["over target"])
        assert not (tmp_path / REJECTED).exists()  # whole or not at all
    table = pq.read_table(tmp_path / REJECTED)
    assert table.schema.equals(REJECTED_SCHEMA)
    assert table.to_pylist() == [
        {"source_id": "b", "key": "0" * 16, "stage": "curate", "reason": "near duplicate"},
        {"source_id": "a", "key": None, "stage": "curate", "reason": "over target"},
    ]


def test_few_files_are_open_at_a_time(tmp_path):
    paths = [tmp_path / str(number) for number in range(5)]
    for path in paths:
        path.write_text(f"file {path.name}")
    files = OpenFiles(limit=2)
    for path in [*paths, *paths[::-1]]:
        assert files.read(path, 5, 1) == path.name.encode()
        assert len(files._files) <= 2
    kept = files._files[paths[0]]
    files.read(paths[0], 0, 4)
    assert files._files[paths[0]] is kept
    assert pickle.loads(pickle.dumps(files)).read(paths[1], 0, 4) == b"file"
    files.close()
    assert kept.closed


def test_reading_shards_needs_no_torch():
    code = "import sys; import pipelines.curation.hashes; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
