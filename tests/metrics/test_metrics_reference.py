"""Random cases against scikit-learn, SciPy's labels and plain definitions."""

from __future__ import annotations

import metrics_agreement as agreement
import metrics_reference as reference
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from sklearn.metrics import average_precision_score, roc_auc_score

from benchmarks.metrics import auroc, average_precision, f1_max, ranks
from benchmarks.metrics.regions import components

DTYPES = (np.float16, np.float32, np.float64, np.int8, np.int32, np.int64, np.uint16)


@st.composite
def labelled(draw):
    """labels bool [n] and scores [n] of any type, from few values (ties) or the type's whole range."""
    size = draw(st.integers(1, 40))
    dtype = np.dtype(draw(st.sampled_from(DTYPES)))
    if dtype.kind == "f":
        whole = arrays.from_dtype(dtype, allow_nan=False, allow_infinity=False)
    else:
        whole = st.integers(max(np.iinfo(dtype).min, -(2**53)), min(np.iinfo(dtype).max, 2**53))
    pool = draw(st.lists(whole, min_size=1, max_size=draw(st.sampled_from([2, 40]))))
    scores = np.array(draw(st.lists(st.sampled_from(pool), min_size=size, max_size=size)), dtype)
    return np.array(draw(st.lists(st.booleans(), min_size=size, max_size=size))), scores


@settings(max_examples=600, deadline=None)
@given(labelled())
def test_labelled_scores(case):
    labels, scores = case
    order = np.unique(scores, return_inverse=True)[1]
    if not labels.any() or labels.all():
        assert auroc(labels, scores) is None
        assert average_precision(labels, scores) is None
        return
    assert auroc(labels, scores) == pytest.approx(roc_auc_score(labels, order), abs=1e-12)
    assert average_precision(labels, scores) == pytest.approx(average_precision_score(labels, order), abs=1e-12)
    assert f1_max(labels, scores) == pytest.approx(reference.f1_max(labels, scores), abs=1e-12)


@settings(max_examples=500, deadline=None)
@given(st.integers(0, 2**32 - 1), st.booleans())
def test_pixels(seed, loco):
    worst = {}
    agreement.compare(seed, loco, worst)
    assert max(difference for _, difference in worst.values()) < 1e-9


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**32 - 1), st.booleans(), st.sampled_from([(8, 8, 4), (40, 40, 14), (99, 300, 2), (4, 150, 9)]))
def test_buckets_and_files_change_nothing(seed, loco, sizes):
    """The same numbers when every step has to cut, spill and gather."""
    case = reference.random_case(seed, loco)
    whole = agreement.scored(case.images, loco)
    before = ranks.CHUNK, ranks.PIECE, ranks.BUCKET, ranks.DIGITS
    try:
        ranks.CHUNK, ranks.PIECE, ranks.BUCKET, ranks.DIGITS = 100, *sizes
        parted = agreement.scored(case.images, loco)
        spilled = agreement.scored(case.images, loco, memory_limit=400)
    finally:
        ranks.CHUNK, ranks.PIECE, ranks.BUCKET, ranks.DIGITS = before
    assert parted == spilled
    for key, value in whole.items():
        assert parted[key] == (value if value is None else pytest.approx(value, abs=1e-12)), key


@settings(max_examples=300, deadline=None)
@given(arrays.arrays(np.bool_, arrays.array_shapes(min_dims=2, max_dims=2, max_side=12)))
def test_components_by_flood_fill(truth):
    numbers, count = components(truth)
    assert (numbers > 0).tolist() == truth.tolist()
    assert set(np.unique(numbers)) - {0} == set(range(1, count + 1))
    left = {(int(y), int(x)) for y, x in np.argwhere(truth)}
    regions = 0
    while left:
        regions += 1
        todo = [left.pop()]
        number = numbers[todo[0]]
        while todo:
            y, x = todo.pop()
            assert numbers[y, x] == number
            near = {(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)} & left
            left -= near
            todo += near
    assert regions == count
