"""How often the 95 % interval holds the true value: simulated detectors whose true metrics are known.

`PYTHONPATH=. python tests/metrics/metrics_coverage.py` (an hour on one core; `--trials 100 --draws 500`: minutes).
A detector's maps are noise of one level for a picture and another for its pixels, brighter on one or two regions by a
contrast that differs from picture to picture, for two kinds of defect. The true value is that of 20,000 pictures. Every
trial draws its own test pictures, a quarter good and the rest of both kinds in equal parts, as MVTec AD has them.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence

import numpy as np

from benchmarks.metrics import Scorer, bootstrap

METRICS = ("image_auroc", "pixel_auroc", "aupro@0.3")
SIDE = 16
KINDS = {"good": 0.0, "faint": 1.5, "strong": 3.0}  # mean contrast
SHARES = (0.25, 0.375, 0.375)


def kinds_of(pictures: int) -> list[str]:
    """Kinds of a test set of so many pictures."""
    counts = [round(share * pictures) for share in SHARES[:2]]
    return [k for k, n in zip(KINDS, [*counts, pictures - sum(counts)], strict=True) for _ in range(n)]


def unit(kinds: Sequence[str], rng: np.random.Generator, statistics: bool = True):
    """Scores and arrays of one simulated unit, as a run stores them."""
    scorer, peaks = Scorer(statistics=statistics, limits=(0.3,)), []
    for i, kind in enumerate(kinds):
        scores = rng.standard_normal((SIDE, SIDE)) + 0.7 * rng.standard_normal()
        mask = None
        if kind != "good":
            mask = np.zeros((SIDE, SIDE), bool)
            for _ in range(int(rng.integers(1, 3))):
                (y, x), (h, w) = rng.integers(0, SIDE - 4, 2), rng.integers(2, 6, 2)
                mask[y : y + h, x : x + w] = True
            scores[mask] += KINDS[kind] + rng.standard_normal()
        scores = scores.astype(np.float32)
        peaks.append(float(scores.max()))
        scorer.add(f"{i:05}", label=int(kind != "good"), kind=kind, anomaly_map=scores, score=None, mask=mask)
    result, kind = scorer.result(), np.array(kinds)
    arrays = {"name": np.array([f"{i:05}" for i in range(len(kinds))]), "kind": kind, "label": kind != "good",
              "score": np.array(peaks, np.float32), "score_max": np.array(peaks, np.float32), **result.statistics}
    return result.metrics, arrays


def coverage(pictures: int, trials: int, draws: int, truth: dict[str, float]) -> dict[str, tuple[int, int, float]]:
    """By metric: trials whose interval holds the truth, trials that have an interval, mean width."""
    found = {metric: [0, 0, 0.0] for metric in METRICS}
    for trial in range(trials):
        exact, arrays = unit(kinds_of(pictures), np.random.default_rng([pictures, trial]))
        for metric, ends in bootstrap.intervals(arrays, exact, METRICS, draws=draws, seed=trial).items():
            if ends is not None:
                held = found[metric]
                held[0] += ends[0] <= truth[metric] <= ends[1]
                held[1] += 1
                held[2] += ends[1] - ends[0]
    return {metric: (held, of, width / max(of, 1)) for metric, (held, of, width) in found.items()}


def true_values(pictures: int = 20_000) -> dict[str, float]:
    """The metrics of so many pictures."""
    exact, _ = unit(kinds_of(pictures), np.random.default_rng(1), statistics=False)
    return {metric: exact[metric] for metric in METRICS}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", nargs="+", type=int, default=[40, 83, 200])
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--draws", type=int, default=bootstrap.DRAWS)
    args = parser.parse_args()
    truth = true_values()
    print(f"{args.trials} trials of {args.draws} draws; a share is sure to two standard errors, "
          f"{200 * math.sqrt(0.95 * 0.05 / args.trials):.1f} points\n")
    print("| pictures | metric | true value | holds it in | mean width | verdict |\n|--:|:--|--:|--:|--:|:--|")
    for pictures in args.pictures:
        for metric, (held, of, width) in coverage(pictures, args.trials, args.draws, truth).items():
            share = 100 * held / of
            verdict = "93 to 97 %" if 93 <= share <= 97 else "**outside 93 to 97 %**"
            print(f"| {pictures} | {metric} | {100 * truth[metric]:.2f} | {share:.1f} % of {of} | {100 * width:.2f} | "
                  f"{verdict} |", flush=True)


if __name__ == "__main__":
    main()
