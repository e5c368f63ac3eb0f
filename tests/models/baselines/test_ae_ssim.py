"""AE_SSIM and AE_L2 after the paper: network, losses with their gradients, patches, maps."""

from __future__ import annotations

import pytest
import torch
from skimage.metrics import structural_similarity
from torch import nn

from models.base import ModelError
from models.baselines import ae_ssim
from models.nn.conv_ae import ConvAE
from tests.models.baselines.common import build, check_fit_predict_seed_and_state, pictures

SMALL = {"epochs": "1", "train_batch": "3", "latent": "8"}


@pytest.mark.parametrize(("size", "count"), [(128, 9), (256, 10)])
def test_network_is_the_papers_table(size, count):
    net = ConvAE(size, 100)
    convs = [m for m in net.encoder if isinstance(m, nn.Conv2d)]
    assert len(convs) == count and [m.out_channels for m in convs[-8:]] == [32, 32, 64, 64, 128, 64, 32, 100]
    assert convs[-1].kernel_size == (8, 8) and sum(m.stride == (2, 2) for m in convs) == count - 5
    assert net.encoder(torch.rand(2, 3, size, size)).shape == (2, 100)
    found = net(torch.rand(2, 3, size, size))
    assert found.shape == (2, 3, size, size) and found.min() > 0 and found.max() < 1


def test_losses_and_their_gradients():
    x, y = torch.rand(2, 3, 16, 16), torch.rand(2, 3, 16, 16).requires_grad_()
    found = ae_ssim.errors(x, y, "l2")
    assert found.tolist() == pytest.approx([((a - b) ** 2).sum().item() for a, b in zip(x, y, strict=True)], rel=1e-5)
    (grad,) = torch.autograd.grad(found.sum(), y)
    assert torch.allclose(grad, 2 * (y - x))
    found = ae_ssim.errors(x, y, "ssim")
    for a, b, value in zip(x, y.detach(), found, strict=True):
        maps = structural_similarity(a.numpy(), b.numpy(), channel_axis=0, data_range=1, gaussian_weights=True,
                                     use_sample_covariance=False, full=True)[1]
        assert value.item() == pytest.approx(1 - maps[:, 5:-5, 5:-5].mean(), abs=1e-4)
    (grad,) = torch.autograd.grad(found.sum(), y)
    assert grad.abs().max() > 0
    (grad,) = torch.autograd.grad(ae_ssim.errors(x, (z := x.clone().requires_grad_()), "ssim").sum(), z)
    assert grad.abs().max() < 1e-3  # nothing to mend


@pytest.mark.parametrize("loss", ["ssim", "l2"])
def test_map_is_the_papers_and_overlaps_are_averaged(loss):
    detector = build("ae_ssim@quick", {**SMALL, "loss": loss, "size": "160"})
    x = detector.preprocess(pictures(1, 4, spot=True))
    net, parts = detector.trained["net"], []
    for top in (0, 32):
        for left in (0, 32):
            full = torch.full((160, 160), torch.nan)
            patch = x[..., top : top + 128, left : left + 128]
            with torch.no_grad():
                full[top : top + 128, left : left + 128] = ae_ssim.error_map(patch, net(patch), loss)[0]
            parts.append(full)
    expected = torch.stack(parts).nanmean(0)
    assert torch.allclose(detector.predict(pictures(1, 4, spot=True)).anomaly_map[0], expected, atol=1e-5)
    y = net(patch).detach()
    if loss == "l2":
        assert torch.allclose(ae_ssim.error_map(patch, y, loss), ((patch - y) ** 2).sum(1) / 3)
    else:
        maps = ae_ssim.error_map(patch, y, loss)
        assert torch.equal(maps[:, 0], maps[:, 5]) and maps[0, 5:-5, 5:-5].mean().item() == pytest.approx(
            ae_ssim.errors(patch, y, loss).item(), abs=1e-4)


def test_patches_of_a_texture_come_from_everywhere():
    """A picture whose rows count upwards: the patch's first row says where it was taken."""
    detector, seen = build("ae_ssim@quick", {**SMALL, "size": "160", "samples": "40", "loss": "l2"}), []
    detector.trained["net"].register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].detach().clone()))
    column = torch.arange(160).view(-1, 1, 1).expand(160, 160, 3).to(torch.uint8).numpy()
    detector.fit([column], None)
    firsts = {round(float(x) * 255) for patch in seen if patch.requires_grad is False for x in patch[:, 0, 0, 0]}
    steps = {round(float(d) * 255) for patch in seen[:3] for d in (patch[:, 0, 1] - patch[:, 0, 0]).flatten()}
    assert len(firsts) > 10 and max(firsts) <= 32 and steps == {1}


def test_it_learns_and_says_so_beside_the_mean_picture():
    log = build("ae_ssim@quick", {**SMALL, "epochs": "8", "loss": "l2", "train_batch": "2"}).fit(pictures(6), None)
    assert log["loss"][-1] < 0.5 * log["loss"][0] and log["floor"] > 0 and "error_over_floor" in log


def test_presets_are_the_papers():
    config = build("ae_ssim@textures").config
    assert (config.size, config.patch, config.latent, config.epochs, config.samples) == (256, 128, 100, 200, 10_000)
    assert (config.train_batch, config.lr, config.stride) == (128, 2e-4, 32)
    assert build("ae_ssim@objects_l2").config.loss == "l2" and build("ae_ssim@objects").config.latent == 500


def test_what_cannot_work_is_refused():
    with pytest.raises(ModelError, match="no training pictures"):
        build("ae_ssim@quick", SMALL).fit([], None)
    with pytest.raises(ModelError, match="do not cover 150 px"):
        build("ae_ssim@quick", {"size": "150"})
    with pytest.raises(ModelError, match="128 or 256"):
        build("ae_ssim@quick", {"size": "64", "patch": "64"})
    with pytest.raises(ModelError, match="epoch 1"):
        build("ae_ssim@quick", {**SMALL, "lr": "inf"}).fit(pictures(4), None)


def test_fit_predict_seed_and_state():
    check_fit_predict_seed_and_state("ae_ssim@quick", SMALL)
