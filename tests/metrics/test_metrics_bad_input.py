"""What cannot be scored is said with the image's name; what is undefined is None with a reason."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.metrics import MetricError, Region, Scorer, auroc, image_metrics, iou, pro

MAP = np.arange(12, dtype=np.float32).reshape(3, 4)
MASK = (MAP > 9).astype(np.uint8)
REGION = Region(MASK > 0, 1.0, True, "scratch")


def ad(**changes):
    scorer = Scorer()
    scorer.add("bad/007", **({"label": 1, "kind": "bad", "anomaly_map": MAP, "score": None, "mask": MASK} | changes))
    return scorer


def loco(**changes):
    scorer = Scorer(loco=True)
    item = {"label": 1, "kind": "logical_anomalies", "anomaly_map": MAP, "score": None, "regions": [REGION]}
    scorer.add("logical/007", **(item | changes))
    return scorer


def spoiled(value, dtype=np.float32):
    out = MAP.astype(dtype)
    out[1, 2] = value
    return out


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"anomaly_map": spoiled(np.nan)}, "NaN"),
        ({"anomaly_map": spoiled(np.inf)}, "infinite"),
        ({"anomaly_map": spoiled(-np.inf, np.float64)}, "infinite"),
        ({"anomaly_map": spoiled(np.nan, np.float16)}, "NaN"),
        ({"anomaly_map": spoiled(2**53 + 1, np.int64)}, r"2\*\*53"),
        ({"anomaly_map": MAP.astype(complex)}, "complex"),
        ({"anomaly_map": MAP.astype(object)}, "object"),
        ({"anomaly_map": MAP[None]}, "shape"),
        ({"anomaly_map": MAP[:0]}, "shape"),
        ({"mask": MASK[:2]}, r"\(2, 4\).*\(3, 4\)"),
        ({"mask": MASK.astype(str)}, "type"),
        ({"label": 2}, "label"),
        ({"label": 0}, "good image with a mask"),
        ({"score": float("nan")}, "score is nan"),
        ({"anomaly_map": None}, "neither"),
    ],
)
def test_refused(changes, words):
    with pytest.raises(MetricError, match=words) as caught:
        ad(**changes)
    assert "bad/007" in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"kind": "bad"}, "not one of"),
        ({"kind": "good"}, "does not fit"),
        ({"kind": "good", "label": 0}, "with regions"),
        ({"regions": [Region(MASK[:2] > 0, 1.0, True, "x")]}, "shape"),
        ({"regions": [Region(MASK > 0, 1.5, True, "x")]}, "relative saturation"),
        ({"regions": [Region(MASK > 0, 2.5, False, "x")]}, "number of pixels"),
        ({"regions": [Region(MASK > 0, -1, False, "x")]}, "number of pixels"),
    ],
)
def test_refused_loco(changes, words):
    with pytest.raises(MetricError, match=words) as caught:
        loco(**changes)
    assert "logical/007" in str(caught.value)


def test_refused_image_leaves_no_trace():
    scorer = Scorer()
    good = {"label": 0, "kind": "good", "anomaly_map": MAP, "score": None}
    scorer.add("a", **good)
    for item in (good, good | {"anomaly_map": spoiled(np.nan)}, good | {"mask": MASK}):
        with pytest.raises(MetricError):
            scorer.add("a" if item is good else "b", **item)
    scorer.add("bad", label=1, kind="bad", anomaly_map=MAP, score=None, mask=MASK)
    out = scorer.result()
    assert out.facts["pixels"] == {"background": 22, "anomalous": 2}
    assert out.facts["images"] == {"bad": 1, "good": 1}


def test_refused_region_leaves_no_trace():
    scorer = loco()
    item = {"label": 1, "kind": "logical_anomalies", "anomaly_map": MAP, "score": None}
    with pytest.raises(MetricError):
        scorer.add("second", **item, regions=[REGION, Region(MASK[:2] > 0, 1.0, True, "x")])
    facts = scorer.result().facts
    assert (facts["regions"], facts["pixels"]["anomalous"]) == (1, 2)


def test_maps_or_scores_for_some_only():
    for first, second in (((MAP, 1.0), (None, 1.0)), ((MAP, None), (MAP, 1.0))):
        scorer = Scorer()
        scorer.add("a", label=0, kind="good", anomaly_map=first[0], score=first[1])
        with pytest.raises(MetricError, match="for all images or for none"):
            scorer.add("b", label=0, kind="good", anomaly_map=second[0], score=second[1])


def test_empty():
    with pytest.raises(MetricError, match="no image"):
        Scorer().result()
    assert auroc([], []) is None
    with pytest.raises(MetricError, match="3 labels but 2 scores"):
        auroc([0, 1, 1], [0.5, 0.2])
    with pytest.raises(MetricError, match="labels other than"):
        auroc([0, 2], [0.5, 0.2])
    with pytest.raises(MetricError, match="NaN"):
        image_metrics([0, 1], [0.5, np.nan])
    with pytest.raises(MetricError, match="limits"):
        Scorer(limits=(0.0, 0.3))
    with pytest.raises(MetricError, match="as many masks as maps are needed: 1 and 2"):
        pro([MAP, MAP], [MASK], 0.5)


def test_undefined_ad():
    out = ad().result()
    assert out.metrics["image_auroc"] is None
    assert out.undefined["image_auroc"] == "no good image"
    assert out.metrics["pixel_auroc"] == 1
    good = Scorer()
    good.add("a", label=0, kind="good", anomaly_map=MAP, score=None)
    out = good.result()
    assert set(out.undefined) == set(out.metrics)
    assert out.undefined["image_auroc"] == "no anomalous image"
    assert out.undefined["aupro@0.3"] == "no anomalous pixel"
    assert ad(mask=np.ones_like(MASK)).result().undefined["aupro@0.3"] == "no defect-free pixel"


def test_anomalous_image_without_ground_truth():
    scorer = ad()
    scorer.add("bad/008", label=1, kind="bad", anomaly_map=MAP, score=None)
    scorer.add("good/000", label=0, kind="good", anomaly_map=MAP, score=None)
    out = scorer.result()
    assert out.metrics["image_auroc"] == 0.5
    assert out.metrics["pixel_auroc"] is out.metrics["aupro@0.3"] is None
    assert "bad/008" in out.undefined["aupro@0.3"]


def test_undefined_loco():
    out = loco().result()
    assert out.metrics["auspro@0.05/logical"] == 1
    assert "structural" in out.undefined["auspro@0.05/structural"]
    assert out.undefined["auspro@0.05/mean"] == "the value for structural is undefined"
    assert out.undefined["image_auroc"] == "no good image"
    out = loco(regions=[Region(MASK > 0, 0.4, True, "x")]).result()  # int(0.4 * 2) = 0
    assert "logical/007" in out.undefined["auspro@0.05/logical"]
    assert out.metrics["auspro@0.05/defect:x"] is None
    assert out.metrics["pixel_auroc"] == 1
    both = loco(regions=[Region(MASK > 0, 0.4, True, "x"), Region(MASK > 0, 1, False, "y")]).result().metrics
    assert both["auspro@0.05/logical"] is both["auspro@0.05/defect:x"] is None
    assert both["auspro@0.05/defect:y"] == 1
    assert set(out.undefined) == {key for key, value in out.metrics.items() if value is None}


def test_threshold_metrics_of_one_class():
    values, why = image_metrics([1, 1], [0.2, 0.8], threshold=0.5)
    assert (values["tpr"], values["accuracy"], values["tnr"]) == (0.5, 0.5, None)
    assert why["tnr"] == "no good image"
    assert image_metrics([1, 0], [0.5, 0.5], threshold=0.5)[0]["tnr"] == 1  # equal is not greater
    assert iou([MAP], [None], 100.0) is None


@pytest.mark.parametrize("second", [np.float64, np.int32, np.float16, np.uint8])
def test_mixed_types(second):
    """Types are compared by value: a map of another type is as good as the same map in float64."""
    rng = np.random.default_rng(0)
    maps = [rng.integers(0, 50, (20, 20)).astype(np.float32), rng.integers(0, 50, (20, 20)).astype(second)]
    if second == np.float64:
        maps[1] += 2.0**-40  # would be lost in float32

    def score(maps):
        scorer = Scorer()
        for i, m in enumerate(maps):
            mask = np.arange(400).reshape(20, 20) % 7 == 0
            scorer.add(str(i), label=1, kind="bad", anomaly_map=m, score=None, mask=mask)
        return scorer.result().metrics

    assert score(maps) == score([m.astype(np.float64) for m in maps])
    assert (score(maps) != score([m.astype(np.float32) for m in maps])) == (second == np.float64)
