"""The training pieces: order, checks, early stopping, and a resumed training equal to an undisturbed one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from models.base import Context, ModelError
from models.nn import training
from models.nn.preprocess import Preprocess
from models.weights import WeightStore


def context(scratch: Path | None = None, seed: int = 4) -> Context:
    return Context(torch.device("cpu"), seed, WeightStore("none"), scratch)


class Task:
    """A small regression with batch norm, dropout, drawn noise, a schedule and a held-back part."""

    def __init__(self, scratch: Path | None = None, seed: int = 4, patience: int = 100, start: int = 0) -> None:
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.ReLU(), nn.Linear(8, 1))
        rng = torch.Generator().manual_seed(1)
        self.x = torch.randn(22, 5, generator=rng)
        self.y = self.x.sum(1, keepdim=True)
        self.context = context(scratch, seed)
        self.stop = training.Best(patience, start)
        self.order: list[int] = []
        self.poison_at: int | None = None
        self.die_at: int | None = None

    def run(self, epochs: int = 8, key: Any = "task", checkpoint_s: float = 0.0) -> dict[str, Any]:
        optimizer = torch.optim.Adam(self.net.parameters(), lr=1e-2)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 3, 0.5)
        steps = 0

        def step(indices: Tensor, noise: torch.Generator) -> dict[str, Tensor]:
            nonlocal steps
            steps += 1
            self.order += indices.tolist()
            if steps == self.die_at:
                raise KeyboardInterrupt
            x = self.x[:16][indices]
            loss = ((self.net(x + 0.1 * torch.randn(x.shape, generator=noise)) - self.y[:16][indices]) ** 2).mean()
            if steps == self.poison_at:
                loss = loss * float("nan")
            return {"loss": loss, "half": loss.detach() / 2}

        def validate() -> float:
            assert not self.net.training
            return float(((self.net(self.x[16:]) - self.y[16:]) ** 2).mean())

        return training.train(
            step, {"net": self.net}, [optimizer], count=16, batch=6, epochs=epochs, context=self.context, key=key,
            validate=validate, stop=self.stop, schedulers=[scheduler], checkpoint_s=checkpoint_s,
        )


def weights(task: Task) -> list[Tensor]:
    return [v.clone() for v in task.net.state_dict().values()]


def test_same_seed_same_training_another_seed_another() -> None:
    first, second, other = Task(), Task(), Task(seed=5)
    log = first.run()
    torch.rand(7)  # the global generator's state must not matter
    assert second.run() == log
    assert all(torch.equal(a, b) for a, b in zip(weights(first), weights(second), strict=True))
    assert other.run()["loss"] != log["loss"]
    assert log["epochs"] == len(log["loss"]) == len(log["validation_loss"]) == 8
    np.testing.assert_allclose(log["half"], np.array(log["loss"]) / 2, rtol=1e-6)
    assert [sorted(first.order[i : i + 16]) for i in range(0, 128, 16)] == [list(range(16))] * 8
    assert not first.net.training


@pytest.mark.parametrize("die_at", [3, 4, 11, 24])  # within the first epoch, at the second's start, later, at the end
def test_a_resumed_training_equals_an_undisturbed_one(tmp_path: Path, die_at: int) -> None:
    whole = Task()
    log = whole.run()
    killed = Task(tmp_path)
    killed.die_at = die_at
    with pytest.raises(KeyboardInterrupt):
        killed.run()
    resumed = Task(tmp_path)
    again = resumed.run()
    finished = (die_at - 1) // 3
    assert again.pop("resumed_after_epoch", None) == ([finished] if finished else None)
    assert again == log
    assert len(resumed.order) == 16 * (8 - finished)
    assert all(torch.equal(a, b) for a, b in zip(weights(whole), weights(resumed), strict=True))


def test_checkpoints_of_something_else_or_broken_are_not_used(tmp_path: Path) -> None:
    log = Task(tmp_path).run()
    assert "resumed_after_epoch" not in Task(tmp_path).run(key="another")
    (tmp_path / "checkpoint.pt").write_bytes(b"cut short")
    assert Task(tmp_path).run() == log


def test_checkpoints_come_at_most_every_so_often(tmp_path: Path) -> None:
    Task(tmp_path).run(checkpoint_s=3600)
    assert not list(tmp_path.iterdir())


def test_a_disk_that_cannot_be_written_does_not_end_the_training(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    log = Task(tmp_path / "file").run()
    assert "no checkpoint could be written" in log["notes"][0]
    assert log["epochs"] == 8


def test_nan_loss_names_the_epoch_and_keeps_the_last_good_checkpoint(tmp_path: Path) -> None:
    task = Task(tmp_path)
    task.poison_at = 8  # epoch 3
    with pytest.raises(ModelError, match=r"loss became nan in epoch 3; the checkpoint of epoch 2 is kept"):
        task.run()
    saved = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert saved["epoch"] == 2
    assert all(torch.isfinite(v.float()).all() for v in saved["modules"]["net"].values())


def test_infinite_weights_are_found_even_when_the_loss_is_not() -> None:
    task = Task()
    task.net.register_parameter("spare", nn.Parameter(torch.tensor([float("inf")])))  # not part of the loss
    with pytest.raises(ModelError, match=r"a weight of net became inf in epoch 1"):
        task.run()


def test_early_stopping_and_the_best_weights() -> None:
    net = nn.Linear(1, 1)
    stop = training.Best(patience=2, start=3)
    ended = []
    for epoch, loss in enumerate([0.1, 5.0, 4.0, 3.0, 3.5, 3.0, 9.0], 1):
        with torch.no_grad():
            net.weight.fill_(epoch)
        ended.append(stop.update(epoch, loss, {"net": net}))
    assert ended == [False] * 5 + [True, True]  # the 0.1 before the start is not looked at; an equal loss is no gain
    stop.restore({"net": net})
    assert (stop.epoch, float(net.weight.detach())) == (4, 4.0)


def test_early_stopping_ends_the_training_and_stays_ended(tmp_path: Path) -> None:
    task = Task(tmp_path, patience=1)
    task.stop.update(0, -1.0, {"net": task.net})  # nothing can be better
    log = task.run(epochs=50)
    assert log["epochs"] == 1
    assert Task(tmp_path, patience=1).run(epochs=50)["epochs"] == 1


def test_split() -> None:
    kept, held = training.split(209, 0.2, context())
    assert (len(kept), len(held)) == (167, 42)
    assert sorted(kept + held) == list(range(209))
    assert training.split(209, 0.2, context()) == (kept, held)
    assert training.split(209, 0.2, context(seed=9))[1] != held
    with pytest.raises(ModelError, match="9 training pictures are too few"):
        training.split(9, 0.2, context())
    assert len(training.split(10, 0.01, context())[1]) == 1


def test_load_pictures_of_mixed_sizes() -> None:
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (h, w, 3), dtype=np.uint8) for h, w in ((30, 20), (16, 16), (9, 40))]
    preprocess = Preprocess((20, 20), (16, 16))
    exact = training.load_pictures(images, preprocess)
    assert exact.dtype == torch.float32
    assert torch.equal(exact, preprocess(images))
    small = training.load_pictures(images, preprocess, dtype=torch.uint8)
    assert (small.dtype, tuple(small.shape)) == (torch.uint8, (3, 3, 16, 16))
    error = (training.from_bytes(small, preprocess) - exact).abs().max()
    assert 0 < float(error) < 0.5 / 255 / 0.224 + 1e-6  # half a step over the smallest standard deviation
    with pytest.raises(ModelError, match="no training pictures"):
        training.load_pictures([], preprocess)


def test_autocast() -> None:
    x = torch.randn(4, 4)
    with training.autocast(torch.device("cpu"), "bf16"):
        assert (x @ x).dtype == torch.bfloat16
    with training.autocast(torch.device("cpu"), "float32"):
        assert (x @ x).dtype == torch.float32


class TwoPhases:
    """A first part trained alone, then frozen, and a second part trained on what it gives."""

    def __init__(self, scratch: Path | None) -> None:
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.x = torch.randn(12, 4, generator=torch.Generator().manual_seed(1))
        self.context = context(scratch)
        self.seen: list[tuple[int, int]] = []
        self.die_at: int | None = None
        self.trained: list[str] = []
        self.anchor = torch.zeros(4)

    def run(self) -> dict[str, Any]:
        def report(done: int, total: int, /, **_: float) -> None:
            self.seen.append((done, total))
            if done == self.die_at:
                raise KeyboardInterrupt

        def one(i: Tensor, _: torch.Generator) -> Tensor:
            self.trained.append("one")
            return (self.first(self.x[i]) - self.x[i]).square().mean()

        def two(i: Tensor, _: torch.Generator) -> Tensor:
            self.trained.append("two")
            return (self.second(self.first(self.x[i])) - self.anchor).square().mean()

        def phases() -> Any:
            yield training.Phase("one", one, {"first": self.first}, [torch.optim.Adam(self.first.parameters())], 3)
            self.first.requires_grad_(False)
            self.anchor = self.first(self.x[:1]).detach()
            yield training.Phase("two", two, {"second": self.second}, [torch.optim.Adam(self.second.parameters())], 2)

        return training.train_phases(
            phases(), epochs=5, count=12, batch=4, context=self.context, key="phases", progress=report,
        )


def test_phases_follow_each_other_and_a_finished_one_is_not_trained_again(tmp_path: Path) -> None:
    whole = TwoPhases(None)
    log = whole.run()
    assert whole.seen == [(i, 15) for i in range(1, 16)]
    assert whole.trained == ["one"] * 9 + ["two"] * 6
    assert (log["epochs"], log["one"]["epochs"], log["two"]["epochs"]) == (5, 3, 2)
    assert log["loss"] == log["one"]["loss"] + log["two"]["loss"]

    killed = TwoPhases(tmp_path)
    killed.die_at = 11  # in the second phase, less than checkpoint_s after the start
    with pytest.raises(KeyboardInterrupt):
        killed.run()
    resumed = TwoPhases(tmp_path)
    again = resumed.run()
    assert resumed.trained == ["two"] * 6
    assert again["two"] == log["two"] and torch.equal(resumed.anchor, whole.anchor)
    for ours, theirs in ((resumed.first, whole.first), (resumed.second, whole.second)):
        assert torch.equal(ours.weight, theirs.weight)
