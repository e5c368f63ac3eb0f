"""f-AnoGAN after its authors' code: networks, the critic's loss, both trainings, score and map."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import nn

from models.base import ModelError
from models.baselines import f_anogan
from models.nn.residual import LayerNorm, Residual
from tests.models.baselines.common import build, check_fit_predict_seed_and_state, pictures

SMALL = {"width": "2", "latent": "4", "gan_steps": "4", "steps": "2", "train_batch": "3"}


def test_networks_are_the_codes():
    nets = build("f_anogan@paper").trained
    widths = {name: [m.out_channels for m in net.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)]
              for name, net in nets.items()}
    assert widths["generator"] == [512, 512, 256, 256, 128, 128, 64, 64, 3]
    assert widths["critic"] == widths["encoder"] == [64, 64, 128, 128, 256, 256, 512, 512, 512]
    norms = {name: {type(m) for m in net.modules() if isinstance(m, LayerNorm | nn.BatchNorm2d)}
             for name, net in nets.items()}
    assert norms == {"generator": {nn.BatchNorm2d}, "critic": {LayerNorm}, "encoder": {nn.BatchNorm2d}}
    assert nets["critic"][-1].in_features == nets["encoder"][-1].in_features == 4 * 4 * 512
    assert nets["generator"](torch.zeros(2, 128)).shape == (2, 3, 64, 64)


def test_a_block_halves_by_means_and_doubles_by_repetition():
    x = torch.rand(1, 2, 4, 4)
    doubled = x.repeat_interleave(2, 2).repeat_interleave(2, 3)
    for up, expected in ((False, nn.functional.avg_pool2d(x, 2)), (True, doubled)):
        block = Residual(2, 2, LayerNorm, up=up)
        nn.init.zeros_(block.second.weight)
        block.shortcut.weight.data = torch.eye(2).view(2, 2, 1, 1)
        assert torch.allclose(block(x), expected)


def test_critic_loss_and_penalty_by_hand():
    """A linear critic of slope (3, 4, 0...): its gradient has norm 5 everywhere."""
    critic = nn.Sequential(nn.Flatten(), nn.Linear(12, 1, bias=False))
    critic[1].weight.data = torch.tensor([[3.0, 4.0, *[0.0] * 10]])
    real, fake = torch.zeros(2, 3, 2, 2), torch.ones(2, 3, 2, 2)
    distance, penalty = f_anogan.critic_terms(critic, real, fake, torch.full((2, 1, 1, 1), 0.3))
    assert float(distance.detach()) == pytest.approx(7) and float(penalty.detach()) == pytest.approx(16)
    penalty.backward()
    assert critic[1].weight.grad.flatten()[:2].tolist() == pytest.approx([2 * 4 * 0.6, 2 * 4 * 0.8])


def test_the_penalty_is_taken_between_real_and_fake():
    """A critic of sum(x^2) / 2 has the picture itself as its gradient."""
    real, fake = torch.zeros(1, 3, 1, 1), torch.full((1, 3, 1, 1), 2.0)
    critic = nn.Module()
    critic.forward = lambda x: x.square().sum((1, 2, 3)) / 2
    penalty = f_anogan.critic_terms(critic, real, fake, torch.full((1, 1, 1, 1), 0.25))[1]
    assert float(penalty.detach()) == pytest.approx((3**0.5 * 0.5 - 1) ** 2)


def test_the_critics_loss_holds_the_penalty():
    settings = {**SMALL, "critic_steps": "9", "penalty": "7", "gan_steps": "2"}
    log = build("f_anogan@quick", settings).fit(pictures(6), None)["gan"]
    assert log["loss"][0] == pytest.approx(log["critic"][0] + 7 * log["penalty"][0], rel=1e-5) and log["penalty"][0] > 0


def test_the_generator_moves_at_every_last_step_of_the_critic_only():
    detector = build("f_anogan@quick", {**SMALL, "critic_steps": "3", "gan_steps": "6", "steps": "2"})
    generator, critic = detector.trained["generator"], detector.trained["critic"]
    seen = []

    def look(done, total, **values):
        if generator.training:
            seen.append([p.detach().clone() for p in (next(generator.parameters()), next(critic.parameters()))])

    before = next(generator.parameters()).detach().clone()
    log = detector.fit(pictures(6), None, look)
    moved = [not torch.equal(a, b[0]) for a, b in zip([before, *[s[0] for s in seen]], seen, strict=False)]
    assert moved == [False, False, True, False, False, True]
    assert all(not torch.equal(a[1], b[1]) for a, b in pairwise(seen))
    assert len(log["gan"]["loss"]) == 3 and len(log["izi"]["loss"]) == 1
    assert torch.equal(seen[-1][1], next(critic.parameters()))  # the encoder's training leaves it as it was


class Flat(nn.Module):
    """A generator of one colour: the first three codes."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, code):
        return (self.scale * code[:, :3]).view(-1, 3, 1, 1).expand(-1, -1, 64, 64)


def test_encoder_learns_under_a_fixed_generator():
    detector = build("f_anogan@quick", {**SMALL, "kappa": "0", "steps": "80", "encoder_lr": "0.003"})
    detector.trained["generator"] = Flat()
    bright = [(picture // 4 + 190).astype("uint8") for picture in pictures(6)]  # a code of 0 is grey
    loss = detector.fit(bright, None)["izi"]["loss"]
    assert loss[-1] < 0.3 * loss[0]


def test_score_and_map_are_the_residuals():
    detector, test = build("f_anogan@quick", {**SMALL, "kappa": "0.5"}), pictures(1, 3) + pictures(1, 4, spot=True)
    detector.fit(pictures(6), None)
    x, nets = detector.preprocess(test) * 2 - 1, detector.trained
    with torch.no_grad():
        y = nets["generator"](nets["encoder"](x).tanh())
        a, b = (nets["critic"][:-1](values) for values in (x, y))
    found = detector.predict(test)
    assert torch.allclose(found.anomaly_map, (x - y).abs().mean(1), atol=1e-6)
    assert torch.allclose(found.score, (x - y).square().mean((1, 2, 3)) + 0.5 * (a - b).square().mean(1), atol=1e-6)
    assert (a - b).abs().max() > 0


def test_the_critics_norm_is_torchs_over_a_whole_picture():
    x, norm = torch.randn(2, 3, 4, 4), LayerNorm(3)
    norm.weight.data, norm.bias.data = torch.rand(3, 1, 1), torch.rand(3, 1, 1)
    expected = nn.functional.group_norm(x, 1, norm.weight.flatten(), norm.bias.flatten())
    assert torch.allclose(norm(x), expected, atol=1e-6)


def test_settings_are_the_codes_and_what_cannot_work_is_refused():
    config = build("f_anogan@paper").config
    assert (config.width, config.latent, config.critic_steps, config.penalty, config.steps) == (64, 128, 5, 10, 50_000)
    assert (config.train_batch, config.lr, config.encoder_lr, config.kappa) == (64, 1e-4, 5e-5, 1)
    with pytest.raises(ModelError, match="64 px"):
        build("f_anogan@quick", {"size": "128"})
    with pytest.raises(ModelError, match="no training pictures"):
        build("f_anogan@quick", SMALL).fit([], None)
    with pytest.raises(ModelError, match="epoch 1"):
        build("f_anogan@quick", {**SMALL, "lr": "inf"}).fit(pictures(4), None)


def test_fit_predict_seed_and_state():
    check_fit_predict_seed_and_state("f_anogan@quick", SMALL)
