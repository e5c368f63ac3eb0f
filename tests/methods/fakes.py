"""Small methods for the harness's own tests: one that works, and one for each way to go wrong."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from models.base import Config, Context, Detector, Images, Prediction, Progress, no_progress
from models.nn.floor import mark
from models.nn.preprocess import Preprocess
from models.registry import register


@dataclass(frozen=True, kw_only=True)
class FakeConfig(Config):
    size: int = 32
    noise: float = 0.0
    wait: float = 0.0
    how: str = ""


@register("fake", presets={
    "plain": FakeConfig(), "noisy": FakeConfig(noise=0.02), "slow": FakeConfig(wait=0.05),
    "category": FakeConfig(how="category"),
    "drawn": FakeConfig(how="drawn"),  # predicts with random numbers of the whole process, as a library below may
})
class Fake(Detector):
    """Distance to the mean training picture."""

    Config = FakeConfig

    def __init__(self, config: FakeConfig, context: Context) -> None:
        super().__init__(config, context)
        self.preprocess = Preprocess((config.size, config.size), normalise=False)

    def fit(self, train: Images, validation: Images | None, progress: Progress = no_progress) -> dict[str, Any] | None:
        total = torch.zeros(3, self.config.size, self.config.size, device=self.context.device)
        for i in range(len(train)):
            total += self.preprocess([train[i]], self.context.device)[0]
            time.sleep(self.config.wait)
            progress(i + 1, len(train), loss=1 / (i + 1))
        generator = torch.Generator().manual_seed(self.context.seed)
        self.mean = total / len(train) + self.config.noise * torch.randn(total.shape, generator=generator)
        log: dict[str, Any] = {"loss": [1.0, 0.5]}
        if self.config.how == "floor":
            mark(log, "floor", "no better than the mean picture")
        if self.config.how == "category":
            log["category"] = self.context.extras["category"]
        return log

    def predict(self, batch: Images) -> Prediction:
        x = self.preprocess(batch, self.context.device)
        drawn = 0.1 * torch.rand(x.shape) if self.config.how == "drawn" else 0
        return Prediction((x + drawn - self.mean).square().mean(1), None, {"reconstruction": self.mean.expand_as(x)})

    def state_dict(self) -> dict[str, Any]:
        return {"mean": self.mean}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.mean = state["mean"]


def allocate_beyond_the_limit() -> None:
    """Ask torch for memory that the kernel refuses, because this process has reached its address space limit."""
    old = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (64 << 20), old[1]))
    try:
        torch.ones(1 << 28)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, old)


@register("fake_bad", presets={
    "error": FakeConfig(how="error"), "nan": FakeConfig(how="nan"), "killed": FakeConfig(how="killed"),
    "hang": FakeConfig(how="hang"), "constant": FakeConfig(how="constant"), "memory": FakeConfig(how="memory"),
    "segfault": FakeConfig(how="segfault"), "shape": FakeConfig(how="shape"), "null": FakeConfig(how="null"),
    "refused": FakeConfig(how="refused"), "device_assert": FakeConfig(how="device_assert"),
})
class FakeBad(Fake):
    """Goes wrong in the way that `how` names."""

    def fit(self, train: Images, validation: Images | None, progress: Progress = no_progress) -> dict[str, Any] | None:
        match self.config.how:
            case "error":
                raise ValueError("the fake was told to fail")
            case "memory":
                np.zeros((1 << 50,), np.uint8)
            case "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            case "segfault":
                os.kill(os.getpid(), signal.SIGSEGV)
            case "null":
                ctypes.string_at(0)
            case "refused":
                allocate_beyond_the_limit()
            case "device_assert":
                if self.context.device.type == "cpu":  # which has no such thing: only its text
                    raise RuntimeError("CUDA error: device-side assert triggered")
                torch.zeros(2, device=self.context.device)[torch.full((1,), 5, device=self.context.device)].sum().item()
            case "hang":
                time.sleep(600)
        return super().fit(train, validation, progress)

    def predict(self, batch: Images) -> Prediction:
        prediction = super().predict(batch)
        assert prediction.anomaly_map is not None
        if self.config.how == "nan":
            prediction.anomaly_map[0, 0, 0] = float("nan")
        if self.config.how == "constant":
            return Prediction(torch.zeros_like(prediction.anomaly_map), None)
        if self.config.how == "shape":
            return Prediction(prediction.anomaly_map[None], None)
        return prediction
