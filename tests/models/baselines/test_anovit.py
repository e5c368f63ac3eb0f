"""AnoViT after what survives of its authors' code: decoder, targets, early stopping, map and score."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from models.base import ModelError
from models.baselines import anovit
from models.nn.smooth import gaussian_smooth
from models.nn.training import split
from tests.models.baselines.common import build, check_fit_predict_seed_and_state, pictures

SMALL = {"size": "32", "epochs": "2", "train_batch": "4"}


def test_decoder_has_the_codes_layers_and_sides():
    decoder, sides = anovit.Decoder(768, 384, as_found=True), []
    for layer in decoder.layers:
        if isinstance(layer, nn.ConvTranspose2d):
            layer.register_forward_hook(lambda module, inputs, output: sides.append(output.shape[1:3]))
    found = decoder(torch.randn(1, 576, 768))
    assert [tuple(side) for side in sides] == [(256, 26), (128, 28), (64, 30), (32, 59), (16, 117), (3, 233)]
    assert found.shape == (1, 3, 384, 384) and found.min() == 0 and found.max() < 1
    assert sum(isinstance(layer, nn.InstanceNorm2d) for layer in decoder.layers) == 6
    free = anovit.Decoder(768, 384, as_found=False)
    assert free(torch.randn(1, 576, 768)).min() < 0 and isinstance(free.layers[-1], nn.ConvTranspose2d)


def test_tokens_lie_on_their_grid_and_corners_are_aligned():
    """Layers that pass values through: the picture is the tokens' grid enlarged."""
    decoder = anovit.Decoder(3, 8, as_found=False)
    decoder.layers = nn.Identity()
    tokens = torch.rand(1, 4, 3) - 0.5
    grid = tokens[0].T.reshape(1, 3, 2, 2)
    expected = F.interpolate(grid, (8, 8), mode="bilinear", align_corners=True).tanh()
    assert torch.equal(decoder(tokens), expected)
    assert torch.equal(decoder(tokens)[0, :, 0, -1], tokens[0, 1].tanh())


def test_the_class_token_is_left_out():
    detector, x = build("anovit@quick", SMALL), torch.rand(2, 3, 32, 32)
    seen = []
    detector.trained["decoder"].forward = lambda tokens: seen.append(tokens) or x
    detector._rebuilt(x)
    full = detector.trained["encoder"].forward_features(x)
    assert full.shape == (2, 5, 192) and torch.equal(seen[0], full[:, 1:])


def test_targets_of_the_authors_are_standardised_and_ours_reach_from_minus_one_to_one():
    for settings, low in (({**SMALL, "as_found": "true"}, None), (SMALL, -1.0)):
        detector = build("anovit@quick", settings)
        detector.fit(pictures(12), None)
        x = detector._scaled(torch.cat([detector.preprocess([p]) for p in pictures(12)]))
        if low is None:
            assert x.mean((0, 2, 3)).abs().max() < 1e-4 and (x.std((0, 2, 3)) - 1).abs().max() < 1e-3
        else:
            assert torch.equal(detector._scaled(torch.tensor([0.0, 1.0]))[0, 0, 0], torch.tensor([-1.0, 1.0]))


def test_map_and_score_are_of_two_widths_of_the_squared_error():
    detector, test = build("anovit@quick", {**SMALL, "sigma": "1", "score_sigma": "3"}), pictures(2, 4, spot=True)
    detector.fit(pictures(12), None)
    x = detector.preprocess(test) * 2 - 1
    with torch.no_grad():
        error = (x - detector._rebuilt(x)).square().mean(1)
    found = detector.predict(test)
    assert torch.allclose(found.anomaly_map, gaussian_smooth(error, 1, "reflect"), atol=1e-6)
    assert torch.allclose(found.score, gaussian_smooth(error, 3, "reflect").amax((1, 2)), atol=1e-6)
    assert not torch.allclose(found.score, found.anomaly_map.amax((1, 2)))


def test_it_learns_in_both_halves():
    detector = build("anovit@quick", {**SMALL, "epochs": "12", "held_out": "0.2"})
    before = detector.trained["encoder"].patch_embed.proj.weight.detach().clone()
    log = detector.fit(pictures(15), None)
    assert log["loss"][-1] < 0.5 * log["loss"][0] and log["held_out"] == 3
    assert not torch.equal(before, detector.trained["encoder"].patch_embed.proj.weight)


def test_held_out_pictures_are_not_trained_on():
    """Blank held-out pictures change nothing where no epoch is chosen by them."""
    losses = []
    for blank in (False, True):
        detector, train = build("anovit@quick", {**SMALL, "epochs": "1", "held_out": "0.2"}), pictures(15)
        for i in split(15, 0.2, detector.context)[1]:
            train[i] = np.zeros_like(train[i]) if blank else train[i]
        losses.append(detector.fit(train, None)["loss"])
    assert losses[0] == losses[1]


def test_settings_are_the_codes_and_what_cannot_work_is_refused():
    config = build("anovit@authors").config
    assert (config.size, config.lr, config.epochs, config.patience, config.held_out) == (384, 2e-4, 200, 12, 0.4)
    assert (config.sigma, config.score_sigma, config.as_found) == (6, 15, True)
    with pytest.raises(ModelError, match="too few"):
        build("anovit@quick", SMALL).fit(pictures(4), None)
    with pytest.raises(ModelError, match="multiple of 16"):
        build("anovit@quick", {"size": "40"})
    with pytest.raises(ModelError, match="no vision transformer"):
        build("anovit@quick", {"encoder": "resnet18"})
    with pytest.raises(ModelError, match="epoch 1"):
        build("anovit@quick", {**SMALL, "lr": "inf"}).fit(pictures(12), None)


def test_fit_predict_seed_and_state():
    check_fit_predict_seed_and_state("anovit@quick", SMALL, train=12)
