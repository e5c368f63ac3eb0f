"""How many cases were compared, and the largest differences: `PYTHONPATH=. python tests/metrics/metrics_agreement.py`.

Random cases against scikit-learn (AUROC, AP), SciPy's labels and plain definitions; golden vectors if they are there.
"""

from __future__ import annotations

import argparse
from typing import Any

import metrics_golden as golden
import metrics_reference as reference

from benchmarks.metrics import Scorer


def scored(images: list[dict[str, Any]], loco: bool, **options: Any) -> dict[str, float | None]:
    scorer = Scorer(loco=loco, **options)
    for image in images:
        scorer.add(**image)
    return scorer.result().metrics


def compare(seed: int, loco: bool, worst: dict[str, list[float]]) -> None:
    """Adds to worst: key without limit -> [values compared, largest difference]. Raises where only one is undefined."""
    case = reference.random_case(seed, loco)
    found = scored(case.images, loco)
    for key, value in reference.expected(case).items():
        note(worst, key, found[key], value, f"seed {seed}, loco {loco}")


def note(worst: dict[str, list[float]], key: str, found: float | None, value: float | None, where: str) -> None:
    entry = worst.setdefault(key.split("@")[0], [0, 0.0])
    entry[0] += 1
    if (found is None) != (value is None):
        raise AssertionError(f"{where}: {key} is {found}, expected {value}")
    if value is not None:
        entry[1] = max(entry[1], abs(found - value))


def report(title: str, worst: dict[str, list[float]]) -> None:
    print(f"\n{title}")
    for key, (count, difference) in sorted(worst.items()):
        print(f"  {key:12s} {count:7d} values, largest difference {difference:.1e}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=3000)
    args = parser.parse_args()
    for loco in (False, True):
        worst: dict[str, list[float]] = {}
        for seed in range(args.cases // 2):
            compare(seed, loco, worst)
        report(f"{args.cases // 2} random {'LOCO' if loco else 'AD'} cases against scikit-learn and definitions", worst)
    names = golden.cases()
    worst = {}
    for name in names:
        found = golden.score(name).metrics
        for key, value in golden.flat(golden.expected(name)["exact"]).items():
            note(worst, key, found[key], value, name)
    report(f"{len(names)} golden cases", worst)


if __name__ == "__main__":
    main()
