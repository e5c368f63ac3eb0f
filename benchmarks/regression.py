"""The regression gate: stored bands from several seeds, and the comparison of new records with them."""

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

from benchmarks.provenance import now
from benchmarks.store import latest
from benchmarks.units import UsageError

SCHEMA = 1
MIN_SEEDS = 3
FLOOR = 0.005  # half a point: below this, differences between machines and library versions are not regressions
WIDTH = 4.0  # standard deviations of a seed
IDENTITY = ("method", "preset", "dataset", "category")
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

    @property
    def judged(self) -> bool:
        return self.verdict in ("ok", "fell", "rose")


def _group(records: Iterable[Mapping[str, Any]]) -> dict[tuple[str, ...], list[Mapping[str, Any]]]:
    groups: dict[tuple[str, ...], list[Mapping[str, Any]]] = defaultdict(list)
    for record in latest(list(records)):
        groups[tuple(str(record["unit"][k]) for k in IDENTITY)].append(record)
    return dict(sorted(groups.items()))


def make_baseline(records: Sequence[Mapping[str, Any]], command: str) -> dict[str, Any]:
    """Bands (mean, spread, n, tolerance) per method, category and metric from the records of at least 3 seeds.

    The tolerance is 4 standard deviations of a seed, at least half a point. The deviation is the larger of the
    category's own and the one pooled over the categories of the same method, dataset and metric, because three seeds
    alone estimate it badly. Raises UsageError with fewer seeds or mixed settings.
    """
    entries = []
    for identity, group in _group(records).items():
        name = f"{identity[0]}@{identity[1]} {identity[2]}/{identity[3]}"
        if len(group) < MIN_SEEDS:
            raise UsageError(
                f"{name} has records of {len(group)} seeds; a band needs {MIN_SEEDS}: run it with --seeds 0 1 2"
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
                **dict(zip(IDENTITY, identity, strict=True)), "metric": metric,
                "mean": float(np.mean(defined)) if len(defined) == len(values) else None,
                "sd": float(np.std(defined, ddof=1)) if len(defined) == len(values) else None,
                "n": len(values), "seeds": sorted(r["unit"]["seed"] for r in group),
                "config_hash": group[0]["config_hash"], "dataset_fingerprint": group[0]["dataset_fingerprint"],
                "protocol": dict(zip(PROTOCOL, _protocol(group[0]), strict=True)),
                "untrained": "untrained" in group[0]["marks"],
            })
    if not entries:
        raise UsageError("no finished records to make a baseline from; run the units first")
    for entry in entries:
        peers = [e["sd"] for e in entries if e["sd"] is not None and all(
            e[k] == entry[k] for k in ("method", "preset", "dataset", "metric"))]
        pooled = math.sqrt(float(np.mean(np.square(peers)))) if peers else 0.0
        entry["tolerance"] = max(FLOOR, WIDTH * max(entry["sd"] or 0.0, pooled))
    return {"schema": SCHEMA, "made": now(), "command": command, "entries": entries}


def _protocol(record: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(record["protocol"].get(key) for key in PROTOCOL)


def read_baseline(path: Path) -> dict[str, Any]:
    """A baseline file; UsageError when it is absent or not one."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        entries = data["entries"]
        if data["schema"] != SCHEMA or not entries:
            raise ValueError(f"schema {data['schema']!r} with {len(entries)} entries")
        for entry in entries:
            for key in (*IDENTITY, "metric", "mean", "tolerance", "seeds", "config_hash", "dataset_fingerprint",
                        "protocol", "untrained"):
                entry[key]
            if entry["mean"] is not None and not (
                math.isfinite(entry["mean"]) and math.isfinite(entry["tolerance"]) and entry["tolerance"] >= 0
            ):
                raise ValueError(f"{entry['metric']}: mean or tolerance is not a number")
    except FileNotFoundError:
        raise UsageError(f"--baseline {path}: no such file; `baseline make` writes one") from None
    except (KeyError, TypeError, ValueError, OSError) as error:
        raise UsageError(
            f"--baseline {path}: not a baseline file ({error or type(error).__name__}); make it anew with "
            "`run_benchmark.py baseline make`"
        ) from error
    return data


def compare(baseline: Mapping[str, Any], records: Sequence[Mapping[str, Any]]) -> list[Line]:
    """Every entry of the baseline against the records of the same seeds: settings, data and protocol first."""
    by_unit = {tuple(str(r["unit"][k]) for k in (*IDENTITY, "seed")): r for r in latest(list(records))}
    lines = []
    for entry in baseline["entries"]:
        identity = tuple(str(entry[k]) for k in IDENTITY)
        name = f"{identity[0]}@{identity[1]} {identity[2]}/{identity[3]}"
        found = [by_unit.get((*identity, str(seed))) for seed in entry["seeds"]]
        why = _cannot_judge(entry, found)
        values = [r["metrics"].get(entry["metric"]) for r in found if r]
        measured = float(np.mean(values)) if values and None not in values and not why else None
        if why:
            verdict = why
        elif entry["mean"] is None or measured is None:
            verdict = "ok" if entry["mean"] is None and measured is None else (
                "was undefined, is defined now" if entry["mean"] is None else "undefined now")
        elif measured < entry["mean"] - entry["tolerance"]:
            verdict = "fell"
        else:
            verdict = "rose" if measured > entry["mean"] + entry["tolerance"] else "ok"
        lines.append(Line(name, entry["metric"], entry["mean"], measured, entry["tolerance"], verdict))
    return lines


def _cannot_judge(entry: Mapping[str, Any], found: Sequence[Mapping[str, Any] | None]) -> str:
    missing = [str(s) for s, r in zip(entry["seeds"], found, strict=True) if r is None]
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
        if ("untrained" in record["marks"]) != entry["untrained"]:
            return "other weights"
    return ""


def exit_code(lines: Sequence[Line]) -> int:
    """1 when a score fell, else 2 when some entry could not be judged, else 0."""
    if any(line.verdict == "fell" for line in lines):
        return 1
    return 2 if any(not line.judged for line in lines) else 0


def table(lines: Sequence[Line], everything: bool = False) -> str:
    """Markdown table of what fell, rose or could not be judged (all lines with `everything`), worst first."""
    from tabulate import tabulate

    order = {"fell": 0, "rose": 2, "ok": 3}
    chosen = sorted(
        (line for line in lines if everything or line.verdict != "ok"),
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
    return (
        f"{len(lines)} stored scores: {count['ok']} within their band, {count['fell']} fell, {count['rose']} rose, "
        f"{other} could not be judged"
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
