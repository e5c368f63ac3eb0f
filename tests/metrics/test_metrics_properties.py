"""What must hold whatever the scores are."""

from __future__ import annotations

import math
from dataclasses import replace

import metrics_reference as reference
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from metrics_agreement import scored

from benchmarks.metrics import MetricError, Region, Scorer, aupro, auspro
from benchmarks.metrics.tensors import exact_tensor

seeds = st.integers(0, 2**32 - 1)


def with_maps(images, change):
    return [image | {"anomaly_map": change(image["anomaly_map"])} for image in images]


@settings(max_examples=150, deadline=None)
@given(seeds, st.booleans(), st.sampled_from(["order", "exp", "scale"]))
def test_strictly_increasing_transform(seed, loco, kind):
    """Equal to the last bit: nothing but the order of the scores may matter."""
    images = reference.random_case(seed, loco).images
    every = np.unique(np.concatenate([i["anomaly_map"].ravel().astype(np.float64) for i in images]))
    places = np.arange(every.size, dtype=np.float64)
    values = {"order": places - 7, "exp": np.exp(places / 40), "scale": places * 1e30}[kind]
    changed = with_maps(images, lambda m: values[np.searchsorted(every, m.astype(np.float64))])
    assert scored(changed, loco) == scored(images, loco)


@settings(max_examples=150, deadline=None)
@given(seeds, st.booleans())
def test_order_of_images(seed, loco):
    images = reference.random_case(seed, loco).images
    order = np.random.default_rng(seed).permutation(len(images))
    assert scored([images[i] for i in order], loco) == scored(images, loco)


@settings(max_examples=150, deadline=None)
@given(seeds, st.booleans())
def test_perfect_image_never_lowers(seed, loco):
    images = reference.random_case(seed, loco).images
    before = scored(images, loco)
    top = np.nextafter(max(float(i["anomaly_map"].max()) for i in images), np.inf)
    low = np.nextafter(min(float(i["anomaly_map"].min()) for i in images), -np.inf)
    truth = np.zeros((6, 6), bool)
    truth[1:4, 2:5] = True
    perfect = {"name": "perfect", "label": 1, "score": None, "anomaly_map": np.where(truth, top, low)}
    if loco:
        added = perfect | {"kind": "logical_anomalies", "regions": [Region(truth, 1.0, True, "scratch")]}
    else:
        added = perfect | {"kind": "bad", "mask": truth}
    after = scored([*images, added], loco)
    for key, value in before.items():
        if value is not None and not key.startswith("pixel_iou"):
            assert after[key] >= value - 1e-12, key


@settings(max_examples=150, deadline=None)
@given(seeds)
def test_pro_is_spro_with_relative_saturation_one(seed):
    """One region per image, so that both agree on what a region is."""
    rng = np.random.default_rng(seed)
    maps, masks = [], []
    for i in range(5):
        maps.append(reference.random_scores(rng, (7, 9), str(rng.choice(reference.FLAVOURS))))
        mask = np.zeros((7, 9), bool)
        if i:
            y, x = rng.integers(0, 5), rng.integers(0, 6)
            mask[y : y + 3, x : x + 2] = True
        masks.append(mask)
    found = auspro(maps, [[Region(m, 1.0, True, "any")] if m.any() else [] for m in masks])
    assert found == aupro(maps, masks)


@settings(max_examples=100, deadline=None)
@given(seeds, st.booleans())
def test_tensors_give_the_same(seed, loco):
    torch = pytest.importorskip("torch")
    images = [i for i in reference.random_case(seed, loco).images if i["anomaly_map"].dtype != np.uint16]
    if images:
        tensors = with_maps(images, lambda m: torch.from_numpy(m.copy()))
        options = {"pixel_threshold": 0.3, "threshold": 0.3}
        found, wanted = scored(tensors, loco, **options), scored(images, loco, **options)
        for key, value in wanted.items():
            assert found[key] == (value if value is None else pytest.approx(value, abs=1e-12)), key


@settings(max_examples=100, deadline=None)
@given(seeds, st.booleans(), st.integers(2, 50))
def test_curves_keep_the_area(seed, loco, points):
    case = reference.random_case(seed, loco)
    scorer = Scorer(loco=loco, curve_points=points)
    for image in case.images:
        scorer.add(**image)
    out = scorer.result()
    areas = {
        ("pixel", "tpr"): "pixel_auroc",
        ("pro", "pro"): "aupro@1",
        ("image", "tpr"): "image_auroc",
        ("spro/logical", "spro"): "auspro@1/logical",
        ("spro/structural", "spro"): "auspro@1/structural",
    }
    for (name, axis), key in areas.items():
        curve = out.curves.get(name)
        assert (curve is None) == (out.metrics.get(key) is None), key
        if curve is not None:
            assert np.trapezoid(curve[axis], curve["fpr"]) == pytest.approx(out.metrics[key], abs=1e-9)
            assert curve["fpr"].size <= max(points, 3)
            assert all((np.diff(curve[a]) >= 0).all() for a in ("fpr", axis))
            assert (curve["fpr"][0], curve[axis][0], curve["fpr"][-1]) == (0, 0, 1)
            assert curve[axis][-1] == pytest.approx(1)


def test_long_curve_is_thinned():
    rng = np.random.default_rng(0)
    truth = np.zeros((300, 300), bool)
    truth[50:120, 60:200] = True
    scorer = Scorer(curve_points=100)
    anomaly_map = rng.standard_normal((300, 300)) + truth
    scorer.add("a", label=1, kind="bad", anomaly_map=anomaly_map, score=None, mask=truth)
    out = scorer.result()
    curve = out.curves["pro"]
    assert 90 < curve["fpr"].size <= 100
    assert np.trapezoid(curve["pro"], curve["fpr"]) == pytest.approx(out.metrics["aupro@1"], abs=1e-9)
    for limit in (0.05, 0.3):
        stop = np.searchsorted(curve["fpr"], limit)
        x = np.append(curve["fpr"][:stop], limit)
        y = np.append(curve["pro"][:stop], np.interp(limit, curve["fpr"], curve["pro"]))
        assert np.trapezoid(y, x) == pytest.approx(out.metrics[f"aupro@{limit:g}"] * limit, abs=1e-4)


def test_defect_names_add_up_to_their_type():
    for seed in range(40):
        case = reference.random_case(seed, True)
        images = [
            image | {"regions": [replace(r, name=f"{image['kind'][:3]} {r.name}") for r in image.get("regions", ())]}
            for image in case.images
        ]
        found = scored(images, True)
        for kind in ("logical", "structural"):
            if found[f"auspro@0.3/{kind}"] is None:
                continue
            regions = [r for i in images if i["kind"].startswith(kind) for r in i["regions"]]
            total = sum(found[f"auspro@0.3/defect:{r.name}"] for r in regions)
            assert total / len(regions) == pytest.approx(found[f"auspro@0.3/{kind}"], abs=1e-12)


def test_at_a_threshold():
    anomaly_map = np.array([[0.1, 0.5, 0.9, 0.9, 0.2]], np.float32)
    mask = np.array([[0, 0, 1, 1, 1]], np.uint8)
    scorer = Scorer(threshold=0.8, pixel_threshold=np.float32(0.9))
    scorer.add("bad", label=1, kind="bad", anomaly_map=anomaly_map, score=None, mask=mask)
    scorer.add("good", label=0, kind="good", anomaly_map=anomaly_map + 1, score=None)
    found = scorer.result().metrics
    assert found["pixel_pro"] == 0  # 0.9 is not strictly greater than 0.9
    assert (found["tpr"], found["tnr"], found["accuracy"], found["f1"]) == (1, 0, 0.5, pytest.approx(2 / 3))
    # the float32 nearest to 0.9 is less than 0.9, the one nearest to 0.1 greater than 0.1
    assert np.float64(np.float32(0.9)) < 0.9
    scorer = Scorer(pixel_threshold=0.1)
    scorer.add("bad", label=1, kind="bad", anomaly_map=anomaly_map, score=None, mask=mask)
    found = scorer.result().metrics
    assert found["pixel_pro"] == 1
    assert found["pixel_iou"] == pytest.approx(3 / 5)


def test_saturated_overlap_at_a_threshold():
    region = Region(np.array([[True, True, True, True, False]]), 2, False, "missing")
    scorer = Scorer(loco=True, pixel_threshold=0.5)
    anomaly_map = np.array([[0.9, 0.8, 0.7, 0.1, 0.0]])
    scorer.add("a", label=1, kind="logical_anomalies", anomaly_map=anomaly_map, score=None, regions=[region])
    found = scorer.result().metrics
    assert found["pixel_spro"] == 1
    assert found["pixel_iou"] == pytest.approx(3 / 4)


def test_both_image_scores():
    scorer = Scorer()
    for i, (label, score, peak) in enumerate([(0, 0.1, 5.0), (1, 0.2, 4.0), (1, 0.3, 6.0)]):
        mask = np.array([[True, False]]) if label else None
        pixels = np.array([[peak, 0.0]])
        kind = "bad" if label else "good"
        scorer.add(str(i), label=label, kind=kind, anomaly_map=pixels, score=score, mask=mask)
    found = scorer.result().metrics
    assert found["image_auroc"] == 1
    assert found["image_auroc@max"] == 0.5
    assert {"image_ap@max", "image_f1max@max", "pixel_auroc", "aupro@0.3"} <= found.keys()


def test_scores_without_maps():
    scorer = Scorer(loco=True)
    for i, kind in enumerate(["good", "logical_anomalies", "structural_anomalies"]):
        scorer.add(str(i), label=int(i > 0), kind=kind, anomaly_map=None, score=float(i))
    found = scorer.result().metrics
    assert not any(key.startswith(("pixel", "au")) for key in found)
    assert (found["image_auroc"], found["image_auroc/pooled"], found["image_auroc/mean"]) == (1, 1, 1)


@pytest.mark.parametrize("limit", [1e-9, 0.5])
def test_perfect_maps_are_exactly_one(limit):
    truth = np.zeros((50, 60), bool)
    truth[3:10, 4:40] = True
    found = aupro([truth.astype(np.float32), np.zeros((9, 9), np.float32)], [truth, None], [limit])
    assert math.isclose(found[limit], 1.0, abs_tol=0)


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"])
def test_a_tensor_of_any_integers_scores_as_the_array(dtype: str) -> None:
    import torch

    case = reference.random_case(3, False)
    found = []
    for convert in (np.asarray, torch.tensor):
        scorer = Scorer(loco=False)
        for image in case.images:
            steps = np.linspace(0, np.iinfo(dtype).max if "64" not in dtype else 2**53, 10).astype(dtype)
            rng = np.random.default_rng(len(image["name"]))
            maps = rng.choice(steps, np.shape(image["anomaly_map"]))
            scorer.add(**{**image, "anomaly_map": convert(maps)})
        found.append(scorer.result().metrics)
    assert found[0] == found[1]


def test_a_tensor_of_integers_that_float64_cannot_tell_apart_is_refused() -> None:
    import torch

    for dtype, value in ((torch.int64, -(2**53) - 1), (torch.uint64, 2**64 - 1), (torch.uint64, 2**53 + 1)):
        with pytest.raises(MetricError, match=r"2\*\*53"):
            exact_tensor("the map", torch.tensor([[0, value]], dtype=dtype))
