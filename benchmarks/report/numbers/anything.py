"""The shape of tables of whatever was run: per dataset, the methods of each category and their means."""

from __future__ import annotations

from benchmarks.report.numbers.pool import Pool
from benchmarks.report.numbers.suites import Line, TableSpec, mean_label

PLAIN = ("image_auroc", "image_ap", "pixel_auroc", "pixel_ap", "aupro@0.3", "accuracy", "tnr", "tpr")
LOCO = (
    "image_auroc/structural", "image_auroc/logical", "image_auroc/mean", "auspro@0.05/structural",
    "auspro@0.05/logical", "auspro@0.05/mean", "pixel_auroc",
)
NAMES = {
    "image_auroc": "Image AUROC", "image_ap": "Image AP", "image_f1max": "Image F1-max", "pixel_auroc": "Pixel AUROC",
    "pixel_ap": "Pixel AP", "pixel_f1max": "Pixel F1-max", "tnr": "TNR", "tpr": "TPR", "accuracy": "Accuracy",
    "f1": "F1", "segf1": "SegF1", "missed": "Missed defects", "false_alarms": "False alarms",
    "aupro": "AUPRO", "auspro": "AUsPRO",
}


def metric_name(key: str) -> tuple[str, str]:
    """('AUsPRO@0.05', 'logical') for 'auspro@0.05/logical'; the second part may be empty."""
    head, _, tail = key.partition("/")
    name, _, limit = head.partition("@")
    return NAMES.get(name, name) + (f"@{limit}" if limit else ""), tail


def specs(found: Pool) -> list[TableSpec]:
    """One table per dataset that has records, failed ones included."""
    return [_spec(dataset, found) for dataset in sorted({key[2] for key in (*found.units, *found.failed)})]


def _spec(dataset: str, found: Pool) -> TableSpec:
    keys = [key for key in (*found.units, *found.failed) if key[2] == dataset]
    methods = sorted({f"{method}@{preset}" for method, preset, _, _ in keys})
    categories = tuple(sorted({category for _, _, _, category in keys}))
    have = {
        name for key in keys for record in found.units.get(key, {}).values() for name in record["metrics"]
    }
    loco = any(name.startswith("image_auroc/") for name in have)
    shown = [name for name in (LOCO if loco else PLAIN) if name in have] or ["image_auroc"]
    columns = []
    for metric in shown:
        group, label = metric_name(metric)
        columns.append(Line(metric, label or group, group if label else "", metrics=(metric,)))
    rows = [
        Line(f"{category}/{method}", method, category, categories=(category,), method=method)
        for category in categories for method in methods
    ]
    if len(categories) > 1:
        group = mean_label(dataset, len(categories))
        rows += [Line(f"mean/{method}", method, group, categories=categories, method=method) for method in methods]
    return TableSpec(
        paper="runs", name=dataset, title=f"{dataset} (%)", caption="", rows=tuple(rows), columns=tuple(columns),
        dataset=dataset, best="group", methods_in="rows", digits=2,
    )
