"""What a record says beside its figures, made in this process so that planted faults are seen."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torchvision.models import resnet18

from benchmarks.plan import Options, make_plan
from benchmarks.runner import run_unit


@pytest.mark.parametrize("weights", ["none", "given"])
def test_untrained_weights_are_marked(data_root: Path, tmp_path: Path, weights: str) -> None:
    folder = "none"
    if weights == "given":
        torch.save(resnet18().state_dict(), tmp_path / "resnet18.tv_in1k.pth")
        folder = str(tmp_path)
    options = Options(data_root=data_root, results=tmp_path, weights=folder, device="cpu", settings={"size": "64"})
    [job] = make_plan(["patchcore@demo"], ["parts"], options, categories=["nut"]).jobs
    record = run_unit(job, lambda *_: None)
    assert record["status"] == "ok", record.get("error")
    assert ("untrained" in record["marks"]) == (weights == "none")
