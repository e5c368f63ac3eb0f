"""PG, PB and AUPIMO: by hand, and equal to anomalib's on random sets with ties."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from benchmarks.metrics import MetricError, Scorer, aupimo, pb, pg

GOOD, BAD = 0, 1


def parts(good, bad):
    return np.array([GOOD] * len(good) + [BAD] * len(bad)), np.array([*good, *bad], float)


HAND = [  # good, bad, share, pg, pb
    ([1, 2, 3, 4], [5, 6], 0.02, 1.0, 1.0),  # apart
    ([1, 1, 1, 1], [1, 1], 0.02, 0.0, 0.0),  # all equal: nothing passes, nothing is caught
    # quantile 0.5 of bad is 4 and of good 2.5: 1, 2, 3 lie below 4 (the 4 does not), 4 and 5 above 2.5 (2 does not)
    ([1, 2, 3, 4], [2, 4, 5], 0.5, 3 / 4, 2 / 3),
    # place 0.25 * 4 = 1: bad 3, of three 3s none is below; good at place 3: 3, so only 4, 5 and 6 are above
    ([0, 2, 3, 3, 3], [1, 3, 4, 5, 6], 0.25, 2 / 5, 3 / 5),
    # place 0.1 * 2 = 0.2: bad 1 + 0.2 * 10 = 3; good at 1.8: 2 + 0.8 * 8 = 8.4
    ([1, 2, 10], [1, 11, 12], 0.1, 2 / 3, 2 / 3),
]


@pytest.mark.parametrize(("good", "bad", "share", "passed", "caught"), HAND)
def test_pg_and_pb_by_hand(good, bad, share, passed, caught):
    assert pg(*parts(good, bad), share) == pytest.approx(passed, abs=1e-15)
    assert pb(*parts(good, bad), share) == pytest.approx(caught, abs=1e-15)


def test_a_place_on_a_score_is_that_score():
    """51 scores and 2 %: place 1 exactly, whatever 0.02 is in floats; an equal good score does not pass."""
    assert pg(*parts([1.0], np.arange(51) * 1.0)) == 0
    assert pg(*parts([0.999999], np.arange(51) * 1.0)) == 1
    assert pb(*parts(np.arange(51) * 1.0, [49.0])) == 0


def test_undefined_and_wrong_input():
    assert pg(*parts([], [1, 2])) is None
    assert pb(*parts([1, 2], [])) is None
    with pytest.raises(MetricError, match=r"1\.5"):
        pg(*parts([1], [2]), 1.5)
    with pytest.raises(MetricError, match="bounds"):
        aupimo([np.ones((2, 2))], [None], (1e-4, 1e-5))
    with pytest.raises(MetricError, match="map 1"):
        aupimo([np.ones((2, 2)), np.full((2, 2), np.nan)], [None, None])
    assert aupimo([np.ones((2, 2))], [None]) == (None, [None])


@pytest.mark.parametrize("seed", range(200))
def test_pg_and_pb_against_anomalib(seed):
    torch, library = pytest.importorskip("torch"), pytest.importorskip("anomalib.metrics.pg_pb")
    rng = np.random.default_rng(seed)
    share = float(rng.choice([0.02, 0.05, 0.1, 0.25]))
    labels = np.r_[np.zeros(rng.integers(1, 120), int), np.ones(rng.integers(1, 120), int)]
    levels = int(rng.choice([3, 12, 60, 10_000]))
    scores = (rng.integers(0, levels, labels.size) + labels * levels // 4).astype(np.float32) / 8
    for made, ours in ((library._PGn(fnr=share), pg), (library._PBn(fpr=share), pb)):
        made.update(torch.from_numpy(scores), torch.from_numpy(labels))
        assert ours(labels, scores, share) == pytest.approx(float(made.compute()), abs=1e-6)


def one(scores):
    return np.array(scores, float).reshape(1, -1)


NORMAL = one(np.arange(100))  # threshold t has the rate (100 - t) / 100
LOG = math.log(0.1 / 0.01)

PIMO = [  # marked scores, expected mean share between the rates 0.01 and 0.1
    ([200.0, 150.0], 1.0),  # above every good pixel
    ([5.0, 7.0], 0.0),  # below the threshold of 0.1, which is 90
    ([200.0, 5.0], 0.5),
    # 94.5 is found from the threshold 94 on, rate 0.06; at 0.05 (threshold 95) the curve rises straight up
    ([94.5, 5.0], 0.5 * math.log(0.1 / 0.05) / LOG),
    # 95 ties with a good pixel: the rate rises from 0.04 to 0.05 with it, a straight line over the logarithm
    ([95.0, 5.0], 0.5 * (math.log(0.1 / 0.05) + math.log(0.05 / 0.04) / 2) / LOG),
]


@pytest.mark.parametrize(("marked", "expected"), PIMO)
def test_aupimo_by_hand(marked, expected):
    scores = one([*marked, 1000.0])
    mean, each = aupimo([NORMAL, scores], [None, np.array([[1, 1, 0]])], (0.01, 0.1))
    assert mean == each[1] == pytest.approx(expected, abs=1e-12)
    assert each[0] is None


def test_from_a_rate_of_zero_the_level_counts():
    """The ten highest good pixels tie: up to 0.1 the rate is 0, and what lies above all of them is found there."""
    normal = one(np.minimum(np.arange(100), 90))
    mean, _ = aupimo([normal, one([95.0, 90.0, 3.0])], [None, np.array([[1, 1, 0]])], (0.01, 0.1))
    assert mean == pytest.approx(0.5)


def test_pictures_count_alike_whatever_their_size():
    """A rate is a mean over good pictures: 10 of 100 pixels in one of two are 0.05, however large the other is."""
    large = np.zeros((1, 10_000))
    mean, _ = aupimo([NORMAL, large, one([90.5, 0.0])], [None, None, np.array([[1, 0]])], (0.01, 0.1))
    assert mean == pytest.approx(math.log(0.1 / 0.045) / LOG)


@pytest.mark.parametrize("seed", range(200))
def test_aupimo_against_anomalib(seed):
    """Whole numbers as scores, and as many thresholds as numbers, so that anomalib too has each score as a threshold;
    both bounds are rates that the curve reaches, since anomalib takes the nearest point for a bound."""
    torch, library = pytest.importorskip("torch"), pytest.importorskip("anomalib.metrics.pimo.functional")
    rng = np.random.default_rng(seed)
    levels, side, good, bad = int(rng.choice([30, 200, 900])), 20, int(rng.integers(1, 5)), int(rng.integers(1, 5))
    shape = (good + bad, side, side)
    maps = np.floor(levels * rng.beta(2, 5, shape))
    masks = np.zeros(shape, np.int64)
    for i in range(good, good + bad):
        y, x = rng.integers(0, side - 6, 2)
        masks[i, y : y + 5, x : x + int(rng.integers(1, 7))] = 1
    maps[masks == 1] = np.minimum(maps[masks == 1] + rng.integers(0, levels), levels - 1)
    normal = maps[:good]
    rates = np.unique([np.count_nonzero(normal >= t) for t in np.unique(normal)]) / normal.size
    low, high = (float(rates[i]) for i in sorted(rng.choice(min(rates.size, 12), 2, replace=False)))
    if high >= 1:
        pytest.skip("no second rate below 1")
    count = int(normal.max() - normal.min()) + 1
    *_, values, _ = library.aupimo_scores(
        torch.from_numpy(maps), torch.from_numpy(masks), num_thresholds=count, fpr_bounds=(low, high), force=True)
    mean, each = aupimo(list(maps), list(masks), (low, high))
    assert each[:good] == [None] * good
    np.testing.assert_allclose(np.array(each[good:]), values[good:].numpy(), atol=1e-9)
    assert mean == pytest.approx(float(values[good:].mean()), abs=1e-9)


@pytest.mark.parametrize("seed", range(20))
def test_figures_at_a_fixed_threshold_by_definition(seed):
    rng = np.random.default_rng(seed)
    scorer = Scorer()
    maps, masks, labels = [], [], []
    for i in range(12):
        scores = rng.integers(0, 8, (9, 7)).astype(np.float32)  # ties with the thresholds
        mask = rng.random((9, 7)) < 0.2 if i % 2 else np.zeros((9, 7), bool)
        scores[mask] += rng.integers(0, 3)
        scorer.add(str(i), label=i % 2, kind="bad" if i % 2 else "good", anomaly_map=scores, score=None, mask=mask)
        maps.append(scores)
        masks.append(mask)
        labels.append(i % 2)
    scorer.fixed = {"low": (7.0, 3.0), "high": (8.5, 7.0)}
    found = scorer.result().metrics
    truth, scores = np.stack(masks), np.stack(maps)
    label, peak = np.array(labels, bool), scores.max((1, 2))
    for name, (image, pixel) in (("low", (7.0, 3.0)), ("high", (8.5, 7.0))):
        over, called = scores > pixel, peak > image
        assert found[f"segf1@{name}"] == 2 * (over & truth).sum() / (truth.sum() + over.sum())
        assert found[f"f1@{name}"] == 2 * (called & label).sum() / (label.sum() + called.sum())
        assert found[f"missed@{name}"] == pytest.approx((~called & label).sum() / label.sum())
        assert found[f"false_alarms@{name}"] == pytest.approx((called & ~label).sum() / (~label).sum())


def test_rules_of_the_thresholds_by_hand():
    import torch

    from benchmarks.scoring import _fixed
    from datasets.base import Sample
    from models.base import Prediction
    from models.nn.preprocess import Preprocess

    class Mean:
        own_sizes = False
        preprocess = Preprocess((2, 2), normalise=False)

        def predict(self, batch):
            value = torch.tensor([float(x.mean()) for x in batch])
            return Prediction(value[:, None, None].expand(-1, 2, 2), value * 10)

    pictures = [np.full((2, 2, 3), v, np.uint8) for v in (1, 2, 3, 4)]
    found = _fixed(Mean(), pictures, [Sample(Path("p.png"), "good")] * 4, "original", 3)
    sd, pixel_sd = math.sqrt(5 / 3), math.sqrt(5 * 4 / 15)  # of 4 scores, of 16 pixels
    assert found["mean3sd"] == (pytest.approx(25 + 30 * sd), pytest.approx(2.5 + 3 * pixel_sd))
    assert found["q98"] == (pytest.approx(30 + 0.94 * 10), pytest.approx(4.0))  # places 2.94 of 3 and 14.7 of 15
    assert _fixed(Mean(), pictures[:1], [Sample(Path("p.png"), "good")], "original", 3) == {}
