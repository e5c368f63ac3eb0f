"""Reverse Distillation"""

from __future__ import annotations

import pytest

from tests.models.baselines.common import SHORT, build, check_fit_predict_seed_and_state, pictures


@pytest.mark.slow
def test_fit_predict_seed_and_state():
    check_fit_predict_seed_and_state("reverse_distillation@quick", SHORT)


def test_feature_maps():
    detector = build("reverse_distillation@quick", SHORT)
    detector.fit(pictures(5), None)
    shapes = [tuple(m.shape) for m in detector.feature_maps(pictures(2))]
    assert shapes == [(2, 64, 16, 16), (2, 128, 8, 8), (2, 256, 4, 4)]
