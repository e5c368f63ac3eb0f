"""DRAEM"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from tests.models.baselines.common import build, check_fit_predict_seed_and_state, pictures


@pytest.mark.slow
def test_fit_predict_seed_and_state():
    check_fit_predict_seed_and_state("draem@quick", {"epochs": "1", "train_batch": "3", "size": "64"})


@pytest.mark.slow
def test_draem_scores_the_largest_mean_and_gives_its_last_map():
    detector = build("draem@quick", {"epochs": "1", "train_batch": "3", "size": "64"})
    detector.fit(pictures(3), None)
    result = detector.predict(pictures(2))
    means = F.avg_pool2d(result.anomaly_map.unsqueeze(1), 21, 1, 10).amax((1, 2, 3))
    assert torch.equal(result.score, means)
    assert [tuple(m.shape) for m in detector.feature_maps(pictures(2))] == [(2, 64, 64, 64)]
