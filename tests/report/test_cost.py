"""What a training costs: an ensemble's members and lent features count, wherever they came from."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.report import views
from benchmarks.report.numbers.cells import _values
from benchmarks.report.numbers.pool import Pool, cost, pool
from benchmarks.report.numbers.suites import Line, TableSpec
from benchmarks.report.numbers.tables import assemble
from benchmarks.report.text.comparison import cost_table
from tests.report.conftest import make_record


def ensemble(how: dict[str, str], seconds: float, seed: int) -> dict[str, Any]:
    record = make_record("feature_ensemble@global_pair", "pushpins", seed, "mvtec_loco", image_auroc=0.9)
    record["timing"]["fit_s"] = seconds
    record["training"] = {"members": how, "member_fit_s": {"patchcore@wrn50_10pct": 40.0, "simplenet@wrn50": 300.0}}
    return record


def test_members_lent_by_other_units_are_added_and_own_ones_are_not_counted_twice() -> None:
    first = ensemble({"patchcore@wrn50_10pct": "fitted", "simplenet@wrn50": "fitted"}, 400.0, 0)
    last = ensemble({"patchcore@wrn50_10pct": "reused", "simplenet@wrn50": "reused"}, 60.0, 1)
    partly = ensemble({"patchcore@wrn50_10pct": "fitted", "simplenet@wrn50": "reused"}, 100.0, 2)
    values, wrong = _values({0: first, 1: last, 2: partly}, "timing/training_s")
    assert values == {0: 400.0, 1: 400.0, 2: 400.0} and wrong is None
    assert _values({1: last}, "timing/fit_s")[0] == {1: 60.0}
    units = Pool({("feature_ensemble", "global_pair", "mvtec_loco", "pushpins"): {0: first, 1: last, 2: partly}})
    table = cost_table(units, ["feature_ensemble@global_pair"])
    assert table.rows[0][table.heads.index("training (s)")] == "400.0"


@pytest.mark.parametrize("training", [{"loss": [1.0]}, {}, {"members": ["a"]}])
def test_other_methods_cost_what_their_fit_took(training: dict[str, Any]) -> None:
    record = make_record("patchcore@wrn50_10pct", image_auroc=0.9)
    record["training"] = training
    assert cost(record, "timing", "training_s") == 10.0 and cost(record, "memory", "peak_device_mb") is None
    record["timing"] = {}
    assert cost(record, "timing", "training_s") is None


def timed(spec: str, device: str = "cpu: test", features: dict[str, float] | None = None) -> dict[str, Any]:
    """60 test pictures in 5 s, fitted in 10 s, 17 s in all."""
    record = make_record(spec, "pushpins", 0, "mvtec_loco", image_auroc=0.9)
    record["environment"]["device"] = device
    if features is not None:
        record["features"] = features
    return record


def test_features_that_another_unit_computed_are_paid_for() -> None:
    """PaDiM pays for the pass over the backbone, PatchCore after it took it over: both cost as if alone."""
    lender = timed("padim@wrn50", features={"saved_s": 0.0, "lent_fit_s": 0.0, "lent_predict_s": 0.0})
    borrower = timed("patchcore@wrn50_10pct", features={"saved_s": 50.0, "lent_fit_s": 20.0, "lent_predict_s": 7.0})
    assert [cost(lender, "timing", name) for name in ("training_s", "images_per_s", "total_s")] == [10.0, 12.0, 17.0]
    assert [cost(borrower, "timing", name) for name in ("training_s", "images_per_s", "total_s")] == [30.0, 5.0, 44.0]
    assert cost(borrower, "timing", "predict_s") == 5.0, "what was measured stays what it is"
    unsaid = timed("patchcore@wrn50_10pct", features={"saved_s": 50.0})
    assert cost(unsaid, "timing", "images_per_s") is None and cost(unsaid, "timing", "training_s") is None
    text = views.comparison([lender, borrower], ["padim@wrn50", "patchcore@wrn50_10pct"])
    assert "as if each unit had run alone" in text and "| 12.0 |" in " ".join(text.split()), text
    assert "| 5.0 |" in " ".join(text.split()), text


SURVEY = TableSpec(
    paper="runs", name="cost", title="Cost", caption="", rows=(
        Line("a", "a", method="a@x", categories=("pushpins",)), Line("b", "b", method="b@x", categories=("pushpins",)),
    ), columns=(Line("speed", "Pictures per second", metrics=("timing/images_per_s",)),),
    dataset="mvtec_loco", unit="plain", best="column", methods_in="rows",
)


def test_costs_of_different_devices_are_not_ranked() -> None:
    same = assemble(SURVEY, pool([timed("a@x"), timed("b@x")]))
    assert [row[0].rank for row in same.cells] == [1, 1]
    assert any("runs alone" in note for note in same.notes) and any("on cpu: test" in note for note in same.notes)
    other = assemble(SURVEY, pool([timed("a@x"), timed("b@x", device="cuda: H100")]))
    assert [row[0].rank for row in other.cells] == [0, 0]
    assert any("2 devices" in note and "b@x on cuda: H100" in note for note in other.notes), other.notes


def test_the_front_holds_methods_that_none_beats_in_both(tmp_path) -> None:
    from benchmarks.report.drawings.comparison import latency
    from benchmarks.report.numbers.compare import comparisons
    from benchmarks.report.numbers.front import places

    records = []
    for spec, value, seconds, device in (
        ("a@x", 0.95, 0.05, "cpu"), ("b@x", 0.95, 0.06, "cpu"), ("c@x", 0.90, 0.01, "cpu"), ("d@x", 0.89, 0.02, "cpu"),
        ("e@x", 0.99, 0.20, "cpu"), ("f@x", 0.50, 0.30, "gpu"), ("g@x", 0.99, None, "cpu"),
    ):
        record = make_record(spec, "bottle", 0, image_auroc=value)
        record["environment"]["device"] = device
        record["timing"] |= {"latency_p50_s": seconds} if seconds else {}
        records.append(record)
    found, methods = pool(records), [f"{m}@x" for m in "abcdefg"]
    (result,) = comparisons(found, methods, ["image_auroc"])
    spots = places(result, found)
    assert [(p.method, p.front) for p in spots] == [
        ("c@x", True), ("d@x", False), ("a@x", True), ("b@x", False), ("e@x", True), ("f@x", True)]
    table = cost_table(found, methods, result)
    assert [row[-1] for row in table.rows] == ["yes", "no", "yes", "no", "yes", "yes", "—"]
    assert latency([p for p in spots if p.device == "cpu"], tmp_path / "l.png", ylabel="x").stat().st_size > 5000
    assert "on the front of Image AUROC" in views.comparison(records, methods, metric="image_auroc")
