"""The tables of the papers as data: `benchmarks/suites/<paper>.yaml` -> rows, columns and what measures each cell.

A cell is what its row and its column say together: a method preset, a dataset, one or more categories, a metric. Pure
data; imports neither torch nor a method.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cache
from pathlib import Path
from typing import Any

import yaml

MEASURED = ("recorded", "all", "ours", "none")
"""Whose measured figures stand beside the published ones: of methods with records, of every method that can measure a
line, of the paper's own methods, or of none."""

ANY = "*"
"""As a line's method: measured from the records of any method."""
WHATEVER = "?"
"""As a line's method: one line for each method that has records."""

WHOLE = {"mvtec_ad": 15, "mvtec_loco": 5, "visa": 12, "mvtec_ad_2": 8, "btad": 3, "mpdd": 6, "mvtec_3d": 10}
"""Categories of public sets: what a mean over all of one goes over."""

FOLDER = Path(__file__).resolve().parents[2] / "suites"


def mean_label(dataset: str, count: int) -> str:
    """'Mean over 3 of 15 categories', or 'Mean over 4 categories' of a set without a known whole."""
    whole = WHOLE.get(dataset, count)
    number = f"{count} of {whole}" if count < whole else str(count)
    return f"Mean over {number} categor{'y' if number == '1' else 'ies'}"


class SuiteError(ValueError):
    """An unknown paper or table, or a suite file that does not say what a suite must. Names the file and the place."""


@dataclass(frozen=True)
class Line:
    """One row or column, and what it contributes to its cells (None: the other axis or the table says it).

    key: its name among the published numbers. categories: one, or those that a mean is taken over. metrics:
    likewise. method: `name@preset` that measures it, ANY or WHATEVER. reference: a method of
    other_methods.csv whose figures stand as published. ticks: module flags to print. rank: False leaves the line out
    of best and second marks. minus: what it says instead for a value to be subtracted
    (a drop between two datasets, or against `clean`). setting: what its method runs under, 'shots=4' or 'clean'.
    partial: this line averages over the categories that are present, and says over how many.
    """

    key: str
    label: str
    group: str = ""
    categories: tuple[str, ...] | None = None
    metrics: tuple[str, ...] | None = None
    method: str | None = None
    dataset: str | None = None
    reference: str | None = None
    ticks: Mapping[str, bool] = field(default_factory=dict)
    rank: bool = True
    unit: str | None = None
    digits: int | None = None
    lower: bool = False
    minus: Line | None = None
    setting: str | None = None
    partial: bool = False


@dataclass(frozen=True)
class TableSpec:
    """One table: its axes and the defaults of its cells.

    methods_in: the axis whose keys are the `column` of the published numbers. best: direction in which best and second
    are marked: 'row' (across the columns), 'column', 'group' (down the rows of one group) or 'none'. seeds: how many
    the table asks for. unit: 'percent', 'fraction', 'count' or 'plain'. measured: whose measured figures it shows.
    """

    paper: str
    name: str
    title: str
    caption: str
    rows: tuple[Line, ...]
    columns: tuple[Line, ...]
    metric: str = ""
    dataset: str = "mvtec_ad"
    unit: str = "percent"
    digits: int = 1
    best: str = "row"
    methods_in: str = "columns"
    seeds: int = 1
    notes: tuple[str, ...] = ()
    measured: str = "recorded"


@dataclass(frozen=True)
class Need:
    """What one cell is measured from."""

    method: str | None
    dataset: str
    categories: tuple[str, ...]
    metrics: tuple[str, ...]
    unit: str
    digits: int
    lower: bool


@dataclass(frozen=True)
class Suite:
    """The tables of one paper.

    link: where the paper is found, '' where no address is known.
    quick: preset -> smaller preset for a CPU, both written `method@preset`; None: has no smaller one, left out.
    own: methods that are the paper's, without their presets; others stand for comparison.
    """

    paper: str
    title: str
    source: str
    tables: tuple[TableSpec, ...]
    quick: Mapping[str, str | None]
    link: str = ""
    own: tuple[str, ...] = ()

    def table(self, name: str) -> TableSpec:
        """The named table; SuiteError names the known ones."""
        for table in self.tables:
            if table.name == name:
                return table
        raise SuiteError(f"{self.paper} has no table {name!r}; it has {', '.join(t.name for t in self.tables)}")

    def only(self, spec: TableSpec, measured: str) -> TableSpec:
        """A table of it in which only some lines are measured: one of MEASURED. Counts of pictures stay in each."""
        if measured not in MEASURED:
            raise SuiteError(f"measured={measured!r}: choose {', '.join(MEASURED)}")
        if measured in ("recorded", "all"):
            return replace(spec, measured=measured)

        def kept(line: Line) -> Line:
            own = measured == "ours" and (line.method or "").partition("@")[0] in self.own
            return line if own or line.method in (None, ANY, WHATEVER) else replace(line, method=None)

        rows, columns = (tuple(map(kept, lines)) for lines in (spec.rows, spec.columns))
        return replace(spec, rows=rows, columns=columns, measured=measured)


def names() -> list[str]:
    """Papers that have a suite file."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def all() -> list[Suite]:
    """Every suite, by paper."""
    return [load(name) for name in names()]


@cache
def load(paper: str) -> Suite:
    """The suite of one paper; SuiteError when there is none or its file is wrong."""
    if paper not in names():
        raise SuiteError(f"unknown paper {paper!r}; there are {', '.join(names())}")
    path = FOLDER / f"{paper}.yaml"
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
        return _suite(paper, raw)
    except (yaml.YAMLError, KeyError, TypeError, AttributeError) as error:
        raise SuiteError(f"{path.name}: {type(error).__name__}: {error}") from error


def units(
    paper: str, table: str | None = None, quick: bool = False, measured: str = "recorded"
) -> list[tuple[str, str, str]]:
    """(method@preset, dataset, category) of every unit that a table is measured from, in table order, once each.

    Without a table those of all tables of the paper. measured: one of MEASURED.
    """
    suite = load(paper)
    found: dict[tuple[str, str, str], None] = {}
    for spec in (suite.only(one, measured) for one in (suite.tables if table is None else [suite.table(table)])):
        for need in (n for row in spec.rows for column in spec.columns for n in needs(spec, row, column)):
            method = suite.quick.get(need.method, need.method) if quick and need.method else need.method
            if method and method not in (ANY, WHATEVER):
                found |= dict.fromkeys((method, need.dataset, category) for category in need.categories)
    return list(found)


def needs(spec: TableSpec, row: Line, column: Line) -> list[Need]:
    """What a cell is measured from: one need, or two where the second is subtracted."""
    minus = row.minus or column.minus
    first = _need(spec, row, column)
    if not minus:
        return [first]
    second = replace(first, **{
        key: value for key in ("dataset", "categories", "metrics") if (value := getattr(minus, key)) is not None
    })
    return [first, replace(second, method=_under(second.method, minus.setting))]


def _under(method: str | None, setting: str | None) -> str | None:
    """The method's spec under a setting: 'clean' takes away the one that it has, None leaves it."""
    if method is None or setting is None:
        return method
    plain = method.partition(" ")[0]
    return plain if setting == "clean" else f"{plain} {setting}"


def _need(spec: TableSpec, row: Line, column: Line) -> Need:
    def pick(name: str, default: Any) -> Any:
        return next((v for line in (row, column) if (v := getattr(line, name)) is not None), default)

    return Need(
        _under(pick("method", None), pick("setting", None)), pick("dataset", spec.dataset), pick("categories", ()),
        pick("metrics", (spec.metric,) if spec.metric else ()), pick("unit", spec.unit), pick("digits", spec.digits),
        row.lower or column.lower,
    )


def _suite(paper: str, raw: Mapping[str, Any]) -> Suite:
    sets = {name: tuple(members) for name, members in raw.get("sets", {}).items()}
    tables = []
    for name, table in raw["tables"].items():
        known = {f.name for f in fields(TableSpec)}
        if unknown := set(table) - known:
            raise SuiteError(f"{paper}.yaml, table {name}: unknown {', '.join(sorted(unknown))}")
        given = {"dataset": raw.get("dataset", "mvtec_ad"), **table}
        columns_are_methods = given.get("methods_in", "columns") == "columns"
        given |= {
            "rows": tuple(_lines(table["rows"], sets, not columns_are_methods)),
            "columns": tuple(_lines(table["columns"], sets, columns_are_methods)),
            "notes": tuple(table.get("notes", ())),
        }
        tables.append(TableSpec(paper=paper, name=str(name), **given))
    own = tuple(raw.get("own", [paper]))
    return Suite(paper, raw["title"], raw["source"], tuple(tables), raw.get("quick") or {}, raw.get("link", ""), own)


def _lines(raw: Sequence[Any], sets: Mapping[str, tuple[str, ...]], methods: bool) -> Iterator[Line]:
    """Lines of an axis.

    `{group: ..., lines: [...]}` passes its other keys on to its lines; `{groups: [...], lines: [...]}` repeats the
    lines for every category or set named; `lines: auto` stands for every method that has records.
    """
    for item in raw:
        if not isinstance(item, dict) or "lines" not in item:
            yield _line(item, sets, methods)
            continue
        shared = {k: v for k, v in item.items() if k not in ("lines", "groups")}
        for name in item.get("groups", [None]):
            inherited = shared if name is None else {
                **shared, "group": _label(name), "category": name, "group_key": name,
            }
            lines = [{"key": "methods", "method": WHATEVER}] if item["lines"] == "auto" else item["lines"]
            for line in lines:
                yield _line(
                    {**inherited, **(line if isinstance(line, dict) else {"key": line})}, sets, methods
                )


def _line(item: Any, sets: Mapping[str, tuple[str, ...]], methods: bool) -> Line:
    if not isinstance(item, dict):
        item = {"key": item}
    item = dict(item)
    category, metric = item.pop("category", None), item.pop("metric", None)
    name = item.pop("group_key", None)
    key = str(item.pop("key", item.get("label", name)))
    if name is not None:
        key = key.replace("{category}", name)
    if category is None and not methods and (key in sets or (metric is None and "method" not in item)):
        category = key
    if category is not None and "categories" not in item:
        item["categories"] = sets.get(category, (category,))
    if metric is not None:
        item["metrics"] = [metric]
    if "minus" in item:
        item["minus"] = _line({"key": "", **item["minus"]}, sets, True)
    for plural in ("categories", "metrics"):
        if plural in item:
            item[plural] = tuple(item[plural])
    return Line(key=key, label=str(item.pop("label", key if methods else _label(key))), **item)


LABELS = {
    "mean": "Mean", "mean_object": "Mean, objects", "mean_texture": "Mean, textures",
    "constructed_button": "Constructed button",
}


def _label(key: str) -> str:
    return LABELS.get(key, key.replace("_", " ").capitalize())
