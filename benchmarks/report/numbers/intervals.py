"""How sure figures are: 95 % intervals over test pictures for cells of tables, and of differences between methods.

A figure's interval is that of the mean over categories of the mean over seeds, with pictures drawn within categories,
the same ones for every method and seed. It says nothing of the spread over seeds, which tables give as ± beside it.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from benchmarks.metrics import bootstrap
from benchmarks.report.numbers.arrays import arrays_of
from benchmarks.report.numbers.cells import Cell
from benchmarks.report.numbers.pool import Pool, Record, name_of, spec_of
from benchmarks.report.numbers.tables import Table

FEWEST = 5
"""Anomalous pictures below which an interval is given with a warning."""

LEGEND = (
    "[a, b]: 95 % interval over test pictures, drawn again within the good ones and within each kind of defect "
    f"({bootstrap.DRAWS:,} draws); the spread over seeds is not in it. No interval: every draw gave the same figure, "
    "as after perfect separation, or a line below says why. Published figures lie inside or outside of it."
)


@dataclass(frozen=True)
class Difference:
    """Method a minus b in points: over all (`place` empty) or in one category. interval: None if there is none."""

    a: str
    b: str
    place: str
    value: float
    interval: tuple[float, float] | None

    @property
    def verdict(self) -> str:
        """Who leads; only said where the interval excludes 0. Empty without an interval."""
        if self.interval is None:
            return ""
        if self.interval[0] <= 0 <= self.interval[1]:
            return "open"
        return f"{self.a if self.interval[0] > 0 else self.b} leads"


@dataclass(frozen=True)
class Drawn:
    """A metric of one record: its value on each draw, as a fraction, and the pictures it is from."""

    values: np.ndarray
    pictures: tuple[str, ...]
    anomalous: int
    kinds: int  # of pictures, the good ones included: draws are within each

    @property
    def size(self) -> np.ndarray:
        """Pictures and kinds, as `bootstrap.interval` takes them."""
        return np.array([len(self.pictures), self.kinds])


def drawn(record: Record, metric: str) -> Drawn | str:
    """The draws of a record's metric, or why there are none. Pixel metrics are moved by what the ladder of thresholds
    takes from the exact figure."""
    exact = record["metrics"].get(metric)
    if exact is None:
        return f"{name_of(record)} has no figure of {metric}"
    unit, finished = record["unit"], str((record.get("environment") or {}).get("finished", ""))
    file = (record.get("images") or {}).get("scores")
    path = str(Path(str(record["path"])).parent / Path(str(file)).name) if file and record.get("path") else ""
    return _drawn(path, metric, float(exact), finished, f"{unit['dataset']}/{unit['category']}")


@lru_cache(maxsize=4096)
def _drawn(path: str, metric: str, exact: float, finished: str, place: str) -> Drawn | str:
    beside = {"images": {"scores": path}, "path": path}
    arrays = arrays_of(beside, counts=not metric.startswith("image_")) if path else {}
    if not arrays:
        return "no scores beside the record"
    kinds = arrays["kind"].astype(str)
    names = arrays["name"].astype(str)
    counts = _counts(tuple(names.tolist()), tuple(kinds.tolist()), zlib.crc32(place.encode()))
    found = bootstrap.evaluate(arrays, counts, [metric]).get(metric)
    if found is None:
        return f"the record keeps no counts for {metric}; run the unit again with --force to get its interval"
    pictures = tuple(f"{kind}/{name}" for kind, name in zip(kinds, names, strict=True))
    return Drawn(found[1:] + (exact - found[0]), pictures, int(arrays["label"].astype(int).sum()),
                 len(set(kinds.tolist())))


@lru_cache(maxsize=32)  # a table goes through the same categories for each of its methods
def _counts(names: tuple[str, ...], kinds: tuple[str, ...], seed: int) -> np.ndarray:
    """int16 [1 + draws, n]: every picture once, then `bootstrap.weights`."""
    drawn = bootstrap.weights(np.array(names), np.array(kinds), seed=seed)
    return np.vstack([np.ones((1, len(kinds))), drawn]).astype(np.int16)


def add(table: Table) -> None:
    """Give the measured cells of a table their intervals, and say below it what they are and why some are missing."""
    said: dict[str, None] = {}
    for cell in (cell for row in table.cells for cell in row if cell.state == "value"):
        found = _of_cell(cell, said)
        if found is not None:
            cell.interval = bootstrap.interval(found[0], *found[1])
    if any(cell.interval for row in table.cells for cell in row):
        table.notes.append(LEGEND)
    table.notes += gathered(said)


NONE = "No interval for "


def gathered(said: Iterable[str]) -> list[str]:
    """The lines, with those of many units that lack an interval for one reason as one."""
    units: dict[str, list[str]] = {}
    out = []
    for line in said:
        if line.startswith(NONE):
            unit, _, why = line.removeprefix(NONE).partition(": ")
            units.setdefault(why, []).append(unit)
        else:
            out.append(line)
    few = [f"{NONE}{unit}: {why}" for why, names in units.items() if len(names) <= 3 for unit in names]
    return [*out, *few, *(
        f"{NONE}{len(names)} units, {names[0]} the first: {why}" for why, names in units.items() if len(names) > 3
    )]


def _of_cell(cell: Cell, said: dict[str, None]) -> tuple[np.ndarray, np.ndarray] | None:
    """The draws of a cell's value in the unit shown, and how many pictures and kinds they are of.

    Adds to `said` why there are none, and warnings.
    """
    if cell.need.unit == "count" or not cell.need.metrics or cell.need.metrics[0].partition("/")[0] in (
        "images", "timing", "memory",
    ):
        return None
    scale = 100.0 if cell.need.unit == "percent" else 1.0
    parts, values = [], []
    sizes: dict[str, np.ndarray] = {}
    for metric in cell.need.metrics:
        places: dict[str, list[tuple[np.ndarray, float]]] = {}
        for record in cell.records:
            found = drawn(record, metric)
            if isinstance(found, str):
                said[f"{NONE}{name_of_unit(record)}: {found}."] = None
                return None
            places.setdefault(name_of_place(record), []).append((found.values, record["metrics"][metric]))
            sizes[name_of_place(record)] = found.size
            warn(record, found, said)
        for seeds in places.values():
            parts.append(np.mean([draws for draws, _ in seeds], axis=0))
            values.append(float(np.mean([value for _, value in seeds])))
    # a cell may show another number than this mean, such as a difference of two columns: no interval is made for it
    if not parts or cell.value is None or abs(scale * float(np.mean(values)) - cell.value) > 1e-9:
        return None
    return scale * np.mean(parts, axis=0), sum(sizes.values())


def warn(record: Record, found: Drawn, said: dict[str, None]) -> None:
    """Say once for a category that it has too few anomalous pictures to trust an interval."""
    if found.anomalous < FEWEST:
        said[f"{name_of_place(record)} has {found.anomalous} anomalous pictures: its interval is a guess."] = None


def name_of_place(record: Record) -> str:
    """'mvtec_ad/bottle'."""
    return f"{record['unit']['dataset']}/{record['unit']['category']}"


def name_of_unit(record: Record) -> str:
    """'padim@wrn50 mvtec_ad/bottle'."""
    return f"{spec_of(record)} {name_of_place(record)}"


def differences(
    found: Pool, a: str, b: str, metric: str, places: Sequence[str]
) -> tuple[list[Difference], dict[str, None]]:
    """a minus b over all places ('dataset/category') and in each, on the same pictures; and what is to be said of it.

    Over all, a difference needs the draws of every place.
    """
    said: dict[str, None] = {}
    each, values, draws, sizes = [], [], [], []
    for place in places:
        dataset, _, category = place.partition("/")
        sides = [_side(found.get(method, dataset, category).values(), metric, said) for method in (a, b)]
        exact = [np.mean([r["metrics"][metric] for r in found.get(m, dataset, category).values()]) for m in (a, b)]
        values.append(100 * float(exact[0] - exact[1]))
        made = None
        if sides[0] is not None and sides[1] is not None:
            if sides[0][1] == sides[1][1]:
                made = 100 * (sides[0][0] - sides[1][0])
                draws.append(made)
                sizes.append(sides[0][2])
            else:
                said[f"{place}: {a} and {b} were not scored on the same pictures, so no interval."] = None
        known = None if made is None else bootstrap.interval(made, *sizes[-1])
        each.append(Difference(a, b, place, values[-1], known))
    whole = bool(draws) and len(draws) == len(places)
    over = bootstrap.interval(np.mean(draws, axis=0), *sum(sizes)) if whole else None
    return [Difference(a, b, "", float(np.mean(values)), over), *each], said


def _side(
    records: Iterable[Record], metric: str, said: dict[str, None]
) -> tuple[np.ndarray, tuple[str, ...], np.ndarray] | None:
    parts, pictures = [], set()
    for record in records:
        one = drawn(record, metric)
        if isinstance(one, str):
            said[f"{NONE}{name_of_unit(record)}: {one}."] = None
            return None
        warn(record, one, said)
        parts.append(one.values)
        pictures.add(one.pictures)
    return (np.mean(parts, axis=0), pictures.pop(), one.size) if len(pictures) == 1 else None
