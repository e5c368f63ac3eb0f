"""AnomalyDINO held against the formulas of the authors' code: tokens, rotations, masks, distances, score and map."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.ndimage import gaussian_filter

from models.base import Context, ModelError
from models.baselines.anomalydino import AnomalyDino, AnomalyDinoConfig, foreground, rotated
from models.vit import VitTokens, resized_positions
from models.weights import WeightsError, WeightStore
from tests.models.baselines.common import CPU, build, pictures

TAG = "vit_small_patch14_dinov2.lvd142m"
SMALL = {"size": "42", "shots": "none"}


def made(seed=0, **settings):
    extras = {"dataset": settings.pop("dataset", "mvtec_ad"), "category": settings.pop("category", "bottle")}
    config = AnomalyDinoConfig(**{"size": 42, **settings})
    return AnomalyDino(config, Context(CPU, seed, WeightStore("none"), extras=extras))


def test_position_embeddings_are_dinov2s_and_not_antialiased():
    place = torch.randn(1, 37 * 37, 8)
    assert resized_positions(place, (37, 37)) is place
    maps = place.reshape(1, 37, 37, 8).permute(0, 3, 1, 2)
    found = resized_positions(place, (32, 64))
    assert found.shape == (1, 32 * 64, 8)
    expected = F.interpolate(maps, scale_factor=(32.1 / 37, 64.1 / 37), mode="bicubic")
    torch.testing.assert_close(found, expected.permute(0, 2, 3, 1).reshape(1, -1, 8))
    smoothed = F.interpolate(maps, (32, 64), mode="bicubic", antialias=True).permute(0, 2, 3, 1).reshape(1, -1, 8)
    assert (found - smoothed).abs().max() > 0.1


@pytest.mark.parametrize("tag", [TAG, "vit_small_patch14_reg4_dinov2.lvd142m"])
def test_tokens_equal_timms_own_where_nothing_is_resized(tag):
    """At the 518 pixels of training both read the position embeddings as they are: every block must agree."""
    net = VitTokens(tag, [3, -1], WeightStore("none"), norm=True)
    for block in net.net.blocks:  # untrained they start at 1e-5, and no block would act
        torch.nn.init.ones_(block.ls1.gamma)
        torch.nn.init.ones_(block.ls2.gamma)
    x = torch.randn(1, 3, 518, 518)
    with torch.no_grad():
        expected = net.net.forward_features(x)
    fourth, last = net(x)
    torch.testing.assert_close(last, expected, atol=1e-4, rtol=1e-4)
    assert last.shape == (1, net.prefix + 37 * 37, 384) and (fourth - last).abs().max() > 0.1


def test_weights_come_from_the_store_by_tag(tmp_path):
    net = VitTokens(TAG, [-1], WeightStore("none"))
    state = {k: v + 1 for k, v in net.net.state_dict().items()}
    torch.save(state, tmp_path / f"{TAG}.pth")
    store = WeightStore(tmp_path)
    assert torch.equal(VitTokens(TAG, [-1], store).net.cls_token, state["cls_token"])
    assert store.used[TAG]["file"] == f"{TAG}.pth"
    del state["blocks.5.attn.qkv.weight"]
    torch.save(state, tmp_path / f"{TAG}.pth")
    with pytest.raises(WeightsError, match=r"first 'blocks\.5\.attn\.qkv\.weight'"):
        VitTokens(TAG, [-1], WeightStore(tmp_path))
    with pytest.raises(ModelError, match="no DINOv2 transformer"):
        VitTokens("resnet18.tv_in1k", [-1], WeightStore("none"))
    with pytest.raises(ModelError, match="blocks 0 to 11"):
        VitTokens(TAG, [12], WeightStore("none"))


def test_rotation_keeps_the_frame_and_mirrors_borders():
    image = np.zeros((21, 31, 3), np.uint8)
    image[5, 10] = 200
    quarter = rotated(image, 90)
    assert quarter.shape == image.shape and quarter.dtype == np.uint8
    # about (W/2, H/2) = (15.5, 10.5): the point 5.5 left and above of it goes to 5.5 left and below, or right and above
    spots = set(map(tuple, np.argwhere(quarter[..., 0] > 100)))
    assert spots & {(16, 10), (5, 21)}  # and, mirrored, once more at the border
    bright = np.full((21, 31, 3), 90, np.uint8)
    assert (rotated(bright, 45) == 90).all()  # nothing black comes in from outside


def test_foreground_is_the_first_component_with_its_sign_and_closed_holes():
    rng = np.random.default_rng(0)
    grid, direction = (10, 12), rng.normal(size=16)
    inside = np.zeros(grid, bool)
    inside[3:7, 3:9] = True
    inside[4, 5] = False  # a hole, to be closed
    patches = np.where(inside.reshape(-1, 1), 40, 0) * direction / np.linalg.norm(direction)
    patches = patches + rng.normal(0, 0.1, (120, 16))
    found = foreground(patches, grid, 0).reshape(grid)
    assert found[3:7, 3:9].all() and found[2:8, 2:10].all()  # closed, and one patch wider by the dilation
    assert not found[:1].any() and not found[9:].any() and found.sum() == 6 * 8
    assert (foreground(-patches, grid, 0).reshape(grid) == found).all()


def test_distance_score_and_map_of_a_hand_made_bank():
    detector = made(size=140, rotate=False)
    (train,) = pictures(1, seed=1)
    train = np.tile(train, (3, 3, 1))
    detector.fit([train], None)
    patches, grid = detector._patches([train])
    assert grid == (140 // 14, int(140 * train.shape[1] / train.shape[0]) // 14) or grid[1] == 140 // 14
    torch.testing.assert_close(detector.bank, F.normalize(patches[0], dim=1))
    same = detector.predict([train])
    assert same.anomaly_map.abs().max() < 1e-5 and same.anomaly_map.shape == (1, *train.shape[:2])
    test = train.copy()
    test[60:110, 60:110] = 255
    result = detector.predict([test])
    tokens = F.normalize(detector._patches([test])[0][0], dim=1)
    cosine = (1 - tokens @ detector.bank.T).min(1)[0]
    count = max(1, int(len(cosine) * 0.01))
    assert result.score.item() == pytest.approx(cosine.sort(descending=True)[0][:count].mean().item(), abs=1e-5)
    full = F.interpolate(cosine.view(1, 1, *grid), test.shape[:2], mode="bilinear")[0, 0].numpy()
    np.testing.assert_allclose(result.anomaly_map[0].numpy(), gaussian_filter(full, 4), atol=1e-5)


def test_rotations_shots_and_seeds_make_the_bank():
    train = pictures(6)
    sizes = {}
    for rotate in (True, False):
        detector = made(shots=2, rotate=rotate)
        sizes[rotate] = detector.fit(train, None)["patches"]
    assert sizes[True] == 8 * sizes[False]
    banks = []
    for seed in (0, 1):
        detector = made(seed=seed, shots=2, rotate=False)
        detector.fit(train, None)
        banks.append(detector.bank)
    alone = made(shots=None, rotate=False)
    alone.fit(train[2:4], None)
    assert torch.equal(banks[1], alone.bank) and not torch.equal(banks[0], banks[1])
    with pytest.raises(ModelError, match="needs 8 training pictures, there are 6"):
        made(seed=3, shots=2).fit(train, None)


def test_only_the_authors_categories_are_masked():
    assert made(category="pill").masked and not made(category="bottle").masked
    assert not made(category="pill", dataset="mvtec_loco").masked
    assert made(mask="on").masked and not made(category="pill", mask="off").masked


def test_masked_patches_count_nothing(monkeypatch):
    detector = made(category="pill", rotate=False)
    detector.fit(pictures(2), None)
    test = pictures(1, seed=5, spot=True)
    monkeypatch.setattr("models.baselines.anomalydino.foreground", lambda p, grid, seed: np.zeros(len(p), bool))
    assert detector.predict(test).score.item() == 0
    monkeypatch.setattr("models.baselines.anomalydino.foreground", lambda p, grid, seed: np.ones(len(p), bool))
    assert detector.predict(test).score.item() > 0


def test_pictures_of_several_sizes_in_one_batch():
    detector = build("anomalydino@demo", SMALL)
    train = pictures(4)  # of two sizes
    detector.fit(train, None)
    together = detector.predict(train)
    assert together.anomaly_map.shape == (4, 64, 61)
    (features,) = detector.feature_maps(train)
    assert features.shape == (4, 384, 3, 3)
    alone = torch.cat([detector.predict([picture]).score for picture in train])
    torch.testing.assert_close(together.score, alone)
