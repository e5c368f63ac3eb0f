"""The embedded demo set: made in seconds, the same on every machine, from textures that scikit-image ships.

`demo`: brick, grass and gravel in MVTec AD layout with blended scratches, stains and patches. `demo_loco`: a drawn tray
of parts in MVTec LOCO layout; missing, extra and misplaced parts are logical anomalies whose saturation thresholds
matter, scratches and stains are structural, and a picture may have several mask files.

Files are uncompressed bitmaps: their bytes, and so the data fingerprint, do not depend on a compression library.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.random import Generator, default_rng
from PIL import Image

from datasets.drawing import blob, hexagon, ring, rod, segment, smooth_noise

VERSION = 1
SIDE = 128
COUNTS = {"train": 24, "good": 12, "scratch": 6, "stain": 6, "patch": 6}
TINTS = {"brick": (1.0, 0.82, 0.74), "grass": (0.78, 1.0, 0.72), "gravel": (1.0, 0.97, 0.92)}

TRAY = (128, 160)  # height, width
CELLS = tuple((24 + 40 * row, 26 + 36 * column) for row in range(3) for column in range(4))
LAYOUT = ("rod", "ring", "hexagon", "ring") * 3
RADIUS = 11.0
TRAY_COUNTS = {"train": 30, "validation": 8, "good": 14, "logical_anomalies": 15, "structural_anomalies": 12}
PART_AREA = {"rod": 144, "ring": 296, "hexagon": 261}  # pixels that a drawn part covers
DEFECTS = (
    # A missing part may be anywhere in its compartment: finding as many pixels as the part had is enough.
    *(
        {"defect_name": f"missing_{part}", "pixel_value": 255 - i, "saturation_threshold": PART_AREA[part],
         "relative_saturation": False}
        for i, part in enumerate(("rod", "ring", "hexagon"))
    ),
    # Of two parts in one compartment either one may be called the extra one.
    {"defect_name": "extra", "pixel_value": 252, "saturation_threshold": 0.5, "relative_saturation": True},
    {"defect_name": "misplaced", "pixel_value": 251, "saturation_threshold": 1.0, "relative_saturation": True},
    {"defect_name": "scratch", "pixel_value": 250, "saturation_threshold": 1.0, "relative_saturation": True},
    {"defect_name": "stain", "pixel_value": 249, "saturation_threshold": 1.0, "relative_saturation": True},
)
VALUE = {d["defect_name"]: d["pixel_value"] for d in DEFECTS}


def make(root: Path) -> None:
    """Write `root/demo` and `root/demo_loco`, unless this version of them is whole already.

    Each set is made in a temporary folder and moved into place, so that an interrupted call leaves nothing half-made.
    """
    for name, write in (("demo", _textures), ("demo_loco", _tray_set)):
        build_once(root / name, VERSION, write)


def build_once(target: Path, version: int, write) -> None:
    """Call `write(folder)` into a temporary folder and move it to `target`; nothing when this version is there."""
    marker = ".version"
    if (target / marker).is_file() and (target / marker).read_text() == str(version):
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}-"))
    try:
        write(folder)
        (folder / marker).write_text(str(version))
        folder.chmod(0o755)
        if target.exists():
            shutil.rmtree(target)
        os.replace(folder, target)
    except OSError:
        if not (target / marker).is_file():  # another run may have made it meanwhile
            raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def save(path: Path, image: np.ndarray) -> None:
    """uint8 [H, W, 3] or [H, W] as a bitmap; floats in [0, 1] are scaled."""
    if image.dtype != np.uint8:
        image = np.rint(image.clip(0, 1) * 255).astype(np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path, format="BMP")


# ---------------------------------------------------------------- textures


def _textures(root: Path) -> None:
    from skimage import data

    sources = {name: getattr(data, name)().astype(np.float64) / 255 for name in TINTS}
    for index, name in enumerate(TINTS):
        rng = default_rng([VERSION, index])
        others = [sources[n] for n in TINTS if n != name]
        for i in range(COUNTS["train"]):
            save(root / name / f"train/good/{i:03d}.bmp", _crop(rng, sources[name], TINTS[name]))
        for kind in ("good", "scratch", "stain", "patch"):
            for i in range(COUNTS[kind]):
                image = _crop(rng, sources[name], TINTS[name])
                if kind != "good":
                    image, alpha = _damage(rng, kind, image, others)
                    mask = ((alpha > 0.15) * 255).astype(np.uint8)
                    save(root / name / f"ground_truth/{kind}/{i:03d}_mask.bmp", mask)
                save(root / name / f"test/{kind}/{i:03d}.bmp", image)


def _crop(rng: Generator, texture: np.ndarray, tint: Sequence[float]) -> np.ndarray:
    """A random window in the texture's colour with a little change of light and sensor noise, float64 [S, S, 3]."""
    top, left = rng.integers(0, np.array(texture.shape) - SIDE + 1)
    grey = texture[top : top + SIDE, left : left + SIDE]
    light = rng.uniform(0.92, 1.08) + 0.05 * smooth_noise(rng, (SIDE, SIDE), 64)
    return (grey * light)[..., None] * np.array(tint) + rng.normal(0, 0.01, (SIDE, SIDE, 3))


def _damage(rng: Generator, kind: str, image: np.ndarray, others: Sequence[np.ndarray]
            ) -> tuple[np.ndarray, np.ndarray]:
    """The picture with one blended defect, and the blend weights [S, S]."""
    shape = (SIDE, SIDE)
    if kind == "scratch":
        alpha = 0.75 * segment(shape, rng.uniform(20, SIDE - 20, 2), rng.uniform(0, np.pi), rng.uniform(20, 60),
                               rng.uniform(0.8, 1.8))
        other = np.full(3, rng.choice([0.15, 0.9]))
    elif kind == "stain":
        alpha = rng.uniform(0.3, 0.6) * blob(rng, shape, rng.uniform(20, SIDE - 20, 2), rng.uniform(7, 16))
        other = rng.uniform(0.1, 0.6, 3)
    else:
        alpha = 0.9 * blob(rng, shape, rng.uniform(24, SIDE - 24, 2), rng.uniform(8, 15))
        other = _crop(rng, others[rng.integers(len(others))].T, image.mean((0, 1)) / 0.5)
    return image * (1 - alpha[..., None]) + other * alpha[..., None], alpha


# ---------------------------------------------------------------- tray


def _tray_set(root: Path) -> None:
    rng = default_rng([VERSION, 99])
    base = root / "tray"
    for split, folder in (("train", "train/good"), ("validation", "validation/good"), ("good", "test/good")):
        for i in range(TRAY_COUNTS[split]):
            save(base / folder / f"{i:03d}.bmp", _tray(rng, list(LAYOUT))[0])
    for kind, names in (
        ("logical_anomalies", ("missing", "extra", "misplaced")), ("structural_anomalies", ("scratch", "stain")),
    ):
        for i in range(TRAY_COUNTS[kind]):
            image, masks = _anomalous_tray(rng, names[i % len(names)], count=1 + (i // len(names)) % 2)
            save(base / f"test/{kind}/{i:03d}.bmp", image)
            for j, (name, mask) in enumerate(masks):
                save(base / f"ground_truth/{kind}/{i:03d}/{j:03d}.bmp", (mask * VALUE[name]).astype(np.uint8))
    (base / "defects_config.json").write_text(json.dumps(DEFECTS, indent=1) + "\n")


def _tray(rng: Generator, parts: list[str | None], shift: dict[int, tuple[float, float]] | None = None
          ) -> tuple[np.ndarray, list[np.ndarray]]:
    """A tray with a part in each compartment; the picture and each part's weights [H, W]."""
    height, width = TRAY
    y, x = np.mgrid[:height, :width]
    board = 0.33 + 0.02 * np.sin(y / 3.1 + 2 * smooth_noise(rng, TRAY, 48)) + 0.03 * smooth_noise(rng, TRAY, 40)
    for top in (4, 44, 84):
        walls = (np.abs(y - top) < 1.5) | (np.abs(y - top - 40) < 1.5)
        board = np.where(walls & (x > 8) & (x < width - 8), 0.2, board)
    for left in range(8, width, 36):
        board = np.where((np.abs(x - left) < 1.5) & (y > 4) & (y < 124), 0.2, board)
    image = board[..., None] * np.array([1.0, 0.9, 0.75])
    weights = []
    for i, part in enumerate(parts):
        centre = np.array(CELLS[i]) + rng.uniform(-3, 3, 2) + np.array((shift or {}).get(i, (0, 0)))
        alpha, colour = _part(rng, part, centre)
        shade = 1 + 0.12 * (x - centre[1]) / RADIUS
        image = image * (1 - alpha[..., None]) + alpha[..., None] * shade[..., None] * colour
        weights.append(alpha)
    return image * rng.uniform(0.94, 1.06) + rng.normal(0, 0.012, (*TRAY, 3)), weights


def _part(rng: Generator, part: str | None, centre: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    angle = rng.uniform(0, np.pi)
    match part:
        case "rod":
            return rod(TRAY, centre, angle, 13.0, 2.4), np.array([0.75, 0.75, 0.8])
        case "ring":
            return ring(TRAY, centre, RADIUS, 5.2), np.array([0.85, 0.72, 0.4])
        case "hexagon":
            return hexagon(TRAY, centre, angle, 9.6), np.array([0.62, 0.66, 0.7])
    return np.zeros(TRAY), np.zeros(3)


def _anomalous_tray(rng: Generator, name: str, count: int) -> tuple[np.ndarray, list[tuple[str, np.ndarray]]]:
    """A tray with `count` anomalies of one kind; the picture and (defect name, mask bool [H, W]) of each region."""
    cells = [int(c) for c in rng.permutation(len(CELLS))]
    parts: list[str | None] = list(LAYOUT)
    masks: list[tuple[str, np.ndarray]] = []
    if name == "missing":
        for cell in cells[:count]:
            parts[cell] = None
            masks.append((f"missing_{LAYOUT[cell]}", _compartment(cell)))
        return _tray(rng, parts)[0], masks
    if name == "misplaced":
        for first in cells[:count]:
            second = next(c for c in cells[count:] if LAYOUT[c] != LAYOUT[first])
            cells.remove(second)
            parts[first], parts[second] = parts[second], parts[first]
            masks += [("misplaced", np.array([])), ("misplaced", np.array([]))]
        image, weights = _tray(rng, parts)
        wrong = [i for i, part in enumerate(parts) if part != LAYOUT[i]]
        return image, [("misplaced", weights[i] > 0.5) for i in wrong]
    image, weights = _tray(rng, parts, dict.fromkeys(cells[:count], (-4.0, -3.0)) if name == "extra" else None)
    for cell in cells[:count]:
        if name == "extra":
            alpha, colour = _part(rng, LAYOUT[cell], np.array(CELLS[cell]) + np.array([6, 5]))
            image = image * (1 - alpha[..., None]) + alpha[..., None] * colour
            masks.append(("extra", (alpha > 0.5) | (weights[cell] > 0.5)))
            continue
        centre = np.array(CELLS[cell]) + rng.uniform(-6, 6, 2)
        if name == "scratch":
            alpha = 0.8 * segment(TRAY, centre, rng.uniform(0, np.pi), rng.uniform(12, 26), rng.uniform(0.8, 1.3))
            colour = np.full(3, rng.choice([0.08, 0.95]))
        else:
            alpha = rng.uniform(0.5, 0.75) * blob(rng, TRAY, centre, rng.uniform(5, 9))
            colour = rng.uniform(0.05, 0.3, 3)
        image = image * (1 - alpha[..., None]) + alpha[..., None] * colour
        masks.append((name, alpha > 0.15))
    return image, masks


def _compartment(cell: int) -> np.ndarray:
    y, x = np.mgrid[: TRAY[0], : TRAY[1]]
    return (np.abs(y - CELLS[cell][0]) < 17) & (np.abs(x - CELLS[cell][1]) < 15)
