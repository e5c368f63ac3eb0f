"""Steps of a training, ours against anomalib's under Lightning: same pictures, first weights, settings and steps.

    python -m benchmarks.speed.train_speed stfpm draem efficientad --data-root DIR --weights WDIR [--rounds 3]

Both sides in turns, each run a process of its own: ours by `fit`, anomalib's by its Engine without validation, figures,
progress bars and loader processes. The first step is left out of the seconds a step, which are medians; 'to the last
step' has everything after the imports and the making of the networks in it, such as the reading of the pictures, which
ours does once. anomalib's networks start from our first weights, and learn the pictures that ours does:

- stfpm: 256 px; every step has all pictures, so both losses must agree step by step. They do at a rate of 0.02; at
  anomalib's own 0.4 the first agreed too, and the fourth was 7 % apart: features equal to 1e-5 gave first gradients
  0.3 % apart, which lead elsewhere at that rate. anomalib's loss is half the batch times ours, so our rate is as
  many times its, and our decay as much less; its losses are shown divided by that.
- draem: our preset `anomalib` at 256 px; the textures are the same, where defects come and how differs by chance.
- efficientad: one picture a step at 256 px; the teacher has random weights (the same), and for its ImageNet pictures
  stand the textures.

Textures are scikit-image's pictures, written to a folder that both read.
"""

from __future__ import annotations

import argparse
import logging
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.speed.common import add_category, category_of, child, cut, finish, middle, table
from benchmarks.speed.unit_speed import load_backbone


class Case(NamedTuple):
    """A method: our preset, pictures that are learnt, batch, steps, share held back, and settings beside these."""

    spec: str
    learnt: int
    batch: int
    steps: int
    held: float = 0.0
    settings: tuple[str, ...] = ()


RATE, DECAY = 0.02, 1e-3  # of anomalib's STFPM; its own rate is 0.4, see above
CASES = {
    "stfpm": Case("stfpm@resnet18", 16, 16, 6, 0.01, (f"lr={RATE * 8}", f"weight_decay={DECAY / 8}")),
    "draem": Case("draem@anomalib", 2, 2, 3),
    "efficientad": Case("efficientad@small", 8, 1, 8, 0.1),
}


def detector_of(case: Case, steps: int, root: Path, weights: str) -> Any:
    """Our detector with its first weights, from seed 0."""
    import dataclasses

    import torch

    from models import registry
    from models.base import Context
    from models.weights import WeightStore

    method = case.spec.partition("@")[0]
    fields = {field.name for field in dataclasses.fields(registry.config(case.spec))}
    length = {"steps": str(steps)} if "steps" in fields else {"epochs": str(steps * case.batch // case.learnt)}
    settings = dict(entry.split("=") for entry in case.settings) | length | {"train_batch": str(case.batch)}
    if "textures" in fields:
        settings["textures"] = str(root / "textures")
    store = WeightStore(weights if method == "stfpm" else "none")
    torch.manual_seed(0)
    return registry.method_class(method)(registry.config(case.spec, settings), Context(torch.device("cpu"), 0, store))


def learnt(case: Case, root: Path) -> list[Path]:
    """The pictures that ours learns, sorted, without those it holds back."""
    import torch

    from models.base import Context
    from models.nn.training import split
    from models.weights import WeightStore

    paths = sorted((root / "pictures" / "category" / "train" / "good").iterdir())
    if not case.held:
        return paths
    chosen, _ = split(len(paths), case.held, Context(torch.device("cpu"), 0, WeightStore("none")), minimum=2)
    return [paths[i] for i in chosen]


class Watch:
    """Seconds, processor seconds and the loss after every step."""

    def __init__(self) -> None:
        self.start = time.perf_counter(), time.process_time()
        self.steps: list[tuple[float, float, float]] = []

    def __call__(self, loss: float) -> None:
        self.steps.append((time.perf_counter() - self.start[0], time.process_time() - self.start[1], loss))

    def result(self) -> dict[str, Any]:
        import numpy as np

        wall, cpu, losses = (list(column) for column in zip(*self.steps, strict=True))
        return {"step_s": float(np.median(np.diff(wall))), "step_cpu": float(np.median(np.diff(cpu))),
                "all_s": wall[-1], "all_cpu": cpu[-1], "losses": losses}


def ours(name: str, steps: int, root: Path, weights: str, scratch: Path) -> dict[str, Any]:
    """`fit` on the category, as a worker calls it."""
    import numpy as np
    from PIL import Image

    from benchmarks.launchers import memory

    memory.reuse()
    detector = detector_of(CASES[name], steps, root, weights)
    paths = sorted((root / "pictures" / "category" / "train" / "good").iterdir())
    watch = Watch()
    pictures = [np.asarray(Image.open(path).convert("RGB")) for path in paths]
    detector.fit(pictures, None, lambda done, total, /, **values: watch(values["loss"]))
    return watch.result()


def anomalibs(name: str, steps: int, root: Path, weights: str, scratch: Path) -> dict[str, Any]:
    """`Engine.fit` on the pictures that ours learns."""
    from unittest.mock import patch

    import timm
    from anomalib.data import MVTecAD
    from anomalib.engine import Engine
    from anomalib.models import Draem, EfficientAd, Stfpm
    from lightning.pytorch import Callback, seed_everything

    logging.disable(logging.WARNING)
    seed_everything(0)
    case, networks = CASES[name], detector_of(CASES[name], steps, root, weights).trained
    cls, own = {
        "stfpm": (Stfpm, {}), "draem": (Draem, {"dtd_dir": root / "textures"}),
        "efficientad": (EfficientAd, {"imagenet_dir": root / "textures"}),
    }[name]
    create = timm.create_model
    with patch("timm.create_model", lambda *a, **k: create(*a, **{**k, "pretrained": False})):  # loaded below instead
        model = cls(pre_processor=cls.configure_pre_processor((256, 256)), evaluator=False, visualizer=False, **own)
    if name == "stfpm":
        load_backbone(model.model.teacher_model.feature_extractor, weights)
        state = networks["student"].state_dict()
        missing = model.model.student_model.feature_extractor.load_state_dict(state, strict=False).missing_keys
        if missing:
            raise SystemExit(f"anomalib's student has layers that ours lacks: {missing}")
    else:
        model.model.load_state_dict(networks["model"].state_dict())
        model.prepare_pretrained_model = lambda: None  # the teacher came with the rest
    scale = case.batch / 2 if name == "stfpm" else 1

    class Steps(Callback):
        def on_train_start(self, trainer: Any, module: Any) -> None:
            if name == "stfpm":
                trainer.optimizers[0].param_groups[0]["lr"] = RATE

        def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, index: int) -> None:
            watch(float(outputs["loss"]) / scale)

    folder = cut(root / "pictures" / "category", scratch / "category", None)
    kept = {path.name for path in learnt(case, root)}
    for path in (folder / "train" / "good").iterdir():
        if path.name not in kept:
            path.unlink()
    watch = Watch()
    data = MVTecAD(root=scratch, category="category", num_workers=0, train_batch_size=case.batch)
    engine = Engine(
        accelerator="cpu", devices=1, logger=False, default_root_dir=scratch / "results", enable_progress_bar=False,
        enable_model_summary=False, callbacks=[Steps()], max_steps=steps, limit_val_batches=0,
    )
    engine.fit(model=model, datamodule=data)
    return watch.result()


def textures(folder: Path) -> None:
    """scikit-image's pictures of 512 x 512, in the one subfolder that torchvision's ImageFolder wants."""
    import torch
    from PIL import Image

    from models.nn.textures import EMBEDDED, Textures

    folder.mkdir(parents=True)
    drawn = Textures(EMBEDDED, (512, 512)).draw(32, torch.Generator().manual_seed(0))
    for i, picture in enumerate(drawn):
        Image.fromarray(picture.mul(255).round().byte().permute(1, 2, 0).numpy()).save(folder / f"{i:03d}.png")


def compare(name: str, root: Path, arguments: argparse.Namespace) -> None:
    """A method's table and what it says of both."""
    case, steps = CASES[name], arguments.steps or CASES[name].steps
    runs: dict[str, list[dict[str, Any]]] = {"ours": [], "anomalib": []}
    for _ in range(arguments.rounds):
        for side, held in runs.items():
            held.append(child(__spec__.name, [name, "--steps", steps, "--child", side, root, arguments.weights]))
    keys = ("step_s", "step_cpu", "all_s", "all_cpu")
    print(f"\n{case.spec}: {steps} steps of {case.batch} of {case.learnt} pictures, medians of {arguments.rounds} "
          f"alternating rounds.\n")
    losses = {side: held[0]["losses"] for side, held in runs.items()}
    table(("", "step s", "step CPU s", "to the last step s", "CPU s", "peak MB", "losses"), (
        [side, *(f"{middle(held, key):.2f}" for key in keys), f"{max(run['peak_mb'] for run in held):,.0f}",
         ", ".join(f"{loss:.4g}" for loss in losses[side])] for side, held in runs.items()
    ))
    wall, cpu, whole, _ = (middle(runs["anomalib"], key) / middle(runs["ours"], key) for key in keys)
    apart = max(abs(a - b) / abs(b) for a, b in zip(losses["ours"], losses["anomalib"], strict=True))
    print(f"\nanomalib takes {wall:.2f} times our time for a step (CPU {cpu:.2f}), {whole:.2f} times to the last one. "
          f"The losses of a step differ by at most {apart:.1e} of their value.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("methods", nargs="+", choices=list(CASES))
    add_category(parser)
    parser.add_argument("--steps", type=int, help="of every method (its own number)")
    arguments = parser.parse_args()
    if arguments.child:
        side, root, weights = arguments.child
        with tempfile.TemporaryDirectory() as scratch:
            run = ours if side == "ours" else anomalibs
            finish(run(arguments.methods[0], arguments.steps, Path(root), weights, Path(scratch)))
        return
    with category_of(parser, arguments, None) as held:
        textures(held / "textures" / "natural")
        for name in arguments.methods:
            case = CASES[name]
            root = held / name
            count = case.learnt + (1 if case.held else 0)
            cut(held / "pictures" / "category", root / "pictures" / "category", count)
            shutil.copytree(held / "textures", root / "textures")
            compare(name, root, arguments)


if __name__ == "__main__":
    main()
