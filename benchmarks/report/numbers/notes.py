"""What stands below a table, in words: the legend of the marks used, how it was measured, what is missing or odd."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from benchmarks.report.numbers.anything import metric_name
from benchmarks.report.numbers.cells import MARKS, Cell
from benchmarks.report.numbers.pool import Pool, spec_of
from benchmarks.report.numbers.suites import ANY, Line

PUBLISHED_MARKS = {
    "mismatch": ("!", "printed figure that does not follow from the others in its table"),
    "second_hand": ("°", "published figure known at second hand only"),
}
RANKS = (
    "best and second among the published, and among the measured figures, decided before rounding; after a tie for "
    "best the underline goes to the next lower value"
)


def symbol(mark: str) -> str:
    """The sign of a mark; one that is not known stands in brackets by its name."""
    return {**MARKS, **PUBLISHED_MARKS}.get(mark, (f"[{mark}]", ""))[0]


def legend(lines: Iterable[Line], cells: Sequence[Cell]) -> list[tuple[str, str]]:
    """(sign, meaning) of what the cells show. lines: rows and columns."""
    used = {mark for cell in cells if cell.state == "value" for mark in cell.marks}
    used |= {mark for cell in cells for mark in cell.printed_marks}
    known = {**MARKS, **PUBLISHED_MARKS}
    found = [known[m] for m in known if m in used]
    found += [(f"[{m}]", "mark given by the record") for m in sorted(used - set(known))]
    states = {cell.state for cell in cells}
    if "missing" in states or any(c.printed is not None and c.printed.value is None for c in cells):
        found.append(("—", "not run, or not published"))
    if "absent" in states:
        found.append(("n/a", "the method does not give this figure"))
    for reason in dict.fromkeys(f"{c.reason}" for c in cells if c.state == "undefined"):
        found.append(("undef.", reason))
    if any(c.rank or c.printed_rank for c in cells):
        found.append(("bold, underlined", RANKS))
    if any(line.partial for line in lines):
        found.append(("k of n", "mean over the k categories that have a figure, of the n that the mean is over"))
    return found


def measured(cells: Sequence[Cell]) -> list[str]:
    """How the figures came about: limits of areas, rule of the image score, seeds, versions of the data."""
    shown = [cell for cell in cells if cell.state == "value"]
    records = {id(r): r for cell in shown if cell.need.unit != "count" for r in cell.records}.values()
    if not records:
        return [] if shown or not any(cell.state for cell in cells) else ["Nothing measured yet."]
    metrics = {metric for cell in cells for metric in cell.need.metrics}
    notes = costs(cells)
    for name, text in (("aupro", "AUPRO"), ("auspro", "AUsPRO")):
        limits = sorted({m.partition("@")[2].partition("/")[0] for m in metrics if m.startswith(f"{name}@")})
        if limits:
            notes.append(f"{text} up to a false positive rate of {', '.join(limits)}, divided by it.")
    if any(m.startswith("image_") for m in metrics):
        rules: dict[str, set[str]] = {}
        for record in records:
            rule = record["protocol"].get("image_score")
            rules.setdefault("maximum of the map" if rule == "max" else "the method's own", set()).add(
                spec_of(record).partition(" ")[0]  # a setting changes the pictures, not the rule
            )
        if len(rules) == 1:
            notes.append(f"Image score: {next(iter(rules))}.")
        else:
            each = "; ".join(f"{rule} for {', '.join(sorted(who))}" for rule, who in rules.items())
            notes.append(f"Image score: {each}.")
    seeds = sorted({record["unit"]["seed"] for record in records})
    spread = "; mean ± standard deviation over the seeds" if any(cell.sd is not None for cell in cells) else ""
    notes.append(f"Seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}{spread}.")
    prints: dict[tuple[str, str, bool], set[str]] = {}
    for record in records:
        if record.get("dataset_fingerprint"):
            unit = record["unit"]
            place = (unit["dataset"], unit["category"], unit.get("setting") == "multi_class")  # those cover all of them
            prints.setdefault(place, set()).add(str(record["dataset_fingerprint"]))
    notes += [
        f"{dataset}/{category}: measured on {len(versions)} versions of the data, which differ."
        for (dataset, category, _), versions in sorted(prints.items()) if len(versions) > 1
    ]
    remarks = {
        f"{record['unit']['dataset']}/{record['unit']['category']}: {remark}."
        for record in records for remark in record.get("remarks") or ()
    }
    return notes + sorted(remarks)


ALONE = (
    "Times are those of a unit that runs alone: seconds for frozen features, and for fitted members, that it took from "
    "another unit are added."
)


def costs(cells: Sequence[Cell]) -> list[str]:
    """How times and memory are to be read; nothing where none are shown."""
    shown = [cell for cell in cells if cell.is_cost and cell.state == "value"]
    if not shown:
        return []
    devices = sorted({device for cell in shown for device in cell.devices})
    where = (
        f"Time and memory on {devices[0]}." if len(devices) == 1 else
        f"Time and memory are of {len(devices)} devices and must not be compared across them, so none is marked best: "
        + "; ".join(
            f"{method} on {', '.join(sorted({d for c in shown if c.need.method == method for d in c.devices}))}"
            for method in dict.fromkeys(str(c.need.method) for c in shown)
        ) + "."
    )
    return [ALONE, where] if any(m.startswith("timing/") for c in shown for m in c.need.metrics) else [where]


def gaps(cells: Sequence[Cell], found: Pool) -> list[str]:
    """Which records are missing, and which units failed and why."""
    holes: dict[tuple[str, str], dict[str, None]] = {}
    for cell in cells:
        for category in cell.absent_from:
            holes.setdefault((str(cell.need.method), cell.need.dataset), {})[category] = None
    lacking: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for (method, dataset), categories in holes.items():
        lacking.setdefault((dataset, tuple(categories)), []).append(method)
    notes = []
    for (dataset, categories), methods in lacking.items():
        who = "Neither files nor a record" if ANY in methods else f"No record of {', '.join(methods)}"
        notes.append(f"{who} on {dataset}: {', '.join(categories)}.")
    for (method, dataset), categories in holes.items():
        name, _, preset = method.partition("@")
        notes += [
            f"Failed: {method} {dataset}/{category} {why}."
            for category in categories for why in found.failed.get((name, preset, dataset, category), ())
        ]
    return notes


def published(pairs: Iterable[tuple[Line, Line, Cell]]) -> list[str]:
    """What is odd about published figures, by (row, column, cell); cells with one remark stand together."""
    places: dict[tuple[str, str, str], dict[str, None]] = {}
    for row, column, cell in pairs:
        if cell.printed_marks and cell.printed:
            note = (cell.printed.note or cell.printed.source).replace("MISMATCH: ", "")
            where = f"{row.group}, {row.label}" if row.group else row.label
            metric = " ".join(part for part in metric_name(cell.need.metrics[0]) if part) if cell.need.metrics else ""
            places.setdefault((metric, where, note), {})[column.label] = None
    return [
        f"Published {metric}, {where}, {', '.join(columns)}: {note}." if metric else
        f"Published, {where}, {', '.join(columns)}: {note}." for (metric, where, note), columns in places.items()
    ]
