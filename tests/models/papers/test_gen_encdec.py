"""gen_encdec: layer shapes, noise rates, early stopping on the split, the map's formula, repeatability."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models import registry
from models.base import Context, ModelError
from models.nn.gms import mean_filter, msgms
from models.nn.ssim import ssim
from models.papers.gen_encdec import NOISE_RATES, EncoderDecoder, GenEncDec, GenEncDecConfig, rate_of
from models.weights import WeightStore

TINY = GenEncDecConfig(
    size=32, width=32, heads=2, reductions=(4, 2), scales=2, filter=5, train_batch=4, epochs=3, stop_from=1,
    patience=50, lr=1e-3, shortened=True,
)
PAPER = GenEncDecConfig()


def pictures(count: int, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    sizes = [(40, 50), (48, 36)]
    found = []
    for i in range(count):
        height, width = sizes[i % 2]
        base = np.linspace(40, 200, width)[None, :, None]
        found.append((base + rng.normal(0, 6, (height, width, 3))).clip(0, 255).astype(np.uint8))
    return found


def build(config: GenEncDecConfig = TINY, scratch: Path | None = None, category: str | None = "bottle") -> GenEncDec:
    torch.manual_seed(2)
    extras = {} if category is None else {"category": category}
    return GenEncDec(config, Context(torch.device("cpu"), 2, WeightStore("none"), scratch, extras=extras))


def network(config: GenEncDecConfig) -> EncoderDecoder:
    torch.manual_seed(0)
    return EncoderDecoder(config, WeightStore("none")).eval()


def conv_shapes(net: nn.Module, x: Tensor) -> list[tuple[int, ...]]:
    found: list[tuple[int, ...]] = []
    handles = [
        m.register_forward_hook(lambda module, inputs, output: found.append(tuple(output.shape[1:])))
        for m in net.modules() if isinstance(m, nn.Conv2d)
    ]
    with torch.no_grad():
        net(x)
    for handle in handles:
        handle.remove()
    return found


def test_layer_shapes_at_the_papers_size() -> None:
    net = network(PAPER)
    x = torch.rand(1, 3, 224, 224)
    with torch.no_grad():
        e1, e2, e3 = net.encode(x)
        assert [tuple(e.shape[1:]) for e in (e1, e2, e3)] == [(64, 112, 112), (128, 56, 56), (256, 28, 28)]
        assert net.bottleneck(e3).shape == (1, 256, 28, 28)
        assert net.skips[0](e1).shape == e1.shape
        assert net.skips[1](e2).shape == e2.shape
        assert [tuple(s.reduce(e).shape[1:]) for s, e in zip(net.skips, (e1, e2), strict=True)] == [
            (64, 14, 14), (128, 14, 14)
        ]
    assert net.position.shape == (1, 784, 512)
    assert conv_shapes(net, x)[-6:] == [
        (128, 56, 56), (256, 28, 28), (128, 56, 56), (64, 112, 112), (32, 224, 224), (3, 224, 224)
    ]
    (block,) = net.blocks
    assert [m.p for m in net.modules() if isinstance(m, nn.Dropout)] == [0.25] * 3
    assert block.self_attn.dropout == 0.25 and block.self_attn.num_heads == 4 and block.norm_first
    assert [skip.attention.num_heads for skip in net.skips] == [1, 2]
    assert all(p.requires_grad for p in net.parameters())
    assert sum(p.numel() for p in net.parameters()) == 9_741_123


@pytest.mark.parametrize(
    "changes",
    [
        {"depth": 2}, {"mlp_ratio": 2}, {"pyramid": False}, {"skip_attention": False}, {"skip_residual": False},
        {"imagenet_norm": False},
    ],
)
def test_each_open_point_has_its_alternative(changes: dict[str, object]) -> None:
    x = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    plain, other = network(TINY), network(replace(TINY, **changes))
    with torch.no_grad():
        y = other(x)
        assert y.shape == x.shape
        assert float(y.min()) >= 0 and float(y.max()) <= 1
        assert not torch.equal(y, plain(x))


def test_every_part_of_the_network_learns() -> None:
    """A gradient in each, and dropout that acts in training only."""
    net = network(TINY)
    x = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    (net(x) - x).square().mean().backward()
    still = [name for name, p in net.named_parameters() if not float(p.grad.abs().max())]
    assert still == []
    assert torch.equal(net(x), net(x))
    net.train()
    assert not torch.equal(net(x), net(x))


def attend(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """softmax(q k^T / sqrt(d)) v for each head, written out: [B, n, C], keys and values [B, m, C]."""
    q, k, v = (x.unflatten(2, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    return ((q @ k.mT / q.shape[-1] ** 0.5).softmax(-1) @ v).transpose(1, 2).flatten(2)


def test_torchs_attention_is_the_papers() -> None:
    """Trained (without dropout) and at test alike: the block, and eq. 2 on the skips."""
    net = network(replace(TINY, dropout=0.0))
    (block,), skip = net.blocks, net.skips[1]
    x, maps = torch.randn(2, 16, 32), torch.randn(2, 128, 8, 8)
    with torch.no_grad():
        own = block.self_attn
        q, k, v = F.linear(block.norm1(x), own.in_proj_weight, own.in_proj_bias).chunk(3, 2)
        middle = x + own.out_proj(attend(q, k, v, TINY.heads))
        expected = middle + block.linear2(F.gelu(block.linear1(block.norm2(middle))))
        torch.testing.assert_close(block(x), expected, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(block.train()(x), expected, atol=1e-5, rtol=1e-5)

        small = skip.norm(skip.reduce(maps).flatten(2).mT)
        assert small.shape == (2, 16, 128)
        own, tokens = skip.attention, maps.flatten(2).mT
        weights, biases = own.in_proj_weight.chunk(3), own.in_proj_bias.chunk(3)
        q, k, v = (F.linear(z, w, b) for z, w, b in zip((tokens, small, small), weights, biases, strict=True))
        found = own.out_proj(attend(q, k, v, 2)).mT.unflatten(2, (8, 8))
        torch.testing.assert_close(skip(maps), F.relu(skip.conv(maps + found)), atol=1e-5, rtol=1e-5)


class Through(nn.Module):
    """A network that gives back what it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.nothing = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        return x + 0 * self.nothing


def test_what_is_to_be_restored_is_the_clean_picture() -> None:
    """With a network that passes noise on, the loss is the noise's; held against the noisy picture it would be 0."""
    detector = build(replace(TINY, noise_rate=0.2, noise_spread="fixed"))
    detector.net = detector.trained["net"] = Through()
    log = detector.fit(pictures(20), None)
    np.testing.assert_allclose(log["l2"], 0.04, rtol=0.05)
    assert max(log["ssim"]) < 0.9 and min(log["validation_loss"]) > 0.1
    assert log["error"] == pytest.approx(0, abs=1e-6)  # without noise at test it gives back the picture


@pytest.mark.slow
def test_training_takes_noise_away() -> None:
    """The trained network is much nearer to the clean picture than what it saw."""
    detector = build(replace(TINY, noise_rate=0.3, noise_spread="fixed", epochs=60, lr=2e-3, dropout=0.0))
    detector.fit(pictures(15), None)
    x = detector.preprocess(pictures(4, seed=5))
    noisy = x + 0.3 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert float(F.mse_loss(detector.net(noisy), x)) < 0.15 * float(F.mse_loss(noisy, x))


def test_noise_at_test_reads_the_network_that_was_trained_once() -> None:
    """Eight draws of it are nearer to what infinitely many would give than one is."""
    members: dict[Any, Any] = {}

    def fitted(**more: Any) -> tuple[GenEncDec, dict[str, Any]]:
        torch.manual_seed(2)
        context = Context(
            torch.device("cpu"), 2, WeightStore("none"), extras={"category": "bottle", "members": members}
        )
        detector = GenEncDec(replace(TINY, epochs=1, noise_rate=0.3, **more), context)
        return detector, detector.fit(pictures(12), None)

    off, log = fitted()
    one, again = fitted(test_noise=1.0)
    eight, _ = fitted(test_noise=1.0, test_draws=8)
    many, _ = fitted(test_noise=1.0, test_draws=64)
    assert "shared" not in log and again["loss"] == log["loss"] and "shared" in again and len(members) == 1
    assert all(torch.equal(a, b) for a, b in zip(off.net.parameters(), eight.net.parameters(), strict=True))
    test = pictures(2, seed=5)
    limit = many.predict(test).anomaly_map
    far = [float((d.predict(test).anomaly_map - limit).abs().mean()) for d in (off, one, eight)]
    assert far[2] < far[1] < far[0]
    assert "shared" not in fitted(dropout=0.0)[1]


def test_frozen_vgg() -> None:
    detector = build(replace(TINY, train_vgg=False, epochs=1))
    before = [p.clone() for p in detector.net.vgg.parameters()]
    detector.fit(pictures(10), None)
    assert all(torch.equal(a, b) for a, b in zip(before, detector.net.vgg.parameters(), strict=True))


def test_noise_rates() -> None:
    assert len(NOISE_RATES) == 17  # 15 categories, the button under both its names
    assert rate_of(PAPER, "carpet") == (0.4, "paper")
    assert rate_of(PAPER, "juice_bottle") == rate_of(PAPER, None) == (0.2, "default")
    assert rate_of(replace(PAPER, noise_rate=0.05), "carpet") == (0.05, "setting")
    none = build(replace(TINY, noise_rate=0.0))
    x = torch.rand(2, 3, 32, 32)
    assert none._noisy(x, torch.Generator()) is x
    noisy = build()._noisy(x, torch.Generator().manual_seed(0))
    assert float(noisy.min()) < 0 or float(noisy.max()) > 1  # not clipped by default
    clipped = build(replace(TINY, clip_noise=True, noise_rate=0.5))._noisy(x, torch.Generator().manual_seed(0))
    assert float(clipped.min()) >= 0 and float(clipped.max()) <= 1


def test_learns_repeats_itself_and_says_where_the_rate_is_from() -> None:
    train = pictures(12)
    config = replace(TINY, epochs=6)
    first, second = build(config), build(config)
    log = first.fit(train, None)
    assert log == second.fit(train, None)
    assert log["loss"][-1] < log["loss"][0]
    assert len(log["validation_loss"]) == log["epochs"] == 6
    assert log["best_epoch"] == 1 + int(np.argmin(log["validation_loss"]))
    np.testing.assert_allclose(log["loss"], np.array(log["l2"]) + 1 - np.array(log["ssim"]), rtol=1e-5)
    assert (log["noise_rate"], log["noise_rate_from"], log["rate_tuned"]) == (0.1, "paper", True)
    assert build(TINY, category=None).fit(train, None)["rate_tuned"] is False
    a, b = first.predict(train[:3]), second.predict(train[:3])
    assert a.anomaly_map is not None and b.anomaly_map is not None
    assert torch.equal(a.anomaly_map, b.anomaly_map)


def test_the_best_epochs_weights_are_kept() -> None:
    detector = build(replace(TINY, epochs=4))
    log = detector.fit(pictures(10), None)
    shorter = build(replace(TINY, epochs=log["best_epoch"]))
    shorter.fit(pictures(10), None)
    for a, b in zip(detector.net.parameters(), shorter.net.parameters(), strict=True):
        assert torch.equal(a, b)


def test_early_stopping_counts_from_its_start() -> None:
    config = replace(TINY, epochs=40, stop_from=3, patience=2, lr=0.0)  # nothing ever gets better
    assert build(config).fit(pictures(10), None)["epochs"] == 5


def test_map_and_score_follow_the_formula() -> None:
    detector = build()
    batch = pictures(3)
    result = detector.predict(batch)
    assert result.anomaly_map is not None and result.score is not None
    x = detector.preprocess(batch)
    with torch.no_grad():
        y = detector.net(x)
    squared = (x - y).square().mean(1, keepdim=True)
    expected = mean_filter(1 - msgms(x, y, 2), 5) + mean_filter(squared, 5)
    torch.testing.assert_close(result.anomaly_map, expected[:, 0], atol=1e-5, rtol=1e-4)
    assert torch.equal(result.score, result.anomaly_map.flatten(1).amax(1))
    assert result.anomaly_map.dtype == torch.float32


def test_loss_and_error_are_the_papers() -> None:
    x = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    detector = build()
    with torch.no_grad():
        y = detector.net(x)
        expected = F.mse_loss(y, x) + 1 - ssim(x, y).mean()
        torch.testing.assert_close(detector._loss(x, x)["loss"], expected)
        torch.testing.assert_close(detector._error(x, y).mean(), expected)


def test_the_mean_picture_is_the_floor() -> None:
    detector = build(replace(TINY, epochs=1, lr=0.0))
    log = detector.fit(pictures(12), None)
    assert log["error"] > log["floor"] > 0 and log["marks"] == ["floor"]
    np.testing.assert_allclose(log["over_floor"], np.array(log["loss"]) / log["floor"])


def test_noise_at_test_hangs_on_the_picture_only() -> None:
    config = replace(TINY, test_noise=0.5, test_draws=2, noise_rate=0.4)
    detector = build(config)
    batch = pictures(2)
    together = detector.predict(batch).anomaly_map
    alone = torch.cat([detector.predict([picture]).anomaly_map for picture in batch])
    torch.testing.assert_close(together, alone, atol=1e-6, rtol=1e-5)
    assert not torch.allclose(together, build(replace(config, test_noise=0.0)).predict(batch).anomaly_map, atol=1e-4)
    assert not torch.allclose(together, build(replace(config, test_draws=1)).predict(batch).anomaly_map, atol=1e-5)


def test_noise_at_test_is_equally_strong_in_every_picture() -> None:
    detector = build(replace(TINY, test_noise=0.5, noise_rate=0.4, scales=1, filter=1))
    seen: list[Tensor] = []
    detector.net.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    batch = pictures(6)
    detector.predict(batch)
    deviation = (seen[0] - detector.preprocess(batch)).flatten(1).std(1)
    torch.testing.assert_close(deviation, torch.full((6,), 0.2), rtol=0.05, atol=0)
    with pytest.raises(ModelError, match="test_draws=0"):
        replace(TINY, test_draws=0)


def test_a_killed_training_goes_on_to_the_same_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("models.nn.training.Checkpoint.due", lambda self: self.path is not None)
    whole = build()
    log = whole.fit(pictures(10), None)

    def killed(done: int, total: int, /, **values: float) -> None:
        if done == 5:  # two steps an epoch: in the third
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(scratch=tmp_path).fit(pictures(10), None, killed)
    resumed = build(scratch=tmp_path)
    again = resumed.fit(pictures(10), None)
    assert again.pop("resumed_after_epoch") == [2]
    assert again == log
    assert all(torch.equal(a, b) for a, b in zip(whole.net.parameters(), resumed.net.parameters(), strict=True))


def test_mixed_precision_changes_little() -> None:
    a, b = build(), build(replace(TINY, precision="bf16"))
    losses = [detector.fit(pictures(10), None)["loss"] for detector in (a, b)]
    assert losses[0] != losses[1]
    np.testing.assert_allclose(losses[1], losses[0], rtol=0.1)


def test_state_comes_back() -> None:
    trained, fresh = build(), build()
    trained.fit(pictures(10), None)
    fresh.load_state_dict(trained.state_dict())
    assert torch.equal(fresh.predict(pictures(2)).score, trained.predict(pictures(2)).score)


def test_bad_input_is_named() -> None:
    with pytest.raises(ModelError, match="9 training pictures are too few"):
        build().fit(pictures(9), None)
    with pytest.raises(ModelError, match=r"became .* in epoch 1"):
        build(replace(TINY, lr=float("inf"))).fit(pictures(10), None)
    with pytest.raises(ModelError, match="multiple of 16"):
        registry.config("gen_encdec", {"size": "100"})
    with pytest.raises(ModelError, match="heads=3 must divide"):
        registry.config("gen_encdec", {"heads": "3"})
    small = [np.zeros((20, 20, 3), np.uint8)] * 10
    assert "smaller than 32x32" in build(replace(TINY, epochs=1)).fit(small, None)["notes"][0]
