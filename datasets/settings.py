"""Settings under which a unit runs: few pictures, a spoilt training set, other light, a smaller camera, one model for
all categories.

A setting makes another category of a category: other lists of pictures, and a change that pictures get when they are
read. Everything that is drawn comes from the unit's seed and is nested: the pictures of 2 shots are among those of 4.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from datasets.base import Category, DatasetError, Sample
from datasets.corruptions import KINDS, MOVES, corrupt, moved
from datasets.images import Pictures
from datasets.sources import near

CLEAN = "clean"
"""The name of no setting, on the command line."""


@dataclass(frozen=True)
class Setting:
    """One setting. text: as it stands in records, 'shots=4'. The base class changes nothing."""

    text: str
    joint: ClassVar[bool] = False  # one model is fitted on all categories of the dataset (`joined`)

    @property
    def training(self) -> str:
        """What of it training sees: units that differ in nothing else are fitted alike."""
        return self.text

    def category(self, base: Category, seed: int) -> Category:
        """The category under this setting. Raises DatasetError, naming it, where its pictures do not suffice."""
        return base

    def picture(self, picture: np.ndarray, sample: Sample, split: str, seed: int) -> np.ndarray:
        """A decoded picture uint8 [H, W, 3] of a split as it is seen under this setting."""
        return picture


@dataclass(frozen=True)
class Shots(Setting):
    """Trained on so many of the training pictures."""

    count: int

    def category(self, base: Category, seed: int) -> Category:
        """Fewer training pictures."""
        if self.count > len(base.train):
            raise DatasetError(f"{self.text}: {base.name} has {len(base.train)} training pictures; ask for fewer")
        chosen = sorted(_order(len(base.train), seed)[: self.count])
        return replace(base, train=tuple(base.train[i] for i in chosen))


@dataclass(frozen=True)
class Contaminated(Setting):
    """A share of the training pictures is replaced by defective test pictures that nobody noticed.

    left: those stay in the test set too; else they are not scored.
    """

    share: float
    left: bool

    def category(self, base: Category, seed: int) -> Category:
        """The last training pictures give way, so that features of the others are where they were."""
        defective = [sample for sample in base.test if sample.label]
        count = round(self.share * len(base.train))
        if not count:
            raise DatasetError(f"{self.text}: that share of {len(base.train)} training pictures of {base.name} is none")
        most = len(defective) - (not self.left)
        if count > most:
            raise DatasetError(
                f"{self.text}: takes {count} defective pictures into training; the test set of {base.name} has "
                f"{len(defective)}{'' if self.left else ' and must keep one'}: give at most "
                f"{most / len(base.train):.3f}"
            )
        chosen = [defective[i] for i in _order(len(defective), seed)[:count]]
        kinds = ", ".join(f"{n} {kind}" for kind, n in sorted(Counter(s.kind for s in chosen).items()))
        where = "they stay in the test set" if self.left else "they are not scored"
        return replace(
            base, train=(*base.train[: len(base.train) - count], *chosen),
            unscored=frozenset() if self.left else frozenset(sample.name for sample in chosen),
            told=(f"{count} of {len(base.train)} training pictures are defective ({kinds}); {where}",),
        )


@dataclass(frozen=True)
class HeldOut(Setting):
    """A share of the training pictures is kept from training, and thresholds are fixed on it."""

    share: float

    def category(self, base: Category, seed: int) -> Category:
        """Fewer training pictures, the others held out."""
        count = round(self.share * len(base.train))
        if count < 2 or count >= len(base.train):
            raise DatasetError(
                f"{self.text}: holds {count} of {len(base.train)} training pictures of {base.name} out; a threshold "
                "needs 2 of them and training 1"
            )
        out = set(_order(len(base.train), seed)[:count])
        return replace(
            base, train=tuple(s for i, s in enumerate(base.train) if i not in out),
            held_out=tuple(s for i, s in enumerate(base.train) if i in out),
        )


@dataclass(frozen=True)
class Corrupted(Setting):
    """Trained on the pictures as they are, tested on corrupted ones (`datasets.corruptions`)."""

    kind: str
    severity: int

    @property
    def training(self) -> str:
        """Nothing."""
        return ""

    def category(self, base: Category, seed: int) -> Category:
        """Masks move with their pictures."""
        if self.kind not in MOVES:
            return base
        return replace(base, move=lambda mask, name: moved(mask, self.kind, self.severity, name, seed))

    def picture(self, picture: np.ndarray, sample: Sample, split: str, seed: int) -> np.ndarray:
        """Only test pictures change."""
        return corrupt(picture, self.kind, self.severity, sample.name, seed) if split == "test" else picture


@dataclass(frozen=True)
class Size(Setting):
    """All pictures as a camera gives them whose shorter side has so many pixels, brought back to their own size."""

    side: int

    def picture(self, picture: np.ndarray, sample: Sample, split: str, seed: int) -> np.ndarray:
        """Averaged down, then up again: the place of every pixel and its mask stay."""
        from PIL import Image

        height, width = picture.shape[:2]
        if self.side > min(height, width):
            raise DatasetError(f"{self.text}: {sample.path} has only {width} x {height} pixels; ask for fewer")
        scale = self.side / min(height, width)
        small = Image.fromarray(picture).resize((round(width * scale), round(height * scale)), Image.Resampling.BOX)
        return np.asarray(small.resize((width, height), Image.Resampling.BICUBIC))


@dataclass(frozen=True)
class MultiClass(Setting):
    """One model fitted on the training pictures of all categories, scored on each category by itself."""

    joint: ClassVar[bool] = True


def joined(base: Category, categories: Sequence[Category], official: int = 0) -> Category:
    """The category with the training and validation pictures of all of them, in the order given.

    official: how many the dataset has; with fewer the figure is marked, since fewer are easier to tell apart.
    Raises DatasetError where there is no other category.
    """
    if len(categories) < 2:
        raise DatasetError(f"multi_class: {base.name} is the only category of {base.dataset}; it needs two")
    names = ", ".join(one.name for one in categories)
    return replace(
        base, train=tuple(s for one in categories for s in one.train),
        validation=tuple(s for one in categories for s in one.validation),
        notes=tuple(
            note if one.name == base.name else f"{one.name}: {note}" for one in categories for note in one.notes
        ) + ((f"multi_class: {len(categories)} of {official} categories",) if len(categories) < official else ()),
        told=(f"one model for {len(categories)} categories: {names}",),
    )


class Seen(Sequence[np.ndarray]):
    """Pictures of some samples as they are seen under a setting, taken by path from those of whole categories."""

    def __init__(
        self, whole: Sequence[Pictures], samples: Sequence[Sample], split: str, setting: Setting, seed: int
    ) -> None:
        places = {sample.path: (one, i) for one in whole for i, sample in enumerate(one.samples)}
        self._places = [places[sample.path] for sample in samples]
        self._samples, self._split, self._setting, self._seed = tuple(samples), split, setting, seed

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index):  # type: ignore[override]
        if isinstance(index, slice):
            part = copy(self)
            part._samples, part._places = self._samples[index], self._places[index]
            return part
        pictures, place = self._places[index]
        return self._setting.picture(pictures[place], self._samples[index], self._split, self._seed)


def parse(text: str) -> Setting:
    """The setting that a text names, in its one spelling. Raises DatasetError with the nearest right name."""
    name, _, value = text.strip().partition("=")
    if name not in NAMES:
        raise DatasetError(f"unknown setting {text!r}{near(name, NAMES)}; there are {', '.join(map(_usage, NAMES))}")
    found = NAMES[name][1](value)
    if found is None:
        raise DatasetError(f"setting {text!r}: write {_usage(name)}")
    return found


def _usage(name: str) -> str:
    return f"{name}={NAMES[name][0]}" if NAMES[name][0] else name


def _order(count: int, seed: int) -> list[int]:
    """A drawn order of so many places; its first ones are the same however many are taken."""
    return np.random.default_rng(seed).permutation(count).tolist()


def _whole(text: str) -> int:
    return int(text) if re.fullmatch(r"[1-9]\d{0,5}", text) else 0


def _share(text: str) -> float:
    return float(text) if re.fullmatch(r"0?\.\d*[1-9]\d*", text) else 0.0


def _shots(value: str) -> Setting | None:
    return Shots(f"shots={count}", count) if (count := _whole(value)) else None


def _contaminated(value: str) -> Setting | None:
    number, _, where = value.partition(":")
    if not (share := _share(number)) or where not in ("", "left") or value.endswith(":"):
        return None
    return Contaminated(f"contaminated={share:g}" + (":left" if where else ""), share, bool(where))


def _held_out(value: str) -> Setting | None:
    return HeldOut(f"held_out={share:g}", share) if (share := _share(value)) else None


def _corrupted(value: str) -> Setting | None:
    kind, _, severity = value.partition(":")
    known = (*KINDS, *MOVES)
    if kind not in known:
        raise DatasetError(f"unknown corruption {kind!r}{near(kind, known)}; there are {', '.join(known)}")
    return Corrupted(f"corrupted={kind}:{severity}", kind, int(severity)) if severity in tuple("12345") else None


def _size(value: str) -> Setting | None:
    return Size(f"size={side}", side) if (side := _whole(value)) else None


def _multi_class(value: str) -> Setting | None:
    return None if value else MultiClass("multi_class")


NAMES: dict[str, tuple[str, Callable[[str], Setting | None]]] = {
    "shots": ("N", _shots), "contaminated": ("SHARE, or SHARE:left where those pictures stay in the test set",
                                             _contaminated),
    "held_out": ("SHARE", _held_out), "corrupted": ("KIND:SEVERITY with a severity from 1 to 5", _corrupted),
    "size": ("N", _size), "multi_class": ("", _multi_class),
}
"""Name -> what stands behind the '=' (nothing: no '='), and what makes the setting of it."""
