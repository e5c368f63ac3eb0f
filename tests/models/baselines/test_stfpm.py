"""STFPM against the authors' formulas: student, loss and gradient, held-out pictures and best epoch, map."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from models.base import ModelError
from models.baselines import stfpm
from models.nn.training import split
from tests.models.baselines.common import SHORT, build, check_fit_predict_seed_and_state, pictures


def features():
    """Teacher and student of one picture: stages of 2x2 and 1x1; equal but for one position of the first stage."""
    teacher = [torch.zeros(1, 2, 2, 2), torch.ones(1, 2, 1, 1)]
    teacher[0][:, 0] = 5.0
    student = [teacher[0].clone() / 5, torch.tensor([[[[1.0]], [[-1.0]]]])]
    student[0][0, :, 1, 1] = torch.tensor([0.0, 7.0])
    return teacher, student


def test_loss_is_the_mean_squared_distance_of_normalised_features_summed_over_stages():
    teacher, student = features()
    assert float(stfpm.pyramid_loss(teacher, student)) == pytest.approx(2 / 4 + 2, abs=1e-6)
    twice = [torch.cat([m, m]) for m in teacher], [torch.cat([m, m]) for m in student]
    assert float(stfpm.pyramid_loss(*twice)) == pytest.approx(2.5, abs=1e-6)  # a mean over pictures, not a sum


def test_gradient_is_the_authors_and_vanishes_where_the_student_agrees():
    """d|t - s/|s||^2/ds = -2 (t - (t.s/|s|) s/|s|)/|s| for a unit t; the mean divides by the positions."""
    teacher, student = features()
    student = [m.clone().requires_grad_() for m in student]
    stfpm.pyramid_loss(teacher, student).backward()
    grad = student[0].grad[0]
    assert grad[:, 1, 1].tolist() == pytest.approx([-2 / 7 / 4, 0.0], abs=1e-6)
    assert grad[:, 0].abs().max() < 1e-6 and grad[:, 1, 0].abs().max() < 1e-6


def test_map_is_the_product_at_the_first_stages_size_upsampled():
    teacher, student = features()
    small = stfpm.product_map(teacher, student)
    assert small[0].flatten().tolist() == pytest.approx([0, 0, 0, 2 * 2], abs=1e-6)
    detector = build("stfpm@demo", {"size": "64"})
    detector.teacher = lambda x: dict(enumerate(teacher))
    detector._student = lambda x: student
    result = detector.predict(pictures(1))
    expected = F.interpolate(small.unsqueeze(1), (64, 64), mode="bilinear", align_corners=False)[:, 0]
    assert torch.allclose(result.anomaly_map, expected) and result.score is None
    # a product of maps upsampled one by one would not be this: in the middle (1/4 of 2) * 2 against 1/4 of 4 by chance,
    # so a second stage that varies tells them apart
    teacher[1], student[1] = torch.ones(1, 2, 2, 2), torch.ones(1, 2, 2, 2)
    student[1][0, 1, 1, 1] = -1.0
    result = detector.predict(pictures(1)).anomaly_map
    assert float(result[0, 31:33, 31:33].mean()) == pytest.approx(1.0, abs=0.1)  # one by one: 0.25


def test_student_is_torchvisions_resnet_with_its_initial_weights():
    student = build("stfpm@resnet18", {"size": "64"}).trained["student"]
    stage = 2 * (9 * 64 * 64 * 2 + 4 * 64)
    wider = [9 * a * b + 9 * 3 * b * b + a * b + 2 * 5 * b for a, b in ((64, 128), (128, 256))]
    assert sum(p.numel() for p in student.parameters()) == 3 * 49 * 64 + 128 + stage + sum(wider)
    norms = [m.weight for m in student.modules() if isinstance(m, nn.BatchNorm2d)]
    assert all(bool((w == 1).all()) for w in norms)  # timm zeroes the last one of each block
    for conv in (m for m in student.modules() if isinstance(m, nn.Conv2d)):
        fan_out = conv.out_channels * conv.kernel_size[0] ** 2
        assert float(conv.weight.detach().std()) == pytest.approx((2 / fan_out) ** 0.5, rel=0.1)


def test_a_fifth_is_held_out_and_the_best_epoch_on_it_is_kept():
    detector = build("stfpm@demo", {**SHORT, "epochs": "6", "lr": "0.4"})
    log = detector.fit(pictures(15), None)
    assert log["held_out"] == 3 and len(log["validation_loss"]) == 6
    best = min(range(6), key=log["validation_loss"].__getitem__)
    assert log["best_epoch"] == best + 1
    shorter = build("stfpm@demo", {**SHORT, "epochs": str(best + 1), "lr": "0.4"})
    shorter.fit(pictures(15), None)
    assert torch.equal(shorter.predict(pictures(2)).anomaly_map, detector.predict(pictures(2)).anomaly_map)


def test_held_out_pictures_are_not_trained_on():
    detector, train = build("stfpm@demo", SHORT), pictures(10)
    kept, held = split(10, 0.2, detector.context)
    known, seen, student = detector._pictures(train), [], detector._student

    def watch(x):
        if torch.is_grad_enabled():
            seen.extend(next(i for i, picture in enumerate(known) if torch.equal(picture, one)) for one in x)
        return student(x)

    detector._student = watch
    detector.fit(train, None)
    assert len(held) == 2 and sorted(seen) == sorted(kept * 2)


def test_it_learns():
    log = build("stfpm@demo", {**SHORT, "epochs": "6"}).fit(pictures(10), None)
    assert log["loss"][-1] < 0.8 * log["loss"][0]


def test_loss_that_is_not_finite_names_the_epoch():
    with pytest.raises(ModelError, match="epoch 1"):
        build("stfpm@demo", {**SHORT, "lr": "nan"}).fit(pictures(10), None)


def test_too_few_pictures_and_unknown_students_are_refused():
    with pytest.raises(ModelError, match="too few"):
        build("stfpm@demo", SHORT).fit(pictures(4), None)
    with pytest.raises(ModelError, match="torchvision"):
        build("stfpm@demo", {"backbone": "dla34.in1k", "layers": "level1"})


@pytest.mark.slow
def test_fit_predict_seed_and_state():
    check_fit_predict_seed_and_state("stfpm@demo", SHORT, train=10)
