"""Times of artificial defects, of superpixels, and of TSDN's and RB-AE's inference and training steps.

    python -m benchmarks.speed.defects_speed [--device cuda] [--only defects inference steps] [--pictures 83]

Weights are random, which does not change the times. Freed memory is reused, as in the workers of the harness. Medians;
run it on an otherwise idle machine.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch

from benchmarks.launchers import memory
from benchmarks.speed.common import machine
from models import registry
from models.base import Context
from models.nn import perlin
from models.nn.superpixels import fill, superpixels
from models.nn.textures import EMBEDDED, Textures
from models.weights import WeightStore


def median_ms(call: Callable[[], object], device: torch.device, repeats: int) -> float:
    """Median duration of `call` in milliseconds after two calls that do not count."""
    found = []
    for index in range(repeats + 2):
        start = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        if index > 1:
            found.append((time.perf_counter() - start) * 1000)
    return statistics.median(found)


def cpu_ms(call: Callable[[], object], repeats: int) -> float:
    """Mean processor time of `call` in milliseconds: unlike durations, hardly moved by what else the machine does."""
    call()
    start = time.process_time()
    for _ in range(repeats):
        call()
    return (time.process_time() - start) * 1000 / repeats


def defects(device: torch.device) -> None:
    """A batch of 8: Perlin mask, texture, paste at 256 px; SLIC of one picture and filling at 352 px."""
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(8, 3, 256, 256, device=device)
    source = Textures(EMBEDDED, (256, 256))
    textures = source.draw(8, generator)
    for name, call in {
        "Perlin masks": lambda: perlin.perlin_mask((8, 256, 256), generator),
        "texture operations": lambda: perlin.augment(textures.to(device), generator),
        "drawing textures, decoded before": lambda: source.draw(8, generator),
        "artificial defects in all, target 20": lambda: perlin.artificial_defects(images, textures, generator),
    }.items():
        for _ in range(50):
            source.draw(8, generator)  # all decoded
        print(f"{name:40s} {median_ms(call, device, 60):8.2f} ms")
    one = cpu_ms(lambda: source.draw(8, generator), 100) / 8
    print(f"{'drawing one texture, decoded before':40s} {one:8.2f} ms of processor time, target below 1")
    large = torch.nn.functional.interpolate(torch.rand(8, 3, 40, 40), 352, mode="bicubic").clamp(0, 1)
    labels = torch.stack([superpixels(picture) for picture in large]).to(device)
    large = large.to(device)
    print(f"{'SLIC of one picture, once a training':40s} {median_ms(lambda: superpixels(large[0]), device, 5):8.2f} ms")
    print(f"{'filling superpixels, every step':40s} "
          f"{median_ms(lambda: fill(large, labels, generator), device, 30):8.2f} ms")


def build(spec: str, device: torch.device, settings: dict[str, str]) -> object:
    config = registry.config(spec, settings)
    torch.manual_seed(0)
    context = Context(device, 0, WeightStore("none"))
    return registry.method_class(registry.parse(spec)[0])(config, context)


def inference(device: torch.device, count: int) -> None:
    """Both methods at 256 px and at their own size, in batches as the harness forms them; 83 take 90 s at most."""
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 256, (256, 256, 3), dtype=np.uint8) for _ in range(count)]
    for spec, size in (("rb_ae@paper", 256), ("tsdn@paper", 256), ("tsdn@paper", 352)):
        detector = build(spec, device, {"size": str(size)})
        if spec.startswith("rb_ae"):
            detector.load_state_dict({**detector.state_dict(), "reference": torch.rand(1, 3, size, size)})
        batch = detector.config.batch
        detector.predict(pictures[:batch])
        start = time.perf_counter()
        for first in range(0, count, batch):
            float(detector.predict(pictures[first : first + batch]).score.sum())
        seconds = time.perf_counter() - start
        print(f"{spec:12s} {size} px: {count} pictures in {seconds:.1f} s, {count / seconds:.2f} per second")


def steps(device: torch.device, presets: list[str]) -> None:
    """A training step of each phase, and what share SLIC has of a training of four steps."""
    drawn = Textures(EMBEDDED, (256, 256)).draw(8, torch.Generator().manual_seed(0))
    pictures = list(drawn.mul(255).byte().permute(0, 2, 3, 1).numpy())
    short = {
        "rb_ae": {"textures": EMBEDDED, "epochs_phase1": "4", "epochs_phase2": "4"}, "tsdn": {"epochs": "4"},
    }
    for spec, settings in ((f"{name}@{preset}", short[name]) for name in short for preset in presets):
        marks: list[float] = []
        log = build(spec, device, settings).fit(
            pictures, None, lambda done, total, /, marks=marks, **values: marks.append(time.perf_counter())
        )
        taken = np.diff(marks)
        phases = (taken[1:3], taken[4:]) if spec.startswith("rb_ae") else (taken[1:],)
        said = ", ".join(f"{np.median(phase):.3f} s" for phase in phases)
        print(f"{spec:12s} step of 8 pictures: {said}   {log.get('superpixels', '')}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--only", nargs="+", choices=["defects", "inference", "steps"],
                        default=["defects", "inference", "steps"])
    parser.add_argument("--pictures", type=int, default=83)
    parser.add_argument("--presets", nargs="+", default=["paper", "quick"], help="of the training steps")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    memory.reuse()
    print(f"{device}; {machine()}")
    if "defects" in arguments.only:
        defects(device)
    if "inference" in arguments.only:
        inference(device, arguments.pictures)
    if "steps" in arguments.only:
        steps(device, arguments.presets)


if __name__ == "__main__":
    main()
