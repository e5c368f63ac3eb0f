"""What a method is: a config, `fit`, `predict`, and a state that can be saved.

A method sees pictures as uint8 arrays [H, W, 3] of any size and returns anomaly maps at its own resolution; its
`preprocess` knows the resize and the crop, so the harness can bring a map back to each picture's own size.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

import numpy as np

from models.errors import ModelError

if TYPE_CHECKING:
    import torch

    from models.nn.preprocess import Preprocess
    from models.weights import WeightStore

__all__ = [
    "Config", "Context", "Detector", "Images", "ModelError", "Precision", "Prediction", "Progress", "no_progress",
]

Images = Sequence[np.ndarray]
"""Pictures decoded to uint8 [H, W, 3], read on access; sizes may differ within one sequence."""


class Progress(Protocol):
    """Called by `fit` after each step: `progress(done, total, loss=0.12)`. May raise to stop the unit."""

    def __call__(self, done: int, total: int, /, **values: float) -> None: ...


def no_progress(done: int, total: int, /, **values: float) -> None:
    """A `Progress` that shows nothing."""


Precision = Literal["float32", "tf32", "bf16"]


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of a method. A subclass adds typed fields; a field from a paper names its section in a comment."""

    batch: int = 8  # pictures per predict call
    precision: Precision = "float32"  # of frozen backbones, and of our own networks in training; maps are float32
    shortened: bool = False  # the schedule is shorter than the paper's: every table marks the figure

    @property
    def short(self) -> bool:
        """What the mark says; an ensemble is also short when one of its members is."""
        return self.shortened

    def with_(self, **changes: Any) -> Config:
        return replace(self, **changes)


@dataclass(frozen=True)
class Prediction:
    """Raw output for B pictures; no sigmoid, min-max or clamping.

    anomaly_map: float32 [B, h, w] at the method's own resolution (the input size of its network after resize and
        crop, or any size that covers the same field of view), or None for a method without maps.
    score: float32 [B], or None; then the harness takes the map's maximum.
    panels: what figures show besides, by name ('reconstruction', 'predicted mask'): [B, 3, h, w] or [B, h, w] in
        [0, 1], or a function that gives one where it costs extra. `--keep-maps` stores them; no metric sees them.
    """

    anomaly_map: torch.Tensor | None
    score: torch.Tensor | None
    panels: Mapping[str, torch.Tensor | Callable[[], torch.Tensor]] = field(default_factory=dict)


@dataclass(frozen=True)
class Context:
    """What the harness hands to a method when it builds it."""

    device: torch.device
    seed: int
    weights: WeightStore
    scratch: Path | None = None  # folder of this unit for checkpoints inside `fit`; removed when the unit ends
    features: Any = None  # models.features.FeatureCache shared by the units of one category, or None
    extras: Mapping[str, Any] = field(default_factory=dict)


class Detector(ABC):
    """Base class of every method.

    A subclass defines `__init__` (call super), `fit` and `predict`; `preprocess` must be set by `__init__`.
    `threshold` is set by `fit` in methods that decide by a threshold from training errors (score > threshold is
    anomalous), and then TPR, TNR, accuracy and F1 are reported.
    """

    Config: ClassVar[type[Config]] = Config
    name: ClassVar[str] = ""
    has_map: ClassVar[bool] = True
    own_sizes: ClassVar[bool] = False  # maps are made at each picture's size: a batch holds pictures of one size
    preprocess: Preprocess
    threshold: float | None = None

    def __init__(self, config: Config, context: Context) -> None:
        self.config = config
        self.context = context

    @abstractmethod
    def fit(self, train: Images, validation: Images | None, progress: Progress = no_progress) -> dict[str, Any] | None:
        """Learn from normal pictures. May return a log ({'loss': [...], 'epochs': n}) that the record keeps."""

    @abstractmethod
    def predict(self, batch: Images) -> Prediction:
        """Anomaly maps and scores of a list of pictures."""

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values that `load_state_dict` needs (readable with torch.load(weights_only=True))."""

    @abstractmethod
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` gave, on a detector built with the same config."""
