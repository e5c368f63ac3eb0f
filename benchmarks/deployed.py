"""What a fitted method costs where it is deployed: one picture at a time, and the size of what it keeps."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from benchmarks.lending import Lending
from benchmarks.scoring import predicted
from datasets.base import Sample
from models.base import Detector, Images

PICTURES = 20
MOST_S = 10.0  # of measuring; a slow method is timed on fewer pictures, but on three at least


def latency(
    detector: Detector, pictures: Images, samples: Sequence[Sample], metric_size: str | int, features: Lending
) -> dict[str, float]:
    """Seconds from a decoded picture to its map at the scored size, one picture at a time: median and 95 % quantile.

    Over up to PICTURES test pictures spread over the set, after one that is not counted; no feature is taken from or
    given to another picture or method. To be measured after all scores were made.
    """
    places = np.unique(np.linspace(0, len(pictures) - 1, min(PICTURES, len(pictures))).round().astype(int)).tolist()
    seconds: list[float] = []
    with features.closed():
        begin = time.perf_counter()
        for place in (places[0], *places):
            picture = pictures[place]
            start = time.perf_counter()
            predicted(detector, [picture], [samples[place]], metric_size, 1)
            seconds.append(time.perf_counter() - start)
            if time.perf_counter() - begin > MOST_S and len(seconds) > 3:
                break
    p50, p95 = np.quantile(seconds[1:], (0.5, 0.95))
    return {"latency_p50": float(p50), "latency_p95": float(p95)}


def model_mb(detector: Detector) -> float:
    """MiB of tensors that must be kept to predict: those of `state_dict`, and frozen networks that it does not hold."""
    import torch

    held: dict[tuple[int, int], int] = {}
    for tensor in (*_tensors(detector.state_dict()), *_frozen(detector)):
        if isinstance(tensor, torch.Tensor):
            held[tensor.data_ptr(), tensor.nbytes] = tensor.nbytes
    return sum(held.values()) / 2**20


def _tensors(value: Any) -> Iterator[Any]:
    """What lies in a nest of dicts and lists; arrays as tensors."""
    import torch

    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, np.ndarray) and value.dtype != object:
        yield torch.from_numpy(np.ascontiguousarray(value))
    elif isinstance(value, dict | list | tuple):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _tensors(item)


def _frozen(owner: Any, depth: int = 4) -> Iterator[Any]:
    """Parameters and buffers of the frozen networks that a detector or one of its members holds."""
    import torch

    items = owner.values() if isinstance(owner, dict) else owner if isinstance(owner, list | tuple) else (
        v for k, v in vars(owner).items() if k not in ("context", "config"))
    for item in items:
        if isinstance(item, torch.nn.Module):
            if not any(p.requires_grad for p in item.parameters()):
                yield from (*item.parameters(), *item.buffers())
        elif depth and (isinstance(item, dict | list | tuple) or (
            type(item).__module__.startswith("models.") and hasattr(item, "__dict__")
        )):
            yield from _frozen(item, depth - 1)
