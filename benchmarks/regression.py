"""The regression gate: stored bands from several seeds, and the comparison of new records with them.

Two comparisons, because they carry different noise:

- Records of the baseline's own seeds repeat what was random then (initial weights, sampling, order), so the spread over
  seeds is no noise of this comparison. What remains comes from other processors and library versions. The band is one
  standard deviation of a seed, at least half a point.
- Records of other seeds (three or more) carry the whole spread. The band is four standard deviations of a seed for
  three seeds against three: 4.9 standard errors of the difference of the two means, which also covers that the
  deviation is itself estimated from few seeds.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np

from benchmarks.errors import UsageError
from benchmarks.provenance import now
from benchmarks.store import latest

SCHEMA = 1
MIN_SEEDS = 3
FLOOR = 0.005  # half a point: below this, differences between machines and library versions are not regressions
WIDTH = 4.0  # standard deviations of a seed, when other seeds are compared
SAME_SEEDS = 1.0  # the same, when the baseline's own seeds are compared
SAME_SEEDS_MOST = 0.045  # a fall of five points must show, however far seeds lie apart; see docs/long_runs.md
IDENTITY = ("method", "preset", "dataset", "category", "setting")
PROTOCOL = ("metric_version", "metric_size", "image_score")


@dataclass(frozen=True)
class Line:
    """One metric of one unit group against its band. `verdict`: ok, fell, rose, or why it cannot be judged."""

    name: str
    metric: str
    stored: float | None
    measured: float | None
    tolerance: float
    verdict: str
    same_seeds: bool = True

    @property
    def judged(self) -> bool:
        return self.verdict in ("ok", "fell", "rose")


def _group(records: Iterable[Mapping[str, Any]]) -> dict[tuple[str, ...], list[Mapping[str, Any]]]:
    groups: dict[tuple[str, ...], list[Mapping[str, Any]]] = defaultdict(list)
    for record in latest(list(records)):
        groups[_identity(record["unit"])].append(record)
    return dict(sorted(groups.items()))


def _identity(unit: Mapping[str, Any]) -> tuple[str, ...]:
    """Values of IDENTITY; the setting of clean units, and of baselines from before there were settings, is ''."""
    return tuple(str(unit.get(key, "")) for key in IDENTITY)


def _name(identity: tuple[str, ...]) -> str:
    method, preset, dataset, category, setting = identity
    return f"{method}@{preset} {dataset}/{category}" + (f" {setting}" if setting else "")


def make_baseline(records: Sequence[Mapping[str, Any]], command: str) -> dict[str, Any]:
    """Bands (mean, spread, n, tolerance) per method, category and metric from the records of at least 3 seeds.

    The tolerance is 4 standard deviations of a seed, at least half a point; `tolerance` says what is made of it. The
    deviation is the larger of the category's own and the one pooled over the categories of the same method, dataset and
    metric, because three seeds alone estimate it badly. Raises UsageError with fewer seeds or mixed settings.
    """
    entries = []
    for identity, group in _group(records).items():
        name = _name(identity)
        if len(group) < MIN_SEEDS:
            raise UsageError(
                f"{name} has records of {len(group)} seed{'s' * (len(group) != 1)}; a band needs {MIN_SEEDS}: run it "
                "with --seeds 0 1 2"
            )
        for key in ("config_hash", "dataset_fingerprint"):
            if len({r[key] for r in group}) > 1:
                raise UsageError(f"{name}: its seeds differ in {key}; run all seeds with the same settings and data")
        if len({_protocol(r) for r in group}) > 1:
            raise UsageError(f"{name}: its seeds were scored under different protocols")
        for metric in group[0]["metrics"]:
            values = [r["metrics"][metric] for r in group]
            defined = [v for v in values if v is not None]
            entries.append({
                **{k: v for k, v in zip(IDENTITY, identity, strict=True) if k != "setting" or v}, "metric": metric,
                "mean": float(np.mean(defined)) if len(defined) == len(values) else None,
                "sd": float(np.std(defined, ddof=1)) if len(defined) == len(values) else None,
                "n": len(values), "seeds": sorted(r["unit"]["seed"] for r in group),
                "config_hash": group[0]["config_hash"], "dataset_fingerprint": group[0]["dataset_fingerprint"],
                "protocol": dict(zip(PROTOCOL, _protocol(group[0]), strict=True)),
                "untrained": "untrained" in group[0]["marks"],
                **({"other_weights": True} if "other_weights" in group[0]["marks"] else {}),
            })
    if not entries:
        raise UsageError("no finished records to make a baseline from; run the units first")
    for entry in entries:
        peers = [e["sd"] for e in entries if e["sd"] is not None and all(
            e.get(k) == entry.get(k) for k in ("method", "preset", "dataset", "setting", "metric"))]
        pooled = math.sqrt(float(np.mean(np.square(peers)))) if peers else 0.0
        entry["tolerance"] = max(FLOOR, WIDTH * max(entry["sd"] or 0.0, pooled))
    return {"schema": SCHEMA, "made": now(), "command": command, "entries": entries}


def encode(baseline: Mapping[str, Any]) -> bytes:
    """A baseline as a JSON file with a line per entry, so that differences between two can be read."""
    entries = ",\n".join(json.dumps(entry) for entry in baseline["entries"])
    rest = json.dumps({key: value for key, value in baseline.items() if key != "entries"}, indent=1)
    return f'{rest[:-2]},\n "entries": [\n{entries}\n ]\n}}\n'.encode()


def _protocol(record: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(record["protocol"].get(key) for key in PROTOCOL)


def read_baseline(path: Path) -> dict[str, Any]:
    """A baseline file; UsageError when it is absent or not one."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        entries = data["entries"]
        if data["schema"] != SCHEMA or not isinstance(entries, list) or not entries:
            raise ValueError(f"schema {data['schema']!r}, entries {str(entries)[:40]!r}")
        if not isinstance(data["command"], str):
            raise ValueError(f"command {data['command']!r}")
        for entry in entries:
            if why := _fault(entry):
                raise ValueError(f"{entry.get('metric') if isinstance(entry, dict) else entry!r}: {why}")
    except FileNotFoundError:
        raise UsageError(f"--baseline {path}: no such file; `baseline make` writes one") from None
    except (KeyError, TypeError, ValueError, OSError, RecursionError) as error:
        raise UsageError(
            f"--baseline {path}: not a baseline file ({error or type(error).__name__}); make it anew with "
            "`run_benchmark.py baseline make`"
        ) from error
    return data


def _fault(entry: Any) -> str:
    """What is wrong with an entry of a baseline file, in words; empty when nothing is."""
    if not isinstance(entry, dict):
        return "is no object"
    for key in (*IDENTITY, "metric", "config_hash", "dataset_fingerprint"):
        if not isinstance(entry.get(key, "") if key == "setting" else entry[key], str):
            return f"{key} is {entry[key]!r}, not text"
    for key in ("mean", "tolerance"):
        value = entry[key]
        if key == "mean" and value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            return f"{key} is {value!r}, not a number"
    if entry["tolerance"] < 0:
        return f"tolerance is {entry['tolerance']!r}"
    seeds = entry["seeds"]
    if not isinstance(seeds, list) or not seeds or not all(type(seed) is int and seed >= 0 for seed in seeds):
        return f"seeds are {seeds!r}"
    if not isinstance(entry["protocol"], dict) or not isinstance(entry["untrained"], bool):
        return f"protocol is {entry['protocol']!r}, untrained is {entry['untrained']!r}"
    return ""


def tolerance(entry: Mapping[str, Any], seeds: int, same: bool) -> float:
    """How far the mean over `seeds` records may lie from the stored mean; `same`: they are the baseline's own seeds.

    The entry's tolerance holds for three other seeds against three; another number of either changes the standard error
    of the difference and the tolerance with it.
    """
    if same:
        return min(max(FLOOR, entry["tolerance"] * SAME_SEEDS / WIDTH), SAME_SEEDS_MOST)
    return max(FLOOR, entry["tolerance"] * math.sqrt((1 / len(entry["seeds"]) + 1 / seeds) * MIN_SEEDS / 2))


def compare(baseline: Mapping[str, Any], records: Sequence[Mapping[str, Any]]) -> list[Line]:
    """Every entry of the baseline against the records of its seeds, or of three or more others: settings, data and
    protocol first."""
    by_unit: dict[tuple[str, ...], dict[int, Mapping[str, Any]]] = defaultdict(dict)
    for record in latest(list(records)):
        by_unit[_identity(record["unit"])][record["unit"]["seed"]] = record
    lines = []
    for entry in baseline["entries"]:
        identity = _identity(entry)
        name = _name(identity)
        there = by_unit.get(identity, {})
        same = set(entry["seeds"]) <= set(there) or len(there) < MIN_SEEDS
        found = [there.get(seed) for seed in entry["seeds"]] if same else [there[seed] for seed in sorted(there)]
        why = _cannot_judge(entry, found)
        values = [r["metrics"].get(entry["metric"]) for r in found if r]
        measured = float(np.mean(values)) if values and None not in values and not why else None
        allowed = tolerance(entry, len(found), same)
        if why:
            verdict = why
        elif entry["mean"] is None or measured is None:
            verdict = "ok" if entry["mean"] is None and measured is None else (
                "was undefined, is defined now" if entry["mean"] is None else "undefined now")
        elif measured < entry["mean"] - allowed:
            verdict = "fell"
        else:
            verdict = "rose" if measured > entry["mean"] + allowed else "ok"
        lines.append(Line(name, entry["metric"], entry["mean"], measured, allowed, verdict, same))
    return lines


def _cannot_judge(entry: Mapping[str, Any], found: Sequence[Mapping[str, Any] | None]) -> str:
    missing = [str(seed) for seed, record in zip(entry["seeds"], found, strict=False) if record is None]
    if missing:
        return f"no record of seed {', '.join(missing)}"
    for record in found:
        assert record is not None
        if list(_protocol(record)) != [entry["protocol"].get(k) for k in PROTOCOL]:
            return "another protocol"
        if record["dataset_fingerprint"] != entry["dataset_fingerprint"]:
            return "other data"
        if record["config_hash"] != entry["config_hash"]:
            return "other settings"
        if any((mark in record["marks"]) != entry.get(mark, False) for mark in ("untrained", "other_weights")):
            return "other weights"
    return ""


def exit_code(lines: Sequence[Line]) -> int:
    """1 when a score fell, else 2 when some entry could not be judged, else 0."""
    if any(line.verdict == "fell" for line in lines):
        return 1
    return 2 if any(not line.judged for line in lines) else 0


def table(lines: Sequence[Line]) -> str:
    """Markdown table of what fell, rose or could not be judged, worst first."""
    from tabulate import tabulate

    order = {"fell": 0, "rose": 2}
    chosen = sorted(
        (line for line in lines if line.verdict != "ok"),
        key=lambda line: (order.get(line.verdict, 1), line.name, line.metric),
    )
    rows = [
        [line.name, line.metric, _points(line.stored), _points(line.measured),
         f"{100 * (line.measured - line.stored):+.2f}" if None not in (line.measured, line.stored) else "",
         f"{100 * line.tolerance:.2f}", line.verdict]
        for line in chosen
    ]
    return tabulate(
        rows, headers=["unit", "metric", "stored", "measured", "difference", "tolerance", "verdict"],
        tablefmt="github", disable_numparse=True,
    ) if rows else ""


def _points(value: float | None) -> str:
    return "undef." if value is None else f"{100 * value:.2f}"


def summary(lines: Sequence[Line]) -> str:
    """One sentence with the counts of verdicts."""
    count = {v: sum(line.verdict == v for line in lines) for v in ("ok", "fell", "rose")}
    other = len(lines) - sum(count.values())
    seeds = sum(not line.same_seeds for line in lines)
    return (
        f"{len(lines)} stored scores: {count['ok']} within their band, {count['fell']} fell, {count['rose']} rose, "
        f"{other} could not be judged" + (f"; {seeds} compared over other seeds, in the wider band" if seeds else "")
    )


def junit(lines: Sequence[Line]) -> bytes:
    """JUnit XML: one case per stored score; a fall is a failure, what cannot be judged an error."""
    suite = ElementTree.Element(
        "testsuite", name="scores", tests=str(len(lines)),
        failures=str(sum(line.verdict == "fell" for line in lines)),
        errors=str(sum(not line.judged for line in lines)),
    )
    for line in lines:
        case = ElementTree.SubElement(suite, "testcase", classname=line.name, name=line.metric)
        text = f"stored {_points(line.stored)}, measured {_points(line.measured)}, tolerance {100 * line.tolerance:.2f}"
        if line.verdict == "fell":
            ElementTree.SubElement(case, "failure", message=text)
        elif not line.judged:
            ElementTree.SubElement(case, "error", message=f"{line.verdict}; {text}")
    return ElementTree.tostring(suite, encoding="utf-8", xml_declaration=True)
