"""PatchCore: anomalib's preset gives anomalib's numbers; a square is found; the published figures are reached."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from models.base import ModelError
from models.nn.neighbours import knn
from models.weights import WeightsError
from tests.models.baselines.common import build, check_fit_predict_seed_and_state, pictures


@pytest.mark.parametrize(("spec", "settings"), [
    pytest.param("patchcore@demo", {"size": "64"}, marks=pytest.mark.slow),
    ("patchcore@anomalib", {"size": "64", "backbone": "resnet18.tv_in1k"}),
])
def test_fit_predict_seed_and_state(spec, settings):
    check_fit_predict_seed_and_state(spec, settings)


def test_feature_maps():
    detector = build("patchcore@demo", {"size": "64"})
    detector.fit(pictures(5), None)
    assert [tuple(m.shape) for m in detector.feature_maps(pictures(2))] == [(2, 384, 8, 8)]


def test_missing_weights_are_an_error(tmp_path):
    with pytest.raises(WeightsError, match=r"resnet18\.tv_in1k"):
        build("patchcore@demo", {"size": "64"}, weights=str(tmp_path))


def test_coreset_of_nothing_is_refused():
    with pytest.raises(ModelError, match="coreset"):
        build("patchcore@demo", {"coreset": "0"})


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
