"""Runs every image model of anomalib and writes the table of docs/baselines.md.

    python -m benchmarks.speed.anomalib_models [--models cfa dfm ...] [--rows FILE] [--out docs/baselines.md]

Each model runs in a process of its own, untrained, at its own size, on four training and four test pictures of the
demo set's brick (24 for dfkde), with the shortest schedule that touches all of its parts: that it runs is what is
shown, not how good it is. `--rows` keeps what was measured, a line of JSON per model, and what stands there is not
run again. The table replaces the part of `--out` between the two marks that it brings itself.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.speed.common import REPO, machine

START, END = "<!-- anomalib models: start -->", "<!-- anomalib models: end -->"
PICTURES = {"dfkde": 24}  # its 16 principal components need more than the others' four
SHORTEST = {"dsr": {"epochs": "2"}, "efficient_ad": {"steps": "2"}}  # two phases; a scheduler that needs two steps


def settings(name: str) -> dict[str, str]:
    """The shortest schedule of a model, and textures where it needs some."""
    from models import registry
    from models.baselines.anomalib_models import COLLECTS, NEEDS_TEXTURES

    config = registry.config(f"anomalib/{name}")
    chosen: dict[str, str] = {}
    if config.own.source != COLLECTS:  # type: ignore[attr-defined]
        chosen = SHORTEST.get(name, {"steps": "1"})
    batch = {} if config.train_batch == 1 else {"train_batch": "2"}  # type: ignore[attr-defined]
    return {**chosen, **batch, **({"textures": "embedded"} if name in NEEDS_TEXTURES else {})}


def one(name: str) -> dict[str, Any]:
    """A model's row: fitted and asked for maps, or why it is refused."""
    import torch

    import datasets
    from datasets import demo
    from datasets.images import decode
    from models import registry
    from models.base import Context, ModelError
    from models.weights import WeightStore

    row: dict[str, Any] = {"model": name}
    try:
        cls = registry.method_class(f"anomalib/{name}")
    except ModelError as error:
        return {**row, "refused": str(error).removeprefix(f"anomalib/{name} ").partition(";")[0]}
    own = cls.Config()
    row |= {"size": own.size, "crop": own.crop, "epochs": own.epochs, "steps": own.steps, "batch": own.train_batch,
            "source": own.own.source}  # type: ignore[attr-defined]
    with tempfile.TemporaryDirectory() as folder:
        demo.make(Path(folder))
        category = datasets.load("demo", "brick", Path(folder))
        train = [decode(s.path) for s in category.train[: PICTURES.get(name, 4)]]
        good, bad = ([s for s in category.test if s.label == label][:2] for label in (0, 1))
        test = [decode(s.path) for s in good + bad]
        torch.manual_seed(0)
        store = WeightStore("none")
        context = Context(torch.device("cpu"), 0, store, Path(folder) / "scratch")
        config = registry.config(f"anomalib/{name}", settings(name))
        start, cpu = time.perf_counter(), time.process_time()
        detector = cls(config, context)
        detector.fit(train, None)
        result = detector.predict(test)
        row |= {"seconds": time.perf_counter() - start, "cpu": time.process_time() - cpu, "weights": sorted(store.used)}
    finite = [t is None or bool(torch.isfinite(t).all()) for t in (result.anomaly_map, result.score)]
    kinds = [kind for kind, t in (("map", result.anomaly_map), ("score", result.score)) if t is not None]
    return {**row, "gives": " and ".join(kinds), "finite": all(finite)}


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: what is known of each model, and what running it showed."""
    from models.baselines.anomalib_models import MENDED, NEEDS_TEXTURES, TEXTURES

    lines = ["| model | runs | network input | schedule, batch | weights needed | CPU seconds |",
             "|---|---|---|---|---|---|"]
    for row in sorted(rows, key=lambda row: row["model"]):
        name = f"`anomalib/{row['model']}`"
        if "refused" in row:
            lines.append(f"| {name} | no: {row['refused']} | | | | |")
            continue
        if "error" in row:
            lines.append(f"| {name} | **failed**: {row['error']} | | | | |")
            continue
        size = f"{row['size']}" + (f", crop {row['crop']}" if row["crop"] else "")
        length = f"{row['steps']:,} steps" if row["steps"] else f"{row['epochs']:,} epochs"
        length = length.removesuffix("s") if length in ("1 epochs", "1 steps") else length
        if "cpu" not in row:
            lines.append(f"| {name} | not run for this table, the slow test has it smaller | {size} | {length}, "
                         f"{row['batch']} | | |")
            continue
        weights = ", ".join(f"`{tag}`" for tag in row["weights"]) or "none"
        if row["model"] in TEXTURES:
            weights += "; `--textures`" + ("" if row["model"] in NEEDS_TEXTURES else " if wanted")
        runs = f"yes: {row['gives']}" + ("" if row["finite"] else ", **not finite**")
        lines.append(f"| {name} | {runs} | {size} | {length}, {row['batch']} | {weights} | {row['cpu']:.0f} |")
    sources: dict[str, list[str]] = {}
    for row in rows:
        if "source" in row:
            sources.setdefault(row["source"], []).append(row["model"])
    said = [f"- {source}: {', '.join(sorted(names))}" for source, names in sorted(sources.items())]
    mended = [f"- `anomalib/{name}`: {text}" for name, text in MENDED.items()]
    return "\n".join([
        *lines, "", "Where the schedules stand:", "", *said, "",
        "What anomalib 2.7 does wrong and is mended here (the record's notes say so):", "", *mended,
    ])


def left(name: str) -> dict[str, Any]:
    """The row of a model that was not run: what is known without building it."""
    from models import registry

    own = registry.config(f"anomalib/{name}")
    return {
        "model": name, "size": own.size, "crop": own.crop, "epochs": own.epochs,  # type: ignore[attr-defined]
        "steps": own.steps, "batch": own.train_batch, "source": own.own.source,  # type: ignore[attr-defined]
    }


def write(path: Path, text: str) -> None:
    """Put `text` between the marks of the file at `path`."""
    before, _, rest = path.read_text(encoding="utf-8").partition(START)
    _, mark, after = rest.partition(END)
    if not mark:
        raise SystemExit(f"{path}: the marks {START} and {END} are missing")
    path.write_text(f"{before}{START}\n\n{text}\n\n{END}{after}", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--models", nargs="+", default=[], metavar="M", help="only these (all)")
    parser.add_argument("--rows", type=Path, default=None, metavar="FILE", help="keep rows here, and use those kept")
    parser.add_argument("--out", type=Path, default=None, metavar="FILE", help="file with the marks (print)")
    parser.add_argument("--one", default="", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print("ROW" + json.dumps(one(args.one)))
        return
    from models.baselines.anomalib_config import image_models

    kept = args.rows.read_text().splitlines() if args.rows and args.rows.exists() else []
    rows = {row["model"]: row for row in map(json.loads, kept)}
    about = machine()
    for name in args.models or sorted(image_models()):
        if name in rows:
            continue
        command = [sys.executable, "-W", "ignore", "-m", "benchmarks.speed.anomalib_models", "--one", name]
        done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, check=False)
        found = [line for line in done.stdout.splitlines() if line.startswith("ROW")]
        last = (done.stderr.strip().splitlines() or ["no output"])[-1]
        rows[name] = json.loads(found[-1][3:]) if found else {"model": name, "error": last[:200]}
        print(json.dumps(rows[name]), flush=True)
        if args.rows:
            with args.rows.open("a") as file:
                file.write(json.dumps(rows[name]) + "\n")
    chosen = [row for name, row in rows.items() if not args.models or name in args.models]
    chosen += [left(name) for name in sorted(image_models()) if args.models and name not in rows]
    text = f"{table(chosen)}\n\nMeasured on: {about}."
    if args.out:
        write(args.out, text)
    else:
        print(text)


if __name__ == "__main__":
    main()
