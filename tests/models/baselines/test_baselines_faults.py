"""Three faults per baseline (a joining, a sign or weight of the loss, the rule of map or score), each caught by a test.

A slow test: one process per fault. A new fault is one line in FAULTS; the test named in it must be quick.
"""

from __future__ import annotations

import pytest

from tests.planted import Fault, caught

HERE = "tests/models/baselines"
FAULTS = [
    Fault("models/baselines/patchcore.py", "score, place = patch_scores.max(1)", "score, place = patch_scores.min(1)",
          f"{HERE}/test_patchcore.py::test_patchcore_finds_a_square_and_scores_its_largest_patch"),
]


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS, ids=str)
def test_fault_is_caught(fault: Fault) -> None:
    found, output = caught(fault)
    assert found, f"{fault.test} passes with this fault in {fault.file}:\n{fault.old}\nmade\n{fault.new}\n\n{output}"
