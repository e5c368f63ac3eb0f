"""Patch-SVDD after the authors' code: encoder, dense embeddings, draws, loss, map."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from models.base import ModelError
from models.nn import patch_encoder as parts
from tests.models.baselines.common import build, check_fit_predict_seed_and_state, pictures

SETTINGS = {"epochs": "1", "train_batch": "3", "draws": "1"}


def test_encoder_is_the_codes():
    encoder = parts.Encoder()
    convs = [m for m in encoder.small if isinstance(m, nn.Conv2d)]
    assert [m.out_channels for m in convs] == [32, 64, 128, 128, 64, 32, 32, 64]
    assert [m.stride[0] for m in convs] == [2, 1, 1, 1, 1, 1, 1, 1] and all(m.padding == (0, 0) for m in convs)
    big, halves = torch.rand(2, 3, 64, 64), (slice(0, 32), slice(32, 64))
    quadrants = [torch.cat([encoder.small(big[..., r, c]) for c in halves], 3) for r in halves]
    joined = F.leaky_relu(encoder.join(torch.cat(quadrants, 2)), 0.1)
    assert torch.allclose(encoder(big), encoder.last(joined).tanh()[..., 0, 0], atol=1e-6)
    assert torch.allclose(encoder(big[..., :32, :32]), encoder.small(big[..., :32, :32])[..., 0, 0], atol=1e-6)


def test_one_dense_pass_embeds_every_patch():
    detector = build("patch_svdd@quick", SETTINGS)
    x = torch.rand(2, 3, 128, 128)
    with torch.no_grad():
        big, small = detector._embedded(x)
        assert big.shape == (2, 5, 5, 64) and small.shape == (2, 13, 13, 64)
        for maps, side, stride in ((big, 64, 16), (small, 32, 8)):
            for i, j in ((0, 0), (2, 4), (4, 1)):
                patch = x[..., i * stride : i * stride + side, j * stride : j * stride + side]
                assert torch.allclose(maps[:, i, j], detector.trained["encoder"](patch), atol=1e-5)


def test_draws_are_near_and_in_the_labels_direction():
    """Pictures whose two first channels are row and column: a patch says where it was taken."""
    lines = torch.arange(256.0)
    x = torch.stack([lines.view(-1, 1).expand(256, 256), lines.expand(256, 256), torch.zeros(256, 256)])
    x, random = x.expand(400, -1, -1, -1) * 100, torch.Generator().manual_seed(0)
    one, other = parts.near(x, 64, random)
    steps = ((other - one)[:, :2, 0, 0] / 100).round()
    assert steps.abs().max() == 2 and len({tuple(s) for s in steps.tolist()}) >= 24
    assert (steps.abs().sum(1) == 0).float().mean() < 0.05  # only at the border
    first, second, label = parts.directed(x, 64, random)
    start, steps = (first[:, :2, 0, 0] / 100).round(), ((second - first)[:, :2, 0, 0] / 100).round()
    inside = ((start >= 64) & (start <= 256 - 128)).all(1)
    wanted = torch.tensor(parts.DIRECTIONS)[label]
    assert inside.sum() > 20 and torch.equal(steps[inside].sign().long(), wanted[inside])
    moved = steps[inside].abs()[wanted[inside] != 0]
    assert moved.min() >= 48 and moved.max() < 64 and label.unique().numel() == 8
    assert float((first - first.round()).std()) > 0  # disturbed


def test_classifiers_last_weights_are_normalised_and_never_trained():
    classifier, x = parts.Classifier(), torch.rand(5, 64)
    hidden = F.leaky_relu(classifier.second(F.leaky_relu(classifier.first(x), 0.1)), 0.1)
    weight = classifier.last.weight / classifier.last.weight.norm(dim=0, keepdim=True)
    assert torch.allclose(classifier(x), hidden @ weight.T + classifier.last.bias, atol=1e-6)
    classifier(x).square().sum().backward()
    assert classifier.last.weight.grad is None and classifier.first.weight.grad.abs().max() > 0


def test_a_pixel_has_the_mean_of_the_patches_on_it():
    distances = torch.rand(1, 3, 3)
    total, count = np.zeros((70, 70)), np.zeros((70, 70))
    for i in range(3):
        for j in range(3):
            total[i * 16 : i * 16 + 32, j * 16 : j * 16 + 32] += distances[0, i, j].item()
            count[i * 16 : i * 16 + 32, j * 16 : j * 16 + 32] += 1
    expected = total / count.clip(1)
    np.testing.assert_allclose(parts.spread_over(distances, 32, 16, 70)[0].numpy(), expected, atol=1e-5)


def test_map_is_the_product_of_distances_at_both_sizes():
    detector, train, test = build("patch_svdd@quick", SETTINGS), pictures(5), pictures(1, 4, spot=True)
    detector.fit(train, None)
    mean = detector.preprocess(train).mean(0, keepdim=True)
    with torch.no_grad():
        normal = detector._embedded(detector.preprocess(train) - mean)
        seen = detector._embedded(detector.preprocess(test) - mean)
    expected = torch.ones(1, 128, 128)
    for bank, rows, side, stride in zip(normal, seen, (64, 32), (16, 8), strict=True):
        least = torch.cdist(rows.flatten(0, 2).double(), bank.flatten(0, 2).double()).min(1).values.float()
        expected = expected * parts.spread_over(least.view(rows.shape[:3]), side, stride, 128)
    assert torch.allclose(detector.predict(test).anomaly_map, expected, rtol=1e-3, atol=1e-7)


def test_loss_is_the_sum_of_its_terms():
    log = build("patch_svdd@quick", {**SETTINGS, "draws": "4", "train_batch": "8"}).fit(pictures(6), None)
    assert log["spread_big"] > 0 and log["spread_small"] > 0
    total = log["direction_big"][0] + log["direction_small"][0] + 1e-3 * (log["svdd_big"][0] + log["svdd_small"][0])
    assert log["loss"][0] == pytest.approx(total, rel=1e-4) and log["svdd_big"][0] > 0


def test_directions_can_be_learnt_from_pictures_that_have_them():
    """Red grows downwards, green to the right: cross entropy falls far below that of any constant answer, log 8."""
    torch.manual_seed(0)
    lines, random = torch.linspace(0, 1, 128), torch.Generator().manual_seed(0)
    x = torch.stack([lines.view(-1, 1).expand(128, 128), lines.expand(128, 128), torch.zeros(128, 128)])
    encoder, classifier = parts.Encoder(), parts.Classifier()
    optimizer, losses = torch.optim.Adam([*encoder.parameters(), *classifier.parameters()], 2e-3), []
    for _ in range(60):
        first, second, label = parts.directed(x.expand(16, -1, -1, -1), 32, random)
        loss = F.cross_entropy(classifier(encoder(first) - encoder(second)), label)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    with torch.no_grad():
        assert (encoder(first) - encoder(second)).norm(dim=1).mean() > 0.1  # no collapse to one embedding
    assert np.mean(losses[-10:]) < 0.8 * math.log(8)


def test_what_cannot_work_is_refused():
    with pytest.raises(ModelError, match="no training pictures"):
        build("patch_svdd@quick", SETTINGS).fit([], None)
    with pytest.raises(ModelError, match="at least 128"):
        build("patch_svdd@quick", {"size": "96"})
    with pytest.raises(ModelError, match="epoch 1"):
        build("patch_svdd@quick", {**SETTINGS, "lr": "inf"}).fit(pictures(4), None)


def test_fit_predict_seed_and_state():
    check_fit_predict_seed_and_state("patch_svdd@quick", SETTINGS)


def test_a_classifier_that_guesses_marks_the_figures(monkeypatch):
    """Pictures of one colour say nothing of directions."""
    train = [np.full((128, 128, 3), 90, np.uint8)] * 6
    settings = {"epochs": "1", "train_batch": "30", "draws": "20"}
    log = build("patch_svdd@quick", settings).fit(train, None)
    assert log["marks"] == ["floor"] * 2 and "a guess 2.079" in log["notes"][-1]
    monkeypatch.setattr("models.baselines.patch_svdd.GUESS", 9.0)
    assert "marks" not in build("patch_svdd@quick", settings).fit(train, None)
