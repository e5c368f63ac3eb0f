"""What a newcomer reads and types first: the README's names and commands, `show`, `list papers`, `--version`."""

from __future__ import annotations

import re
import shlex
import warnings
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

import run_benchmark
from benchmarks.commands.show import comments
from benchmarks.launchers import progress, worker
from benchmarks.report.numbers import suites
from models import registry
from tests.conftest import Cli
from tests.report.conftest import make_record
from tests.report.test_html import store

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def test_the_readme_names_every_method_and_every_paper() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    families = text[text.index("| family | methods |") :]
    rooms = ("models.baselines.", "models.papers.", "models.ensembles.")
    ours = [entry.name for entry in registry.entries().values() if entry.module.startswith(rooms)]
    assert not [name for name in ours if f"`{name}`" not in families]
    for suite in suites.all():
        if suite.paper in ("demo", "loco", "production"):
            continue
        name = re.search(r'"(.+)"', suite.source)[1]
        assert name in text and f"reproduce --paper {suite.paper} " in text and suite.link in text, suite.paper


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_on_the_pages_can_be_typed(page: Path) -> None:
    """Every command of a code block is understood by the command line."""
    text = page.read_text(encoding="utf-8")
    blocks = re.sub(r"\\\n\s*", "", "\n".join(re.findall(r"```[a-z]*\n(.*?)```", text, re.S)))
    for line in re.findall(r"^python run_benchmark\.py (.+)$", blocks, re.M):
        words = shlex.split(re.split(r"\s{2,}(?=\S)", line)[0], comments=True)
        if not re.search(r"\.\.\.|[|$]", line):  # a shape, not a command
            run_benchmark.parser().parse_args(words)


@pytest.mark.parametrize("page", PAGES[:2], ids=lambda page: page.name)
def test_links_of_the_first_pages_lead_to_files(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
    assert len(targets) >= 3 and not [target for target in targets if not (page.parent / target).exists()]


def test_list_papers_counts_what_is_published_and_measured(cli: Cli, tmp_path: Path) -> None:
    def row(text: str, paper: str) -> list[int]:
        line = next(line for line in text.splitlines() if line.startswith(f"{paper} "))
        return [int(n) for n in line.split("  ") if n.strip().isdigit()]

    empty = cli("list", "papers", "--results", tmp_path)
    assert row(empty.stdout, "rb_ae")[3:] == [0, 0] and "arxiv.org/abs/2302.09794" in empty.stdout
    store(tmp_path, [
        make_record("rb_ae@paper", "wood", image_auroc=0.9), make_record("rb_ae@paper", "tile", image_auroc=0.9,
                                                                         marks=("reduced",)),
    ])
    some = row(cli("list", "papers", "--results", tmp_path).stdout, "rb_ae")
    assert some[:3] == row(empty.stdout, "rb_ae")[:3] and some[1] == 230, some
    # wood stands in table II and as variant A of table V, tile and the mean over both in table II only
    assert some[3:] == [3, 2], some


def test_show_says_what_a_method_is_set_to(cli: Cli) -> None:
    done = cli("show", "patchcore@resnet18")
    assert done.returncode == 0, done.stderr
    text = re.sub(r"\s+", " ", done.stdout)
    for wanted in ("models/baselines/patchcore.py", "coreset 0.01 share of the patches kept; the paper reports",
                   "Pretrained weights: resnet18.tv_in1k", "wrn50_10pct backbone=wide_resnet50_2.tv_in1k, crop=224"):
        assert wanted in text, (wanted, text)
    assert cli("show", "patchcor").returncode == 2


@dataclass(frozen=True)
class Base:
    size: int = 1  # of the base


@dataclass(frozen=True)
class Sub(Base):
    # above, in two
    # lines
    rate: float = 0.1
    plain: int = 3
    both: tuple[int, ...] = (1, 2)  # beside, not a # sign


def test_comments_of_fields() -> None:
    assert comments(Sub) == {"size": "of the base", "rate": "above, in two lines", "both": "beside, not a # sign"}


def test_version_names_what_a_report_of_a_fault_needs(cli: Cli) -> None:
    done = cli("--version")
    assert done.returncode == 0 and re.search(r"metric version \d+", done.stdout) and "torch 2." in done.stdout


def test_citation_and_templates_can_be_read() -> None:
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert cited["cff-version"] == "1.2.0" and cited["license"] == "Apache-2.0" and cited["authors"] and cited["title"]
    assert "Version 2.0, January 2004" in (ROOT / "LICENSE").read_text()
    for template in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.md"):
        head = yaml.safe_load(template.read_text().split("---")[1])
        assert head["name"] and head["about"]
    ruff = re.search(r"^ruff==(\S+)", (ROOT / "requirements-dev.txt").read_text(), re.M)[1]
    assert f"rev: v{ruff}" in (ROOT / ".pre-commit-config.yaml").read_text()


JOB = SimpleNamespace(unit="padim@demo own/nut seed 0")


def test_without_a_terminal_there_is_a_line_a_unit_and_one_a_minute(
    capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    bars = progress.Bars(3, False)
    bars.progress(0, JOB, "fit", 1, 10, {})
    assert not capsys.readouterr().err, "a step is no news within the minute"
    monkeypatch.setattr(progress, "EVERY_S", 0.0)
    bars.progress(0, JOB, "fit", 2, 10, {})
    bars.finished(JOB, "ok", {"timing": {"total_s": 12.34}, "metrics": {"image_auroc": 0.98764}})
    bars.finished(JOB, "failed", {"timing": {"total_s": 1.0}, "metrics": {}})
    lines = capsys.readouterr().err.splitlines()
    assert [re.sub(r"^\d\d:\d\d:\d\d ", "", line) for line in lines] == [
        f"[0/3] running  {JOB.unit}: fit 2 of 10", f"[1/3]      ok  {JOB.unit}, 12.3 s, image AUROC 98.76",
        f"[2/3]  failed  {JOB.unit}, 1.0 s",
    ]
    assert progress.outcome({"metrics": {"image_auroc": 0.5, "image_auroc/mean": 0.25}}) == ", image AUROC 25.00"
    quiet = progress.Bars(1, True)
    quiet.progress(0, JOB, "fit", 2, 10, {})
    quiet.finished(JOB, "ok", {})
    assert not capsys.readouterr().err


def test_warnings_of_libraries_go_to_the_log_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
    worker._warnings_to_log([SimpleNamespace(results=tmp_path, unit=JOB.unit)])
    for text in ("old name", "old name", "other"):
        warnings.showwarning(UserWarning(text), UserWarning, "timm.py", 3)
    lines = (tmp_path / "warnings.log").read_text().splitlines()
    assert len(lines) == 2 and f"{JOB.unit}: UserWarning: old name (timm.py:3)" in lines[0]
    assert not capsys.readouterr().err
