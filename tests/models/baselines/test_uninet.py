"""UniNet: sizes, crossing, selection, loss with its gradients, map and score after the authors' code."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from models.base import ModelError
from models.baselines import uninet
from models.baselines.uninet import map_and_score, networks, selected, uninet_loss
from tests.models.baselines.common import build, check_fit_predict_seed_and_state, pictures

TINY = {"size": "64", "epochs": "2", "train_batch": "3"}


def count(module):
    return sum(p.numel() for p in module.parameters())


def test_bottleneck_of_the_wide_resnet_has_the_authors_width():
    """Three blocks of two branches, 1024 channels within (anomalib: 512); what is not used counts too."""
    with torch.device("meta"):
        bottleneck, _ = networks("wide_resnet50_2.tv_in1k")

    def block(inputs):
        half, branches = 512, 2 * (inputs // 2 * 512 * 9 + 512 * 512 * 9) + 2 * 512
        return branches + 1024 * 2048 + 2 * (4 * half + 1024 + 2048)

    joining = 9 * (256 * 512 + 512 * 1024 + 512 * 1024) + 2 * (512 + 1024 + 1024) + 4096 * 2048 + 2 * 2048
    assert count(bottleneck) == block(3072) + 3072 * 2048 + 2 * 2048 + 2 * block(2048) + joining


def test_loss_by_hand():
    random = torch.Generator().manual_seed(0)
    teacher, student = ([torch.randn(2, 3, 1, 2, generator=random), torch.randn(2, 4, 1, 1, generator=random)]
                        for _ in range(2))
    total = 0.0
    for t, s in zip(teacher, student, strict=True):
        terms = []
        for b in range(2):
            a, o = (x[b].flatten(1).T for x in (s, t))
            for i in range(len(a)):
                cos = [float(a[i] @ o[j] / (a[i].norm() * o[j].norm())) for j in range(len(o))]
                p = math.exp(cos[i] / 0.5) / sum(math.exp(c / 0.5) for c in cos)
                terms.append(0.7 * (1 - cos[i]) - 0.3 * math.log(p) + max(0.0, 1 - p))
        total += sum(terms) / len(terms)
    assert float(uninet_loss(teacher, student, 0.5)) == pytest.approx(total, rel=1e-5)


def test_gradient_pulls_towards_its_own_position_and_away_from_others():
    teacher = [torch.tensor([[1.0, 0.0], [0.0, 1.0]]).T.view(1, 2, 1, 2).requires_grad_()]
    student = [torch.tensor([[1.0, 1.0], [0.0, 1.0]]).T.view(1, 2, 1, 2).requires_grad_()]
    uninet_loss(teacher, student, 0.1).backward()
    pull = -student[0].grad[0, :, 0]  # [channel, position]
    assert pull[0, 0] > 0.1 and pull[1, 0] < -0.1  # the first stands between both: towards (1, 0), away from (0, 1)
    assert pull[:, 1].abs().max() < 0.01  # the second is where it should be
    assert teacher[0].grad.abs().max() > 0.01  # the trained teacher is pulled too


def test_selection_weighs_positions_by_the_teacher():
    random = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(1, 2, 1, 3, generator=random) for _ in range(2))
    expected = torch.zeros(2, 3)
    for c in range(2):
        values = teacher[0, c, 0].tolist()
        total = sum(math.exp(v) for v in values)
        for i in range(3):
            expected[c, i] = student[0, c, 0, i] * math.exp(values[i]) / total * (1 + sum(values) / 3)
    torch.testing.assert_close(selected(student, teacher)[0, :, 0], expected)


def test_the_student_of_one_teacher_answers_to_the_other():
    detector = build("uninet@quick", TINY)
    for name in ("bottleneck", "student"):
        detector.trained[name] = torch.nn.Identity()
    x = detector.preprocess(pictures(2))
    with torch.no_grad():
        target = list(detector.target(x).values())
        teacher, student = detector._pairs([torch.zeros_like(m) for m in target], x)
    assert all(float(t.abs().max()) == 0 for t in teacher[:3])  # first the frozen teacher
    assert all(torch.equal(s, t) for s, t in zip(student[:3], target, strict=True))  # answered from the trained one's
    assert all(torch.equal(a, b) for a, b in zip(teacher[3:], target, strict=True))
    assert all(float(s.abs().max()) == 0 for s in student[3:])


@pytest.mark.parametrize("high", [0.02, 1.5])
def test_map_and_score_by_hand(high):
    from scipy.ndimage import gaussian_filter

    random = torch.Generator().manual_seed(3)
    distances = [torch.rand(1, 8, 8, generator=random) * high, torch.rand(1, 4, 4, generator=random) * 0.01,
                 torch.rand(1, 2, 2, generator=random) * high / 2]
    maps, scores = map_and_score(distances, (64, 64))
    full = sum(F.interpolate(d[:, None], (64, 64), mode="bilinear", align_corners=True) for d in distances)[0, 0]
    torch.testing.assert_close(maps[0], full)
    peaks = [float(d.max()) for d in distances]
    chance = np.exp(peaks) / np.exp(peaks).sum()
    dominant = [p for p, c in zip(peaks, chance, strict=True) if c > chance.mean()]
    k = max(1, int(64 * 64 * max(0.01 * np.mean(dominant), 3e-5)))
    assert (k > 20) == (high == 1.5)
    smooth = np.sort(gaussian_filter(full.numpy(), sigma=4).ravel())[::-1]
    assert float(scores) == pytest.approx(float(smooth[:k].mean()), rel=1e-5)


def test_settings_by_category_and_one_for_all():
    def settings(preset, category, dataset="mvtec_ad"):
        found = build(f"uninet@{preset}", TINY, extras={"dataset": dataset, "category": category})
        return found.temperature, found.selects, found.teacher_lr

    assert settings("quick", "carpet") == (2.0, True, 1e-6)
    assert settings("quick", "pill") == (0.1, True, 1e-6)
    assert settings("quick", "transistor") == (0.1, False, 1e-4)
    assert settings("quick", "transistor", "mine") == (2.0, True, 1e-6)
    assert settings("one_for_all", "transistor") == (2.0, True, 1e-6)


def test_one_teacher_is_trained_and_the_other_is_frozen():
    detector = build("uninet@quick", {**TINY, "teacher_lr": "0.001"})
    before = [[p.clone() for p in net.parameters()] for net in (detector.source, detector.target)]
    log = detector.fit(pictures(6), None)
    changed = [max(float((a - b).abs().max()) for a, b in zip(old, net.parameters(), strict=True))
               for old, net in zip(before, (detector.source, detector.target), strict=True)]
    assert changed[0] == 0 and changed[1] > 1e-3
    assert not detector.target.net.training and log["temperature"] == 2.0


def test_it_learns(monkeypatch):
    detector = build("uninet@quick", {**TINY, "epochs": "8", "temperature": "0.1"})
    seen = []

    def watched(teacher, student, temperature):
        with torch.no_grad():
            seen.append(float(torch.stack([F.cosine_similarity(t, s).mean() for t, s in
                                           zip(teacher, student, strict=True)]).mean()))
        return uninet_loss(teacher, student, temperature)

    monkeypatch.setattr(uninet, "uninet_loss", watched)
    log = detector.fit(pictures(6), None)
    assert log["loss"][-1] < 0.8 * log["loss"][0] and seen[-1] > seen[0] + 0.2
    result = detector.predict(pictures(4, 9, spot=True))
    assert result.anomaly_map[:, 20:40, 20:40].mean() > result.anomaly_map[:, 48:, 48:].mean()


def test_bad_settings_are_refused():
    with pytest.raises(ModelError, match="use a ResNet"):
        build("uninet@quick", {**TINY, "backbone": "vgg16.tv_in1k"})
    with pytest.raises(ModelError, match="multiple of 32"):
        build("uninet@quick", {"size": "72"})


@pytest.mark.slow
def test_fit_predict_seed_and_state():
    check_fit_predict_seed_and_state("uninet@quick", TINY)
