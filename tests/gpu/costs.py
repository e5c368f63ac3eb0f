"""What a training step of every method asks of the host: `python -m tests.gpu.costs [METHOD@PRESET ...]`.

On the pretended GPU: how often a step waits for the device, and how often values are copied to it. Both cost a real GPU
its lead over the host, and neither shows on a CPU.
"""

from __future__ import annotations

import itertools
import statistics
import sys
import tempfile
from pathlib import Path

import torch
from tabulate import tabulate

from models import registry
from models.base import Context, Detector
from models.weights import WeightStore
from tests.gpu.pretended import pretended_gpus
from tests.models.test_all_methods import FEW_STEPS, METHODS, pictures, train_pictures

DEVICE = torch.device("cuda:1")  # not the current one: what forgets to say where it computes shows


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


def measure(spec: str, scratch: Path) -> tuple[Detector, float, float]:
    """The fitted detector; waits and copies a step: medians over the steps between progress calls."""
    import anomalib.models  # noqa: F401  pretending starts after it is imported

    seen: list[tuple[int, int]] = []
    with pretended_gpus() as counts:
        detector = build(spec, scratch)
        detector.fit(train_pictures(spec), None, lambda done, total, /, **values: seen.append(counts.total()))
        with torch.no_grad():  # wrapped tensors cannot be made in inference mode
            result = detector.predict(pictures(3, 1))
        for values in (result.anomaly_map, result.score):
            assert values is None or torch.isfinite(values.cpu()).all()
    steps = [(b[0] - a[0], b[1] - a[1]) for a, b in itertools.pairwise(seen)] or [(0, 0)]
    return detector, statistics.median(s[0] for s in steps), statistics.median(s[1] for s in steps)


def main() -> None:
    rows = []
    for spec in sys.argv[1:] or METHODS:
        with tempfile.TemporaryDirectory() as scratch:
            try:
                _, waits, copies = measure(spec, Path(scratch))
                rows.append([spec, "yes", waits, copies])
            except Exception as error:
                rows.append([spec, f"{type(error).__name__}: {str(error).splitlines()[0][:90]}", None, None])
    print(tabulate(rows, ["method", "passes", "waits a step", "copies a step"], tablefmt="github"))


if __name__ == "__main__":
    main()
