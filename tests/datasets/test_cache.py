"""The decode cache: equal to decoding, right when files change, bounded, and never in the way."""

from __future__ import annotations

import multiprocessing
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datasets import cache
from datasets.base import DatasetError, Sample
from datasets.cache import SUFFIX, CachedPictures, cached
from datasets.checking import fingerprint
from datasets.images import Pictures
from datasets.layouts import scan
from tests.conftest import make_mvtec
from tests.datasets.conftest import put

BOUND = 10**8


def samples_of(root: Path) -> tuple[list[Sample], str]:
    category = scan("own", root.name, root)
    return [*category.train, *category.validation, *category.test], fingerprint(category)


def files(folder: Path) -> list[Path]:
    return sorted(folder.glob(f"*{SUFFIX}"))


def same(left: Pictures, right: Pictures) -> bool:
    return len(left) == len(right) and all(np.array_equal(a, b) for a, b in zip(left, right, strict=True))


@pytest.fixture
def decodes(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that the cache decoded."""
    seen: list[Path] = []
    real = cache.decode
    monkeypatch.setattr(cache, "decode", lambda path, *level: seen.append(path) or real(path, *level))
    return seen


def test_equal_to_decoding_and_decoded_once(mvtec: Path, tmp_path: Path, decodes: list[Path]) -> None:
    put(mvtec / "test/good/mixed.jpg", np.full((31, 17, 3), 77, np.uint8))
    samples, print_ = samples_of(mvtec)
    steps: list[tuple[int, int]] = []
    first, warning = cached(samples, print_, tmp_path / "cache", BOUND, lambda *step: steps.append(step))
    assert warning == "" and isinstance(first, CachedPictures) and same(first, Pictures(samples))
    assert steps == [(i + 1, 15) for i in range(15)] and len(decodes) == 15
    again, warning = cached(samples, print_, tmp_path / "cache", BOUND, lambda *step: steps.append(step))
    assert warning == "" and same(again, first) and len(decodes) == 15 and len(steps) == 15
    picture = again[3]
    assert type(picture) is np.ndarray and picture.dtype == np.uint8 and picture.flags.writeable
    picture[:] = 0
    assert again[3].any() and again[-1].shape == Pictures(samples)[-1].shape
    part = again[6:10]
    assert isinstance(part, Pictures) and same(part, Pictures(samples[6:10])) and part.samples == tuple(samples[6:10])
    with pytest.raises(IndexError):
        again[15]
    assert len(files(tmp_path / "cache")) == 1 and not list((tmp_path / "cache").glob("*.part"))


def test_one_changed_pixel_of_one_file_on_disk_invalidates(mvtec: Path, tmp_path: Path, decodes: list[Path]) -> None:
    samples, before = samples_of(mvtec)
    cached(samples, before, tmp_path / "cache", BOUND)
    path = samples[2].path
    stat, array = path.stat(), np.array(Image.open(path))
    array[5, 6, 1] ^= 1
    put(path, array)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    samples, after = samples_of(mvtec)
    decodes.clear()
    pictures, _ = cached(samples, after, tmp_path / "cache", BOUND)
    assert after != before and len(decodes) == len(samples) and np.array_equal(pictures[2], array)


def test_a_file_changed_after_its_fingerprint_was_taken_is_decoded_again(
    mvtec: Path, tmp_path: Path, decodes: list[Path]
) -> None:
    samples, print_ = samples_of(mvtec)
    cached(samples, print_, tmp_path / "cache", BOUND)
    put(samples[0].path, np.full((9, 9, 3), 5, np.uint8))
    pictures, warning = cached(samples, print_, tmp_path / "cache", BOUND)
    assert warning == "" and pictures[0].shape == (9, 9, 3) and same(pictures, Pictures(samples))


def test_splits_of_equal_file_names_are_kept_apart(mvtec: Path, tmp_path: Path) -> None:
    category = scan("own", "nut", mvtec)
    train, test = category.train[:4], category.test[:4]
    assert [s.path.name for s in train] == [s.path.name for s in test]
    for part in (train, test):
        assert same(cached(part, "x", tmp_path / "cache", BOUND)[0], Pictures(part))
    assert len(files(tmp_path / "cache")) == 2


def test_another_place_of_the_same_data_shares_the_cache(mvtec: Path, tmp_path: Path, decodes: list[Path]) -> None:
    samples, print_ = samples_of(mvtec)
    cached(samples, print_, tmp_path / "cache", BOUND)
    moved = tmp_path / "moved"
    shutil.copytree(mvtec, moved)  # keeps the times
    samples, print_ = samples_of(moved)
    decodes.clear()
    assert same(cached(samples, print_, tmp_path / "cache", BOUND)[0], Pictures(samples)) and decodes == []


@pytest.mark.parametrize("damage", [
    lambda b: b[:-1], lambda b: b[: len(b) // 2], lambda b: b"", lambda b: b + b"x", lambda b: b"\0" * len(b),
    lambda b: b[100:], lambda b: b.replace(b"[[[40", b"[[[41"), lambda b: b"x" * 5, lambda b: b.replace(b"[[[", b"{[["),
])
def test_a_damaged_cache_is_built_anew(mvtec: Path, tmp_path: Path, decodes: list[Path], damage) -> None:
    samples, print_ = samples_of(mvtec)
    cached(samples, print_, tmp_path / "cache", BOUND)
    (path,) = files(tmp_path / "cache")
    whole = path.read_bytes()
    assert damage(whole) != whole
    path.write_bytes(damage(whole))
    decodes.clear()
    pictures, warning = cached(samples, print_, tmp_path / "cache", BOUND)
    assert warning == "" and len(decodes) == len(samples) and same(pictures, Pictures(samples))
    assert path.read_bytes() == whole


def test_a_cache_of_another_version_is_not_taken(
    mvtec: Path, tmp_path: Path, decodes: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    samples, print_ = samples_of(mvtec)
    cached(samples, print_, tmp_path / "cache", BOUND)
    monkeypatch.setattr(cache, "VERSION", cache.VERSION + 1)
    decodes.clear()
    cached(samples, print_, tmp_path / "cache", BOUND)
    assert len(decodes) == len(samples)


def test_the_bound_removes_what_was_unused_for_longest(tmp_path: Path, decodes: list[Path]) -> None:
    folder, size = tmp_path / "cache", 14 * 40 * 48 * 3
    sets = [samples_of(make_mvtec(tmp_path / f"c{i}", seed=i)) for i in range(3)]
    paths = []
    for i, (samples, print_) in enumerate(sets[:2]):
        cached(samples, print_, folder, BOUND)
        paths += [p for p in files(folder) if p not in paths]
        os.utime(paths[i], (i + 1, i + 1))
    (folder / "foreign.txt").write_text("stays")
    kept, _ = cached(*sets[0], folder, BOUND)  # used again: now the younger one
    third, warning = cached(*sets[2], folder, int(2.5 * size))
    assert warning == "" and paths[0].exists() and not paths[1].exists() and len(files(folder)) == 2
    assert sum(p.stat().st_size for p in files(folder)) <= 2.5 * size and (folder / "foreign.txt").exists()
    other, _ = cached(*sets[1], folder, int(1.5 * size))  # room for one only
    assert len(files(folder)) == 1
    for pictures, (samples, _) in ((kept, sets[0]), (third, sets[2]), (other, sets[1])):
        assert same(pictures, Pictures(samples))  # a file removed while in use stays readable


def test_remains_of_dead_runs_are_cleared_but_not_those_of_living_ones(mvtec: Path, tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    folder.mkdir()
    (folder / ".old.part").write_bytes(b"x")
    os.utime(folder / ".old.part", (1, 1))
    (folder / ".new.part").write_bytes(b"x")
    cached(*samples_of(mvtec), folder, BOUND)
    assert [p.name for p in folder.glob(".*.part")] == [".new.part"]


def test_larger_than_the_bound_or_turned_off(mvtec: Path, tmp_path: Path, decodes: list[Path]) -> None:
    samples, print_ = samples_of(mvtec)
    pictures, warning = cached(samples, print_, tmp_path / "cache", 1000)
    assert type(pictures) is Pictures and "not cached" in warning and "the bound is" in warning
    for folder, bound in ((None, BOUND), (tmp_path / "cache", 0)):
        pictures, warning = cached(samples, print_, folder, bound)
        assert type(pictures) is Pictures and warning == ""
    assert decodes == [] and not (tmp_path / "cache").exists()


def test_a_folder_that_cannot_be_made(mvtec: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    samples, print_ = samples_of(mvtec)
    pictures, warning = cached(samples, print_, tmp_path / "file" / "cache", BOUND)
    assert type(pictures) is Pictures and "cannot be written" in warning and same(pictures, Pictures(samples))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_disk(mvtec: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.fdopen

    def full(handle: int, mode: str):
        os.close(handle)
        return open("/dev/full", mode, 0)

    monkeypatch.setattr(cache.os, "fdopen", full)
    samples, print_ = samples_of(mvtec)
    pictures, warning = cached(samples, print_, tmp_path / "cache", BOUND)
    assert type(pictures) is Pictures and "No space left" in warning
    assert not list((tmp_path / "cache").glob("*.part")) and not files(tmp_path / "cache")
    monkeypatch.setattr(cache.os, "fdopen", real)
    assert cached(samples, print_, tmp_path / "cache", BOUND)[1] == ""


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder(mvtec: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir(mode=0o555)
    pictures, warning = cached(*samples_of(mvtec), tmp_path / "cache", BOUND)
    assert type(pictures) is Pictures and "cannot be written" in warning


def test_a_broken_picture_is_named_and_leaves_nothing(mvtec: Path, tmp_path: Path) -> None:
    (mvtec / "test/spot/002.png").write_bytes(b"no picture")
    with pytest.raises(DatasetError, match=r"spot/002\.png"):
        cached(*samples_of(mvtec), tmp_path / "cache", BOUND)
    assert not files(tmp_path / "cache") and not list((tmp_path / "cache").glob(".*.part"))


def test_a_run_that_stops_in_the_middle_leaves_nothing(mvtec: Path, tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cached(*samples_of(mvtec), tmp_path / "cache", BOUND, stop)
    assert not files(tmp_path / "cache") and not list((tmp_path / "cache").glob(".*.part"))
    assert cached(*samples_of(mvtec), tmp_path / "cache", BOUND)[1] == ""  # the lock is free again


def _build(root: Path, folder: Path, start, out) -> None:
    count = []
    real = cache.decode
    cache.decode = lambda path, level: count.append(path) or real(path)
    samples, print_ = samples_of(root)
    start.wait()
    pictures, warning = cached(samples, print_, folder, BOUND)
    out.put((len(count), warning, same(pictures, Pictures(samples))))


def test_two_processes_at_once_decode_once(tmp_path: Path) -> None:
    root = make_mvtec(tmp_path / "nut", train=60, size=(200, 220))
    context = multiprocessing.get_context("fork")
    start, out = context.Barrier(3), context.Queue()
    runs = [context.Process(target=_build, args=(root, tmp_path / "cache", start, out)) for _ in range(3)]
    for run in runs:
        run.start()
    results = [out.get(timeout=60) for _ in runs]
    for run in runs:
        run.join()
    assert sorted(r[0] for r in results) == [0, 0, 68] and all(r[1:] == ("", True) for r in results)
    assert len(files(tmp_path / "cache")) == 1
