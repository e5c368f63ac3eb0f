"""DAE and CAE: layer shapes, the contractive penalty against autograd's Jacobian, threshold, noise, repeatability."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from models import registry
from models.base import Context, ModelError
from models.nn.ssim import ssim
from models.papers.dae_cae import (
    Autoencoder,
    AutoencoderConfig,
    AutoencoderDetector,
    Cae,
    CaeConfig,
    Dae,
    DaeConfig,
    DenseCode,
    dense_contraction,
    jacobian_norm,
)
from models.weights import WeightStore

DAE = DaeConfig(size=64, widths=(4, 6, 8, 8), dense=16, train_batch=4, epochs=3, lr=2e-3, shortened=True)
CAE = CaeConfig(size=64, widths=(4, 6, 8, 8), dense=16, train_batch=4, epochs=3, lr=2e-3, shortened=True)


def pictures(count: int, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    sizes = [(80, 70), (64, 90), (100, 66)]
    found = []
    for i in range(count):
        height, width = sizes[i % 3]
        base = np.linspace(40, 200, width)[None, :, None]
        found.append((base + rng.normal(0, 6, (height, width, 3))).clip(0, 255).astype(np.uint8))
    return found


def context(scratch: Path | None = None, seed: int = 2) -> Context:
    return Context(torch.device("cpu"), seed, WeightStore("none"), scratch)


def build(config: AutoencoderConfig, scratch: Path | None = None, seed: int = 2) -> AutoencoderDetector:
    torch.manual_seed(seed)
    return (Dae if isinstance(config, DaeConfig) else Cae)(config, context(scratch, seed))


def shapes(net: nn.Module, x: Tensor) -> list[tuple[int, ...]]:
    """Output shapes of every convolution, linear, pooling and upsampling layer of `net`, in the order they run."""
    found: list[tuple[int, ...]] = []
    kinds = (nn.Conv2d, nn.Linear, nn.MaxPool2d, nn.Upsample)
    handles = [
        m.register_forward_hook(lambda module, inputs, output: found.append(tuple(output.shape[1:])))
        for m in net.modules() if isinstance(m, kinds)
    ]
    with torch.no_grad():
        net(x)
    for handle in handles:
        handle.remove()
    return found


DECODER = [
    (256, 16, 16), (256, 32, 32), (128, 32, 32), (128, 64, 64), (64, 64, 64), (64, 128, 128), (32, 128, 128),
    (32, 256, 256), (3, 256, 256),
]
OWN = [
    (32, 256, 256), (32, 128, 128), (64, 128, 128), (64, 64, 64), (128, 64, 64), (128, 32, 32), (256, 32, 32),
    (256, 16, 16),
]
DENSE = [(512,), (65536,)]


@pytest.mark.parametrize(
    ("spec", "encoder", "bottleneck", "parameters"),
    [
        ("dae@mse", OWN, [], 1_366_659),
        ("cae@mse", OWN, DENSE, 68_541_571),
        ("dae@vgg16_mse", [(512, 16, 16), (512, 8, 8)], DENSE, 66_090_627),
        ("dae@resnet50_ssim", [(512, 8, 8), (2048, 8, 8)], [(256, 8, 8), (256, 16, 16)], 25_010_819),
        ("cae@resnet50_ssim", [(512, 8, 8), (2048, 8, 8)], DENSE, 125_215_619),
    ],
)
def test_layer_shapes_at_the_papers_size(
    spec: str, encoder: list[Any], bottleneck: list[Any], parameters: int
) -> None:
    config = registry.config(spec)
    assert isinstance(config, AutoencoderConfig)
    family = Dae if isinstance(config, DaeConfig) else Cae
    net = family(config, context()).net
    assert sum(p.numel() for p in net.parameters()) == parameters
    found = shapes(net, torch.zeros(1, 3, 256, 256))
    tail = [*encoder, *bottleneck, *DECODER]
    assert found[-len(tail) :] == tail


def test_settings_for_open_points_change_the_shapes() -> None:
    store, x = WeightStore("none"), torch.zeros(1, 3, 256, 256)
    fine = Autoencoder(DaeConfig(encoder="vgg16", fine_grid=True), False, store).eval()
    assert fine.encode(x)[0].shape == (1, 512, 16, 16)
    fine = Autoencoder(DaeConfig(encoder="resnet50", fine_grid=True), False, store).eval()
    assert fine.encode(x)[0].shape == (1, 2048, 16, 16)
    assert fine(x).shape == x.shape
    extra = Autoencoder(DaeConfig(extra_conv=True), False, store)
    assert sum(isinstance(m, nn.Conv2d) for m in extra.decoder) == 6
    plain = Dae(DaeConfig(encoder="vgg16", vgg_dense=False), context()).net
    assert plain.encode(x)[1].shape == (1, 512, 8, 8)
    assert plain(x).shape == x.shape


def small_encoder() -> tuple[Autoencoder, Tensor, Tensor]:
    """A network in double precision, three pictures, and the exact squared Frobenius norm of each one's Jacobian."""
    torch.manual_seed(0)
    config = CaeConfig(size=64, widths=(3, 4, 4, 4), dense=6)
    net = Autoencoder(config, True, WeightStore("none")).double()
    for parameter in net.parameters():
        parameter.data.mul_(2)
    x = torch.rand(3, 3, 64, 64, dtype=torch.float64)
    jacobians = [
        torch.autograd.functional.jacobian(lambda one: net.encode(one)[1], x[i : i + 1]).flatten() for i in range(3)
    ]
    return net, x, torch.stack([j.square().sum() for j in jacobians])


def test_dense_penalty_is_the_jacobian_of_the_dense_layer() -> None:
    net, x, _ = small_encoder()
    a, code = net.encode(x)
    dense = net.to_code
    assert dense is not None
    found = dense_contraction(code, dense.matrix())

    def layer(z: Tensor) -> Tensor:
        return torch.sigmoid(dense.matrix() @ z + dense.bias)

    for i in range(3):
        z = nn.functional.layer_norm(a[i].flatten().detach(), a[i].flatten().shape)
        torch.testing.assert_close(layer(z), code[i])
        torch.testing.assert_close(found[i], torch.autograd.functional.jacobian(layer, z).square().sum())


def test_a_code_that_no_longer_depends_on_the_picture_is_named() -> None:
    config = replace(CAE, contraction=0.0, epochs=6)
    kept = build(config).fit(pictures(8), None)
    assert kept["code_spread"] > 1e-4 and "notes" not in kept
    lost = build(replace(config, dense_input="plain", lr=0.5)).fit(pictures(8), None)
    assert lost["code_spread"] < 1e-6
    assert "hardly depends on the picture" in lost["notes"][0]


def test_a_step_of_adam_moves_the_dense_code_no_further_for_more_inputs() -> None:
    moved = {}
    for name in ("normalised", "plain"):
        for n in (64, 65536):
            torch.manual_seed(0)
            layer = DenseCode(n, 4, name == "normalised")
            a = torch.rand(8, n) * 0.2
            before = layer(a).logit()
            optimizer = torch.optim.Adam(layer.parameters(), lr=1e-4)
            layer(a).sum().backward()
            optimizer.step()
            moved[name, n] = float((layer(a).logit() - before).detach().abs().mean())
    assert moved["plain", 65536] > 0.5  # fewer than twenty such steps saturate a sigmoid
    assert moved["normalised", 65536] < 0.03


def test_a_share_of_the_batch_estimates_the_whole_batch_penalty() -> None:
    detector = build(replace(CAE, jacobian_share=0.25))
    data = detector.preprocess(pictures(8))
    whole = build(replace(CAE, jacobian_share=1.0))

    def mean(which: AutoencoderDetector, draws: int) -> float:
        noise, total = torch.Generator().manual_seed(3), 0.0
        for _ in range(draws):
            total += float(which._objective(data[torch.randperm(8, generator=noise)], noise)["contraction"].detach())
        return total / draws

    assert mean(detector, 200) == pytest.approx(mean(whole, 60), rel=0.15)


def test_estimate_is_exact_over_a_basis_and_unbiased_over_signs() -> None:
    net, x, exact = small_encoder()
    x.requires_grad_()
    code = net.encode(x)[1]
    basis = 6**0.5 * torch.eye(6, dtype=torch.float64)[:, None].expand(6, 3, 6)
    torch.testing.assert_close(jacobian_norm(code, x, basis).double(), exact, rtol=1e-5, atol=0)
    draws = torch.randint(0, 2, (400, 3, 6), generator=torch.Generator().manual_seed(1)).double() * 2 - 1
    single = torch.stack([jacobian_norm(code, x, v[None]).detach().double() for v in draws])
    assert (single.std(0) <= 2**0.5 * exact).all()  # the stated bound
    standard_error = single.std(0) / 400**0.5
    assert ((single.mean(0) - exact).abs() < 4 * standard_error).all()
    assert (standard_error < 0.06 * exact).all()


def test_penalty_reaches_the_encoders_weights() -> None:
    net, x, _ = small_encoder()
    x.requires_grad_()
    code = net.encode(x)[1]
    jacobian_norm(code, x, torch.ones(1, *code.shape)).mean().backward()
    first = net.encoder[0]
    assert isinstance(first, nn.Conv2d) and first.weight.grad is not None
    assert float(first.weight.grad.abs().max()) > 0


def test_contraction_shrinks_the_jacobian() -> None:
    logs = [build(replace(CAE, contraction=c, epochs=6)).fit(pictures(8), None) for c in (0.0, 10.0)]
    assert logs[1]["contraction"][-1] < 0.5 * logs[1]["contraction"][0]
    for c, log in zip((0.0, 10.0), logs, strict=True):
        total = np.array(log["reconstruction"]) + c * np.array(log["contraction"])
        np.testing.assert_allclose(log["loss"], total, rtol=1e-5)


@pytest.mark.parametrize("config", [DAE, replace(DAE, loss="ssim"), CAE, replace(CAE, loss="ssim")])
def test_learns_repeats_itself_and_sets_the_threshold(config: AutoencoderConfig) -> None:
    config = replace(config, epochs=4)
    train = pictures(8)
    first, second = build(config), build(config)
    log = first.fit(train, None)
    assert log == second.fit(train, None)
    assert log["loss"][-1] < log["loss"][0]
    errors = torch.cat([first.predict([picture]).score for picture in train]).double()
    assert first.threshold == pytest.approx(float(errors.mean()), rel=1e-5)
    assert log["error_std"] == pytest.approx(float(errors.std(correction=0)), rel=1e-3)
    result = first.predict(pictures(3, seed=7))
    assert result.anomaly_map is not None and result.score is not None
    assert result.anomaly_map.shape == (3, 64, 64)
    assert result.anomaly_map.dtype == result.score.dtype == torch.float32
    if config.loss == "mse":
        torch.testing.assert_close(result.score, result.anomaly_map.flatten(1).mean(1))


def test_error_compares_with_the_clean_picture() -> None:
    detector = build(replace(DAE, loss="ssim", noise_level=0.3))
    batch = pictures(2)
    error, x, y = detector._compare(batch)
    assert torch.equal(x, detector.preprocess(batch))
    torch.testing.assert_close(error, 1 - ssim(x, y))
    noisy = detector._input(batch, x)
    assert 0.1 < float((noisy - x).std()) < 0.31


def test_test_noise_is_the_pictures_own() -> None:
    config = replace(DAE, noise_level=0.1)
    detector, off = build(config), build(replace(config, test_noise=False))
    detector.net = off.net = nn.Identity()  # the error is then the noise itself
    batch = pictures(3)
    together = detector.predict(batch).anomaly_map
    alone = torch.cat([detector.predict([picture]).anomaly_map for picture in batch[::-1]]).flip(0)
    assert torch.equal(together, alone)
    assert float(together.mean()) == pytest.approx(0.01, rel=0.1)
    assert float(off.predict(batch).anomaly_map.abs().max()) == 0
    other = Dae(config, context(seed=3))
    other.net = nn.Identity()
    assert not torch.equal(other.predict(batch).anomaly_map, together)


def test_threshold_rules() -> None:
    errors = torch.tensor([1.0, 2.0, 3.0, 6.0], dtype=torch.float64)
    assert build(DAE)._threshold(errors) == 3.0
    assert build(replace(DAE, threshold_rule="mean_std", threshold_k=2.0))._threshold(errors) == pytest.approx(
        3 + 2 * 3.5**0.5
    )
    assert build(replace(DAE, threshold_rule="quantile", threshold_quantile=0.5))._threshold(errors) == 2.5


def test_holdout_needs_ten_pictures() -> None:
    config = replace(DAE, calibration="holdout", epochs=1)
    with pytest.raises(ModelError, match="9 training pictures are too few"):
        build(config).fit(pictures(9), None)
    assert build(config).fit(pictures(10), None)["threshold"] > 0


def test_a_killed_training_goes_on_to_the_same_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("models.nn.training.Checkpoint.due", lambda self: self.path is not None)
    whole = build(CAE)
    log = whole.fit(pictures(8), None)

    def killed(done: int, total: int, /, **values: float) -> None:
        if done == 4:  # two steps an epoch: the second epoch's last
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(CAE, tmp_path).fit(pictures(8), None, killed)
    resumed = build(CAE, tmp_path)
    again = resumed.fit(pictures(8), None)
    assert again.pop("resumed_after_epoch") == [1]
    assert again == log
    assert all(torch.equal(a, b) for a, b in zip(whole.net.parameters(), resumed.net.parameters(), strict=True))


def test_state_comes_back_with_its_threshold() -> None:
    trained, fresh = build(DAE), build(DAE, seed=2)
    trained.fit(pictures(5), None)
    fresh.load_state_dict(trained.state_dict())
    assert fresh.threshold == trained.threshold
    assert torch.equal(fresh.predict(pictures(2)).score, trained.predict(pictures(2)).score)


def test_bad_input_is_named() -> None:
    with pytest.raises(ModelError, match=r"loss became .* in epoch 1"):
        build(replace(DAE, lr=float("inf"), epochs=2)).fit(pictures(8), None)
    with pytest.raises(ModelError, match="no training pictures"):
        build(DAE).fit([], None)
    with pytest.raises(ModelError, match="size=100"):
        registry.config("dae", {"size": "100"})
    with pytest.raises(ModelError, match="four positive numbers"):
        registry.config("cae", {"widths": "8,8"})
    small = [np.zeros((20, 30, 3), np.uint8)] * 3
    assert build(replace(DAE, epochs=1)).fit(small, None)["notes"] == [
        "3 of 3 training pictures are smaller than 64x64 and were enlarged"
    ]
