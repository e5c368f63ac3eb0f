"""SuperSimpleNet: saved state, and settings that cannot work."""

from __future__ import annotations

import pytest

from models.base import ModelError
from models.weights import WeightsError
from tests.models.baselines.common import SHORT, build, check_fit_predict_seed_and_state


@pytest.mark.slow
def test_fit_predict_seed_and_state():
    check_fit_predict_seed_and_state("supersimplenet@quick", {**SHORT, "size": "128"})


def test_missing_weights_are_an_error(tmp_path):
    with pytest.raises(WeightsError, match=r"resnet18\.tv_in1k"):
        build("supersimplenet@quick", {"size": "128"}, weights=str(tmp_path))


def test_small_pictures_are_refused():
    with pytest.raises(ModelError, match="at least 128"):
        build("supersimplenet@quick", {"size": "64"})
