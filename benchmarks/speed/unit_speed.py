"""A whole PatchCore or PaDiM unit, ours against anomalib's Engine: same pictures, backbone, weights and settings.

    python -m benchmarks.speed.unit_speed --data-root DIR --weights DIR [--method padim] [--images 24]

Both with ResNet-18 at 256 px, uncropped. PatchCore: layer2 and layer3, 9 neighbours, nearest upsampling. PaDiM: layers
1 to 3, and the same 100 random dimensions on both sides. Image and pixel AUROC and AUPRO at 0.3 (ours computes AP, F1
and four more limits besides). Every run is a process of its own that starts without caches; contestants alternate, and
the tables show medians. Seconds are those after the imports: ours from reading the folder to the stored record,
anomalib's of `Engine.fit` and `Engine.test`; CPU seconds are those of the same span. anomalib keeps its defaults (its
validation on the test pictures sets the normalisation), apart from figures, progress bars and loader processes, which
are off. `--images` cuts the training pictures: anomalib's coreset selection grows with their square.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.speed.common import add_category, category_of, child, finish, middle, table

TAG, LAYERS, SIZE = "resnet18.tv_in1k", ("layer2", "layer3"), 256
NAMES = {"ours": "this project", "anomalib": "anomalib Engine"}


def ours(method: str, root: Path, weights: str, share: float, scratch: Path) -> dict[str, Any]:
    """One unit through plan and runner, as a worker runs it."""
    import timm  # noqa: F401  the imports below and this one are not timed, as anomalib's are not

    from benchmarks import scoring  # noqa: F401
    from benchmarks.launchers import memory
    from benchmarks.plan import Options, make_plan
    from benchmarks.runner import run_unit
    from models import registry
    from models.nn import coreset_kernel  # noqa: F401

    registry.method_class(method)
    memory.reuse()
    start, busy = time.perf_counter(), time.process_time()
    settings = {"coreset": str(share), "upsample": "nearest", "neighbours": "9"} if method == "patchcore" else {}
    options = Options(
        data_root=root, results=scratch, weights=weights, device="cpu", settings=settings,
        cache_dir=scratch / "cache", cache_size=10**10,
    )
    (job,) = make_plan([f"{method}@resnet18"], ["pictures"], options).jobs
    record = run_unit(job, lambda *step: None)
    total, busy = time.perf_counter() - start, time.process_time() - busy
    if record["status"] != "ok":
        raise SystemExit(f"our unit failed: {record['error']}")
    timing, found = record["timing"], record["metrics"]
    return {
        "total_s": total, "cpu_s": busy, "fit_s": timing["data_s"] + timing["build_s"] + timing["fit_s"],
        "test_s": timing["predict_s"] + timing["metrics_s"] + timing["test_read_s"],
        "image_auroc": found["image_auroc"], "pixel_auroc": found["pixel_auroc"], "aupro": found["aupro@0.3"],
        "threads": record["environment"]["threads"], "images": record["images"],
    }


def anomalibs(method: str, root: Path, weights: str, share: float, scratch: Path) -> dict[str, Any]:
    """`Engine.fit` and `Engine.test` on the same folder, with our weights loaded into anomalib's extractor."""
    import torch
    from anomalib.data import MVTecAD
    from anomalib.engine import Engine
    from anomalib.metrics import AUPRO, AUROC, Evaluator
    from anomalib.models import Padim, Patchcore
    from lightning.pytorch import seed_everything

    from models.base import Context
    from models.nn.training import generator
    from models.weights import WeightStore

    logging.disable(logging.WARNING)
    seed_everything(0)
    start, busy = time.perf_counter(), time.process_time()
    images, pixels = ("pred_score", "gt_label"), ("anomaly_map", "gt_mask")
    metrics = [AUROC(images, "image_"), AUROC(pixels, "pixel_"), AUPRO(pixels, "pixel_")]
    cls, own = {
        "patchcore": (Patchcore, {"layers": LAYERS, "coreset_sampling_ratio": share}), "padim": (Padim, {}),
    }[method]
    model = cls(
        backbone=TAG.partition(".")[0], pre_trained=False, pre_processor=cls.configure_pre_processor((SIZE, SIZE)),
        evaluator=Evaluator(test_metrics=metrics), visualizer=False, **own,
    )
    if method == "padim":
        chosen = generator(Context(torch.device("cpu"), 0, WeightStore("none")), "dimensions")
        model.model.idx.copy_(torch.randperm(model.model.n_features_original, generator=chosen)[: len(model.model.idx)])
    load_backbone(model.model.feature_extractor.feature_extractor, weights)
    data = MVTecAD(root=root / "pictures", category="category", num_workers=0)
    engine = Engine(
        accelerator="cpu", devices=1, logger=False, default_root_dir=scratch, enable_progress_bar=False,
        enable_model_summary=False,
    )
    engine.fit(model=model, datamodule=data)
    fitted = time.perf_counter()
    (found,) = engine.test(model=model, datamodule=data, verbose=False)
    total = time.perf_counter()
    return {
        "total_s": total - start, "cpu_s": time.process_time() - busy, "fit_s": fitted - start,
        "test_s": total - fitted, "image_auroc": found["image_AUROC"], "pixel_auroc": found["pixel_AUROC"],
        "aupro": found["pixel_AUPRO"], "threads": torch.get_num_threads(),
    }


def load_backbone(network: Any, weights: str) -> None:
    """The weights of TAG from the store into a network of timm's; none where the store is 'none'."""
    from models.weights import WeightStore

    needed = [key for key in network.state_dict() if not key.endswith("num_batches_tracked")]
    state = WeightStore(weights).load(TAG, needed)
    if state is not None:
        network.load_state_dict({key: state[key] for key in needed}, strict=False)


def compare(root: Path, arguments: argparse.Namespace) -> None:
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in arguments.only}
    for _ in range(arguments.rounds):
        for name in runs:
            runs[name].append(child(__spec__.name, [
                "--method", arguments.method, "--child", name, root, arguments.weights, arguments.coreset,
            ]))
    if "ours" in runs:
        images = runs["ours"][0]["images"]
        coreset = f"coreset {arguments.coreset:g}, " if arguments.method == "patchcore" else ""
        print(f"{arguments.method}: {images['train']} training and {images['test']} test pictures of "
              f"{images['sizes']}, {coreset}medians of {arguments.rounds} alternating rounds.\n")
    base = next(iter(runs))
    keys = ("total_s", "cpu_s", "fit_s", "test_s", "process_s")
    table(
        ("", "unit s", "CPU s", "fit s", "test s", "whole process s", "peak MB", "image AUROC", "pixel AUROC",
         "AUPRO@0.3"),
        ([NAMES[name], *(f"{middle(held, key):.2f}" for key in keys), f"{max(r['peak_mb'] for r in held):,.0f}",
          *(f"{100 * middle(held, key):.2f}" for key in ("image_auroc", "pixel_auroc", "aupro"))]
         for name, held in runs.items()),
    )
    for name, held in runs.items():
        if name == base:
            continue
        times = {key: middle(held, key) / middle(runs[base], key) for key in keys}
        memory = max(r["peak_mb"] for r in held) / max(r["peak_mb"] for r in runs[base])
        print(f"\n{NAMES[name]} takes {times['total_s']:.1f} times the unit's time of {NAMES[base]} (CPU "
              f"{times['cpu_s']:.1f}, fit {times['fit_s']:.1f}, test {times['test_s']:.1f}, process "
              f"{times['process_s']:.1f}), and {memory:.1f} times its peak memory.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_category(parser)
    parser.add_argument("--method", choices=["patchcore", "padim"], default="patchcore")
    parser.add_argument("--images", type=int, help="training pictures (all without it)")
    parser.add_argument("--coreset", type=float, default=0.01, help="share of the patches kept")
    parser.add_argument("--only", nargs="+", choices=list(NAMES), default=list(NAMES))
    arguments = parser.parse_args()
    if arguments.child:
        name, root, weights, share = arguments.child
        with tempfile.TemporaryDirectory() as scratch:
            run = ours if name == "ours" else anomalibs
            finish(run(arguments.method, Path(root), weights, float(share), Path(scratch)))
        return
    with category_of(parser, arguments, arguments.images) as held:
        compare(held, arguments)


if __name__ == "__main__":
    main()
