"""Tables on a terminal: within its width, nothing lost, best bold, second underlined; Markdown where there is none."""

from __future__ import annotations

import io
import re
import sys

import pytest

from benchmarks.report import views
from benchmarks.report.numbers import suites
from benchmarks.report.numbers.tables import build, generic
from benchmarks.report.text.terminal import terminal

ANSI = re.compile(r"\x1b\[[0-9;]*m")


def runs(record) -> list[dict]:
    return [
        record(m, c, image_auroc=v, pixel_auroc=v - 0.01, **{"aupro@0.3": v / 2}, marks=("reduced",))
        for m, v in (("rb_ae@paper", 0.95), ("padim@wrn50", 0.9), ("x@y", 0.8)) for c in ("wood", "tile")
    ]


@pytest.mark.parametrize("width", [60, 80, 160])
def test_every_table_of_every_paper_fits_and_loses_nothing(
    record, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    for suite in suites.all():
        for spec in suite.tables:
            table = build(suite.paper, spec.name, runs(record))
            text = ANSI.sub("", terminal(table, width))
            body = [line.rstrip() for line in text.splitlines()]
            assert max(map(len, body)) <= width, (table.id, max(body, key=len))
            printed = sorted(c.printed.text for row in table.cells for c in row if c.printed and c.printed.value)
            digits = [c.need.digits for row in table.cells for c in row]
            if all(len(text.partition(".")[2]) <= min(digits) for text in printed):
                shown = re.findall(r"(?<![\w.@])\d[\d.]*(?![\w.@])", text)
                assert not [text for text in set(printed) if printed.count(text) > shown.count(text)], table.id


def test_styles_and_groups(record, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    text = terminal(generic(runs(record))[0], 80)
    assert "\x1b[1m95.00\x1b[0m" in text and "\x1b[4m90.00\x1b[0m" in text and "80.00" in text
    lines = ANSI.sub("", text).splitlines()
    at = lines.index("tile")
    assert [line.split()[0] for line in lines[at + 1 : at + 4]] == ["padim@wrn50", "rb_ae@paper", "x@y"]
    assert lines.count("tile") == 1 and "Mean over 2 of 15 categories" in lines
    monkeypatch.setenv("TERM", "dumb")
    assert "\x1b" not in terminal(generic(runs(record))[0], 80)
    odd = terminal(generic([record("a@x", "wo\x1b[31mod", image_auroc=0.9)])[0], 80)
    assert "wo?[31mod" in odd


def test_markdown_when_piped(record, monkeypatch: pytest.MonkeyPatch) -> None:
    assert views.render(generic(runs(record))[0], "screen").startswith("### mvtec")

    class Screen(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stdout", Screen())
    monkeypatch.setenv("COLUMNS", "70")
    monkeypatch.setenv("TERM", "xterm")
    compared = views.comparison(runs(record), ["rb_ae@paper", "padim@wrn50"], form="screen")
    for text in (views.render(generic(runs(record))[0], "screen"), compared):
        assert "###" not in text and "|" not in text and "─" in text
        assert max(len(line.rstrip()) for line in ANSI.sub("", text).splitlines()) <= 70
