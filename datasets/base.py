"""What a category is: its pictures by split, the ground truth files of each test picture, and a fingerprint."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np


class DatasetError(ValueError):
    """Data missing or broken. The message names the path, what was looked for and what to do."""


@dataclass(frozen=True)
class Sample:
    """One picture. `kind` is the name of its folder ('good', 'broken_large', 'logical_anomalies', ...)."""

    path: Path
    kind: str
    masks: tuple[Path, ...] = ()  # MVTec AD: one file; LOCO: one file per region; good: none

    @property
    def label(self) -> int:
        return int(self.kind != "good")

    @property
    def name(self) -> str:
        """`<kind>/<file stem>`, unique within a split."""
        return f"{self.kind}/{self.path.stem}"


@dataclass(frozen=True)
class Defect:
    """One entry of a LOCO `defects_config.json`."""

    name: str
    pixel_value: int
    saturation_threshold: float
    relative: bool


@dataclass(frozen=True)
class Channel:
    """One LOCO ground-truth file: mask bool [H, W] and the defect its pixel value stands for."""

    mask: np.ndarray
    defect: Defect


@dataclass(frozen=True)
class Category:
    dataset: str
    name: str
    root: Path  # the category's own folder
    layout: str  # 'mvtec' or 'loco'
    train: tuple[Sample, ...]
    validation: tuple[Sample, ...]
    test: tuple[Sample, ...]
    defects: tuple[Defect, ...] = ()
    notes: tuple[str, ...] = ()  # departures from the official data ('test good: 40 of 94'): tables mark the figure
    extras: dict[str, Any] = field(default_factory=dict)
