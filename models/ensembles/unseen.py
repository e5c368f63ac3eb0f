"""Normal pictures that no member has learnt from, artificial anomalies made from them, and how well maps find those.

What ensembles choose (weights, combiners, the noise of fake features), they choose on these: no test picture, no label.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from models.base import Context, Images, ModelError
from models.nn.pseudo import GRADES, PseudoAnomaly, pseudo_anomalies
from models.nn.textures import Textures
from models.nn.training import generator, split


@dataclass(frozen=True)
class Split:
    """Which training pictures members learn from, and which normal pictures they have not seen."""

    members: Images
    unseen: Images
    held: tuple[int, ...]  # indices of the training pictures held back; none when the data have a validation split
    square: bool = False  # whether members see pictures padded to squares


class Some(Sequence[np.ndarray]):
    """Pictures of another sequence by index, still read on access."""

    def __init__(self, images: Images, indices: Sequence[int]) -> None:
        self.images, self.indices = images, list(indices)

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return Some(self.images, self.indices[index])
        return self.images[self.indices[index]]


def hold_out(train: Images, validation: Images | None, share: float, context: Context) -> Split:
    """The validation split where there is one; else `share` of the training pictures, drawn by the seed, is held back.

    Every ensemble holds back the same pictures, so that all of them can use the same fitted members.
    """
    if validation is not None and len(validation):
        return Split(train, validation, ())
    if not 0 <= share < 1:
        raise ModelError(f"holdout={share} must be at least 0 and below 1: the share of training pictures held back")
    if share == 0:
        return Split(train, Some(train, []), ())
    kept, held = split(len(train), share, context)
    return Split(Some(train, kept), Some(train, held), tuple(held))


def artificial_anomalies(
    unseen: Images, source: str | None, size: tuple[int, int], context: Context
) -> list[PseudoAnomaly]:
    """Two per picture, graded, the same in every ensemble of a category and seed.

    source: of natural textures, `Textures`; None for the harness' own setting. size: of those, (height, width).
    """
    textures = Textures(source or context.extras.get("textures"), size)
    return list(pseudo_anomalies(unseen, textures, generator(context, "pseudo")))


def pixel_quality(maps: np.ndarray, masks: np.ndarray, grades: Sequence[str]) -> dict[str, float]:
    """Average precision of pixels [n, h, w] by grade, each grade's pictures pooled; a grade without pixels is left out.

    Not the area under the ROC curve: with a few hundred anomalous pixels in a picture it is near 1 for every detector.
    """
    from sklearn.metrics import average_precision_score

    found = {}
    for grade in GRADES:
        rows = np.array([name == grade.name for name in grades], bool)
        if masks[rows].any():
            found[grade.name] = float(average_precision_score(masks[rows].ravel(), maps[rows].ravel()))
    return found


def score_quality(normal: np.ndarray, scores: np.ndarray, grades: Sequence[str]) -> dict[str, float]:
    """Average precision of image scores by grade, for members without maps: anomalies' [n] against all normal ones'."""
    from sklearn.metrics import average_precision_score

    found = {}
    for grade in dict.fromkeys(grades):
        own = scores[np.array([name == grade for name in grades], bool)]
        truth = np.concatenate([np.zeros(len(normal)), np.ones(len(own))])
        found[grade] = float(average_precision_score(truth, np.concatenate([normal, own])))
    return found


def overall(by_grade: Mapping[str, float]) -> float:
    """One quality: the mean over grades, so that the many pixels of the plain anomalies do not outweigh the faint."""
    return float(np.mean(list(by_grade.values()))) if by_grade else 0.0
