"""FastFlow against the formulas of the paper and of its re-implementation: sizes, loss and gradient, map."""

from __future__ import annotations

import math

import pytest
import torch

from models.base import ModelError
from models.baselines import fastflow
from tests.models.baselines.common import SHORT, build, check_fit_predict_seed_and_state, pictures


def test_flows_have_the_sizes_of_the_re_implementation():
    """Per step two convolutions of half the channels in, all out; a scale and an offset per channel; layer norms."""
    detector = build("fastflow@resnet18", {"size": "64"})
    expected = 0
    for channels, side in ((64, 16), (128, 8), (256, 4)):
        half = channels // 2
        subnet = 9 * half * half + half + 9 * half * channels + channels
        expected += 8 * (subnet + 2 * channels) + 2 * channels * side * side
    found = sum(p.numel() for m in detector.trained.values() for p in m.parameters() if p.requires_grad)
    assert found == expected


def test_wide_flows_alternate_kernels():
    from torch import nn

    detector = build("fastflow@quick", {"size": "64"})
    convs = [m.kernel_size[0] for m in detector.trained["flows"][0].modules() if isinstance(m, nn.Conv2d)]
    assert convs == [3, 3, 1, 1, 3, 3, 1, 1]


def test_loss_is_the_negative_log_likelihood_and_its_gradient():
    latent = [torch.tensor([[[[1.0, 2.0]]], [[[3.0, 0.0]]]], requires_grad=True),
              torch.tensor([[[[2.0]]], [[[4.0]]]], requires_grad=True)]
    jacobians = [torch.tensor([1.0, 3.0], requires_grad=True), torch.tensor([0.5, 0.5], requires_grad=True)]
    loss = fastflow.likelihood_loss(latent, jacobians)
    assert float(loss.detach()) == pytest.approx(((2.5 - 1) + (4.5 - 3)) / 2 + ((2 - 0.5) + (8 - 0.5)) / 2)
    loss.backward()
    assert torch.allclose(latent[0].grad, latent[0].detach() / 2)  # large z, an anomaly, is pulled to 0 the harder
    assert jacobians[0].grad.tolist() == [-0.5, -0.5]


def test_log_determinant_is_that_of_the_flow():
    """By autograd on one small stage: a wrong sign or sum would train a flow that only shrinks."""
    detector = build("fastflow@quick", {"size": "16", "hidden_ratio": "0.5"})
    flow, norm = detector.trained["flows"][2], detector.trained["norms"][2]
    x = torch.randn(1, 256, 1, 1)
    z, jacobian = flow(norm(x))
    matrix = torch.autograd.functional.jacobian(lambda y: flow(y)[0].flatten(), norm(x).detach())
    _, logdet = torch.linalg.slogdet(matrix.view(z.numel(), -1).double())
    assert float(jacobian.detach()) == pytest.approx(float(logdet), rel=1e-3)


def test_norms_come_before_the_flows():
    """A layer norm over channels and positions: the flow sees values of mean 0 and spread 1 whatever the features."""
    detector = build("fastflow@quick", {"size": "32"})
    features = [100 + 7 * torch.randn(1, channels, 8 // 2**k, 8 // 2**k) for k, channels in enumerate((64, 128, 256))]
    latent, _ = detector._latent(features)
    assert all(float(z.detach().square().mean()) == pytest.approx(1, abs=0.5) for z in latent)


def test_map_is_minus_the_mean_likelihood_over_stages():
    latent = [torch.zeros(1, 2, 1, 1), torch.tensor([[[[1.0]], [[3.0]]]])]
    found = fastflow.likelihood_map(latent, (4, 4))
    assert found.shape == (1, 4, 4)
    assert found.flatten().tolist() == pytest.approx([-(1 + math.exp(-0.5 * 5)) / 2] * 16)


def test_it_learns_and_its_backbone_runs_once():
    detector = build("fastflow@quick", {**SHORT, "epochs": "4"})
    calls = []
    detector.net.register_forward_pre_hook(lambda module, inputs: calls.append(len(inputs[0])))
    log = detector.fit(pictures(6), None)
    assert sum(calls) == 1 + 6 and log["loss"][-1] < log["loss"][0]
    latent, _ = detector._latent(list(detector.net(detector.preprocess(pictures(2))).values()))
    assert torch.equal(detector.predict(pictures(2)).anomaly_map, fastflow.likelihood_map(latent, (64, 64)))


def test_size_that_the_stages_cannot_halve_is_refused():
    with pytest.raises(ModelError, match="multiple of 16"):
        build("fastflow@quick", {"size": "100"})


@pytest.mark.slow
def test_fit_predict_seed_and_state():
    check_fit_predict_seed_and_state("fastflow@quick", SHORT)
