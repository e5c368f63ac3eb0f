"""The demo set end to end: stored scores are reached, a raised one is caught, a new method in one file appears."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from benchmarks.store import Store
from models import registry
from tests.conftest import REPO, Cli
from tests.forked import forked_workers

BASELINE = REPO / "results" / "baselines" / "demo.json"


@pytest.fixture(scope="module")
def demo_results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results of the units that the committed baseline asks for."""
    import run_benchmark

    results = tmp_path_factory.mktemp("demo")
    command = json.loads(BASELINE.read_text())["command"].split()
    arguments = [*command[command.index("demo") :], "--results", str(results), "--device", "cpu", "--quiet"]
    with forked_workers():
        assert run_benchmark.main(arguments) == 0
    return results


def test_the_committed_baseline_is_reached(cli: Cli, demo_results: Path, tmp_path: Path) -> None:
    done = cli("check", "--baseline", BASELINE, "--results", demo_results, "--junit", tmp_path / "scores.xml",
               "--summary", tmp_path / "summary.md")
    assert done.returncode == 0, done.stdout
    assert "0 fell" in done.stdout and "0 could not be judged" in done.stdout
    assert "failures=\"0\"" in (tmp_path / "scores.xml").read_text()
    assert "Regression check" in (tmp_path / "summary.md").read_text()


def test_a_stored_score_raised_by_five_points_fails_with_a_table(
    cli: Cli, demo_results: Path, tmp_path: Path
) -> None:
    data = json.loads(BASELINE.read_text())
    scores = [e for e in data["entries"] if e["metric"] == "pixel_auroc"]
    entry = max(scores, key=lambda e: e["tolerance"])  # the widest band
    entry["mean"] += 0.05
    copy = tmp_path / "raised.json"
    copy.write_text(json.dumps(data))
    done = cli("check", "--baseline", copy, "--results", demo_results)
    assert done.returncode == 1
    assert re.search(r"\| pixel_auroc +\|.*fell", done.stdout) and "1 fell" in done.stdout


def test_without_records_the_check_cannot_judge(cli: Cli, tmp_path: Path) -> None:
    done = cli("check", "--baseline", BASELINE, "--results", tmp_path)
    assert done.returncode == 2 and "demo --methods" in done.stderr


def test_views_over_the_records(cli: Cli, demo_results: Path, tmp_path: Path) -> None:
    for form, words in (("md", "| **Brick**"), ("latex", r"\toprule"), ("csv", "brick"), ("html", "<table")):
        done = cli("table", "demo/demo", "--format", form, "--results", demo_results)
        assert done.returncode == 0 and words.lower() in done.stdout.lower(), (form, done.stdout[:500], done.stderr)
    done = cli("compare", "patchcore@demo", "padim@demo", "--datasets", "demo", "--results", demo_results)
    assert done.returncode == 0 and "Wilcoxon" in done.stdout, done.stderr
    done = cli("report", "--results", demo_results, "--out", tmp_path / "report")
    assert done.returncode == 0 and (tmp_path / "report" / "index.html").is_file(), done.stderr


def test_every_metric_has_something_to_measure_in_the_demo(demo_results: Path) -> None:
    for record in Store(demo_results).records():
        assert None not in record["metrics"].values(), record["undefined"]


def test_the_readers_example_method_runs_in_the_demo(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (REPO / "docs" / "adding.md").read_text()
    code, place = re.search(r"```python\n(.*?)```", page, re.DOTALL), re.search(r"`models/(\w+)/brightness\.py`", page)
    assert code and place and place[1] in registry.ROOMS, "the page names a folder that the registry does not read"
    folder = tmp_path / "methods"
    folder.mkdir()
    (folder / "brightness.py").write_text(code[1])
    monkeypatch.setenv("BENCH_METHODS", str(folder))
    registry.entries.cache_clear()
    try:
        done = cli("demo", "--methods", "brightness", "--results", tmp_path / "r", "--quiet")
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("brightness@demo") == 5, done.stdout
    finally:
        monkeypatch.undo()
        registry.entries.cache_clear()
