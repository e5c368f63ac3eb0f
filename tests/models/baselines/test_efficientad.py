"""EfficientAD: what it asks for before it trains, and its saved state."""

from __future__ import annotations

import pytest

from models.base import ModelError
from models.weights import WeightsError
from tests.models.baselines.common import build, check_fit_predict_seed_and_state, pictures


@pytest.mark.slow
def test_fit_predict_seed_and_state():
    check_fit_predict_seed_and_state("efficientad@quick", {"steps": "2"})


def test_efficientad_asks_for_its_teacher_and_its_pictures(tmp_path):
    with pytest.raises(WeightsError, match=r"pretrained_teacher_small\.pth"):
        build("efficientad@quick", {}, weights=str(tmp_path))
    with pytest.raises(ModelError, match="natural pictures"):
        build("efficientad@small", {}).fit(pictures(3), None)


def test_small_pictures_are_refused():
    with pytest.raises(ModelError, match="at least 256"):
        build("efficientad@quick", {"size": "128"})
