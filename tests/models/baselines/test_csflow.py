"""CS-Flow against the authors' formulas: sizes, permutations, loss with its log-determinant, score, map."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from models import registry
from models.base import ModelError
from models.baselines import csflow
from tests.models.baselines.common import build, check_fit_predict_seed_and_state, pictures

SMALL = {"size": "128", "hidden": "4", "blocks": "2", "epochs": "1"}


@pytest.fixture(scope="module")
def detector():
    return build("csflow@quick", SMALL)


def couplings(detector):
    from anomalib.models.image.csflow.torch_model import ParallelGlowCouplingLayer

    return [m for m in detector.trained["flow"].modules() if isinstance(m, ParallelGlowCouplingLayer)]


def excited(detector, scale=0.3):
    """The flow with its gates open: they start at 0, where it only permutes."""
    torch.manual_seed(1)
    for coupling in couplings(detector):
        for cross in (coupling.cross_convolution1, coupling.cross_convolution2):
            for gate in (cross.gamma0, cross.gamma1, cross.gamma2):
                gate.data.uniform_(-scale, scale)
    return detector.trained["flow"]


def test_the_papers_flow_has_the_authors_size():
    """Per coupling two subnets of ten convolutions (152 -> 1024 -> 304), 3x3, the last block's 5x5, and three gates."""
    from anomalib.models.image.csflow.torch_model import CrossScaleFlow

    with torch.device("meta"):
        flow = CrossScaleFlow((3, 768, 768), 4, 3.0, 1024)
    subnets = [3 * (k * k * 152 * 1024 + 1024) + 7 * (k * k * 1024 * 304 + 304) + 3 for k in (3, 3, 3, 5)]
    assert sum(p.numel() for p in flow.parameters()) == 2 * sum(subnets)


def test_permutations_are_the_authors(detector):
    from anomalib.models.image.csflow.torch_model import ParallelPermute

    blocks = [m for m in detector.trained["flow"].modules() if isinstance(m, ParallelPermute)]
    assert len(blocks) == 2
    for k, block in enumerate(blocks):
        np.random.seed(k)  # noqa: NPY002 - as their code does
        for order, inverse in zip(block.perm, block.perm_inv, strict=True):
            expected = np.random.permutation(304)  # noqa: NPY002
            assert order.tolist() == expected.tolist()
            assert order[inverse].tolist() == list(range(304))


def test_loss_is_the_likelihood_with_each_pictures_own_log_determinant(detector):
    """Two pictures: the couplings' scales read from their subnets, summed per picture, as the authors' jacobian."""
    flow, logs = excited(detector), []

    def keep(module, inputs, output):
        half = output[0].shape[1] // 2
        logs.append(sum((3 * 0.636 * torch.atan(s[:, :half] / 3)).flatten(1).sum(1) for s in output))

    handles = [cross.register_forward_hook(keep) for coupling in couplings(detector)
               for cross in (coupling.cross_convolution1, coupling.cross_convolution2)]
    scales = [torch.randn(2, 304, side, side) for side in (4, 2, 1)]
    with torch.no_grad():
        z, jacobian = flow(scales)
    for handle in handles:
        handle.remove()
    per_picture = sum(logs)
    assert per_picture.abs().min() > 0.1 and abs(float(per_picture[0] - per_picture[1])) > 1e-3
    flat = torch.cat([part.flatten(1) for part in z], 1)
    expected = (0.5 * flat.square().sum(1) - per_picture).mean() / flat.shape[1]
    assert float(csflow.likelihood_loss(z, jacobian)) == pytest.approx(float(expected), rel=1e-5)


def test_log_determinant_is_that_of_the_flow():
    """One coupling with only its first step open: y1 = exp(s(x2)) x1 + t(x2). Adding 1 to x1 moves y1 by exp(s)."""
    detector = build("csflow@quick", {**SMALL, "blocks": "1"})
    flow, coupling = excited(detector, 0.0), couplings(detector)[0]
    coupling.cross_convolution2.gamma0.data.fill_(1.0)
    scales = [torch.randn(1, 304, side, side) for side in (4, 2, 1)]
    with torch.no_grad():
        z, jacobian = flow(scales)
        other = [s.clone() for s in scales]
        other[0][:, flow_order(detector)[:152]] += 1.0  # only the half that is stretched
        stretched = flow(other)[0][0][:, :152] - z[0][:, :152]
    assert float(jacobian.mean()) == pytest.approx(float(stretched.log().sum()), rel=1e-3)


def flow_order(detector):
    from anomalib.models.image.csflow.torch_model import ParallelPermute

    return next(m for m in detector.trained["flow"].modules() if isinstance(m, ParallelPermute)).perm[0]


def test_gradient_pulls_latents_to_zero_and_raises_the_determinant():
    z = [torch.tensor([[[[1.0, 2.0]]], [[[3.0, 0.0]]]], requires_grad=True)]
    jacobian = torch.tensor(4.0, requires_grad=True)
    loss = csflow.likelihood_loss(z, jacobian)
    assert float(loss.detach()) == pytest.approx((0.5 * 14 - 4) / 2 / 2)
    loss.backward()
    assert torch.allclose(z[0].grad, z[0].detach() / 4) and float(jacobian.grad) == -0.25


def test_map_is_that_of_the_largest_scale_and_score_the_mean_over_all(detector):
    z = [torch.full((1, 304, 4, 4), 2.0), torch.full((1, 304, 2, 2), 3.0), torch.full((1, 304, 1, 1), 5.0)]
    z[0][0, :, 0, 0] = 0.0
    flow = detector.trained["flow"]
    try:
        detector.trained["flow"] = lambda scales: (z, None)
        result = detector.predict(pictures(1))
    finally:
        detector.trained["flow"] = flow
    assert result.anomaly_map.shape == (1, 128, 128)
    assert float(result.anomaly_map[0, -1, -1]) == pytest.approx(4.0) and float(result.anomaly_map[0, 0, 0]) == 0
    assert float(result.score) == pytest.approx((15 * 4 + 4 * 9 + 25) / 21 / 2, rel=1e-5)
    assert float(csflow.likelihood_map(z, (4, 4))[0, 3, 3]) == pytest.approx(4 * 9 * 25)  # anomalib's preset


def test_optimizer_is_the_authors_and_gradients_are_clipped():
    paper, library = registry.config("csflow@paper"), registry.config("csflow@anomalib")
    assert (paper.betas, paper.scales) == ((0.9, 0.999), 1) and (library.betas, library.scales) == ((0.5, 0.9), 3)
    weight = torch.nn.Parameter(torch.zeros(2))
    optimizer = csflow.ClippedAdam([weight], 1.0, paper.betas)
    weight.grad = torch.tensor([30.0, 40.0])
    optimizer.step()
    assert optimizer.state[weight]["exp_avg"].tolist() == pytest.approx([0.06, 0.08], rel=1e-4)


def test_size_that_the_scales_cannot_halve_is_refused():
    with pytest.raises(ModelError, match="multiple of 128"):
        build("csflow@quick", {"size": "200"})


@pytest.mark.slow
def test_fit_predict_seed_and_state():
    check_fit_predict_seed_and_state("csflow@quick", {"epochs": "1", "hidden": "4", "blocks": "2"})
