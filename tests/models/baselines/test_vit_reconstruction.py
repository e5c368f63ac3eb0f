"""Dinomaly and INP-Former held against the formulas of their authors' code."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from models.base import ModelError
from models.baselines import dinomaly, inp_former, vit_reconstruction
from models.baselines.vit_reconstruction import cosine_loss, rate, smoothed
from tests.models.baselines.common import build, equal, pictures

SPECS = ("dinomaly@demo", "inp_former@demo")
SMALL = {"size": "64", "crop": "56", "train_batch": "2"}


def count(module):
    return sum(p.numel() for p in module.parameters())


def test_sizes_are_the_authors():
    c = 768
    linear = lambda i, o: i * o + o  # noqa: E731
    mlp, norms = linear(c, 4 * c) + linear(4 * c, c), 4 * c
    block = norms + linear(c, 3 * c) + linear(c, c) + mlp
    assert count(dinomaly.Decoder(c, 12, 8, 0.2)) == mlp + 8 * block == 61_425_408
    cross = norms + linear(c, c) + linear(c, 2 * c) + linear(c, c) + mlp
    found = inp_former.Decoder(c, 12, inp_former.InpFormerConfig())
    assert count(found) == mlp + 9 * cross + 8 * 12 + 6 * c


def test_linear_attention_is_the_quadratic_one_with_elu_plus_one():
    attention = dinomaly.LinearAttention(64, 2)
    x = torch.randn(3, 10, 64)
    q, k, v = (t.view(3, 10, 2, 32).transpose(1, 2) for t in attention.qkv(x).split(64, -1))
    weight = (F.elu(q) + 1) @ (F.elu(k) + 1).transpose(-2, -1)
    weight = weight / weight.sum(-1, keepdim=True)
    expected = attention.out((weight @ v).transpose(1, 2).reshape(3, 10, 64))
    torch.testing.assert_close(attention(x), expected)


def test_nothing_passes_the_prototypes_by():
    """Without a shortcut around the attention, patches that see the same nothing become the same; else they differ."""
    block, extractor = (inp_former.CrossBlock(64, 1, decoder=decoder) for decoder in (True, False))
    x, prototypes = torch.randn(2, 9, 64), torch.randn(2, 6, 64)
    for one in (block, extractor):
        torch.nn.init.zeros_(one.attention.kv.weight)
        torch.nn.init.zeros_(one.attention.kv.bias)
    assert block(x, prototypes).std(1).max() < 1e-5
    assert extractor(x, prototypes).std(1).min() > 0.1


def test_cosine_attention_by_hand():
    attention = inp_former.CrossAttention(8, 1, cosine=True)
    x, asked = torch.randn(1, 3, 8), torch.randn(1, 2, 8)
    torch.nn.init.constant_(attention.scale, 1.7)
    k, v = attention.kv(asked)[0].split(8, -1)
    q = attention.q(x)[0]
    rows = []
    for i in range(3):
        weights = [max(0.0, 1.7 * float(q[i] @ k[j] / (q[i].norm() * k[j].norm()))) for j in range(2)]
        rows.append(weights[0] * v[0] + weights[1] * v[1])
    torch.testing.assert_close(attention(x, asked)[0], attention.out(torch.stack(rows)))


def test_the_prototypes_loss_is_the_distance_to_the_nearest():
    decoder = inp_former.Decoder(64, 1, inp_former.InpFormerConfig(gather=0.2))
    x = torch.randn(2, 5, 64)
    prototypes = decoder.extractor(decoder.prototypes.expand(2, -1, -1), x)
    nearest = [min(1 - float(F.cosine_similarity(x[b, n], prototypes[b, p], dim=0)) for p in range(6))
               for b in range(2) for n in range(5)]
    outputs, further = decoder(x)
    assert further.item() == pytest.approx(0.2 * float(np.mean(nearest)), abs=1e-5)
    further.backward()
    assert decoder.prototypes.grad.abs().sum() > 0 and len(outputs) == 8


def test_loss_is_of_whole_pictures_and_gradients_are_weighted_by_point():
    torch.manual_seed(0)
    target, made = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 5, requires_grad=True)
    factors = torch.rand(3, 4)
    loss = cosine_loss(target, made, lambda distance: factors)
    by_hand = np.mean([
        1 - float(target[g, b].flatten() @ made[g, b].flatten() / target[g, b].norm() / made[g, b].norm())
        for g in range(2) for b in range(3)
    ])
    assert loss.item() == pytest.approx(by_hand, abs=1e-6)
    (weighted,) = torch.autograd.grad(loss, made)
    (plain,) = torch.autograd.grad(cosine_loss(target, made, torch.ones_like), made)
    torch.testing.assert_close(weighted, plain * factors[None, ..., None])


def test_dinomaly_cuts_the_gradient_of_the_easiest_points():
    detector = build("dinomaly@demo", SMALL)
    distance = torch.arange(100.0).view(4, 25)
    assert (detector._weights(distance, 0) == 1).all()
    half = detector._weights(distance, 500)
    assert (half.flatten() == torch.where(torch.arange(100) < 45, 0.1, 1.0)).all()
    last = detector._weights(distance, 5000)
    # int(100 * (1 - 0.9)) is 9 in floating point, as in the authors' code
    assert (last.flatten() == torch.where(torch.arange(100) < 91, 0.1, 1.0)).all()


def test_inp_former_weighs_by_the_third_power():
    detector = build("inp_former@demo", SMALL)
    distance = torch.tensor([[1.0, 2.0, 3.0]])
    torch.testing.assert_close(detector._weights(distance, 0), torch.tensor([[0.125, 1.0, 3.375]]))


def test_learning_rate_warms_up_once_and_falls_by_a_cosine():
    values = [rate(s, 5000, 100, 2e-3, 2e-4) for s in range(5001)]
    assert values[0] == 0 and values[99] == pytest.approx(2e-3) and values[100] == pytest.approx(2e-3)
    assert values[100 + 2450] == pytest.approx(1.1e-3) and values[4999] == pytest.approx(2e-4, rel=1e-2)
    assert values[5000] == 0
    expected = 2e-4 + 0.9e-3 * (1 + math.cos(math.pi * 900 / 4900))
    assert values[1000] == pytest.approx(expected)


def test_the_smoothing_is_nearly_a_box_with_zeros_around():
    maps = torch.zeros(1, 1, 9, 9)
    maps[0, 0, 4, 4] = 1
    found = smoothed(maps)[0, 0]
    weight = torch.tensor([[math.exp(-((i - 2) ** 2 + (j - 2) ** 2) / 32) for j in range(5)] for i in range(5)])
    torch.testing.assert_close(found[2:7, 2:7], weight / weight.sum())
    assert smoothed(torch.ones(1, 1, 9, 9))[0, 0, 0, 0] < 0.5


@pytest.mark.parametrize("spec", SPECS)
def test_map_and_score_by_hand(spec):
    detector = build(spec, SMALL)
    batch = pictures(2, spot=True)
    x = detector._seen(batch)
    torch.manual_seed(1)
    with torch.no_grad():
        for p in (*detector.encoder.parameters(), *detector.trained["decoder"].parameters()):
            p.add_(torch.randn(p.shape) * 0.1)  # as they start, all blocks give nearly the same
        tokens = detector.encoder(x)
        prefix = detector.encoder.prefix
        groups = [torch.stack(tokens[:4]).mean(0), torch.stack(tokens[4:]).mean(0)]
        whole = torch.stack(tokens).mean(0)
        outputs, _ = detector.trained["decoder"](whole if detector.keep_prefix else whole[:, prefix:])
        made = [torch.stack(outputs[4:]).mean(0), torch.stack(outputs[:4]).mean(0)]  # last outputs, first blocks
        made = [m[:, prefix:] if detector.keep_prefix else m for m in made]
        grids = [1 - F.cosine_similarity(g[:, prefix:], m, dim=2) for g, m in zip(groups, made, strict=True)]
        maps = sum(F.interpolate(g.view(2, 1, 4, 4), (56, 56), mode="bilinear", align_corners=True) for g in grids) / 2
        maps = smoothed(F.interpolate(maps, (256, 256), mode="bilinear"))
    result = detector.predict(batch)
    torch.testing.assert_close(result.anomaly_map, maps[:, 0], atol=1e-5, rtol=1e-4)
    top = maps.flatten(1).sort(descending=True)[0][:, :655].mean(1)
    torch.testing.assert_close(result.score, top, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("spec", SPECS)
def test_feature_maps_are_what_the_decoder_made(spec):
    detector = build(spec, SMALL)
    batch = pictures(3)
    first, second = detector.feature_maps(batch)
    assert first.shape == second.shape == (3, 384, 4, 4) and not torch.equal(first, second)
    with torch.no_grad():
        groups = detector._patches(detector._groups(detector._seen(batch)))
    distance = 1 - F.cosine_similarity(groups[0].transpose(1, 2).reshape(3, 384, 4, 4), first)
    grid = (distance + 1 - F.cosine_similarity(groups[1].transpose(1, 2).reshape(3, 384, 4, 4), second)) / 2
    shown = F.interpolate(grid[:, None], (56, 56), mode="bilinear", align_corners=True)
    shown = smoothed(F.interpolate(shown, (256, 256), mode="bilinear"))[:, 0]
    torch.testing.assert_close(detector.predict(batch).anomaly_map, shown, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("spec", SPECS)
def test_training_acts_and_does_not_hang_on_what_is_kept(spec, monkeypatch, tmp_path):
    length = {"steps": "60"} if spec.startswith("dinomaly") else {"epochs": "20"}
    train = pictures(7)
    detector = build(spec, SMALL | length | {"warmup": "5"})
    log = detector.fit(train, None)
    assert log["epochs"] == 20 and log["loss"][-1] < 0.8 * log["loss"][0]
    assert all(p.grad is None for p in detector.encoder.parameters())
    monkeypatch.setattr(vit_reconstruction, "room", lambda device: 0)
    other = build(spec, SMALL | length | {"warmup": "5"})
    again = other.fit(train, None)
    assert again["loss"] == pytest.approx(log["loss"], rel=1e-3)
    fresh = build(spec, SMALL, seed=9)
    fresh.load_state_dict(detector.state_dict())
    assert equal(fresh.predict(train), detector.predict(train))


def test_steps_beyond_the_last_change_nothing(monkeypatch):
    """Seven pictures in batches of two are three steps an epoch: of the fourth epoch only one of ten steps is left."""
    detector = build("dinomaly@demo", SMALL | {"steps": "10", "warmup": "2"})
    seen = []
    detector.fit(pictures(7), None, lambda *_, **__: seen.append(
        {k: v.clone() for k, v in detector.trained["decoder"].state_dict().items()}))
    assert len(seen) == 12
    assert all(torch.equal(seen[9][k], seen[11][k]) for k in seen[9])
    assert not all(torch.equal(seen[8][k], seen[9][k]) for k in seen[9])


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("settings", [{"crop": "50"}, {"crop": "140", "size": "128"}, {"blocks": "1,2,3"}])
def test_crops_and_blocks_that_do_not_fit_are_said(spec, settings):
    with pytest.raises(ModelError, match=r"whole patches \(14 pixels\)"):
        build(spec, SMALL | settings)
