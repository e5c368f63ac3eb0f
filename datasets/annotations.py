"""Reads what labelling programs export: COCO, LabelMe, VIA and CVAT, as shapes of labels on pictures."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple
from xml.etree import ElementTree

import numpy as np
from PIL import Image, ImageDraw

from datasets.base import DatasetError


class Shape(NamedTuple):
    """form: 'polygon' (corners), 'ellipse' and 'box' (two corners of the box around it), all float [N, 2] as x, y; or
    'mask': bool [h, w] with its upper left corner at `at` (x, y)."""

    label: str
    form: str
    data: np.ndarray
    at: tuple[int, int] = (0, 0)


class Drawn(NamedTuple):
    """What is drawn on one picture; size: its (width, height) as the program saw it, where the export states it."""

    name: str
    size: tuple[int, int] | None
    shapes: list[Shape]


def read_export(path: Path) -> tuple[str, list[Drawn]]:
    """The program's name and every picture that the export lists, those without shapes included.

    path: a JSON file of COCO or VIA, an XML file of CVAT ('for images 1.1'), or a folder of LabelMe files.
    Raises DatasetError naming the file for anything else, and for shapes that are no areas (points, lines, COCO boxes).
    """
    if path.is_dir():
        files = sorted(p for p in path.rglob("*.json") if not p.name.startswith("."))
        if not files:
            raise DatasetError(f"{path}: no LabelMe files (*.json) there; give the export's own JSON or XML file")
        return "LabelMe", [_safely(file, _labelme, _json(file)) for file in files]
    if path.suffix.lower() == ".xml":
        return "CVAT", _safely(path, _cvat, _xml(path))
    raw = _json(path)
    if isinstance(raw, dict) and "annotations" in raw and "images" in raw:
        return "COCO", _safely(path, _coco, raw)
    if isinstance(raw, dict) and isinstance(raw.get("shapes"), list):
        return "LabelMe", [_safely(path, _labelme, raw)]
    if isinstance(raw, dict):
        raw = raw.get("_via_img_metadata", raw)
        if raw and all(isinstance(v, dict) and "regions" in v and "filename" in v for v in raw.values()):
            return "VIA", _safely(path, _via, raw)
    raise DatasetError(f"{path}: neither COCO, LabelMe nor VIA; export in one of these, or as 'CVAT for images 1.1'")


def draw(shapes: Iterable[Shape], size: tuple[int, int]) -> np.ndarray:
    """What the shapes cover of a picture of (width, height): uint8 [height, width], 0 or 255."""
    canvas = Image.new("L", size)
    pen = ImageDraw.Draw(canvas)
    for shape in shapes:
        if shape.form == "mask":
            stamp = Image.fromarray(shape.data.astype(np.uint8) * np.uint8(255))
            canvas.paste(255, shape.at, stamp)
        elif shape.form == "polygon":
            pen.polygon([tuple(p) for p in shape.data.tolist()], fill=255, outline=255)
        else:
            (x0, y0), (x1, y1) = shape.data.min(0).tolist(), shape.data.max(0).tolist()
            (pen.ellipse if shape.form == "ellipse" else pen.rectangle)((x0, y0, x1, y1), fill=255)
    return np.array(canvas)


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise DatasetError(f"{path}: cannot be read as JSON ({error})") from error


def _xml(path: Path) -> ElementTree.Element:
    try:
        text = path.read_text(encoding="utf-8-sig")
        if "<!DOCTYPE" in text or "<!ENTITY" in text:  # entities may grow without bound
            raise ValueError("it declares entities")
        return ElementTree.fromstring(text)
    except (OSError, ValueError, ElementTree.ParseError) as error:
        raise DatasetError(f"{path}: cannot be read as XML ({error})") from error


def _safely(path: Path, read: Callable[[Any], Any], raw: Any) -> Any:
    try:
        return read(raw)
    except DatasetError as error:
        raise DatasetError(f"{path}: {error}") from None
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise DatasetError(f"{path}: not as its program writes it ({type(error).__name__}: {error})") from error


def _points(values: Any) -> np.ndarray:
    points = np.asarray(values, np.float64).reshape(-1, 2)
    if not np.isfinite(points).all():
        raise ValueError("coordinates that are no numbers")
    return points


def _polygon(label: str, values: Any) -> Shape:
    points = _points(values)
    if len(points) < 3:
        raise DatasetError(f"a polygon of {len(points)} points with the label {label!r}")
    return Shape(label, "polygon", points)


def _coco(raw: Mapping[str, Any]) -> list[Drawn]:
    names = {c["id"]: str(c["name"]) for c in raw.get("categories", ())}
    images = {i["id"]: Drawn(str(i["file_name"]), (int(i["width"]), int(i["height"])), []) for i in raw["images"]}
    for entry in raw["annotations"]:
        image, label = images[entry["image_id"]], names[entry["category_id"]]
        parts = entry.get("segmentation")
        if not parts:
            raise DatasetError(f"{image.name}: an annotation of {label!r} is a box without segmentation; a box is no "
                               "mask")
        if isinstance(parts, Mapping):
            image.shapes.append(Shape(label, "mask", _runs(parts)))
        else:
            image.shapes.extend(_polygon(label, part) for part in parts)
    return list(images.values())


def _runs(parts: Mapping[str, Any]) -> np.ndarray:
    """A COCO mask of run lengths, down the columns and beginning with background."""
    height, width = (int(v) for v in parts["size"])
    if isinstance(parts["counts"], str):
        raise DatasetError("a compressed mask; export polygons, or masks as lists of run lengths")
    return _unrolled(parts["counts"], height * width).reshape(width, height).T


def _unrolled(counts: Iterable[int], size: int) -> np.ndarray:
    counts = np.asarray(list(counts), np.int64)
    if (counts < 0).any() or counts.sum() != size:
        raise ValueError(f"run lengths of {counts.sum()} pixels for {size}")
    return np.repeat(np.arange(len(counts)) % 2 == 1, counts)


def _labelme(raw: Mapping[str, Any]) -> Drawn:
    size = (int(raw["imageWidth"]), int(raw["imageHeight"])) if raw.get("imageWidth") else None
    shapes = []
    for entry in raw["shapes"]:
        label, form, points = str(entry["label"]), entry.get("shape_type") or "polygon", _points(entry["points"])
        if form == "polygon":
            shapes.append(_polygon(label, points))
        elif form == "rectangle":
            shapes.append(Shape(label, "box", points))
        elif form == "circle":  # centre and a point on it
            radius = float(np.hypot(*(points[1] - points[0])))
            shapes.append(Shape(label, "ellipse", np.stack([points[0] - radius, points[0] + radius])))
        else:
            raise DatasetError(f"a {form} with the label {label!r} is no area; draw polygons")
    return Drawn(str(raw["imagePath"]).replace("\\", "/"), size, shapes)


def _via(raw: Mapping[str, Any]) -> list[Drawn]:
    out = []
    for entry in raw.values():
        regions = entry["regions"]
        shapes = []
        for region in regions.values() if isinstance(regions, Mapping) else regions:
            area, said = region["shape_attributes"], region.get("region_attributes") or {}
            label = next((str(v) for v in said.values() if v and isinstance(v, str)), "defect")
            if area["name"] == "polygon":
                shapes.append(_polygon(label, np.stack([area["all_points_x"], area["all_points_y"]], 1)))
            elif area["name"] == "rect":
                x, y = area["x"], area["y"]
                shapes.append(Shape(label, "box", _points([[x, y], [x + area["width"] - 1, y + area["height"] - 1]])))
            elif area["name"] in ("circle", "ellipse"):
                half = np.array([area.get("rx", area.get("r")), area.get("ry", area.get("r"))], np.float64)
                if area.get("theta"):
                    raise DatasetError(f"{entry['filename']}: a turned ellipse of {label!r}; draw a polygon")
                centre = np.array([area["cx"], area["cy"]], np.float64)
                shapes.append(Shape(label, "ellipse", np.stack([centre - half, centre + half])))
            else:
                raise DatasetError(f"{entry['filename']}: a {area['name']} of {label!r} is no area; draw polygons")
        out.append(Drawn(str(entry["filename"]), None, shapes))
    return out


def _cvat(raw: ElementTree.Element) -> list[Drawn]:
    out = []
    for image in raw.iter("image"):
        shapes = []
        for node in image:
            label = node.get("label", "defect")
            if node.tag == "polygon":
                shapes.append(_polygon(label, [p.split(",") for p in node.attrib["points"].split(";")]))
            elif node.tag == "box":
                x0, y0, x1, y1 = (float(node.attrib[k]) for k in ("xtl", "ytl", "xbr", "ybr"))
                shapes.append(Shape(label, "box", _points([[x0, y0], [x1 - 1, y1 - 1]])))
            elif node.tag == "ellipse" and float(node.get("rotation", 0)) == 0:
                cx, cy, rx, ry = (float(node.attrib[k]) for k in ("cx", "cy", "rx", "ry"))
                shapes.append(Shape(label, "ellipse", _points([[cx - rx, cy - ry], [cx + rx, cy + ry]])))
            elif node.tag == "mask":
                left, top, width, height = (int(node.attrib[k]) for k in ("left", "top", "width", "height"))
                runs = [int(v) for v in node.attrib["rle"].split(",")]
                shapes.append(Shape(label, "mask", _unrolled(runs, width * height).reshape(height, width), (left, top)))
            elif node.tag != "tag":
                raise DatasetError(f"{image.get('name')}: a {node.tag} of {label!r} is no upright area; draw polygons")
        out.append(Drawn(image.attrib["name"], (int(image.attrib["width"]), int(image.attrib["height"])), shapes))
    if not out:
        raise DatasetError("no <image> in it; export as 'CVAT for images 1.1'")
    return out


def base_name(name: str) -> str:
    """The file's name without folders, whichever sign separates them."""
    return PurePosixPath(name.replace("\\", "/")).name
