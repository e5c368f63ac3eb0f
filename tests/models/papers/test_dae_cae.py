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
from models.nn.contractive import DenseCode, dense_contraction
from models.nn.preprocess import IMAGENET_MEAN, IMAGENET_STD
from models.nn.ssim import ssim
from models.papers.dae_cae import Autoencoder, AutoencoderConfig, AutoencoderDetector, Cae, CaeConfig, Dae, DaeConfig
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


DECODER = [(256, 16, 16), (128, 32, 32), (64, 64, 64), (32, 128, 128), (3, 256, 256)]  # each upsampled by its own layer
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


def varied(count: int) -> list[np.ndarray]:
    """Waves of different phase, so that one picture for all is far from most of them."""
    phases = np.random.default_rng(3).uniform(0, 2 * np.pi, count)
    waves = [127 + 100 * np.sin(np.linspace(0, 2 * np.pi, 64) + phase) for phase in phases]
    return [np.broadcast_to(wave[None, :, None], (64, 64, 3)).astype(np.uint8) for wave in waves]


def test_settings_for_open_points_change_the_network() -> None:
    x = torch.rand(1, 3, 64, 64)
    extra = Autoencoder(replace(DAE, extra_conv=True), False, WeightStore("none"))
    assert sum(isinstance(m, nn.Conv2d) for m in extra.decoder) == 6
    plain = Dae(replace(DAE, encoder="vgg16", vgg_dense=False), context()).net
    assert plain.encode(x)[1].shape == (1, 512, 2, 2)
    assert plain(x).shape == x.shape
    with torch.no_grad():
        asked = Dae(replace(DAE, encoder="vgg16", imagenet_norm=True), context()).net
        asked.load_state_dict(Dae(replace(DAE, encoder="vgg16"), context()).net.state_dict())
        given = asked.encode(x)[0]
        asked.normalise = False
        torch.testing.assert_close(given, asked.encode((x - torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1))
                                                       / torch.tensor(IMAGENET_STD).view(1, 3, 1, 1))[0])


def test_every_variant_has_a_quick_preset() -> None:
    from benchmarks.report.numbers import suites

    (quick,) = (suite.quick for suite in suites.all() if suite.paper == "dae_cae")
    assert len(quick) == 12
    for spec, stands_in in quick.items():
        asked, given = registry.config(spec), registry.config(stands_in)
        assert (asked.encoder, asked.loss, asked.shortened) == (given.encoder, given.loss, False)
        assert given.shortened and not given.size % 32


def test_he_keeps_the_size_of_what_passes_through() -> None:
    """torch's own start shrinks the decoder's output, and with it the gradient of every earlier layer."""
    spread = {}
    for how in ("he", "torch"):
        torch.manual_seed(0)
        net = Autoencoder(DaeConfig(size=64, initialisation=how), False, WeightStore("none"))
        with torch.no_grad():
            a = net.encode(torch.rand(2, 3, 64, 64))[0]
            spread[how] = float(net.decoder[:-2](net.back(a)).std() / torch.rand(1000).std())
    assert 0.2 < spread["he"] < 5
    assert spread["torch"] < 0.1 * spread["he"]
    with pytest.raises(ModelError, match="hee"):
        registry.config("dae", {"initialisation": "hee"})


def test_dense_penalty_is_the_jacobian_of_the_dense_layer() -> None:
    torch.manual_seed(0)
    net = Autoencoder(CaeConfig(size=64, widths=(3, 4, 4, 4), dense=6), True, WeightStore("none")).double()
    a, code = net.encode(torch.rand(3, 3, 64, 64, dtype=torch.float64))
    dense = net.to_code
    assert dense is not None
    found = dense_contraction(code, dense.matrix())

    def layer(z: Tensor) -> Tensor:
        return torch.sigmoid(dense.matrix() @ z + dense.bias)

    flat = a.flatten(1).detach()
    normalised = (flat - flat.mean(0)) / (flat.var(0, correction=0) + 1e-5).sqrt()
    for i, z in enumerate(normalised):
        torch.testing.assert_close(layer(z), code[i])
        torch.testing.assert_close(found[i], torch.autograd.functional.jacobian(layer, z).square().sum())


def test_the_penalty_reaches_the_encoder_and_is_weighed_into_the_loss() -> None:
    detector = build(CAE)
    parts = detector._objective(detector.preprocess(pictures(4)), torch.Generator())
    gradient, = torch.autograd.grad(parts["contraction"], [detector.net.encoder[0].weight])
    assert float(gradient.abs().max()) > 0
    for contraction in (0.0, 10.0):
        log = build(replace(CAE, contraction=contraction)).fit(pictures(8), None)
        total = np.array(log["reconstruction"]) + contraction * np.array(log["contraction"])
        np.testing.assert_allclose(log["loss"], total, rtol=1e-5)


def test_a_code_that_is_used_and_one_that_is_not() -> None:
    config = replace(CAE, widths=(8, 12, 16, 16), epochs=60, lr=3e-3)
    used = build(config).fit(varied(12), None)
    assert used["code_gain"] > 1.5 and "code" not in used.get("marks", [])
    unused = build(replace(config, epochs=1, lr=0.0)).fit(varied(12), None)
    assert unused["code_gain"] < 1.05 and "code" in unused["marks"]


def test_the_penalty_contracts_the_code() -> None:
    config = replace(CAE, epochs=30, lr=3e-3)
    free, held = (build(replace(config, contraction=c)).fit(varied(12), None) for c in (0.0, 1.0))
    assert held["contraction"][-1] < 0.5 * free["contraction"][-1]


@pytest.mark.parametrize("loss", ["mse", "ssim"])
def test_the_training_error_is_held_against_the_mean_picture(loss: str) -> None:
    train = varied(12)
    config = replace(DAE, loss=loss, epochs=60, lr=3e-3)
    learnt = build(config)
    log = learnt.fit(train, None)
    x = learnt.preprocess(train)
    expected = learnt._error(x, x.mean(0, keepdim=True).expand_as(x)).mean()
    assert log["floor"] == pytest.approx(float(expected), rel=1e-5)
    assert log["error"] == pytest.approx(float(torch.cat([learnt.predict([p]).score for p in train]).mean()), rel=1e-5)
    np.testing.assert_allclose(log["over_floor"], np.array(log["reconstruction"]) / log["floor"])
    assert log["over_floor"][0] > 1 > log["over_floor"][-1] and log["error_over_floor"] < 1 and "marks" not in log
    untrained = build(replace(config, epochs=1, lr=0.0)).fit(train, None)
    assert untrained["error_over_floor"] > 1 and untrained["marks"] == ["floor"]
    assert "mean picture" in untrained["notes"][0]


def test_a_step_of_adam_moves_the_dense_code_no_further_for_more_inputs() -> None:
    for n in (64, 65536):
        torch.manual_seed(0)
        layer = DenseCode(n, 4)
        a = torch.rand(8, n) * 0.2
        before = layer(a).logit()
        optimizer = torch.optim.Adam(layer.parameters(), lr=1e-4)
        layer(a).sum().backward()
        optimizer.step()
        assert float((layer(a).logit() - before).detach().abs().mean()) < 0.03  # a plain layer of 65536: above 0.5


def test_the_code_differs_from_picture_to_picture_from_the_start() -> None:
    """What the pictures of a category share is most of the encoder's output: here 99 % of it."""
    torch.manual_seed(0)
    layer = DenseCode(256, 64)
    a = 1 + 0.01 * torch.randn(32, 256)
    code = layer(a)
    assert 0.1 < float(code.std(0).mean()) < 0.3
    for _ in range(150):
        layer(a)
    layer.eval()
    torch.testing.assert_close(layer(a), code, atol=0.01, rtol=0)  # what the training saw, whatever the batch
    torch.testing.assert_close(layer(a[:1]), layer(a)[:1])
    layer.train()
    assert torch.equal(layer(a[:1]), layer.eval()(a[:1]))  # a batch of one has no spread of its own


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
    with pytest.raises(ModelError, match="encoder_rate=0"):
        registry.config("cae", {"encoder_rate": "0"})
    small = [np.zeros((20, 30, 3), np.uint8)] * 3
    assert build(replace(DAE, epochs=1)).fit(small, None)["notes"][0] == (
        "3 of 3 training pictures are smaller than 64x64 and were enlarged"
    )


@pytest.mark.parametrize(("family", "config"), [(Dae, replace(DAE, encoder="vgg16")), (Cae, CAE)])
def test_the_code_is_normalised_by_all_training_pictures_as_they_are_seen_at_test(
    family: type[AutoencoderDetector], config: Any
) -> None:
    """Not by the running means that training leaves, which lag behind the weights."""
    train = varied(12)
    detector = family(replace(config, lr=1e-2), context())
    detector.fit(train, None)
    assert detector.net.to_code is not None
    data = detector._pictures(train)
    with torch.no_grad():
        seen = detector.net.encode(detector._input(train, data))[0].flatten(1)
    norm = detector.net.to_code.norm
    torch.testing.assert_close(norm.running_mean, seen.mean(0), rtol=1e-4, atol=1e-5)


def test_a_frozen_norm_knows_all_training_pictures_before_the_first_step_and_keeps_them() -> None:
    """Also with a last batch of one picture of one value per channel, which batch norm itself cannot take."""
    train = varied(9)
    detector = Cae(replace(CAE, encoder="resnet50", size=32, frozen_norm=True, epochs=1, lr=1e-3), context())
    assert detector.net.to_code is not None
    seen: list[Tensor] = []
    norms = [m for m in detector.net.modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)]
    objective = detector._objective

    def watched(x: Tensor, noise: torch.Generator) -> dict[str, Tensor]:
        seen.append(torch.cat([norm.running_mean.clone() for norm in norms]))
        return objective(x, noise)

    detector._objective = watched  # type: ignore[method-assign]
    first = detector.net.encoder[0].weight.detach().clone()
    detector.fit(train, None)
    assert len(norms) == 54 and len(seen) == 3 and seen[0].std() > 0
    now = torch.cat([norm.running_mean for norm in norms])
    assert all(torch.equal(now, each) for each in seen)
    detector.fit(train[:5], None)  # once more: by these pictures
    again = torch.cat([norm.running_mean for norm in norms])
    assert not torch.equal(now, again) and again.abs().max() > 0
    assert not torch.equal(first, detector.net.encoder[0].weight)


def test_a_pretrained_encoder_moves_by_its_own_rate() -> None:
    """The first step of Adam moves every weight by its rate, whatever the gradient."""
    moved = {}
    for share in (1.0, 0.1):
        config = replace(CAE, encoder="vgg16", size=32, train_batch=8, epochs=1, encoder_rate=share)
        detector = build(config)
        before = {name: value.detach().clone() for name, value in detector.net.named_parameters()}
        detector.fit(varied(8), None)
        moved[share] = {
            name: float((value.detach() - before[name]).abs().max()) for name, value in detector.net.named_parameters()
        }
    assert moved[0.1]["encoder.0.weight"] == pytest.approx(0.1 * moved[1.0]["encoder.0.weight"], rel=1e-3)
    assert moved[0.1]["decoder.0.weight"] == pytest.approx(moved[1.0]["decoder.0.weight"], rel=1e-3)
