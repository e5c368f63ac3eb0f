"""RB-AE: shapes at the paper's size, each loss on a hand-made case, attention against a loop, training and resuming."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import get_args, get_type_hints

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models import registry
from models.base import Context, ModelError
from models.nn import training
from models.nn.attention import Fusion, ReferenceAttention, acts, repair
from models.nn.discrimination import normalise, pixel_discrimination, repair_loss, segmentation_loss
from models.nn.focal import focal_loss
from models.nn.perceptual import Perceptual
from models.nn.perlin import artificial_defects
from models.nn.textures import Textures
from models.nn.upconv import UpConv
from models.papers import rb_ae
from models.papers.rb_ae import RBAE, RBAEConfig
from models.weights import WeightStore

PAPERS = Path(__file__).parents[3].parent / "shared" / "papers"
TINY = RBAEConfig(
    size=32, widths=(4, 4, 6, 8, 8), patch_sizes=(1, 2), textures="embedded", epochs_phase1=2, epochs_phase2=2,
    train_batch=4, lr=1e-3, weight_per=0.0,
)


def pictures(count: int = 8, seed: int = 0) -> list[np.ndarray]:
    """Stripes with a little noise, uint8 [40, 36, 3]."""
    rng = np.random.default_rng(seed)
    stripes = 120 + 60 * np.sin(np.arange(36) * 0.9)[None, :, None]
    return [(stripes + rng.normal(0, 6, (40, 36, 3))).clip(0, 255).astype(np.uint8) for _ in range(count)]


def build(config: RBAEConfig = TINY, scratch: Path | None = None, seed: int = 0, **extras: object) -> RBAE:
    torch.manual_seed(seed)
    return RBAE(config, Context(torch.device("cpu"), seed, WeightStore("none"), scratch=scratch, extras=extras))


def meta(module: nn.Module) -> nn.Module:
    return module.to("meta")


def shapes(tensors: list[Tensor]) -> list[tuple[int, ...]]:
    return [tuple(t.shape[1:]) for t in tensors]


# --- shapes at 256 px


def test_shapes_of_the_paper_model() -> None:
    """Sections III-A, III-D and the sizes of the specification, on torch's meta device (nothing is computed)."""
    net = meta(build(rb_ae.PAPER).net).train()
    x = torch.empty(2, 3, 256, 256, device="meta")
    maps = net.encoder(x)
    assert shapes(maps) == [(64, 256, 256), (128, 128, 128), (256, 64, 64), (512, 32, 32), (512, 16, 16)]
    assert shapes([net.rbam[i](maps[2 + i], net.reference[i]) for i in range(3)]) == shapes(maps[2:])
    assert tuple(net.decoder(*maps[2:]).shape) == (2, 3, 256, 256)
    out = net(x)
    assert shapes(out.maps) == [(1, 256, 256), (1, 128, 128), (1, 64, 64)]
    assert shapes(out.features_rec) == shapes(maps[:3]) and shapes(out.repaired) == shapes(maps[2:])
    assert tuple(rb_ae.final_map(out, x, rb_ae.PAPER).shape) == (2, 256, 256)


def test_parameter_counts_of_the_docs() -> None:
    net = build(rb_ae.PAPER).net
    counts = {name: sum(p.numel() for p in module.parameters()) for name, module in net.named_children()}
    assert counts == {"encoder": 9_407_936, "decoder": 12_945_603, "rbam": 8_196_032, "fdm": 1_936_931}


def test_upconv_is_upsampling_and_convolution() -> None:
    x, conv = torch.randn(2, 5, 6, 7), UpConv(5, 4)
    expected = F.conv2d(F.interpolate(x, scale_factor=2, mode="nearest"), conv.weight, conv.bias, padding=1)
    np.testing.assert_allclose(conv(x).detach(), expected.detach(), atol=1e-5)


@pytest.mark.parametrize(
    "changes, message",
    [({"patch_sizes": (2, 3)}, "patch size 3 does not divide"), ({"size": 40}, "multiple of 16"),
     ({"widths": (4, 4, 4)}, "five numbers"), ({"patch_sizes": (2, 4), "size": 32}, "patch size 4 does not divide")],
)
def test_impossible_sizes_are_refused_at_construction(changes: dict, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        build(replace(TINY, **changes))


# --- attention


@pytest.mark.parametrize("similarity", ["cosine", "contextual"])
@pytest.mark.parametrize("size, scale", [(1, 1.0), (2, 1.0), (2, 10.0), (4, 1.0)])
def test_repair_equals_a_loop_over_patches(size: int, scale: float, similarity: str) -> None:
    """Eq. 3 to 5 written out: every patch against every reference patch; contextual: times the patch's own norm."""
    generator = torch.Generator().manual_seed(1)
    x, reference = torch.rand(2, 3, 8, 4, generator=generator), torch.rand(1, 3, 8, 4, generator=generator)
    expected = torch.zeros_like(x)
    corners = [(i, j) for i in range(0, 8, size) for j in range(0, 4, size)]
    for b in range(2):
        for i, j in corners:
            patch = x[b, :, i : i + size, j : j + size]
            total, weights = torch.zeros_like(patch), 0.0
            for k, l in corners:
                other = reference[0, :, k : k + size, l : l + size]
                alike = float((patch * other).sum() / other.norm())
                alike = alike / float(patch.norm()) if similarity == "cosine" else alike
                total += math.exp(scale * alike) * other
                weights += math.exp(scale * alike)
            expected[b, :, i : i + size, j : j + size] = total / weights
    np.testing.assert_allclose(repair(x, reference, size, similarity, scale), expected, atol=1e-5)


def test_the_repair_of_the_preset_chooses_and_the_printed_formula_does_not() -> None:
    """A texture of period 8 with a defect, features as after batch norm and ReLU: the defect becomes texture again.

    With plain cosines every patch becomes one mean; a scale of a hundredth of the preset's would do the same.
    """
    generator = torch.Generator().manual_seed(0)
    tile = torch.randn(1, 64, 8, 8, generator=generator).relu()
    reference = tile.repeat(1, 1, 2, 2)
    clean = tile.roll((4, 4), (2, 3)).repeat(1, 1, 2, 2)
    defective, mask = clean.clone(), torch.zeros(1, 1, 16, 16)
    defective[..., 4:7, 4:7] += torch.randn(1, 64, 3, 3, generator=generator).relu()
    mask[..., 4:7, 4:7] = 1
    preset = rb_ae.PAPER

    def act(similarity: str, scale: float) -> dict[str, dict[str, float]]:
        module = ReferenceAttention(64, 16, preset.patch_sizes, similarity, scale)
        return acts(module, clean, defective, mask, reference)

    chosen = act(preset.similarity, preset.similarity_scale)
    for size in (2, 4):
        found = chosen[f"patch{size}"]
        assert found["patches_used"] < 5 and found["variance_kept"] > 0.9, found  # the period repeats: 4 are alike
        assert found["error_inside"] < 0.1 < chosen["fusion"]["error_unrepaired"]
    for similarity, scale in (("cosine", 1.0), (preset.similarity, preset.similarity_scale / 100)):
        found = act(similarity, scale)["patch2"]
        assert found["patches_used"] > 0.5 * found["patches"] and found["variance_kept"] < 0.5, (similarity, found)


def test_the_training_record_says_what_the_repair_does() -> None:
    log = build().fit(pictures(), None)
    assert sorted(log["repair"]) == ["layer3", "layer4", "layer5"]
    for layer in log["repair"].values():
        assert 1 <= layer["patch1"]["patches_used"] <= layer["patch1"]["patches"] + 1e-3
        for where in ("inside", "outside"):
            shares = [layer["fusion"][f"{branch}_{where}"] for branch in ("patch1", "patch2", "unrepaired")]
            assert sum(shares) == pytest.approx(1, abs=1e-4)
        assert layer["fusion"]["spread"] > 0
    assert log["floor"] > 0 and log["error_over_floor"] == pytest.approx(log["error"] / log["floor"])
    json.dumps(log)


def test_fusion_weights_sum_to_one_and_mix_the_maps() -> None:
    fusion = Fusion(6)
    maps = [torch.randn(2, 6, 8, 8) for _ in range(3)]
    weights = fusion.weights(maps)
    assert weights.shape == (3, 2, 6, 8, 8) and weights.std() > 0
    np.testing.assert_allclose(weights.sum(0).detach(), np.ones((2, 6, 8, 8)), atol=1e-6)
    expected = sum(weights[i] * maps[i] for i in range(3))
    np.testing.assert_allclose(fusion(maps).detach(), expected.detach(), atol=1e-6)


# --- losses


def test_normalisation_and_its_settings() -> None:
    x = torch.tensor([[[0.0, 2.0], [4.0, 8.0]], [[1.0, 1.0], [1.0, 3.0]]])
    np.testing.assert_allclose(normalise(x)[0], [[0, 0.25], [0.5, 1]], atol=1e-6)
    np.testing.assert_allclose(normalise(x)[1], [[0, 0], [0, 1]], atol=1e-6)
    np.testing.assert_allclose(normalise(x, "batch"), x / 8, atol=1e-6)
    np.testing.assert_allclose(normalise(x, "sigmoid"), torch.tanh(x / 2), atol=1e-6)
    y = x.clone().requires_grad_()
    normalise(y)[0, 0, 1].backward()  # (2 - 0) / (8 - 0): the extremes count
    np.testing.assert_allclose(y.grad[0], [[(2 - 8) / 64, 1 / 8], [0, -2 / 64]], atol=1e-6)


def test_pixel_discrimination_is_zero_when_the_residual_is_the_mask() -> None:
    mask = torch.zeros(1, 1, 4, 4)
    mask[0, 0, :2, :2] = 1
    clean = [torch.zeros(1, 3, 4, 4), torch.zeros(1, 5, 2, 2)]
    same = [7 * mask.expand(1, 3, 4, 4), 0.5 * F.avg_pool2d(mask, 2).expand(1, 5, 2, 2)]
    assert pixel_discrimination(clean, same, mask) < 1e-10
    blind = [torch.zeros(1, 3, 4, 4), same[1]]
    assert pixel_discrimination(clean, blind, mask) == pytest.approx(0.25 / 2)  # 4 of 16 pixels, 1 of 2 layers


def test_repair_loss_has_the_printed_factor() -> None:
    zero, one = [torch.zeros(1, 2, n, n) for n in (4, 2, 1)], [torch.ones(1, 2, n, n) for n in (4, 2, 1)]
    assert repair_loss(one, zero) == pytest.approx(3 / 2)
    assert repair_loss(one, zero, "mean") == pytest.approx(1.0)


def test_focal_loss_by_hand() -> None:
    p, t = torch.tensor([0.9, 0.9, 0.2]), torch.tensor([1.0, 0.0, 0.5])
    def term(q: float) -> float:
        return -((1 - q) ** 2) * math.log(q)
    expected = (term(0.9) + term(0.1) + 0.5 * term(0.2) + 0.5 * term(0.8)) / 3
    assert focal_loss(p, t) == pytest.approx(expected, rel=1e-5)
    assert focal_loss(p[:1], t[:1], gamma=0.0, alpha=0.25) == pytest.approx(-0.25 * math.log(0.9), rel=1e-5)
    assert math.isfinite(focal_loss(torch.tensor([0.0, 1.0]), torch.tensor([1.0, 0.0])))
    maps = [torch.full((1, 1, 4, 4), 0.9), torch.full((1, 1, 2, 2), 0.2)]
    loss = segmentation_loss(maps, torch.ones(1, 1, 4, 4))
    assert loss == pytest.approx((term(0.9) + term(0.2)) / 2, rel=1e-5)


def test_perceptual_loss_is_the_mean_distance_of_the_maps() -> None:
    class Two(nn.Module):
        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"a": x, "b": 2 * F.avg_pool2d(x, 2)}

    clean, rebuilt = torch.zeros(1, 3, 4, 4), torch.full((1, 3, 4, 4), 0.5)
    per_channel = np.mean([0.5 / s for s in (0.229, 0.224, 0.225)])
    assert Perceptual(Two())(clean, rebuilt) == pytest.approx((per_channel + 2 * per_channel) / 2, rel=1e-5)


def test_vgg_layers_are_relus() -> None:
    from models.features import architecture

    with torch.device("meta"):
        vgg = dict(architecture("vgg16.tv_in1k").named_modules())
    assert set(rb_ae.VGG_LAYERS) == set(get_args(get_type_hints(RBAEConfig)["vgg_layers"]))
    for names in rb_ae.VGG_LAYERS.values():
        assert len(names) == 5 and all(isinstance(vgg[name], nn.ReLU) for name in names)
    relus = [name for name, module in vgg.items() if isinstance(module, nn.ReLU) and name.startswith("features")]
    assert rb_ae.VGG_LAYERS["first5"] == tuple(relus[:5])
    firsts = [name for name in relus if isinstance(vgg[f"features.{max(0, int(name[9:]) - 2)}"], nn.MaxPool2d)]
    assert rb_ae.VGG_LAYERS["first_of_block"] == (relus[0], *firsts)


def test_final_map_of_every_variant() -> None:
    x = torch.rand(1, 3, 16, 16)
    rebuilt = x.clone()
    rebuilt[:, :, :4, :4] += 0.3
    features = [torch.zeros(1, 2, 16 >> i, 16 >> i) for i in range(3)]
    again = [f + i for i, f in enumerate(features)]
    out = rb_ae.Output(features, [], rebuilt, again, [torch.full((1, 1, 16 >> i, 16 >> i), i + 1.0) for i in range(3)])
    np.testing.assert_allclose(rb_ae.final_map(out, x, rb_ae.PAPER), np.full((1, 16, 16), 2.4), atol=1e-5)
    gap = rb_ae.final_map(out, x, replace(rb_ae.PAPER, segmentation="pixel_gap"))
    assert gap[0, 0, 0] == pytest.approx(0.09, abs=1e-5) and gap[0, 8, 8] == 0
    msfr = rb_ae.final_map(out, x, replace(rb_ae.PAPER, segmentation="msfr"))
    np.testing.assert_allclose(msfr, np.full((1, 16, 16), 0 + 1 + 4), atol=1e-5)
    ssim = rb_ae.final_map(out, x, replace(rb_ae.PAPER, segmentation="ssim"))
    assert ssim.shape == (1, 16, 16) and ssim[0, 0, 0] > 5e-3 and abs(ssim[0, 15, 15]) < 1e-4


# --- presets


def test_presets_are_the_rows_of_table_v() -> None:
    flags = {p: (c.rbam, bool(c.weight_pixel), c.segmentation)
             for p in "abcdef" for c in [registry.config(f"rb_ae@{p}")]}
    assert flags == {
        "a": (True, True, "msfdm"), "b": (False, True, "msfdm"), "c": (True, False, "msfdm"),
        "d": (True, True, "pixel_gap"), "e": (True, True, "msfr"), "f": (True, True, "ssim"),
    }
    assert registry.parse("rb_ae") == ("rb_ae", "paper") and registry.config("rb_ae@quick").shortened
    if not (path := PAPERS / "ablations.json").is_file():
        return
    names = {"MSFDM": "msfdm", "PixelGap": "pixel_gap", "MSFR": "msfr", "SSIM": "ssim"}
    for row in json.loads(path.read_text()):
        if row["paper"] == "rb_ae":
            found = row["flags"]
            kind = [name for flag, name in names.items() if found[flag]]
            assert flags[row["variant"].lower()] == (found["RBAM"], found["L_pixel_dis"], *kind)


# --- training


@torch.no_grad()
def discrimination(detector: RBAE) -> float:
    """Eq. 2 on fixed defects, so that two states of a network can be compared."""
    detector.net.eval()
    clean = detector.preprocess(pictures(8, 9))
    generator = torch.Generator().manual_seed(4)
    defective, mask = artificial_defects(clean, torch.rand(8, 3, 32, 32, generator=generator), generator)
    return float(pixel_discrimination(detector.net.encoder(clean), detector.net.encoder(defective), mask))


def test_training_lowers_the_losses_and_repeats_exactly(tmp_path: Path) -> None:
    config = replace(TINY, epochs_phase1=8, epochs_phase2=8, lr=3e-3)
    first, second = build(config), build(config)
    steps: list[tuple[int, int]] = []
    log = first.fit(pictures(), None, lambda done, total, /, **values: steps.append((done, total)))
    second.fit(pictures(), None)
    assert steps == [(i + 1, 32) for i in range(32)]
    for phase, term in (("phase1", "rec"), ("phase2", "rec"), ("phase2", "seg")):
        values = log[phase][term]
        assert len(values) == 8 and np.mean(values[-3:]) < 0.9 * np.mean(values[:3]), (phase, term, values)
    assert log["textures"]["source"] == "embedded" and log["reference"] == 0
    one, two = first.predict(pictures(3, 1)), second.predict(pictures(3, 1))
    assert torch.equal(one.anomaly_map, two.anomaly_map) and one.anomaly_map.shape == (3, 32, 32)
    assert torch.equal(one.score, one.anomaly_map.flatten(1).amax(1))


def test_the_pixel_loss_teaches_the_encoder_to_tell_defects() -> None:
    config = replace(TINY, widths=(8,) * 5, epochs_phase1=20, epochs_phase2=0, lr=1e-2, weight_rec=0.5)
    with_loss, without = build(config), build(replace(config, weight_pixel=0.0))
    values = with_loss.fit(pictures(), None)["phase1"]["pixel"]
    without.fit(pictures(), None)
    assert np.mean(values[-5:]) < 0.9 * np.mean(values[:5])
    assert discrimination(with_loss) < 0.93 * discrimination(without)


def test_the_pixel_loss_leaves_texture_in_the_deepest_layers() -> None:
    """The encoder still tells normal pictures apart there, and defects from texture."""
    detector = build(replace(TINY, widths=(8,) * 5, epochs_phase1=30, epochs_phase2=0, lr=1e-2))
    detector.fit(pictures(), None)
    repair = detector._probe(detector._pictures(pictures()), Textures("embedded", (32, 32)))
    for layer in ("layer4", "layer5"):
        # with extremes that are constants: at most 8e-8 and 1e-4 in layer 4, 4e-11 and 3e-9 in layer 5
        assert repair[layer]["features"]["variance_over_pictures"] > 1e-6, repair
        assert repair[layer]["fusion"]["error_unrepaired"] > 2e-4, repair


class Killed(BaseException):
    pass


@pytest.mark.parametrize(
    "at, every_epoch, expected, resumed_phase",  # phase 1 has steps 1 to 4, phase 2 5 to 8; 7 is in the second epoch
    [(3, True, [3, 4, 5, 6, 7, 8], "phase1"), (7, True, [7, 8], "phase2"), (7, False, [5, 6, 7, 8], None)],
)
def test_a_killed_training_continues_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int, every_epoch: bool, expected: list[int],
    resumed_phase: str | None,
) -> None:
    """Also where no epoch's checkpoint was due: the end of phase 1 is always kept."""
    monkeypatch.setattr(training.Checkpoint, "due", lambda self: self.path is not None and every_epoch)
    undisturbed = build(scratch=tmp_path / "a")
    undisturbed.fit(pictures(), None)

    def kill(done: int, total: int, /, **values: float) -> None:
        if done == at:
            raise Killed

    with pytest.raises(Killed):
        build(scratch=tmp_path / "b").fit(pictures(), None, kill)
    steps: list[int] = []
    resumed = build(scratch=tmp_path / "b")
    log = resumed.fit(pictures(), None, lambda done, total, /, **values: steps.append(done))
    assert steps == expected
    assert resumed_phase is None or log[resumed_phase]["resumed_after_epoch"] == [1]
    for name, tensor in undisturbed.net.state_dict().items():
        assert torch.equal(tensor, resumed.net.state_dict()[name]), name
    probe = pictures(2, 5)
    assert torch.equal(undisturbed.predict(probe).anomaly_map, resumed.predict(probe).anomaly_map)


def test_phase_2_leaves_the_encoder_alone_statistics_included() -> None:
    one, two = build(replace(TINY, epochs_phase2=0)), build(TINY)
    one.fit(pictures(), None)
    two.fit(pictures(), None)
    for name, tensor in one.net.encoder.state_dict().items():
        assert torch.equal(tensor, two.net.encoder.state_dict()[name]), name
    before, after = one.net.decoder.state_dict(), two.net.decoder.state_dict()
    assert any(not torch.equal(before[name], after[name]) for name in before)


def test_the_variants_train_what_they_should() -> None:
    log = build(replace(TINY, rbam=False)).fit(pictures(), None)
    assert "repair" not in log["phase2"] and "pixel" in log["phase1"]
    log = build(replace(TINY, weight_pixel=0.0, p_defect=0.5)).fit(pictures(), None)
    assert "pixel" not in log["phase1"] and "repair" in log["phase2"]


def test_the_maps_of_table_v_share_one_training() -> None:
    members: dict = {}
    full = build(members=members)
    full.fit(pictures(), None)
    gap = build(replace(TINY, segmentation="pixel_gap"), seed=0, members=members)
    log = gap.fit(pictures(), None)
    assert "shared" in log and len(members) == 1
    own = build(replace(TINY, segmentation="pixel_gap"))
    own.fit(pictures(), None)
    probe = pictures(2, 5)
    assert torch.equal(gap.predict(probe).anomaly_map, own.predict(probe).anomaly_map)
    assert not torch.equal(gap.predict(probe).anomaly_map, full.predict(probe).anomaly_map)
    assert "shared" not in build(replace(TINY, rbam=False), members=members).fit(pictures(), None)


def test_the_perceptual_network_is_recorded_also_where_training_is_shared() -> None:
    members: dict = {}
    config = replace(TINY, weight_per=1.0, epochs_phase1=1, epochs_phase2=1)
    for _ in range(2):
        detector = build(config, members=members)
        log = detector.fit(pictures(4), None)
        assert detector.context.weights.used == {rb_ae.VGG: "untrained"} and len(log["phase1"]["per"]) == 1


@pytest.mark.parametrize("reference", ["seed", "medoid"])
def test_other_choices_of_the_reference(reference: str) -> None:
    detector = build(replace(TINY, reference=reference))
    log = detector.fit(pictures(), None)
    assert 0 <= log["reference"] < 8
    maps = detector.net.encoder(detector.preprocess([pictures()[log["reference"]]]))
    for held, found in zip(detector.net.reference, maps[2:], strict=True):
        np.testing.assert_allclose(held, found.detach(), atol=1e-5)


def test_the_score_as_the_spread_of_the_map() -> None:
    detector = build(replace(TINY, score="std", epochs_phase1=0, epochs_phase2=0))
    detector.fit(pictures(), None)
    prediction = detector.predict(pictures(2, 3))
    assert prediction.score.tolist() == pytest.approx([float(np.std(m.numpy())) for m in prediction.anomaly_map])


def test_score_of_the_top_pixels_and_smoothing() -> None:
    detector = build(replace(TINY, score="top", smoothing=1.0))
    detector.fit(pictures(), None)
    prediction = detector.predict(pictures(2, 3))
    assert prediction.score[0] == pytest.approx(float(prediction.anomaly_map[0].max()))  # 0.1 % of 1024 is one pixel
    plain = build(TINY)
    plain.load_state_dict(detector.state_dict())
    assert plain.predict(pictures(2, 3)).anomaly_map.std() > prediction.anomaly_map.std()


def test_errors_before_and_in_training() -> None:
    with pytest.raises(ModelError, match=r"no natural pictures.*embedded"):
        build(replace(TINY, textures=None)).fit(pictures(), None)
    with pytest.raises(ModelError, match="no reference picture 8 among 8"):
        build(replace(TINY, reference_index=8)).fit(pictures(), None)
    with pytest.raises(ModelError, match="no reference picture 0 among 0"):
        build().fit([], None)
    with pytest.raises(ModelError, match="epoch 1"):
        build(replace(TINY, lr=1e25)).fit(pictures(), None)


def test_a_folder_from_the_harness_is_used_when_the_config_has_none(tmp_path: Path) -> None:
    from PIL import Image

    for name, picture in zip("ab", pictures(2), strict=True):
        Image.fromarray(picture).save(tmp_path / f"{name}.png")
    log = build(replace(TINY, textures=None), textures=str(tmp_path)).fit(pictures(), None)
    assert log["textures"]["source"] == tmp_path.name and log["textures"]["pictures"] == 2
