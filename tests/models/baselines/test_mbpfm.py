"""MB-PFM after the authors' code: mappers, loss and gradient, rates, map."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from models.base import ModelError
from models.baselines import mbpfm
from tests.models.baselines.common import build, check_fit_predict_seed_and_state, pictures

SMALL = {"size": "64", "epochs": "2", "latent": "8,8,8", "train_batch": "3"}


class Fixed(nn.Module):
    """A mapper that predicts given tensors."""

    def __init__(self, to_b, to_a):
        super().__init__()
        self.to_b, self.to_a = to_b, to_a

    def forward(self, a, b):
        return self.to_b, self.to_a


def test_mappers_have_the_codes_widths_and_share_their_middle():
    mapper = mbpfm.Mapper(64, 256, 200)
    widths = [[m.out_channels for m in part.modules() if isinstance(m, nn.Conv2d)]
              for part in (*mapper.into, mapper.shared, *mapper.out)]
    assert widths == [[232, 400], [328, 400], [200], [400, 328, 256], [400, 232, 64]]
    assert sum(isinstance(m, nn.BatchNorm2d) for m in mapper.modules()) == 8
    to_b, to_a = mapper(torch.rand(2, 64, 4, 4), torch.rand(2, 256, 4, 4))
    assert to_b.shape == (2, 256, 4, 4) and to_a.shape == (2, 64, 4, 4)
    grads = [torch.autograd.grad(out.square().sum(), mapper.shared.weight, retain_graph=True)[0]
             for out in (to_b, to_a)]
    assert all(grad.abs().max() > 0 for grad in grads) and not torch.equal(*grads)


def test_loss_map_and_gradient_by_hand():
    """One position of a = (3, 4) -> (0.6, 0.8) and b = (0, 2, 0) -> (0, 1, 0)."""
    a, b = torch.tensor([3.0, 4.0]).view(1, 2, 1, 1), torch.tensor([0.0, 2.0, 0.0]).view(1, 3, 1, 1)
    to_b = torch.tensor([0.0, 0.5, 0.0]).view(1, 3, 1, 1).requires_grad_()
    to_a = torch.tensor([0.6, 0.0]).view(1, 2, 1, 1).requires_grad_()
    found = mbpfm.errors(Fixed(to_b, to_a), a, b)
    assert found.tolist() == pytest.approx([0.25 / 3, 0.64 / 2])
    found.sum().backward()
    assert to_b.grad.flatten().tolist() == pytest.approx([0, -2 * 0.5 / 3, 0])
    assert to_a.grad.flatten().tolist() == pytest.approx([0, -2 * 0.8 / 2])
    assert float(mbpfm.two_way_map(Fixed(to_b, to_a), a, b).detach()) == pytest.approx((0.25 + 0.64) / 2)


def test_map_is_the_mean_of_the_levels():
    detector, test = build("mbpfm@quick", SMALL), pictures(1, 3) + pictures(1, 4, spot=True)
    detector.fit(pictures(6), None)
    x = detector.preprocess(test)
    expected = torch.zeros(2, 64, 64)
    for i, (a, b) in enumerate(zip(detector.first(x).values(), detector.second(x).values(), strict=True)):
        with torch.no_grad():
            grid = mbpfm.two_way_map(detector.trained[f"level{i}"], a, b)
        expected += F.interpolate(grid, (64, 64), mode="bilinear", align_corners=False)[:, 0] / 3
    found = detector.predict(test)
    assert torch.allclose(found.anomaly_map, expected, atol=1e-6) and found.score is None


def test_rates_and_settings_are_the_codes():
    detector = build("mbpfm@paper", {"size": "64"})
    config, seen = detector.config, []
    assert (config.latent, config.epochs, config.train_batch, config.lr) == ((200, 400, 900), 200, 8, 3e-3)
    assert list(detector.first.channels.values()) == [64, 128, 256]
    assert list(detector.second.channels.values()) == [256, 512, 1024]
    detector._train = lambda step, optimizers, *rest: seen.extend(optimizers) or {}
    detector.fit(pictures(2), None)
    assert [o.defaults["lr"] for o in seen] == pytest.approx([3e-3, 3e-4, 3e-4])
    assert all(o.defaults["weight_decay"] == 1e-5 for o in seen)


def test_it_learns_more_than_the_mean_feature():
    detector, train = build("mbpfm@quick", {**SMALL, "epochs": "40"}), pictures(10)
    log = detector.fit(train, None)
    x = detector.preprocess(train)
    variance = 0.0
    for net in (detector.first, detector.second):
        for maps in net(x).values():
            unit = F.normalize(maps)
            variance += float((unit - unit.mean((0, 2, 3), keepdim=True)).square().mean())
    assert log["loss"][-1] < variance < log["loss"][0]


def test_what_cannot_work_is_refused():
    with pytest.raises(ModelError, match="no training pictures"):
        build("mbpfm@quick", SMALL).fit([], None)
    with pytest.raises(ModelError, match="one entry per level"):
        build("mbpfm@quick", {"latent": "8,8"})
    with pytest.raises(ModelError, match="epoch 1"):
        build("mbpfm@quick", {**SMALL, "lr": "inf"}).fit(pictures(4), None)


def test_fit_predict_seed_and_state():
    check_fit_predict_seed_and_state("mbpfm@quick", SMALL)
