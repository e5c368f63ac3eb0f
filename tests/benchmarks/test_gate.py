"""The gate against planted bugs and against the noise of other seeds, with a real method on the demo set.

The whole check of 20 repeats: `python -m pytest tests/benchmarks/test_gate.py -m slow -s`.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from benchmarks import regression
from benchmarks.plan import Options, make_plan
from benchmarks.runner import run_unit
from tests.conftest import REPO, Cli

STORED = REPO / "results" / "baselines" / "demo.json"
SPEC = "patchcore@demo"  # untrained weights differ from seed to seed, so its seed noise is large
CATEGORY = "brick"
Records = list[dict[str, Any]]


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from datasets import demo as drawn

    root = tmp_path_factory.mktemp("demo_data")
    drawn.make(root)
    return root


def measure(root: Path, results: Path, seeds: Iterable[int]) -> Records:
    options = Options(data_root=root, results=results, weights="none", device="cpu")
    jobs = make_plan([SPEC], ["demo"], options, categories=[CATEGORY], seeds=seeds).jobs
    records = [run_unit(job, lambda *_: None) for job in jobs]
    assert all(r["status"] == "ok" for r in records), [r["error"] for r in records]
    return records


def stored() -> dict[str, Any]:
    """The part of the committed baseline that one method on one category can answer for."""
    data = regression.read_baseline(STORED)
    method = SPEC.partition("@")[0]
    data["entries"] = [e for e in data["entries"] if e["method"] == method and e["category"] == CATEGORY]
    assert len(data["entries"]) >= 10
    return data


def swap_channels(monkeypatch: pytest.MonkeyPatch) -> None:
    from models.nn.preprocess import Preprocess

    plain = Preprocess._resized
    monkeypatch.setattr(Preprocess, "_resized", lambda self, image: plain(self, image).flip(0))


def take_other_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    import models.baselines.patchcore

    plain = models.baselines.patchcore.backbone
    monkeypatch.setattr(models.baselines.patchcore, "backbone",
                        lambda name, layers, *args, **more: plain(name, ("layer3", "layer4"), *args, **more))


def score_by_the_mean(monkeypatch: pytest.MonkeyPatch) -> None:
    from models.baselines.patchcore import PatchCore

    monkeypatch.setattr(PatchCore, "_image_score", lambda self, patch_scores, nearest, rows: patch_scores.mean(1))


def shift_the_maps(monkeypatch: pytest.MonkeyPatch) -> None:
    """By half a patch of layer2, as upsampling that takes patches for points at their corners does."""
    from models.nn.preprocess import Preprocess

    plain = Preprocess.restore
    monkeypatch.setattr(Preprocess, "restore",
                        lambda self, *args: [m.roll((4, 4), (0, 1)) for m in plain(self, *args)])


def connect_by_edges_only(monkeypatch: pytest.MonkeyPatch) -> None:
    import benchmarks.metrics.scorer

    monkeypatch.setattr(benchmarks.metrics.scorer, "components", lambda truth: ndimage.label(truth))


@pytest.mark.parametrize(("bug", "metrics"), [
    (None, ()),
    (swap_channels, ("image_auroc", "image_ap")),
    (take_other_layers, ("aupro@0.3", "pixel_ap")),
    (score_by_the_mean, ("image_auroc", "image_ap")),
    (shift_the_maps, ("aupro@0.05", "pixel_ap")),
], ids=["no bug", "RGB for BGR", "wrong backbone layers", "image score by the mean", "maps shifted"])
def test_a_planted_bug_fails_the_check_of_the_stored_scores(
    cli: Cli, demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    bug: Callable[[pytest.MonkeyPatch], None] | None, metrics: tuple[str, ...],
) -> None:
    baseline = tmp_path / "baseline.json"
    baseline.write_text(json.dumps(stored()))
    if bug:
        bug(monkeypatch)
    measure(demo, tmp_path, stored()["entries"][0]["seeds"])
    done = cli("check", "--baseline", baseline, "--results", tmp_path)
    assert done.returncode == (1 if bug else 0), done.stdout + done.stderr
    fell = {line.split("|")[2].strip() for line in done.stdout.splitlines() if "fell" in line and "|" in line}
    assert fell >= set(metrics), done.stdout
    print(f"{bug.__name__ if bug else 'no bug'}: {len(fell)} of {len(stored()['entries'])} scores fell")


def thin_masks(source: Path, root: Path) -> None:
    """The category with each mask thinned to a line one pixel wide, whose pixels often touch at corners only."""
    import shutil

    from skimage.morphology import skeletonize

    shutil.copytree(source / "demo" / CATEGORY, root / "demo" / CATEGORY)
    for path in (root / "demo" / CATEGORY / "ground_truth").rglob("*_mask.bmp"):
        thin = skeletonize(np.array(Image.open(path)) > 0)
        Image.fromarray((thin * 255).astype(np.uint8)).save(path)


def test_regions_of_edge_neighbours_only_fail_the_check(
    cli: Cli, demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The demo set's own masks have no contact at a corner alone, so the bug shows on thinned ones."""
    for path in (demo / "demo").rglob("*_mask.bmp"):
        mask = np.array(Image.open(path))
        assert ndimage.label(mask)[1] == ndimage.label(mask, np.ones((3, 3)))[1]
    thin_masks(demo, tmp_path / "data")
    clean = measure(tmp_path / "data", tmp_path / "clean", range(3))
    made = cli("baseline", "make", "--datasets", "demo", "--results", tmp_path / "clean", "--out", tmp_path / "b.json")
    assert made.returncode == 0, made.stderr
    connect_by_edges_only(monkeypatch)
    wrong = measure(tmp_path / "data", tmp_path / "wrong", range(3))
    done = cli("check", "--baseline", tmp_path / "b.json", "--results", tmp_path / "wrong")
    moved = {k for k in clean[0]["metrics"] if clean[0]["metrics"][k] != wrong[0]["metrics"][k]}
    assert moved == {k for k in moved if k.startswith("aupro@")} and moved
    print("\n".join(f"{k}: {np.mean([r['metrics'][k] for r in clean]):.4f} -> "
                    f"{np.mean([r['metrics'][k] for r in wrong]):.4f}" for k in sorted(moved)))
    assert done.returncode == 1 and "aupro@" in done.stdout, done.stdout


def quiet(root: Path, results: Path, repeats: int) -> tuple[int, int, float]:
    """Repeats with three new seeds each: how many fired, scores compared, largest share of its band that one used.

    The same records with a fall of 20 points must fire, in every repeat.
    """
    baseline = stored()
    first = max(baseline["entries"][0]["seeds"]) + 1
    fired = compared = 0
    used = 0.0
    for repeat in range(repeats):
        start = first + 3 * repeat
        records = measure(root, results, range(start, start + 3))
        lines = regression.compare(baseline, records)
        assert all(line.judged and not line.same_seeds for line in lines)
        fired += regression.exit_code(lines) != 0
        compared += len(lines)
        used = max(used, *((line.stored - line.measured) / line.tolerance for line in lines))
        worse = [r | {"metrics": r["metrics"] | {"pixel_auroc": r["metrics"]["pixel_auroc"] - 0.2}} for r in records]
        assert regression.exit_code(regression.compare(baseline, worse)) == 1
    return fired, compared, used


def test_other_seeds_do_not_fire(demo: Path, tmp_path: Path) -> None:
    fired, compared, used = quiet(demo, tmp_path, 3)
    assert fired == 0 and compared >= 30 and 0 < used < 1


@pytest.mark.slow
def test_twenty_repeats_with_other_seeds_do_not_fire(demo: Path, tmp_path: Path) -> None:
    fired, compared, used = quiet(demo, tmp_path, 20)
    print(f"20 repeats, {compared} scores compared, {fired} fired; the largest fall took {used:.0%} of its band")
    assert fired == 0



def test_the_example_for_ci_runs_the_stored_baselines_command_before_the_check() -> None:
    import yaml

    steps = yaml.safe_load((REPO / ".github/workflows/regression.yml").read_text())["jobs"]["gate"]["steps"]
    scripts = [step["run"] for step in steps if "run" in step]
    made, check = scripts[-2:]
    code = made.split('-c "')[1].split('")')[0]
    printed = subprocess.run([sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True, check=True).stdout
    assert printed.startswith("python run_benchmark.py demo --methods ") and ".venv/bin/$command" in made
    assert all(e["method"] in printed for e in json.loads(STORED.read_text())["entries"])
    assert "check --baseline results/baselines/demo.json" in check and "--junit" in check and "--summary" in check
