"""STFPM"""

from __future__ import annotations

import pytest

from models.base import ModelError
from tests.models.baselines.common import SHORT, build, check_fit_predict_seed_and_state, pictures


@pytest.mark.slow
def test_fit_predict_seed_and_state():
    check_fit_predict_seed_and_state("stfpm@demo", SHORT)


def test_stfpm_learns():
    log = build("stfpm@demo", {**SHORT, "epochs": "6"}).fit(pictures(6), None)
    assert log["loss"][-1] < 0.8 * log["loss"][0]


def test_loss_that_is_not_finite_names_the_epoch():
    with pytest.raises(ModelError, match="epoch 1"):
        build("stfpm@demo", {**SHORT, "lr": "nan"}).fit(pictures(4), None)
