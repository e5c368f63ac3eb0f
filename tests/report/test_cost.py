"""What a training costs: an ensemble's members count, wherever they were fitted."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.report.numbers.cells import _values
from benchmarks.report.numbers.pool import Pool, cost
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
    pool = Pool({("feature_ensemble", "global_pair", "mvtec_loco", "pushpins"): {0: first, 1: last, 2: partly}})
    table = cost_table(pool, ["feature_ensemble@global_pair"])
    assert table.rows[0][table.heads.index("training (s)")] == "400.0"


@pytest.mark.parametrize("training", [{"loss": [1.0]}, {}, {"members": ["a"]}])
def test_other_methods_cost_what_their_fit_took(training: dict[str, Any]) -> None:
    record = make_record("patchcore@wrn50_10pct", image_auroc=0.9)
    record["training"] = training
    assert cost(record, "timing", "training_s") == 10.0 and cost(record, "memory", "peak_device_mb") is None
    record["timing"] = {}
    assert cost(record, "timing", "training_s") is None
