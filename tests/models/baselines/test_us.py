"""Uninformed students after the paper: loss, error and variance by hand, scaling, map, learning."""

from __future__ import annotations

import pytest
import torch

from models.base import ModelError
from models.baselines import us
from tests.models.baselines.common import build, check_fit_predict_seed_and_state, pictures

SMALL = {"patches": "17,33", "size": "32", "epochs": "2", "teacher_steps": "3", "teacher_batch": "4", "natural": "4",
         "natural_size": "40", "layer": "layer1"}


def test_error_and_variance_by_hand():
    """Students say (1, 0) and (3, 4), the teacher (0, 0): mean (2, 2), error 8; squares 1 and 25, variance 13 - 8."""
    students = torch.tensor([[1.0, 0.0], [3.0, 4.0]]).view(2, 1, 2, 1, 1)
    found = us.error_and_variance(students, torch.zeros(1, 2, 1, 1))
    assert found.flatten().tolist() == pytest.approx([8, 5])
    assert us.error_and_variance(students[:1], students[0]).flatten().tolist() == [0, 0]


def test_loss_is_the_squared_distance_of_every_student_to_the_standardised_teacher():
    detector = build("us@quick", SMALL)
    teacher, students = detector.trained["teacher17"], detector.trained["students17"]
    teacher.mean.fill_(0.5)
    teacher.std.fill_(2.0)
    x = torch.rand(2, 3, 32, 32)
    target = (super(type(teacher), teacher).forward(x) - 0.5) / 2
    expected = sum((student(x) - target).square().sum(1).mean() for student in students)
    loss = detector._loss(x, 17)
    assert len(students) == 3 and float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
    loss.backward()
    assert all(student.layers[0].weight.grad.abs().max() > 0 for student in students)
    assert teacher.layers[0].weight.grad is None
    assert not torch.equal(students[0].layers[0].weight, students[1].layers[0].weight)


def test_map_is_the_mean_over_scales_of_scaled_error_and_variance():
    detector, test = build("us@quick", SMALL), pictures(1, 3) + pictures(1, 4, spot=True)
    train = pictures(12)
    log = detector.fit(train, None)
    x, expected = detector.preprocess(test), 0
    with torch.no_grad():
        for i, patch in enumerate((17, 33)):
            parts = detector._parts(x, patch)
            for j in range(2):
                mean, deviation = detector.normal[i, j]
                expected = expected + (parts[:, j] - mean) / deviation / 2
    found = detector.predict(test)
    assert torch.allclose(found.anomaly_map, expected, atol=1e-4) and found.score is None
    assert set(log["unexplained"]) == {"17", "33"} and {"teacher17", "teacher33"} <= set(log)


def test_scale_is_that_of_the_validation_pictures():
    detector, validation = build("us@quick", SMALL), pictures(3, 8)
    detector.fit(pictures(6), validation)
    with torch.no_grad():
        parts = detector._parts(detector.preprocess(validation), 17)
    assert torch.allclose(detector.normal[0, :, 0], parts.mean((0, 2, 3)), rtol=1e-4)
    assert torch.allclose(detector.normal[0, :, 1], parts.transpose(0, 1).flatten(1).std(1), rtol=1e-3)
    maps = detector.predict(validation).anomaly_map
    assert abs(float(maps.mean())) < 1e-3


def test_students_learn_the_teacher():
    settings = {**SMALL, "epochs": "15", "lr": "0.003", "teacher_steps": "40", "train_batch": "2"}
    log = build("us@quick", settings).fit(pictures(12), None)
    assert log["loss"][-1] < 0.5 * log["loss"][0]
    assert all(value < 0.7 for value in log["unexplained"].values())


def test_settings_are_the_papers_and_what_cannot_work_is_refused():
    config = build("us@paper", {"textures": "embedded"}).config
    assert (config.patches, config.students, config.size, config.epochs, config.train_batch, config.lr) == (
        (17, 33, 65), 3, 256, 100, 1, 1e-4)
    assert (config.teacher_steps, config.teacher_batch, config.teacher_lr, config.narrow) == (50_000, 64, 2e-4, 1)
    with pytest.raises(ModelError, match="natural pictures"):
        build("us@paper", {"patches": "17,"}).fit(pictures(4), None)
    with pytest.raises(ModelError, match="no training pictures"):
        build("us@quick", SMALL).fit([], None)
    with pytest.raises(ModelError, match="too few"):
        build("us@quick", SMALL).fit(pictures(1), None)
    with pytest.raises(ModelError, match="use 17, 33, 65"):
        build("us@quick", {"patches": "16,"})
    with pytest.raises(ModelError, match="epoch 1"):
        build("us@quick", {**SMALL, "lr": "inf"}).fit(pictures(4), None)


def test_fit_predict_seed_and_state():
    check_fit_predict_seed_and_state("us@quick", SMALL)
