"""What a training step of every method asks of the host: `python -m tests.gpu.costs [--where] [METHOD@PRESET ...]`.

On the pretended GPU: how often a step waits for the device, and how often values are copied to it. Both cost a real GPU
its lead over the host, and neither shows on a CPU. A step is what lies between two calls of `progress`; for a method
without a training that is a chunk of pictures. --where adds the lines of a median step.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from tabulate import tabulate

from models import registry
from models.base import Context, Detector
from models.weights import WeightStore
from tests.gpu.pretended import pretended_gpus
from tests.models.test_all_methods import FEW_STEPS, METHODS, pictures, train_pictures

DEVICE = torch.device("cuda:1")  # not the current one: what forgets to say where it computes shows


@dataclass(frozen=True)
class Costs:
    """Waits and copies a step: medians over the steps; where: the lines of a step that waits and copies as often."""

    waits: float
    copies: float
    where: Sequence[str] = ()


def build(spec: str, scratch: Path, device: torch.device | str = DEVICE) -> Detector:
    """A method with a schedule of a few steps."""
    config = registry.config(spec)
    few = {k: str(2 * v) for k, v in FEW_STEPS.items() if hasattr(config, k)}
    few |= {"train_batch": "3"} if hasattr(config, "train_batch") else {}
    torch.manual_seed(0)
    context = Context(
        device=torch.device(device), seed=0, weights=WeightStore("none"), scratch=scratch,
        extras={"dataset": "parts", "category": "nut", "members": {}, "member_dir": None},
    )
    return registry.method_class(registry.parse(spec)[0])(registry.config(spec, few), context)


def measure(spec: str, scratch: Path) -> Costs:
    """Fit a method on the pretended GPU and predict; raises where a GPU would, or where a prediction is not finite."""
    import anomalib.models  # noqa: F401  pretending starts after it is imported

    seen: list[tuple[int, int, Counter[str]]] = []
    with pretended_gpus() as counts:
        detector = build(spec, scratch)
        detector.fit(
            train_pictures(spec), None,
            lambda done, total, /, **values: seen.append((*counts.total(), counts.where.copy())),
        )
        with torch.inference_mode():
            result = detector.predict(pictures(3, 1))
        for values in (result.anomaly_map, result.score):
            assert values is None or torch.isfinite(values.cpu()).all()
    steps = [(b[0] - a[0], b[1] - a[1], b[2] - a[2]) for a, b in itertools.pairwise(seen)] or [(0, 0, Counter[str]())]
    waits, copies = (statistics.median(step[i] for step in steps) for i in (0, 1))
    near = min(steps, key=lambda step: abs(step[0] - waits) + abs(step[1] - copies))
    return Costs(waits, copies, [f"{times} x {line}" for line, times in sorted(near[2].items())])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("methods", nargs="*", metavar="METHOD@PRESET")
    parser.add_argument("--where", action="store_true", help="also print the lines that wait and copy")
    arguments = parser.parse_args()
    rows = []
    for spec in arguments.methods or METHODS:
        with tempfile.TemporaryDirectory() as scratch:
            try:
                found = measure(spec, Path(scratch))
                rows.append([spec, "yes", found.waits, found.copies])
                if arguments.where:
                    print("\n  ".join([spec, *found.where]), flush=True)
            except Exception as error:
                rows.append([spec, f"{type(error).__name__}: {str(error).splitlines()[0][:90]}", None, None])
    print(tabulate(rows, ["method", "passes", "waits a step", "copies a step"], tablefmt="github"))


if __name__ == "__main__":
    main()
