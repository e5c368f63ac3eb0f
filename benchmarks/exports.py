"""Records for other programs: a tidy CSV or Parquet file, an MLflow store, a dataset folder for the Hugging Face hub.

Each function writes to `out` and returns how many of what it wrote.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import Any

from benchmarks.errors import UsageError
from benchmarks.report.numbers.cells import MARKS
from benchmarks.report.numbers.pool import Pool, cost, device_of, spec_of
from benchmarks.report.text import csv_text
from benchmarks.store import write_atomic

CARD = "---\npretty_name: Records of industrial visual anomaly detection\n"
"""How the card of a dataset begins."""
PARAM_LENGTH = 6000  # of a value that MLflow takes


def csv(found: Pool, out: str) -> tuple[int, str]:
    """One line for each metric of each unit."""
    text = csv_text.tidy(found)
    write_atomic(Path(out), text.encode())
    return text.count("\n") - 1, "line"


def parquet(found: Pool, out: str) -> tuple[int, str]:
    """The same as Parquet, with the types of the columns; needs pyarrow."""
    import io

    import pandas
    import pyarrow  # noqa: F401  a missing one is then named as such

    frame = pandas.DataFrame(csv_text.tidy_rows(found), columns=csv_text.TIDY)
    # all original, all model, or some numbers of pixels: one type for the column
    frame["metric_size"] = frame["metric_size"].astype(str)
    buffer = io.BytesIO()
    frame.to_parquet(buffer, index=False)
    write_atomic(Path(out), buffer.getvalue())
    return len(frame), "line"


def hugging_face(found: Pool, out: str) -> tuple[int, str]:
    """`records.csv` and the card (README.md) of a dataset that can be uploaded as it is; no picture is in it."""
    card = Path(out) / "README.md"
    if card.exists() and not card.read_bytes().startswith(CARD.encode()):
        raise UsageError(f"--out {out}: holds a README.md that no export wrote; name an empty folder")
    write_atomic(card, _card(found).encode())
    return csv(found, str(Path(out) / "records.csv"))


def mlflow(found: Pool, out: str) -> tuple[int, str]:
    """A run for each unit in an experiment for each dataset; a unit that is there already is not added again.

    out: a folder for a file store, new or with one in it, or a tracking URI. '@' in names of metrics becomes '_at_',
    since MLflow takes none.
    Raises UsageError where the store cannot be used.
    """
    held = Path(out)
    if "://" not in out and held.exists() and (
        not held.is_dir() or (any(held.iterdir()) and not (held / ".trash").is_dir())
    ):
        raise UsageError(f"--out {out}: is no file store of MLflow; name an empty folder")
    os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # else MLflow 3 refuses a folder
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Param, RunTag
    from mlflow.exceptions import MlflowException

    try:
        client = MlflowClient(out if "://" in out else Path(out).resolve().as_uri())
        known: dict[str, set[str]] = {}
        added = 0
        for record in _records(found):
            unit = record["unit"]
            experiment = client.get_experiment_by_name(unit["dataset"])
            key = experiment.experiment_id if experiment else client.create_experiment(unit["dataset"])
            if key not in known:
                known[key] = {run.data.tags.get("record", "") for run in _runs(client, key)}
            tags = _tags(record)
            if tags["record"] in known[key]:
                continue
            at = _milliseconds(record)
            name = f"{spec_of(record)} {unit['category']} seed {unit['seed']}"
            run = client.create_run(key, start_time=at, run_name=name, tags=tags).info.run_id
            params = [Param(k, str(v)[:PARAM_LENGTH]) for k, v in {**record.get("config", {}), **unit}.items()]
            for i in range(0, len(params), 100):  # what MLflow takes at once
                client.log_batch(run, params=params[i : i + 100])
            metrics = [Metric(_key(k), float(v), at, step) for k, step, v in _numbers(record)]
            for i in range(0, len(metrics), 1000):
                client.log_batch(run, metrics=metrics[i : i + 1000])
            client.log_batch(run, tags=[RunTag(f"undefined.{_key(k)}", why) for k, why in
                                        islice((record.get("undefined") or {}).items(), 90)])
            client.set_terminated(run, end_time=at)
            added += 1
    except MlflowException as error:
        raise UsageError(f"--out {out}: MLflow refused it: {' '.join(str(error).split())}") from error
    return added, "new run"


FORMATS: dict[str, Callable[[Pool, str], tuple[int, str]]] = {
    "csv": csv, "parquet": parquet, "mlflow": mlflow, "hugging-face": hugging_face,
}


def _records(found: Pool) -> list[Mapping[str, Any]]:
    return [record for key in sorted(found.units) for _, record in sorted(found.units[key].items())]


def _runs(client: Any, experiment: str) -> Iterator[Any]:
    token = None
    while True:
        page = client.search_runs([experiment], page_token=token)
        yield from page
        token = page.token
        if not token:
            return


def _tags(record: Mapping[str, Any]) -> dict[str, str]:
    environment = record.get("environment") or {}
    about = {
        "record": f"{record.get('config_hash')} {record.get('dataset_fingerprint')} {sorted(record['unit'].items())} "
                  f"{environment.get('finished')}",
        "marks": " ".join(record.get("marks") or ()), "device": device_of(record),
        "weights": " ".join(sorted(record.get("weights") or ())), "mlflow.source.git.commit":
        environment.get("git_commit"), "command": environment.get("command"),
        **{k: record["protocol"].get(k) for k in ("metric_version", "metric_size", "image_score")},
    }
    return {k: str(v) for k, v in about.items() if v not in (None, "")}


def _numbers(record: Mapping[str, Any]) -> Iterator[tuple[str, int, float]]:
    """(name, step, value): metrics as fractions, costs, and what training logged."""
    for name, value in record["metrics"].items():
        if value is not None:
            yield name, 0, value
    for part, names in (("timing", ("training_s", "images_per_s", "total_s")), ("memory", ("peak_host_mb",
                                                                                         "peak_device_mb"))):
        for name in names:
            if (value := cost(record, part, name)) is not None:
                yield f"{part}/{name}", 0, value
    for name, series in (record.get("training") or {}).items():
        if isinstance(series, list) and all(isinstance(v, int | float) for v in series):
            yield from ((f"training/{name}", step, value) for step, value in enumerate(series))


def _key(name: str) -> str:
    return re.sub(r"[^\w./ -]", "_", name.replace("@", "_at_"))


def _milliseconds(record: Mapping[str, Any]) -> int:
    try:
        return int(datetime.fromisoformat((record.get("environment") or {})["finished"]).timestamp() * 1000)
    except (KeyError, TypeError, ValueError):
        return 0


def _card(found: Pool) -> str:
    """What the hub shows, with what must be known to use the figures."""
    records = _records(found)
    methods = sorted({spec_of(r) for r in records})
    places = sorted({f"{r['unit']['dataset']}/{r['unit']['category']}" for r in records})
    marks = sorted({m for r in records for m in r.get("marks") or ()})
    versions = sorted({str(r["protocol"]["metric_version"]) for r in records})
    size = next(name for most, name in ((10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"),
                                        (10**6, "100K<n<1M"), (10**12, "n>1M"))
                if sum(len(r["metrics"]) for r in records) < most)
    lines = [
        *CARD.splitlines(), "tags:", "- anomaly-detection",
        "- benchmark", "size_categories:", f"- {size}", "configs:", "- config_name: default",
        "  data_files: records.csv", "---", "",
        "# Records of industrial visual anomaly detection", "",
        "One line for each metric of each unit (method preset, dataset, category, seed), as measured by the reference "
        "harness `anomaly-benchmarks`. Values are fractions. No picture is in this folder.", "",
        f"- Units: {len(records)}",
        f"- Methods: {', '.join(f'`{m}`' for m in methods)}", f"- Categories: {', '.join(places)}",
        f"- Metric version: {', '.join(versions)}; figures of different versions or metric sizes are not to be mixed.",
        f"- Devices: {', '.join(sorted({device_of(r) for r in records}))}; their times are not to be ranked together.",
        "", "An empty `value` has its reason in `undefined`. `marks` belong to a figure wherever it is shown:", "",
        *[f"- `{m}`: {MARKS[m][1] if m in MARKS else 'as the method says'}" for m in marks],
        "", "Columns: " + ", ".join(f"`{name}`" for name in csv_text.TIDY) + ".", "",
    ]
    return "\n".join(lines)

