"""What every registered method must do, checked on its `demo` preset (else `quick`): a new method is tested unasked."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from models import registry
from models.base import Context, Detector, ModelError
from models.weights import WeightStore
from tests.conftest import picture


def small_preset(name: str) -> str | None:
    presets = registry.entries()[name].presets
    return next((p for p in ("demo", "quick", "default") if p in presets), None)


METHODS = [f"{name}@{preset}" for name in registry.entries() if (preset := small_preset(name))
           and not name.startswith("fake")]
FEW_STEPS = {"epochs": 1, "steps": 2, "epochs_phase1": 1, "epochs_phase2": 1, "max_epochs": 1, "max_steps": 2,
             "meta_epochs": 1, "gan_epochs": 1, "gan_steps": 2, "teacher_steps": 2}
SMALLER = {  # settings of `test_contract`, for methods whose preset takes long to fit
    "anomalydino": {"size": 56},
    "ast": {"size": 128, "teacher_channels": 16, "student_channels": 32},
    "cnn_dict": {"size": 64, "samples": 400},
    "csflow": {"size": 128, "hidden": 4, "blocks": 1},
    "dinomaly": {"size": 64, "crop": 56},
    "feature_ensemble": {"size": 64},
    "inp_former": {"size": 64, "crop": 56},
    "reverse_distillation": {"size": 64},
    "score_ensemble": {"size": 64},
    "efficientad": {"steps": 1},
    "puad": {"steps": 1},
    "us": {"size": 64, "teacher_batch": 4},
}
FEWER = {"efficientad": 3, "puad": 3}  # training pictures in `test_contract`, and one test picture less
VALIDATION = {"puad": 2}  # pictures there, where a tenth of the few training pictures would not do
TRAINING = {"puad": 20}  # pictures, for methods that need more than 12


def train_pictures(spec: str) -> list[np.ndarray]:
    return pictures(TRAINING.get(spec.partition("@")[0], 12), 0)


def build(spec: str, scratch: Path, seed: int = 0) -> Detector:
    config = registry.config(spec)
    small = FEW_STEPS | SMALLER.get(spec.partition("@")[0], {})
    present = {k: str(v) for k, v in small.items() if hasattr(config, k)}
    config = registry.config(spec, present)
    torch.manual_seed(seed)
    context = Context(
        device=torch.device("cpu"), seed=seed, weights=WeightStore("none"), scratch=scratch,
        extras={"dataset": "parts", "category": "nut", "members": {}, "member_dir": None},
    )
    return registry.method_class(registry.parse(spec)[0])(config, context)


def pictures(count: int, seed: int) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [picture(rng, (70 + i % 3, 90)) for i in range(count)]


@pytest.mark.parametrize("spec", METHODS)
def test_contract(spec: str, tmp_path: Path) -> None:
    name = spec.partition("@")[0]
    train, test = train_pictures(spec)[: FEWER.get(name)], pictures(2 if name in FEWER else 3, 1)
    held = pictures(VALIDATION[name], 2) if name in VALIDATION else None
    if registry.method_class(registry.parse(spec)[0]).own_sizes:  # gets pictures of one size at a time
        test = [picture[:70] for picture in test]
    steps: list[tuple[int, int]] = []
    first = build(spec, tmp_path / "a")
    first.fit(train, held, lambda done, total, /, **values: steps.append((done, total)))
    with torch.inference_mode():
        one = first.predict(test)
    assert steps and all(0 < done <= total for done, total in steps), "fit must report progress"
    if one.anomaly_map is not None:
        assert one.anomaly_map.shape[0] == len(test) and one.anomaly_map.ndim == 3
        assert one.anomaly_map.dtype == torch.float32 and torch.isfinite(one.anomaly_map).all()
        restored = first.preprocess.restore(one.anomaly_map, [p.shape[:2] for p in test])
        assert [tuple(m.shape) for m in restored] == [p.shape[:2] for p in test]
    if one.score is not None:
        assert one.score.shape == (len(test),) and one.score.dtype == torch.float32 and torch.isfinite(one.score).all()
    assert one.anomaly_map is not None or one.score is not None

    again = build(spec, tmp_path / "b")
    again.fit(train, held)
    loaded = build(spec, tmp_path / "c")  # the same seed: test noise may hang on it; it was never fitted
    buffer = tmp_path / "state.pt"
    torch.save(first.state_dict(), buffer)
    loaded.load_state_dict(torch.load(buffer, weights_only=True))
    with torch.inference_mode():
        two, three, single = again.predict(test), loaded.predict(test), first.predict(test[1:2])
    for name in ("anomaly_map", "score"):
        a = getattr(one, name)
        if a is None:
            continue
        assert torch.equal(a, getattr(two, name)), f"{name}: the same seed gave another result"
        assert torch.allclose(a, getattr(three, name), atol=1e-6), f"{name}: the saved state gives another result"
        assert torch.allclose(a[1:2], getattr(single, name), atol=1e-4, rtol=1e-4), f"{name} depends on its batch"
    assert loaded.threshold == first.threshold


@pytest.mark.parametrize("spec", METHODS)
def test_config_is_typed_and_unknown_fields_are_refused(spec: str) -> None:
    with pytest.raises(ModelError, match="has no field"):
        registry.config(spec, {"no_such_field": "1"})
    assert registry.config(spec, {"batch": "3"}).batch == 3
