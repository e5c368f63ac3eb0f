"""The plain VAE: the bound with its gradients, the map, that the code is used."""

from __future__ import annotations

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from models.base import ModelError
from models.baselines import vae
from tests.models.baselines.common import build, check_fit_predict_seed_and_state, pictures

SMALL = {"epochs": "1", "train_batch": "3", "latent": "8"}


def test_bound_is_the_gaussians_log_likelihood_and_divergence():
    x, y = torch.rand(2, 3, 4, 4), torch.rand(2, 3, 4, 4).requires_grad_()
    mean, log_variance = torch.randn(2, 5).requires_grad_(), torch.randn(2, 5).requires_grad_()
    error, divergence = vae.bound(x, y, mean, log_variance, 0.04)
    constant = Normal(x, 0.2).log_prob(x).sum((1, 2, 3))
    assert torch.allclose(error, constant - Normal(y, 0.2).log_prob(x).sum((1, 2, 3)), rtol=1e-4)
    own = kl_divergence(Normal(mean, (log_variance / 2).exp()), Normal(0.0, 1.0)).sum(1)
    assert torch.allclose(divergence, own, rtol=1e-4)
    (error + divergence).sum().backward()
    assert torch.allclose(y.grad, (y - x) / 0.04, rtol=1e-4) and torch.allclose(mean.grad, mean)
    assert torch.allclose(log_variance.grad, (log_variance.exp() - 1) / 2, rtol=1e-4, atol=1e-6)


def test_map_is_the_squared_error_of_the_mean_codes_picture():
    detector, test = build("vae@quick", SMALL), pictures(2, 4, spot=True)
    detector.fit(pictures(6), None)
    x = detector.preprocess(test)
    with torch.no_grad():
        y = detector.trained["decoder"](detector.trained["encoder"](x)[:, :8])
    found = detector.predict(test)
    assert torch.allclose(found.anomaly_map, ((x - y) ** 2).sum(1) / 3, atol=1e-6) and found.score is None
    assert torch.equal(found.panels["reconstruction"], y)


def test_it_learns_and_draws_its_codes():
    detector = build("vae@quick", {**SMALL, "epochs": "8", "train_batch": "2"})
    log = detector.fit(pictures(6), None)
    assert log["loss"][-1] < 0.5 * log["loss"][0] and len(log["divergence"]) == 8
    assert log["floor"] > 0 and "error_over_floor" in log


def test_what_cannot_work_is_refused():
    with pytest.raises(ModelError, match="no training pictures"):
        build("vae@quick", SMALL).fit([], None)
    with pytest.raises(ModelError, match="128 or 256"):
        build("vae@quick", {"size": "64"})
    with pytest.raises(ModelError, match="epoch 1"):
        build("vae@quick", {**SMALL, "lr": "inf"}).fit(pictures(4), None)


def test_fit_predict_seed_and_state():
    check_fit_predict_seed_and_state("vae@quick", SMALL)
