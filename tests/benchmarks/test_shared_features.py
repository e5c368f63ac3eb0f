"""Units on one frozen backbone take features from one pass; memory that runs out and bf16 stand in the record."""

from __future__ import annotations

import time
import weakref
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks.fitting import Timed
from benchmarks.lending import Lending
from benchmarks.plan import Options, make_plan
from benchmarks.runner import Shared, run_unit
from models import registry
from models.nn import memory
from tests.conftest import make_mvtec

METHODS = ["patchcore@demo", "simplenet@demo", "padim@demo"]
SETTINGS = {"simplenet.epochs": "2"}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("shared")
    make_mvtec(root / "own" / "nut", train=10, good=3, bad=3)
    make_mvtec(root / "own" / "plate", seed=1, train=3, good=2, bad=2)
    return root


def plan(root: Path, results: Path, methods: list[str], settings: dict[str, str] | None = None, **more: object):
    options = Options(
        data_root=root, results=results, weights="none", device="cpu", settings={**SETTINGS, **(settings or {})}
    )
    return make_plan(methods, ["own"], options, **more).jobs


def run(jobs, shared: Shared | None = None) -> list[dict]:
    records = [run_unit(job, lambda *step: None, shared) for job in jobs]
    assert [r["error"] for r in records] == [None] * len(records)
    return records


def test_units_of_one_backbone_stand_together_the_deepest_first(root: Path, tmp_path: Path) -> None:
    methods = ["patchcore@resnet18", "fake", *METHODS, "padim@resnet18", "patchcore@wrn50_1pct"]
    jobs = plan(root, tmp_path, methods, {"padim.precision": "float32"}, seeds=(0, 1))
    assert [j.unit.category for j in jobs] == ["nut"] * 14 + ["plate"] * 14
    order = [(j.unit.spec, j.unit.seed) for j in jobs[:14]]
    names = [spec for spec, seed in order if seed == 0]
    for group in (["padim@demo", "patchcore@demo", "simplenet@demo"], ["padim@resnet18", "patchcore@resnet18"]):
        places = sorted(names.index(name) for name in group)
        assert places == list(range(places[0], places[0] + len(group))) and names[places[0]] == group[0]
    assert all(abs(order.index((name, 0)) - order.index((name, 1))) < 4 for name in names)


def test_features_are_taken_once_the_record_says_so_and_no_number_changes(root: Path, tmp_path: Path) -> None:
    shared = Shared()
    together = run(plan(root, tmp_path / "a", METHODS, categories=["nut"], seeds=(0, 1)), shared)
    apart = run(plan(root, tmp_path / "b", METHODS, categories=["nut"], seeds=(0, 1)))
    assert [r["unit"] for r in together] == [r["unit"] for r in apart]
    assert [r["metrics"] for r in together] == [r["metrics"] for r in apart]
    assert together[0]["unit"]["method"] == "padim"
    assert together[0]["features"]["form"] == {"resnet18.tv_in1k": "channels last, batch norm folded"}
    assert together[0]["features"]["computed"] == 16 and together[0]["features"]["saved_s"] == 0
    for record in together[1:]:
        found = record["features"]
        alone = 1 if record["unit"] == {**together[2]["unit"], "method": "simplenet"} else 0
        assert found["reused"] >= 16 and found["computed"] <= 1 + alone and found["saved_s"] > 0, record["unit"]
    assert all(r["features"]["reused"] == 0 or r["unit"]["method"] == "simplenet" for r in apart)
    for record in together[1:]:  # what it took over from another unit counts as its cost, by phase and once
        found = record["features"]
        assert found["lent_fit_s"] > 0 and found["lent_predict_s"] > 0, record["unit"]
        assert found["lent_fit_s"] + found["lent_predict_s"] <= found["saved_s"] + 1e-3
    assert all(r["features"]["lent_fit_s"] == r["features"]["lent_predict_s"] == 0 for r in apart)
    (other,) = run(plan(root, tmp_path / "a", ["patchcore@demo"], categories=["plate"]), shared)
    assert other["features"]["computed"] == 7 and other["features"]["reused"] == 0


def test_only_the_first_reading_of_a_phase_counts_as_lent() -> None:
    cache, slow = Lending(limit=1 << 20), lambda: time.sleep(0.02) or {"layer": torch.zeros(2, 3)}
    for _ in range(3):  # a training over its own features, three epochs
        cache.get("resnet", b"a", 2, ["layer"], slow)
    assert cache.stats["saved_s"] > 0.03 and cache.turn() == 0
    cache.begin()  # the next unit
    for _ in range(3):
        cache.get("resnet", b"a", 2, ["layer"], slow)
    assert 0.02 <= cache.turn() < 0.9 * cache.stats["saved_s"]
    cache.apart(lambda: cache.get("resnet", b"a", 2, ["layer"], slow))  # a look at test pictures during training
    assert cache.turn() == 0
    cache.get("resnet", b"a", 2, ["layer"], slow)  # prediction alone would have had to compute it
    assert cache.turn() >= 0.02


def test_textures_of_the_command_line_come_before_a_presets_own(root: Path, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    options = Options(data_root=root, results=tmp_path, weights="none", device="cpu", textures=str(folder))

    def of(**more: object) -> list[tuple[object, str]]:
        specs = ["rb_ae@quick", "rb_ae@paper", "patchcore@demo"]
        jobs = make_plan(specs, ["own"], replace(options, **more), categories=["nut"]).jobs
        found = {job.unit.spec: (getattr(job.config, "textures", "-"), job.textures) for job in jobs}
        return [found[spec] for spec in specs]

    given = str(folder.resolve())
    assert of() == [(None, given), (None, given), ("-", "")]
    assert of(textures="") == [("embedded", ""), (None, ""), ("-", "")]
    assert of(settings={"rb_ae.textures": "elsewhere"}) == [("elsewhere", ""), ("elsewhere", ""), ("-", "")]


def test_the_record_has_the_seconds_of_every_phase(root: Path, tmp_path: Path) -> None:
    (record,) = run(plan(root, tmp_path, ["patchcore@demo"], categories=["nut"]))
    timing = record["timing"]
    parts = ["data_s", "build_s", "fit_s", "predict_s", "metrics_s", "test_read_s"]
    assert all(timing[name] > 0 for name in [*parts, "fit_read_s"]) and timing["fit_read_s"] < timing["fit_s"]
    assert sum(timing[name] for name in parts) <= timing["total_s"]


def test_timed_pictures_are_the_pictures() -> None:
    spent = [0.0]
    timed = Timed(["a", "b", "c"], spent)  # type: ignore[list-item]
    assert len(timed) == 3 and list(timed) == ["a", "b", "c"] and timed[-1] == "c"
    before = spent[0]
    part = timed[1:]
    assert isinstance(part, Timed) and list(part) == ["b", "c"] and spent[0] > before > 0
    with pytest.raises(IndexError):
        timed[3]


@pytest.mark.parametrize("most", [3, 1])
def test_batches_that_exceed_the_device_are_halved_and_noted(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    monkeypatch.setattr(memory, "_held", weakref.WeakSet())  # other tests' caches are not to be given up here
    (whole,) = run(plan(root, tmp_path / "a", ["fake"], categories=["nut"]))
    cls = registry.method_class("fake")
    real, sizes = cls.predict, []

    def predict(self, batch):
        sizes.append(len(batch))
        if len(batch) > most:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return real(self, batch)

    monkeypatch.setattr(cls, "predict", predict)
    (halved,) = run(plan(root, tmp_path / "b", ["fake"], {"batch": "4"}, categories=["nut"]))
    scoring = [4, 2, 2, 2] if most == 3 else [4, 2, 1, 1, 1, 1, 1, 1]
    assert sizes == [*scoring, *[1] * 7]  # then one picture at a time, for the latency
    assert halved["metrics"] == whole["metrics"]
    assert "out of memory: test pictures are predicted 2 at a time instead of 4" in halved["notes"]
    assert not any("memory" in note for note in whole["notes"])


def test_a_picture_that_exceeds_the_device_alone_fails_with_advice(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def predict(self, batch):
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(registry.method_class("fake"), "predict", predict)
    (job,) = plan(root, tmp_path, ["fake"], categories=["nut"])
    record = run_unit(job, lambda *step: None)
    assert record["status"] == "failed" and record["error"]["phase"] == "predict"
    assert record["error"]["message"].startswith("out of memory: ") and "--set batch=N" in record["error"]["message"]


def test_bf16_is_marked_and_its_effect_is_in_the_record(root: Path, tmp_path: Path) -> None:
    shared = Shared()
    (plain,) = run(plan(root, tmp_path, ["patchcore@demo"], categories=["nut"]), shared)
    (low,) = run(plan(root, tmp_path, ["patchcore@demo"], {"precision": "bf16"}, categories=["nut"]), shared)
    assert low["config_hash"] != plain["config_hash"]
    assert "modified" in low["marks"] and "modified" not in plain["marks"]
    assert low["protocol"]["precision"] == low["config"]["precision"] == "bf16" and "precision" not in plain["protocol"]
    effect = low["protocol"]["precision_effect"]
    assert effect["pictures"] == 6 and 0 < effect["map_change"] < 0.5 and 0 < effect["score_change"] < 0.5
    assert "frozen backbone computed in bf16" in low["notes"] and low["features"]["computed"] >= 16
    short = {"precision": "bf16", "epochs": 1, "size": 64}
    (trained,) = run(plan(root, tmp_path, ["dae@quick"], short, categories=["nut"]))
    assert trained["status"] == "ok" and any("trained network computed in bf16" in n for n in trained["notes"])
    (none,) = run(plan(root, tmp_path, ["fake"], {"precision": "bf16"}, categories=["nut"]))
    assert "precision bf16 changed nothing: no part of the method uses it" in none["notes"]


def test_the_usual_precision_leaves_stored_hashes_as_they_were(root: Path, tmp_path: Path) -> None:
    plain, set_ = (plan(root, tmp_path, ["patchcore@demo"], s, categories=["nut"])[0]
                   for s in ({}, {"precision": "float32"}))
    assert plain.config_hash == set_.config_hash and not set_.modified
    (low,) = plan(root, tmp_path, ["patchcore@demo"], {"precision": "bf16"}, categories=["nut"])
    assert low.config_hash != plain.config_hash and low.modified
