"""TSDN: shapes at the paper's size, each loss on a hand-made case, the ablations, training and resuming."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from skimage.metrics import structural_similarity

from models import registry
from models.base import Context, ModelError
from models.nn import training
from models.nn.normality import cross_entropy, learnt, normality_target
from models.nn.preprocess import imagenet
from models.nn.superpixels import counted, label_all
from models.papers import tsdn
from models.papers.tsdn import TSDN, TSDNConfig
from models.weights import WeightsError, WeightStore

PAPERS = Path(__file__).parents[3].parent / "shared" / "papers"
TINY = TSDNConfig(
    size=64, encoder="mobilenetv3_small_050.lamb_in1k", reduced=8, mlp=(8, 8), widths=(8, 8, 8, 8, 8), fne_size=16,
    segments=40, filled=5, blur=1.0, epochs=2, train_batch=4, lr=1e-3,
)


def pictures(count: int = 8, seed: int = 0) -> list[np.ndarray]:
    """Stripes with a little noise, uint8 [70, 60, 3]."""
    rng = np.random.default_rng(seed)
    stripes = 120 + 60 * np.sin(np.arange(60) * 0.9)[None, :, None]
    return [(stripes + rng.normal(0, 6, (70, 60, 3))).clip(0, 255).astype(np.uint8) for _ in range(count)]


def build(config: TSDNConfig = TINY, scratch: Path | None = None, seed: int = 0) -> TSDN:
    torch.manual_seed(seed)
    return TSDN(config, Context(torch.device("cpu"), seed, WeightStore("none"), scratch=scratch))


def losses(detector: TSDN, clean: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
    table = detector._choose(counted(labels), torch.Generator().manual_seed(0))
    return detector._losses(clean, *detector._filled(clean, labels, table))


# --- shapes at 352 px


def test_shapes_of_the_paper_model() -> None:
    """Sizes of the specification, on torch's meta device (nothing is computed)."""
    net = tsdn.Network(tsdn.PAPER, WeightStore("none")).to("meta").train()
    x = torch.empty(2, 3, 352, 352, device="meta")
    maps = net.encoder(x)
    assert [tuple(m.shape[1:]) for m in maps] == [
        (24, 176, 176), (40, 88, 88), (64, 44, 44), (176, 22, 22), (512, 11, 11),
    ]
    features = net.reduce(maps[-1])
    assert tuple(features.shape) == (2, 128, 11, 11)
    y, found = features, []
    for up, merge, skip in zip(net.decoder_a.up, net.decoder_a.merge, [*maps[-2::-1], None], strict=True):
        y = merge(up(y) if skip is None else torch.cat([up(y), skip], 1))
        found.append(tuple(y.shape[1:]))
    assert found == [(256, 22, 22), (128, 44, 44), (64, 88, 88), (32, 176, 176), (16, 352, 352)]
    assert tuple(net.estimator(features).shape) == (2, 128) and net.estimator[3].in_features == 3872
    out = net(x)
    assert tuple(out.mask.shape) == (2, 1, 352, 352) and tuple(out.reconstruction.shape) == (2, 3, 352, 352)


def test_parameter_counts_of_the_docs() -> None:
    net = tsdn.Network(tsdn.PAPER, WeightStore("none"))
    counts = {name: sum(p.numel() for p in module.parameters()) for name, module in net.named_children()}
    assert counts == {
        "encoder": 27_288_112, "reduce": 65_664, "decoder_a": 2_517_585, "decoder_n": 2_517_875,
        "estimator": 2_184_096,
    }


@pytest.mark.parametrize(
    "changes, message",
    [({"size": 100}, "multiple of 32"), ({"decoder_a": False}, "fne needs decoder_a"), ({"fne_size": 8}, "SSIM window"),
     ({"widths": (8, 8)}, "five decoder blocks"), ({"encoder": "no_such_network"}, "no_such_network"),
     ({"encoder": "vit_tiny_patch16_224"}, "scales|features"),
     ({"decoder_a": False, "fne": False, "skip_filter": "mask"}, "skip_filter=mask")],
)
def test_impossible_settings_are_refused_at_construction(changes: dict, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        build(replace(TINY, **changes))


def test_weights_of_the_encoder_are_asked_for_by_tag(tmp_path: Path) -> None:
    context = Context(torch.device("cpu"), 0, WeightStore(tmp_path))
    with pytest.raises(WeightsError, match="mobilenetv3_small_050"):
        TSDN(TINY, context)
    import timm

    torch.manual_seed(5)
    whole = timm.create_model("mobilenetv3_small_050", pretrained=False)
    torch.save(whole.state_dict(), tmp_path / "mobilenetv3_small_050.lamb_in1k.pth")
    detector = TSDN(TINY, context)
    assert torch.equal(detector.net.encoder.state_dict()["conv_stem.weight"], whole.state_dict()["conv_stem.weight"])
    assert context.weights.used["mobilenetv3_small_050.lamb_in1k"]["file"] == "mobilenetv3_small_050.lamb_in1k.pth"


# --- the estimator's target and the losses


def test_target_is_low_for_the_channel_that_looks_like_the_mask() -> None:
    mask = torch.zeros(1, 1, 32, 32)
    mask[..., 8:20, 10:26] = 1
    features = torch.cat([mask * 9 - 4, 1 - mask, torch.rand(1, 1, 32, 32)], 1)  # the same, its opposite, noise
    target = normality_target(features, mask)
    assert target[0, 0] == 0 and target[0, 1] == 1 and 0 < target[0, 2] < 1


@pytest.mark.parametrize("scaling", ["channel", "raw"])
@pytest.mark.parametrize("size", [None, 22])
def test_target_equals_scikit_image_channel_by_channel(scaling: str, size: int | None) -> None:
    generator = torch.Generator().manual_seed(0)
    features, mask = torch.rand(2, 5, 4, 4, generator=generator) * 3, torch.rand(2, 1, 44, 44, generator=generator)
    found = normality_target(features, mask, size=size, scaling=scaling, norm="fixed", chunk=2)
    small = mask if size is None else F.avg_pool2d(mask, 2)
    for b in range(2):
        for c in range(5):
            up = F.interpolate(features[b : b + 1, c : c + 1], small.shape[-2:], mode="bilinear")[0, 0].double()
            if scaling == "channel":
                up = (up - up.min()) / (up.max() - up.min())
            _, full = structural_similarity(
                up.numpy(), small[b, 0].double().numpy(), data_range=1.0, gaussian_weights=True, sigma=1.5,
                use_sample_covariance=False, full=True,
            )
            similarity = full[5:-5, 5:-5].mean()
            assert found[b, c] == pytest.approx(np.clip((1 - similarity) / 2, 0, 1), abs=2e-4)


def test_target_stops_the_gradient_and_is_spread_over_each_sample() -> None:
    features = torch.rand(2, 6, 4, 4, requires_grad=True)
    target = normality_target(features, torch.rand(2, 1, 32, 32, requires_grad=True))
    assert not target.requires_grad and target.shape == (2, 6)
    assert target.amin(1).tolist() == [0, 0] and target.amax(1).tolist() == pytest.approx([1, 1], abs=1e-5)


def test_cross_entropy_by_hand() -> None:
    w, t = torch.tensor([[0.25, 0.5]]), torch.tensor([[0.0, 0.75]])
    assert cross_entropy(w, t)[0].tolist() == pytest.approx([-math.log(0.75), -math.log(0.5)], rel=1e-5)


def test_the_estimators_loss_counts_beside_the_reconstruction() -> None:
    """What pulls at W' under the preset's weights: a mean instead of the sum would leave it to decoder N alone."""
    pulls = {}
    for reduction in (tsdn.PAPER.fne_reduction, "mean"):
        config = replace(TINY, reduced=tsdn.PAPER.reduced, fne_reduction=reduction)
        detector, seen = build(config), []  # of W'
        detector.net.train().estimator.register_forward_hook(lambda *call, held=seen: held.append(call[-1]))
        clean = detector.preprocess(pictures(4))
        values = losses(detector, clean, label_all(clean, 40))
        weighted = config.weight_f * values["f"]
        of_fne, of_rest = (
            torch.autograd.grad(loss, seen[0], retain_graph=True)[0].norm()
            for loss in (weighted, values["loss"] - weighted)
        )
        pulls[reduction] = float(of_fne / of_rest)
    assert pulls["sum"] > 0.1 and pulls["mean"] < 0.03, pulls


def test_what_the_record_says_of_the_estimator() -> None:
    target = torch.rand(6, 5, generator=torch.Generator().manual_seed(0))
    knows, constant = learnt(target, target), learnt(target.mean(0).expand(6, 5), target)
    assert knows["bce"] == pytest.approx(knows["entropy"], rel=1e-5) and knows["correlation"] == pytest.approx(1)
    assert constant["bce"] == pytest.approx(constant["best_constant_per_channel"], rel=1e-5)
    assert constant["spread_over_pictures"] < 1e-6 < constant["spread_over_channels"]
    half = learnt(torch.full((6, 5), 0.5), target)
    assert half["bce"] == pytest.approx(math.log(2), rel=1e-5) and half["correlation"] == 0
    assert knows["bce"] < constant["bce"] < half["bce"]


@pytest.mark.parametrize("distance, value", [("squared", 0.09), ("root", 0.3)])
def test_the_map_is_equation_4(distance: str, value: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """One pixel rebuilt wrongly: its distance, spread by a Gaussian of sigma 4 and kernel 33."""
    detector = build(replace(TINY, size=96, blur=4.0, distance=distance))
    picture = np.zeros((96, 96, 3), np.uint8)
    rebuilt = torch.zeros(1, 3, 96, 96)
    rebuilt[0, :, 48, 48] = torch.tensor([0.1, 0.2, 0.2])
    monkeypatch.setattr(detector.net, "forward", lambda x: tsdn.Output(x, None, None, rebuilt))
    prediction = detector.predict([picture])
    found = prediction.anomaly_map[0] - prediction.anomaly_map[0, 0, 0]  # the root of nothing is 1e-6
    kernel = np.exp(-((np.arange(33) - 16) ** 2) / 32)
    np.testing.assert_allclose(found[32:65, 32:65], value * np.outer(kernel, kernel) / kernel.sum() ** 2, atol=1e-6)
    assert found[:32].abs().max() < 1e-7 and float(prediction.score) == float(prediction.anomaly_map.max())


def test_loss_is_equation_3(monkeypatch: pytest.MonkeyPatch) -> None:
    config = replace(TINY, weight_r=2.0, weight_s=3.0, weight_g=5.0, weight_m=7.0, weight_f=11.0)
    detector = build(config)
    detector.net.train()
    clean = detector.preprocess(pictures(4))
    labels = (torch.arange(64)[:, None] // 8 * 8 + torch.arange(64) // 8).to(torch.int16).repeat(4, 1, 1)
    values = {name: value.detach() for name, value in losses(detector, clean, labels).items()}
    assert values.pop("bce_above_entropy") > 0
    expected = sum(w * values[n] for n, w in zip("rsgmf", (2, 3, 5, 7, 11), strict=True))
    assert values["loss"] == pytest.approx(float(expected), rel=1e-6) and set(values) == {"loss", *"rsgmf"}
    assert [getattr(tsdn.PAPER, f"weight_{n}") for n in "rsgmf"] == [1, 0.5, 1, 1, 5e-5]

    perfect = tsdn.Output(torch.zeros(4, 8, 2, 2), None, None, clean)  # a network that returns the clean picture
    monkeypatch.setattr(detector.net, "forward", lambda x: perfect)
    assert all(abs(float(v)) < 1e-5 for v in losses(detector, clean, labels).values())
    off = tsdn.Output(perfect.features, torch.ones(4, 1, 64, 64), None, clean + 0.1)
    monkeypatch.setattr(detector.net, "forward", lambda x: off)
    values = losses(detector, clean, labels)
    assert values["r"] == pytest.approx(0.01, rel=1e-3) and values["g"] == pytest.approx(0, abs=1e-5)
    assert values["m"] == pytest.approx(1 - 5 / 64, abs=1e-6)  # 5 of the 64 superpixels are filled


# --- the forward pass and the ablations


def fed_to_decoder_n(net: tsdn.Network, x: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor], tsdn.Output]:
    seen: list = []
    net.decoder_n.register_forward_pre_hook(lambda module, inputs: seen.append(inputs))
    out = net(x)
    return (*seen[0], out)


def test_fne_weights_the_channels_that_decoder_n_sees() -> None:
    net = build().net
    features, _, out = fed_to_decoder_n(net, torch.rand(2, 3, 64, 64))
    assert out.weights.shape == (2, 8) and out.weights.min() > 0 and out.weights.max() < 1
    assert torch.equal(features, out.features * out.weights[..., None, None])


@pytest.mark.parametrize("product", ["inverse", "literal"])
def test_variant_e_multiplies_by_the_mask(product: str) -> None:
    net = build(replace(TINY, fne=False, mask_product=product)).net.eval()
    features, _, out = fed_to_decoder_n(net, torch.rand(2, 3, 64, 64))
    small = F.avg_pool2d(out.mask, 32)
    expected = out.features * (small if product == "literal" else 1 - small)
    np.testing.assert_allclose(features.detach(), expected.detach(), atol=1e-6)


@pytest.mark.parametrize("kind", ["none", "mask"])
def test_skip_filters(kind: str) -> None:
    x = torch.rand(2, 3, 64, 64)
    net = build(replace(TINY, skip_filter=kind)).net.eval()
    _, skips, out = fed_to_decoder_n(net, x)
    for found, skip in zip(skips, net.encoder(imagenet(x))[-2::-1], strict=True):
        wanted = skip if kind == "none" else skip * (1 - F.avg_pool2d(out.mask, 64 // skip.shape[-1]))
        np.testing.assert_allclose(found.detach(), wanted.detach(), atol=1e-5)


def test_decoder_a_does_not_run_at_test_time_but_its_mask_can_be_seen() -> None:
    net = build().net.eval()
    x = torch.rand(2, 3, 64, 64)
    assert net(x).mask is None and net(x, mask=True).mask.shape == (2, 1, 64, 64)
    assert net.train()(x).mask is not None


FLAGS = {  # DCD_A, Skip, SURF, FNE
    "t3_a": (False, False, False, False), "t3_b": (False, True, False, False), "t3_c": (True, False, True, True),
    "t3_d": (True, True, True, True), "t4_a": (False, False, False, False), "t4_b": (False, False, True, False),
    "t4_c": (False, True, False, False), "t4_d": (False, True, True, False), "t4_e": (True, True, True, False),
    "t4_f": (True, True, True, True),
}


def test_presets_are_the_rows_of_tables_3_and_4() -> None:
    for preset, flags in FLAGS.items():
        config = registry.config(f"tsdn@{preset}")
        assert (config.decoder_a, config.skips, config.surf, config.fne) == flags, preset
        assert config.size == 352 and not config.shortened
    assert registry.parse("tsdn") == ("tsdn", "paper") and registry.config("tsdn@quick").shortened
    if not (path := PAPERS / "ablations.json").is_file():
        return
    for row in json.loads(path.read_text()):
        if row["paper"] == "tsdn":
            flags = row["flags"]
            key = f"t{row['table']}_{row['variant'].lower()}"
            assert FLAGS[key] == (flags["DCD_A"], flags["Skip"], flags["SURF"], flags["FNE"]), key


@pytest.mark.parametrize("preset", ["t3_a", "t3_b", "t3_c", "t4_b", "t4_d", "t4_e", "t4_f"])
def test_every_ablation_trains_with_its_own_terms(preset: str) -> None:
    of = registry.config(f"tsdn@{preset}")
    config = replace(TINY, decoder_a=of.decoder_a, skips=of.skips, surf=of.surf, fne=of.fne, epochs=1)
    log = build(config).fit(pictures(), None)
    terms = {name for name in "rsgmf" if name in log}
    assert terms == {"r", "s", "g"} | ({"m"} if of.decoder_a else set()) | ({"f"} if of.fne else set())
    assert ("superpixels" in log) == of.surf


# --- training


def test_training_lowers_the_losses_and_repeats_exactly() -> None:
    config = replace(TINY, epochs=10)
    first, second = build(config), build(config)
    steps: list[tuple[int, int]] = []
    log = first.fit(pictures(), None, lambda done, total, /, **values: steps.append((done, total)))
    second.fit(pictures(), None)
    assert steps == [(i + 1, 20) for i in range(20)]
    for term in ("loss", "r", "s", "m"):
        assert log[term][-1] < 0.9 * log[term][0], (term, log[term])
    assert log["superpixels"]["per_picture"] >= log["superpixels"]["fewest"] >= 1
    one, two = first.predict(pictures(3, 1)), second.predict(pictures(3, 1))
    side = first.config.size
    assert log["floor"] > 0 and log["error_over_floor"] == pytest.approx(log["error"] / log["floor"])
    assert set(log["fne"]) >= {"bce", "best_constant_per_channel", "entropy"} and min(log["bce_above_entropy"]) > 0
    assert one.panels["reconstruction"].shape == (3, 3, side, side)
    with torch.no_grad():
        mask = one.panels["predicted mask"]()
    assert mask.shape == (3, side, side) and 0 <= float(mask.min()) < float(mask.max()) <= 1
    assert torch.equal(one.anomaly_map, two.anomaly_map) and one.anomaly_map.shape == (3, 64, 64)
    assert torch.equal(one.score, one.anomaly_map.flatten(1).amax(1))


class Killed(BaseException):
    pass


def test_a_killed_training_continues_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training.Checkpoint, "due", lambda self: self.path is not None)
    undisturbed = build(scratch=tmp_path / "a")
    undisturbed.fit(pictures(), None)

    def kill(done: int, total: int, /, **values: float) -> None:
        if done == 3:
            raise Killed

    with pytest.raises(Killed):
        build(scratch=tmp_path / "b").fit(pictures(), None, kill)
    steps: list[int] = []
    resumed = build(scratch=tmp_path / "b")
    resumed.fit(pictures(), None, lambda done, total, /, **values: steps.append(done))
    assert steps == [3, 4]
    for name, tensor in undisturbed.net.state_dict().items():
        assert torch.equal(tensor, resumed.net.state_dict()[name]), name


def test_a_frozen_encoder_stays_as_it_was() -> None:
    detector = build(replace(TINY, train_encoder=False))
    before = {name: tensor.clone() for name, tensor in detector.net.encoder.state_dict().items()}
    detector.fit(pictures(), None)
    assert all(torch.equal(tensor, before[name]) for name, tensor in detector.net.encoder.state_dict().items())


def test_uniform_pictures_and_a_loss_that_is_not_a_number() -> None:
    flat = [np.full((64, 64, 3), 90, np.uint8)] * 4
    log = build(replace(TINY, segments=400, filled=50, epochs=1)).fit(flat, None)
    assert np.isfinite(log["loss"]).all()
    with pytest.raises(ModelError, match="epoch 1"):
        build(replace(TINY, lr=1e25)).fit(pictures(), None)
    with pytest.raises(ModelError, match="no training pictures"):
        build().fit([], None)
