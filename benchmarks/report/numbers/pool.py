"""Records ready for views: broken ones named and left out, one per unit, mixed protocols refused."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Record = Mapping[str, Any]

FILES = "files on disk"
"""Stands for the method in a record that only counts pictures."""

NEEDED = {
    "unit": ("method", "preset", "dataset", "category", "seed"),
    "metrics": (),
    "protocol": ("metric_version", "metric_size"),
}


class ReportError(ValueError):
    """Records that cannot stand in one view, or a view that does not exist. The message says what to do."""


def cost(record: Record, part: str, name: str) -> Any:
    """A number from `timing` or `memory`; None where the record has none.

    Three of `timing` are told as if the unit had run alone, so that they hang neither on what ran before it nor on the
    order of the methods: seconds of frozen features that it took from another unit are added (`lent_*_s`; None in an
    older record that saved some and does not say which).
    For an ensemble, what fitting its members took in the units that lent them to it is added too.
    timing/training_s: `fit_s`. timing/images_per_s: test pictures by `predict_s`. timing/total_s: the whole unit.
    """
    numbers = record.get(part) or {}
    if part != "timing" or name not in ALONE:
        return numbers.get(name)
    own, lent = numbers.get({"training_s": "fit_s"}.get(name, name)), lent_seconds(record)
    if own is None or lent is None:
        return None
    if name == "images_per_s":
        seconds, images = numbers.get("predict_s"), (record.get("images") or {}).get("test")
        if not lent["predict"]:
            return own
        return images / (seconds + lent["predict"]) if seconds and images else None
    return own + _members(record) + (lent["fit"] if name == "training_s" else sum(lent.values()))


ALONE = ("training_s", "images_per_s", "total_s")


def lent_seconds(record: Record) -> dict[str, float] | None:
    """What computing the frozen features that a unit took from another had cost, by phase; None where it is unknown."""
    features = record.get("features")
    features = features if isinstance(features, Mapping) else {}
    lent = {phase: features.get(f"lent_{phase}_s") for phase in ("fit", "predict")}
    if not all(isinstance(value, int | float) for value in lent.values()):
        return None if features.get("saved_s") else dict.fromkeys(lent, 0.0)
    return lent


def spec_of(record: Record) -> str:
    """`method@preset`, with a setting `method@preset shots=4`: what a table calls it."""
    unit = record["unit"]
    return f"{unit['method']}@{_preset(unit)}"


def _preset(unit: Mapping[str, Any]) -> str:
    return f"{unit['preset']} {unit['setting']}" if unit.get("setting") else str(unit["preset"])


def key_of(record: Record) -> tuple[str, str, str, str]:
    """Where a record lies in a `Pool`."""
    unit = record["unit"]
    return str(unit["method"]), _preset(unit), str(unit["dataset"]), str(unit["category"])


def device_of(record: Record) -> str:
    """The machine that computed it, in words."""
    return str((record.get("environment") or {}).get("device", "unknown"))


def _members(record: Record) -> float:
    """What fitting an ensemble's members took in the units that lent them to it."""
    log = record.get("training") or {}
    how, seconds = log.get("members"), log.get("member_fit_s")
    if not isinstance(how, Mapping) or not isinstance(seconds, Mapping):
        return 0.0
    return sum(seconds[member] for member, state in how.items() if state == "reused")


@dataclass
class Pool:
    """Finished records by (method, preset, dataset, category), then by seed. A setting is a part of the preset here
    ('resnet18 shots=4'), so that it never shares a line of a table with another.

    left_out: name and reason of records that cannot be used. failed: name and reason of units that failed.
    """

    units: dict[tuple[str, str, str, str], dict[int, Record]] = field(default_factory=dict)
    left_out: list[tuple[str, str]] = field(default_factory=list)
    failed: dict[tuple[str, str, str, str], list[str]] = field(default_factory=dict)
    rivals: dict[tuple[str, str, str, str], list[Record]] = field(default_factory=dict)  # all, chosen or not

    def get(self, spec: str, dataset: str, category: str) -> dict[int, Record]:
        """Records by seed for `method@preset`."""
        method, _, preset = spec.partition("@")
        return self.units.get((method, preset, dataset, category), {})

    def any(self, dataset: str, category: str) -> dict[int, Record]:
        """Records of any method on a category: a count of the files, else those of the first method by name."""
        keys = sorted((key for key in self.units if key[2:] == (dataset, category)), key=lambda k: (k[0] != FILES, k))
        return self.units[keys[0]] if keys else {}


def name_of(record: Any) -> str:
    """A record's file, or its unit, or what can be said of it."""
    if isinstance(record, Mapping):
        if record.get("path"):
            return str(record["path"])
        unit = record.get("unit")
        if isinstance(unit, Mapping):
            return " ".join(str(unit.get(k, "?")) for k in ("method", "preset", "dataset", "category", "seed"))
    return f"record {str(record)[:60]!r}"


def fault(record: Any) -> str | None:
    """Why a record cannot be used; None when it can."""
    if not isinstance(record, Mapping):
        return "is no JSON object"
    for part, keys in NEEDED.items():
        if not isinstance(record.get(part), Mapping):
            return f"has no {part!r}"
        if missing := [key for key in keys if key not in record[part]]:
            return f"{part!r} lacks {', '.join(missing)}"
    for key, value in record["metrics"].items():
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
            return f"metric {key!r} is {value!r}, not a number"
    return None


def why_undefined(records: Iterable[Record], metric: str) -> str:
    """The reasons why no record has a figure of a metric that they name; '' when none names it."""
    reasons = [r.get("undefined", {}).get(metric, "no reason recorded") for r in records if metric in r["metrics"]]
    return "; ".join(dict.fromkeys(reasons))


def pool(records: Iterable[Any]) -> Pool:
    """Index records. Of several for one unit the one with fewest marks counts, then the newest."""
    found = Pool()
    for record in records:
        if why := fault(record):
            found.left_out.append((name_of(record), why))
            continue
        unit, key = record["unit"], key_of(record)
        if record.get("status", "ok") != "ok":
            error = record.get("error") or {}
            found.failed.setdefault(key, []).append(
                f"seed {unit['seed']}: {error.get('phase', '?')}: {error.get('message', 'no reason recorded')}"
            )
            continue
        found.rivals.setdefault(key, []).append(record)
        seeds = found.units.setdefault(key, {})
        if unit["seed"] in seeds:
            record = min(seeds[unit["seed"]], record, key=_precedence)
        seeds[unit["seed"]] = record
    return found


def _precedence(record: Record) -> tuple[int, _Newest]:
    finished = (record.get("environment") or {}).get("finished", "")
    return len(record.get("marks") or ()), _Newest(str(finished))


@dataclass
class _Newest:
    time: str

    def __lt__(self, other: _Newest) -> bool:
        return self.time > other.time


def protocol_of(record: Record) -> tuple[str, str]:
    """(metric version, metric size) as text."""
    return str(record["protocol"]["metric_version"]), str(record["protocol"]["metric_size"])


def size_text(size: str) -> str:
    """'original' -> 'the size of each picture', and so on."""
    return {"original": "the original size of each picture", "model": "the network's input size"}.get(
        size, f"{size} x {size} pixels"
    )


def check_protocols(records: Sequence[Record], mixed: bool) -> list[tuple[str, str]]:
    """The protocols among records, most used first. Raises ReportError for several unless `mixed`."""
    counts: dict[tuple[str, str], int] = {}
    for record in records:
        counts[protocol_of(record)] = counts.get(protocol_of(record), 0) + 1
    ordered = sorted(counts, key=lambda p: (-counts[p], p))
    if len(ordered) > 1 and not mixed:
        each = "; ".join(
            f"{counts[p]} with metric version {p[0]}, scored at {size_text(p[1])}" for p in ordered
        )
        raise ReportError(
            f"records of {len(ordered)} protocols cannot stand in one table: {each}. Score the units "
            "again under one of them, or ask for a mixed table (--mixed), which labels every figure"
        )
    return ordered
