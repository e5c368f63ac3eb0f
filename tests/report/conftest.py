"""Records as a run would write them, with numbers that a test chooses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

Make = Callable[..., dict[str, Any]]


def make_record(
    spec: str = "rb_ae@paper", category: str = "wood", seed: int = 0, dataset: str = "mvtec_ad", *,
    marks: tuple[str, ...] = (), size: str | int = "original", version: int = 1, status: str = "ok",
    undefined: dict[str, str] | None = None, finished: str = "2026-01-01T00:00:00+00:00", fingerprint: str = "f0",
    rule: str = "max", **metrics: float | None,
) -> dict[str, Any]:
    """Metrics by keyword, as in `make_record(**{"aupro@0.3": 0.9})`."""
    method, _, preset = spec.partition("@")
    return {
        "schema": 1,
        "unit": {"method": method, "preset": preset, "dataset": dataset, "category": category, "seed": seed},
        "status": status,
        "error": None if status == "ok" else {"type": "ModelError", "message": "NaN scores", "phase": "predict"},
        "metrics": metrics,
        "undefined": undefined or {},
        "protocol": {"metric_version": version, "metric_size": size, "image_score": rule, "limits": [0.3]},
        "images": {
            "train": 200, "validation": 0, "test": 60, "test_good": 20, "test_anomalous": 40, "sizes": "1024x1024",
            "scores": "scores.npz",
        },
        "timing": {"build_s": 1.0, "fit_s": 10.0, "predict_s": 5.0, "total_s": 17.0, "images_per_s": 12.0},
        "memory": {"peak_host_mb": 900.0, "peak_device_mb": None},
        "config": {"epochs": 3, "backbone": "resnet18.tv_in1k"}, "config_hash": "abc",
        "weights": {"resnet18.tv_in1k": {"sha256": "0" * 64, "file": "resnet18.safetensors"}},
        "dataset_fingerprint": fingerprint,
        "environment": {
            "device": "cpu: test", "finished": finished, "git_commit": "0123abc", "python": "3.11",
            "libraries": {"torch": "2.11"},
            "command": f"python run_benchmark.py run --methods {spec} --datasets {dataset} "
            f"--categories {category} "
            f"--seeds {seed} --metric-size {size} --weights DIR",
        },
        "training": {"loss": [1.0, 0.5, 0.25]}, "marks": list(marks), "notes": [],
    }


@pytest.fixture
def record() -> Make:
    return make_record
