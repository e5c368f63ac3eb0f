"""SPADE after the paper and the code whose figures are quoted: neighbours, map, score, settings that cannot work."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.ndimage import gaussian_filter

from models.base import ModelError
from models.weights import WeightsError
from tests.models.baselines.common import build, check_fit_predict_seed_and_state, pictures

SMALL = {"size": "64", "neighbours": "3", "sigma": "1"}


def test_map_and_score_are_those_of_the_formulas():
    """Picture by picture in float64: K nearest by the pooled stage, then the nearest feature at any of their places."""
    detector = build("spade@quick", SMALL)
    train, test = pictures(7), pictures(1, 3) + pictures(1, 4, spot=True)
    detector.fit(train, None)
    normal = {k: v.double() for k, v in detector.net(detector.preprocess(train)).items()}
    seen = {k: v.double() for k, v in detector.net(detector.preprocess(test)).items()}
    found = detector.predict(test)
    for i in range(2):
        distance = (normal["layer3"].mean((2, 3)) - seen["layer3"][i].mean((1, 2))).norm(dim=1)
        chosen = distance.argsort()[:3]
        assert float(found.score[i]) == pytest.approx(float(distance[chosen].mean()), rel=1e-4)
        total = torch.zeros(64, 64, dtype=torch.float64)
        for layer in ("layer1", "layer2", "layer3"):
            gallery = normal[layer][chosen].permute(0, 2, 3, 1).flatten(0, 2)
            grid = torch.cdist(seen[layer][i].flatten(1).T, gallery).min(1).values.view(1, 1, *seen[layer].shape[-2:])
            total += F.interpolate(grid, (64, 64), mode="bilinear", align_corners=False)[0, 0] / 3
        expected = gaussian_filter(total.numpy(), sigma=1)
        np.testing.assert_allclose(found.anomaly_map[i].numpy(), expected, rtol=2e-3, atol=1e-3)
    assert found.score[1] > 1.5 * found.score[0] and found.anomaly_map[1].max() > 1.5 * found.anomaly_map[0].max()
    assert found.anomaly_map[1, 25:35, 25:35].mean() > 2 * found.anomaly_map[1, :10, 50:].mean()


def test_the_papers_score_is_the_mean_of_squared_distances():
    detector = build("spade@quick", {**SMALL, "squared": "true"})
    detector.fit(pictures(7), None)
    pooled = detector.net(detector.preprocess(pictures(1, 3)))["layer3"].mean((2, 3))
    least = (detector.pooled - pooled).square().sum(1).sort().values[:3]
    assert float(detector.predict(pictures(1, 3)).score) == pytest.approx(float(least.mean()), rel=1e-4)


def test_the_map_sees_the_nearest_pictures_only():
    """The twin of a defective picture makes its map zero only while it is among the K most similar pictures."""
    detector = build("spade@quick", SMALL)
    odd = pictures(1, 5, spot=True)
    detector.fit(pictures(6) + odd, None)
    assert detector.predict(odd).anomaly_map.max() == 0
    detector.pooled[-1] += 1e3
    assert detector.predict(odd).anomaly_map.max() > 1


def test_presets_are_the_papers_and_the_codes():
    for preset, k, squared in (("paper", 50, True), ("k5", 5, False)):
        detector = build(f"spade@{preset}")
        config = detector.config
        assert (config.neighbours, config.squared, config.sigma) == (k, squared, 4.0)
        assert detector.preprocess.output == (224, 224) and detector.preprocess.size == (256, 256)
        assert detector.net.channels == {"layer1": 256, "layer2": 512, "layer3": 1024, "layer4": 2048}


def test_what_cannot_work_is_refused(tmp_path):
    with pytest.raises(ModelError, match="2 training pictures, but neighbours=3"):
        build("spade@quick", SMALL).fit(pictures(2), None)
    with pytest.raises(WeightsError, match=r"resnet18\.tv_in1k"):
        build("spade@quick", weights=str(tmp_path))
    with pytest.raises(ModelError, match="no layer 'layer9'"):
        build("spade@quick", {"pooled": "layer9"})


def test_fit_predict_seed_and_state():
    check_fit_predict_seed_and_state("spade@quick", SMALL)
