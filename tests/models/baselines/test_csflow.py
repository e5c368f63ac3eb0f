"""CS-Flow"""

from __future__ import annotations

import pytest

from models.base import ModelError
from tests.models.baselines.common import build, check_fit_predict_seed_and_state


@pytest.mark.slow
def test_fit_predict_seed_and_state():
    check_fit_predict_seed_and_state("csflow@quick", {"epochs": "1", "hidden": "4", "blocks": "2"})


def test_size_that_the_scales_cannot_halve_is_refused():
    with pytest.raises(ModelError, match="multiple of 128"):
        build("csflow@quick", {"size": "200"})
