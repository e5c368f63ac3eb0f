"""The fast greedy selection takes the same points as the plain rule, whatever the data."""

from __future__ import annotations

import pytest
import torch

from models.nn import coreset, coreset_device
from models.nn.coreset import greedy_coreset, plain_greedy


def features(kind, seed):
    """Random sizes; smooth, tied, duplicated, shifted, clustered or flat data."""
    g = torch.Generator().manual_seed(seed)
    n, d = (int(torch.randint(1, high, (1,), generator=g)) for high in (160, 70))
    x = torch.randn(n, d, generator=g)
    if kind == "integers":
        x = x.round()
    if kind == "duplicates":
        x = x[torch.randint(0, max(1, n // 6), (n,), generator=g)]
    if kind == "shifted":
        x = x.round(decimals=1) + 300
    if kind == "clusters":
        x = x * 0.01 + torch.randn(5, d, generator=g)[torch.randint(0, 5, (n,), generator=g)] * 10
    if kind == "mirrored":
        x = torch.cat([x, -x, x.flip(1)])
    if kind == "one_direction":
        x = torch.linspace(0, 1, n).unsqueeze(1) * x[:1]
    if kind == "equal":
        x = x[:1].expand(n, d).clone()
    start = int(torch.randint(0, len(x), (1,), generator=g))
    count = int(torch.randint(1, len(x) + 1, (1,), generator=g)) if seed % 3 else len(x)
    return x, count, start


KINDS = ["smooth", "integers", "duplicates", "shifted", "clusters", "mirrored", "one_direction", "equal"]


@pytest.mark.parametrize("kind", KINDS)
def test_same_points_as_the_plain_rule(kind):
    for seed in range(25):
        x, count, start = features(kind, seed)
        expected = plain_greedy(x, count, start=start)
        assert torch.equal(greedy_coreset(x, count, start=start), expected), (kind, seed)
        assert expected[0] == start and len(set(expected.tolist())) == count


def test_same_points_with_many_dimensions_and_steps():
    g = torch.Generator().manual_seed(0)
    centres = torch.randn(40, 273, generator=g)
    x = centres[torch.randint(0, 40, (3000,), generator=g)] + 0.3 * torch.randn(3000, 273, generator=g)
    stats = {}
    found = greedy_coreset(x, 400, start=11, stats=stats)
    assert torch.equal(found, plain_greedy(x, 400, start=11))
    assert 0 < stats["share"] < 0.8 and stats["distances"] == pytest.approx(stats["share"] * 3000 * 400)
    assert [selected for selected, _ in stats["curve"]] == [16, 32, 64, 128, 256, 400]


@pytest.mark.parametrize("capacity", ["by_count", "least", "all"])
@pytest.mark.parametrize("kind", KINDS)
def test_form_for_other_devices_takes_the_same_points(kind, capacity, monkeypatch):
    """Also where the number of points a step looks at is guessed too low, and blocks are taken back."""
    monkeypatch.setattr(coreset, "_kernel", lambda: None)
    monkeypatch.setattr(coreset_device, "STEPS", 8)
    monkeypatch.setattr(coreset_device, "FIRST", 2)
    monkeypatch.setattr(coreset_device, "BUDGET", 4000)  # several parts
    if capacity != "by_count":
        monkeypatch.setattr(coreset_device, "_capacity", low_at_first() if capacity == "least" else lambda most, n: n)
    for seed in range(4):
        x, count, start = features(kind, seed)
        stats = {}
        found = greedy_coreset(x, count, start=start, stats=stats)
        assert torch.equal(found, plain_greedy(x, count, start=start)), (kind, seed)
        assert 0 < stats["share"] <= 1 and stats["curve"][-1][0] == count


def low_at_first():
    """Asks for far too few points, and for all when that has been seen not to do."""
    before = [1 << 30]

    def capacity(most, total):
        before[0] = max(1, most // 8) if most <= before[0] else total
        return before[0]

    return capacity


def test_form_for_other_devices_looks_at_few_points_and_repeats_what_did_not_suffice(monkeypatch):
    g = torch.Generator().manual_seed(0)
    x = torch.randn(20, 40, generator=g)[torch.randint(0, 20, (4000,), generator=g)]
    x += 0.2 * torch.randn(4000, 40, generator=g)
    asked, runs = [], []
    real = coreset_device._Runner.__call__

    def spied(self, times, capacity, slots):
        runs.append((times, capacity))
        real(self, times, capacity, slots)

    def capacity(most, total):
        asked.append(most)
        return 64 if len(asked) == 2 else max(most, 1)

    monkeypatch.setattr(coreset, "_kernel", lambda: None)
    monkeypatch.setattr(coreset_device, "_capacity", capacity)
    monkeypatch.setattr(coreset_device._Runner, "__call__", spied)
    stats = {}
    assert torch.equal(greedy_coreset(x, 600, start=3, stats=stats), plain_greedy(x, 600, start=3))
    assert runs[0] == (16, 4000) and runs[2] == (32, 64) and runs[3][0] == 32 and runs[3][1] > 64
    assert sum(times for times, _ in runs) > 600 and stats["share"] < 0.2


def test_form_for_other_devices_leaves_the_choice_of_deterministic_algorithms(monkeypatch):
    monkeypatch.setattr(coreset, "_kernel", lambda: None)
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    try:
        for choice in ((True, True), (True, False), (False, False)):
            torch.use_deterministic_algorithms(choice[0], warn_only=choice[1])
            greedy_coreset(torch.randn(30, 4), 5, start=0)
            now = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
            assert now == choice
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])


def test_small_cases_by_hand():
    x = torch.tensor([[0.0], [1.0], [10.0], [4.0], [10.0]])
    assert greedy_coreset(x, 5, start=0).tolist() == [0, 2, 3, 1, 4]  # 10 before its twin; the twin, at 0, last
    assert greedy_coreset(torch.zeros(4, 2), 4, start=2).tolist() == [2, 0, 1, 3]
    assert greedy_coreset(torch.ones(1, 3), 1, start=0).tolist() == [0]


def test_result_does_not_change_the_features_or_the_random_state():
    x = torch.randn(200, 40)
    copy, state = x.clone(), torch.get_rng_state()
    greedy_coreset(x, 50, start=3)
    assert torch.equal(x, copy) and torch.equal(state, torch.get_rng_state())


def test_progress_reaches_the_count_and_may_stop_it():
    seen = []
    greedy_coreset(torch.randn(700, 4), 600, start=0, progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (600, 600) and len(seen) > 3

    def stop(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        greedy_coreset(torch.randn(700, 4), 600, start=0, progress=stop)


@pytest.mark.parametrize(("count", "start"), [(0, 0), (6, 0), (2, 5), (2, -1)])
def test_wrong_arguments(count, start):
    with pytest.raises(ValueError, match="cannot select"):
        greedy_coreset(torch.randn(5, 2), count, start=start)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite(value):
    x = torch.randn(5, 2)
    x[3, 1] = value
    with pytest.raises(ValueError, match="not finite"):
        greedy_coreset(x, 2, start=0)
