"""The golden vectors: exact values to 1e-9, those of the official code within the tolerance stated with them."""

from __future__ import annotations

import metrics_golden as golden
import pytest

pytestmark = pytest.mark.skipif(not golden.cases(), reason=f"no golden vectors in {golden.ROOT} (BENCH_GOLDEN)")


@pytest.mark.parametrize("name", golden.cases())
def test_exact(name):
    found, held = golden.score(name), golden.expected(name)
    wanted = golden.flat(held["exact"])
    assert wanted
    for key, value in wanted.items():
        if value is None:
            assert found.metrics[key] is None, key
            assert found.undefined[key], key
        else:
            assert found.metrics[key] == pytest.approx(value, abs=1e-9), key
    facts = held["facts"]
    if name.startswith("ad"):
        assert found.facts["regions"] == facts["regions"]
        assert found.facts["pixels"] == {"background": facts["normal_pixels"], "anomalous": facts["anomalous_pixels"]}
    else:
        assert found.facts["images"] == {kind: n for kind, n in facts["images"].items() if n}


@pytest.mark.parametrize("name", [n for n in golden.cases() if n.startswith("ad")])
def test_official_ad(name):
    held, found = golden.expected(name), golden.score(name).metrics
    compared = 0
    for key, value in golden.flat(held["official"]).items():
        if value is not None and golden.flat(held["exact"])[key] is not None:
            assert found[key] == pytest.approx(value, abs=held["tolerance"]["official"]), key
            compared += 1
    assert compared or held.get("note")


@pytest.mark.parametrize("name", [n for n in golden.cases() if n.startswith("loco")])
def test_official_loco(name):
    held, found = golden.expected(name), golden.score(name).metrics
    tolerances = {float(k): v for k, v in held["tolerance"]["official_au_spro"].items()}
    for release, values in held.get("official", {}).items():
        for key, value in golden.flat({"au_spro": values.get("au_spro")}).items():
            if value is None or found[key] is None:
                continue
            exact = release == "per_threshold_functions_at_every_score"
            tolerance = 1e-9 if exact else tolerances[float(key.split("@")[1].split("/")[0])]
            assert found[key] == pytest.approx(value, abs=tolerance), (release, key)


def test_monotone_case_is_identical():
    assert golden.score("ad_08_monotone_of_01").metrics == golden.score("ad_01_typical").metrics


def test_pitfalls_are_told_apart():
    """The values of common mistakes lie far outside the tolerance: the cases would notice them."""
    seen = 0
    for name in golden.cases():
        held = golden.expected(name)
        exact = golden.flat(held["exact"])
        for key, values in (held.get("pitfalls") or {}).items():
            if key.startswith("au_pro") and isinstance(values, dict):
                wrong = golden.flat({"au_pro": values})
                assert max(abs(wrong[k] - exact[k]) for k in wrong) > 1e-6, (name, key)
                seen += 1
    assert seen
