"""What a category is: its pictures by split, the ground truth files of each test picture, and a fingerprint."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

SHOWN = 10  # problems spelt out in one message


class DatasetError(ValueError):
    """Data missing or broken. The message names the path, what was looked for and what to do."""


def raise_problems(problems: Sequence[str]) -> None:
    """Raise one DatasetError that lists all problems, one a line; nothing happens when there is none."""
    if problems:
        more = [f"and {len(problems) - SHOWN} more"] if len(problems) > SHOWN else []
        raise DatasetError("\n  ".join([*problems[:SHOWN], *more]))


def composed(name: str) -> str:
    """The name in composed Unicode (NFC): 'ä' may be one character or two, and both spell the same file."""
    return unicodedata.normalize("NFC", name)


@dataclass(frozen=True)
class Sample:
    """One picture. `kind` is the name of its folder ('good', 'broken_large', 'logical_anomalies', ...)."""

    path: Path
    kind: str
    masks: tuple[Path, ...] = ()  # MVTec AD: one file; LOCO: one file per region; good: none
    white_level: int = 65535  # of 16-bit pictures: the value that becomes 255

    @property
    def label(self) -> int:
        return int(self.kind != "good")

    @property
    def name(self) -> str:
        """`<kind>/<file stem>`, unique within a split; composed Unicode, whatever the file system has."""
        return f"{composed(self.kind)}/{composed(self.path.stem)}"


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
    remarks: tuple[str, ...] = ()  # what was left out or read in a way worth knowing, counted: tables mark it too
    unmasked: str = ""  # why no picture has a mask at all; then only image-level figures are made
    blank: tuple[Path, ...] = ()  # masks of good pictures, which must be empty
    # what a setting adds (`datasets.settings`)
    held_out: tuple[Sample, ...] = ()  # normal pictures that training does not see: thresholds are fixed on them
    unscored: frozenset[str] = frozenset()  # names of test pictures that training has seen
    move: Callable[[np.ndarray, str], np.ndarray] | None = None  # a test picture's mask [H, W], its name -> as moved
    told: tuple[str, ...] = ()  # for the record's notes
