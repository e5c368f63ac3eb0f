"""Comparison of methods: ranks, wins and tests against numbers worked out by hand or by another library."""

from __future__ import annotations

import pytest
from scipy import stats

from benchmarks.report import views
from benchmarks.report.drawings.comparison import plot
from benchmarks.report.numbers import compare
from benchmarks.report.numbers.pool import ReportError, pool

CATEGORIES = ("bottle", "cable", "capsule", "carpet", "grid", "hazelnut", "leather")
A = (0.95, 0.90, 0.85, 0.99, 0.70, 0.80, 1.0)
B = (0.90, 0.91, 0.80, 0.95, 0.60, 0.70, 1.0)
C = (0.50, 0.51, 0.52, 0.53, 0.54, 0.55, 0.56)


def _runs(record, methods=("a@x", "b@x", "c@x"), metric="image_auroc"):
    values = dict(zip(("a@x", "b@x", "c@x"), (A, B, C), strict=True))
    return [record(m, c, **{metric: v}) for m in methods for c, v in zip(CATEGORIES, values[m], strict=True)]


def _one(record, methods=("a@x", "b@x", "c@x")):
    return compare.comparisons(pool(_runs(record, methods)), list(methods))[0]


def test_wins_ranks_and_means(record) -> None:
    result = _one(record)
    pair = next(p for p in result.pairs if (p.a, p.b) == ("a@x", "b@x"))
    assert (pair.wins, pair.ties, pair.losses) == (5, 1, 1)
    assert pair.difference == pytest.approx(100 * sum(a - b for a, b in zip(A, B, strict=True)) / 7)
    assert result.ranks["a@x"] == pytest.approx((5 * 1 + 1.5 + 2) / 7)
    assert result.ranks["c@x"] == pytest.approx(3.0)


def test_paired_test_agrees_with_scipy(record) -> None:
    result = _one(record)
    pair = next(p for p in result.pairs if (p.a, p.b) == ("a@x", "b@x"))
    want = stats.wilcoxon([100 * a - 100 * b for a, b in zip(A, B, strict=True)]).pvalue
    assert pair.p == pytest.approx(want)
    assert all(p.adjusted >= p.p for p in result.pairs)
    raw = sorted(p.p for p in result.pairs)
    assert min(p.adjusted for p in result.pairs) == pytest.approx(min(1, 3 * raw[0]))
    assert result.friedman == pytest.approx(stats.friedmanchisquare(A, B, C).pvalue)


def test_critical_difference(record) -> None:
    """Nemenyi's q for three methods at 0.05 is 2.343 (Demsar 2006, table 5)."""
    assert _one(record).critical_difference == pytest.approx(2.343 * (3 * 4 / (6 * 7)) ** 0.5, abs=1e-3)


def test_categories_that_one_method_lacks_are_left_out_and_named(record) -> None:
    runs = [r for r in _runs(record) if not (r["unit"]["method"] == "b" and r["unit"]["category"] == "grid")]
    result = compare.comparisons(pool(runs), ["a@x", "b@x", "c@x"])[0]
    assert result.categories == [f"mvtec_ad/{c}" for c in CATEGORIES if c != "grid"]
    assert any("mvtec_ad/grid" in line and "b@x" in line for line in result.caveats)
    text = views.comparison(runs, ["a@x", "b@x", "c@x"])
    row = next(line for line in text.splitlines() if "Mean over 7 of 15 categories" in line)
    assert "—" in row


def test_caveats_in_words(record) -> None:
    runs = [r for r in _runs(record) if r["unit"]["category"] in CATEGORIES[:4]]
    result = compare.comparisons(pool(runs), ["a@x", "b@x"])[0]
    assert any("cannot show a difference" in line and "0.125" in line for line in result.caveats)
    assert any("One seed per unit" in line for line in result.caveats)
    same = compare.comparisons(pool(_runs(record)), ["a@x", "a@x"])[0]
    assert same.methods == ["a@x"] and not same.pairs


def test_identical_methods_differ_in_nothing(record) -> None:
    runs = [record(m, c, image_auroc=v) for m in ("a@x", "b@x") for c, v in zip(CATEGORIES, A, strict=True)]
    pair = compare.comparisons(pool(runs), ["a@x", "b@x"])[0].pairs[0]
    assert (pair.wins, pair.ties, pair.losses, pair.p) == (0, 7, 0, 1.0)


def test_unknown_method_and_metric(record) -> None:
    with pytest.raises(ReportError, match=r"no record of zzz@x.*a@x"):
        views.comparison(_runs(record), ["zzz@x"])
    with pytest.raises(ReportError, match="no record has the metric"):
        views.comparison(_runs(record), ["a@x"], metric="f1")


def test_mixed_protocols(record) -> None:
    runs = [*_runs(record, ("a@x",)), *(record("b@x", c, size=256, image_auroc=0.5) for c in CATEGORIES)]
    with pytest.raises(ReportError, match="protocols"):
        views.comparison(runs, ["a@x", "b@x"])
    assert "256 x 256" in views.comparison(runs, ["a@x", "b@x"], mixed=True)


@pytest.mark.parametrize("form", ["md", "html", "csv", "latex"])
def test_formats(record, form: str) -> None:
    text = views.comparison(_runs(record), ["a@x", "b@x"], form=form)
    assert "a@x" in text
    if form in ("md", "html"):
        assert "Wilcoxon" in text and "training (s)" in text and "cpu: test" in text


def test_spread_over_seeds_and_plots(record, tmp_path) -> None:
    runs = [
        record(m, c, seed=s, image_auroc=v - 0.02 * s)
        for m, values in (("a@x", A), ("b@x", B)) for c, v in zip(CATEGORIES, values, strict=True) for s in (0, 1)
    ]
    result = compare.comparisons(pool(runs), ["a@x", "b@x"])[0]
    assert compare.spread(result, 0) == pytest.approx(2 / 2**0.5)
    assert plot(result, tmp_path / "bars.png").stat().st_size > 1000
    assert plot(_one(record), tmp_path / "cd.png").stat().st_size > 1000
