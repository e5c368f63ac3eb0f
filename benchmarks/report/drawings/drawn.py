"""Figures of stored units: curves of several methods in one picture, score histograms, losses, heat tables."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from benchmarks.report.drawings import plots
from benchmarks.report.drawings.charts import PRO, SPRO
from benchmarks.report.numbers import heat, over_settings
from benchmarks.report.numbers.anything import metric_name
from benchmarks.report.numbers.arrays import area, arrays_of, image_rocs, losses, map_curves, scores_by_kind, watched
from benchmarks.report.numbers.pool import Pool, Record, ReportError, check_protocols, pool, spec_of, why_undefined

CURVES = {  # kind -> (how `plots.curves` draws it, default limit, words)
    "roc": ("roc", None, "image scores"), "pixel_roc": ("roc", None, "pixels"), "pro": ("pro", PRO, "PRO"),
    "spro": ("spro", SPRO, "sPRO"),
}
KINDS = ("overlay", "roc", "pixel_roc", "pro", "spro", "scores", "loss", "watch", "heat", "setting")


def draw(
    kinds: Iterable[str], records: Sequence[Record], out: Path, *, metric: str | None = None,
    limit: float | None = None, mixed: bool = False, form: str = "png",
) -> list[Path]:
    """Write the figures of each kind into `out`; returns their paths, in which nothing stands twice.

    kinds: of KINDS but 'overlay', which needs pictures and is not made from records. Curves show all methods and seeds
    of a category in one figure; 'scores', 'loss' and 'watch' are one figure a unit; 'heat' one a dataset; 'setting' one
    for each setting of it. metric: what 'heat' and 'setting' show. form: of canvas.UNSAID. limit: false positive rate
    up to which PRO (0.3) and sPRO (0.05) are shaded.
    Raises ReportError for records of several protocols unless `mixed`.
    """
    found = pool(records)
    check_protocols([r for rivals in found.rivals.values() for r in rivals], mixed)
    chosen = [record for key in sorted(found.units) for _, record in sorted(found.units[key].items())]
    made: list[Path] = []
    for kind in kinds:
        if kind in CURVES:
            made += _curves(kind, chosen, out, limit, form)
        elif kind == "heat":
            made += _heat(found, out, metric, form)
        elif kind == "setting":
            made += _settings(found, out, metric or "image_auroc", form)
        else:
            one = {"scores": _scores, "loss": _loss, "watch": _watch}[kind]
            made += [path for record in chosen if (path := one(record, out, form)) is not None]
    return made


def file_name(*parts: object, suffix: str = ".png") -> str:
    """A name that every file system takes, whatever the parts contain; other parts give another name."""
    text = "-".join(map(str, parts))
    plain = re.sub(r"[^\w.@-]+", "_", text)[:120]
    return plain + ("" if plain == text else f"-{hashlib.sha256(text.encode()).hexdigest()[:6]}") + suffix


def _curves(kind: str, records: Sequence[Record], out: Path, limit: float | None, form: str) -> list[Path]:
    name, default, shown = CURVES[kind]
    axis = "tpr" if name == "roc" else name
    places: dict[tuple[str, str, str], list[dict]] = {}
    seeds = Counter((spec_of(r), r["unit"]["dataset"], r["unit"]["category"]) for r in records)
    end = (default if limit is None else limit) if default else None
    for record in records:
        unit, label = record["unit"], spec_of(record)
        if seeds[label, unit["dataset"], unit["category"]] > 1:
            label += f", seed {unit['seed']}"
        for part, curve in _of_kind(kind, arrays_of(record)).items():
            named = f"{label}: {100 * _area(record, kind, part, curve, end):.2f}"
            places.setdefault((unit["dataset"], unit["category"], part), []).append(
                {"label": named, "fpr": curve[0], axis: curve[1]}
            )
    return [
        plots.curves(
            items, out / file_name(kind, dataset, category, *([part] if part else []), suffix=f".{form}"), kind=name,
            limit=end, title=f"{dataset} {category}, {shown}" + (f", {part}" if part else "") + "; area in %",
        )
        for (dataset, category, part), items in places.items()
    ]


def _area(record: Record, kind: str, part: str, curve: np.ndarray, end: float | None) -> float:
    """The record's own metric where it has the limit, else the area below the stored curve."""
    name = {"roc": "image_auroc", "pixel_roc": "pixel_auroc"}.get(kind, f"au{kind}@{end:g}" if end else kind)
    value = record["metrics"].get(f"{name}/{part}" if part else name)
    return area(curve, 1.0 if end is None else end) if value is None else value


def _of_kind(kind: str, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Curves [2, n] by part: '' or LOCO's kinds of defects."""
    if kind == "roc":
        return image_rocs(arrays)
    maps = map_curves(arrays)
    if kind == "spro":
        return {name.partition("/")[2]: curve for name, curve in maps.items() if name.startswith("spro/")}
    stored = {"pixel_roc": "pixel", "pro": "pro"}[kind]
    return {"": maps[stored]} if stored in maps else {}


def _scores(record: Record, out: Path, form: str) -> Path | None:
    scores = scores_by_kind(arrays_of(record))
    return plots.histogram(scores, out / _name("scores", record, form), title=_title(record)) if scores else None


def _loss(record: Record, out: Path, form: str) -> Path | None:
    series = losses(record, arrays_of(record), all_series=True)
    return plots.losses(series, out / _name("loss", record, form), title=_title(record)) if series else None


def _watch(record: Record, out: Path, form: str) -> Path | None:
    log = watched(record)
    if log is None:
        return None
    done, series = log
    return plots.over_training(100 * done, series, out / _name("watch", record, form), title=_title(record))


def _heat(found: Pool, out: Path, metric: str | None, form: str) -> list[Path]:
    made = []
    for dataset in sorted({key[2] for key in found.units}):
        units = heat.units_of(found, dataset)
        have = heat.have(units)
        name = metric or ("image_auroc/mean" if "image_auroc/mean" in have else "image_auroc")
        values = heat.table(units, name)
        if not any(v is not None for row in values.values() for v in row.values()):
            why = why_undefined((r for seeds in units.values() for r in seeds.values()), name)
            if why:
                raise ReportError(f"{name} is undefined for every record on {dataset}: {why}")
            raise ReportError(f"no record on {dataset} has the metric {name!r}; it has {', '.join(sorted(have))}")
        title = f"{' '.join(part for part in metric_name(name) if part)} (%), {dataset}"
        made.append(plots.heat_table(values, out / file_name("heat", dataset, name, suffix=f".{form}"), title=title))
    return made


def _settings(found: Pool, out: Path, metric: str, form: str) -> list[Path]:
    methods = list(dict.fromkeys(f"{key[0]}@{key[1].partition(' ')[0]}" for key in sorted(found.units)))
    name = " ".join(part for part in metric_name(metric) if part)
    return [
        plots.over_settings(
            one, out / file_name("setting", one.dataset, one.setting, metric, suffix=f".{form}"), ylabel=f"{name} (%)",
        )
        for one in over_settings.curves(found, methods, metric)
    ]


def _title(record: Record) -> str:
    unit = record["unit"]
    return f"{spec_of(record)}, {unit['dataset']} {unit['category']}, seed {unit['seed']}"


def _name(kind: str, record: Record, form: str) -> str:
    unit = record["unit"]
    return file_name(kind, spec_of(record), unit["dataset"], unit["category"], f"seed{unit['seed']}", suffix=f".{form}")
