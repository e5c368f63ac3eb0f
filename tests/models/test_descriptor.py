"""Descriptors of patches: networks, the same values densely and patch by patch, distillation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from models import descriptor
from models.base import Context, ModelError, no_progress
from models.descriptor import Descriptor, DescriptorConfig, Teacher, compactness
from models.weights import WeightStore

CPU = torch.device("cpu")
QUICK = DescriptorConfig(
    narrow=16, layer="layer1", textures="embedded", natural=20, natural_size=40, teacher_steps=60, teacher_batch=16,
    teacher_lr=3e-3,
)


def context(seed=0):
    return Context(CPU, seed, WeightStore("none"))


@pytest.mark.parametrize("patch", [17, 33, 65])
def test_a_pixels_descriptor_is_that_of_the_patch_around_it(patch):
    torch.manual_seed(0)
    net, x = Descriptor(patch, 16), torch.randn(2, 3, 21, 30)
    with torch.no_grad():
        dense = net(x)
        assert dense.shape == (2, 8, 21, 30)
        padded = F.pad(x, (patch // 2,) * 4)
        for row, column in ((0, 0), (20, 29), (3, 8), (10, 5), (11, 22)):
            one = net.of_patches(padded[..., row : row + patch, column : column + patch])
            assert torch.allclose(dense[..., row, column], one, atol=1e-5), (row, column)


def test_networks_are_the_papers():
    widths = {p: [(m.kernel_size[0], m.out_channels) for m in Descriptor(p).modules() if isinstance(m, nn.Conv2d)]
              for p in (17, 33, 65)}
    assert widths[17] == [(6, 128), (5, 256), (5, 256), (4, 128)]
    assert widths[33] == [(5, 128), (5, 256), (2, 256), (4, 128)]
    assert widths[65] == [(5, 128), (5, 128), (5, 256), (4, 256), (1, 128)]
    assert isinstance(Descriptor(17).layers[-1], nn.Conv2d)  # the descriptor itself is linear
    with pytest.raises(ModelError, match="17, 33, 65"):
        Descriptor(9)


def test_compactness_is_the_sum_of_correlations_off_the_diagonal():
    rows = torch.randn(20, 4, generator=torch.Generator().manual_seed(0))
    matrix = np.corrcoef(rows.numpy().T)
    assert float(compactness(rows)) == pytest.approx(matrix.sum() - 4, abs=1e-4)
    one = torch.arange(5.0)
    assert float(compactness(torch.stack([one, 3 * one + 1], 1))) == pytest.approx(2)


def test_channels_of_the_training_pictures_have_mean_0_and_deviation_1():
    torch.manual_seed(0)
    teacher, pictures = Teacher(17, 16), torch.randn(4, 3, 20, 20)
    teacher.standardise(pictures)
    found = teacher(pictures)
    assert found.mean((0, 2, 3)).abs().max() < 1e-4 and (found.std((0, 2, 3), correction=0) - 1).abs().max() < 1e-4


def test_distillation_explains_the_backbones_features_once_for_all_categories(monkeypatch):
    monkeypatch.setattr(descriptor, "_made", {})
    logs, nets = [], []
    for seed in (0, 0, 1):
        torch.manual_seed(0)
        nets.append(Teacher(17, 16))
        logs.append(nets[-1].distil(QUICK, context(seed), no_progress))
        assert not any(p.requires_grad for p in nets[-1].parameters())
    assert logs[0]["unexplained"] < 0.8 and logs[0]["distance"][-1] > 0
    assert logs[0]["loss"][0] == pytest.approx(logs[0]["distance"][0] + logs[0]["compactness"][0], rel=1e-4)
    assert "shared" in logs[1] and "shared" not in logs[2]
    first, second, other = (net.state_dict()["layers.0.weight"] for net in nets)
    assert torch.equal(first, second) and not torch.equal(first, other)


def test_no_natural_pictures_are_said():
    with pytest.raises(ModelError, match="natural pictures"):
        Teacher(17, 16).distil(DescriptorConfig(), context(), no_progress)


def test_a_teacher_that_explains_nothing_marks_the_figures():
    log = {}
    descriptor.learnt(log, {"teacher17": {"unexplained": 0.6}})
    assert log == {}
    descriptor.learnt(log, {"teacher17": {"unexplained": 0.6}, "teacher33": {"unexplained": 0.998}})
    assert log["marks"] == ["floor"] and "teacher33 explains 0.2% of the variance" in log["notes"][0]
