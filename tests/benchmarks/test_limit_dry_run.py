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
    for words in ("parts/nut", "mvtec", "48x40", "resnet18.tv_in1k", "--weights none",
                  "unknown: no stored unit of these settings on this device",
                  "left out: 1 file of unknown kind", "WOULD FAIL parts/torn", "000_mask.png is missing",
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


def test_time_is_the_median_of_records_of_the_same_settings_on_the_same_device(tmp_path: Path, monkeypatch) -> None:
    from types import SimpleNamespace

    from benchmarks import preview

    def record(config: str, category: str, seconds: float, device: str = "gpu A", command: str = "") -> dict:
        return {"unit": {"dataset": "d", "category": category}, "timing": {"total_s": seconds}, "config_hash": config,
                "environment": {"device": device, "command": command}}

    def job(config: str, category: str) -> SimpleNamespace:
        return SimpleNamespace(config_hash=config, limit=0, unit=SimpleNamespace(dataset="d", category=category,
                                                                                  spec=f"m@{config}"))

    stored = [record("a", "nut", s) for s in (10, 30, 20)] + [
        record("a", "bolt", 60), record("a", "nut", 999, device="gpu B"),
        record("a", "nut", 1, command="python run_benchmark.py run --limit 4"), record("b", "nut", 5, device="gpu B"),
    ]
    monkeypatch.setattr(preview, "device_name", lambda name: "gpu A")
    known = preview.Times(SimpleNamespace(records=lambda: stored), "cpu")
    assert known.of([job("a", "nut")])[0] == 20 and known.of([job("a", "cap")])[0] == 25
    total, counts, unknown = known.of([job("a", "nut"), job("a", "cap"), job("b", "nut"), job("b", "cap")])
    assert (total, dict(counts), unknown) == (45, {"own": 1, "other": 1, "unknown": 2}, ["m@b"])
    assert known.line([job("a", "nut"), job("b", "nut")]) == (
        "time on gpu A, one worker: 20 s for 1 as stored units of their category took; unknown for 1 unit "
        "(no record: m@b)")
    assert preview.duration(3 * 3600) == "3.0 h" and preview.duration(600) == "10 min"
