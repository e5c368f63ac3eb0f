"""GCAD: networks, fading skips, the three terms of the loss and whom each moves, map, learning of both branches."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from models.base import ModelError
from models.baselines.gcad import Branches
from models.nn.gcad_networks import Global, UNet, fading
from tests.models.baselines.common import build, check_fit_predict_seed_and_state, pictures

SMALL = {"size": "32", "epochs": "2", "width": "2", "global_width": "4", "teacher_steps": "3", "teacher_batch": "4",
         "natural": "4", "natural_size": "40", "layer": "layer1"}


def test_unets_have_the_papers_widths_and_the_global_code_has_no_place():
    net = UNet(64, 10)
    widths = [m.out_channels for m in net.down.modules() if isinstance(m, nn.Conv2d)]
    assert widths == [w for w in (64, 128, 256, 512, 1024) for _ in range(2)]
    assert UNet(2, 7)(torch.rand(2, 3, 32, 32)).shape == (2, 7, 32, 32)
    shapes = []
    encoder = Global(256, 8, 32, 10)
    encoder.into.register_forward_hook(lambda module, inputs, output: shapes.append((inputs[0].shape, output.shape)))
    assert encoder(torch.rand(1, 3, 256, 256)).shape == (1, 10, 256, 256)
    assert shapes == [((1, 32, 4, 4), (1, 32, 1, 1))]
    with pytest.raises(ModelError, match="32, 64, 128 or 256"):
        Global(96, 8, 32, 10)


def test_skips_fade_one_by_one_the_largest_map_first():
    assert fading(0, 4) == [1, 1, 1, 1]
    assert fading(0.125, 4) == [0.5, 1, 1, 1]
    assert fading(0.625, 4) == [0, 0, 0.5, 1]
    assert fading(1, 4) == fading(3, 4) == [0, 0, 0, 0]


def test_without_skips_every_place_sees_the_code_only():
    torch.manual_seed(0)
    encoder, x = Global(32, 4, 8, 3), torch.rand(1, 3, 32, 32)
    nn.init.zeros_(encoder.into.weight)  # the code no longer hangs on the picture
    assert torch.equal(encoder(x), encoder(torch.rand_like(x)))
    assert not torch.equal(encoder(x, [0.0, 0.0, 0.5]), encoder(torch.rand_like(x), [0.0, 0.0, 0.5]))


def test_terms_of_the_loss_and_whom_they_move():
    detector, x = build("gcad@quick", SMALL), torch.rand(2, 3, 32, 32)
    teacher, branches = detector.trained["teacher17"], detector.trained["branches17"]
    drawn, local, consistent = detector._losses(x, 17, 2)
    target, code = teacher(x), branches.encoder(x)
    expected = [((target - branches.raise_(code)) ** 2).sum(1).mean() / 8,
                ((target - branches.local(x)) ** 2).sum(1).mean() / 8,
                ((code - branches.regress(x)) ** 2).sum(1).mean() / 10]
    assert [float(v.detach()) for v in (drawn, local, consistent)] == pytest.approx(
        [float(v.detach()) for v in expected])

    moved = {}
    for name, term in (("drawn", drawn), ("local", local), ("global", consistent)):
        branches.zero_grad()
        term.backward(retain_graph=True)
        moved[name] = {part for part, net in branches.named_children()
                       if any(p.grad is not None and p.grad.abs().max() > 0 for p in net.parameters())}
    assert moved == {"drawn": {"encoder", "raise_"}, "local": {"local"}, "global": {"regress"}}
    assert detector._losses(x, 17, 0)[0] != drawn  # skip connections still carry


def test_the_global_regression_joins_later():
    detector = build("gcad@quick", {**SMALL, "join": "0.5", "epochs": "4", "train_batch": "3"})
    weight, seen = detector.trained["branches17"].regress.out.weight, []
    log = detector.fit(pictures(7), None, lambda done, total, **values: seen.append(weight.detach().clone()))
    steps = seen[-8:]  # four epochs of two steps
    assert torch.equal(steps[0], steps[3]) and not torch.equal(steps[3], steps[4])
    for i, joined in enumerate((0, 0, 1, 1)):
        whole = log["drawn"][i] + log["local"][i] + joined * log["global"][i]
        assert log["loss"][i] == pytest.approx(whole, rel=1e-4)


def test_map_is_the_sum_of_both_scaled_distances_averaged_over_teachers():
    detector, test = build("gcad@quick", {**SMALL, "patches": "17,33"}), pictures(1, 3) + pictures(1, 4, spot=True)
    detector.fit(pictures(12), pictures(3, 8))
    x, seen, expected = detector.preprocess(test), detector.preprocess(pictures(3, 8)), 0
    with torch.no_grad():
        for patch in (17, 33):
            teacher, b = detector.trained[f"teacher{patch}"], detector.trained[f"branches{patch}"]
            for one, other in ((teacher, b.local), (b.encoder, b.regress)):
                normal, found = ((one(v) - other(v)).square().sum(1).sqrt() for v in (seen, x))
                expected = expected + (found - normal.mean()) / normal.std() / 2
    found = detector.predict(test)
    assert torch.allclose(found.anomaly_map, expected, atol=1e-3) and found.score is None


def test_both_branches_learn():
    """More than the mean of the teacher's channels, which leaves 1."""
    settings = {**SMALL, "epochs": "30", "lr": "0.003", "teacher_steps": "40", "train_batch": "3", "width": "4"}
    log = build("gcad@quick", settings).fit(pictures(12), None)
    assert log["unexplained"]["local"] < 0.5 and log["unexplained"]["drawn from the code"] < 0.8
    assert log["global"][-1] < 0.5 * max(log["global"])


def test_settings_are_the_papers_and_what_cannot_work_is_refused():
    config = build("gcad@p17").config
    assert (config.size, config.epochs, config.fade, config.join, config.lr) == (256, 500, 0.2, 0.1, 1e-4)
    assert (config.bottleneck, config.global_channels, config.width) == (32, 10, 64)
    assert [m.out_channels for m in Branches(config, 128).raise_.modules() if isinstance(m, nn.Conv2d)] == [128] * 3
    with pytest.raises(ModelError, match="natural pictures"):
        build("gcad@quick", {**SMALL, "textures": "none"}).fit(pictures(4), None)
    with pytest.raises(ModelError, match="no training pictures"):
        build("gcad@quick", SMALL).fit([], None)
    with pytest.raises(ModelError, match="epoch 1"):
        build("gcad@quick", {**SMALL, "lr": "inf"}).fit(pictures(4), None)


def test_fit_predict_seed_and_state():
    check_fit_predict_seed_and_state("gcad@quick", SMALL)
