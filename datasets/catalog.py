"""Facts about the public datasets: categories, official counts and picture sizes.

MVTec AD: Bergmann et al., CVPR 2019, table 1. MVTec LOCO AD: Bergmann et al., IJCV 2022, table 1, but for
splicing_connectors, where the released archive holds 360 and 60 pictures and the paper counts 354 and 59. The totals
(3,629 and 1,725; 1,778, 305 and 1,568) are checked by a test. Archives and their checksums as in anomalib 2.7.
"""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

from datasets.base import Category


class Official(NamedTuple):
    """Counts of a category's pictures, and (width, height) of each."""

    train: int
    validation: int
    test: dict[str, int]
    size: tuple[int, int]


def _ad(train: int, good: int, defective: int, side: int) -> Official:
    return Official(train, 0, {"good": good, "defective": defective}, (side, side))


def _loco(train: int, validation: int, good: int, structural: int, logical: int, width: int, height: int) -> Official:
    test = {"good": good, "structural_anomalies": structural, "logical_anomalies": logical}
    return Official(train, validation, test, (width, height))


OFFICIAL: dict[str, dict[str, Official]] = {
    "mvtec_ad": {
        "bottle": _ad(209, 20, 63, 900), "cable": _ad(224, 58, 92, 1024), "capsule": _ad(219, 23, 109, 1000),
        "carpet": _ad(280, 28, 89, 1024), "grid": _ad(264, 21, 57, 1024), "hazelnut": _ad(391, 40, 70, 1024),
        "leather": _ad(245, 32, 92, 1024), "metal_nut": _ad(220, 22, 93, 700), "pill": _ad(267, 26, 141, 800),
        "screw": _ad(320, 41, 119, 1024), "tile": _ad(230, 33, 84, 840), "toothbrush": _ad(60, 12, 30, 1024),
        "transistor": _ad(213, 60, 40, 1024), "wood": _ad(247, 19, 60, 1024), "zipper": _ad(240, 32, 119, 1024),
    },
    "mvtec_loco": {
        "breakfast_box": _loco(351, 62, 102, 90, 83, 1600, 1280),
        "juice_bottle": _loco(335, 54, 94, 94, 142, 800, 1600),
        "pushpins": _loco(372, 69, 138, 81, 91, 1700, 1000),
        "screw_bag": _loco(360, 60, 122, 82, 137, 1600, 1100),
        "splicing_connectors": _loco(360, 60, 119, 85, 108, 1700, 850),
    },
}

TEXTURES = ("carpet", "grid", "leather", "tile", "wood")


def departures(category: Category, size: tuple[int, int]) -> tuple[str, ...]:
    """How a category differs from the official one: counts per split and the size (width, height) of its pictures.

    Empty for the official data and for datasets that have no official counts.
    """
    official = OFFICIAL.get(category.dataset, {}).get(category.name)
    if official is None:
        return ()
    kinds = Counter(s.kind for s in category.test)
    if category.dataset == "mvtec_ad":
        kinds = Counter({"good": kinds["good"], "defective": kinds.total() - kinds["good"]})
    found = {
        "train": (len(category.train), official.train),
        "validation": (len(category.validation), official.validation),
        **{f"test {kind.replace('_', ' ')}": (kinds[kind], count) for kind, count in official.test.items()},
    }
    notes = [
        f"reduced data: {name} {have} of {count}" if have < count else f"other data: {name} {have}, officially {count}"
        for name, (have, count) in found.items() if have != count
    ]
    if size != official.size:
        notes.append("reduced data: pictures {}x{} of {}x{}".format(*size, *official.size))
    return tuple(notes)
