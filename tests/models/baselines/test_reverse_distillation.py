"""Reverse Distillation against the authors' formulas: network sizes, loss and gradient, map."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from models import frozen
from models.base import ModelError
from models.baselines import reverse_distillation as rd
from tests.models.baselines.common import SHORT, build, check_fit_predict_seed_and_state, pictures


def count(module):
    return sum(p.numel() for p in module.parameters())


def wide_bottleneck():
    """Parameters of the authors' bottleneck of Wide-ResNet-50: three blocks, 1024 channels within, and the joining."""
    def block(inputs, width, out, shortcut):
        inner = inputs * width + 9 * width * width + width * out + 2 * (width + width + out)
        return inner + (inputs * out + 2 * out if shortcut else 0)

    joining = 9 * (256 * 512 + 512 * 1024 + 512 * 1024) + 2 * (512 + 1024 + 1024) + 4096 * 2048 + 2 * 2048
    return block(3072, 1024, 2048, True) + 2 * block(2048, 1024, 2048, False) + joining


def wide_decoder():
    """Parameters of their decoder: stages of 3, 4 and 6 blocks that double the side and halve the channels."""
    def stage(inputs, planes, blocks):
        width, out = 2 * planes, 4 * planes
        first = inputs * width + 4 * width * width + width * out + 2 * (2 * width + out) + 4 * inputs * out + 2 * out
        return first + (blocks - 1) * (out * width + 9 * width * width + width * out + 2 * (2 * width + out))

    return stage(2048, 256, 3) + stage(1024, 128, 4) + stage(512, 64, 6)


def test_networks_of_the_wide_resnet_have_the_authors_sizes():
    with torch.device("meta"):
        bottleneck, decoder = rd.networks("wide_resnet50_2.tv_in1k")
    assert count(bottleneck) == wide_bottleneck() and round(wide_bottleneck() / 1e6, 1) == 67.3
    assert count(decoder) == wide_decoder()


def test_loss_is_one_cosine_per_picture_and_stage():
    teacher = [torch.tensor([[[[3.0, 0.0]], [[0.0, 1.0]]], [[[1.0, 1.0]], [[1.0, 1.0]]]]),
               torch.tensor([[[[2.0]]], [[[2.0]]]])]
    student = [torch.tensor([[[[1.0, 0.0]], [[0.0, 2.0]]], [[[1.0, 1.0]], [[1.0, -1.0]]]]),
               torch.tensor([[[[5.0]]], [[[-1.0]]]])]
    first = (1 - 5 / (math.sqrt(10) * math.sqrt(5)) + 1 - 2 / 4) / 2  # not the mean of positions' cosines
    second = (0 + 2) / 2
    assert float(rd.cosine_loss(teacher, student)) == pytest.approx(first + second)


def test_gradient_vanishes_where_the_student_agrees_and_only_there():
    teacher = [torch.tensor([[[[1.0]], [[2.0]]], [[[1.0]], [[2.0]]]])]
    student = [torch.tensor([[[[2.0]], [[4.0]]], [[[2.0]], [[-1.0]]]], requires_grad=True)]
    rd.cosine_loss(teacher, student).backward()
    agreed, differed = student[0].grad
    assert agreed.abs().max() < 1e-6
    # d(1 - cos)/ds = -(t/|t| - cos s/|s|)/|s|, here cos = 0, halved by the mean over two pictures
    expected = -torch.tensor([1.0, 2.0]) / math.sqrt(5) / math.sqrt(5) / 2
    assert differed.flatten().tolist() == pytest.approx(expected.tolist(), abs=1e-6)


def test_map_is_the_sum_of_distances_with_aligned_corners_smoothed_as_scipy_does():
    from scipy.ndimage import gaussian_filter

    detector = build("reverse_distillation@quick", {"size": "32"})
    teacher = [torch.zeros(1, 2, 2, 2), torch.zeros(1, 2, 1, 1)]
    teacher[0][:, 0], teacher[1][:, 0] = 1, 1
    student = [t.clone() for t in teacher]
    student[0][0, :, 0, 0] = torch.tensor([0.0, 1.0])  # distance 1 at the upper left corner
    student[1][0] = torch.tensor([-1.0, 0.0]).view(2, 1, 1)  # distance 2 everywhere
    detector._pairs = lambda x: (teacher, student)
    ramp = 1 - np.arange(32) / 31  # aligned corners: from the corner's 1 down to 0 at the other side
    expected = gaussian_filter(np.outer(ramp, ramp) + 2, sigma=4)
    result = detector.predict(pictures(1))
    np.testing.assert_allclose(result.anomaly_map[0].numpy(), expected, atol=1e-5)
    assert result.score is None  # the harness takes the map's maximum, as they do


def test_teacher_runs_once_and_features_computed_anew_give_the_same_training(monkeypatch):
    results, notes = [], []
    for room in (1 << 30, 0):
        monkeypatch.setattr(frozen, "room", lambda device, room=room: room)
        monkeypatch.setattr(frozen, "note", notes.append)
        detector = build("reverse_distillation@quick", SHORT)
        calls = []
        detector.teacher.register_forward_pre_hook(lambda module, inputs, calls=calls: calls.append(len(inputs[0])))
        detector.fit(pictures(6), None)
        runs = sum(calls)
        results.append((detector.predict(pictures(2)), runs))
    assert results[0][1] == 1 + 6 and results[1][1] == 1 + 2 * 6 and len(notes) == 1
    assert torch.allclose(results[0][0].anomaly_map, results[1][0].anomaly_map, atol=1e-3)


def test_feature_maps():
    detector = build("reverse_distillation@quick", SHORT)
    shapes = [tuple(m.shape) for m in detector.feature_maps(pictures(2))]
    assert shapes == [(2, 64, 16, 16), (2, 128, 8, 8), (2, 256, 4, 4)]


def test_backbone_without_a_decoder_is_refused():
    with pytest.raises(ModelError, match="use a ResNet"):
        build("reverse_distillation@quick", {"backbone": "vgg16.tv_in1k"})


@pytest.mark.slow
def test_fit_predict_seed_and_state():
    check_fit_predict_seed_and_state("reverse_distillation@quick", SHORT)
