"""Decoded pictures of a category in one file, so that every method and seed after the first reads plain pixels.

A file holds the pixels of all pictures one after the other (uint8, original sizes), an index as JSON, the length of
the index and a closing mark: it is whole or it is not taken. Its name is a digest of what it holds, so a changed
category never meets an old file.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from datasets.base import DatasetError, Sample
from datasets.images import Pictures, decode, picture_size

VERSION = 1  # raise it when decoding or the file's form changes
SUFFIX = ".pixels"
MARK = b"pixels\r\n"
THREADS = min(8, os.cpu_count() or 1)
STALE_S = 3600.0  # an unfinished file that has not grown for so long was left by a dead run

Progress = Callable[[int, int], None]
Place = tuple[int, tuple[int, int, int]]  # offset in the file, shape


class CachedPictures(Pictures):
    """Pictures read from a cache file; each access gives a fresh array equal to `decode(sample.path)`."""

    def __init__(self, samples: Sequence[Sample], file: BinaryIO, places: Sequence[Place]) -> None:
        super().__init__(samples)
        self._file, self._places = file, tuple(places)

    def __getitem__(self, index):  # type: ignore[override]
        if isinstance(index, slice):
            return type(self)(self.samples[index], self._file, self._places[index])
        offset, shape = self._places[index]
        # Mapped anew each time: a mapping that stays would count all pixels as this process' memory.
        return np.array(np.memmap(self._file, np.uint8, "r", offset, shape))


def cached(
    samples: Sequence[Sample], fingerprint: str, folder: Path | None, max_bytes: int, progress: Progress | None = None
) -> tuple[Pictures, str]:
    """The pictures of `samples`, decoded once into `folder`, and a warning ('' when all went well).

    fingerprint: of the category's files; with the samples' names it is the key. max_bytes: bound on the whole folder;
    files that were not used for longest make room. progress: called with (pictures decoded, pictures in all).
    Without a folder or a bound, when the category alone is larger than the bound, and when the folder cannot be
    written, the pictures are decoded on access, as `Pictures` does. Raises DatasetError for a picture that cannot be
    decoded. Safe in several processes at once: one decodes, the others wait for it.
    """
    plain = Pictures(samples)
    if folder is None or max_bytes <= 0 or not samples:
        return plain, ""
    names = ["/".join(s.path.parts[-3:]) for s in samples]  # split, kind, file: the same wherever the data lies
    key = hashlib.sha256(json.dumps([VERSION, fingerprint, names]).encode()).hexdigest()[:32]
    path = folder / f"{key}{SUFFIX}"
    found = _read(path, samples)
    if found:
        return found, ""
    sizes = [picture_size(s.path) for s in samples]
    need = sum(3 * width * height for width, height in sizes)
    if need > max_bytes:
        return plain, f"pictures not cached: {need / 1e6:.0f} MB decoded, the bound is {max_bytes / 1e6:.0f} MB"
    from filelock import FileLock

    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _held(FileLock(folder / f".{key}.lock"), lambda: progress and progress(0, len(samples))):
            found = _read(path, samples)
            if not found:
                _make_room(folder, max_bytes - need, path)
                _write(path, samples, progress)
                found = _read(path, samples)
    except (OSError, NotImplementedError) as error:  # the latter: a file system without locks
        return plain, f"pictures not cached: {folder} cannot be written ({getattr(error, 'strerror', None) or error})"
    return (found, "") if found else (plain, "pictures not cached: the files changed meanwhile")


@contextmanager
def _held(lock: Any, beat: Callable[[], Any]) -> Iterator[None]:
    """Hold a file lock; while another process has it, `beat` is called every second (it may raise to give up)."""
    from filelock import Timeout

    while True:
        try:
            lock.acquire(timeout=1)
            break
        except Timeout:
            beat()
    try:
        yield
    finally:
        lock.release()


def _stamp(path: Path) -> list[int]:
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns]


def _read(path: Path, samples: Sequence[Sample]) -> CachedPictures | None:
    """The pictures in a cache file; None when it is absent, damaged, or made from files that have changed since."""
    try:
        file = path.open("rb")
    except OSError:
        return None
    try:
        end = file.seek(-len(MARK) - 8, os.SEEK_END)
        length = int.from_bytes(file.read(8), "little")
        if file.read() != MARK or length > end:
            raise ValueError("no closing mark")
        file.seek(end - length)
        entries = json.loads(file.read(length))
        places, offset = [], 0
        for sample, (shape, stamp) in zip(samples, entries, strict=True):
            if stamp != _stamp(sample.path):
                raise ValueError("changed")
            height, width, channels = shape
            places.append((offset, (height, width, channels)))
            offset += height * width * channels
        if offset != end - length:
            raise ValueError("size")
    except (OSError, ValueError, TypeError, RecursionError):
        file.close()
        return None
    with suppress(OSError):  # marks the file as used now, for the order in which files are removed
        os.utime(path)
    return CachedPictures(samples, file, places)


def _write(path: Path, samples: Sequence[Sample], progress: Progress | None) -> None:
    """Decode in threads and write in order, to a temporary file that is then renamed."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}-", suffix=".part")
    try:
        index = []
        with os.fdopen(handle, "wb") as file:
            for done, (array, stamp) in enumerate(_decoded(samples), 1):
                file.write(array.data)
                index.append((array.shape, stamp))
                if progress:
                    progress(done, len(samples))
            text = json.dumps(index).encode()
            file.write(text + len(text).to_bytes(8, "little") + MARK)
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(name)
        raise


def _decoded(samples: Sequence[Sample]) -> Iterator[tuple[np.ndarray, list[int]]]:
    """Each picture with its file's stamp from before decoding, in order, a few decoded ahead."""

    def load(sample: Sample) -> tuple[np.ndarray, list[int]]:
        try:
            stamp = _stamp(sample.path)
        except OSError as error:
            raise DatasetError(f"{sample.path}: cannot be read ({error.strerror})") from error
        return decode(sample.path, sample.white_level), stamp

    with ThreadPoolExecutor(THREADS) as pool:
        ahead: deque = deque()
        try:
            for sample in samples:
                ahead.append(pool.submit(load, sample))
                if len(ahead) > 2 * THREADS:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            for future in ahead:
                future.cancel()


def _make_room(folder: Path, limit: int, keep: Path) -> None:
    """Remove the files unused for longest until the folder's rest is within `limit` bytes."""
    files = []
    for path in folder.iterdir():
        with suppress(OSError):
            stat = path.stat()
            if path.suffix == ".part" and time.time() - stat.st_mtime > STALE_S:
                path.unlink()
            elif path.suffix in (SUFFIX, ".part") and path != keep:
                files.append((stat.st_mtime_ns, stat.st_size, path))
    total = sum(size for _, size, _ in files)
    for _, size, path in sorted(files):
        if total <= limit:
            break
        if path.suffix == SUFFIX:
            with suppress(OSError):  # where an open file cannot be removed, it is in use
                path.unlink()
                total -= size
