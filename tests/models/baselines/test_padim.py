"""PaDiM: anomalib's map, saved state, settings that cannot work."""

from __future__ import annotations

import pytest
import torch

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


def test_padim_gives_anomalibs_map():
    from anomalib.models.image.padim.anomaly_map import AnomalyMapGenerator

    detector = build("padim@demo", {"size": "128"})
    detector.fit(pictures(8), None)
    test = pictures(2, 3)
    embedding = next(iter(detector._embeddings(test)))
    expected = AnomalyMapGenerator().compute_anomaly_map(embedding, detector.mean, detector.inverse, (128, 128))
    torch.testing.assert_close(detector.predict(test).anomaly_map, expected[:, 0], rtol=1e-4, atol=1e-4)
