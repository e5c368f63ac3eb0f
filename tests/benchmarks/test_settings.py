"""Units under a setting: run, resumed, shown and checked apart from clean ones; features taken once; thresholds."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import regression
from benchmarks.plan import Options, make_plan
from benchmarks.runner import Shared, run_unit
from benchmarks.store import Store
from tests.conftest import Cli, make_mvtec
from tests.datasets.conftest import make_loco


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("settings")
    make_mvtec(root / "own" / "nut", train=20, good=6, bad=6, size=(64, 64))
    return root


def arguments(root: Path, results: Path, *more: object) -> list[object]:
    return ["run", "--methods", "fake", "--datasets", "own", "--data-root", root, "--results", results, "--weights",
            "none", "--device", "cpu", "--quiet", *more]


def test_settings_are_units_of_their_own(cli: Cli, root: Path, tmp_path: Path) -> None:
    settings = ("--setting", "clean", "shots=4", "contaminated=0.1", "corrupted=noise:5")
    done = cli(*arguments(root, tmp_path, *settings))
    assert done.returncode == 0 and "4 units: 4 run now" in done.stderr, done.stderr
    records = {r["unit"].get("setting", ""): r for r in Store(tmp_path).records()}
    assert list(records) == ["", "contaminated=0.1", "corrupted=noise:5", "shots=4"]
    assert "setting" not in records[""]["unit"]
    assert {k: (r["images"]["train"], r["images"]["test"]) for k, r in records.items()} == {
        "": (20, 12), "contaminated=0.1": (20, 10), "corrupted=noise:5": (20, 12), "shots=4": (4, 12),
    }
    assert any("2 of 20 training pictures are defective" in note for note in records["contaminated=0.1"]["notes"])
    assert len({json.dumps(r["metrics"]) for r in records.values()}) == 4
    lines = [line for line in done.stdout.splitlines() if "fake@plain" in line and line.startswith("|")]
    assert len(lines) == 4 and sum("fake@plain shots=4" in line for line in lines) == 1
    again = cli(*arguments(root, tmp_path, *settings))
    assert "0 run now, 4 finished before" in again.stderr
    command = records["corrupted=noise:5"]["environment"]["command"]
    assert "--methods 'fake@plain corrupted=noise:5'" in command
    compared = cli("compare", "fake@plain", "fake@plain shots=4", "--datasets", "own", "--results", tmp_path,
                   "--intervals", "--format", "md")
    assert compared.returncode == 0 and "fake@plain shots=4" in compared.stdout, compared.stderr


def test_the_same_setting_twice_is_the_same_to_the_last_bit(cli: Cli, root: Path, tmp_path: Path) -> None:
    made = []
    for folder, words in (("a", ["--setting", "corrupted=turn:3"]), ("b", ["--setting", "clean", "corrupted=turn:3"])):
        assert cli(*arguments(root, tmp_path / folder, *words)).returncode == 0
        made.append(next(r for r in Store(tmp_path / folder).records() if "setting" in r["unit"]))
    assert made[0]["metrics"] == made[1]["metrics"]


def test_what_cannot_be_is_said_and_the_rest_runs(cli: Cli, root: Path, tmp_path: Path) -> None:
    done = cli(*arguments(root, tmp_path, "--setting", "shots=21", "shots=2"))
    assert done.returncode == 1 and "1 unit: 1 run now" in done.stderr
    assert "FAILED own/nut shots=21: shots=21: nut has 20 training pictures; ask for fewer" in done.stderr
    wrong = cli(*arguments(root, tmp_path, "--setting", "corrupted=blurr:3"))
    assert wrong.returncode == 2 and "did you mean 'blur'" in wrong.stderr
    assert cli("compare", "fake shot=4", "--datasets", "own", "--results", tmp_path).returncode == 2


def test_the_gate_holds_a_setting_only_against_itself(cli: Cli, root: Path, tmp_path: Path) -> None:
    assert cli(*arguments(root, tmp_path, "--seeds", 0, 1, 2, "--setting", "clean", "shots=4")).returncode == 0
    records = Store(tmp_path).records()
    stored = regression.make_baseline(records, "again")
    assert {e.get("setting", "") for e in stored["entries"]} == {"", "shots=4"}
    path = tmp_path / "stored.json"
    path.write_bytes(regression.encode(stored))
    assert {line.verdict for line in regression.compare(regression.read_baseline(path), records)} == {"ok"}
    clean = [r for r in records if "setting" not in r["unit"]]
    verdicts = {line.name: line.verdict for line in regression.compare(stored, clean)}
    assert verdicts == {"fake@plain own/nut": "ok", "fake@plain own/nut shots=4": "no record of seed 0, 1, 2"}


def test_features_of_pictures_that_stay_are_not_computed_again(root: Path, tmp_path: Path) -> None:
    options = Options(data_root=root, results=tmp_path, weights="none", device="cpu")
    specs = [f"patchcore@demo {s}" for s in ("clean", "contaminated=0.1", "shots=2", "corrupted=blur:3")]
    jobs = make_plan(specs, ["own"], options).jobs
    assert [job.unit.setting for job in jobs] == ["", "corrupted=blur:3", "contaminated=0.1", "shots=2"]
    shared = Shared()
    found = {job.unit.setting: run_unit(job, lambda *step: None, shared)["features"] for job in jobs}
    assert found[""]["computed"] == 32
    assert found["contaminated=0.1"]["computed"] == 4 and found["contaminated=0.1"]["reused"] == 28  # its last batch
    assert found["shots=2"]["computed"] == 2 and found["shots=2"]["reused"] == 12
    assert found["corrupted=blur:3"]["computed"] == 12 and found["corrupted=blur:3"]["reused"] == 0  # not fitted again
    alone = run_unit(make_plan(specs[1:2], ["own"], options).jobs[0], lambda *step: None)
    assert alone["metrics"] == Store(tmp_path).load(jobs[2])["metrics"] and alone["features"]["computed"] == 32


def test_a_detector_that_is_taken_over_gives_what_a_fitted_one_gives(root: Path, tmp_path: Path) -> None:
    """Corruptions change nothing that training sees: one fit serves them all, and costs as if each had its own."""
    specs = [f"{m} {s}" for s in ("clean", "corrupted=blur:3", "shots=2", "corrupted=turn:2") for m in
             ("patchcore@demo", "fake@drawn")]
    options = Options(data_root=root, results=tmp_path / "a", weights="none", device="cpu")
    jobs = make_plan(specs, ["own"], options).jobs
    assert [(j.unit.method, j.unit.setting, j.lend_fit) for j in jobs] == [
        ("fake", "", True), ("fake", "corrupted=blur:3", True), ("fake", "corrupted=turn:2", False),
        ("patchcore", "", True), ("patchcore", "corrupted=blur:3", True), ("patchcore", "corrupted=turn:2", False),
        ("fake", "shots=2", False), ("patchcore", "shots=2", False),
    ]
    assert not any(job.lend_fit for job in make_plan(["fake", "fake shots=2"], ["own"], options).jobs)
    shared = Shared()
    together = [run_unit(job, lambda *step: None, shared) for job in jobs]
    apart = [run_unit(job, lambda *step: None) for job in make_plan(
        specs, ["own"], Options(data_root=root, results=tmp_path / "b", weights="none", device="cpu")).jobs]
    assert [r["metrics"] for r in together] == [r["metrics"] for r in apart]
    assert [r["training"] for r in together] == [r["training"] for r in apart]
    assert [r["notes"] for r in together] == [r["notes"] for r in apart]
    assert len({r["timing"]["fit_s"] for r in together[3:6]}) == 1 and together[3]["timing"]["fit_s"] > 0
    assert all(r["timing"]["total_s"] > r["timing"]["fit_s"] for r in together)
    assert len({r["metrics"]["pixel_auroc"] for r in together}) == 8 and shared.fitted is None


def test_thresholds_come_from_pictures_that_were_held_out(cli: Cli, root: Path, tmp_path: Path) -> None:
    assert cli(*arguments(root, tmp_path, "--setting", "held_out=0.2", "clean")).returncode == 0
    clean, held = Store(tmp_path).records()
    assert not [key for key in clean["metrics"] if key.endswith(("@mean3sd", "@q98"))]
    metrics = held["metrics"]
    assert held["images"]["held_out"] == 4 and held["images"]["train"] == 16
    with np.load(Path(held["path"]).with_suffix(".npz")) as arrays:
        label, score = arrays["label"].astype(bool), arrays["score"].astype(np.float64)
    for rule in ("mean3sd", "q98"):
        caught, alarms = label.sum() * (1 - metrics[f"missed@{rule}"]), (~label).sum() * metrics[f"false_alarms@{rule}"]
        assert metrics[f"f1@{rule}"] == pytest.approx(2 * caught / (label.sum() + caught + alarms))
        called = np.argsort(-score)[: round(caught + alarms)]  # the highest scores
        assert label[called].sum() == pytest.approx(caught) and 0 < metrics[f"segf1@{rule}"] < 1
    assert metrics["segf1@mean3sd"] != metrics["segf1@q98"]


def test_a_validation_split_gives_thresholds_and_moves_no_score(tmp_path: Path) -> None:
    from benchmarks import scoring

    make_loco(tmp_path / "own" / "tray")
    options = Options(data_root=tmp_path, results=tmp_path / "r", weights="none", device="cpu")
    job = make_plan(["fake"], ["own"], options).jobs[0]
    with_ = run_unit(job, lambda *step: None)
    assert with_["images"]["validation"] >= 2, with_["error"]
    kept, scoring._fixed = scoring._fixed, lambda *a: {}
    try:
        without = run_unit(job, lambda *step: None)
    finally:
        scoring._fixed = kept
    more = {key for key in with_["metrics"] if key.endswith(("@mean3sd", "@q98"))}
    assert len(more) == 8 and {k: v for k, v in with_["metrics"].items() if k not in more} == without["metrics"]


def test_one_model_for_all_categories(cli: Cli, data_root: Path, tmp_path: Path) -> None:
    """It learns the pictures of all, is fitted once by whichever worker, and scored on each category by itself."""
    words = ["run", "--methods", "fake", "--datasets", "parts", "--data-root", data_root, "--weights", "none",
             "--device", "cpu", "--quiet"]
    done = cli(*words, "--results", tmp_path / "a", "--workers", 2, "--setting", "multi_class", "clean")
    assert done.returncode == 0 and "4 units: 4 run now" in done.stderr, done.stderr
    found = {(r["unit"]["category"], r["unit"].get("setting", "")): r for r in Store(tmp_path / "a").records()}
    nut, plate = found["nut", "multi_class"], found["plate", "multi_class"]
    for record in (nut, plate):
        assert record["images"]["train"] == 12 and record["images"]["test"] == 8
        assert "one model for 2 categories: nut, plate" in record["notes"]
        assert record["metrics"] != found[record["unit"]["category"], ""]["metrics"]
    assert nut["timing"]["fit_s"] == plate["timing"]["fit_s"], "fitted twice"
    assert nut["dataset_fingerprint"] == plate["dataset_fingerprint"] != found["nut", ""]["dataset_fingerprint"]
    alone = cli(*words, "--results", tmp_path / "b", "--categories", "plate", "--setting", "multi_class")
    assert alone.returncode == 0 and "1 unit: 1 run now" in alone.stderr
    assert Store(tmp_path / "b").records()[0]["metrics"] == plate["metrics"]
    assert "0 run now, 4 finished before" in cli(
        *words, "--results", tmp_path / "a", "--setting", "clean", "multi_class").stderr


def test_one_model_needs_all_categories_and_more_than_one(cli: Cli, root: Path, tmp_path: Path) -> None:
    make_mvtec(tmp_path / "own" / "bolt", seed=3)
    make_mvtec(tmp_path / "own" / "cap", seed=4)
    (tmp_path / "own" / "cap" / "train" / "good" / "001.png").write_bytes(b"no picture")
    words = ["run", "--methods", "fake", "--datasets", "own", "--weights", "none", "--device", "cpu", "--quiet",
             "--setting", "multi_class", "--results", tmp_path / "r"]
    done = cli(*words, "--data-root", tmp_path, "--categories", "bolt")
    assert done.returncode == 1 and "multi_class: trains on all categories, and cap cannot be read: " in done.stderr
    one = cli(*words, "--data-root", root)
    assert one.returncode == 1 and "nut is the only category of own; it needs two" in one.stderr
    assert not Store(tmp_path / "r").records()


def test_one_model_has_no_category_of_its_own(data_root: Path, tmp_path: Path) -> None:
    """Settings that a paper fixes for a category (gen_encdec's rate of noise) have no place in it."""
    options = Options(data_root=data_root, results=tmp_path, weights="none", device="cpu")
    job = make_plan(["fake@category multi_class"], ["parts"], options).jobs[0]
    assert run_unit(job, lambda *step: None)["training"]["category"] == ""
    clean = make_plan(["fake@category"], ["parts"], options).jobs[0]
    assert run_unit(clean, lambda *step: None)["training"]["category"] == "nut"
