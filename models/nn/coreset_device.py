"""The greedy selection of `models.nn.coreset` in tensor operations of fixed shapes, for GPUs.

The bounds are those of the compiled form: the triangle inequality over the points' nearest selections, and lengths in
a few leading directions, which one narrow product gives for all points. Only the points that both leave open are read.

No step waits for the host: the chosen index, the distances and the counts stay on the device, so that on a GPU one
captured graph is replayed for every step. Fixed shapes need a bound on how many points a step reads. It is taken from
the steps before; a block of steps in which it did not suffice is taken back and repeated, with all points if need be.
The host looks at that, and shows progress, once in a block.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from models.base import Progress
from models.nn.leading import leading

STEPS = 256  # selections in a block
FIRST = 16  # selections in the first block; bounds spare little before
BUDGET = 64 << 20  # bytes of float64 differences at a time


class _State:
    """Everything a step reads and writes, in place. The last point is no point: it takes what falls beside."""

    def __init__(self, points: Tensor, count: int, start: int) -> None:
        total, device = len(points), points.device
        self.points = points
        self.heads, self.slack = leading(points)
        self.lengths = self.heads.square().sum(1)  # squared
        self.longest = self.lengths.amax()
        self.nearest = torch.full((total + 1,), torch.inf, device=device)  # squared; -1 once taken
        self.nearest[total] = -1.0
        self.owner = torch.zeros(total + 1, dtype=torch.int64, device=device)  # which selection is nearest
        self.index = torch.full((1,), start, dtype=torch.int64, device=device)  # the next selection
        self.step = torch.zeros(1, dtype=torch.int64, device=device)
        self.chosen = torch.zeros(count, dtype=torch.int64, device=device)
        self.centres = torch.zeros(count, self.heads.shape[1], device=device)  # heads of the selections
        self.norms = torch.zeros(count, device=device)
        self.most = torch.zeros(1, dtype=torch.int64, device=device)  # points that a step had to read, at most
        self.read = torch.zeros(1, dtype=torch.int64, device=device)  # and in sum

    def changing(self) -> list[Tensor]:
        """What a block must put back before it is repeated; the rest is written anew."""
        return [self.nearest, self.owner, self.index, self.step, self.read]


def select(points: Tensor, count: int, start: int, progress: Progress, stats: dict[str, Any] | None) -> Tensor:
    """Indices int64 [count] in the order of selection, on the device of `points` float32 [N, D]."""
    state = _State(points, count, start)
    run = _Runner(state)
    done, capacity, distances = 0, len(points), 0
    curve = []
    while done < count:
        until = min(count, done + STEPS if done >= STEPS else max(2 * done, FIRST))
        before = [tensor.clone() for tensor in state.changing()]
        state.most.zero_()
        run(until - done, capacity, min(count, 1 << (until - 1).bit_length()))
        most, read = torch.cat([state.most, state.read]).tolist()  # the host's only wait in this block
        if most > capacity:
            for tensor, old in zip(state.changing(), before, strict=True):
                tensor.copy_(old)
            capacity = _capacity(most, len(points))
            continue
        curve.append((until, (read - distances) / ((until - done) * len(points))))
        distances = read
        done, capacity = until, _capacity(most, len(points))
        progress(done, count)
    if stats is not None:
        stats.update(distances=distances, share=distances / (len(points) * count), curve=curve)
    return state.chosen


def _capacity(most: int, total: int) -> int:
    """A power of two with some room, so that few graphs are captured; all points where picking them out costs more."""
    wanted = max(256, 1 << (most + most // 4).bit_length())
    return wanted if wanted <= total // 4 else total


class _Runner:
    """Repeats the step: as a captured graph on a GPU, else one operation after the other."""

    def __init__(self, state: _State) -> None:
        self.state = state
        self._graphs: dict[tuple[int, int], Any] = {}

    def __call__(self, times: int, capacity: int, slots: int) -> None:
        """slots: how many selections the bounds run over; at least as many as there are after these steps."""
        everything = capacity >= len(self.state.points)

        def step() -> None:
            _all(self.state, slots) if everything else _some(self.state, slots, capacity)

        with _any_order():
            if self.state.points.device.type != "cuda":
                for _ in range(times):
                    step()
                return
            with torch.cuda.device(self.state.points.device):  # a capture records the current device's stream
                for _ in range(times - self._captured((capacity, slots), step)):
                    self._graphs[capacity, slots].replay()

    def _captured(self, shape: tuple[int, int], step: Callable[[], None]) -> int:
        """Capture the step where it is not yet; returns how many steps that took (capturing runs none)."""
        if shape in self._graphs:
            return 0
        step()  # once outside, so that libraries set up what they may not set up within a capture
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            step()
        self._graphs = {shape: graph}  # shapes do not come back: an older graph would only hold memory
        return 1


@contextmanager
def _any_order() -> Iterator[None]:
    """Without the deterministic forms of writing to indices, which sort them: here no index is written twice."""
    asked = torch.are_deterministic_algorithms_enabled()
    only_warned = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(False)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(asked, warn_only=only_warned)


def _begin(s: _State) -> Tensor:
    """Note the selection; returns its point float64 [1, D]."""
    s.chosen.index_copy_(0, s.step, s.index)
    s.centres.index_copy_(0, s.step, s.heads.index_select(0, s.index))
    s.norms.index_copy_(0, s.step, s.lengths.index_select(0, s.index))
    return s.points.index_select(0, s.index).double()


def _end(s: _State) -> None:
    s.nearest.index_fill_(0, s.index, -1.0)
    s.index.copy_(s.nearest.argmax(0, keepdim=True))
    s.step.add_(1)


def _all(s: _State, slots: int) -> None:
    """One selection with every distance; counts how many the bounds would have asked for."""
    centre = _begin(s)
    _count(s, _open(s, slots))
    low, owner = s.nearest[:-1], s.owner[:-1]
    rows = max(1, BUDGET // (8 * s.points.shape[1]))
    for part, nearest, own in zip(s.points.split(rows), low.split(rows), owner.split(rows), strict=True):
        distance = (part.double() - centre).square_().sum(1).float()
        own.copy_(torch.where(distance < nearest, s.step, own))
        torch.minimum(nearest, distance, out=nearest)
    _end(s)


def _some(s: _State, slots: int, capacity: int) -> None:
    """One selection with the distances that the bounds do not spare, as long as they are no more than `capacity`."""
    centre = _begin(s)
    wanted = _open(s, slots)
    _count(s, wanted)
    total = len(s.points)
    places = torch.nonzero_static(wanted, size=capacity, fill_value=total)[:, 0]
    rows = max(1, BUDGET // (8 * s.points.shape[1]))
    for some in places.split(rows):
        part = s.points.index_select(0, some.clamp(max=total - 1))
        distance = (part.double() - centre).square_().sum(1).float()
        old = s.nearest.index_select(0, some)
        s.owner.index_copy_(0, some, torch.where(distance < old, s.step, s.owner.index_select(0, some)))
        s.nearest.index_copy_(0, some, torch.minimum(old, distance))
    _end(s)


def _count(s: _State, wanted: Tensor) -> None:
    found = wanted.sum()
    torch.maximum(s.most, found, out=s.most)
    s.read.add_(found)


def _open(s: _State, slots: int) -> Tensor:
    """Which points, bool [N + 1], may come nearer by the bounds."""
    # nearest selection a, new selection c: d(c, p) >= d(c, a) - d(a, p), so p stays when d(c, a) >= 2 d(a, p)
    between = _squared(s, s.centres[:slots], s.norms[:slots])
    may = between.index_select(0, s.owner) < _widened(2 * s.nearest.clamp_min(0).sqrt(), s.slack)
    may[:-1] &= _squared(s, s.heads, s.lengths) < _widened(s.nearest[:-1].clamp_min(0).sqrt(), s.slack)
    return may & (s.nearest > 0)


def _squared(s: _State, heads: Tensor, norms: Tensor) -> Tensor:
    """Squared lengths [n] between heads and the new selection's from one product, less what rounding may have added."""
    centre, own = s.centres.index_select(0, s.step)[0], s.norms.index_select(0, s.step)
    squared = torch.addmv(norms, heads, centre, alpha=-2).add_(own)
    return squared.sub_((len(centre) + 8) * 2.0**-23 * (own + s.longest))


def _widened(length: Tensor, slack: float) -> Tensor:
    """A squared length in the heads from which on the distance is certain to reach `length`."""
    return ((length + slack) * (1.0 + 1e-5)).square_()
