"""Progress lines."""

import math

from pipelines.execution.progress import epoch_reporter


def test_a_line_shows_what_an_epoch_has(capsys):
    report = epoch_reporter("train", 3, ["loss", "srocc"])
    report({"epoch": 0, "loss": math.nan})
    report({"epoch": 1, "loss": 0.25, "srocc": 0.5})
    assert capsys.readouterr().err.splitlines() == [
        "train: epoch 0/3",
        "train: epoch 1/3, loss 0.25, srocc 0.5",
    ]
