"""Score ensembles: calibration, every rule against numbers worked out by hand, artificial anomalies, wrong wishes."""

from __future__ import annotations

import dataclasses
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, roc_auc_score

from models import registry
from models.base import ModelError
from models.ensembles.calibration import calibrate
from models.ensembles.score_ensemble import ScoreEnsemble, ScoreEnsembleConfig
from models.ensembles.unseen import overall, pixel_quality, score_quality
from models.nn.memory import noted
from models.nn.pseudo import GRADES, KINDS, pseudo_anomalies
from models.nn.textures import EMBEDDED, Textures
from tests.models.ensembles.test_feature_ensemble import context, pictures

TWO = ("fake_maps@one", "fake_maps@two")
CONFIG = ScoreEnsembleConfig(members=TWO, size=48, trees=20, forest_grid=24, pixels=2000)
RULES = ("mean", "weighted", "max", "vote", "forest", "stacking")


def build(rule: str = "mean", **settings: Any) -> ScoreEnsemble:
    torch.manual_seed(0)
    return ScoreEnsemble(dataclasses.replace(CONFIG, rule=rule, **settings), context())


def table(normal: list[float], kind: str) -> torch.Tensor:
    ensemble = build(calibration=kind)
    ensemble.members = ensemble.members[:1]
    return ensemble._tables(torch.tensor(normal)[:, None])[0]


@pytest.mark.parametrize(("spec", "short"), [
    ("score_ensemble@mean", False), ("feature_ensemble@global_all", False), ("simplenet@wrn50", False),
    ("score_ensemble@resnet18_mean", True), ("feature_ensemble@resnet18_global", True), ("simplenet@resnet18", True),
])
def test_an_ensemble_of_shortened_members_counts_as_shortened(spec: str, short: bool) -> None:
    assert registry.config(spec).short is short


@pytest.mark.parametrize("kind", ["ecdf", "zscore", "minmax"])
def test_calibration_is_strictly_increasing_far_beyond_the_normal_values(kind: str) -> None:
    normal = np.random.default_rng(0).gamma(2, 3, 500).tolist()
    values = torch.cat([torch.linspace(-50, 30, 400), torch.linspace(31, 5000, 400)])
    found = calibrate(values, table(normal, kind), kind)
    assert (found.diff() > 0).all()


def test_calibrated_values() -> None:
    normal = [4.0, 1.0, 2.0, 3.0]
    at = torch.tensor([1.0, 2.0, 2.5, 4.0])
    spread = float(np.std(normal))
    torch.testing.assert_close(calibrate(at, table(normal, "ecdf"), "ecdf").tolist(), [0.25, 0.5, 0.625, 1.0])
    outside = calibrate(torch.tensor([4.0 + spread, 1.0 - spread]), table(normal, "ecdf"), "ecdf")
    torch.testing.assert_close(outside.tolist(), [1 + 0.25 / 2, 0.25 / 2])  # half of one step beyond, at one deviation
    torch.testing.assert_close(calibrate(at, table(normal, "zscore"), "zscore"), (at.double() - 2.5) / spread)
    torch.testing.assert_close(calibrate(at, table(normal, "minmax"), "minmax"), (at.double() - 1) / 3)


def test_a_long_table_is_the_empirical_distribution() -> None:
    normal = np.random.default_rng(0).normal(size=20_000)
    found = calibrate(torch.from_numpy(normal), table(normal.tolist(), "ecdf"), "ecdf")
    shares = np.argsort(np.argsort(normal)) / len(normal)
    assert np.abs(found.numpy() - shares).max() < 2e-3


def test_constant_members_are_harmless() -> None:
    for kind in ("ecdf", "zscore", "minmax"):
        found = calibrate(torch.tensor([1.0, 2.0, 3.0]), table([2.0] * 5, kind), kind)
        assert torch.isfinite(found).all() and (found.diff() > 0).all()


def test_rules_by_hand() -> None:
    values = torch.tensor([[0.2, 0.8, 0.5], [0.99, 0.1, 0.97], [0.96, 0.98, 0.97]]).double()
    ensemble = build("mean")
    torch.testing.assert_close(ensemble.combine(values, "scores"), values.mean(1))
    torch.testing.assert_close(build("max").combine(values, "scores"), values.amax(1))
    weighted = build("weighted", power=4.0)
    weighted.tables["quality"] = torch.tensor([1.0, 0.5, 0.5]).double()
    expected = values @ torch.tensor([1.0, 0.0625, 0.0625]).double() / 1.125
    torch.testing.assert_close(weighted.combine(values, "scores"), expected)
    vote = build("vote")
    vote.tables["scores_vote"] = torch.full((3,), 0.95).double()
    found = vote.combine(values, "scores")
    torch.testing.assert_close((found * 3).round() / 3, torch.tensor([0, 2 / 3, 1]).double())
    ties = vote.combine(torch.tensor([[0.99, 0.1, 0.1], [0.99, 0.1, 0.2]]).double(), "scores")
    assert 0 < ties[1] - ties[0] < 0.01


@pytest.mark.parametrize("calibration", ["ecdf", "zscore", "minmax"])
@pytest.mark.parametrize("rule", RULES)
def test_finds_spots_and_comes_back_from_its_state(rule: str, calibration: str, tmp_path: Path) -> None:
    ensemble = build(rule, calibration=calibration)
    log = ensemble.fit(pictures(30), None)
    test = pictures(6, seed=1) + pictures(6, seed=2, spots=True)
    found = ensemble.predict(test)
    assert found.anomaly_map is not None and found.anomaly_map.shape == (12, 48, 48)
    assert found.anomaly_map.dtype == found.score.dtype == torch.float32
    assert roc_auc_score([0] * 6 + [1] * 6, found.score) > 0.95
    assert roc_auc_score([0] * 6 + [1] * 6, found.anomaly_map.flatten(1).amax(1)) > 0.9
    assert log["held_out"] == log["calibrated_on"] == 6
    torch.save(ensemble.state_dict(), tmp_path / "state.pt")
    again = build(rule, calibration=calibration)
    again.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    torch.testing.assert_close(again.predict(test).anomaly_map, found.anomaly_map)
    torch.testing.assert_close(again.predict(test).score, found.score)


def test_a_validation_split_is_used_for_calibration_and_then_nothing_is_held_back() -> None:
    ensemble = build()
    log = ensemble.fit(pictures(12), pictures(7, seed=3))
    assert log["held_out"] == 0 and log["calibrated_on"] == 7
    assert all(own["pictures"] == 12 for own in log["member_training"].values())
    normal, _ = ensemble._raw(pictures(7, seed=3))
    assert torch.equal(ensemble.tables["scores"][:, -1], normal.T.std(1, correction=0))


def test_weights_follow_the_quality_on_artificial_anomalies() -> None:
    log = build("weighted", members=("fake_maps@one", "fake_maps@noisy")).fit(pictures(30), None)
    quality, weights = list(log["quality"].values()), list(log["weights"].values())
    assert log["artificial_anomalies"] == 12 and sum(weights) == pytest.approx(1, abs=1e-3)
    assert quality[1] < 0.9 * quality[0], "a member whose maps are half noise must be told from one without"
    assert weights[0] / weights[1] == pytest.approx((quality[0] / quality[1]) ** 4, rel=1e-2)
    assert log["weight_spread"] == pytest.approx(weights[0] - weights[1], abs=1e-4)
    assert set(log["quality_by_grade"]["fake_maps@one"]) == {grade.name for grade in GRADES}


def test_a_weighted_mean_that_is_the_mean_says_so() -> None:
    for members, equal in ((("fake_maps@one", "fake_maps@one:gain=2"), True),
                           (("fake_maps@one", "fake_maps@noisy"), False)):
        with noted() as remarks:
            build("weighted", members=members).fit(pictures(30), None)
        assert any("the weighted mean is the mean" in remark for remark in remarks) == equal


def test_a_single_member_is_that_member() -> None:
    ensemble = build(members=("fake_maps@two",), size=64, calibration="zscore")
    alone = build(members=("fake_maps@two",))
    ensemble.fit(pictures(30), None)
    test = pictures(6, seed=1) + pictures(6, seed=2, spots=True)
    alone.fit(pictures(30), None)
    theirs, ours = alone.members[0].detector.predict(test), ensemble.predict(test)
    assert torch.equal(ours.score.argsort(), theirs.score.argsort())
    assert torch.corrcoef(torch.stack([ours.anomaly_map.flatten(), theirs.anomaly_map.flatten()]))[0, 1] > 0.999999


@pytest.mark.parametrize("kind", ["pixel", "score"])
def test_quality_by_grade_is_scikit_learns_average_precision(kind: str) -> None:
    rng = np.random.default_rng(0)
    grades = ["faint", "plain", "faint", "plain", "plain"]
    if kind == "pixel":
        maps, masks = rng.random((5, 6, 7)), rng.random((5, 6, 7)) > 0.7
        found = pixel_quality(maps, masks, grades)
        expected = average_precision_score(masks[[0, 2]].ravel(), maps[[0, 2]].ravel())
    else:
        normal, scores = rng.random(9), rng.random(5)
        found = score_quality(normal, scores, grades)
        expected = average_precision_score([0] * 9 + [1] * 2, [*normal, scores[0], scores[2]])
    assert set(found) == {"faint", "plain"} and found["faint"] == pytest.approx(expected)
    assert overall(found) == pytest.approx((found["faint"] + found["plain"]) / 2)


def test_no_map_when_a_member_has_none() -> None:
    for rule in ("mean", "forest"):
        ensemble = build(rule, members=("fake_maps@one", "fake_maps@plain"))
        log = ensemble.fit(pictures(20), None)
        found = ensemble.predict(pictures(2))
        assert found.anomaly_map is None and found.score.shape == (2,) and log["maps"] is False


def test_wrong_wishes_are_refused() -> None:
    with pytest.raises(ModelError, match="no members; give them as members=a,b"):
        build(members=())
    with pytest.raises(ModelError, match="0 normal pictures are left for calibration"):
        build(holdout=0.0).fit(pictures(12), None)
    with pytest.raises(ModelError, match="1 normal pictures are left"):
        build().fit(pictures(12), pictures(1))
    with pytest.raises(ModelError, match="too few"):
        build().fit(pictures(5), None)


def test_artificial_anomalies() -> None:
    source = pictures(32)
    made = list(pseudo_anomalies(source, Textures(EMBEDDED, (32, 32)), torch.Generator().manual_seed(0)))
    assert len(made) == 64 and {(m.kind, m.grade) for m in made} == {(k, g.name) for k in KINDS for g in GRADES}
    for anomaly in made:
        normal = source[anomaly.source]
        changed = (anomaly.picture != normal).any(2)
        assert anomaly.picture.dtype == np.uint8 and anomaly.picture.shape == normal.shape
        assert np.array_equal(changed, anomaly.mask) and 0 < anomaly.mask.mean() < 0.1
    again = list(pseudo_anomalies(source, Textures(EMBEDDED, (32, 32)), torch.Generator().manual_seed(0)))
    assert all(np.array_equal(a.picture, b.picture) for a, b in zip(made, again, strict=True))
    change, area = (
        [np.mean([measure(m) for m in made if m.grade == grade.name]) for grade in GRADES]
        for measure in (
            lambda m: np.abs(m.picture.astype(float) - source[m.source])[m.mask].mean(), lambda m: m.mask.mean(),
        )
    )
    assert all(b > 1.4 * a for a, b in pairwise(change)), "each grade changes its pixels more than the one before"
    assert all(b > 1.1 * a for a, b in pairwise(area)), "and is larger"


def test_duplicated_patch_comes_from_the_picture() -> None:
    rng = np.random.default_rng(0)
    source = rng.integers(0, 255, (40, 50, 3), dtype=np.uint8)
    made = pseudo_anomalies([source] * 8, Textures(EMBEDDED, (16, 16)), torch.Generator().manual_seed(1))
    duplicate = next(m for m in made if m.kind == "duplicated" and m.grade == "plain")
    rows, columns = np.nonzero(duplicate.mask)
    patch = duplicate.picture[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    windows = np.lib.stride_tricks.sliding_window_view(source, patch.shape)
    assert (windows[:, :, 0] == patch).all((2, 3, 4)).any()
