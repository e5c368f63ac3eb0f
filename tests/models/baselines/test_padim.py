"""PaDiM: embedding, Gaussians, map and score after the paper, saved state, settings that cannot work."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from models.base import ModelError
from models.weights import WeightsError
from tests.models.baselines.common import build, check_fit_predict_seed_and_state, pictures


@pytest.mark.slow
def test_fit_predict_seed_and_state():
    check_fit_predict_seed_and_state("padim@demo", {"size": "64"})


def test_missing_weights_are_an_error(tmp_path):
    with pytest.raises(WeightsError, match=r"resnet18\.tv_in1k"):
        build("padim@demo", {"size": "64"}, weights=str(tmp_path))


def test_more_dimensions_than_channels_are_refused():
    with pytest.raises(ModelError, match="dimensions"):
        build("padim@demo", {"dimensions": "9999"})


def embeddings(detector, images):
    """Value by value: what a position of the first stage's grid holds of every stage, then the drawn dimensions."""
    stages = list(detector.net(detector.preprocess(images)).values())
    height, width = stages[0].shape[-2:]
    found = torch.empty(len(images), sum(s.shape[1] for s in stages), height, width)
    for y in range(height):
        for x in range(width):  # the nearest value of a deeper stage is the one whose cell covers the position
            parts = [s[:, :, y * s.shape[2] // height, x * s.shape[3] // width] for s in stages]
            found[:, :, y, x] = torch.cat(parts, 1)
    return found[:, detector.kept]


def test_deeper_stages_are_joined_by_their_nearest_value():
    """The paper (Sec. III-A) and the code whose figures are quoted repeat a value over the cells it covers."""
    detector = build("padim@demo", {"size": "64"})
    images = pictures(2, 3)
    found = next(iter(detector._embeddings(images)))
    assert torch.equal(found, embeddings(detector, images))
    assert found.shape == (2, 50, 16, 16)


def test_map_is_the_mahalanobis_distance_raised_and_smoothed():
    from scipy.ndimage import gaussian_filter
    from scipy.spatial.distance import mahalanobis

    detector = build("padim@demo", {"size": "64", "dimensions": "6"})
    train, test = pictures(12), pictures(1, 3) + pictures(1, 4, spot=True)
    detector.fit(train, None)
    normal, seen = embeddings(detector, train).double().numpy(), embeddings(detector, test).double().numpy()
    grid = np.zeros((2, 16, 16))
    for y in range(16):
        for x in range(16):
            samples = normal[:, :, y, x]
            covariance = np.cov(samples, rowvar=False) + 0.01001 * np.identity(6)
            inverse = np.linalg.inv(covariance)
            grid[:, y, x] = [mahalanobis(s[:, y, x], samples.mean(0), inverse) for s in seen]
    full = F.interpolate(torch.from_numpy(grid)[:, None], (64, 64), mode="bilinear", align_corners=False)[:, 0].numpy()
    expected = np.stack([gaussian_filter(m, sigma=4) for m in full])
    found = detector.predict(test)
    np.testing.assert_allclose(found.anomaly_map.numpy(), expected, rtol=2e-3)
    assert found.score is None  # the harness takes the map's maximum, as theirs does
    assert found.anomaly_map[1].max() > 1.5 * found.anomaly_map[0].max()


@pytest.mark.parametrize(("preset", "dimensions", "channels"), [("wrn50", 550, 1792), ("resnet18", 100, 448)])
def test_dimensions_are_the_papers(preset, dimensions, channels):
    detector = build(f"padim@{preset}")
    assert sum(detector.net.channels.values()) == channels and len(set(detector.kept.tolist())) == dimensions
    assert not torch.equal(detector.kept, build(f"padim@{preset}", seed=1).kept)


def test_gaussians_are_fitted_in_blocks_and_are_those_of_all_at_once_and_anomalibs(monkeypatch):
    """All covariances of 391 pictures on Wide-ResNet-50 took 20 GB."""
    from anomalib.models.components import MultiVariateGaussian

    from models.baselines import padim

    detector, images, sizes = build("padim@demo", {"size": "64"}), pictures(12), []
    every = torch.cat(list(detector._embeddings(images)))
    fit = padim.gaussians
    monkeypatch.setattr(padim, "gaussians", lambda part: (sizes.append(part.shape[2]), fit(part))[1])
    monkeypatch.setattr(padim, "BLOCK", 3 * 16 * 50 * 50 * 4 + 1)
    detector.fit(images, None)
    assert sizes == [48] * 5 + [16]
    for expected in (fit(every.flatten(2)), MultiVariateGaussian().fit(every)):
        for found, wanted in zip((detector.mean, detector.inverse), expected, strict=True):
            assert (found - wanted).abs().max() < 1e-5 * wanted.abs().max()


def test_anomalib_is_not_imported():
    """Its import takes longer than the fit of a small category."""
    code = (
        "import sys, torch, numpy as np\n"
        "from models import registry\n"
        "from models.base import Context\n"
        "from models.weights import WeightStore\n"
        "config = registry.config('padim@demo', {'size': '64'})\n"
        "context = Context(torch.device('cpu'), 0, WeightStore('none'))\n"
        "registry.method_class('padim')(config, context).fit([np.zeros((64, 64, 3), np.uint8)] * 3, None)\n"
        "assert not {'anomalib', 'lightning'} & sys.modules.keys()\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[3])
