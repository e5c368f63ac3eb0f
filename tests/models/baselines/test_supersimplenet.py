"""SuperSimpleNet: features, noise, loss, map and score after the authors' code; both versions; bad settings."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from models import registry
from models.base import ModelError
from models.baselines.supersimplenet import anomalies, loss
from models.weights import WeightsError
from tests.models.baselines.common import SHORT, build, check_fit_predict_seed_and_state, pictures

TINY = {"size": "128"}


@pytest.mark.slow
def test_fit_predict_seed_and_state():
    check_fit_predict_seed_and_state("supersimplenet@quick", {**SHORT, "size": "128"})


def test_missing_weights_are_an_error(tmp_path):
    with pytest.raises(WeightsError, match=r"resnet18\.tv_in1k"):
        build("supersimplenet@quick", TINY, weights=str(tmp_path))


def test_small_pictures_are_refused():
    with pytest.raises(ModelError, match="at least 128"):
        build("supersimplenet@quick", {"size": "64"})


def by_hand(maps, scores, mask):
    """The authors' loss position by position, in plain numbers."""
    def focal(logit, target):
        p = 1 / (1 + math.exp(-logit))
        true = p if target else 1 - p
        return -math.log(true) * (1 - true) ** 4

    pairs = [(float(m), int(t)) for m, t in zip(maps.flatten(), mask.flatten(), strict=True)]
    normal, anomalous = ([m for m, t in pairs if t == k] for k in (0, 1))
    total = sum(max(0.0, m + 0.5) for m in normal) / len(normal)
    if anomalous:
        total += sum(max(0.0, 0.5 - m) for m in anomalous) / len(anomalous)
    total += sum(focal(*pair) for pair in pairs) / len(pairs)
    labels = [int(m.any()) for m in mask]
    return total + sum(focal(float(s), t) for s, t in zip(scores, labels, strict=True)) / len(labels)


@pytest.mark.parametrize("empty", [False, True])
def test_loss_is_the_authors(empty):
    maps = torch.tensor([[[[0.3, -0.7], [1.2, -0.1]]], [[[-2.0, 0.4], [0.0, 0.6]]]], requires_grad=True)
    scores = torch.tensor([0.4, -1.1], requires_grad=True)
    mask = torch.tensor([[[[0.0, 0.0], [1.0, 1.0]]], [[[0.0, 0.0], [0.0, 0.0]]]]) * (0 if empty else 1)
    found = loss(maps, scores, mask)
    assert float(found) == pytest.approx(by_hand(maps.detach(), scores.detach(), mask), rel=1e-5)
    found.backward()
    # down to -0.5 on normal positions, up to +0.5 on anomalous ones, and by the classification alike
    push = -maps.grad
    normal = mask == 0
    assert (push[normal & (maps > -0.5)] < 0).all() and (push[~normal & (maps < 0.5)] > 0).all()
    assert scores.grad[1] > 0 and (scores.grad[0] > 0) == empty


def test_features_are_enlarged_with_aligned_corners():
    detector = build("supersimplenet@quick", TINY)
    x = detector.preprocess(pictures(2))
    maps = detector.net(x)
    assert {name: m.shape[-1] for name, m in maps.items()} == {"layer2": 16, "layer3": 8}

    def enlarged(m, n):
        """Output i reads input i (size - 1) / (n - 1): the first and last values stay at the corners."""
        place = torch.arange(n) * (m.shape[-1] - 1) / (n - 1)
        low = place.floor().long().clamp_max(m.shape[-1] - 2)
        share = place - low
        for axis in (2, 3):
            part = share.view((-1, 1) if axis == 2 else (1, -1))
            m = m.index_select(axis, low) * (1 - part) + m.index_select(axis, low + 1) * part
        return m

    joined = torch.cat([enlarged(m, 32) for m in maps.values()], 1)
    padded = F.pad(joined, (1, 1, 1, 1))
    means = sum(padded[..., i : i + 32, j : j + 32] for i in range(3) for j in range(3)) / 9
    torch.testing.assert_close(detector._features(x), means, atol=1e-4, rtol=1e-4)


def test_half_of_the_masks_are_empty_and_the_others_are_patches():
    mask = anomalies((400, 64, 64), 0.2, torch.Generator().manual_seed(0), "cpu")
    assert mask.shape == (400, 1, 64, 64) and set(mask.unique().tolist()) == {0.0, 1.0}
    share = mask.mean((1, 2, 3))
    assert 0.42 < float((share == 0).float().mean()) < 0.62
    assert 0.1 < float(share[share > 0].mean()) < 0.45
    some = mask[share > 0]
    alike = (some[..., 1:] == some[..., :-1]).float().mean()
    assert alike > 0.8  # neighbours mostly agree: patches, not salt and pepper
    assert anomalies((3, 40, 24), 0.2, torch.Generator().manual_seed(0), "cpu").shape == (3, 1, 40, 24)


def test_map_and_score_come_from_the_heads():
    detector = build("supersimplenet@quick", TINY)
    image = pictures(1, 9, spot=True)
    raw = detector._features(detector.preprocess(image))
    adapted = detector.trained["adaptor"](raw)
    heads = detector.trained["heads"]
    cells = heads.seg_head(adapted)
    seen = heads.cls_conv(torch.cat([adapted, cells], 1))
    parts = [seen.amax((2, 3)), seen.mean((2, 3)), cells.amax((2, 3)), cells.mean((2, 3))]
    expected = heads.cls_fc(torch.cat(parts, 1))[:, 0]
    found = detector.predict(image)
    torch.testing.assert_close(found.score, expected)
    # 2 * ceil(3 * 4) + 1 = 25 taps, mirrored at the border
    from torchvision.transforms import GaussianBlur

    full = F.interpolate(cells, (128, 128), mode="bilinear")
    torch.testing.assert_close(found.anomaly_map, GaussianBlur(25, 4.0)(full)[:, 0], atol=1e-5, rtol=1e-4)


def test_conference_and_journal_differ_in_what_the_classification_head_sees():
    assert registry.config("supersimplenet").adapt_scores and not registry.config("supersimplenet@journal").adapt_scores
    both = [build("supersimplenet@quick", {**TINY, "adapt_scores": value}) for value in ("true", "false")]
    image = pictures(1, 9)
    one, other = (detector.predict(image) for detector in both)
    assert torch.equal(one.anomaly_map, other.anomaly_map) and not torch.equal(one.score, other.score)


def test_parameters():
    """Wide-ResNet-50: 1536 channels; counted from the authors' layers."""
    detector = build("supersimplenet@wrn50")
    c = 512 + 1024
    segment = c * 1024 + 1024 + 2 * 1024 + 1024
    classify = (c + 1) * 128 * 25 + 128 + 2 * 128 + (2 * 128 + 2) + 1
    sizes = {name: sum(p.numel() for p in net.parameters()) for name, net in detector.trained.items()}
    assert sizes == {"adaptor": c * c + c, "heads": segment + classify}


def test_noise_is_only_where_the_mask_is_and_training_learns_it(monkeypatch):
    """Strong noise at the whole picture's half: after a few epochs the map is higher under noise than elsewhere."""
    detector = build("supersimplenet@quick", {**TINY, "epochs": "4", "noise": "0.5", "lr": "0.002"})
    seen = []

    def watched(maps, scores, mask):
        value = loss(maps, scores, mask)
        seen.append((float(value.detach()), float(maps[mask > 0].mean() - maps[mask == 0].mean())))
        return value

    monkeypatch.setattr("models.baselines.supersimplenet.loss", watched)
    detector.fit(pictures(8), None)
    assert seen[-1][0] < 0.8 * seen[0][0] and seen[-1][1] > 0.3
