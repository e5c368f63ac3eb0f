"""What a real GPU must show before its numbers go into a table: `make test-gpu`, under ten minutes on one H100.

Each check runs the harness's own code on both devices or twice on one. Where a difference is allowed, the bound is
here with its reason.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.metrics import Scorer
from benchmarks.plan import Options, make_plan
from benchmarks.runner import Shared, run_unit
from benchmarks.store import Store
from models import registry
from models.base import Context, Detector
from models.nn.coreset import greedy_coreset
from models.nn.neighbours import knn
from models.weights import WeightStore
from tests.conftest import Cli
from tests.gpu import costs
from tests.metrics import metrics_reference as reference
from tests.models.test_all_methods import METHODS, pictures

pytestmark = pytest.mark.gpu

NEAR = 1e-4  # of a map's range: sums in another order, through some tens of layers
# Fitted twice, these may differ, since cuDNN or scatter operations have no repeatable form that costs little.
MAY_DIFFER: dict[str, str] = {
    "supersimplenet": "backward pass of resized features adds atomically",
    "draem": "backward pass of bilinear resizing adds atomically",
    "efficientad": "backward pass of bilinear resizing adds atomically",
    "csflow": "backward pass of bilinear resizing adds atomically",
    "tsdn": "backward pass of bilinear resizing adds atomically",
    "rb_ae": "backward pass of bilinear resizing adds atomically",
}
PAPERS = ("gen_encdec", "dae", "cae", "tsdn", "rb_ae")


def predicted(detector: Detector, count: int = 3) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    with torch.inference_mode():
        result = detector.predict(pictures(count, 1))
    maps, score = result.anomaly_map, result.score
    return None if maps is None else maps.cpu(), None if score is None else score.cpu()


def distance(one: torch.Tensor | None, two: torch.Tensor | None) -> float:
    """Largest difference as a share of the range of `one`."""
    if one is None or two is None:
        assert one is two, "a map or a score is missing on one device"
        return 0.0
    span = float(one.max() - one.min()) or 1.0
    return float((one - two).abs().max()) / span


def test_the_gpu_answers(gpu: torch.device, finding: Any) -> None:
    properties = torch.cuda.get_device_properties(gpu)
    x = torch.arange(1 << 20, device=gpu, dtype=torch.float64)
    assert float(x.sum()) == (1 << 20) * ((1 << 20) - 1) / 2
    finding("device", f"{properties.name}, {properties.total_memory >> 30} GiB, torch {torch.__version__}, "
                      f"CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}")


@pytest.mark.parametrize("spec", METHODS)
def test_fitted_on_the_cpu_a_method_predicts_the_same_on_the_gpu(
    spec: str, gpu: torch.device, tmp_path: Path, finding: Any
) -> None:
    ours = costs.build(spec, tmp_path / "cpu", "cpu")
    ours.fit(pictures(12, 0), None)
    torch.save(ours.state_dict(), tmp_path / "state.pt")
    theirs = costs.build(spec, tmp_path / "gpu", gpu)
    theirs.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    off = max(map(distance, predicted(ours), predicted(theirs)))
    finding(spec, off)
    assert off < NEAR


@pytest.mark.parametrize("spec", METHODS)
def test_fitted_twice_on_the_gpu_a_method_is_the_same(
    spec: str, gpu: torch.device, tmp_path: Path, finding: Any
) -> None:
    found = []
    for name in "ab":
        detector = costs.build(spec, tmp_path / name, gpu)
        detector.fit(pictures(12, 0), None)
        found.append(predicted(detector))
    off = max(map(distance, *found))
    finding(spec, off)
    if spec.partition("@")[0] not in MAY_DIFFER:
        assert off == 0.0


@pytest.mark.parametrize("device", ["cuda:0", "cuda:1"])
def test_selection_and_search_are_those_of_the_cpu(device: str, gpu: torch.device) -> None:
    if int(device[-1]) >= torch.cuda.device_count():
        pytest.skip("one GPU only")
    rng = np.random.default_rng(0)
    points = torch.from_numpy(rng.normal(size=(20_000, 128)).astype(np.float32))
    chosen = greedy_coreset(points, 2_000, start=3)
    assert torch.equal(greedy_coreset(points.to(device), 2_000, start=3).cpu(), chosen)
    queries = torch.from_numpy(rng.normal(size=(5_000, 128)).astype(np.float32))
    bank = points[chosen]
    (d0, i0), (d1, i1) = knn(queries, bank, 5), knn(queries.to(device), bank.to(device), 5)
    assert torch.equal(i1.cpu(), i0) and torch.allclose(d1.cpu(), d0, rtol=1e-6)


@pytest.mark.parametrize("loco", [False, True])
def test_metrics_are_those_of_the_cpu_to_the_last_bit(loco: bool, gpu: torch.device, finding: Any) -> None:
    """Ten million pixels, and random small cases with ties."""
    for seed in range(30):
        case = reference.random_case(seed, loco)
        assert metrics(case.images, loco, None) == metrics(case.images, loco, gpu)
    large = [enlarged(image, str(i)) for i, image in enumerate((reference.random_case(0, loco).images * 10)[:10])]
    start = time.perf_counter()
    on_gpu = metrics(large, loco, gpu)
    finding("seconds_gpu_loco" if loco else "seconds_gpu_ad", round(time.perf_counter() - start, 2))
    assert on_gpu == metrics(large, loco, None)


def enlarged(image: dict[str, Any], name: str) -> dict[str, Any]:
    """A test image of a small case at a million pixels, with scores of its own."""
    rng = np.random.default_rng(int(name))
    mask = image.get("mask")
    return {
        **image, "name": name, "anomaly_map": rng.normal(size=(1000, 1000)).astype(np.float32),
        "mask": None if mask is None else np.resize(np.asarray(mask), (1000, 1000)),
        "regions": [replace(region, mask=np.resize(region.mask, (1000, 1000))) for region in image.get("regions", ())],
    }


def metrics(images: list[dict[str, Any]], loco: bool, device: torch.device | None) -> dict[str, float | None]:
    scorer = Scorer(loco=loco)
    for image in images:
        maps = image["anomaly_map"]
        scorer.add(**{**image, "anomaly_map": maps if device is None else torch.tensor(maps).to(device)})
    return scorer.result().metrics


@pytest.mark.parametrize("method", [*PAPERS, "patchcore"])
def test_what_a_paper_preset_costs(method: str, gpu: torch.device, tmp_path: Path, finding: Any) -> None:
    """One epoch on 209 made-up pictures of 900 px and 83 predictions; PatchCore whole, with its 10 % coreset."""
    preset = registry.entries()[method].presets[0]
    config = registry.config(f"{method}@{preset}")
    few = {k: "1" for k in ("epochs", "epochs_phase1", "epochs_phase2") if hasattr(config, k)}
    few |= {"textures": "embedded"} if hasattr(config, "textures") else {}
    context = Context(device=gpu, seed=0, weights=WeightStore("none"), scratch=tmp_path,
                      extras={"members": {}, "member_dir": None})
    detector = registry.method_class(method)(registry.config(f"{method}@{preset}", few), context)
    rng = np.random.default_rng(0)
    train = [rng.integers(0, 255, (900, 900, 3), np.uint8) for _ in range(209)]
    times: list[float] = []
    torch.cuda.reset_peak_memory_stats(gpu)
    detector.fit(train, None, lambda done, total, /, **values: times.append(time.perf_counter()))
    torch.cuda.synchronize(gpu)
    steps = np.diff(times[len(times) // 4 :])
    start = time.perf_counter()
    with torch.inference_mode():
        for i in range(0, 83, config.batch):
            detector.predict(train[i : i + config.batch])
    torch.cuda.synchronize(gpu)
    finding(f"{method}@{preset}", {
        "step_ms": round(1e3 * statistics.median(steps), 2) if len(steps) else None,
        "pictures_per_s": round(83 / (time.perf_counter() - start), 1),
        "peak_mib": round(torch.cuda.max_memory_allocated(gpu) / 2**20),
    })


def test_the_runner_gives_the_demo_twice_the_same(gpu: torch.device, cli: Cli, tmp_path: Path) -> None:
    scores = []
    for name, workers in (("a", 1), ("b", 2)):
        done = cli("demo", "--methods", "patchcore@demo", "padim@demo", "--results", tmp_path / name,
                   "--device", "cuda", "--workers", workers, "--quiet")
        assert done.returncode == 0, done.stderr
        scores.append({str(r["unit"]): r["metrics"] for r in Store(tmp_path / name).records()})
    assert scores[0] == scores[1]


def test_the_runner_goes_on_in_halves_where_memory_is_short(
    gpu: torch.device, data_root: Path, tmp_path: Path
) -> None:
    """A twentieth of the memory for everything."""
    torch.cuda.set_per_process_memory_fraction(0.05, gpu)
    try:
        options = Options(data_root=data_root, results=tmp_path, weights="none", device=str(gpu),
                          settings={"batch": "64"})
        (job,) = make_plan(["patchcore@demo"], ["parts"], options, categories=["nut"]).jobs
        assert run_unit(job, lambda *step: None, Shared())["status"] == "ok"
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, gpu)


def test_an_assert_on_the_device_costs_its_unit_only(gpu: torch.device, cli: Cli, data_root: Path, tmp_path: Path
                                                     ) -> None:
    done = cli("run", "--methods", "fake_bad@device_assert", "fake", "--datasets", "parts", "--categories", "nut",
               "--data-root", data_root, "--results", tmp_path, "--weights", "none", "--device", "cuda", "--quiet")
    records = Store(tmp_path).records(failed=True)
    assert done.returncode == 1 and len(records) == 2
    assert {r["status"] for r in records} == {"ok", "failed"}, done.stderr
