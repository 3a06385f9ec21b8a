import json
import os
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest
import tiny
import yaml
from test_sources import make_livec

from pipelines import cli
from pipelines.cli.common import print_result

VENEER = Path(sys.executable).with_name("veneer")
STAGES = [
    *("import", "train_victim", "perturb", "pretrain", "attack"),
    *("curate", "annotate", "package", "evaluate"),
    *("search_trigger", "poison", "backdoor", "report_backdoor"),
]


def veneer(project: tiny.Project, *arguments: str) -> int:
    """The exit code of a command, run in this process."""
    places = ["--params", str(project.file), "--root", str(project.root)]
    return cli.run(lambda: cli.app([*arguments, *places]))


def complaint(capsys) -> str:
    """The one line on stderr; nothing on stdout."""
    printed = capsys.readouterr()
    assert printed.out == ""
    lines = printed.err.splitlines()
    assert len(lines) == 1, printed.err
    assert lines[0].startswith("veneer: ")
    return lines[0]


@pytest.fixture
def fresh(tmp_path) -> tiny.Project:
    """Photographs, scores and parameters; nothing was run."""
    return tiny.new_project(tmp_path / "p")


# What it prints


def test_help_lists_the_stages_in_order():
    done = subprocess.run([VENEER, "--help"], capture_output=True, text=True, check=True)
    places = [re.search(rf"^\W+{stage}\s", done.stdout, re.MULTILINE) for stage in STAGES]
    starts = [place.start() for place in places if place]
    assert len(starts) == len(STAGES)
    assert starts == sorted(starts)
    assert done.stderr == ""


def test_version():
    done = subprocess.run([VENEER, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"veneer {version('veneer')}\n"


def test_help_needs_no_torch():
    code = "import sys, pipelines.cli; sys.exit('torch' in sys.modules or 'pandas' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    "arguments", [["import"], ["perturb"], ["pretrain"], ["attack", "net", "restricted"]]
)
def test_json_is_all_there_is_on_stdout(project, tmp_path, capsys, arguments):
    other = project.copy(tmp_path / "p")
    assert veneer(other, *arguments, "--json") == 0
    result = json.loads(capsys.readouterr().out)
    assert "counts" in result or "filters" in result


def test_json_has_null_for_what_is_no_number(capsys):
    print_result({"srocc": float("nan")}, "no text", True)
    assert json.loads(capsys.readouterr().out, parse_constant=pytest.fail) == {"srocc": None}


def test_json_of_a_process(project, tmp_path):
    other = project.copy(tmp_path / "p")
    places = ["--params", str(other.file), "--root", str(other.root)]
    command = [VENEER, "evaluate", "--json", *places]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report == json.loads((other.layout.reports / "robustness.json").read_text())


def test_json_of_the_tools(project, tmp_path, capsys):
    assert veneer(project, "zoo", "--json") == 0
    zoo = json.loads(capsys.readouterr().out)
    assert zoo["victims"]["net"]["trained"] is True
    assert "nima" in zoo["kinds"]
    out = tmp_path / "sheet.png"
    assert veneer(project, "sheet", str(out), "--json") == 0
    assert json.loads(capsys.readouterr().out) == {"sheet": str(out)}
    assert out.exists()


def test_text_says_what_was_made(project, tmp_path, capsys):
    other = project.copy(tmp_path / "p")
    assert veneer(other, "import") == 0
    words = "20 in, 20 kept (test 5, train 10, validation 5), 0 rejected"
    assert words in capsys.readouterr().out
    assert veneer(other, "evaluate") == 0
    assert "| net | restricted | 5 |" in capsys.readouterr().out
    assert veneer(other, "train_victim", "net") == 0
    assert re.search(r"SROCC -?[\d.]+ on validation, -?[\d.]+ on test", capsys.readouterr().out)


def test_a_null_correlation_is_printed(project, tmp_path, capsys):
    other = project.copy(tmp_path / "p")
    split = {"train": 0.9, "validation": 0.05, "test": 0.05}
    params = other.params(import__splits=split, victims__net__training={"epochs": 0})
    tiny.import_all(other, params)
    with pytest.warns(UserWarning, match="correlation is undefined"):
        assert veneer(other, "train_victim", "net") == 0
    assert "SROCC n/a on validation, n/a on test" in capsys.readouterr().out


# Bad usage and bad input: exit 2


@pytest.mark.parametrize(
    "arguments", [["import", "--fast"], ["attack", "net"], ["nothing"], ["sheet", "--pairs", "0"]]
)
def test_bad_usage_exits_2(fresh, capsys, arguments):
    assert veneer(fresh, *arguments) == 2
    printed = capsys.readouterr()
    assert "Error" in printed.err
    assert "Traceback" not in printed.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train_victim", "nobody"], "victim must be one of net; got 'nobody'"),
        (["attack", "nobody", "restricted"], "victim must be one of net; got 'nobody'"),
        (["attack", "net", "free"], "mode must be one of restricted, unrestricted"),
        (["train_victim", "net"], "run `veneer import` first"),
        (["perturb"], "run `veneer import` first"),
        (["pretrain"], "run `veneer perturb` first"),
        (["attack", "net", "restricted"], "run `veneer import` first"),
        (["evaluate"], "run `veneer import` first"),
        (["sheet", "out.png"], "must hold adversarial examples, got none"),
    ],
)
def test_bad_input_is_one_sentence(fresh, capsys, arguments, words):
    assert veneer(fresh, *arguments) == 2
    assert words in complaint(capsys)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"attack__lr": "fast"}, "attack.lr must be a valid number, got 'fast'"),
        ({"import__shard_size": "many"}, "import.shard_size must be a valid integer, got 'many'"),
        ({"seed": float("nan")}, "seed must be a valid integer, got nan"),
        ({"source__name": "flickr"}, "tad66k, got 'flickr'"),
        (
            {"source__name": "sample", "source__options": {"count": "many"}},
            "options of source sample must fit it",
        ),
        ({"source__options__score_low": "low"}, "options of source folder must fit it"),
        ({"source__options__score_low": 10}, "score_low must be below score_high"),
        ({"source__options__root": "/nowhere"}, "root must be a folder with images"),
        ({"source__options__scores": "/no.csv"}, "scores must be a .csv or .parquet file"),
        ({"source__options__min_side": 3}, "must be among root, scores, "),
    ],
)
def test_parameters_that_import_refuses(fresh, capsys, changes, words):
    fresh.file.write_text(yaml.safe_dump(tiny.settings(fresh.root, **changes)))
    assert veneer(fresh, "import") == 2
    assert words in complaint(capsys)
    assert not (fresh.layout.clean / "manifest.json").exists()


def test_missing_parameter_file(fresh, capsys):
    fresh.file.unlink()
    assert veneer(fresh, "import") == 2
    words = f"params must be a readable file, got {fresh.file} (No such file or directory)"
    assert complaint(capsys) == f"veneer: {words}"


@pytest.mark.parametrize(
    ("column", "value", "words"),
    [
        ("mos", "nan", "03.png: score is not a number"),
        ("mos", "much", "03.png: score is not a number"),
        ("mos", "11", "03.png: score 11 off the scale 0 to 10"),
        ("file", "none.png", "none.png: missing file"),
    ],
)
def test_bad_rows_of_the_scores(fresh, capsys, column, value, words):
    table = pd.read_csv(fresh.root / "scores.csv", dtype=str)
    table.loc[3, column] = value
    table.to_csv(fresh.root / "scores.csv", index=False)
    assert veneer(fresh, "import") == 2
    assert words in complaint(capsys)


def test_missing_column(fresh, capsys):
    table = pd.read_csv(fresh.root / "scores.csv").rename(columns={"mos": "rating"})
    table.to_csv(fresh.root / "scores.csv", index=False)
    assert veneer(fresh, "import") == 2
    assert "must have a column 'mos' for mos, got file, rating" in complaint(capsys)


def test_livec_with_missing_photographs(fresh, capsys):
    root = make_livec(fresh.root / "livec", present=4)
    source = {"name": "livec", "options": {"root": str(root)}}
    fresh.params(source=source)
    assert veneer(fresh, "import") == 2
    sentence = complaint(capsys)
    assert "root must hold every photograph under Images/ (or set allow_missing)" in sentence
    assert f"missing in {root}: 2 (" in sentence
    source["options"]["allow_missing"] = True
    fresh.params(source=source, import__splits={"train": 0.4, "validation": 0.3, "test": 0.3})
    assert veneer(fresh, "import") == 0
    rejected = pd.read_parquet(fresh.layout.clean / "rejected.parquet")
    assert rejected["reason"].value_counts().to_dict() == {"training image": 7, "missing file": 2}


def test_truncated_photograph_is_rejected_with_a_reason(fresh, capsys):
    picture = tiny.colourful(3)
    picture.save(fresh.root / "photographs" / "03.jpg", quality=95)
    data = (fresh.root / "photographs" / "03.jpg").read_bytes()
    (fresh.root / "photographs" / "03.jpg").write_bytes(data[: len(data) // 2])
    (fresh.root / "photographs" / "03.png").unlink()
    table = (fresh.root / "scores.csv").read_text().replace("03.png", "03.jpg")
    (fresh.root / "scores.csv").write_text(table)
    assert veneer(fresh, "import", "--json") == 0
    counts = json.loads(capsys.readouterr().out)["counts"]
    assert (counts["in"], counts["kept"], counts["rejected"]) == (20, 19, 1)
    rows = pd.read_parquet(fresh.layout.clean / "rejected.parquet").to_dict("records")
    assert [(row["source_id"], row["reason"]) for row in rows] == [("03.jpg", "truncated")]


@pytest.mark.parametrize(
    ("arguments", "place"),
    [
        (["import"], "datasets/clean"),
        (["perturb"], "datasets/pretrain"),
        (["attack", "net", "restricted"], "datasets/aes"),
        (["train_victim", "net"], "models/victims"),
        (["import"], ".cache"),
    ],
)
def test_folder_that_cannot_be_written(project, tmp_path, capsys, arguments, place):
    other = project.copy(tmp_path / "p")
    (other.root / place).rename(tmp_path / "elsewhere")
    (other.root / place).write_text("a file in its place")
    assert veneer(other, *arguments) == 2
    sentence = complaint(capsys)
    assert "can be written" in sentence
    assert str(other.root) in sentence


@pytest.mark.parametrize(
    ("arguments", "place"),
    [
        (["evaluate"], "models/victims/net/model.safetensors"),
        (["evaluate"], "models/victims/net/config.json"),
        (["attack", "net", "restricted"], "models/da3/pretrained/model.safetensors"),
        (["attack", "net", "restricted"], "models/victims/net/model.safetensors"),
        (["perturb"], "datasets/clean/manifest.json"),
    ],
)
def test_damaged_files_are_named(project, tmp_path, capsys, arguments, place):
    other = project.copy(tmp_path / "p")
    path = other.root / place
    path.write_bytes(path.read_bytes()[:100])
    assert veneer(other, *arguments) == 2
    sentence = complaint(capsys)
    assert str(path.parent) in sentence


# Failures: exit 1


def test_tampered_score_exits_1(project, tmp_path, capsys):
    other = project.copy(tmp_path / "p")
    path = other.layout.examples("net", "restricted") / "metadata.parquet"
    table = pq.read_table(path)
    rows = [{**row, "score_adv": 9.0} for row in table.to_pylist()]
    pq.write_table(type(table).from_pylist(rows, schema=table.schema), path)
    assert veneer(other, "evaluate") == 1
    assert "must list the scores of the shards" in complaint(capsys)


def test_damaged_shard_exits_1(project, tmp_path, capsys):
    other = project.copy(tmp_path / "p")
    path = next((other.layout.clean / "data").glob("train-*.tar"))
    data = path.read_bytes()
    path.unlink()
    path.write_bytes(bytes(100) + b"x" * 412 + data[512:])
    assert veneer(other, "train_victim", "net") == 1
    # Found when the training reaches it, below the lines of its epochs.
    assert f"veneer: shard {path} is damaged" in capsys.readouterr().err.splitlines()[-1]


# A limit on the size of a file stands for a full disk: the kernel refuses the write alike.
LIMITED = """
import resource, sys
from pipelines import cli
from pipelines.cli.common import print_result
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), resource.RLIM_INFINITY))
sys.argv = ["veneer", *sys.argv[2:]]
cli.main()
"""


def test_full_disk_keeps_what_is_finished(fresh, tmp_path):
    fresh.params(import__shard_size=1)
    places = ["--params", str(fresh.file), "--root", str(fresh.root)]
    # One photograph is much larger than the others: its shard does not fit, those before do.
    noise = tiny.np.random.default_rng(0).integers(0, 256, (400, 400, 3), dtype=tiny.np.uint8)
    tiny.Image.fromarray(noise).save(fresh.root / "photographs" / "19.png")
    command = [sys.executable, "-c", LIMITED, "100000", "import", *places]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert "cannot be written (File too large): finished shards are kept" in done.stderr
    work = next((fresh.layout.work / "import").iterdir())
    kept = sorted(work.glob("*.tar"))
    assert 1 <= len(kept) < 20
    assert not list(work.glob(".*.tmp"))
    assert not (fresh.layout.clean / "manifest.json").exists()
    before = [path.stat().st_mtime_ns for path in kept]
    assert veneer(fresh, "import") == 0
    assert [path.stat().st_mtime_ns for path in kept] == before
    assert len(list((fresh.layout.clean / "data").iterdir())) == 20


def test_interrupt_says_so(fresh, capsys, monkeypatch):
    def stop(path):
        raise KeyboardInterrupt

    monkeypatch.setattr("pipelines.params.load_params", stop)
    assert veneer(fresh, "import") == 130
    assert "interrupted" in complaint(capsys)


def test_where_it_came_from_when_asked(fresh, monkeypatch):
    monkeypatch.setitem(os.environ, "VENEER_DEBUG", "1")
    with pytest.raises(ValueError, match="run `veneer import` first"):
        veneer(fresh, "perturb")
