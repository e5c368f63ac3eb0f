"""Intervals: per-picture counts are exact, metrics of draws are those of the drawn pictures, variances are DeLong's."""

from __future__ import annotations

import metrics_coverage as simulated
import metrics_reference as reference
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage, stats

from benchmarks.metrics import Region, Scorer, bootstrap, image_metrics

POINT = 0.01
MOST = 0.05 * POINT  # allowed distance between a pixel metric over the ladder and the exact one


def score(images, loco=False):
    """Exact metrics, and arrays as a run stores them."""
    scorer = Scorer(loco=loco, statistics=True)
    for image in images:
        scorer.add(**image)
    result = scorer.result()
    peaks = np.array([float(np.asarray(i["anomaly_map"]).max()) for i in images], np.float32)
    return result, {
        "name": np.array([i["name"] for i in images]), "kind": np.array([i["kind"] for i in images]),
        "label": np.array([i["label"] for i in images]), "score": peaks, "score_max": peaks, **result.statistics,
    }


def smooth_unit(seed, loco=False, levels=0, warp=np.asarray, side=160, pictures=18):
    """Maps as detectors make them: smooth, brighter on defects of several sizes. levels: quantised to so many."""
    rng = np.random.default_rng(seed)
    images = []
    for i in range(pictures):
        bad = ("logical_anomalies", "structural_anomalies") if loco else ("kind0", "kind1")
        kind = bad[i % 2] if i % 3 else "good"
        scores = ndimage.zoom(rng.standard_normal((side // 8 + 1,) * 2), 8, order=1)[:side, :side]
        scores += 0.3 * rng.standard_normal() + 0.05 * rng.standard_normal((side, side))
        image = {"name": str(i), "kind": kind, "label": int(kind != "good"), "score": None}
        masks = []
        for _ in range(int(rng.integers(1, 4)) if kind != "good" else 0):
            (y, x), (h, w) = rng.integers(0, side - 60, 2), rng.integers(3, 60, 2)
            mask = np.zeros((side, side), bool)
            mask[y : y + h, x : x + w] = True
            scores[mask] += rng.normal(2, 1)
            masks.append(mask)
        scores = np.round(scores * levels / 8) if levels else scores
        image["anomaly_map"] = warp(scores).astype(np.float32)
        if loco and masks:
            names = ("long", "short", "absent")
            image["regions"] = [Region(m, 0.5, True, names[(i + j) % 3]) for j, m in enumerate(masks)]
        elif masks:
            image["mask"] = np.any(masks, axis=0)
        images.append(image)
    return images


UNITS = [
    pytest.param({"seed": seed, "loco": loco, **more}, id=f"{seed}-{loco}-{name}")
    for seed, loco in ((0, False), (1, True))
    for name, more in (
        ("plain", {}), ("ties", {"levels": 40}), ("skewed", {"warp": lambda s: np.exp(4 * s)}),
        ("narrow", {"warp": lambda s: 1000 + s / 100}),
    )
]


@pytest.mark.parametrize("unit", UNITS)
def test_pixel_metrics_over_the_ladder_are_exact_to_a_twentieth_of_a_point(unit):
    images = smooth_unit(**unit)
    result, arrays = score(images, unit["loco"])
    found = bootstrap.evaluate(arrays, np.ones((1, len(images))), list(result.metrics))
    assert set(found) == set(result.metrics)
    for key, value in result.metrics.items():
        most = 1e-12 if key.startswith("image_") else MOST
        assert found[key][0] == pytest.approx(value, abs=most), key


@pytest.mark.parametrize("unit", UNITS[::3])
def test_metrics_of_a_draw_are_those_of_the_drawn_pictures(unit):
    images = smooth_unit(**unit)
    result, arrays = score(images, unit["loco"])
    counts = bootstrap.weights(arrays["name"], arrays["kind"], draws=3)
    found = bootstrap.evaluate(arrays, counts, list(result.metrics))
    for row, held in enumerate(counts.astype(int)):
        drawn = [image | {"name": f"{image['name']}.{k}"} for image, n in zip(images, held, strict=True)
                 for k in range(n)]
        exact, _ = score(drawn, unit["loco"])
        for key, value in exact.metrics.items():
            assert found[key][row] == pytest.approx(value, abs=1e-12 if key.startswith("image_") else MOST), key


@settings(max_examples=120, deadline=None)
@given(st.integers(0, 2**32 - 1), st.booleans())
def test_counts_at_the_ladder_are_exact(seed, loco):
    images = reference.random_case(seed, loco).images
    _, arrays = score(images, loco)
    rungs = arrays["ladder.thresholds"]
    assert (np.diff(rungs) < 0).all()
    for place, image in enumerate(images):
        scores, truth = image["anomaly_map"].astype(np.float64), reference.truth(image)
        want = [np.count_nonzero(scores[~truth] >= t) for t in rungs] + [np.count_nonzero(~truth)]
        assert np.cumsum(arrays["ladder.background"][place]).tolist() == want
        rows = np.flatnonzero(arrays["ladder.marked"] == place)
        assert rows.size == int(truth.any())
        for row in rows:
            want = [np.count_nonzero(scores[truth] >= t) for t in rungs] + [np.count_nonzero(truth)]
            assert np.cumsum(arrays["ladder.hits"][row]).tolist() == want
            numbers, count = ndimage.label(truth, np.ones((3, 3)))
            assert arrays["ladder.regions"][row] == count
            want = [sum(np.mean(scores[numbers == r] >= t) for r in range(1, count + 1)) for t in rungs]
            np.testing.assert_allclose(np.cumsum(arrays["ladder.overlap"][row])[:-1], want, atol=1e-5)
        for name in {r.name for r in image.get("regions", ())}:
            same = [r for r in image["regions"] if r.name == name]
            row = np.flatnonzero((arrays["ladder.spro_picture"] == place) & (arrays["ladder.spro_name"] == name))
            if all(reference.saturation(r) for r in same):
                want = [sum(min(np.count_nonzero(scores[r.mask] >= t) / reference.saturation(r), 1) for r in same)
                        for t in rungs]
                np.testing.assert_allclose(np.cumsum(arrays["ladder.spro_overlap"][row[0]])[:-1], want, atol=1e-5)
                assert arrays["ladder.spro_regions"][row[0]] == len(same)


def test_tensors_files_and_statistics_change_nothing(tmp_path):
    import torch

    images = smooth_unit(3, loco=True, pictures=6)
    plain, arrays = score(images, loco=True)
    assert Scorer(loco=True).statistics is False
    tensors, same = score([i | {"anomaly_map": torch.from_numpy(i["anomaly_map"])} for i in images], loco=True)
    assert plain.metrics == tensors.metrics
    for key, values in arrays.items():
        assert np.array_equal(values, same[key]), key
    for options in ({}, {"statistics": True, "memory_limit": 1000, "scratch": tmp_path}):
        scorer = Scorer(loco=True, **options)
        for image in images:
            scorer.add(**image)
        result = scorer.result()
        assert result.metrics == plain.metrics
        for key, values in result.statistics.items():
            assert np.array_equal(values, arrays[key]), key


def test_draws_are_stratified_seeded_and_paired():
    names, kinds = np.array([f"{i}" for i in range(30)]), np.array(["good"] * 10 + ["a"] * 15 + ["b"] * 5)
    counts = bootstrap.weights(names, kinds, 500)
    for kind, size in (("good", 10), ("a", 15), ("b", 5)):
        assert (counts[:, kinds == kind].sum(1) == size).all()
    assert counts.mean(0) == pytest.approx(np.ones(30), abs=0.25)  # five standard errors: each is drawn alike
    assert np.array_equal(counts, bootstrap.weights(names, kinds, 500))
    assert not np.array_equal(counts, bootstrap.weights(names, kinds, 500, seed=1))
    assert not np.array_equal(counts, bootstrap.weights(names[::-1], kinds, 500))
    assert counts.var(0).mean() == pytest.approx(1 - 3 / 30, rel=0.05)  # of a multinomial: 1 - 1/n within a kind


def delong(good, bad):
    """Variance of the AUROC (DeLong et al. 1988): of the shares of pairs that each picture wins."""
    wins = (bad[:, None] > good[None]) + 0.5 * (bad[:, None] == good[None])
    return wins.mean(1).var(ddof=1) / bad.size + wins.mean(0).var(ddof=1) / good.size


@pytest.mark.parametrize("seed", range(4))
def test_variance_of_image_auroc_is_that_of_delong(seed):
    rng = np.random.default_rng(seed)
    good, bad = np.round(rng.normal(0, 1, 70), 1), np.round(rng.normal(1.2, 1.5, 90), 1)
    label = np.r_[np.zeros(70, int), np.ones(90, int)]
    arrays = {"name": np.arange(160).astype(str), "kind": np.where(label, "bad", "good"), "label": label,
              "score": np.r_[good, bad], "score_max": np.full(160, np.nan)}
    counts = bootstrap.weights(arrays["name"], arrays["kind"], 8000)
    found = bootstrap.evaluate(arrays, counts, ["image_auroc", "image_auroc@max", "pixel_auroc"])
    assert set(found) == {"image_auroc"}
    assert found["image_auroc"].var() == pytest.approx(delong(good, bad), rel=0.08)


def test_image_metrics_of_draws_with_ties_and_a_threshold():
    rng = np.random.default_rng(5)
    label = np.r_[np.zeros(9, int), np.ones(14, int)]
    scores = rng.integers(0, 6, 23) + label
    arrays = {"name": np.arange(23).astype(str), "kind": np.where(label, "bad", "good"), "label": label,
              "score": scores.astype(np.float32), "score_max": scores.astype(np.float32), "threshold": np.float64(3)}
    counts = bootstrap.weights(arrays["name"], arrays["kind"], 50)
    keys = ["image_auroc", "image_ap", "image_f1max", "accuracy", "tpr", "tnr", "f1"]
    found = bootstrap.evaluate(arrays, counts, [*keys, "image_ap@max"])
    for row, held in enumerate(counts.astype(int)):
        exact, _ = image_metrics(np.repeat(label, held), np.repeat(scores, held), threshold=3)
        for key in keys:
            assert found[key][row] == pytest.approx(exact[key], abs=1e-12), key
        assert found["image_ap@max"][row] == found["image_ap"][row]


def test_perfect_separation_and_rare_defects_have_no_interval():
    assert bootstrap.interval(np.ones(100), 40, 3) is None
    assert bootstrap.interval(np.r_[np.full(20, np.nan), np.linspace(0, 1, 80)], 40, 3) is None


def test_intervals_widen_for_few_pictures():
    """Of normal draws: Student's t of n - k degrees of freedom, and the variance that n pictures in k kinds miss."""
    draws = stats.norm.ppf((np.arange(200_000) + 0.5) / 200_000)
    for pictures, kinds in ((12, 3), (40, 3), (5000, 4)):
        freedom = pictures - kinds
        want = stats.t.ppf(0.975, freedom) * np.sqrt(pictures / freedom)
        low, high = bootstrap.interval(draws, pictures, kinds)
        assert (low, high) == (pytest.approx(-want, rel=2e-3), pytest.approx(want, rel=2e-3))
    assert want == pytest.approx(1.96, abs=2e-3)


@pytest.mark.slow
@pytest.mark.parametrize("pictures", [40, 83, 200])
def test_coverage(pictures):
    """200 trials: a true coverage of 95 % lies above 91 % but once in a hundred times."""
    truth = simulated.true_values()
    for metric, (held, of, _) in simulated.coverage(pictures, 200, 500, truth).items():
        assert of == 200
        assert held / of > 0.91, metric
