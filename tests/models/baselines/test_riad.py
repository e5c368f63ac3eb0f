"""RIAD after the paper's procedure: sets of cells, inpainting of one set at a time, loss, map."""

from __future__ import annotations

import pytest
import torch
from skimage.metrics import structural_similarity
from torch import nn

from models.base import ModelError
from models.baselines import riad
from models.nn.gms import mean_filter, msgms
from tests.models.baselines.common import build, check_fit_predict_seed_and_state, pictures

SMALL = {"size": "32", "epochs": "2", "train_batch": "3", "width": "4"}


def test_cells_are_dealt_into_three_disjoint_sets_of_equal_number():
    found = riad.cells(5, 48, 4, torch.Generator().manual_seed(0))
    assert found.shape == (5, 48, 48)
    for one in found:
        assert [int((one == i).sum()) for i in range(3)] == [48 * 48 // 3] * 3
        blocks = one.unfold(0, 4, 4).unfold(1, 4, 4).flatten(2)
        assert (blocks == blocks[..., :1]).all()
    assert not torch.equal(found[0], found[1])


def test_each_set_is_filled_in_from_the_picture_without_it():
    """A network that adds 10 to what it sees: wherever a pixel was hidden the reconstruction is exactly 10."""
    detector = build("riad@quick", SMALL)
    detector.trained["net"] = nn.Module()
    seen = []
    detector.trained["net"].forward = lambda x: seen.append(x) or x + 10
    x, sets = torch.rand(2, 3, 32, 32) + 1, riad.cells(2, 32, 4, torch.Generator().manual_seed(0))
    assert torch.equal(detector._rebuilt(x, sets), torch.full_like(x, 10))
    for i, given in enumerate(seen):
        hidden = (sets == i).unsqueeze(1).expand_as(x)
        assert (given[hidden] == 0).all() and torch.equal(given[~hidden], x[~hidden])


def test_loss_is_the_sum_of_three_terms_with_a_gradient_each():
    x, y = torch.rand(2, 3, 32, 32) * 2 - 1, (torch.rand(2, 3, 32, 32) * 2 - 1).requires_grad_()
    found = riad.errors(x, y)
    for i in range(2):
        a, b = x[i].numpy(), y[i].detach().numpy()
        maps = structural_similarity(a, b, channel_axis=0, data_range=2, gaussian_weights=True, full=True,
                                     use_sample_covariance=False)[1]
        expected = ((a - b) ** 2).mean() + 1 - msgms(x[i : i + 1], y[i : i + 1]).mean().item() + 1 - maps[
            :, 5:-5, 5:-5].mean()
        assert found[i].item() == pytest.approx(expected, abs=1e-4)
    parts = ((x - y).square().mean(), msgms(x, y).mean(), found.sum())
    assert all(torch.autograd.grad(p, y, retain_graph=True)[0].abs().max() > 0 for p in parts)
    assert riad.errors(x, x).abs().max() < 1e-5


def test_map_is_the_mean_over_cells_of_smoothed_dissimilarity():
    detector, test = build("riad@quick", SMALL), pictures(2, 4, spot=True)
    detector.fit(pictures(12), None)
    x = detector.preprocess(test) * 2 - 1
    expected = 0
    for k in (2, 4, 8, 16):
        with torch.no_grad():
            y = detector._rebuilt(x, detector._dealt(2, k, x.device))
        expected = expected + mean_filter(1 - msgms(x, y), 5)[:, 0] / 4
    found = detector.predict(test)
    assert torch.allclose(found.anomaly_map, expected, atol=1e-6) and found.score is None
    assert found.panels["reconstruction"].min() >= 0 and found.panels["reconstruction"].max() <= 1


def test_network_is_the_codes():
    net = riad.UNet(64)
    widths = [m.out_channels for m in net.modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)]
    down = [64, *[w for w in (128, 256, 512, 512) for _ in range(2)]]
    assert widths == [*down, 512, 256, 128, 64, *[w for w in (512, 256, 128, 64) for _ in range(2)], 3]
    y = riad.UNet(4)(torch.rand(2, 3, 32, 32))
    assert y.shape == (2, 3, 32, 32) and y.abs().max() < 1


def test_it_learns_and_a_fifth_is_held_out():
    log = build("riad@quick", {**SMALL, "epochs": "8"}).fit(pictures(15), None)
    assert log["held_out"] == 3 and len(log["validation_loss"]) == 8
    assert log["loss"][-1] < 0.8 * log["loss"][0] and log["floor"] > 0
    config = build("riad@paper").config
    assert (config.cells, config.size, config.epochs, config.train_batch, config.lr) == (
        (2, 4, 8, 16), 256, 300, 4, 1e-4)


def test_what_cannot_work_is_refused():
    with pytest.raises(ModelError, match="too few"):
        build("riad@quick", SMALL).fit(pictures(4), None)
    with pytest.raises(ModelError, match="multiple of 16"):
        build("riad@quick", {"size": "40"})
    with pytest.raises(ModelError, match="epoch 1"):
        build("riad@quick", {**SMALL, "lr": "inf"}).fit(pictures(12), None)


def test_fit_predict_seed_and_state():
    check_fit_predict_seed_and_state("riad@quick", SMALL, train=12)
