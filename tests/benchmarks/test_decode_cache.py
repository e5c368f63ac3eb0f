"""The decode cache within a run: decoded once, no number changed, and a run without it goes on."""

from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.plan import Options, make_plan
from benchmarks.runner import run_unit
from benchmarks.store import Store
from datasets import cache
from tests.conftest import Cli, make_mvtec


def run(cli: Cli, root: Path, results: Path, *more: object) -> list[dict]:
    done = cli("run", "--methods", "fake", "fake@noisy", "--datasets", "own", "--data-root", root, "--results", results,
               "--weights", "none", "--device", "cpu", "--quiet", *more)
    assert done.returncode == 0, done.stderr
    return sorted(Store(results).records(), key=lambda r: (r["unit"]["preset"], r["dataset_fingerprint"]))


def test_units_share_one_cache_that_changes_no_number(cli: Cli, tmp_path: Path) -> None:
    make_mvtec(tmp_path / "own" / "nut")
    plain = run(cli, tmp_path, tmp_path / "plain", "--cache-size", 0)
    assert not (tmp_path / "plain" / "cache").exists()
    results = tmp_path / "cached"
    with_cache = run(cli, tmp_path, results)
    assert [r["metrics"] for r in with_cache] == [r["metrics"] for r in plain]
    assert not any("cache" in note for r in plain + with_cache for note in r["notes"])
    (file,) = (results / "cache").glob("*.pixels")
    made = file.stat().st_ino
    run(cli, tmp_path, results, "--force")
    assert [f.stat().st_ino for f in (results / "cache").glob("*.pixels")] == [made]

    path = tmp_path / "own/nut/test/good/000.png"
    array = np.array(Image.open(path))
    array[0, 0] ^= 1
    Image.fromarray(array).save(path)
    run(cli, tmp_path, results)
    assert len(list((results / "cache").glob("*.pixels"))) == 2


def test_a_cache_that_cannot_be_written_is_noted_and_the_run_goes_on(cli: Cli, tmp_path: Path) -> None:
    make_mvtec(tmp_path / "own" / "nut")
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "cache").write_text("in the way")
    records = run(cli, tmp_path, tmp_path / "results")
    assert len(records) == 2
    assert all(any("pictures not cached" in note for note in r["notes"]) for r in records)


@pytest.mark.parametrize(("number", "words"), [(errno.ENOSPC, "No space left"), (errno.EROFS, "Read-only file system")])
def test_a_full_or_read_only_disk_is_noted_and_changes_no_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, words: str
) -> None:
    make_mvtec(tmp_path / "own" / "nut")
    real = tempfile.mkstemp

    def mkstemp(*args: object, dir: Path, **more: object):
        if Path(dir).name == "cache":
            raise OSError(number, os.strerror(number))
        return real(*args, dir=dir, **more)

    records = []
    for name in ("well", "broken"):
        results = tmp_path / name
        options = Options(data_root=tmp_path, results=results, weights="none", device="cpu",
                          cache_dir=results / "cache", cache_size=10**8)
        (job,) = make_plan(["fake"], ["own"], options).jobs
        records.append(run_unit(job, lambda *step: None))
        monkeypatch.setattr(cache.tempfile, "mkstemp", mkstemp)
    well, broken = records
    assert well["status"] == broken["status"] == "ok" and well["metrics"] == broken["metrics"]
    assert any("pictures not cached" in note and words in note for note in broken["notes"])
    assert not any("cached" in note for note in well["notes"])
