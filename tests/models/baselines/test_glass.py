"""GLASS: loss with its ascent, masks, textures, map and score after the authors' code."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from models.base import ModelError
from models.baselines import glass
from models.baselines.glass import glass_loss, hypersphere, local_masks, pushed
from models.nn.textures import Textures
from tests.models.baselines.common import build, check_fit_predict_seed_and_state, pictures

TINY = {"size": "64", "epochs": "2", "train_batch": "3", "dimension": "48", "hidden": "16"}


def count(module):
    return sum(p.numel() for p in module.parameters())


def test_networks_and_grid_have_the_authors_sizes():
    detector = build("glass@wrn50")
    assert count(detector.trained["projection"]) == 1536 * 1536 + 1536
    assert count(detector.trained["discriminator"]) == 1536 * 1024 + 1024 + 2 * 1024 + 1024
    assert [tuple(m.shape) for m in detector.feature_maps(pictures(1))] == [(1, 1536, 36, 36)]


class Slope(torch.nn.Module):
    """A discriminator whose logit falls along one direction: its ascent is known beforehand."""

    direction = torch.tensor([0.6, 0.8])

    def forward(self, x):
        return x @ self.direction[:, None] * 2 - 1


def after_ascent(true, noise, centre, radius):
    """Rows after 20 steps down the direction in which the logit rises, with the shell every fifth, by hand."""
    rows = []
    for x, n, c in zip(true.tolist(), noise.tolist(), centre.tolist(), strict=True):
        moved = [x[k] + n[k] for k in range(2)]
        for i in range(1, 21):
            moved = [moved[k] - 0.001 * float(Slope.direction[k]) for k in range(2)]
            if i % 5 == 0:
                away = [moved[k] - c[k] for k in range(2)]
                length = math.hypot(*away)
                kept = min(max(length, radius), 2 * radius)
                moved = [c[k] + away[k] * kept / length for k in range(2)]
        rows.append(moved)
    return rows


def cross_entropy(logit, target):
    p = 1 / (1 + math.exp(-logit))
    return -math.log(p if target else 1 - p)


def logit(row):
    return 2 * (0.6 * row[0] + 0.8 * row[1]) - 1


@pytest.mark.parametrize("centred", [False, True])
def test_loss_is_the_authors(centred):
    true = torch.tensor([[0.1, 0.2], [-0.3, 0.5], [0.4, -0.2], [0.0, 0.1]], requires_grad=True)
    fake = torch.tensor([[0.9, 1.2], [-0.3, 0.4], [0.5, -0.2], [-1.0, -0.8]], requires_grad=True)
    defect = torch.tensor([1.0, 0.0, 0.0, 1.0])
    noise = torch.tensor([[0.01, 0.02], [-0.02, 0.0], [0.3, 0.6], [0.0, -0.01]])
    centre = torch.tensor([[0.2, 0.1], [0.2, 0.1], [-0.1, 0.3], [-0.1, 0.3]])
    found = glass_loss(Slope(), true, fake, defect, noise, centre if centred else None)

    rows, seen, radius, origin = true.tolist(), fake.tolist(), 0.5, true.detach()
    if centred:
        origin = centre
        distances = [math.dist(x, c) for x, c in zip(rows, centre.tolist(), strict=True)]
        distances += [math.dist(seen[i], centre[i].tolist()) for i in range(4) if not defect[i]]
        radius = float(np.quantile(distances, 0.75))
        for i in (0, 3):
            c = centre[i].tolist()
            length = math.dist(seen[i], c)
            kept = min(max(length, 2 * radius), 4 * radius) / length
            seen[i] = [c[k] + (seen[i][k] - c[k]) * kept for k in range(2)]
    moved = after_ascent(true.detach(), noise, origin, radius)
    normal = sum(cross_entropy(logit(row), 0) for row in rows) / 4
    anomalous = sum(cross_entropy(logit(row), 1) for row in moved) / 4
    chance = [1 / (1 + math.exp(-logit(row))) for row in seen]
    errors = [(p - float(d)) ** 2 for p, d in zip(chance, defect, strict=True)]
    hard = sorted(range(4), key=lambda i: -errors[i])[:2]
    local = 0.0
    for i in hard:
        p = chance[i] if defect[i] else 1 - chance[i]
        p = p * (1 - 2e-5) + 2e-5
        local += -((1 - p) ** 2) * math.log(p) / 2
    for name, value in (("normal", normal), ("global", anomalous), ("local", local)):
        assert float(found[name].detach()) == pytest.approx(value, rel=1e-4), name
    assert float(found["loss"].detach()) == pytest.approx(normal + anomalous + local, rel=1e-4)

    (slope,) = torch.autograd.grad(found["local"], fake, retain_graph=True)
    along = -slope @ Slope.direction
    for i in range(4):  # descent pushes defects up and normal positions down, and only the hard half of them
        assert (float(along[i]) == 0) == (i not in hard)
        assert i not in hard or (along[i] > 0) == (defect[i] > 0)
    (slope,) = torch.autograd.grad(found["normal"], true, retain_graph=True)
    assert (-slope @ Slope.direction < 0).all()
    assert torch.autograd.grad(found["global"], true)[0].abs().max() > 0  # through the shell, into the projection


def test_points_are_pushed_into_the_shell_and_not_turned():
    origin = torch.tensor([[1.0, 1.0]]).expand(3, 2)
    away = torch.tensor([[0.03, 0.04], [0.36, 0.48], [3.0, 4.0]])
    found = pushed(origin + away, origin, 0.5, 1.0) - origin
    torch.testing.assert_close(found, torch.tensor([[0.3, 0.4], [0.36, 0.48], [0.6, 0.8]]))


def test_masks_are_one_both_or_either_and_never_empty(monkeypatch):
    drawn = iter([torch.tensor([[1.0, 1, 0, 0]]), torch.tensor([[0.0, 1, 1, 0]])] * 300)
    monkeypatch.setattr(glass, "blobs", lambda shape, random: next(drawn).view(1, 1, 1, 4))
    random, kinds = torch.Generator().manual_seed(0), {}
    for _ in range(300):
        kind = tuple(local_masks((1, 1, 4), random).flatten().tolist())
        kinds[kind] = kinds.get(kind, 0) + 1
    assert set(kinds) == {(1, 1, 0, 0), (0, 1, 0, 0), (1, 1, 1, 0)} and min(kinds.values()) > 70
    monkeypatch.undo()
    masks = local_masks((40, 48, 64), torch.Generator().manual_seed(1))
    assert masks.shape == (40, 1, 48, 64) and set(masks.unique().tolist()) == {0.0, 1.0}
    assert masks.flatten(1).any(1).all()


def test_textures_let_20_to_80_percent_of_the_picture_through(monkeypatch):
    detector = build("glass@quick", TINY)
    monkeypatch.setattr(glass, "augment", lambda textures, random, among: torch.ones_like(textures))
    random, clean = torch.Generator().manual_seed(0), detector.preprocess(pictures(1)).expand(100, -1, -1, -1)
    broken, mask = detector._pasted(clean, detector._drawn(100, Textures("embedded", (64, 64)), random))
    inside = mask.expand_as(clean) > 0
    assert torch.equal(broken[~inside], clean[~inside])
    white = detector.preprocess.normalised(torch.ones(1, 3, 64, 64))
    visible = torch.stack([((broken - white) / (clean - white))[i][inside[i]].mean() for i in range(100)])
    assert float(visible.min()) > 0.199 and float(visible.max()) < 0.801
    assert float(visible.mean()) == pytest.approx(0.5, abs=0.03)
    assert float(visible.std()) == pytest.approx(0.1, abs=0.02)


def test_operations_keep_pictures_in_range_and_change_them():
    x, u = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0)), torch.full((1, 4), 0.9)
    assert len(glass.OPERATIONS) == 9
    for operation in glass.OPERATIONS:
        found = operation(x, u)
        assert found.shape == x.shape and found.min() >= 0 and found.max() <= 1
        assert (found - x).abs().max() > 0.01 or operation is glass.OPERATIONS[6]  # noise has full contrast


def test_centre_is_the_mean_projected_feature_of_each_position(monkeypatch):
    detector = build("glass@quick", {**TINY, "epochs": "1", "lr": "0"})
    train, seen = pictures(6), []

    def watched(discriminator, true, fake, defect, noise, centre):
        seen.append((centre, defect))
        return glass_loss(discriminator, true, fake, defect, noise, centre)

    monkeypatch.setattr(glass, "glass_loss", watched)
    monkeypatch.setattr(glass, "hypersphere", lambda mean: True)
    log = detector.fit(train, None)
    expected = detector.feature_maps(train)[0].mean(0).permute(1, 2, 0).flatten(0, 1).repeat(3, 1)
    assert len(seen) == 2 and log["hypersphere"] is True
    for centre, defect in seen:
        torch.testing.assert_close(centre, expected, atol=1e-4, rtol=1e-3)
        assert defect.shape == (3 * 8 * 8,) and 0 < defect.sum() < len(defect)


def test_map_and_score_come_from_the_discriminator():
    from scipy.ndimage import gaussian_filter

    detector = build("glass@quick", TINY)
    batch = pictures(2, 9, spot=True)
    features = detector.feature_maps(batch)[0]
    with torch.no_grad():
        logits = torch.stack([detector.trained["discriminator"](f.flatten(1).T).view(8, 8) for f in features])
    result = detector.predict(batch)
    torch.testing.assert_close(result.score, logits.flatten(1).max(1).values, atol=1e-5, rtol=1e-4)
    full = F.interpolate(logits.sigmoid()[:, None], (64, 64), mode="bilinear")[:, 0].numpy()
    np.testing.assert_allclose(result.anomaly_map.numpy(), np.stack([gaussian_filter(m, 4) for m in full]), atol=1e-5)


def test_one_centred_object_is_a_hypersphere_and_a_texture_is_not():
    y, x = np.mgrid[:288, :288] - 143.5
    disk = torch.from_numpy((np.hypot(y, x) < 90).astype(np.float32)).expand(3, -1, -1)
    assert hypersphere(4 * disk - 2)
    noise = torch.rand(3, 288, 288, generator=torch.Generator().manual_seed(0))
    assert not hypersphere(noise)
    assert not hypersphere(torch.zeros(3, 288, 288))


def test_settings_by_category():
    where = {"dataset": "mvtec_ad"}
    assert build("glass@quick", extras={**where, "category": "wood"}).preprocess.size == (110, 110)
    assert build("glass@wrn50", extras={**where, "category": "wood"}).preprocess.size == (329, 329)
    assert build("glass@wrn50", extras={**where, "category": "wood"}).preprocess.output == (288, 288)
    assert build("glass@quick", extras={**where, "category": "pill"}).preprocess.size == (96, 96)
    log = build("glass@quick", TINY, extras={**where, "category": "pill"}).fit(pictures(3), None)
    assert log["hypersphere"] is True
    log = build("glass@quick", TINY, extras={**where, "category": "zipper"}).fit(pictures(3), None)
    assert log["hypersphere"] is False


def test_an_epoch_ends_after_the_batch_that_passes_the_limit():
    seen = []
    detector = build("glass@quick", {**TINY, "limit": "3"})
    detector.fit(pictures(10), None, lambda done, total, **values: seen.append((done, total)))
    assert seen[-1] == (4, 4)  # two epochs of 3 + 3 of the 10 pictures


def test_it_learns_to_tell_pasted_textures():
    detector = build("glass@quick", {**TINY, "epochs": "12", "lr": "0.002"})
    test = pictures(4, 9, spot=True)

    def contrast():
        maps = detector.predict(test).anomaly_map
        return float(maps[:, 24:36, 24:36].mean() - maps[:, 48:, 48:].mean())

    before, log = contrast(), detector.fit(pictures(9), None)
    assert log["local"][-1] < 0.7 * log["local"][0] and log["loss"][-1] < 0.8 * log["loss"][0]
    assert before < 0.0 and contrast() > 0.03
    assert detector.predict(test).score.min() > detector.predict(pictures(4, 3)).score.max()


def test_natural_pictures_are_asked_for():
    with pytest.raises(ModelError, match="no natural pictures"):
        build("glass@wrn50", {"size": "32", "dimension": "48"}).fit(pictures(2), None)


@pytest.mark.slow
def test_fit_predict_seed_and_state():
    check_fit_predict_seed_and_state("glass@quick", TINY)
