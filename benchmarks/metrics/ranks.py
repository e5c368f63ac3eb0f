"""The one pass that all rank metrics share: how many background scores lie above each positive score.

Background scores (defect-free pixels) and positive scores (pixels of regions) come in several sets, so that one pass
serves sets that share background (LOCO: good + logical, good + structural). Every area, AP and F1-max follows from two
integers per distinct positive score: the background scores greater than it and those not below it.

Scores are compared as the integers that their bits are, put in order. Pieces that fit a processor's cache are parted by
leading digits (a counting sort), a bucket gathers its slice of every piece, and within a bucket the
background is counted by key; only where that would take more counters than scores, the few scores that share a counter
with a positive one are sorted. Time per score therefore does not grow with their number, the pieces can lie on disk,
and nothing is ever brought together in one big array.
"""

from __future__ import annotations

import mmap
import os
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

CHUNK = 1 << 22  # scores kept in one array, in memory or in a file
PIECE = 1 << 18  # scores parted at a time
BUCKET = 1 << 20  # scores matched at a time, at least; for many scores up to 4 times that
DIGITS = 14  # bits by which scores are parted
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
class _Piece:
    """Scores or keys, with a region each if they are positives."""

    keys: np.ndarray
    regions: np.ndarray | None

    def cut(self, start: int, stop: int) -> _Piece:
        return _Piece(self.keys[start:stop], None if self.regions is None else self.regions[start:stop])


@dataclass
class _Bucket:
    """All scores in one range of keys: pieces by set, background sets first. above: background scores beyond it."""

    pieces: list[list[_Piece]]
    low: int
    high: int
    above: list[int] = field(default_factory=list)

    def sizes(self) -> list[int]:
        return [sum(p.keys.size for p in held) for held in self.pieces]


class _Set:
    """Scores of one set: full chunks, and the one being filled."""

    def __init__(self) -> None:
        self.chunks: list[_Piece] = []
        self.size = 0
        self.used = 0
        self.open = _Piece(np.empty(0, np.float32), None)


class Ranks:
    """Collects background and positive scores by set, and gives their positions.

    backgrounds: number of background sets. against: for each positive set, the background sets that it is held
    against. memory_limit: bytes of scores to keep in memory, None for all; the rest lies in files below `scratch`
    (None: the system's folder for temporary files). Beyond the limit, each set takes a chunk of 16 MB (float64: 32 MB,
    positives twice that), and matching about 150 MB per thread.
    """

    def __init__(
        self,
        backgrounds: int,
        against: Sequence[Sequence[int]],
        memory_limit: int | None = None,
        scratch: Path | None = None,
    ) -> None:
        self._against = [tuple(sets) for sets in against]
        self._background = [_Set() for _ in range(backgrounds)]
        self._positive = [_Set() for _ in against]
        self._limit, self._scratch = memory_limit, scratch
        self._held = 0
        self._range = [np.inf, -np.inf]
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._pool: ThreadPoolExecutor | None = None

    def add_background(self, which: int, scores: np.ndarray) -> None:
        """scores: float32 or float64 [n], finite; copied."""
        self._add(self._background[which], _Piece(scores, None))

    def add_positive(self, which: int, scores: np.ndarray, regions: np.ndarray) -> None:
        """scores: float32 or float64 [n], finite; regions: int32 [n], from 0; both copied."""
        self._add(self._positive[which], _Piece(scores, regions))

    def background_size(self, which: int) -> int:
        """Background scores that positive set `which` is held against."""
        return sum(self._background[i].size for i in self._against[which])

    def positive_size(self, which: int) -> int:
        return self._positive[which].size

    def chunks(self, which: int, positive: bool = False) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
        """Scores and, of a positive set, regions, in the order in which they were added; before `blocks` only."""
        held = (self._positive if positive else self._background)[which]
        self._flush(held)
        for chunk in held.chunks:
            yield chunk.keys.view(np.ndarray), None if chunk.regions is None else chunk.regions.view(np.ndarray)

    def close(self) -> None:
        """Ends the threads and removes the files; what was added is gone."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None
        for held in (*self._background, *self._positive):
            held.chunks.clear()
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None

    def blocks(self) -> Iterator[tuple[int, Block]]:
        """Blocks with their positive set, per set from the highest scores to the lowest; then the scores are gone."""
        try:
            for found in self._ordered(self._match, self._buckets()):
                yield from found
        finally:
            self.close()

    # Keeping

    def _add(self, into: _Set, scores: _Piece) -> None:
        size, start = scores.keys.size, 0
        if not size:
            return
        into.size += size
        self._range = [min(self._range[0], float(scores.keys.min())), max(self._range[1], float(scores.keys.max()))]
        while start < size:
            if into.used == into.open.keys.size or into.open.keys.dtype != scores.keys.dtype:
                self._flush(into)
                regions = None if scores.regions is None else np.empty(CHUNK, np.int32)
                into.open = _Piece(np.empty(CHUNK, scores.keys.dtype), regions)  # unwritten pages cost nothing
            count = min(size - start, into.open.keys.size - into.used)
            part, room = scores.cut(start, start + count), into.open.cut(into.used, into.used + count)
            room.keys[:] = part.keys
            if room.regions is not None:
                room.regions[:] = part.regions
            into.used += count
            start += count

    def _flush(self, into: _Set) -> None:
        """Puts the chunk being filled to the full ones, in memory or on disk."""
        if not into.used:
            return
        chunk = into.open.cut(0, into.used)
        size = chunk.keys.nbytes + (0 if chunk.regions is None else chunk.regions.nbytes)
        if self._limit is not None and self._held + size > self._limit:
            regions = None if chunk.regions is None else self._to_disk(chunk.regions)
            chunk = _Piece(self._to_disk(chunk.keys), regions)
        else:
            self._held += size
        into.chunks.append(chunk)
        into.open, into.used = _Piece(np.empty(0, np.float32), None), 0

    def _to_disk(self, values: np.ndarray) -> np.ndarray:
        """The same values in a file, read and written where they are used."""
        if self._folder is None:
            if self._scratch is not None:
                self._scratch.mkdir(parents=True, exist_ok=True)
            self._folder = tempfile.TemporaryDirectory(prefix="ranks-", dir=self._scratch)
        with tempfile.NamedTemporaryFile(dir=self._folder.name, delete=False) as file:
            values.tofile(file)
        return np.memmap(file.name, values.dtype, "r+", shape=values.shape)

    # Parting

    def _buckets(self) -> Iterator[_Bucket]:
        """Buckets with positives, from the highest range to the lowest."""
        sets = (*self._background, *self._positive)
        for held in sets:
            self._flush(held)
        total = sum(held.size for held in sets)
        if not total:
            return
        dtype = np.result_type(*(chunk.keys.dtype for held in sets for chunk in held.chunks))
        pieces = [[] for _ in sets]
        for row, held in zip(pieces, sets, strict=True):
            for chunk in held.chunks:
                if chunk.keys.dtype != dtype:
                    chunk.keys = chunk.keys.astype(dtype)
                for start in range(0, chunk.keys.size, PIECE):
                    row.append(chunk.cut(start, start + PIECE))
        list(self._mapped(_encode, [piece for row in pieces for piece in row]))
        for row in pieces:
            for piece in row:
                piece.keys = piece.keys.view(f"u{dtype.itemsize}")
        ends = _Piece(np.array(self._range, dtype), None)
        _encode(ends)
        low, high = (int(key) for key in ends.keys.view(f"u{dtype.itemsize}"))
        above = [0] * len(self._background)
        most = max(BUCKET, min(total // 64, (4 if self._limit is None else 2) * BUCKET))
        for bucket in self._parted(_Bucket(pieces, low, high), most):
            sizes = bucket.sizes()[: len(above)]
            bucket.above = above
            above = [a + b for a, b in zip(above, sizes, strict=True)]
            if any(bucket.pieces[len(above) :]):
                yield bucket

    def _parted(self, whole: _Bucket, most: int) -> Iterator[_Bucket]:
        """The bucket in parts of about `most` scores, or of one value, in descending order."""
        if whole.low == whole.high or sum(whole.sizes()) <= 2 * most:
            yield whole
            return
        shift = max(0, (whole.high - whole.low).bit_length() - DIGITS)
        every = [piece for held in whole.pieces for piece in held]
        histograms = self._mapped(lambda piece: _part(piece, whole.low, shift), every)
        counts = np.zeros(1 << DIGITS, np.int64)
        for histogram in histograms:
            counts += histogram
        group = (np.cumsum(counts) - counts) // most
        large = counts > most
        new = np.flatnonzero((np.diff(group) != 0) | large[1:] | large[:-1]) + 1
        new = new[new <= (whole.high - whole.low) >> shift]
        edges = [whole.low, *(whole.low + (int(cell) << shift) for cell in new), whole.high + 1]
        inner = np.array(edges[1:-1], every[0].keys.dtype)
        # keys are in the order of their cells, so positions of cell borders can be searched for
        cuts = [_cuts(held, inner) for held in whole.pieces]
        for i in range(len(edges) - 2, -1, -1):
            pieces = [
                [p.cut(int(q[i]), int(q[i + 1])) for p, q in zip(held, rows, strict=True) if q[i] < q[i + 1]]
                for held, rows in zip(whole.pieces, cuts, strict=True)
            ]
            if any(pieces):
                yield from self._parted(_Bucket(pieces, edges[i], edges[i + 1] - 1), most)

    # Matching

    def _match(self, bucket: _Bucket) -> list[tuple[int, Block]]:
        n = len(self._background)
        positives = [(which, held) for which, held in enumerate(bucket.pieces[n:]) if held]
        if bucket.low == bucket.high:
            return [(which, self._tied(bucket, which, held)) for which, held in positives]
        sets = [_ascending(held) for _, held in positives]
        every = sets[0][0] if len(sets) == 1 else np.unique(np.concatenate([distinct for distinct, _, _ in sets]))
        positions: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        out = []
        for (which, _), (distinct, index, regions) in zip(positives, sets, strict=True):
            at = np.searchsorted(every, distinct)
            greater = np.zeros(distinct.size, np.int64)
            not_below = np.zeros(distinct.size, np.int64)
            for i in self._against[which]:
                if i not in positions:
                    positions[i] = _positions(bucket.pieces[i], every, bucket.low, bucket.high)
                greater += positions[i][0][at] + bucket.above[i]
                not_below += positions[i][1][at] + bucket.above[i]
            out.append((which, Block(greater, not_below, index, regions, np.broadcast_to(np.int64(1), index.shape))))
        return out

    def _tied(self, bucket: _Bucket, which: int, held: list[_Piece]) -> Block:
        """All scores of the bucket are one value, so that nothing need be gathered."""
        sizes = bucket.sizes()
        greater = sum(bucket.above[i] for i in self._against[which])
        not_below = greater + sum(sizes[i] for i in self._against[which])
        size = 1 + max(int(p.regions.max()) for p in held)
        counts = sum((np.bincount(p.regions, minlength=size) for p in held), np.zeros(size, np.int64))
        regions = np.flatnonzero(counts).astype(np.int32)
        index = np.zeros(regions.size, np.int64)
        return Block(np.array([greater]), np.array([not_below]), index, regions, counts[regions])

    # Threads

    def _ordered(self, work: Callable, items: Iterable) -> Iterator:
        """Results in order, a few at a time so that they do not pile up. One item needs no threads."""
        waiting: deque[Future] = deque()
        items = iter(items)
        first, second = next(items, None), next(items, None)
        if second is None:
            if first is not None:
                yield work(first)
            return
        if self._pool is None:
            self._pool = ThreadPoolExecutor(WORKERS, "ranks")
        for item in (first, second):
            waiting.append(self._pool.submit(work, item))
        for item in items:
            waiting.append(self._pool.submit(work, item))
            if len(waiting) > WORKERS + 1:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()

    def _mapped(self, work: Callable[[_Piece], Any], items: Sequence[_Piece]) -> Iterator[Any]:
        """Results in order, pieces in batches so that threads are worth it."""

        def batch_of(pieces: Sequence[_Piece]) -> list[Any]:
            results = [work(piece) for piece in pieces]
            _release(pieces)
            return results

        size = max(1, min(64, len(items) // (2 * WORKERS)))
        if sum(piece.keys.size for piece in items) < PIECE:
            size = len(items) or 1
        batches = [items[i : i + size] for i in range(0, len(items), size)]
        for results in self._ordered(batch_of, batches):
            yield from results


def _encode(piece: _Piece) -> None:
    """Turns scores, in place, into bits that as unsigned integers are in the order of the scores."""
    values = piece.keys
    values += 0  # -0.0 becomes 0.0
    bits = values.view(f"i{values.dtype.itemsize}")
    width = 8 * values.dtype.itemsize
    sign = bits >> (width - 1)
    sign |= np.array(1, bits.dtype) << (width - 1)
    bits ^= sign


def _part(piece: _Piece, low: int, shift: int) -> np.ndarray:
    """Puts a piece in the order of its cells, (key - low) >> shift; returns the number of keys by cell."""
    from benchmarks.metrics.kernels import part

    counts = np.zeros(1 << DIGITS, np.int64)
    number = piece.keys.dtype.type
    regions = np.empty(0, np.int32) if piece.regions is None else piece.regions.view(np.ndarray)
    part(piece.keys.view(np.ndarray), regions, number(low), number(shift), counts)
    return counts


def _cuts(held: list[_Piece], edges: np.ndarray) -> list[np.ndarray]:
    """int64 [edges + 2] for each piece: where its buckets begin and end."""
    out = []
    for i, piece in enumerate(held):
        out.append(np.concatenate(([0], np.searchsorted(piece.keys, edges), [piece.keys.size])))
        if i % 16 == 15:
            _release(held[i - 15 : i + 1])
    return out


def _gather(held: list[_Piece]) -> _Piece:
    """One piece of all."""
    size = sum(p.keys.size for p in held)
    out = _Piece(np.empty(size, held[0].keys.dtype), None if held[0].regions is None else np.empty(size, np.int32))
    start = 0
    for i, piece in enumerate(held):
        stop = start + piece.keys.size
        out.keys[start:stop] = piece.keys
        if out.regions is not None:
            out.regions[start:stop] = piece.regions
        start = stop
        if i % 16 == 15:
            _release(held[i - 15 : i + 1])
    return out


def _release(held: Iterable[_Piece]) -> None:
    """Has the pages of pieces on disk leave this process; what was written to them stays in the file."""
    for piece in held:
        for values in (piece.keys, piece.regions):
            if isinstance(values, np.memmap) and hasattr(mmap, "MADV_DONTNEED"):
                values._mmap.madvise(mmap.MADV_DONTNEED)


def _ascending(held: list[_Piece]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Distinct keys, and for each key of the pieces in ascending order its index among them, and its region."""
    whole = _gather(held)
    order = np.argsort(whole.keys)
    keys, regions = whole.keys[order], whole.regions[order]
    first = np.ones(keys.size, bool)
    np.not_equal(keys[1:], keys[:-1], out=first[1:])
    return keys[first], np.cumsum(first) - 1, regions


def _positions(held: list[_Piece], wanted: np.ndarray, low: int, high: int) -> tuple[np.ndarray, np.ndarray]:
    """int64 [n] each: keys of the pieces > and >= the wanted ones, which ascend. All lie from low to high."""
    if not held:
        return np.zeros(wanted.size, np.int64), np.zeros(wanted.size, np.int64)
    from benchmarks.metrics.kernels import count, select, sums_from

    keys = _gather(held).keys
    number = keys.dtype.type
    base, shift = number(low), number(max(0, (high - low).bit_length() - max(keys.size, 64).bit_length()))
    counts = np.zeros(((high - low) >> int(shift)) + 1, np.int32)
    count(keys, base, shift, counts)
    at = ((wanted - base) >> shift).astype(np.int64)
    if not shift:  # a cell is a key
        not_below = sums_from(counts, at)
        return not_below - counts[at], not_below
    doubtful = np.zeros(counts.size, bool)
    doubtful[at] = True
    rest = np.sort(keys[: select(keys, base, shift, doubtful)])
    counts[at] = 0
    above = sums_from(counts, at) + rest.size
    return above - np.searchsorted(rest, wanted, side="right"), above - np.searchsorted(rest, wanted, side="left")


def exact(what: str, values: np.ndarray) -> np.ndarray:
    """The values as float32 or float64 without loss."""
    dtype = values.dtype
    if dtype in (np.float32, np.float64):
        return values
    if np.can_cast(dtype, np.float32) or dtype == np.bool_:
        return values.astype(np.float32)
    if dtype.kind in "iu":
        if dtype.itemsize > 4 and values.size and (values.max() > 2**53 or values.min() < -(2**53)):
            raise MetricError(f"{what} holds integers beyond 2**53, which float64 cannot tell apart; rescale it")
        return values.astype(np.float64)
    if dtype.kind == "f":  # other byte orders, long double
        exact = values.astype(np.float64)
        if not np.array_equal(exact, values, equal_nan=True):
            raise MetricError(f"{what} is {dtype} and does not fit into float64; convert it first")
        return exact
    raise MetricError(f"{what} has type {dtype}; expected real numbers")
