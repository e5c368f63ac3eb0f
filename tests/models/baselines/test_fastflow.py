"""FastFlow"""

from __future__ import annotations

import pytest

from tests.models.baselines.common import SHORT, check_fit_predict_seed_and_state


@pytest.mark.slow
def test_fit_predict_seed_and_state():
    check_fit_predict_seed_and_state("fastflow@quick", SHORT)
