"""Facts about the public datasets: what they are, categories, official counts and picture sizes.

MVTec AD: Bergmann et al., CVPR 2019, table 1. MVTec LOCO AD: Bergmann et al., IJCV 2022, table 1, but for
splicing_connectors, where the released archive holds 360 and 60 pictures and the paper counts 354 and 59. VisA: its
repository's table, with nine tenths of the normal pictures in the training part of its one-class split. MPDD, BTAD,
MVTec 3D-AD and KolektorSDD2: counts of the released archives; the papers' totals are checked by a test, as those of
MVTec AD (3,629 and 1,725) and LOCO (1,778, 305 and 1,568). Of MVTec AD 2 and Real-IAD the categories only.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from datasets.base import Category


class Official(NamedTuple):
    """Counts of a category's pictures, and (width, height) of each; None is what is not stated.

    test: by kind; 'defective' is all kinds but good, 'all' every test picture.
    """

    train: int | None = None
    validation: int | None = None
    test: Mapping[str, int] = MappingProxyType({})
    size: tuple[int, int] | None = None


class About(NamedTuple):
    """What a dataset is, how many pictures it has, and its licence."""

    what: str
    pictures: str
    licence: str


NC_SA = "CC BY-NC-SA 4.0"
ABOUT = {
    "mvtec_ad": About("MVTec AD: 10 objects, 5 textures", "5,354", NC_SA),
    "mvtec_loco": About("MVTec LOCO AD: structural and logical anomalies", "3,651", NC_SA),
    "visa": About("VisA: 12 objects, one-class split", "10,821", "CC BY 4.0"),
    "mvtec_ad_2": About("MVTec AD 2: 8 hard categories, public test part", "8,004, some private", NC_SA),
    "btad": About("BTAD: 3 industrial products", "2,540", NC_SA),
    "mpdd": About("MPDD: painted metal parts", "1,346", NC_SA),
    "mvtec_3d": About("MVTec 3D-AD: RGB pictures of 10 objects", "4,147", NC_SA),
    "kolektor_sdd2": About("KolektorSDD2: one surface", "3,335", NC_SA),
    "real_iad": About("Real-IAD: 30 objects from 5 views", "151,050", NC_SA),
}


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

OFFICIAL |= {
    "visa": {
        name: Official(train, 0, {"good": good, "defective": 100}) for name, train, good in (
            ("candle", 900, 100), ("capsules", 542, 60), ("cashew", 450, 50), ("chewinggum", 453, 50),
            ("fryum", 450, 50), ("macaroni1", 900, 100), ("macaroni2", 900, 100), ("pcb1", 904, 100),
            ("pcb2", 901, 100), ("pcb3", 905, 101), ("pcb4", 904, 101), ("pipe_fryum", 450, 50),
        )
    },
    "mvtec_ad_2": dict.fromkeys(
        ("can", "fabric", "fruit_jelly", "rice", "sheet_metal", "vial", "wallplugs", "walnuts"), Official()
    ),
    "btad": {
        "01": Official(400, 0, {"good": 21, "defective": 49}), "02": Official(399, 0, {"good": 30, "defective": 200}),
        "03": Official(1000, 0, {"good": 400, "defective": 41}),
    },
    "mpdd": {
        "bracket_black": Official(289, 0, {"good": 32, "defective": 47}),
        "bracket_brown": Official(185, 0, {"good": 26, "defective": 51}),
        "bracket_white": Official(110, 0, {"good": 30, "defective": 30}),
        "connector": Official(128, 0, {"good": 30, "defective": 14}),
        "metal_plate": Official(54, 0, {"good": 26, "defective": 71}),
        "tubes": Official(122, 0, {"good": 32, "defective": 69}),
    },
    "mvtec_3d": {
        name: Official(train, None, {"all": test}) for name, train, test in (
            ("bagel", 244, 110), ("cable_gland", 223, 108), ("carrot", 286, 159), ("cookie", 210, 131),
            ("dowel", 288, 130), ("foam", 236, 100), ("peach", 361, 132), ("potato", 300, 114), ("rope", 298, 101),
            ("tire", 210, 112),
        )
    },
    "kolektor_sdd2": {"surface": Official(2085, 0, {"good": 894, "defective": 110})},
    "real_iad": dict.fromkeys((
        "audiojack", "bottle_cap", "button_battery", "end_cap", "eraser", "fire_hood", "mint", "mounts", "pcb",
        "phone_battery", "plastic_nut", "plastic_plug", "porcelain_doll", "regulator", "rolled_strip_base",
        "sim_card_set", "switch", "tape", "terminalblock", "toothbrush", "toy_brick", "toy", "transistor1", "u_block",
        "usb_adaptor", "usb", "vcpill", "wooden_beads", "woodstick", "zipper",
    ), Official()),
}

PRIVATE = {
    "mvtec_ad_2_private": "mvtec_ad_2", "mvtec_ad_2_private_mixed": "mvtec_ad_2",
}
"""Parts whose ground truth is not published, and the dataset that is measured instead."""

TEXTURES = ("carpet", "grid", "leather", "tile", "wood")


def departures(category: Category, size: tuple[int, int]) -> tuple[str, ...]:
    """How a category differs from the official one: counts per split and the size (width, height) of its pictures.

    Empty for the official data and for datasets that have no official counts.
    """
    official = OFFICIAL.get(category.dataset, {}).get(category.name)
    if official is None:
        return ()
    kinds = Counter(s.kind for s in category.test)
    kinds |= {"defective": kinds.total() - kinds["good"], "all": kinds.total()}
    found = {
        "train": (len(category.train), official.train),
        "validation": (len(category.validation), official.validation),
        **{f"test {kind.replace('_', ' ')}": (kinds[kind], count) for kind, count in official.test.items()},
    }
    notes = [
        f"reduced data: {name} {have} of {count}" if have < count else f"other data: {name} {have}, officially {count}"
        for name, (have, count) in found.items() if count is not None and have != count
    ]
    if official.size and size != official.size:
        notes.append("reduced data: pictures {}x{} of {}x{}".format(*size, *official.size))
    return tuple(notes)
