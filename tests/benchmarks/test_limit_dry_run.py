"""`--limit`, `--dry-run`, and weights that are looked for before anything is trained."""

from __future__ import annotations

from pathlib import Path

import pytest

import datasets
from benchmarks.store import Store
from tests.conftest import Cli, make_mvtec


def test_limit_takes_the_same_few_pictures_and_marks_them(cli: Cli, tmp_path: Path) -> None:
    make_mvtec(tmp_path / "parts/nut", train=9, good=5, bad=7)
    chosen = datasets.load("parts", "nut", tmp_path, 4)
    assert (len(chosen.train), [s.label for s in chosen.test]) == (4, [0, 0, 1, 1])
    assert chosen.test == datasets.load("parts", "nut", tmp_path, 4).test
    assert chosen.notes == ("reduced data: train 4 of 9 (--limit 4)", "reduced data: test 4 of 12 (--limit 4)")
    assert sum(s.label for s in datasets.load("parts", "nut", tmp_path, 11).test) == 6  # 5 good ones are all there are
    assert datasets.load("parts", "nut", tmp_path, 12).notes == ()
    call = ("run", "--methods", "fake", "--datasets", "parts", "--data-root", tmp_path, "--results", tmp_path / "r",
            "--device", "cpu", "--quiet")
    assert cli(*call, "--limit", 4).returncode == 0
    assert cli(*call).returncode == 0  # all pictures: another record
    limited, whole = sorted(Store(tmp_path / "r").records(), key=lambda r: r["images"]["train"])
    assert limited["images"]["train"] == 4 and whole["images"]["train"] == 9
    assert "reduced" in limited["marks"] and "reduced" not in whole["marks"]
    assert limited["environment"]["command"].endswith("--limit 4")
    assert "give 2 or more" in cli(*call, "--limit", 1).stderr


def test_dry_run_shows_everything_and_runs_nothing(cli: Cli, tmp_path: Path) -> None:
    make_mvtec(tmp_path / "parts/nut")
    make_mvtec(tmp_path / "parts/torn")
    (tmp_path / "parts/torn/ground_truth/spot/000_mask.png").unlink()
    (tmp_path / "parts/nut/test/good/a.xyz").write_text("1 2 3")
    call = ("run", "--methods", "fake", "patchcore@resnet18", "--datasets", "parts", "--data-root", tmp_path,
            "--results", tmp_path / "r", "--device", "cpu", "--quiet", "--weights", "none")
    done = cli(*call, "--dry-run")
    assert done.returncode == 1 and not Store(tmp_path / "r").records(failed=True)
    for words in ("parts/nut", "mvtec", "48x40", "resnet18.tv_in1k", "--weights none", "unknown: no stored unit",
                  "left out: 1 files of unknown kind", "WOULD FAIL parts/torn", "000_mask.png is missing",
                  "2 units, 2 of them to run; nothing was run"):
        assert words in done.stdout, words
    assert cli(*call[:3], *call[4:]).returncode == 1  # fake on the sound category
    done = cli(*call, "--dry-run", "--seeds", "0", "1")
    assert "s, as stored units took" in done.stdout and "4 units, 3 of them to run" in done.stdout


def test_missing_weights_are_told_before_any_training_and_the_rest_runs(
    cli: Cli, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    make_mvtec(tmp_path / "parts/nut")
    (tmp_path / "w").mkdir()
    done = cli("run", "--methods", "patchcore@resnet18", "fake", "--datasets", "parts", "--data-root", tmp_path,
               "--results", tmp_path / "r", "--device", "cpu", "--quiet", "--weights", tmp_path / "w")
    assert done.returncode == 1
    assert "FAILED patchcore@resnet18: weights 'resnet18.tv_in1k' not found in" in done.stderr
    assert [r["unit"]["method"] for r in Store(tmp_path / "r").records(failed=True)] == ["fake"]
