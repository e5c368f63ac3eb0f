"""The gate: bands, verdicts, exit codes, and what it refuses to judge."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from benchmarks import regression
from benchmarks.errors import UsageError
from benchmarks.store import SCHEMA


def record(seed: int, category: str = "nut", value: float = 0.9, **changes: Any) -> dict[str, Any]:
    return {
        "schema": SCHEMA, "status": "ok", "marks": [], "config_hash": "c", "dataset_fingerprint": "d",
        "unit": {"method": "m", "preset": "p", "dataset": "d", "category": category, "seed": seed},
        "metrics": {"image_auroc": value, "aupro@0.3": None},
        "protocol": {"metric_version": 1, "metric_size": "original", "image_score": "max"},
        "environment": {"finished": f"2026-01-0{seed + 1}"}, **changes,
    }


def seeds(spread: float = 0.01, **changes: Any) -> list[dict[str, Any]]:
    return [record(s, value=0.9 + (s - 1) * spread, **changes) for s in range(3)]


def test_band_is_mean_and_at_least_half_a_point() -> None:
    entry = regression.make_baseline(seeds(0.0), "x")["entries"][0]
    assert (entry["mean"], entry["sd"], entry["n"], entry["tolerance"]) == (pytest.approx(0.9), 0.0, 3, 0.005)
    assert regression.make_baseline(seeds(0.01), "x")["entries"][0]["tolerance"] == pytest.approx(0.04)


def test_same_records_pass_and_a_raised_stored_score_fails_with_a_table() -> None:
    baseline = regression.make_baseline(seeds(0.001), "x")
    assert regression.exit_code(regression.compare(baseline, seeds(0.001))) == 0
    raised = copy.deepcopy(baseline)
    raised["entries"][0]["mean"] += 0.05
    lines = regression.compare(raised, seeds(0.001))
    assert regression.exit_code(lines) == 1
    table = regression.table(lines)
    assert "m@p d/nut" in table and "95.00" in table and "-5.00" in table and "fell" in table


def test_a_rise_is_shown_and_is_no_failure() -> None:
    baseline = regression.make_baseline(seeds(0.0), "x")
    lines = regression.compare(baseline, [record(s, value=0.95) for s in range(3)])
    assert regression.exit_code(lines) == 0 and "rose" in regression.table(lines)


@pytest.mark.parametrize(("records", "why"), [
    (seeds()[:2], "no record of seed 2"),
    (seeds(dataset_fingerprint="e"), "other data"),
    (seeds(config_hash="e"), "other settings"),
    (seeds(marks=["untrained"]), "other weights"),
    (seeds(protocol={"metric_version": 1, "metric_size": 256, "image_score": "max"}), "another protocol"),
    ([], "no record of seed 0, 1, 2"),
])
def test_what_cannot_be_judged_is_exit_2(records: list[dict[str, Any]], why: str) -> None:
    lines = regression.compare(regression.make_baseline(seeds(), "x"), records)
    assert lines[0].verdict == why and regression.exit_code(lines) == 2


def test_a_metric_that_became_undefined_cannot_be_judged() -> None:
    now = [{**r, "metrics": {"image_auroc": None, "aupro@0.3": None}} for r in seeds()]
    assert regression.exit_code(regression.compare(regression.make_baseline(seeds(), "x"), now)) == 2


def test_fewer_than_three_seeds_make_no_band() -> None:
    with pytest.raises(UsageError, match="needs 3"):
        regression.make_baseline(seeds()[:2], "x")


def test_seed_noise_does_not_fire_in_twenty_repeats_of_forty_scores() -> None:
    rng = np.random.default_rng(0)

    def run(first: int) -> list[dict[str, Any]]:
        return [record(s, f"c{c}", 0.8 + rng.normal(0, 0.01)) for c in range(40) for s in range(first, first + 3)]

    checks = [regression.compare(regression.make_baseline(run(0), "x"), run(3)) for _ in range(20)]
    assert [regression.exit_code(lines) for lines in checks] == [0] * 20
    assert not any(line.same_seeds for lines in checks for line in lines)


def test_the_band_of_the_same_seeds_is_one_deviation_and_of_others_four() -> None:
    baseline = regression.make_baseline(seeds(0.01), "x")

    def check(shift: float, numbers: range) -> tuple[str, float]:
        line = regression.compare(baseline, [record(s, value=0.9 - shift) for s in numbers])[0]
        return line.verdict, round(line.tolerance, 6)

    assert check(0.009, range(3)) == ("ok", 0.01)
    assert check(0.011, range(3)) == ("fell", 0.01)
    assert check(0.039, range(3, 6)) == ("ok", 0.04)
    assert check(0.041, range(3, 6)) == ("fell", 0.04)
    assert check(0.035, range(3, 12)) == ("fell", round(0.04 * (2 / 3) ** 0.5, 6))
    assert check(0.0, range(3, 5))[0] == "no record of seed 0, 1, 2"


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"schema": 1, "entries": []}', '{"schema": 1, "entries": [{}]}']
)
def test_a_broken_baseline_is_wrong_use(tmp_path: Path, text: str) -> None:
    path = tmp_path / "b.json"
    path.write_text(text)
    with pytest.raises(UsageError, match="not a baseline file"):
        regression.read_baseline(path)
    with pytest.raises(UsageError, match="no such file"):
        regression.read_baseline(tmp_path / "none.json")


def test_junit_counts_failures_and_errors() -> None:
    baseline = regression.make_baseline(seeds(0.0) + [record(s, "x<y") for s in range(3)], "x")
    lines = regression.compare(baseline, [record(s, value=0.5) for s in range(3)])
    suite = ElementTree.fromstring(regression.junit(lines))
    assert (suite.get("tests"), suite.get("failures"), suite.get("errors")) == ("4", "1", "2")
    assert json.loads(json.dumps(baseline)) == baseline
