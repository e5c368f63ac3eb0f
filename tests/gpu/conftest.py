"""The GPU for `pytest -m gpu`, and where its tests leave what they found; `python -m tests.gpu` makes a verdict of it.

GPU=pretended runs them dry, on the pretended GPU and on small pictures: it shows that the checks themselves work, and
says nothing of a GPU. What needs a process of its own is then skipped.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

DRY = os.environ.get("GPU") == "pretended"


@pytest.fixture
def gpu() -> Iterator[torch.device]:
    """The first GPU, set as the harness sets it; the test is skipped where torch can use none."""
    from benchmarks import devices

    if DRY:
        import anomalib.models  # noqa: F401  pretending starts after it is imported

        from tests.gpu.pretended import pretended_gpus

        with pretended_gpus():
            devices.prepare("cuda:0")
            yield torch.device("cuda:0")
        torch.use_deterministic_algorithms(False)
        return
    found = devices.resolve("auto")
    if found.name == "cpu":
        pytest.skip(found.note or "torch sees no GPU")
    devices.prepare(found.name)
    yield torch.device(found.name)
    torch.cuda.empty_cache()


@pytest.fixture
def real_gpu(gpu: torch.device) -> torch.device:
    """For what a pretended GPU cannot show: other processes, memory that runs out, time."""
    if DRY:
        pytest.skip("needs a real GPU")
    return gpu


@pytest.fixture
def finding(record_property: Callable[[str, object], None]) -> Callable[[str, Any], None]:
    """`finding(name, value)` puts a figure into the verdict's JSON, under the test's own name."""
    return lambda name, value: record_property(name, json.dumps(value))
