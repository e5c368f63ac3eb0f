"""Records on disk: one JSON per finished unit, written atomically, beside a compact file of per-image scores.

`<results>/runs/<dataset>/<category>/<method>@<preset>/seed<k>-<key>.json` where the key stands for the settings, the
data, the metric version, the map size and whether weights were pretrained: another combination never overwrites it.
A failure is kept as `.failed.json` and is retried by the next run. Tables are derived from records, never stored here.
Records of one unit are ordered by their time of finishing, and a clock that jumps back does not change that order.
"""

from __future__ import annotations

import errno
import json
import math
import os
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.units import Job

SCHEMA = 1
TOP_LEVEL = (
    "schema", "unit", "metrics", "protocol", "images", "timing", "memory", "config", "config_hash", "weights",
    "dataset_fingerprint", "environment", "status",
)
OBJECTS = ("unit", "metrics", "protocol", "images", "timing", "memory", "config", "weights", "environment")
OPTIONAL: dict[str, type] = {"undefined": dict, "training": dict, "marks": list, "notes": list, "remarks": list}


class StoreError(OSError):
    """The results directory cannot be written or read. The message names it and what to do."""


def write_atomic(path: Path, data: bytes) -> None:
    """Write so that `path` is either whole or absent, whatever happens; raises StoreError when it cannot."""
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".part")
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except OSError as error:
        if temporary:
            Path(temporary).unlink(missing_ok=True)
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
        raise StoreError(
            f"cannot write {path}: {error.strerror or error}; "
            + ("free some space there or choose another --results DIR" if full else "choose another place for it")
        ) from error


@dataclass
class Store:
    """The records below one results directory."""

    root: Path
    broken: dict[str, str] = field(default_factory=dict)  # path -> why it was left out, filled by `records`

    @property
    def runs(self) -> Path:
        return self.root / "runs"

    def path(self, job: Job) -> Path:
        base = job.unit.path(self.runs)
        return base.with_name(f"{base.name}-{job.key}.json")

    def check_writable(self) -> None:
        """Fail early, before hours of work, when records could not be written."""
        probe = self.runs / f".probe-{os.getpid()}"
        write_atomic(probe, b"")
        probe.unlink(missing_ok=True)

    def load(self, job: Job) -> dict[str, Any] | None:
        """The finished record that matches the job in every part of its key, or None (absent, failed, cut short)."""
        path = self.path(job)
        try:
            record = read_record(path)
        except FileNotFoundError:
            return None
        except (ValueError, OSError) as error:
            self.broken[str(path)] = str(error)
            return None
        if record["status"] != "ok" or record["config_hash"] != job.config_hash:
            return None
        return {**record, "path": str(path)}

    def save(self, job: Job, record: dict[str, Any], scores: dict[str, np.ndarray] | None = None) -> Path:
        """Write the scores, then the record; a failure goes to its own file and never replaces a finished record."""
        path = self.path(job)
        failed = path.with_suffix(".failed.json")
        if record["status"] != "ok":
            write_atomic(failed, _encode(record))
            return failed
        _after_others(path, record)
        if scores is not None:
            write_atomic(path.with_suffix(".npz"), _npz(scores))
            record["images"]["scores"] = path.with_suffix(".npz").name
        write_atomic(path, _encode(record))
        failed.unlink(missing_ok=True)
        path.with_suffix(".replaced.json").unlink(missing_ok=True)
        return path

    def retire(self, job: Job) -> None:
        """Set a finished record aside (`--force`), so that the unit runs again; a failed rerun loses nothing."""
        path = self.path(job)
        try:
            if path.exists():
                os.replace(path, path.with_suffix(".replaced.json"))
        except OSError as error:
            raise StoreError(
                f"cannot set {path} aside: {error.strerror or error}; make the results directory writable or choose "
                "another --results DIR"
            ) from error

    def records(self, *, failed: bool = False) -> list[dict[str, Any]]:
        """Every readable record, in path order, each with `path` added; broken files are listed in `self.broken`."""
        return list(self._read(failed))

    def _read(self, failed: bool) -> Iterator[dict[str, Any]]:
        self.broken.clear()
        for path in sorted(self.runs.rglob("*.json")):
            if path.name.startswith(".") or path.name.endswith(".replaced.json"):
                continue
            if path.name.endswith(".failed.json") and not failed:
                continue
            try:
                record = read_record(path)
            except (ValueError, OSError) as error:
                self.broken[str(path)] = str(error)
                continue
            yield {**record, "path": str(path)}

    def sweep(self) -> None:
        """Remove temporary files that a killed process left (older than an hour, so that no live writer is hit)."""
        import time

        for part in self.runs.rglob(".*.part"):
            try:
                if time.time() - part.stat().st_mtime > 3600:
                    part.unlink()
            except OSError:
                continue


def read_record(path: Path) -> dict[str, Any]:
    """One record; ValueError when it is cut short, of another schema, lacks a key or holds a value of a wrong type."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"), parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not a whole JSON file ({error}); the unit will be run again") from error
    if not isinstance(record, dict) or record.get("schema") != SCHEMA:
        raise ValueError(f"record schema {record.get('schema') if isinstance(record, dict) else None!r}, not {SCHEMA}")
    missing = [key for key in TOP_LEVEL if key not in record]
    if missing:
        raise ValueError(f"keys missing: {', '.join(missing)}")
    if why := _fault(record):
        raise ValueError(f"{why}; the unit will be run again")
    return record


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is no number")


def _fault(record: dict[str, Any]) -> str:
    """What in a record has a wrong type or value, in words; empty when nothing has. Adds optional keys that lack."""
    for key in OBJECTS:
        if not isinstance(record[key], dict):
            return f"{key!r} is no object"
    for key, kind in OPTIONAL.items():
        if not isinstance(record.setdefault(key, kind()), kind):
            return f"{key!r} is no {'object' if kind is dict else 'list'}"
    if record["status"] not in ("ok", "failed"):
        return f"status {record['status']!r}"
    if record["status"] == "failed":
        error = record.get("error") or {"phase": "", "message": ""}
        if not isinstance(error, dict) or not all(isinstance(error.get(k), str) for k in ("phase", "message")):
            return "failed, but phase and message are no texts"
    unit, environment, protocol = record["unit"], record["environment"], record["protocol"]
    texts = {f"unit {k}": unit.get(k) for k in ("method", "preset", "dataset", "category")}
    texts["unit setting"] = unit.get("setting", "")
    texts |= {k: record[k] for k in ("config_hash", "dataset_fingerprint")}
    texts |= {f"environment {k}": environment.get(k, "") for k in ("finished", "started", "command", "device")}
    texts |= {f"mark {i}": mark for i, mark in enumerate(record["marks"])}
    texts |= {f"reason of {k}": why for k, why in record["undefined"].items()}
    texts |= {f"protocol {k}": protocol.get(k) or "" for k in ("image_score",)}
    texts["images scores"] = record["images"].get("scores", "")
    for name, value in texts.items():
        if not isinstance(value, str):
            return f"{name} is {value!r}, not text"
    if not _is_number(unit.get("seed"), int) or unit["seed"] < 0:
        return f"unit seed is {unit.get('seed')!r}"
    if not _is_number(protocol.get("metric_version"), int):
        return f"protocol metric_version is {protocol.get('metric_version')!r}"
    size = protocol.get("metric_size")
    if size not in ("original", "model") and not _is_number(size, int):
        return f"protocol metric_size is {size!r}"
    counts = {k: v for k, v in record["images"].items() if k not in ("sizes", "scores")}
    for part, values in (("metric", record["metrics"]), ("timing", record["timing"]), ("memory", record["memory"]),
                         ("images", counts)):
        for name, value in values.items():
            if value is not None and not _is_number(value):
                return f"{part} {name} is {value!r}, not a number"
    for tag, used in record["weights"].items():
        if not isinstance(used, str) and not (isinstance(used, dict) and isinstance(used.get("sha256"), str)):
            return f"weights {tag} are {used!r}"
    return ""


def _is_number(value: Any, kind: type | tuple[type, ...] = (int, float)) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool) and abs(value) < 1e15 and math.isfinite(value)


def _after_others(path: Path, record: dict[str, Any]) -> None:
    """Make `finished` later than that of every other record of the unit, whatever the clock says, and note it.

    Views take the newest record of a unit; after the clock was set back that must still be the one written last.
    """
    finished = record["environment"].get("finished")
    times = []
    for other in path.parent.glob(f"{path.name.split('-')[0]}-*.json"):
        if other.name.endswith(".failed.json"):
            continue
        try:
            times.append(read_record(other)["environment"].get("finished", ""))
        except (ValueError, OSError):
            continue
    newest = max(times, default="")
    if not finished or finished > newest:
        return
    try:
        later = datetime.fromisoformat(newest) + timedelta(milliseconds=1)
    except (ValueError, OverflowError):
        return  # not a time that we wrote
    record["environment"]["finished"] = later.isoformat(timespec="milliseconds")
    note = f"the clock stood at {finished}, before an earlier record of this unit"
    record["notes"] = [*record.get("notes", ()), note]


def latest(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One record per unit: the newest of those that differ in settings, data or protocol."""
    chosen: dict[tuple, dict[str, Any]] = {}
    for record in sorted(records, key=lambda r: r["environment"].get("finished", "")):
        chosen[tuple(sorted(record["unit"].items()))] = record
    return list(chosen.values())


def _encode(record: Mapping[str, Any]) -> bytes:
    # allow_nan=False: a NaN metric would be written as invalid JSON and read as a number by some readers
    rest = {key: value if key == "metrics" else _finite(value) for key, value in record.items()}
    return (json.dumps(rest, indent=1, allow_nan=False, default=str) + "\n").encode()


def _finite(value: Any) -> Any:
    """The value with null for NaN and infinity: a diverged loss must not keep a unit's record from being written."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list | tuple) else value


def _npz(arrays: dict[str, np.ndarray]) -> bytes:
    import io

    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()
