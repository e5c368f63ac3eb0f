"""PUAD: the second score by hand, and how both are brought together."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.covariance import LedoitWolf

from models.base import ModelError
from models.baselines.efficientad import EfficientAd
from models.nn.training import split
from tests.models.baselines.common import build, equal, pictures


@pytest.fixture(scope="module")
def fitted():
    detector = build("puad@quick", {"steps": "1"})
    detector.fit(pictures(6), pictures(4, seed=2))
    return detector


def test_distance_is_mahalanobis_to_the_training_pictures(fitted):
    with torch.no_grad():
        means = [fitted.trained["model"].student(fitted.preprocess([p]))[0, :384].double().mean((1, 2)).numpy()
                 for p in pictures(6)]
    model = LedoitWolf().fit(np.stack(means))
    (test,) = pictures(1, seed=7, spot=True)
    with torch.no_grad():
        own = fitted.trained["model"].student(fitted.preprocess([test]))[0, :384].double().mean((1, 2)).numpy()
    off = own - np.stack(means).mean(0)
    expected = np.sqrt(off @ np.linalg.pinv(model.covariance_) @ off)
    assert fitted._distance([test]).item() == pytest.approx(expected, rel=1e-3)


def test_scores_are_on_one_scale_over_the_validation_pictures(fitted):
    held = pictures(4, seed=2)
    own, distance = fitted._scores(held)
    mean, deviation, other_mean, other_deviation = fitted.scales
    for part, middle, width in ((own, mean, deviation), (distance, other_mean, other_deviation)):
        scaled = (part.double() - middle) / width
        assert scaled.mean().item() == pytest.approx(0, abs=1e-5)
        assert scaled.std(correction=0).item() == pytest.approx(1, abs=1e-5)
    (test,) = pictures(1, seed=7, spot=True)
    a, b = fitted._scores([test])
    expected = (a.item() - mean) / deviation + (b.item() - other_mean) / other_deviation
    assert fitted.predict([test]).score.item() == pytest.approx(expected, rel=1e-4)


def test_maps_are_efficientads(fitted):
    batch = pictures(2, seed=3)
    assert torch.equal(fitted.predict(batch).anomaly_map, EfficientAd.predict(fitted, batch).anomaly_map)


def test_it_is_restored_whole(fitted):
    other = build("puad@quick", {"steps": "3"}, seed=5)
    other.load_state_dict(fitted.state_dict())
    assert equal(other.predict(pictures(2)), fitted.predict(pictures(2)))


def test_without_a_validation_split_a_tenth_stands_for_it_and_one_picture_is_too_few(monkeypatch):
    detector = build("puad@quick", {"steps": "2"})
    with pytest.raises(ModelError, match="1 validation pictures"):
        detector.fit(pictures(6), None)
    train, (kept, held) = pictures(20), split(20, 0.1, detector.context, minimum=2)
    asked: dict[str, list[int]] = {"means": [], "scores": []}

    def means(batch):
        asked["means"] += map(id, batch)
        return torch.tensor([[p.mean(), p.std()] for p in batch])

    def scores(batch):
        asked["scores"] += map(id, batch)
        return tuple(torch.tensor([[p.mean(), p.std()] for p in batch]).T)

    monkeypatch.setattr(EfficientAd, "fit", lambda *_: {})  # holds back the same ones
    monkeypatch.setattr(detector, "_means", means)
    monkeypatch.setattr(detector, "_scores", scores)
    detector.fit(train, None)
    assert asked == {"means": [id(train[i]) for i in kept], "scores": [id(train[i]) for i in held]}
    assert len(held) == 2 and detector.scales[0] == pytest.approx(np.mean([train[i].mean() for i in held]))
