"""Devices are named exactly, found before a unit starts, and set explicitly."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch

from benchmarks import devices
from benchmarks.errors import UsageError
from benchmarks.plan import Options, make_plan
from benchmarks.runner import run_unit
from models.features import FeatureCache, precision
from models.nn.memory import device_lost, in_parts, noted, out_of_memory


@pytest.mark.parametrize("name", ["gpu", "GPU", "mps", "0", "cuba", "", "cuda:", "cuda:-1", "cpu:0", "CUDA", "cuda:1 "])
def test_what_is_no_device_is_refused_when_options_are_made(name: str) -> None:
    with pytest.raises(UsageError, match="use auto, cpu, cuda or cuda:i"):
        Options(device=name)


def test_a_near_name_is_offered() -> None:
    with pytest.raises(UsageError, match="did you mean cuda:1"):
        devices.check("1")
    with pytest.raises(UsageError, match=r"did you mean cuda\?"):
        devices.check("gpu")


def gpus(monkeypatch: pytest.MonkeyPatch, count: int, warning: str = "") -> None:
    def available() -> bool:
        if warning:
            warnings.warn(warning, stacklevel=2)
        return count > 0

    monkeypatch.setattr(torch.cuda, "is_available", available)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)


def test_names_become_full_names(monkeypatch: pytest.MonkeyPatch) -> None:
    gpus(monkeypatch, 2)
    assert [devices.resolve(n).name for n in ("auto", "cuda", "cuda:1", "cpu")] == ["cuda:0", "cuda:0", "cuda:1", "cpu"]
    with pytest.raises(UsageError, match="cuda:2: 2 GPUs visible"):
        devices.resolve("cuda:2")


def test_a_gpu_that_torch_cannot_use_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    gpus(monkeypatch, 0, "The NVIDIA driver on your system is too old (found version 11040).")
    found = devices.resolve("auto")
    assert found.name == "cpu" and "too old" in found.note
    with pytest.raises(UsageError, match=r"0 GPUs visible .*too old"):
        devices.resolve("cuda")


def test_a_machine_without_a_gpu_has_nothing_to_say(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    gpus(monkeypatch, 0)
    monkeypatch.setattr(devices, "DRIVER", tmp_path / "absent")
    assert devices.resolve("auto") == devices.Device("cpu")
    (tmp_path / "present").touch()
    monkeypatch.setattr(devices, "DRIVER", tmp_path / "present")
    assert "cannot use the GPU" in devices.resolve("auto").note


def test_a_gpu_becomes_current_and_computes_as_the_record_says(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = []
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    before = torch.are_deterministic_algorithms_enabled()
    try:
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = True
        assert devices.prepare("cuda:1") == {"determinism": "cudnn and cublas", "tf32": False}
        assert chosen == [torch.device("cuda:1")] and not torch.are_deterministic_algorithms_enabled()
        assert not torch.backends.cudnn.allow_tf32 and not torch.backends.cuda.matmul.allow_tf32
        assert devices.prepare("cuda:0", repeatable=True)["determinism"] == "full"
        assert torch.are_deterministic_algorithms_enabled()
        assert devices.prepare("cpu")["determinism"] == "full" and torch.are_deterministic_algorithms_enabled()
        with precision("tf32"):
            assert torch.backends.cudnn.allow_tf32 and not torch.backends.cuda.matmul.allow_tf32
        assert not torch.backends.cudnn.allow_tf32
    finally:
        torch.use_deterministic_algorithms(before, warn_only=True)


@pytest.mark.parametrize("text", [
    "CUDA out of memory. Tried to allocate 2.00 GiB", "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
    "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_HOST_ALLOCATION_FAILED",
    "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
    "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
    "CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`",
    "[enforce fail at alloc_cpu.cpp:117] . DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes",
    "std::bad_alloc",
])
def test_texts_of_libraries_that_ran_out_of_memory_are_known(text: str) -> None:
    assert out_of_memory(RuntimeError(text)) and not device_lost(RuntimeError(text))
    assert not out_of_memory(ValueError(text))


def test_a_lost_device_is_no_lack_of_memory() -> None:
    for text in ("CUDA error: device-side assert triggered", "CUDA error: an illegal memory access was encountered"):
        assert device_lost(RuntimeError(text)) and not out_of_memory(RuntimeError(text))


def test_kept_features_are_given_up_before_work_is_cut() -> None:
    cache = FeatureCache(limit=1 << 20)
    cache.get("group", b"pictures", 4, ("layer",), lambda: {"layer": torch.zeros(4, 1, 8, 8)})
    calls = []

    def work(part: torch.Tensor) -> int:
        calls.append(len(part))
        if cache.holds():
            raise RuntimeError("CUDA out of memory")
        return len(part)

    with noted() as notes:
        assert in_parts(work, torch.zeros(6), 6, "pictures are looked at") == [6]
    assert calls == [6, 6] and any("kept features were given up" in note for note in notes)
    cache.get("group", b"pictures", 4, ("layer",), lambda: {"layer": torch.zeros(4, 1, 8, 8)})
    assert cache.holds() == 0, "nothing is kept again"


def test_repeatable_reaches_the_device_and_the_record_s_command(
    data_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, prepare = [], devices.prepare
    monkeypatch.setattr(devices, "prepare", lambda name, **how: (seen.append(how), prepare(name, **how))[1])
    for asked in (False, True):
        options = Options(data_root=data_root, results=tmp_path, weights="none", device="cpu", repeatable=asked)
        (job,) = make_plan(["fake"], ["parts"], options, categories=["nut"]).jobs
        record = run_unit(job, lambda *step: None)
        assert record["environment"]["determinism"] == "full"  # always, on the CPU
        assert ("--repeatable" in record["environment"]["command"]) == asked
    assert seen == [{"repeatable": False}, {"repeatable": True}]
