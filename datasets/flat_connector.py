"""A drawn stand-in for the flat connector of the ensemble thesis (section 5.3), in MVTec LOCO layout.

The real pictures (steel connectors with holes on black cloth) are not published. This set carries the same six kinds
of defects, so that the whole line can be tested on them. It says nothing about the real class: its numbers are never
put beside real ones.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from numpy.random import Generator, default_rng

from datasets.demo import build_once, save
from datasets.drawing import blob, disc, rectangle, segment, smooth_noise

NAME, CATEGORY = "demo_flat_connector", "flat_connector"
VERSION = 1
SHAPE = (96, 192)  # height, width
HALF = (32.0, 80.0)  # half height and half width of the plate
HOLES = tuple((row, column) for row in (-15.0, 15.0) for column in (-60.0, -30.0, 0.0, 30.0, 60.0))  # from its centre
RADIUS = 6.0
COUNTS = {"train/good": 60, "validation/good": 20, "test/good": 20}
ANOMALIES = 20  # of either type
STRUCTURAL = ("edge_damage", "cut_corner", "scratch")
LOGICAL = ("missing_hole", "additional_hole", "wrong_hole_size")
# The closed hole's mask covers the place with its tolerance; finding as many pixels as a hole has is enough.
DEFECTS = tuple(
    {
        "defect_name": name,
        "pixel_value": 255 - i,
        "saturation_threshold": round(np.pi * RADIUS**2) if name == "missing_hole" else 1.0,
        "relative_saturation": name != "missing_hole",
    }
    for i, name in enumerate(LOGICAL + STRUCTURAL)
)
VALUE = {d["defect_name"]: d["pixel_value"] for d in DEFECTS}
PLACE = 1.6 * RADIUS


def make(root: Path) -> None:
    """Write `root/demo_flat_connector`, unless this version of it is whole already; about two seconds."""
    build_once(root / NAME, VERSION, _write)


def _write(root: Path) -> None:
    rng, base = default_rng([VERSION, 53]), root / CATEGORY
    for folder, count in COUNTS.items():
        for i in range(count):
            save(base / folder / f"{i:03d}.bmp", draw(rng)[0])
    for kind, names in (("structural_anomalies", STRUCTURAL), ("logical_anomalies", LOGICAL)):
        for i in range(ANOMALIES):
            # every third round two defects at once, the second of another name
            wanted = [names[(i + j) % len(names)] for j in range(1 + (i // len(names)) % 3 // 2)]
            image, masks = draw(rng, wanted)
            save(base / f"test/{kind}/{i:03d}.bmp", image)
            for j, (name, mask) in enumerate(zip(wanted, masks, strict=True)):
                save(base / f"ground_truth/{kind}/{i:03d}/{j:03d}.bmp", (mask * VALUE[name]).astype(np.uint8))
    (base / "defects_config.json").write_text(json.dumps(DEFECTS, indent=1) + "\n")


def draw(rng: Generator, defects: list[str] | tuple[str, ...] = ()) -> tuple[np.ndarray, list[np.ndarray]]:
    """A plate on cloth with the named defects; float64 [H, W, 3] in about [0, 1], and a bool mask [H, W] of each."""
    centre = np.array(SHAPE) / 2 + rng.uniform(-3, 3, 2)
    plate = rectangle(SHAPE, centre, *HALF)
    holes = [disc(SHAPE, centre + np.array(hole), RADIUS) for hole in HOLES]
    places = rng.permutation(len(HOLES))
    paint, masks = np.zeros(SHAPE), []
    metal = 0.62 + 0.05 * smooth_noise(rng, SHAPE, 48) + 0.015 * np.sin(np.arange(SHAPE[0]) * 1.7)[:, None]
    for i, name in enumerate(defects):
        place = places[i]
        hole = centre + np.array(HOLES[place])
        match name:
            case "missing_hole":
                paint = np.maximum(paint, disc(SHAPE, hole, RADIUS + 1))
                holes[place] = np.zeros(SHAPE)
                mask = disc(SHAPE, hole, PLACE) > 0.5
            case "wrong_hole_size":
                other = disc(SHAPE, hole, RADIUS * rng.choice([0.5, 1.5]))
                mask = np.abs(other - holes[place]) > 0.5
                holes[place] = other
            case "additional_hole":
                between = centre + np.array([0.0, rng.choice([-45.0, -15.0, 15.0, 45.0])]) + rng.uniform(-4, 4, 2)
                holes.append(disc(SHAPE, between, RADIUS))
                mask = holes[-1] > 0.5
            case "edge_damage":
                side = centre + np.array([rng.choice([-1, 1]) * HALF[0], rng.uniform(-60, 60)])
                bite = blob(rng, SHAPE, side, rng.uniform(5, 9))
                mask = (bite > 0.5) & (plate > 0.5)
                plate = plate * (1 - bite)
            case "cut_corner":
                y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
                sign, size = rng.choice([-1, 1], 2), rng.uniform(10, 18)
                depth = (y - centre[0]) * sign[0] - HALF[0] + (x - centre[1]) * sign[1] - HALF[1] + size
                cut = (depth + 0.5).clip(0, 1)
                mask = (cut > 0.5) & (plate > 0.5)
                plate = plate * (1 - cut)
            case "scratch":
                along = centre + np.array([rng.uniform(-4, 4), rng.uniform(-50, 50)])
                line = segment(SHAPE, along, rng.uniform(-0.5, 0.5), rng.uniform(20, 50), rng.uniform(1.2, 2.2))
                mask = (line > 0.3) & (plate > 0.5) & (np.maximum.reduce(holes) < 0.5)
                metal = metal * (1 - line) + line * rng.choice([0.25, 0.95])
            case _:
                raise ValueError(f"unknown defect {name!r}")
        masks.append(mask)
    metal = metal * (1 - 0.12 * paint)  # the paint over a filled hole is not quite the metal's grey
    cover = plate * (1 - np.maximum.reduce(holes))
    cloth = 0.07 + 0.02 * smooth_noise(rng, SHAPE, 6)
    grey = cloth * (1 - cover) + metal * cover
    image = grey[..., None] * np.array([0.97, 1.0, 1.03]) * rng.uniform(0.94, 1.06)
    return image + rng.normal(0, 0.01, (*SHAPE, 3)), masks
