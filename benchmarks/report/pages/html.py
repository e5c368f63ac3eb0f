"""The static report: one folder that opens from disk without network, server or JavaScript, and is better with it."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.report.drawings.comparison import plot
from benchmarks.report.drawings.speed import speed
from benchmarks.report.numbers import heat, intervals, suites
from benchmarks.report.numbers.anything import metric_name
from benchmarks.report.numbers.cells import MARKS, Cell, marks_of
from benchmarks.report.numbers.compare import Comparison, comparisons, main_presets, on_common_ground
from benchmarks.report.numbers.notes import symbol
from benchmarks.report.numbers.pool import Pool, ReportError, check_protocols, pool, size_text, spec_of
from benchmarks.report.numbers.ranking import Ranked, ranking
from benchmarks.report.numbers.tables import assemble
from benchmarks.report.pages import fragments
from benchmarks.report.pages.methods import Page, method_pages
from benchmarks.report.pages.pictures import Pictures, Samples
from benchmarks.report.pages.templating import environment
from benchmarks.report.text.comparison import cost_table

COST_HEADS = {
    "images_per_s": "pictures/s", "training_s": "training s", "peak_host_mb": "host MiB",
    "peak_device_mb": "device MiB",
}
ASSETS = Path(__file__).parent / "assets"


def write(
    out: Path,
    records: Iterable[Any],
    *,
    results: Path | None = None,
    samples: Samples | None = None,
    broken: Mapping[str, str] | None = None,
    mixed: bool = False,
    sure: bool = True,
) -> Path:
    """Write the report into `out` and return its index.html.

    results: the results directory, from whose `maps` folder (see `--keep-maps`) pictures of the worst misses are made.
    samples: (dataset, category) -> {picture name: (file, mask files)}, to show input and ground truth beside the map.
    broken: file -> why a record could not be read. sure: with intervals over test pictures in the tables of papers and
    in comparisons, half a second or so of processor time for each unit.
    Raises ReportError when there is no record at all, or for several protocols unless `mixed`.
    """
    found = pool(records)
    found.left_out += list((broken or {}).items())
    if not found.units and not found.failed and not found.left_out:
        raise ReportError("no record to report on: run some units first, or name another results directory")
    protocols = check_protocols([r for rivals in found.rivals.values() for r in rivals], mixed)
    out = Path(out)
    _clear(out)
    shutil.copytree(ASSETS, out / "assets")
    pictures = Pictures(out, results, samples)
    pages = method_pages(found, out, pictures)
    context = {
        "made": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"), "count": sum(map(len, found.units.values())),
    }
    for page in pages:
        _page(out / page.file, "method.html", context, heading=page.spec, root="../", **page.content)
    links = {id(record): page.anchor(record) for page in pages for record in page.records}
    grounds = _grounds(found, mixed, sure)
    _index(out, found, pages, links, protocols, context, bool(pictures.made), grounds)
    _page(out / "papers.html", "papers.html", context, heading="Tables of the papers", root="",
          suites=_suites(found, links, mixed, sure))
    _page(out / "compare.html", "compare.html", context, heading="Comparison of methods", root="",
          parts=_comparisons(out, grounds))
    _units(out, found, links, context)
    return out / "index.html"


def _clear(out: Path) -> None:
    """Remove an earlier report, and nothing that is not one."""
    if out.exists() and any(out.iterdir()):
        if not (out / "assets" / "report.css").exists():
            raise ReportError(f"{out} holds other files than a report; choose an empty folder with --out")
        for name in ("assets", "methods", "images", "charts"):
            shutil.rmtree(out / name, ignore_errors=True)
    out.mkdir(parents=True, exist_ok=True)


def _page(path: Path, template: str, context: Mapping[str, Any], **content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(environment().get_template(template).render(**context, **content), encoding="utf-8")


# Overview


def _index(
    out: Path, found: Pool, pages: Sequence[Page], links: Mapping[int, str], protocols: Sequence[tuple[str, str]],
    context: Mapping[str, Any], pictures: bool, grounds: Sequence[Ground],
) -> None:
    hrefs = {page.spec: page.file for page in pages}
    failed = [
        (" ".join(key), why) for key, reasons in sorted(found.failed.items()) for why in reasons
    ]
    lines = [f"Maps and masks compared at {size_text(size)}; metric version {version}." for version, size in protocols]
    used = {mark for seeds in found.units.values() for r in seeds.values() for mark in r.get("marks") or ()}
    _page(
        out / "index.html", "index.html", context, heading="Anomaly detection benchmark", root="",
        specs=len({page.spec.partition(" ")[0] for page in pages}),
        settings=len({page.spec.partition(" ")[2] for page in pages}),
        parts=[{"ranking": _ranking(out, ground, number, hrefs), "heat": _heat(ground.dataset, found, pages, links)}
               for number, ground in enumerate(grounds)], failed=failed, left_out=found.left_out,
        protocol=lines, pictures=pictures,
        signs=[MARKS[m] if m in MARKS else (symbol(m), "mark given by the record") for m in sorted(used)],
    )


@dataclass(frozen=True)
class Ground:
    """A dataset, and the comparisons of main presets over what all of them ran. left: method -> categories it lacks."""

    dataset: str
    here: Pool
    left: dict[str, list[str]]
    made: list[Comparison]


def _grounds(found: Pool, mixed: bool, sure: bool) -> list[Ground]:
    grounds = []
    for dataset in sorted({key[2] for key in found.units}):
        units = heat.units_of(found, dataset)
        here = Pool(units=units, rivals={key: found.rivals[key] for key in units})
        methods, left = on_common_ground(here, main_presets(here))
        try:
            made = comparisons(here, methods, None, mixed, sure)
        except ReportError:  # every figure of it is undefined, which the tables say
            made = []
        grounds.append(Ground(dataset, here, left, made))
    return grounds


def _ranking(out: Path, ground: Ground, number: int, hrefs: Mapping[str, str]) -> dict[str, Any] | None:
    """Best first, with costs, and a drawing of accuracy against speed for the device of most methods."""
    rows = ranking(ground.made, ground.here)
    if not rows:
        return None
    counts = Counter(row.device for row in rows)
    device = max(counts, key=lambda name: (counts[name], name))
    drawn, chart = speed([row for row in rows if row.device == device], ground.made[0].name), ""
    if drawn:
        chart = f"charts/speed-{number}.svg"
        (out / chart).parent.mkdir(parents=True, exist_ok=True)
        (out / chart).write_text(drawn, encoding="utf-8")
    place = min((row.place for row in rows if row.place > 1), default=0)
    seconds = [row for row in rows if row.place == place]
    second = seconds[0] if seconds else None
    shown = [name for name in COST_HEADS if any(row.costs[name] is not None for row in rows)]
    metrics = [one.name for one in ground.made]
    columns = [[row.mean for row in rows], *([row.others[k] for row in rows] for k in range(len(metrics) - 1))]
    return {
        "metrics": metrics, "over": len(ground.made[0].categories), "left": ground.left, "chart": chart,
        "device": device, "several": len(counts) > 1, "best": [row.spec for row in rows if row.place == 1],
        "mean": f"{rows[0].mean:.2f}", "marks": "".join(map(symbol, rows[0].marks)),
        "speed": _cost(rows[0].costs["images_per_s"], 1), "cost_heads": [COST_HEADS[name] for name in shown],
        "ahead": f"{second.behind:.2f}" if second else "",
        "second": [row.spec for row in seconds], "test": _test(ground.made[0], rows[0].spec, second),
        "rows": [
            {
                "place": row.place, "spec": row.spec, "href": hrefs[row.spec], "device": row.device,
                "sd": f" ± {row.sd:.2f}" if row.sd is not None else "",
                "marks": "".join(map(symbol, row.marks)), "behind": f"{row.behind:.2f}" if row.place > 1 else "",
                "figures": [
                    {"text": "—" if (v := column[i]) is None else f"{v:.2f}", "place": _place(column, i)}
                    for column in columns
                ],
                "costs": [_cost(row.costs[name], 1 if name.endswith("_s") else 0) for name in shown],
            }
            for i, row in enumerate(rows)
        ],
    }


def _place(column: Sequence[float | None], i: int) -> int:
    """1 for the best figure of a column, 2 for the next, else 0."""
    order = sorted({v for v in column if v is not None}, reverse=True)
    return order.index(column[i]) + 1 if len(order) > 1 and column[i] in order[:2] else 0


def _cost(value: float | None, digits: int) -> str:
    return "—" if value is None else f"{value:,.{digits}f}"


def _test(one: Comparison, best: str, second: Ranked | None) -> str:
    """Whether the lead over the second can be more than chance, in words."""
    pair = next((p for p in one.pairs if second and {p.a, p.b} == {best, second.spec}), None)
    if pair is None:
        return ""
    if pair.adjusted is None or len(one.categories) < 6:
        few = "One category is" if len(one.categories) == 1 else f"{len(one.categories)} categories are"
        return f"{few} too few to tell by a test whether that is more than chance"
    return f"Wilcoxon's test over the categories gives p = {max(pair.adjusted, 0.001):.3f} for that (Holm)"


def _heat(dataset: str, found: Pool, pages: Sequence[Page], links: Mapping[int, str]) -> dict[str, Any]:
    """Method x category, every metric in each cell so that a script can switch; the first one is shown."""
    units = heat.units_of(found, dataset)
    metrics = heat.main_metrics(units)
    tables = [heat.table(units, metric) for metric in metrics]
    categories = sorted({key[3] for key in units})
    rows = []
    for page in pages:
        mine = {key[3]: seeds for key, seeds in units.items() if f"{key[0]}@{key[1]}" == page.spec}
        if not mine:
            continue
        cells = []
        for category in categories:
            records = list(mine.get(category, {}).values())
            cells.append({
                "values": [table[page.spec].get(category) for table in tables],
                "href": links[id(records[0])] if records else None, "marks": "".join(map(symbol, marks_of(records))),
            })
        means = [heat.over_categories(table[page.spec], categories) for table in tables]
        # a mean over fewer categories says so, has no colour and is not sorted among the others
        cells.append({
            "values": [mean if n == len(categories) else None for mean, n in means], "href": page.file,
            "marks": "".join(map(symbol, marks_of(r for seeds in mine.values() for r in seeds.values()))),
            "part": ["" if mean is None or n == len(categories) else f"{mean:.1f} ({n} of {len(categories)})"
                     for mean, n in means],
        })
        rows.append({"method": page.spec, "href": page.file, "cells": cells})
    for cell in (cell for row in rows for cell in row["cells"]):
        first, parts = cell["values"][0], cell.get("part", [])
        cell |= {
            "text": f"{first:.1f}" if first is not None else parts[0] if parts and parts[0] else "—",
            "value": "" if first is None else f"{first:.3f}", "level": "" if first is None else heat.level(first),
            "all": ";".join("" if v is None else f"{v:.3f}" for v in cell["values"]), "parts": ";".join(parts),
        }
    names = [" ".join(part for part in metric_name(m) if part) for m in metrics]
    return {
        "dataset": dataset, "metrics": names, "categories": categories, "rows": rows, "steps": heat.STEPS,
        "mean": suites.mean_label(dataset, len(categories)),
    }


def _units(out: Path, found: Pool, links: Mapping[int, str], context: Mapping[str, Any]) -> None:
    wanted = ("image_auroc", "image_auroc/mean", "pixel_auroc", "aupro@0.3", "auspro@0.05/mean")
    records = [r for key in sorted(found.units) for _, r in sorted(found.units[key].items())]
    metrics = [m for m in wanted if any(m in r["metrics"] for r in records)]
    rows = []
    for record in records:
        unit = record["unit"]
        values = [record["metrics"].get(m) for m in metrics]
        seconds = (record.get("timing") or {}).get("total_s")
        rows.append({
            **unit, "spec": spec_of(record), "href": links[id(record)],
            "marks": " ".join(record.get("marks") or ()),
            "values": [
                *("—" if v is None else f"{100 * v:.2f}" for v in values),
                "—" if seconds is None else f"{seconds:.1f}",
            ],
        })
    heads = ["method", "dataset", "category", "seed", *(" ".join(p for p in metric_name(m) if p) for m in metrics),
             "seconds", "marks"]
    _page(out / "units.html", "units.html", context, heading="All units", root="", heads=heads, rows=rows)


# Tables of the papers, comparison


def _suites(found: Pool, links: Mapping[int, str], mixed: bool, sure: bool) -> list[dict[str, Any]]:
    from markupsafe import Markup

    def link(cell: Cell) -> str | None:
        return links.get(id(cell.records[0])) if len(cell.records) == 1 else None

    shown = []
    for suite in suites.all():
        made = []
        for spec in suite.tables:
            table = assemble(spec, found, mixed, suite.quick, None)
            measured = any(cell.value is not None for row in table.cells for cell in row)
            if sure and measured:
                intervals.add(table)
            if measured or any(cell.printed is not None for row in table.cells for cell in row):
                made.append({
                    "name": spec.name, "title": spec.title, "measured": measured,
                    "html": Markup(fragments.table(table, link)),
                })
        if made:
            shown.append({
                "paper": suite.paper, "title": suite.title, "source": suite.source, "link": suite.link, "tables": made,
            })
    return shown


def _comparisons(out: Path, grounds: Sequence[Ground]) -> list[dict[str, Any]]:
    """Per dataset: the main presets over what all of them ran, and every other preset for the reader to choose."""
    from markupsafe import Markup

    parts = []
    for number, ground in enumerate(grounds):
        units, made = ground.here.units, ground.made
        specs = sorted({f"{key[0]}@{key[1]}" for key in units})
        if len(specs) < 2 or not made:
            continue
        figure = None
        if made[0].ranks:
            figure = plot(made[0], out / "images" / f"compare-{number}.png").relative_to(out).as_posix()
        parts.append({
            "dataset": ground.dataset, "figure": figure, "left": ground.left, "choice": _choice(units, specs, made[0]),
            "details": [
                {"name": one.name, "html": Markup(fragments.comparison([one], None))} for one in made
            ],
            "costs": Markup(fragments.plain(cost_table(ground.here, specs))),
        })
    return parts


def _choice(units: Mapping[heat.Key, Mapping[int, Any]], specs: Sequence[str], shown: Comparison) -> dict[str, Any]:
    """A row for every preset; those of `shown` are ticked. A script does the means and ranks of another choice."""
    values = heat.table(units, shown.metric)
    categories = sorted({key[3] for key in units})
    common = {name.partition("/")[2] for name in shown.categories}
    rows = []

    def marks(spec: str, category: str) -> str:
        seeds = [record for key, found in units.items() if (f"{key[0]}@{key[1]}", key[3]) == (spec, category)
                 for record in found.values()]
        return "".join(map(symbol, marks_of(seeds)))

    for spec in sorted(specs, key=lambda m: (shown.ranks.get(m, len(specs) + 1), m)):
        chosen = spec in shown.ranks
        mean, n = heat.over_categories(values[spec], common if chosen else ())
        rows.append({
            "spec": spec, "chosen": chosen, "mean": "" if mean is None or n < len(common) else f"{mean:.2f}",
            "rank": f"{shown.ranks[spec]:.2f}" if chosen else "",
            "cells": [
                {"text": "—" if v is None else f"{v:.1f}", "value": "" if v is None else f"{v:.6g}",
                 "level": "" if v is None else heat.level(v), "marks": "" if v is None else marks(spec, category)}
                for category in categories for v in (values[spec].get(category),)
            ],
        })
    return {"metric": shown.name, "categories": categories, "rows": rows, "over": len(common)}
