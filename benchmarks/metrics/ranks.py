"""The one pass that all rank metrics share: how many background scores lie above each positive score.

Background scores (defect-free pixels) and positive scores (pixels of regions) come in several sets, so that one pass
serves sets that share background (LOCO: good + logical, good + structural). Every area, AP and F1-max follows from two
integers per distinct positive score: the background scores greater than it and those not below it.

Scores are sorted in chunks while they come in. At the end, values picked from the chunks cut the whole range into
buckets of about BUCKET scores; a bucket gathers its slice of every chunk and is sorted and matched on its own. Time per
score therefore hardly grows with their number, chunks can lie on disk, and nothing is ever merged into one big array.
"""

from __future__ import annotations

import os
import tempfile
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

CHUNK = 1 << 22  # scores sorted at a time
BUCKET = 1 << 20  # scores matched at a time
SAMPLE = BUCKET >> 8  # one score in so many is a candidate for a border between buckets
WORKERS = max(1, min(8, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1))


class MetricError(ValueError):
    """Scores, labels or masks that cannot be scored. The message names the image and what is wrong."""


@dataclass(frozen=True)
class Block:
    """Positions of the scores of one positive set in one value range.

    greater, not_below: int64 [U], counts of background scores > u and >= u, for the distinct positive scores u of the
        block in ascending order.
    index, regions, counts: int64, int32, int64 [n], `counts` positives of a region have the score u[index]; `index`
        ascends.
    """

    greater: np.ndarray
    not_below: np.ndarray
    index: np.ndarray
    regions: np.ndarray
    counts: np.ndarray


@dataclass
class _Chunk:
    """Sorted scores, with a region each if they are positives."""

    scores: np.ndarray
    regions: np.ndarray | None


class _Set:
    """Scores of one set: full chunks, and the one being filled."""

    def __init__(self, regions: bool) -> None:
        self.has_regions = regions
        self.chunks: list[_Chunk | Future[_Chunk]] = []
        self.size = 0
        self.used = 0
        self.scores = np.empty(0, np.float32)
        self.regions: np.ndarray | None = None

    def start(self, dtype: np.dtype) -> None:
        self.scores = np.empty(CHUNK, dtype)  # pages that are never written cost nothing
        self.regions = np.empty(CHUNK, np.int32) if self.has_regions else None
        self.used = 0

    def take(self) -> _Chunk:
        chunk = _Chunk(self.scores[: self.used], None if self.regions is None else self.regions[: self.used])
        self.scores, self.used = np.empty(0, np.float32), 0
        return chunk


class Ranks:
    """Collects background and positive scores by set, and gives their positions.

    backgrounds: number of background sets. against: for each positive set, the background sets that it is held
    against. memory_limit: bytes of scores to keep in memory, None for all; the rest lies in files below `scratch`
    (None: the system's folder for temporary files). Beyond the limit, work in progress takes about 80 MB per thread.
    """

    def __init__(
        self,
        backgrounds: int,
        against: Sequence[Sequence[int]],
        memory_limit: int | None = None,
        scratch: Path | None = None,
    ) -> None:
        self._against = [tuple(sets) for sets in against]
        self._background = [_Set(regions=False) for _ in range(backgrounds)]
        self._positive = [_Set(regions=True) for _ in against]
        self._limit, self._scratch = memory_limit, scratch
        self._held = 0
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._pool: ThreadPoolExecutor | None = None
        self._running: deque[Future[_Chunk]] = deque()
        self._samples: list[np.ndarray] = []

    def add_background(self, which: int, scores: np.ndarray) -> None:
        """scores: float32 or float64 [n], finite; copied."""
        self._add(self._background[which], scores, None)

    def add_positive(self, which: int, scores: np.ndarray, regions: np.ndarray) -> None:
        """scores: float32 or float64 [n], finite; regions: int32 [n], from 0; both copied."""
        self._add(self._positive[which], scores, regions)

    def background_size(self, which: int) -> int:
        """Background scores that positive set `which` is held against."""
        return sum(self._background[i].size for i in self._against[which])

    def positive_size(self, which: int) -> int:
        return self._positive[which].size

    def _add(self, into: _Set, scores: np.ndarray, regions: np.ndarray | None) -> None:
        into.size += scores.size
        start = 0
        while start < scores.size:
            if into.used == into.scores.size or into.scores.dtype != scores.dtype:
                if into.used:
                    self._flush(into)
                into.start(scores.dtype)
            count = min(scores.size - start, into.scores.size - into.used)
            into.scores[into.used : into.used + count] = scores[start : start + count]
            if into.regions is not None and regions is not None:
                into.regions[into.used : into.used + count] = regions[start : start + count]
            into.used += count
            start += count

    def _flush(self, into: _Set) -> None:
        """Has a thread sort the filled chunk, and store it where it belongs."""
        chunk = into.take()
        size = chunk.scores.nbytes + (0 if chunk.regions is None else chunk.regions.nbytes)
        spill = self._limit is not None and self._held + size > self._limit
        if not spill:
            self._held += size
        while len(self._running) >= WORKERS:
            self._running.popleft().result()
        job = self._workers().submit(self._sort, chunk, self._path() if spill else None)
        self._running.append(job)
        into.chunks.append(job)

    def _sort(self, chunk: _Chunk, path: Path | None) -> _Chunk:
        if chunk.regions is None:
            chunk.scores.sort()
        else:
            order = np.argsort(chunk.scores)
            chunk = _Chunk(chunk.scores[order], chunk.regions[order])
        self._samples.append(chunk.scores[SAMPLE // 2 :: SAMPLE].copy())
        if path is None:
            return chunk
        return _Chunk(_to_disk(chunk.scores, path), None if chunk.regions is None else _to_disk(chunk.regions, path))

    def _workers(self) -> ThreadPoolExecutor:
        if self._pool is None:
            self._pool = ThreadPoolExecutor(WORKERS, "ranks")
        return self._pool

    def _path(self) -> Path:
        if self._folder is None:
            if self._scratch is not None:
                self._scratch.mkdir(parents=True, exist_ok=True)
            self._folder = tempfile.TemporaryDirectory(prefix="ranks-", dir=self._scratch)
        return Path(self._folder.name)

    def close(self) -> None:
        """Ends the threads and removes the files; what was added is gone."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
        for held in (*self._background, *self._positive):
            held.chunks.clear()
        if self._folder is not None:
            self._folder.cleanup()

    # Matching

    def blocks(self) -> Iterator[tuple[int, Block]]:
        """Blocks with their positive set, per set from the highest scores to the lowest; then the scores are gone."""
        try:
            yield from self._blocks()
        finally:
            self.close()

    def _blocks(self) -> Iterator[tuple[int, Block]]:
        sets = (*self._background, *self._positive)
        for held in sets:
            if held.used:
                if held.chunks or held.size > BUCKET:
                    self._flush(held)
                else:
                    held.chunks.append(self._sort(held.take(), None))
        chunks = [[c.result() if isinstance(c, Future) else c for c in held.chunks] for held in sets]
        edges = self._edges(sum(held.size for held in sets))
        cuts = [[_cut(chunk.scores, edges) for chunk in group] for group in chunks]
        above = [_above(group, len(edges) + 1) for group in cuts]
        n = len(self._background)

        def match(bucket: int) -> list[tuple[int, Block]]:
            single = 0 < bucket < len(edges) and edges[bucket - 1][0] == edges[bucket][0]
            ready: dict[int, np.ndarray] = {}

            def background(i: int) -> np.ndarray:
                if i not in ready:
                    ready[i] = _sorted([c.scores[q[bucket] : q[bucket + 1]] for c, q in zip(chunks[i], cuts[i], strict=True)])
                return ready[i]

            out = []
            for which, against in enumerate(self._against):
                parts = [
                    _Chunk(c.scores[q[bucket] : q[bucket + 1]], c.regions[q[bucket] : q[bucket + 1]])
                    for c, q in zip(chunks[n + which], cuts[n + which], strict=True)
                    if q[bucket] < q[bucket + 1]
                ]
                if not parts:
                    continue
                if single:
                    first = sum(int(above[i][bucket]) for i in against)
                    last = sum(int(above[i][bucket - 1]) for i in against)
                    out.append((which, _tied(parts, first, last)))
                else:
                    sorted_sets = [(background(i), int(above[i][bucket])) for i in against]
                    out.append((which, _matched(parts, sorted_sets)))
            return out

        order = range(len(edges), -1, -1)
        for found in self._ordered(match, order) if len(edges) > 1 else map(match, order):
            yield from found

    def _ordered(self, work: Callable[[int], list], items: Sequence[int]) -> Iterator[list]:
        """Results in order, a few at a time so that they do not pile up."""
        waiting: deque[Future] = deque()
        for item in items:
            waiting.append(self._workers().submit(work, item))
            if len(waiting) > 2 * WORKERS:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()

    def _edges(self, size: int) -> list[tuple[float, str]]:
        """Borders between buckets in ascending order: (value, side of `searchsorted`).

        A value that fills buckets by itself gets one of its own, which need not be gathered.
        """
        picked = np.sort(np.concatenate(self._samples)) if self._samples else np.empty(0)
        if size <= 2 * BUCKET or picked.size == 0:
            return []
        values, times = np.unique(picked[BUCKET // SAMPLE // 2 :: BUCKET // SAMPLE], return_counts=True)
        edges = []
        for value, count in zip(values, times, strict=True):
            edges.append((value, "left"))
            if count > 1:
                edges.append((value, "right"))
        return edges


def _cut(scores: np.ndarray, edges: list[tuple[float, str]]) -> np.ndarray:
    inner = [int(np.searchsorted(scores, value, side=side)) for value, side in edges]
    return np.array([0, *inner, scores.size])


def _above(cuts: list[np.ndarray], buckets: int) -> np.ndarray:
    """int64 [buckets]: scores in higher buckets."""
    inside = sum((np.diff(q) for q in cuts), np.zeros(buckets, np.int64))
    return np.cumsum(inside[::-1])[::-1] - inside


def _sorted(runs: list[np.ndarray]) -> np.ndarray:
    if len(runs) == 1:
        return np.asarray(runs[0])
    scores = np.concatenate(runs) if runs else np.empty(0, np.float32)
    scores.sort(kind="stable")  # merges the sorted runs
    return scores


def _matched(parts: list[_Chunk], backgrounds: list[tuple[np.ndarray, int]]) -> Block:
    scores = np.concatenate([p.scores for p in parts])
    regions = np.concatenate([p.regions for p in parts])
    if len(parts) > 1:
        order = np.argsort(scores, kind="stable")
        scores, regions = scores[order], regions[order]
    new = np.flatnonzero(scores[1:] != scores[:-1]) + 1
    distinct = scores[np.concatenate(([0], new))]
    index = np.zeros(scores.size, np.int64)
    index[new] = 1
    greater = np.zeros(distinct.size, np.int64)
    not_below = np.zeros(distinct.size, np.int64)
    for held, above in backgrounds:
        greater += above + held.size - np.searchsorted(held, distinct, side="right")
        not_below += above + held.size - np.searchsorted(held, distinct, side="left")
    return Block(greater, not_below, np.cumsum(index), regions, np.ones(scores.size, np.int64))


def _tied(parts: list[_Chunk], greater: int, not_below: int) -> Block:
    """All scores are one value."""
    size = 1 + max(int(p.regions.max()) for p in parts)
    counts = sum((np.bincount(p.regions, minlength=size) for p in parts), np.zeros(size, np.int64))
    regions = np.flatnonzero(counts).astype(np.int32)
    index = np.zeros(regions.size, np.int64)
    return Block(np.array([greater]), np.array([not_below]), index, regions, counts[regions])


def _to_disk(values: np.ndarray, folder: Path) -> np.ndarray:
    """The same values, read from a file when they are used."""
    with tempfile.NamedTemporaryFile(dir=folder, delete=False) as file:
        values.tofile(file)
    return np.memmap(file.name, values.dtype, "r", shape=values.shape)


def exact(what: str, values: np.ndarray) -> np.ndarray:
    """The values as float32 or float64 without loss."""
    dtype = values.dtype
    if dtype in (np.float32, np.float64):
        return values
    if np.can_cast(dtype, np.float32) or dtype == np.bool_:
        return values.astype(np.float32)
    if np.can_cast(dtype, np.float64, "safe") and dtype.kind == "f" or dtype in (np.int32, np.uint32):
        return values.astype(np.float64)
    if dtype.kind in "iu":
        if values.size and (values.max() > 2**53 or values.min() < -(2**53)):
            raise MetricError(f"{what} holds integers beyond 2**53, which float64 cannot tell apart; rescale it")
        return values.astype(np.float64)
    if dtype.kind == "f":
        exact = values.astype(np.float64)
        if not np.array_equal(exact, values):
            raise MetricError(f"{what} is {dtype} and does not fit into float64; convert it first")
        return exact
    raise MetricError(f"{what} has type {dtype}; expected real numbers")
