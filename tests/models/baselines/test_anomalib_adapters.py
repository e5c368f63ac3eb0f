"""anomalib's methods behind our interface: same numbers as anomalib's own modules, seeded, and saved whole."""

from __future__ import annotations

import copy
import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from models import registry
from models.base import Context, ModelError
from models.nn.neighbours import knn
from models.nn.smooth import gaussian_smooth
from models.weights import WeightsError, WeightStore

CPU = torch.device("cpu")
SHORT = {"epochs": "2", "train_batch": "3", "size": "64"}
QUICK = {
    "patchcore@demo": {"size": "64"}, "patchcore@anomalib": {"size": "64", "backbone": "resnet18.tv_in1k"},
    "padim@demo": {"size": "64"}, "stfpm@demo": SHORT, "reverse_distillation@quick": SHORT, "fastflow@quick": SHORT,
    "ganomaly@quick": SHORT, "supersimplenet@quick": {**SHORT, "size": "128"},
}
HEAVY = {
    "draem@quick": {"epochs": "1", "train_batch": "3", "size": "64"},
    "csflow@quick": {"epochs": "1", "hidden": "4", "blocks": "2"},
    "efficientad@quick": {"steps": "2"},
}
# the demo presets run through `test_all_methods` as well; here only what costs little runs every time
ALL = [pytest.param(spec, settings, id=spec, marks=() if spec == "patchcore@anomalib" else pytest.mark.slow)
       for spec, settings in {**QUICK, **HEAVY}.items()]


def pictures(count, seed=0, spot=False):
    """Smooth pictures of one kind, of different sizes; with a white square in [20:40, 20:40] of the last ones."""
    rng = np.random.default_rng(seed)
    found = []
    for i in range(count):
        picture = np.linspace(60, 160, 60 + i % 2)[None, :, None] + rng.normal(0, 5, (64, 60 + i % 2, 3))
        if spot:
            picture[20:40, 20:40] = 255
        found.append(picture.clip(0, 255).astype(np.uint8))
    return found


def build(spec, settings, seed=0, weights="none", scratch=None):
    torch.manual_seed(seed)
    context = Context(CPU, seed, weights if isinstance(weights, WeightStore) else WeightStore(weights), scratch)
    return registry.method_class(registry.parse(spec)[0])(registry.config(spec, settings), context)


def equal(a, b):
    return all(x is y or torch.equal(x, y) for x, y in
               ((a.anomaly_map, b.anomaly_map), (a.score, b.score)))


@pytest.mark.parametrize(("spec", "settings"), ALL)
def test_fit_predict_seed_and_state(spec, settings):
    train, test = pictures(6), pictures(3, 9)
    seen = []
    first = build(spec, settings)
    log = first.fit(train, None, lambda done, total, **values: seen.append((done, total)))
    result = first.predict(test)
    for values, shape in ((result.anomaly_map, (3, *first.preprocess.output)), (result.score, (3,))):
        if values is not None:
            assert values.shape == shape and values.dtype == torch.float32 and torch.isfinite(values).all()
    assert (result.anomaly_map is not None) == first.has_map
    assert seen and seen[-1][0] == seen[-1][1] and all(a <= b for a, b in seen)
    if log and "loss" in log:
        assert len(log["loss"]) == log["epochs"]

    again = build(spec, settings)
    again.fit(train, None)
    assert equal(again.predict(test), result)

    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    restored = build(spec, settings, seed=5)
    restored.load_state_dict(torch.load(file, weights_only=True))
    assert equal(restored.predict(test), result)


@pytest.mark.parametrize(("spec", "shapes"), [
    ("patchcore@demo", [(384, 8, 8)]), ("reverse_distillation@quick", [(64, 16, 16), (128, 8, 8), (256, 4, 4)]),
])
def test_feature_maps(spec, shapes):
    detector = build(spec, QUICK[spec])
    detector.fit(pictures(5), None)
    assert [tuple(m.shape) for m in detector.feature_maps(pictures(2))] == [(2, *shape) for shape in shapes]


def test_module_imports_without_anomalib():
    code = "import sys, models.baselines.draem as a, models.baselines.patchcore; sys.exit('anomalib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[3], check=False).returncode == 0


def test_presets_pin_weights_and_mark_short_schedules():
    for name in ("patchcore", "padim", "stfpm", "draem", "reverse_distillation", "csflow", "fastflow", "ganomaly",
                 "efficientad", "supersimplenet"):
        presets = registry.entries()[name].presets
        configs = {preset: registry.config(f"{name}@{preset}") for preset in presets}
        small = next(configs[p] for p in ("demo", "quick") if p in configs)
        assert not configs[presets[0]].shortened and small.shortened
        assert all("." in config.backbone for config in configs.values() if hasattr(config, "backbone"))


@pytest.mark.parametrize("spec", ["patchcore@demo", "padim@demo", "supersimplenet@quick"])
def test_missing_weights_are_an_error(spec, tmp_path):
    with pytest.raises(WeightsError, match=r"resnet18\.tv_in1k"):
        build(spec, QUICK[spec], weights=str(tmp_path))


def test_efficientad_asks_for_its_teacher_and_its_pictures(tmp_path):
    with pytest.raises(WeightsError, match=r"pretrained_teacher_small\.pth"):
        build("efficientad@quick", {}, weights=str(tmp_path))
    with pytest.raises(ModelError, match="natural pictures"):
        build("efficientad@small", {}).fit(pictures(3), None)


def test_loss_that_is_not_finite_names_the_epoch():
    with pytest.raises(ModelError, match="epoch 1"):
        build("stfpm@demo", {**SHORT, "lr": "nan"}).fit(pictures(4), None)


@pytest.mark.parametrize(("spec", "settings", "said"), [
    ("csflow@quick", {"size": "200"}, "multiple of 128"), ("ganomaly@quick", {"size": "48"}, "power of two"),
    ("efficientad@quick", {"size": "128"}, "at least 256"), ("supersimplenet@quick", {"size": "64"}, "at least 128"),
    ("padim@demo", {"dimensions": "9999"}, "dimensions"), ("patchcore@demo", {"coreset": "0"}, "coreset"),
])
def test_settings_that_cannot_work(spec, settings, said):
    with pytest.raises(ModelError, match=said):
        build(spec, settings)


def test_patchcore_finds_a_square_and_scores_its_largest_patch():
    detector = build("patchcore@demo", {"size": "64", "sigma": "0"})
    detector.fit(pictures(6), None)
    good, bad = detector.predict(pictures(3, 4)), detector.predict(pictures(3, 4, spot=True))
    assert bad.score.min() > 1.5 * good.score.max()
    for place in bad.anomaly_map.flatten(1).argmax(1):
        assert 14 <= place // 64 <= 46 and 14 <= place % 64 <= 46
    rows = detector.feature_maps(pictures(3, 4))[0].permute(0, 2, 3, 1).flatten(1, 2)
    assert torch.equal(good.score, torch.stack([knn(picture, detector.bank)[0].max() for picture in rows]))


def test_patchcore_preset_anomalib_gives_anomalibs_numbers():
    from anomalib.models.image.patchcore.torch_model import PatchcoreModel

    detector = build("patchcore@anomalib", {"size": "128", "backbone": "resnet18.tv_in1k"})
    detector.fit(pictures(4), None)
    theirs = PatchcoreModel(["layer2", "layer3"], "resnet18", pre_trained=False, num_neighbors=9).eval()
    missing = theirs.feature_extractor.feature_extractor.load_state_dict(detector.net.net.state_dict(), strict=False)
    assert not missing.missing_keys
    theirs.memory_bank = detector.bank
    test = pictures(2, 3) + pictures(1, 3, spot=True)
    expected, found = theirs(detector.preprocess(test)), detector.predict(test)
    torch.testing.assert_close(found.anomaly_map, expected.anomaly_map[:, 0], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(found.score, expected.pred_score, rtol=1e-3, atol=1e-3)


def test_padim_gives_anomalibs_map():
    from anomalib.models.image.padim.anomaly_map import AnomalyMapGenerator

    detector = build("padim@demo", {"size": "128"})
    detector.fit(pictures(8), None)
    test = pictures(2, 3)
    embedding = next(iter(detector._embeddings(test)))
    expected = AnomalyMapGenerator().compute_anomaly_map(embedding, detector.mean, detector.inverse, (128, 128))
    torch.testing.assert_close(detector.predict(test).anomaly_map, expected[:, 0], rtol=1e-4, atol=1e-4)


def test_smoothing_equals_scipy():
    from scipy.ndimage import gaussian_filter

    maps = torch.rand(2, 70, 90)
    expected = np.stack([gaussian_filter(m.double().numpy(), 4.0, mode="mirror") for m in maps])
    np.testing.assert_allclose(gaussian_smooth(maps, 4.0).numpy(), expected, atol=1e-5)
    assert gaussian_smooth(torch.rand(1, 6, 9), 4.0).shape == (1, 6, 9)


def test_stfpm_learns():
    log = build("stfpm@demo", {**SHORT, "epochs": "6"}).fit(pictures(6), None)
    assert log["loss"][-1] < 0.8 * log["loss"][0]


def test_ganomaly_steps_both_players_as_one_after_the_other():
    """One joint step equals anomalib's two: the generator's loss leaves no gradient in the discriminator."""
    from anomalib.models.image.ganomaly.loss import DiscriminatorLoss, GeneratorLoss

    detector = build("ganomaly@quick", {**SHORT, "epochs": "1", "train_batch": "4"})
    generate, judge = (copy.deepcopy(detector.trained[k]).train() for k in ("generator", "discriminator"))
    detector.fit(pictures(4), None)
    real = detector.preprocess(pictures(4)) * 2 - 1
    optimizers = [torch.optim.Adam(m.parameters(), 2e-4, (0.5, 0.999)) for m in (generate, judge)]
    fake, code, code_of_fake = generate(real)
    says_real, _ = judge(real)
    loss = GeneratorLoss(1, 50, 1)(code, code_of_fake, real, fake, says_real, judge(fake)[0])
    loss.backward(retain_graph=True)
    optimizers[0].step()
    optimizers[1].zero_grad()
    DiscriminatorLoss()(says_real, judge(fake.detach())[0]).backward()
    optimizers[1].step()
    for mine, theirs in ((detector.trained["generator"], generate), (detector.trained["discriminator"], judge)):
        for (name, a), b in zip(mine.named_parameters(), theirs.parameters(), strict=True):
            # Adam's first step is lr * sign(gradient): a gradient of rounding size may turn either way
            agree = torch.isclose(a, b, atol=1e-6).float().mean()
            assert agree > 0.97, name


@pytest.mark.slow
def test_draem_scores_the_largest_mean_and_gives_its_last_map():
    detector = build("draem@quick", HEAVY["draem@quick"])
    detector.fit(pictures(3), None)
    result = detector.predict(pictures(2))
    means = F.avg_pool2d(result.anomaly_map.unsqueeze(1), 21, 1, 10).amax((1, 2, 3))
    assert torch.equal(result.score, means)
    assert [tuple(m.shape) for m in detector.feature_maps(pictures(2))] == [(2, 64, 64, 64)]


def test_any_other_model_of_anomalib(tmp_path):
    detector = build("anomalib/padim", {"size": "64", "train_batch": "4"}, scratch=tmp_path)
    assert detector.name == "anomalib/padim" and "untrained" in detector.context.weights.used.values()
    detector.fit(pictures(6), None)
    result = detector.predict(pictures(2))
    assert result.anomaly_map.shape == (2, 64, 64) and result.score.shape == (2,)
    other = build("anomalib/padim", {"size": "64"}, seed=4)
    other.load_state_dict(detector.state_dict())
    torch.testing.assert_close(other.predict(pictures(2)).anomaly_map, result.anomaly_map)


def test_unknown_model_of_anomalib_suggests_near_ones():
    with pytest.raises(ModelError, match="did you mean 'padim'"):
        registry.method_class("anomalib/paddim")


def test_models_that_need_no_training_pictures_are_refused():
    with pytest.raises(ModelError, match="not from normal pictures alone"):
        from models.baselines.anomalib_generic import detector_class

        cls = detector_class("padim")
        shot = type("Shot", (cls.model,), {"learning_type": property(lambda self: _zero_shot())})
        type("Other", (cls,), {"model": shot})(cls.Config(size=64), Context(CPU, 0, WeightStore("none")))


def _zero_shot():
    from anomalib import LearningType

    return LearningType.ZERO_SHOT


@pytest.mark.real
@pytest.mark.slow
def test_patchcore_on_real_bottle_reaches_the_published_figures(real):
    """anomalib publishes 100.0 image and 98.1 pixel AUROC for ResNet-18."""
    from PIL import Image
    from sklearn.metrics import roc_auc_score

    def load(path):
        return np.asarray(Image.open(path).convert("RGB"))

    root = real / "mvtec_ad" / "bottle"
    detector = build("patchcore@resnet18", {}, weights=str(real / "weights"))
    detector.fit([load(path) for path in sorted(root.glob("train/good/*.png"))], None)
    scores, labels, maps, masks = [], [], [], []
    for path in sorted(root.glob("test/*/*.png")):
        picture, kind = load(path), path.parent.name
        result = detector.predict([picture])
        scores.append(float(result.score))
        labels.append(kind != "good")
        maps.append(detector.preprocess.restore(result.anomaly_map, [picture.shape[:2]])[0].numpy().ravel())
        mask = root / "ground_truth" / kind / f"{path.stem}_mask.png"
        masks.append((np.asarray(Image.open(mask)) > 0).ravel() if mask.exists() else np.zeros(maps[-1].shape, bool))
    assert roc_auc_score(labels, scores) > 0.993
    assert roc_auc_score(np.concatenate(masks), np.concatenate(maps)) == pytest.approx(0.981, abs=0.007)
