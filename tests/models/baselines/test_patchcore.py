"""PatchCore: anomalib's preset gives anomalib's numbers; a square is found; the published figures are reached."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from models.base import ModelError
from models.features import RESNET18, backbone
from models.nn.neighbours import knn
from models.weights import WeightsError, WeightStore
from tests.models.baselines.common import authors_features, build, check_fit_predict_seed_and_state, pictures


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
    plain = backbone(RESNET18, ["layer2", "layer3"], WeightStore("none"), trained=True).net.state_dict()
    missing = theirs.feature_extractor.feature_extractor.load_state_dict(plain, strict=False)
    assert not missing.missing_keys
    theirs.memory_bank = detector.bank
    test = pictures(2, 3) + pictures(1, 3, spot=True)
    expected, found = theirs(detector.preprocess(test)), detector.predict(test)
    torch.testing.assert_close(found.anomaly_map, expected.anomaly_map[:, 0], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(found.score, expected.pred_score, rtol=1e-3, atol=1e-3)


def test_preset_authors_is_the_code_of_its_authors():
    """Embedding, coreset, squared distances, bilinear map, SciPy's Gaussian and score, each by their own formula."""
    from scipy.ndimage import gaussian_filter

    settings = {"size": "72", "crop": "64", "backbone": "resnet18.tv_in1k", "projection": "none", "coreset": "0.3"}
    detector = build("patchcore@authors", settings)
    assert detector.config.dimension == 1024 and detector.preprocess.aspect == "short"
    assert detector.preprocess.output == (64, 64)
    train, test = pictures(4), pictures(1, 3) + pictures(1, 3, spot=True)

    def rows(images):
        maps = authors_features(detector.net(detector.preprocess(images)), 3, 1024)
        return maps.permute(0, 2, 3, 1).flatten(0, 2).double()

    detector.fit(train, None)
    patches = rows(train)
    assert detector.bank.shape == (len(patches) * 3 // 10, 1024)
    distances = torch.cdist(patches, detector.bank.double())
    assert (distances.min(0).values < 1e-4).all()  # the bank is made of training patches
    # a greedy cover: what is not taken is nearer to the bank than the last one taken was to the others before it
    last = torch.cdist(detector.bank[-1:].double(), detector.bank[:-1].double()).min()
    assert distances.min(1).values.max() <= last + 1e-4

    squared = (rows(test)[:, None] - detector.bank.double()[None]).square().sum(2).min(1).values.view(2, 1, 8, 8)
    found = detector.predict(test)
    torch.testing.assert_close(found.score.double(), squared.flatten(1).max(1).values, rtol=1e-4, atol=1e-5)
    full = F.interpolate(squared, (64, 64), mode="bilinear", align_corners=False)[:, 0].numpy()
    expected = np.stack([gaussian_filter(m, sigma=4) for m in full])
    np.testing.assert_allclose(found.anomaly_map.numpy(), expected, rtol=1e-3, atol=1e-5)


def test_authors_begin_with_the_patch_farthest_on_average():
    detector = build("patchcore@authors", {"backbone": "resnet18.tv_in1k", "starts": "5"})
    points = torch.zeros(5, 4)
    points[3, 0] = 7.0  # all five are drawn; this one is the farthest from the others
    assert detector._start(points) == 3


def test_presets_without_authors_in_their_name_are_the_papers():
    """Sec. 3.1: 3x3 means per channel, 512 + 1024 channels; Eq. 6: Euclidean distance."""
    detector = build("patchcore@wrn50_10pct")
    assert detector.bank.shape[1] == 512 + 1024 and not detector.config.squared
    small = build("patchcore@demo", {"size": "64"})
    images = pictures(2)
    maps = list(small.net(small.preprocess(images)).values())
    means = []
    for m in maps:
        padded = F.pad(m, (1, 1, 1, 1))
        height, width = m.shape[-2:]
        means.append(sum(padded[..., i : i + height, j : j + width] for i in range(3) for j in range(3)) / 9)
    deeper = F.interpolate(means[1], (8, 8), mode="bilinear", align_corners=False)
    torch.testing.assert_close(small.feature_maps(images)[0], torch.cat([means[0], deeper], 1), atol=1e-5, rtol=1e-4)


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
