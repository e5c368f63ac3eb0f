"""SimpleNet: features against a direct computation, what it learns, and that a unit repeats itself."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from models import registry
from models.base import Context, ModelError
from models.baselines.simplenet import SimpleNet, SimpleNetConfig
from models.nn.discriminator import noise_loss
from models.nn.patches import patch_features
from models.weights import WeightStore
from tests.models.baselines.common import authors_features

TINY = SimpleNetConfig(
    backbone="resnet18.tv_in1k", resize=64, crop=None, dimension=48, hidden=32, epochs=3, train_batch=4, shortened=True
)


def pictures(count: int, seed: int = 0, size: tuple[int, int] = (70, 60)) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    base = np.linspace(40, 200, size[1])[None, :, None]
    return [(base + rng.normal(0, 6, (*size, 3))).clip(0, 255).astype(np.uint8) for _ in range(count)]


def build(config: SimpleNetConfig = TINY, scratch: Path | None = None) -> SimpleNet:
    torch.manual_seed(3)
    return SimpleNet(config, Context(torch.device("cpu"), 3, WeightStore("none"), scratch))


@pytest.mark.parametrize("dimension", [9, 12, 20])  # dividing the channels, dividing one layer only, neither
def test_patch_features_follow_the_published_procedure(dimension: int) -> None:
    rng = torch.Generator().manual_seed(0)
    found = {"a": torch.randn(2, 4, 6, 5, generator=rng), "b": torch.randn(2, 8, 3, 3, generator=rng)}
    ours = patch_features(found, ("a", "b"), 3, dimension)
    assert ours.shape == (2, dimension, 6, 5)
    torch.testing.assert_close(ours, authors_features(found, 3, dimension), atol=1e-6, rtol=1e-5)


def test_paper_sizes() -> None:
    detector = registry.method_class("simplenet")(
        registry.config("simplenet@wrn50"), Context(torch.device("cpu"), 0, WeightStore("none"))
    )
    assert detector.preprocess.output == (288, 288)
    maps = detector.feature_maps(pictures(1))
    assert [tuple(m.shape) for m in maps] == [(1, 1536, 36, 36)]
    assert sum(p.numel() for p in detector.adapter.parameters()) == 1536 * 1536 + 1536
    assert sum(p.numel() for p in detector.discriminator.parameters()) == 1536 * 1024 + 1024 + 2 * 1024 + 1024


def test_learns_and_repeats_itself() -> None:
    train = pictures(8)
    first, second = build(replace(TINY, epochs=6)), build(replace(TINY, epochs=6))
    log = first.fit(train, None)
    assert log == second.fit(train, None)
    assert log["epochs"] == 6
    assert log["loss"][-1] < log["loss"][0]
    broken = pictures(2, seed=9)
    broken[0][20:45, 20:45] = 250
    a, b = first.predict(broken), second.predict(broken)
    assert a.anomaly_map is not None and a.score is not None and b.anomaly_map is not None
    assert a.anomaly_map.shape == (2, 64, 64)
    assert a.anomaly_map.dtype == a.score.dtype == torch.float32
    assert torch.equal(a.anomaly_map, b.anomaly_map)
    assert a.score[0] > a.score[1]


def test_score_is_the_largest_patch_before_smoothing() -> None:
    detector = build(replace(TINY, sigma=0.0))
    detector.fit(pictures(5), None)
    result = detector.predict(pictures(3, seed=5))
    assert result.anomaly_map is not None and result.score is not None
    peak = result.anomaly_map.flatten(1).amax(1)
    assert (peak <= result.score + 1e-6).all()
    assert not torch.allclose(result.score, torch.zeros(3))


def test_features_kept_or_computed_anew_give_the_same() -> None:
    train = pictures(8)
    kept, anew = build(), build(replace(TINY, keep_gb=0.0))
    a, b = kept.fit(train, None), anew.fit(train, None)
    np.testing.assert_allclose(a["loss"], b["loss"], rtol=1e-4)


def test_state_comes_back() -> None:
    trained, fresh = build(), build()
    trained.fit(pictures(5), None)
    fresh.load_state_dict(trained.state_dict())
    test = pictures(2, seed=4)
    a, b = trained.predict(test), fresh.predict(test)
    assert a.score is not None and b.score is not None
    assert torch.equal(a.score, b.score)


def test_bad_input_is_named() -> None:
    with pytest.raises(ModelError, match="no training pictures"):
        build().fit([], None)
    with pytest.raises(ModelError, match="crop=300 is larger than resize=256"):
        registry.config("simplenet@resnet18", {"crop": "300"})
    with pytest.raises(ModelError, match="epoch 1"):
        build(replace(TINY, noise_std=float("nan"))).fit(pictures(4), None)


def test_discriminator_tells_noised_features_from_normal_ones() -> None:
    detector = build(replace(TINY, epochs=30, noise_std=1.0, lr=2e-3))
    train = pictures(8)
    detector.fit(train, None)
    real = detector.feature_maps(train)[0].permute(0, 2, 3, 1).flatten(0, 2)
    noise = torch.randn(real.shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        normal, noised = detector.discriminator(real).mean(), detector.discriminator(real + noise).mean()
    assert float(normal) > 0.25 and float(noised) < -0.25


def test_loss_is_the_hinge() -> None:
    """The authors' max(0, 0.5 - D(normal)) + max(0, 0.5 + D(noised)), with its gradient on both kinds."""
    class Sum(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.sum(1, keepdim=True)

    real = torch.tensor([[0.1, 0.1], [2.0, 1.0], [-1.0, 0.0]], requires_grad=True)
    noise = torch.randn(3, 2, generator=torch.Generator().manual_seed(4)) * 0.015
    loss = noise_loss(Sum(), real, 0.015, 0.5, torch.Generator().manual_seed(4))
    normal, noised = [0.2, 3.0, -1.0], [float(v) for v in (real + noise).sum(1)]
    expected = sum(max(0.0, 0.5 - v) for v in normal) / 3 + sum(max(0.0, 0.5 + v) for v in noised) / 3
    assert float(loss) == pytest.approx(expected, abs=1e-6)
    loss.backward()
    # row 0: both sides of the hinge cancel; row 1: only its noised copy is pushed down; row 2: only itself is pushed up
    torch.testing.assert_close(real.grad, torch.tensor([[0.0, 0.0], [1 / 3, 1 / 3], [-1 / 3, -1 / 3]]))
    ours = registry.config("simplenet")
    assert (ours.noise_std, ours.margin, ours.train_batch) == (0.015, 0.5, 8)  # the authors' run script


def test_map_and_score_are_minus_the_discriminators_output() -> None:
    from scipy.ndimage import gaussian_filter

    detector = build(replace(TINY, sigma=4.0))
    images = pictures(2, seed=5)
    features = detector.feature_maps(images)[0]
    height, width = features.shape[-2:]
    with torch.no_grad():
        cells = torch.stack([
            torch.stack([detector.discriminator(features[:, :, y, x])[:, 0] for x in range(width)], 1)
            for y in range(height)
        ], 1)
    result = detector.predict(images)
    torch.testing.assert_close(result.score, (-cells).flatten(1).max(1).values, atol=1e-5, rtol=1e-4)
    full = F.interpolate(-cells[:, None], (64, 64), mode="bilinear", align_corners=False)[:, 0].numpy()
    expected = np.stack([gaussian_filter(m, sigma=4) for m in full])
    np.testing.assert_allclose(result.anomaly_map.numpy(), expected, atol=1e-5)


def test_the_shorter_side_is_resized_where_asked() -> None:
    detector = build(replace(TINY, resize=64, crop=56, aspect="short"))
    result = detector.predict([np.zeros((100, 200, 3), np.uint8)])
    assert tuple(result.anomaly_map.shape) == (1, 56, 56)
    assert tuple(detector.preprocess.restore(result.anomaly_map, [(100, 200)])[0].shape) == (100, 200)


def test_features_are_kept_only_where_half_of_the_free_memory_holds_them(monkeypatch) -> None:
    from models.baselines import simplenet
    from models.nn.memory import noted

    detector = build()
    images = pictures(4, 0)
    one = detector._patches(images[:1]).nbytes
    for free, kept in ((8 * one, True), (8 * one - 2, False)):
        monkeypatch.setattr(simplenet, "available", lambda device, free=free: free)
        with noted() as notes:
            assert (detector._kept(images) is not None) == kept
        assert any("computed anew" in text for text in notes) != kept
