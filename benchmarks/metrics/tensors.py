"""The same positions from torch tensors, on the device that holds them. Only this module knows torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from benchmarks.metrics.ranks import Block, MetricError


def is_tensor(values: Any) -> bool:
    return type(values).__module__.split(".")[0] == "torch"


def exact_tensor(what: str, values: Any) -> Any:
    """The tensor as float32 or float64 without loss; see `ranks.exact`."""
    import torch

    values = values.detach()
    if values.dtype in (torch.float32, torch.float64):
        return values
    if values.dtype in (torch.float16, torch.bfloat16, torch.int8, torch.uint8, torch.int16, torch.uint16, torch.bool):
        return values.float()
    if values.dtype in (torch.int32, torch.uint32):
        return values.double()
    if values.dtype in (torch.int64, torch.uint64):
        signed = values.view(torch.int64)  # torch compares no uint64; those from 2**63 on turn negative
        lowest = 0 if values.dtype == torch.uint64 else -(2**53)
        if bool(((signed > 2**53) | (signed < lowest)).any()):
            raise MetricError(f"{what} holds integers beyond 2**53, which float64 cannot tell apart; rescale it")
        return signed.double()
    raise MetricError(f"{what} has type {values.dtype}; expected real numbers")


def pick(values: Any, mask: np.ndarray) -> Any:
    """values[mask] as 1-D, numpy or torch."""
    if is_tensor(values):
        import torch

        return values[torch.from_numpy(mask).to(values.device)]
    return values[mask]


def top(values: Any, count: int) -> Any:
    """The `count` greatest of the values [n], in any order."""
    if count == values.shape[0]:
        return values
    if is_tensor(values):
        return values.topk(count, sorted=False).values
    return np.partition(values, values.size - count - 1)[values.size - count :]


class TensorRanks:
    """`ranks.Ranks` for tensors of one device; everything stays there until the positions are known.

    Memory: scores once as they come, twice while they are joined and sorted.
    """

    def __init__(self, backgrounds: int, against: Sequence[Sequence[int]]) -> None:
        self._against = [tuple(sets) for sets in against]
        self._background: list[list[Any]] = [[] for _ in range(backgrounds)]
        self._positive: list[list[tuple[Any, Any]]] = [[] for _ in against]

    def add_background(self, which: int, scores: Any) -> None:
        self._background[which].append(scores.clone())

    def add_positive(self, which: int, scores: Any, regions: np.ndarray) -> None:
        import torch

        self._positive[which].append((scores.clone(), torch.from_numpy(regions).to(scores.device)))

    def background_size(self, which: int) -> int:
        return sum(held.numel() for i in self._against[which] for held in self._background[i])

    def positive_size(self, which: int) -> int:
        return sum(held.numel() for held, _ in self._positive[which])

    def chunks(self, which: int, positive: bool = False) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
        """As those of `ranks.Ranks`, on the host."""
        held = self._positive[which] if positive else [(scores, None) for scores in self._background[which]]
        for scores, regions in held:
            yield scores.cpu().numpy(), None if regions is None else regions.cpu().numpy()

    def blocks(self) -> Iterator[tuple[int, Block]]:
        """One block for each positive set; then the scores are gone."""
        import torch

        backgrounds = []
        for held in self._background:
            backgrounds.append(torch.cat(held).sort().values if held else None)
            held.clear()
        for which, held in enumerate(self._positive):
            if not held:
                continue
            scores, order = (torch.cat([s for s, _ in held]) + 0).sort()  # + 0: -0.0 becomes 0.0
            regions = torch.cat([r for _, r in held])[order]
            held.clear()
            distinct, index = torch.unique_consecutive(scores, return_inverse=True)
            greater = torch.zeros(distinct.shape, dtype=torch.int64, device=distinct.device)
            not_below = torch.zeros_like(greater)
            for i in self._against[which]:
                if backgrounds[i] is None:
                    continue
                dtype = torch.promote_types(backgrounds[i].dtype, distinct.dtype)
                against, wanted = backgrounds[i].to(dtype), distinct.to(dtype)
                greater += against.numel() - torch.searchsorted(against, wanted, right=True)
                not_below += against.numel() - torch.searchsorted(against, wanted)
            index = index.cpu().numpy()
            ones = np.broadcast_to(np.int64(1), index.shape)
            yield which, Block(greater.cpu().numpy(), not_below.cpu().numpy(), index, regions.cpu().numpy(), ones)
