"""A training that was killed goes on to the same end, for every method whose training keeps a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from models import registry
from models.base import Context, Detector
from models.nn.training import Checkpoint
from models.weights import WeightStore
from tests.models.test_all_methods import FEW_STEPS, METHODS, train_pictures

DRAWING = ("riad", "supersimplenet")  # their steps draw on the host besides `train`'s own generators; so does
# efficientad's, whose training takes a minute and more
LENGTHS = {"steps": "8", "max_steps": "8"}  # of epochs two are enough
FEWER = {"efficientad": 5}  # pictures: eight steps are then two epochs
TESTED = [spec for spec in METHODS if not spec.startswith("puad@")]  # which trains as efficientad, with more pictures


class Killed(BaseException):
    """Not an error that a method could catch."""


def build(spec: str, scratch: Path) -> Detector:
    config = registry.config(spec)
    short = {name: LENGTHS.get(name, "2") for name in FEW_STEPS if hasattr(config, name)}
    short |= {"train_batch": "5"} if getattr(config, "train_batch", 1) > 1 else {}
    torch.manual_seed(0)
    context = Context(
        device=torch.device("cpu"), seed=0, weights=WeightStore("none"), scratch=scratch,
        extras={"dataset": "parts", "category": "nut", "members": {}, "member_dir": None},
    )
    return registry.method_class(registry.parse(spec)[0])(registry.config(spec, short), context)


def leaves(state: Any) -> list[Any]:
    """The tensors and plain values of a nested state, in a fixed order."""
    if isinstance(state, Mapping):
        return [leaf for key in sorted(state, key=str) for leaf in leaves(state[key])]
    return [leaf for part in state for leaf in leaves(part)] if isinstance(state, list | tuple) else [state]


@pytest.mark.parametrize("spec", [
    pytest.param(spec, marks=() if spec.partition("@")[0] in DRAWING else pytest.mark.slow) for spec in TESTED
])
def test_a_killed_training_goes_on_to_the_same_end(
    spec: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved: list[int] = []
    save = Checkpoint.save

    def counted(self: Checkpoint, epoch: int, state: Mapping[str, Any]) -> None:
        save(self, epoch, state)
        saved.append(epoch)

    monkeypatch.setattr(Checkpoint, "save", counted)
    monkeypatch.setattr(Checkpoint, "due", lambda self: self.path is not None)
    train = train_pictures(spec)[: FEWER.get(spec.partition("@")[0])]
    whole = build(spec, tmp_path / "whole")
    whole.fit(train, None)
    if not saved:
        pytest.skip("keeps no checkpoint")
    saved.clear()

    def killed(done: int, total: int, /, **values: float) -> None:
        if saved:  # in the epoch after the first checkpoint
            raise Killed

    with pytest.raises(Killed):
        build(spec, tmp_path / "killed").fit(train, None, killed)
    resumed = build(spec, tmp_path / "killed")
    resumed.fit(train, None)
    for ours, theirs in zip(leaves(resumed.state_dict()), leaves(whole.state_dict()), strict=True):
        assert torch.equal(ours, theirs) if isinstance(ours, Tensor) else ours == theirs
