"""The way to any other image model of anomalib."""

from __future__ import annotations

import pytest
import torch

from models import registry
from models.base import Context, ModelError
from models.weights import WeightStore
from tests.models.baselines.common import CPU, build, pictures


def test_any_other_model_of_anomalib(tmp_path):
    detector = build("anomalib/padim", {"size": "64", "train_batch": "4"}, scratch=tmp_path)
    assert detector.name == "anomalib/padim" and "untrained" in detector.context.weights.used.values()
    detector.fit(pictures(6), None)
    result = detector.predict(pictures(2))
    assert result.anomaly_map.shape == (2, 64, 64) and result.score.shape == (2,)
    other = build("anomalib/padim", {"size": "64"}, seed=4)
    other.load_state_dict(detector.state_dict())
    torch.testing.assert_close(other.predict(pictures(2)).anomaly_map, result.anomaly_map)


def test_unknown_model_of_anomalib_suggests_near_ones():
    with pytest.raises(ModelError, match="did you mean 'padim'"):
        registry.method_class("anomalib/paddim")


def test_models_that_need_no_training_pictures_are_refused():
    with pytest.raises(ModelError, match="not from normal pictures alone"):
        from models.baselines.anomalib_generic import detector_class

        cls = detector_class("padim")
        shot = type("Shot", (cls.model,), {"learning_type": property(lambda self: _zero_shot())})
        type("Other", (cls,), {"model": shot})(cls.Config(size=64), Context(CPU, 0, WeightStore("none")))


def _zero_shot():
    from anomalib import LearningType

    return LearningType.ZERO_SHOT
