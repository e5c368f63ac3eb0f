"""The table of all baselines: current, complete, and right where it is read from text."""

from __future__ import annotations

import re

import pytest

from benchmarks import sheet
from models import registry

BASELINES = [name for name, entry in registry.entries().items() if entry.module.startswith("models.baselines.")]


def rows() -> dict[str, list[str]]:
    table = sheet.sheet().split("\n\n")[0].splitlines()[2:]
    return {row.split("`")[1]: [cell.strip() for cell in row.split("|")[1:-1]] for row in table}


def test_the_page_is_current() -> None:
    assert sheet.PAGE.read_text(encoding="utf-8") == sheet.page(), "run python -m benchmarks.sheet"


def test_every_baseline_has_a_line_with_paper_year_kind_and_code() -> None:
    found = rows()
    assert sorted(found) == sorted(BASELINES)
    for name, (_, paper, year, kind, backbone, code, left) in found.items():
        assert re.fullmatch(r"20(1[4-9]|2\d)", year) and year in paper, name
        assert kind and backbone and left, name
        links = re.findall(r"\[([\w.-]+/[\w.-]+)\]\(https://github.com/\1\)", code)
        assert links or name in ("gcad", "vae"), (name, code)


@pytest.mark.parametrize(("name", "year", "backbone", "code"), [
    ("draem", "2021", "none", "authors': [VitjanZ/DRAEM](https://github.com/VitjanZ/DRAEM) at b5b11e7"),
    ("ganomaly", "2018", "none",
     "authors': [samet-akcay/ganomaly](https://github.com/samet-akcay/ganomaly) at 106a59e"),
    ("spade", "2020", "`wide_resnet50_2.tv_in1k`",
     "others': [byungjae89/SPADE-pytorch](https://github.com/byungjae89/SPADE-pytorch) at 077c67b"),
    ("mbpfm", "2023", "`resnet34.tv_in1k`, `resnet50.tv_in1k`", None),
    ("efficientad", "2024", "`pretrained_teacher_small`", None),
    ("gcad", "2022", "`resnet18.tv_in1k`", "no code is public"),
])
def test_facts_are_read_right(name: str, year: str, backbone: str, code: str | None) -> None:
    row = rows()[name]
    assert (row[2], row[4]) == (year, backbone) and code in (None, row[5])


def test_departures_are_whole_sentences() -> None:
    assert rows()["efficientad"][6] == "the decoder has the dropout of App. A"
    assert rows()["padim"][6].startswith("both sides are resized") and "0.00001" in rows()["padim"][6]


def test_figures_are_the_measured_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    found = sheet.measured()
    assert any(row.startswith("| `spade@quick` | bottle |") and "97.94" in row for row in found)
    assert all(row.count("|") == 6 and "(../results/measured/" in row for row in found)


def test_a_docstring_without_a_paper_is_refused(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sheet, "REPO", tmp_path)
    (tmp_path / "made.py").write_text('"""Something without a source."""')
    with pytest.raises(ValueError, match="must open with"):
        sheet.about("made")
