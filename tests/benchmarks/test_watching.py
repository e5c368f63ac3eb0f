"""`--watch-test`: AUROC over training for a plot. The look changes no figure of the unit, and is labelled as a look."""

from __future__ import annotations

import random
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.plan import Options, make_plan
from benchmarks.runner import Shared, run_unit
from benchmarks.watching import NOTE, Watch, undisturbed
from tests.conftest import Cli, make_mvtec


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = torch.nn.BatchNorm1d(3)
        self.frozen = torch.nn.Dropout().eval()


class Part:
    """A part of a method that holds a network."""

    __module__ = "models.part"

    def __init__(self) -> None:
        self.nets = {"a": [Net()]}


def detector() -> SimpleNamespace:
    return SimpleNamespace(context=SimpleNamespace(device=torch.device("cpu")), config=None, net=Net(),
                           part=Part(), held=[1, 2], bank=None)


def test_everything_is_put_back() -> None:
    method = detector()
    alias, inner = method.held, method.part.nets["a"][0]
    torch.manual_seed(3)
    random.seed(3)
    np.random.seed(3)  # noqa: NPY002
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()  # noqa: NPY002
    with pytest.raises(ValueError, match="not ready"), undisturbed(method):
        assert not method.net.norm.training and not inner.norm.training
        method.held.append(3)
        method.bank, method.new = torch.zeros(1), 1
        torch.rand(2), random.random(), np.random.rand()  # noqa: NPY002
        raise ValueError("not ready")
    assert method.held is alias and alias == [1, 2] and method.bank is None and not hasattr(method, "new")
    assert method.net.training and method.net.norm.training and inner.norm.training
    assert not method.net.frozen.training, "what was in evaluation mode stays there"
    assert torch.equal(torch.get_rng_state(), states[0]) and random.getstate() == states[1]
    assert (np.random.get_state()[1] == states[2]).all()  # noqa: NPY002


def test_times_of_the_look() -> None:
    watch = Watch(detector(), lambda: {"image_auroc": 0.5, "pixel_auroc": None, "aupro@0.3": 0.1}, 4)
    for done in range(1, 11):
        watch.step(done, 10)
    assert watch.log() == {"done": [0.3, 0.5, 0.8, 1.0], "image_auroc": [0.5] * 4, "pixel_auroc": [None] * 4}
    assert watch.notes() == [NOTE]
    few = Watch(detector(), lambda: {"image_auroc": 0.5}, 100)
    few.step(1, 2), few.step(2, 2), few.step(0, 0)
    assert few.log()["done"] == [0.5, 1.0]


def test_a_method_that_cannot_predict_yet() -> None:
    def fails() -> dict[str, float]:
        raise AttributeError("no bank")

    watch = Watch(detector(), fails, 2)
    watch.step(2, 2)
    assert watch.log() == {} and "AttributeError: no bank" in watch.notes()[0]


@pytest.mark.parametrize("methods", [
    ["simplenet@demo"],
    pytest.param(["simplenet@demo", "stfpm@demo", "dae@quick", "tsdn@quick", "rb_ae@quick", "ast@quick", "draem@quick",
                  "feature_ensemble@demo"], marks=pytest.mark.slow),
])
def test_figures_of_a_watched_unit_are_the_same(cli: Cli, tmp_path: Path, methods: list[str]) -> None:
    make_mvtec(tmp_path / "data" / "parts" / "nut", train=12, size=(64, 64))
    short = {"dae.epochs": 3, "tsdn.epochs": 2, "rb_ae.epochs_phase1": 1, "rb_ae.epochs_phase2": 1, "ast.epochs": 2,
             "draem.epochs": 1, "feature_ensemble.epochs": 3, "simplenet.epochs": 4}
    found: dict[str, dict[str, dict]] = {}
    for name, times in (("plain", 0), ("watched", 3)):
        options = Options(data_root=tmp_path / "data", results=tmp_path / name, weights="none", device="cpu",
                          settings={key: str(value) for key, value in short.items()}, watch=times)
        shared = Shared()
        for job in make_plan(methods, ["parts"], options).jobs:
            record = run_unit(job, lambda *_: None, shared)
            assert record["status"] == "ok", record["error"]
            found.setdefault(name, {})[job.unit.method] = record
    for method, plain in found["plain"].items():
        watched = found["watched"][method]
        assert watched["metrics"] == plain["metrics"], method
        assert watched["training"].get("loss") == plain["training"].get("loss"), method
        assert "watched_on_test" not in plain["training"] and NOTE in watched["notes"] and NOTE not in plain["notes"]
        log = watched["training"]["watched_on_test"]
        assert len(log["done"]) == len(log["image_auroc"]) and 1 <= len(log["done"]) <= 3, method
        assert watched["timing"]["watch_s"] > 0
    log = found["watched"]["simplenet"]["training"]["watched_on_test"]
    assert log["done"][-1] == 1.0
    assert log["image_auroc"][-1] == found["plain"]["simplenet"]["metrics"]["image_auroc"]
    done = cli("figure", "simplenet@demo", "--datasets", "parts", "--kinds", "watch", "--results", tmp_path / "watched",
               "--out", tmp_path / "figures")
    assert done.returncode == 0, done.stderr
    assert Image.open(tmp_path / "figures" / "watch-simplenet@demo-parts-nut-seed0.png").width > 300
    none = cli("figure", "simplenet@demo", "--datasets", "parts", "--kinds", "watch", "--results", tmp_path / "plain",
               "--out", tmp_path / "figures")
    assert none.returncode == 2 and "--watch-test" in none.stderr
