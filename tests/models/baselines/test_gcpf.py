"""GCPF after the authors' code: shrunk covariances, clusters by Mahalanobis distance, map."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.ndimage import gaussian_filter
from scipy.spatial.distance import mahalanobis

from models.base import ModelError
from models.baselines import gcpf
from tests.models.baselines.common import build, check_fit_predict_seed_and_state, pictures

SMALL = {"size": "64", "rounds": "3", "clusters": "3", "sigma": "1"}


@pytest.mark.parametrize("count", [5, 40, 4000])
def test_covariance_is_that_of_ledoit_and_wolf(count):
    from sklearn.covariance import ledoit_wolf

    x = torch.randn(count, 8, generator=torch.Generator().manual_seed(0)) * torch.arange(1.0, 9) + 3
    mean, found = gcpf.ledoit_wolf(x)
    assert torch.allclose(mean, x.mean(0))
    np.testing.assert_allclose(found.numpy(), ledoit_wolf(x.double().numpy())[0], rtol=1e-3, atol=1e-3)


def test_clusters_are_told_apart_by_their_shape():
    """A long and a round cloud: k-means cuts the long one in two, the Gaussians take its far end back."""
    random = torch.Generator().manual_seed(0)
    long = torch.randn(600, 2, generator=random) * torch.tensor([12.0, 0.5])
    round_ = torch.randn(600, 2, generator=random) * 0.5 + torch.tensor([16.0, 5.0])
    x, own = torch.cat([long, round_]), torch.arange(1200) // 600
    start = torch.tensor([[-8.0, 0.0], [14.0, 3.0]])

    def right(means, whiten):
        return float((gcpf.nearest(x, means, whiten)[1] == own).float().mean())

    plain = float((torch.cdist(x, gcpf.clustered(x, start, 50)[0]).argmin(1) == own).float().mean())
    means, whiten, rounds, moved = gcpf.clustered(x, start, 50)
    assert right(means, whiten) > 0.99 > plain and rounds > 1 and moved < gcpf.MOVED
    assert torch.allclose(means[1], torch.tensor([16.0, 5.0]), atol=0.2)


def test_an_empty_cluster_does_no_harm():
    x = torch.randn(50, 2, generator=torch.Generator().manual_seed(0))
    means, whiten, *_ = gcpf.clustered(x, torch.tensor([[0.0, 0.0], [1e6, 1e6]]), 5)
    assert torch.isfinite(means).all() and torch.isfinite(whiten).all()
    assert torch.isfinite(gcpf.nearest(x, means, whiten)[0]).all()


def test_map_is_the_least_mahalanobis_distance_of_each_stage():
    detector, test = build("gcpf@quick", SMALL), pictures(1, 3) + pictures(1, 4, spot=True)
    detector.fit(pictures(6), None)
    seen = {k: v.double() for k, v in detector.net(detector.preprocess(test)).items()}
    total = torch.zeros(2, 64, 64, dtype=torch.float64)
    for layer, maps in seen.items():
        w = detector.whiten[layer].double()
        inverse = (w @ w.transpose(1, 2)).numpy()
        grid = torch.tensor([
            [[min(mahalanobis(v, m, s) for m, s in zip(detector.means[layer].double().numpy(), inverse, strict=True))
              for v in row.T.numpy()] for row in one.transpose(0, 1)] for one in maps
        ])
        total += F.interpolate(grid[:, None], (64, 64), mode="bilinear", align_corners=False)[:, 0] / 3
    expected = np.stack([gaussian_filter(m, sigma=1) for m in total.numpy()])
    found = detector.predict(test)
    np.testing.assert_allclose(found.anomaly_map.numpy(), expected, rtol=5e-3)
    assert found.score is None and found.anomaly_map[1].max() > 1.5 * found.anomaly_map[0].max()


def test_preset_is_the_code_and_the_seed_draws_the_start():
    config = build("gcpf@wrn50").config
    assert (config.clusters, config.rounds, config.size, config.crop, config.sigma) == (10, 1000, 256, 224, 4.0)
    maps = []
    for seed in (0, 1):
        detector = build("gcpf@quick", SMALL, seed=seed)
        detector.fit(pictures(6), None)
        maps.append(detector.predict(pictures(1, 4, spot=True)).anomaly_map)
    assert not torch.equal(*maps)


def test_what_cannot_work_is_refused():
    with pytest.raises(ModelError, match="16 positions in 1 training pictures are too few for 20 clusters"):
        build("gcpf@quick", {**SMALL, "layers": "layer3", "clusters": "20"}).fit(pictures(1), None)
    detector = build("gcpf@quick", SMALL)
    with pytest.raises(ModelError, match="too few"):
        detector.fit([], None)


def test_fit_predict_seed_and_state():
    check_fit_predict_seed_and_state("gcpf@quick", SMALL)
