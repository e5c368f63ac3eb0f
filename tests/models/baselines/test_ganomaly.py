"""GANomaly against the authors' formulas: networks, losses and gradients, both players' steps, new start, score."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

from models import registry
from models.base import ModelError
from models.baselines import ganomaly
from tests.models.baselines.common import build, check_fit_predict_seed_and_state, pictures

SMALL = {"epochs": "2", "train_batch": "3", "features": "4", "size": "32"}


def test_networks_have_the_authors_sizes_and_shapes():
    """64 px: 3-64-128-256-512 by 4x4 kernels of stride 2 and padding 1, a 4x4 kernel to the code, and back."""
    encoder = 16 * (3 * 64 + 64 * 128 + 128 * 256 + 256 * 512) + 2 * (128 + 256 + 512)
    decoder = 16 * (100 * 512 + 512 * 256 + 256 * 128 + 128 * 64 + 64 * 3) + 2 * (512 + 256 + 128 + 64)
    detector = build("ganomaly@paper")
    generate, judge = detector.trained["generator"], detector.trained["discriminator"]
    assert sum(p.numel() for p in generate.parameters()) == 2 * (encoder + 16 * 512 * 100) + decoder
    assert sum(p.numel() for p in judge.parameters()) == encoder + 16 * 512
    x = torch.zeros(1, 3, 64, 64)
    assert generate.encoder1.input_layers(x).shape == (1, 64, 32, 32) and judge(x)[1].shape == (1, 512, 4, 4)
    assert [tuple(part.shape) for part in generate(x)] == [(1, 3, 64, 64), (1, 100, 1, 1), (1, 100, 1, 1)]
    library = build("ganomaly@anomalib", {"size": "64"}).trained["generator"]
    assert library.encoder1.input_layers(x).shape == (1, 64, 35, 35)


def test_initial_weights_are_dcgans():
    for module in build("ganomaly@paper").trained.values():
        convs = torch.cat([m.weight.detach().flatten() for m in module.modules()
                           if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)])
        norms = torch.cat([m.weight.detach() for m in module.modules() if isinstance(m, nn.BatchNorm2d)])
        assert float(convs.std()) == pytest.approx(0.02, rel=0.02)
        assert (float(norms.mean()), float(norms.std())) == pytest.approx((1.0, 0.02), abs=0.004)


def case():
    real, fake = torch.zeros(1, 1, 1, 2), torch.tensor([[[[1.0, -3.0]]]])
    code, again = torch.tensor([[1.0, 2.0]]), torch.tensor([[4.0, 2.0]])
    of_real = (torch.tensor([0.9]), torch.tensor([[[[1.0]], [[0.0]]]]))
    of_fake = (torch.tensor([0.2]), torch.tensor([[[[3.0]], [[0.0]]]]))
    return real, fake, code, again, of_real, of_fake


def test_generators_losses_are_the_authors():
    found = {name: float(value) for name, value in ganomaly.generator_losses(*case()).items()}
    assert found == pytest.approx({"adversarial": 4 / 2, "contextual": 4 / 2, "encoder": 9 / 2})
    library = {name: float(value) for name, value in ganomaly.library_losses(*case()).items()}
    assert library == pytest.approx({"adversarial": 0.49, "contextual": 2, "encoder": 2.5 / 2})


def test_gradients_of_the_losses():
    """A code that agrees has none; one that differs by 3 has 2 * 3 / 2; L1 has the sign over the number of values."""
    real, fake, code, again, of_real, of_fake = case()
    fake.requires_grad_(), again.requires_grad_()
    feature = of_fake[1].requires_grad_()
    parts = ganomaly.generator_losses(real, fake, code, again, of_real, (of_fake[0], feature))
    sum(parts.values()).backward()
    assert again.grad.flatten().tolist() == [3.0, 0.0]
    assert fake.grad.flatten().tolist() == [0.5, -0.5]
    assert feature.grad.flatten().tolist() == [2.0, 0.0]


def test_discriminators_loss_and_gradient():
    real, fake = torch.tensor([0.8], requires_grad=True), torch.tensor([0.4], requires_grad=True)
    loss = ganomaly.discriminator_loss(real, fake)
    assert float(loss.detach()) == pytest.approx(-(math.log(0.8) + math.log(0.6)) / 2)
    loss.backward()
    assert (float(real.grad), float(fake.grad)) == pytest.approx((-1 / 0.8 / 2, 1 / 0.6 / 2))


@pytest.mark.parametrize("library", [False, True])
def test_both_players_step_from_one_state_with_the_weights_1_50_1(library):
    """One joint step equals the authors' two: the generator's loss leaves no gradient in the discriminator."""
    settings = {**SMALL, "epochs": "1", "train_batch": "4", "library": str(library)}
    detector = build("ganomaly@quick", settings)
    generate, judge = (copy.deepcopy(detector.trained[k]).train() for k in ("generator", "discriminator"))
    log = detector.fit(pictures(4), None)
    real = detector.preprocess(pictures(4)) * 2 - 1
    optimizers = [torch.optim.Adam(m.parameters(), 2e-4, (0.5, 0.999)) for m in (generate, judge)]
    fake, code, again = generate(real)
    answer, of_fake = judge(real), judge(fake)
    losses = ganomaly.library_losses if library else ganomaly.generator_losses
    adversarial, contextual, encoder = losses(real, fake, code, again, answer, of_fake).values()
    loss = adversarial + 50 * contextual + encoder
    assert log["generator"][0] == pytest.approx(float(loss.detach()), rel=1e-4)
    loss.backward(retain_graph=True)
    optimizers[0].step()
    optimizers[1].zero_grad()
    ganomaly.discriminator_loss(answer[0], judge(fake.detach())[0]).backward()
    optimizers[1].step()
    for mine, theirs in ((detector.trained["generator"], generate), (detector.trained["discriminator"], judge)):
        for (name, a), b in zip(mine.named_parameters(), theirs.parameters(), strict=True):
            # Adam's first step is lr * sign(gradient): a gradient of rounding size may turn either way
            assert torch.isclose(a, b, atol=1e-6).float().mean() > 0.97, name


def test_discriminator_that_is_too_good_starts_anew(monkeypatch):
    for library, expected in (("false", 4), ("true", 0)):
        monkeypatch.setattr(ganomaly, "TOO_GOOD", 1e9)
        log = build("ganomaly@quick", {**SMALL, "library": library, "epochs": "2"}).fit(pictures(6), None)
        assert log["discriminator_restarts"] == expected
    monkeypatch.setattr(ganomaly, "TOO_GOOD", 1e-5)
    assert build("ganomaly@quick", SMALL).fit(pictures(6), None)["discriminator_restarts"] == 0


def test_score_is_the_mean_squared_distance_of_the_codes():
    detector = build("ganomaly@quick", SMALL)
    code = torch.tensor([[1.0, 2.0], [0.0, 0.0]]).view(2, 2, 1, 1)
    again = torch.tensor([[1.0, 5.0], [1.0, -1.0]]).view(2, 2, 1, 1)
    detector.trained["generator"] = lambda x: (x, code, again)
    result = detector.predict(pictures(2))
    assert result.score.tolist() == [4.5, 1.0] and result.anomaly_map is None


def test_presets_have_the_authors_and_anomalibs_schedule():
    paper, library = registry.config("ganomaly@paper"), registry.config("ganomaly@anomalib")
    assert (paper.size, paper.epochs, paper.train_batch, paper.library) == (64, 15, 64, False)
    assert (library.size, library.epochs, library.train_batch, library.library) == (256, 100, 32, True)


def test_settings_that_cannot_work_are_refused():
    with pytest.raises(ModelError, match="power of two"):
        build("ganomaly@quick", {"size": "48"})
    with pytest.raises(ModelError, match="three"):
        build("ganomaly@quick", {"weights": "1,50"})


def test_fit_predict_seed_and_state():
    check_fit_predict_seed_and_state("ganomaly@quick", SMALL)
