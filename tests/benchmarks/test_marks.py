"""What a record says beside its figures, made in this process so that planted faults are seen."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torchvision.models import resnet18

from benchmarks.plan import Options, make_plan
from benchmarks.runner import run_unit


@pytest.mark.parametrize("weights", ["none", "given", "substitute"])
def test_untrained_and_substitute_weights_are_marked(data_root: Path, tmp_path: Path, weights: str) -> None:
    folder, instead = "none", {}
    if weights != "none":
        torch.save(resnet18().state_dict(), tmp_path / "resnet18.tv_in1k.pth")
    if weights == "given":
        folder = str(tmp_path)
    elif weights == "substitute":
        instead = {"resnet18.tv_in1k": tmp_path / "resnet18.tv_in1k.pth"}
    options = Options(data_root=data_root, results=tmp_path, weights=folder, weights_for=instead, device="cpu",
                      settings={"size": "64"})
    [job] = make_plan(["patchcore@demo"], ["parts"], options, categories=["nut"]).jobs
    record = run_unit(job, lambda *_: None)
    assert record["status"] == "ok", record.get("error")
    assert ("untrained" in record["marks"]) == (weights == "none")
    assert ("other_weights" in record["marks"]) == (weights == "substitute")
