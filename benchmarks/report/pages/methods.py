"""Pages of the report with every unit of a method: its figures, worst misses with pictures, and its provenance."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.report.drawings import charts
from benchmarks.report.numbers import heat
from benchmarks.report.numbers.anything import metric_name
from benchmarks.report.numbers.cells import marks_of
from benchmarks.report.numbers.misses import examples, worst
from benchmarks.report.numbers.notes import symbol
from benchmarks.report.numbers.pool import Pool, Record, lent_seconds, protocol_of, size_text
from benchmarks.report.numbers.suites import mean_label
from benchmarks.report.pages.pictures import Pictures

COUNTS = {"train": "train", "validation": "validation", "test_good": "good", "test_anomalous": "defective"}
MISSES = 4


@dataclass
class Page:
    """The page of one `method@preset`."""

    spec: str
    file: str
    records: list[Record]
    content: dict[str, Any] = field(default_factory=dict)

    def anchor(self, record: Record) -> str:
        """Link from the report's root to a record's section."""
        return f"{self.file}#u{next(i for i, r in enumerate(self.records) if r is record)}"


def method_pages(found: Pool, out: Path, pictures: Pictures) -> list[Page]:
    """One page per method with all its units, by dataset, category and seed."""
    specs = sorted({f"{key[0]}@{key[1]}" for key in found.units})
    pages = []
    for number, spec in enumerate(specs):
        keys = sorted(key for key in found.units if f"{key[0]}@{key[1]}" == spec)
        records = [record for key in keys for _, record in sorted(found.units[key].items())]
        safe = "".join(c if c.isascii() and (c.isalnum() or c in "-_") else "-" for c in spec)[:40]
        page = Page(spec, f"methods/{number:02d}-{safe}.html", records)
        configs: dict[str, dict[str, Any]] = {}
        machines: dict[str, dict[str, Any]] = {}
        units = [
            _unit(i, record, configs, machines, pictures)
            | {"charts": _charts(record, out / "charts" / f"{number}-{i}.svg")}
            for i, record in enumerate(records)
        ]
        common = {unit["protocol"] for unit in units}
        if len(common) == 1:
            for unit in units:
                unit["protocol"] = ""
        page.content = {
            "tables": _tables(found, spec, records), "units": units, "configs": list(configs.values()),
            "machines": list(machines.values()),
            "protocol": next(iter(common)) if len(common) == 1 else "",
        }
        pages.append(page)
    return pages


def _tables(found: Pool, spec: str, records: Sequence[Record]) -> list[dict[str, Any]]:
    """For each dataset its categories and their mean, in percent, mean over seeds; a category leads to its unit."""
    made = []
    for dataset in dict.fromkeys(record["unit"]["dataset"] for record in records):
        units = {key: seeds for key, seeds in heat.units_of(found, dataset).items() if f"{key[0]}@{key[1]}" == spec}
        metrics = heat.main_metrics(units)
        columns = [heat.table(units, metric)[spec] for metric in metrics]
        rows = []
        for category in sorted({key[3] for key in units}):
            first = next(i for i, r in enumerate(records)
                         if (r["unit"]["dataset"], r["unit"]["category"]) == (dataset, category))
            seeds = next(seeds for key, seeds in units.items() if key[3] == category)
            rows.append({
                "name": category, "href": f"#u{first}", "seeds": str(len(seeds)),
                "marks": "".join(map(symbol, marks_of(seeds.values()))),
                "values": [column.get(category) for column in columns],
            })
        if len(rows) > 1:
            means = [heat.over_categories(column, column) for column in columns]
            rows.append({
                "name": mean_label(dataset, len(rows)), "href": "", "seeds": "",
                "marks": "".join(map(symbol, marks_of(r for seeds in units.values() for r in seeds.values()))),
                "values": [mean if n == len(rows) else None for mean, n in means],
            })
        for row in rows:
            row["cells"] = [("—", "") if v is None else (f"{v:.2f}", heat.level(v)) for v in row.pop("values")]
        made.append({
            "dataset": dataset, "rows": rows, "metrics": [" ".join(filter(None, metric_name(m))) for m in metrics],
        })
    return made


def _unit(
    number: int, record: Record, configs: dict[str, dict[str, Any]], machines: dict[str, dict[str, Any]],
    pictures: Pictures,
) -> dict[str, Any]:
    environment = dict(record.get("environment") or {})
    config = {"hash": str(record.get("config_hash", "?")), "items": _flat(record.get("config") or {})}
    finished, command = environment.pop("finished", ""), environment.pop("command", "not recorded")
    environment.pop("started", None)
    weights = [(f"weights {tag}", _weights(used)) for tag, used in (record.get("weights") or {}).items()]
    machine = {"device": str(environment.get("device", "unknown device")), "items": [*_flat(environment), *weights]}
    misses = worst(record)
    timing, memory, images = (record.get(part) or {} for part in ("timing", "memory", "images"))
    path = record.get("path")
    version, size = protocol_of(record)
    rule = {"max": "image score: maximum of the map", "method": "image score: the method's own"}.get(
        record["protocol"].get("image_score"), "image score: not recorded"
    )
    return {
        "number": number, **{k: record["unit"][k] for k in ("dataset", "category", "seed")},
        "marks": "; ".join(f"{symbol(m)} {m}" for m in marks_of([record])),
        "notes": [str(n) for n in record.get("notes") or ()],
        "metrics": _metrics(record),
        "undefined": list((record.get("undefined") or {}).items()),
        "misses": [miss.text for miss in misses[:MISSES]],
        "pictures": pictures.of(record, examples(misses)),
        "command": command, "finished": _minute(finished), "device": machine["device"],
        "record": _place(path, pictures.results),
        "protocol": f"at {size_text(size)}; {rule}; metric version {version}",
        "images": ", ".join(
            f"{images[k]} {name}" for k, name in COUNTS.items() if images.get(k) is not None
        ) + (f", {images['sizes']} pixels" if images.get("sizes") else ""),
        "fingerprint": str(record.get("dataset_fingerprint", "?"))[:16],
        "cost": ", ".join(
            [f"{k.removesuffix('_s')} {v:.1f} s" for k, v in timing.items() if k.endswith("_s") and k != "images_per_s"
             and isinstance(v, int | float)]
            + ([f"frozen features taken from another unit: {sum(lent.values()):.1f} s more if alone"]
               if (lent := lent_seconds(record)) and sum(lent.values()) >= 0.05 else [])
            + [f"{k.removeprefix('peak_').removesuffix('_mb')} {v:.0f} MiB" for k, v in memory.items() if v is not None]
        ),
        "config": _index_of(configs, config), "config_hash": config["hash"],
        "machine": _index_of(machines, machine),
    }


def _place(path: str | None, results: Path | None) -> str:
    """Where a record lies below the results folder; the report may be carried elsewhere, so this is no link."""
    if not path:
        return ""
    below = results is not None and Path(path).is_relative_to(results)
    return Path(path).relative_to(results).as_posix() if below and results is not None else Path(path).name


def _metrics(record: Record) -> list[tuple[list[str], list[tuple[str, list[str]]]]]:
    """[(heads, [(metric, percent below each head)])]: metrics with the same limits and kinds stand together."""
    rows: dict[str, dict[str, str]] = {}
    for key, value in record["metrics"].items():
        name, part = metric_name(key)
        head, _, limit = name.partition("@")
        limit = {"": "", "max": "by the map's maximum"}.get(limit, f"to {limit}")
        label = ", ".join(filter(None, (limit, part.replace("_", " "))))
        rows.setdefault(head, {})[label] = "undef." if value is None else f"{100 * value:.2f}"
    blocks: dict[tuple[str, ...], list[tuple[str, list[str]]]] = {}
    for name, parts in rows.items():
        blocks.setdefault(tuple(parts), []).append((name, list(parts.values())))
    return [(list(heads) if any(heads) else [], lines) for heads, lines in blocks.items()]


def _charts(record: Record, path: Path) -> str:
    """Write the unit's curves, losses and scores; the link from the method's page, '' when nothing is stored."""
    drawn = charts.of(record)
    if not drawn:
        return ""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(drawn, encoding="utf-8")
    return f"../charts/{path.name}"


def _minute(time: str) -> str:
    """'2026-01-01 09:30 UTC' from the record's time in full."""
    return f"{time[:10]} {time[11:16]} UTC" if time[19:].endswith("+00:00") else time


def _index_of(known: dict[str, dict[str, Any]], item: dict[str, Any]) -> int:
    """Settings and machines that units share stand once on the page."""
    key = json.dumps(item, sort_keys=True, default=str)
    known.setdefault(key, item)
    return list(known).index(key)


def _flat(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    items = []
    for key, value in values.items():
        if isinstance(value, Mapping):
            items += [(f"{key} {inner}", text) for inner, text in _flat(value)]
        else:
            items.append((str(key), "none" if value is None else str(value)))
    return items


def _weights(value: Any) -> str:
    if isinstance(value, Mapping):
        return f"{value.get('file', '?')}, sha256 {value.get('sha256', '?')}"
    return str(value)
