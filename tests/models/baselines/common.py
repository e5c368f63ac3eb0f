"""What the tests of the baselines share: small pictures, building a method, and what every method must do."""

from __future__ import annotations

import io

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from models import registry
from models.base import Context, Detector
from models.weights import WeightStore

CPU = torch.device("cpu")
SHORT = {"epochs": "2", "train_batch": "3", "size": "64"}


def pictures(count, seed=0, spot=False):
    """Smooth pictures of one kind, of different sizes; with a white square in [20:40, 20:40] of the last ones."""
    rng = np.random.default_rng(seed)
    found = []
    for i in range(count):
        picture = np.linspace(60, 160, 60 + i % 2)[None, :, None] + rng.normal(0, 5, (64, 60 + i % 2, 3))
        if spot:
            picture[20:40, 20:40] = 255
        found.append(picture.clip(0, 255).astype(np.uint8))
    return found


def build(spec, settings=None, seed=0, weights="none", scratch=None, extras=None) -> Detector:
    """The method of a spec, `settings` as texts of `--set`."""
    torch.manual_seed(seed)
    store = weights if isinstance(weights, WeightStore) else WeightStore(weights)
    context = Context(CPU, seed, store, scratch, None, extras or {})
    return registry.method_class(registry.parse(spec)[0])(registry.config(spec, settings), context)


def equal(a, b):
    return all(x is y or torch.equal(x, y) for x, y in
               ((a.anomaly_map, b.anomaly_map), (a.score, b.score)))


def check_fit_predict_seed_and_state(spec, settings, train=6):
    """Shapes, progress and log; the same seed gives the same result, and so does the saved state."""
    train, test = pictures(train), pictures(3, 9)
    seen = []
    first = build(spec, settings)
    log = first.fit(train, None, lambda done, total, **values: seen.append((done, total)))
    result = first.predict(test)
    for values, shape in ((result.anomaly_map, (3, *first.preprocess.output)), (result.score, (3,))):
        if values is not None:
            assert values.shape == shape and values.dtype == torch.float32 and torch.isfinite(values).all()
    assert (result.anomaly_map is not None) == first.has_map
    assert seen and seen[-1][0] == seen[-1][1] and all(a <= b for a, b in seen)
    if log and "loss" in log:
        assert len(log["loss"]) == log["epochs"]

    again = build(spec, settings)
    again.fit(train, None)
    assert equal(again.predict(test), result)

    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    restored = build(spec, settings, seed=5)
    restored.load_state_dict(torch.load(file, weights_only=True))
    assert equal(restored.predict(test), result)


def authors_features(found: dict[str, Tensor], patch: int, dimension: int) -> Tensor:
    """The published procedure patch by patch: unfold, upsample neighbourhoods, average per layer, then together."""
    stacks = []
    height, width = next(iter(found.values())).shape[-2:]
    for x in found.values():
        b, c, h, w = x.shape
        windows = F.unfold(x, patch, padding=patch // 2).reshape(b, c * patch * patch, h, w)
        windows = F.interpolate(windows, (height, width), mode="bilinear", align_corners=False)
        rows = windows.permute(0, 2, 3, 1).reshape(b * height * width, 1, -1)
        stacks.append(F.adaptive_avg_pool1d(rows, dimension)[:, 0])
    joined = torch.stack(stacks, 1).reshape(len(stacks[0]), 1, -1)
    flat = F.adaptive_avg_pool1d(joined, dimension)[:, 0]
    return flat.reshape(-1, height, width, dimension).permute(0, 3, 1, 2)
