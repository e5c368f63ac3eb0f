"""Curves and training logs stored beside a record: complete, small, and equal to the figures of the record."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import history
from benchmarks.store import Store
from tests.benchmarks.test_run import run_args
from tests.conftest import Cli


def area(curve: np.ndarray, limit: float) -> float:
    """Area below a curve [2, n] up to a false positive rate, divided by it."""
    below = curve[0] < limit
    x = np.append(curve[0][below], limit)
    return float(np.trapezoid(np.append(curve[1][below], np.interp(limit, *curve)), x) / limit)


def test_curves_lie_beside_the_record_and_have_its_areas(cli: Cli, data_root: Path, tmp_path: Path) -> None:
    done = cli(*run_args(data_root, tmp_path, "--methods", "fake@noisy", "--categories", "nut"))
    assert done.returncode == 0, done.stderr
    record = Store(tmp_path).records()[0]
    with np.load(Path(record["path"]).parent / record["images"]["scores"]) as arrays:
        curves = {name: arrays[name] for name in arrays if name.startswith("curve.")}
    assert set(curves) == {"curve.pixel", "curve.pro"}
    for curve in curves.values():
        assert curve.dtype == np.float32 and curve.shape[0] == 2 and curve.shape[1] <= 200
        assert (np.diff(curve, axis=1) >= 0).all()
    metrics = record["metrics"]
    assert area(curves["curve.pixel"], 1.0) == pytest.approx(metrics["pixel_auroc"], abs=1e-4)
    assert area(curves["curve.pro"], 0.3) == pytest.approx(metrics["aupro@0.3"], abs=1e-3)
    assert "curve." not in json.dumps(record)


def test_long_series_leave_the_record_whole() -> None:
    loss = [1 / (i + 1) for i in range(500)]
    log = {"loss": loss, "epochs": 500, "phase1": {"loss": loss[:3], "epochs": 3}, "weights": [0.25, 0.75],
           "grid": [24, 24], "names": ["a"] * 300}
    kept, arrays = history.split(log)
    assert set(arrays) == {"training.loss"} and arrays["training.loss"].tolist() == loss
    assert kept["loss"] == {"values": 500, "first": 1.0, "last": 1 / 500}
    assert kept["phase1"]["loss"] == loss[:3] and len(kept["names"]) == 300
    assert len(json.dumps(kept)) < 3000
    found = history.series(kept, arrays)
    assert list(found) == ["loss", "phase1/loss"], "weights and grid are no series"
    assert found["loss"].tolist() == loss


def test_series_in_a_record() -> None:
    log = {"loss": [2.0, 1.0], "ssim": [0.1, 0.2], "validation_loss": [3.0, 2.0], "epochs": 2, "best_epoch": 2,
           "member_training": {"a@x": {"loss": [1.0, 0.5]}}, "flags": [True, False]}
    assert set(history.series(log)) == {"loss", "ssim", "validation_loss", "member_training/a@x/loss"}
    assert history.series({"loss": [1.0]}) == {}
