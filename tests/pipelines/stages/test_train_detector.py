import json

import numpy as np
import pandas as pd
import pytest
import torch
from threeae import write_3ae

from defenders.detector import accuracy, auc, probabilities, tpr_at_fpr
from pipelines.audit.detect import detect, export_onnx, load_detector
from pipelines.cli import app, run
from pipelines.errors import InputError
from pipelines.readers.threeae import by_split, read_3ae
from pipelines.reports.tables import detector_table
from pipelines.stages.train_detector import run_train_detector


@pytest.fixture(scope="module")
def trained(project, tmp_path_factory):
    other = project.copy(tmp_path_factory.mktemp("detector") / "p")
    write_3ae(other, other.layout.threeae, victims=("net", "other"))
    return other, run_train_detector(other.params(detector__robust=False), other.layout)


def test_report_is_what_the_saved_detector_does(trained):
    project, report = trained
    assert json.loads((project.layout.reports / "detector.json").read_text()) == report
    test = by_split(read_3ae(str(project.layout.threeae)))["test"]
    p = probabilities(load_detector(project.layout.detector), test)
    truth = test.adversarial
    assert report["overall"]["n"] == sum(truth)
    assert report["overall"]["accuracy"] == pytest.approx(accuracy(p, truth))
    assert report["overall"]["auc"] == pytest.approx(auc(p, truth))
    assert report["overall"]["tpr_at_1_fpr"] == pytest.approx(tpr_at_fpr(p, truth))
    assert set(report["unseen_victim"]) == {"net", "other"}
    assert report["about"]["kept"] == "plain"
    assert set(report["changes"]) == {"plain", "robust"}
    for changes in report["changes"].values():
        assert set(changes) > {"JPEG 75", "half size"}
    assert report["changes"]["plain"]["as stored"]["accuracy"] == report["overall"]["accuracy"]
    assert sum(row["n"] for row in report["psnr"].values()) == sum(truth)
    assert "unseen net" in detector_table(report)


def test_no_photograph_is_in_two_splits(trained):
    project, _ = trained
    pictures = read_3ae(str(project.layout.threeae))
    homes: dict[str, set[str]] = {}
    for picture in pictures:
        homes.setdefault(picture.parent, set()).add(picture.split)
    assert all(len(splits) == 1 for splits in homes.values())
    assert sum(not p.adversarial for p in pictures) == len(homes)


def test_same_seed_gives_the_same_detector(trained, tmp_path):
    project, _ = trained
    other = project.without_work(tmp_path / "p", "train_detector")
    run_train_detector(other.params(detector__robust=False), other.layout)
    weights = [p.layout.detector / "model.safetensors" for p in (project, other)]
    assert weights[0].read_bytes() == weights[1].read_bytes()


@pytest.mark.slow
def test_onnx_agrees(trained, tmp_path):
    pytest.importorskip("onnxruntime")
    project, _ = trained
    assert export_onnx(load_detector(project.layout.detector), tmp_path / "d.onnx") <= 1e-4
    assert (tmp_path / "d.onnx").stat().st_size > 1e5


def test_detect_scores_files_folders_and_sets(trained, tmp_path, capsys):
    project, _ = trained
    layout = project.layout
    photograph = next(iter(sorted((project.root / "photographs").iterdir())))
    places = [str(photograph), str(layout.clean), str(layout.threeae)]
    arguments = ["detect", *places, "--model", str(layout.detector)]
    arguments += ["--out", str(tmp_path / "found.parquet"), "--json"]
    assert run(lambda: app(arguments, standalone_mode=True)) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    table = pd.read_parquet(tmp_path / "found.parquet")
    assert len(rows) == len(table) == 1 + 20 + 10
    assert table["probability"].between(0, 1).all()
    clean = {p.key: p for p in read_3ae(str(layout.threeae)) if not p.adversarial}
    again = detect([str(layout.clean)], load_detector(layout.detector))
    known = again[again["id"].isin(clean)]
    assert len(known) == len(clean)
    assert np.isfinite(known["probability"]).all()


def test_bad_input(trained, tmp_path):
    project, _ = trained
    with pytest.raises(InputError, match="run `veneer train_detector` first"):
        load_detector(tmp_path)
    config, weights = (
        project.layout.detector / name for name in ("config.json", "model.safetensors")
    )
    (tmp_path / "model.safetensors").write_bytes(weights.read_bytes())
    wide = json.loads(config.read_text()) | {"width": 1.5}
    (tmp_path / "config.json").write_text(json.dumps(wide))
    with pytest.raises(InputError, match=r"weights must match the config .* width 1.5"):
        load_detector(tmp_path)
    (tmp_path / "config.json").write_text('{"kind": "nima"}')
    with pytest.raises(InputError, match="must be that of an AE detector"):
        load_detector(tmp_path)
    detector = load_detector(project.layout.detector)
    with pytest.raises(InputError, match=r"threshold must be in \(0, 1\), got 1"):
        detect([], detector, threshold=1)
    with pytest.raises(InputError, match="must be a 3AE data set with victim, mode, parent_key"):
        read_3ae(str(project.layout.clean))
    (tmp_path / "broken.png").write_bytes(b"nothing")
    found = detect([str(tmp_path / "broken.png")], detector)
    assert found["problem"][0] == "unreadable"
    assert not found["adversarial"][0]
    assert torch.isfinite(torch.tensor(report_numbers(trained[1]))).all()


def report_numbers(value) -> list[float]:
    if isinstance(value, dict):
        return [x for v in value.values() for x in report_numbers(v)]
    return [float(value)] if isinstance(value, (int, float)) else []


def test_missing_3ae_names_its_command(project, tmp_path):
    other = project.copy(tmp_path / "p")
    with pytest.raises(InputError, match="run `veneer package` first"):
        run_train_detector(other.params(), other.layout)
