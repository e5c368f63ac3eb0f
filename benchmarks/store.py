"""Records on disk: one JSON per finished unit, written atomically, beside a compact file of per-image scores.

`<results>/runs/<dataset>/<category>/<method>@<preset>/seed<k>-<key>.json` where the key stands for the settings, the
data, the metric version, the map size and whether weights were pretrained: another combination never overwrites it.
A failure is kept as `.failed.json` and is retried by the next run. Tables are derived from records, never stored here.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.units import Job

SCHEMA = 1
TOP_LEVEL = (
    "schema", "unit", "metrics", "protocol", "images", "timing", "memory", "config", "config_hash", "weights",
    "dataset_fingerprint", "environment", "status",
)


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
        raise StoreError(
            f"cannot write {path}: {error.strerror or error}; free some space there or choose another --results DIR"
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
        return record

    def save(self, job: Job, record: dict[str, Any], scores: dict[str, np.ndarray] | None = None) -> Path:
        """Write the scores, then the record; a failure goes to its own file and never replaces a finished record."""
        path = self.path(job)
        failed = path.with_suffix(".failed.json")
        if record["status"] != "ok":
            write_atomic(failed, _encode(record))
            return failed
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
        if path.exists():
            os.replace(path, path.with_suffix(".replaced.json"))

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
    """One record; ValueError when it is cut short, of another schema or lacks a top-level key."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"not a whole JSON file ({error}); the unit will be run again") from error
    if not isinstance(record, dict) or record.get("schema") != SCHEMA:
        raise ValueError(f"record schema {record.get('schema') if isinstance(record, dict) else None!r}, not {SCHEMA}")
    missing = [key for key in TOP_LEVEL if key not in record]
    if missing:
        raise ValueError(f"keys missing: {', '.join(missing)}")
    return record


def latest(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One record per unit: the newest of those that differ in settings, data or protocol."""
    chosen: dict[tuple, dict[str, Any]] = {}
    for record in sorted(records, key=lambda r: r["environment"].get("finished", "")):
        chosen[tuple(sorted(record["unit"].items()))] = record
    return list(chosen.values())


def _encode(record: dict[str, Any]) -> bytes:
    # allow_nan=False: a NaN metric would be written as invalid JSON and read as a number by some readers
    return (json.dumps(record, indent=1, allow_nan=False, default=str) + "\n").encode()


def _npz(arrays: dict[str, np.ndarray]) -> bytes:
    import io

    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()
