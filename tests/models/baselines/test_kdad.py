"""KDAD after its paper: terms of the loss, cloner, lambda, gradient map with opening, score."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter, grey_opening
from torch import nn

from models.base import ModelError
from models.baselines import kdad
from tests.models.baselines.common import build, check_fit_predict_seed_and_state, pictures

SMALL = {"size": "64", "epochs": "2", "train_batch": "3", "sigma": "1"}


def test_terms_and_their_gradients_by_hand():
    """Source (3, 4) and cloner (4, 3): mean square 1, cosine 24 / 25; a second layer (1, 0) against (0, 2)."""
    source = [torch.tensor([3.0, 4.0]).view(1, 2, 1, 1), torch.tensor([1.0, 0.0]).view(1, 1, 1, 2)]
    cloner = [torch.tensor([4.0, 3.0]).view(1, 2, 1, 1).requires_grad_(), torch.tensor([0.0, 2.0]).view(1, 1, 1, 2)]
    values, directions = kdad.terms(source, cloner)
    assert values.tolist() == pytest.approx([1 + 2.5]) and directions.tolist() == pytest.approx([1 / 25 + 1])
    (of_values,) = torch.autograd.grad(values.sum(), cloner[0], retain_graph=True)
    assert of_values.flatten().tolist() == pytest.approx([1.0, -1.0])  # 2 (c - s) / 2
    (of_directions,) = torch.autograd.grad(directions.sum(), cloner[0])
    # -d cos/dc = -(s / (|s||c|) - cos c / |c|^2) = -((3, 4) / 25 - 24 / 25 (4, 3) / 25)
    assert of_directions.flatten().tolist() == pytest.approx([21 / 625, -28 / 625], rel=1e-4)


def test_cloner_is_the_codes():
    cloner = kdad.Cloner(kdad.KdadConfig().cloner, 4)
    found = cloner(torch.rand(2, 3, 128, 128))
    assert [tuple(x.shape[1:]) for x in found] == [(128, 32, 32), (256, 16, 16), (512, 8, 8), (512, 4, 4)]
    convs = [m for m in cloner.modules() if isinstance(m, nn.Conv2d)]
    assert [m.out_channels for m in convs] == [16, 16, 16, 128, 16, 16, 256, 16, 16, 512, 16, 16, 512]
    assert all(m.bias is None for m in convs) and sum(isinstance(m, nn.BatchNorm2d) for m in cloner.modules()) == 8
    assert [type(m).__name__ for m in cloner.stages[2]] == [
        "Conv2d", "BatchNorm2d", "ReLU", "Conv2d", "BatchNorm2d", "ReLU", "Conv2d", "MaxPool2d"]
    source = build("kdad@paper", {"size": "64"}).source
    assert list(source.channels.values()) == [128, 256, 512, 512]


def test_lambda_makes_the_terms_equal_before_training():
    detector, train = build("kdad@quick", {**SMALL, "epochs": "0"}), pictures(3)
    log = detector.fit(train, None)
    x = detector.preprocess(train)
    cloner = detector.trained["cloner"].train()
    with torch.no_grad():
        values, directions = kdad.terms(list(detector.source(x).values()), cloner(x))
    assert log["lambda"] * directions.mean().item() == pytest.approx(values.mean().item(), rel=1e-4)


def test_pictures_are_not_normalised():
    x = build("kdad@quick", SMALL).preprocess(pictures(1))
    assert x.min() >= 0 and x.max() <= 1


def test_opening_is_scipys_of_a_cross():
    maps = torch.rand(2, 9, 11, generator=torch.Generator().manual_seed(0))
    cross = np.array([[0, 1, 0], [1, 1, 1], [0, 1, 0]])
    inside = (slice(1, -1), slice(1, -1))
    for found, one in zip(kdad.opened(maps).numpy(), maps.numpy(), strict=True):
        padded = np.pad(one, 3, mode="constant", constant_values=np.nan)
        assert np.isnan(padded[0, 0])
        np.testing.assert_allclose(found[inside][1:-1, 1:-1], grey_opening(one, footprint=cross)[inside][1:-1, 1:-1])
    alone = torch.zeros(1, 9, 9)
    alone[0, 4, 4] = 1.0
    assert kdad.opened(alone).max() == 0  # a single pixel vanishes


def test_map_is_the_losss_gradient_and_the_score_the_loss():
    """The gradient by differences at one pixel; the source's own gradient takes part, not only the cloner's."""
    detector, test = build("kdad@quick", SMALL), pictures(1, 4)  # a flat square would tie in the poolings
    detector.fit(pictures(6), None)

    def loss(x):
        with torch.no_grad():
            values, directions = kdad.terms(list(detector.source(x).values()), detector.trained["cloner"](x))
        return values + detector.weight * directions

    x = detector.preprocess(test)
    found = detector.predict(test)
    assert found.score.item() == pytest.approx(loss(x).item(), rel=1e-5)
    with torch.enable_grad():
        leaf = x.clone().requires_grad_()
        values, directions = kdad.terms(list(detector.source(leaf).values()), detector.trained["cloner"](leaf))
        (gradient,) = torch.autograd.grad((values + detector.weight * directions).sum(), leaf)
    direction = gradient / gradient.norm()
    slope = (loss(x + 1e-3 * direction) - loss(x - 1e-3 * direction)) / 2e-3
    assert slope.item() == pytest.approx(gradient.norm().item(), rel=0.1)
    smooth = gaussian_filter(gradient.abs().sum(1)[0].numpy(), sigma=1)
    expected = kdad.opened(torch.from_numpy(smooth)[None])
    np.testing.assert_allclose(found.anomaly_map.numpy(), expected.numpy(), rtol=1e-3, atol=1e-6)


def test_it_learns():
    log = build("kdad@quick", {**SMALL, "epochs": "40"}).fit(pictures(10), None)
    assert log["loss"][-1] < 0.3 * log["loss"][0] and log["direction"][-1] < 0.3 * log["direction"][0]


def test_what_cannot_work_is_refused():
    with pytest.raises(ModelError, match="no training pictures"):
        build("kdad@quick", SMALL).fit([], None)
    with pytest.raises(ModelError, match="1 poolings, but there are 3 critical layers"):
        build("kdad@quick", {"cloner": "16,0"})
    with pytest.raises(ModelError, match="epoch 1"):
        build("kdad@quick", {**SMALL, "lr": "inf"}).fit(pictures(4), None)


def test_fit_predict_seed_and_state():
    check_fit_predict_seed_and_state("kdad@quick", SMALL)
