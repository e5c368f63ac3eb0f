"""Records: atomic, found again by every part of their key, broken ones named, failures never in the way."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.runner import _skeleton
from benchmarks.store import TOP_LEVEL, Store, StoreError, latest, write_atomic
from benchmarks.units import Job, Protocol, Unit
from models.base import Config


def job(results: Path, **changes: Any) -> Job:
    return replace(Job(
        unit=Unit("parts", "a/b <c>", "m", "p", 3), config=Config(), config_hash="h", modified=False, fingerprint="f",
        protocol=Protocol(), source="parts", data_root=results, results=results,
    ), **changes)


def test_a_saved_record_is_found_with_all_its_keys(tmp_path: Path) -> None:
    store, one = Store(tmp_path), job(tmp_path)
    assert store.load(one) is None
    path = store.save(one, _skeleton(one), {"score": np.arange(3, dtype=np.float32)})
    record = store.load(one)
    assert record is not None and set(TOP_LEVEL) <= set(record)
    assert np.load(path.with_name(record["images"]["scores"]))["score"].tolist() == [0, 1, 2]
    assert [r["path"] for r in store.records()] == [str(path)]


@pytest.mark.parametrize("change", [
    {"config_hash": "other"}, {"fingerprint": "other"}, {"weights": "none"}, {"protocol": Protocol(256)},
    {"unit": Unit("parts", "a/b <c>", "m", "p", 4)},
])
def test_another_setting_is_another_record_and_overwrites_nothing(tmp_path: Path, change: dict[str, Any]) -> None:
    store, one = Store(tmp_path), job(tmp_path)
    store.save(one, _skeleton(one))
    other = replace(one, **change)
    assert store.load(other) is None
    store.save(other, _skeleton(other))
    assert len(store.records()) == 2


def test_a_record_cut_short_is_named_left_out_and_replaced(tmp_path: Path) -> None:
    store, one = Store(tmp_path), job(tmp_path)
    path = store.save(one, _skeleton(one))
    whole = path.read_bytes()
    for length in (0, 1, len(whole) // 2, len(whole) - 3):
        path.write_bytes(whole[:length])
        assert store.load(one) is None
        assert store.records() == [] and str(path) in store.broken
    store.save(one, _skeleton(one))
    assert store.load(one) is not None and len(store.records()) == 1 and not store.broken


def test_a_failure_never_replaces_a_finished_record(tmp_path: Path) -> None:
    store, one = Store(tmp_path), job(tmp_path)
    store.save(one, _skeleton(one))
    store.save(one, _skeleton(one) | {"status": "failed"})
    assert store.load(one) is not None
    assert len(store.records()) == 1 and len(store.records(failed=True)) == 2
    store.save(one, _skeleton(one))
    assert len(store.records(failed=True)) == 1


def test_forcing_keeps_the_old_record_until_the_new_one_is_there(tmp_path: Path) -> None:
    store, one = Store(tmp_path), job(tmp_path)
    path = store.save(one, _skeleton(one))
    store.retire(one)
    assert store.load(one) is None and path.with_suffix(".replaced.json").exists()
    store.save(one, _skeleton(one))
    assert store.load(one) is not None and not path.with_suffix(".replaced.json").exists()


def test_nan_never_reaches_a_record(tmp_path: Path) -> None:
    store, one = Store(tmp_path), job(tmp_path)
    with pytest.raises(ValueError, match="JSON"):
        store.save(one, _skeleton(one) | {"metrics": {"image_auroc": float("nan")}})
    assert store.records() == []


def test_an_interrupted_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.json"
    write_atomic(path, b"old")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreError, match="No space left on device; free some space"):
        write_atomic(path, b"new")
    assert path.read_bytes() == b"old" and [p.name for p in tmp_path.iterdir()] == ["x.json"]


def test_newest_of_several_records_of_a_unit(tmp_path: Path) -> None:
    records = [
        {"unit": {"seed": 0}, "environment": {"finished": day}, "n": day} for day in ("2026-02-02", "2026-01-01")
    ]
    assert [r["n"] for r in latest(records)] == ["2026-02-02"]
    json.dumps(records)
