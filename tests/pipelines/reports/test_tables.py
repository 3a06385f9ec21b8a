import copy

import numpy as np
import pytest
import tiny
from PIL import Image

from pipelines.errors import InputError
from pipelines.reports.contact_sheet import TEXT_HEIGHT, contact_sheet
from pipelines.reports.tables import pretrain_table, robustness_table

COLUMNS = 9


def test_robustness_table_has_a_row_for_each_victim_and_mode(results):
    lines = robustness_table(results["evaluate"]).splitlines()
    assert lines[0].startswith("data folder (simulated labels), seed 0, refine 0, ")
    assert len(lines) == 4 + 2
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]
    assert {len(row) for row in rows} == {COLUMNS}
    measured = results["evaluate"]["net"]["restricted"]
    row = next(row for row in rows if row[1] == "restricted")
    assert row[:3] == ["net", "restricted", str(measured["n"])]
    assert row[4] == f"{measured['rasr']:.1f}"
    assert row[7] == f"{measured['psnr']:.1f}"
    assert row[8] == ", ".join(measured["top_filters"].split())


def test_what_could_not_be_measured_is_na(results):
    report = copy.deepcopy(results["evaluate"])
    report["net"]["restricted"] |= {"basr": None, "art_hours": None, "art_steps": None}
    row = robustness_table(report).splitlines()[-1]
    assert "| n/a |" in row
    assert "| n/a (n/a) |" in row


def test_pretrain_table_has_a_row_for_each_filter(results):
    lines = pretrain_table(results["pretrain"]).splitlines()
    assert len(lines) == 2 + 14
    hue = results["pretrain"]["filters"]["hue"]
    assert f"| hue | {hue['error']:.5f} | {hue['nothing']:.5f} | {hue['ratio']:.2f} |" in lines


def folders(project: tiny.Project) -> list:
    return [project.layout.examples("net", mode) for mode in tiny.MODES]


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_contact_sheet(project, tmp_path, suffix):
    out = tmp_path / "deep" / f"sheet.{suffix}"
    contact_sheet(project.layout.clean, folders(project), out, pairs=2, width=64)
    with Image.open(out) as image:
        pixels = np.asarray(image.convert("RGB"))
    assert pixels.shape[1] == 2 * (2 * 64 + 2 + 8)
    # Two rows of a title, the tallest pair (48 x 64 at a width of 64) at most, and its text.
    assert pixels.shape[0] in [
        a + b + 2 * (16 + TEXT_HEIGHT) for a in (48, 64, 85) for b in (48, 64, 85)
    ]
    assert pixels[20:60, :64].std() > 10
    assert (pixels[20:60, :64] != pixels[20:60, 66:130]).any()


def test_contact_sheet_with_more_pairs_than_examples(project, tmp_path):
    contact_sheet(project.layout.clean, folders(project)[:1], tmp_path / "s.png", pairs=9, width=64)
    with Image.open(tmp_path / "s.png") as image:
        assert image.width == 9 * (2 * 64 + 2 + 8)


def test_contact_sheet_of_photographs_that_are_not_there(project, tmp_path):
    with pytest.raises(InputError, match=r"photograph [0-9a-f]{16} of example [0-9a-f]{16} is not"):
        contact_sheet(project.layout.perturbed, folders(project), tmp_path / "s.png")


def test_contact_sheet_of_nothing(project, tmp_path):
    with pytest.raises(InputError, match="must hold adversarial examples, got none"):
        contact_sheet(project.layout.clean, [tmp_path], tmp_path / "s.png")


def test_sheet_is_small(project, tmp_path):
    contact_sheet(project.layout.clean, folders(project), tmp_path / "s.jpg")
    assert (tmp_path / "s.jpg").stat().st_size < 200_000
    assert (tmp_path / "s.jpg").read_bytes()[:2] == b"\xff\xd8"
