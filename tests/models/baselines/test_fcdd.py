"""FCDD after its paper and the authors' code: loss with gradient, network, receptive field, map, confetti, contrast."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from models.base import ModelError
from models.baselines import fcdd
from models.nn.confetti import confetti, varied
from tests.models.baselines.common import build, check_fit_predict_seed_and_state, pictures

SMALL = {"size": "64", "epochs": "2", "train_batch": "3"}


def test_loss_and_its_gradient_by_hand():
    grid = torch.tensor([[[0.5, 1.5]], [[0.5, 1.5]]]).requires_grad_()
    found = fcdd.one_class_loss(grid, torch.tensor([False, True]))
    assert found.tolist() == pytest.approx([1.0, -math.log(1 - math.exp(-1))])
    found.sum().backward()
    # of -log(1 - exp(-m)): -exp(-m) / (1 - exp(-m)) times dm = 1/2
    assert grad_of(grid) == pytest.approx([0.5, 0.5, *[-math.exp(-1) / (1 - math.exp(-1)) / 2] * 2])
    phi = torch.tensor([0.0, 3.0]).view(1, 1, 1, 2)
    assert fcdd.distances(phi).flatten().tolist() == pytest.approx([0.0, math.sqrt(10) - 1])
    nothing = fcdd.one_class_loss(torch.zeros(1, 2, 2), torch.tensor([True]))
    assert torch.isfinite(nothing).all() and nothing > 10


def grad_of(x):
    return x.grad.flatten().tolist()


@pytest.mark.parametrize(("preset", "side"), [("paper", 28), ("quick", 27)])
def test_network_grid_and_receptive_field(preset, side):
    """The gradient of one place of the grid reaches exactly the field of the preset, with stride 8."""
    detector = build(f"fcdd@{preset}", {"size": "224"})
    net = detector.trained["net"]
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.constant_(module.weight, 0.01)
    x, reach = torch.rand(1, 3, 224, 224).requires_grad_(), []
    grid = net(x)
    assert grid.shape == (1, 1, side, side)
    for row in (13, 14):
        (grad,) = torch.autograd.grad(grid[0, 0, row, 13], x, retain_graph=True)
        seen = grad.abs().sum((0, 1, 3)).nonzero()
        reach.append((int(seen[0]), int(seen[-1])))
    # a pooling passes on the gradient of one of its places only, so the field may look smaller by some pixels
    assert detector.config.field - 8 <= reach[0][1] - reach[0][0] + 1 <= detector.config.field
    assert abs(reach[1][0] - reach[0][0] - fcdd.STRIDE) <= 4
    frozen = [p.requires_grad for p in net[0][: detector.config.frozen].parameters()]
    assert not any(frozen) and all(p.requires_grad for p in net[0][detector.config.frozen :].parameters())


def test_paper_trains_two_convolutions_and_keeps_the_pretrained_part():
    net = build("fcdd@paper").trained["net"]
    trained = [m for m in net.modules() if isinstance(m, nn.Conv2d) and m.weight.requires_grad]
    assert [(m.in_channels, m.out_channels) for m in trained] == [(256, 512), (512, 512), (512, 1)]
    config = build("fcdd@paper").config
    assert (config.epochs, config.rounds, config.train_batch, config.lr) == (200, 10, 128, 1e-3)


def test_map_sums_a_gaussian_for_each_value():
    grid = torch.zeros(1, 28, 28)
    grid[0, 10, 17] = 2.0
    found = fcdd.upsampled(grid, 62, 224)[0]
    assert found.shape == (224, 224)
    # full: 27 * 8 + 62 = 278, cut by 27; the centre of value i is at 8 i + 30.5 - 27
    rows, columns = torch.arange(224.0) - (8 * 10 + 3.5), torch.arange(224.0) - (8 * 17 + 3.5)
    inside = (rows.abs() < 31).view(-1, 1) & (columns.abs() < 31)
    expected = 2 * torch.exp(-(rows.square().view(-1, 1) + columns.square()) / 288) * inside
    assert torch.allclose(found, expected, atol=1e-5)


def test_confetti_marks_a_part_of_every_picture_and_variations_keep_it_whole():
    x = torch.full((64, 3, 64, 64), 0.5)
    marked = confetti(x, torch.Generator().manual_seed(0))
    changed = (marked - x).abs().amax(1) > 0.02
    share = changed.float().mean((1, 2))
    assert marked.min() >= 0 and marked.max() <= 1
    assert (share > 0).float().mean() > 0.9 and share.mean() < 0.5  # a square may lie outside nearly wholly
    spread = (marked - x).abs().amax((2, 3))
    assert (spread.std(1) > 0.05).float().mean() > 0.3  # coloured ones
    one = varied(torch.rand(6, 3, 69, 69), 64, torch.Generator().manual_seed(0))
    assert one.shape == (6, 3, 64, 64) and one.min() >= 0 and one.max() <= 1
    assert torch.equal(marked, confetti(x, torch.Generator().manual_seed(0)))
    assert not torch.equal(marked, confetti(x, torch.Generator().manual_seed(1)))


def test_contrast_is_that_of_each_picture():
    x = torch.rand(2, 3, 8, 8)
    for one, found in zip(x, fcdd.contrasted(x), strict=True):
        centred = one - one.mean()
        assert torch.allclose(found, centred / centred.abs().mean(), atol=1e-5)
    assert torch.isfinite(fcdd.contrasted(torch.ones(1, 3, 8, 8))).all()


def test_it_learns_to_tell_confetti_and_the_score_is_the_mean():
    detector = build("fcdd@quick", {**SMALL, "epochs": "20", "rounds": "4", "lr": "0.01"})
    log = detector.fit(pictures(10), None)
    assert log["loss"][-1] < math.log(2) < log["loss"][0] + 0.2  # no constant answer is below log 2 in the mean
    assert log["confetti"][-1] > 3 * log["normal"][-1]
    test = pictures(1, 3) + pictures(1, 4, spot=True)
    found = detector.predict(test)
    with torch.no_grad():
        grid = fcdd.distances(detector.trained["net"](detector._scaled(detector.preprocess(test))))
    assert torch.allclose(found.score, grid.mean((1, 2))) and found.score[1] > 2 * found.score[0]


def test_what_cannot_work_is_refused():
    with pytest.raises(ModelError, match="no training pictures"):
        build("fcdd@quick", SMALL).fit([], None)
    with pytest.raises(ModelError, match="epoch 1"):
        build("fcdd@quick", {**SMALL, "lr": "inf"}).fit(pictures(4), None)


def test_fit_predict_seed_and_state():
    check_fit_predict_seed_and_state("fcdd@quick", SMALL)
