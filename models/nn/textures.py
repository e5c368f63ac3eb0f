"""Natural pictures that artificial defects are made from: a folder (ImageNet, DTD), or the ones scikit-image ships."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from models.base import ModelError

EMBEDDED = "embedded"
SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm"}
CACHE_BYTES = 1152 * 2**20  # decoded pictures kept in memory: the 5,640 of DTD at 256 px fit in
LISTED = 100_000  # no more folders are listed once so many pictures were found (ImageNet has 1.3 million)

# scikit-image's own pictures that need no download; each is cut into ten, the whole and a 3x3 raster of half-size crops
EMBEDDED_NAMES = (
    "astronaut", "brick", "camera", "chelsea", "coffee", "coins", "grass", "gravel", "hubble_deep_field",
    "immunohistochemistry", "moon", "page", "retina", "rocket",
)


class Textures:
    """Draws natural pictures of one size.

    source: a folder, searched with its subfolders; or 'embedded' for scikit-image's pictures.
    size: (height, width) that every picture is resized to, aspect ratio not kept.
    seed: chooses which pictures of a large folder are used. most: how many of them at most; None takes as many as the
        cache holds, so that each is decoded once.

    Raises ModelError when there is no source, the folder is missing or holds fewer than two pictures, or nothing in it
    can be read. Grey pictures count with three equal channels; unreadable files are skipped and listed in `unreadable`.
    """

    def __init__(self, source: str | None, size: tuple[int, int], *, seed: int = 0, most: int | None = None) -> None:
        if not source:
            raise ModelError(
                "no natural pictures to make artificial defects from: set `textures` to a folder of pictures (ImageNet "
                f"as in RB-AE, or the DTD textures as in DRAEM), or to '{EMBEDDED}' for the few that scikit-image ships"
            )
        self.size = size
        self.unreadable: list[str] = []
        self._cache: dict[int, Tensor] = {}
        self._cache_items = CACHE_BYTES // (3 * size[0] * size[1])
        self._chosen: dict[str, object] = {}
        if source == EMBEDDED:
            self.name = EMBEDDED
            self._load: list[tuple[str, Callable[[], np.ndarray]]] = [
                (f"{name}/{part}", lambda name=name, part=part: _embedded(name, part))
                for name in EMBEDDED_NAMES for part in range(10)
            ]
            return
        folder = Path(source).expanduser()
        if not folder.is_dir():
            raise ModelError(f"textures: no folder {folder}; give a folder of natural pictures, or '{EMBEDDED}'")
        self.name = folder.resolve().name
        names, complete = _listed(str(folder), seed, folder.stat().st_mtime_ns)
        if len(names) < 2:
            found = "one picture, which every defect would be made of," if names else "no picture"
            raise ModelError(f"textures: {found} ({', '.join(sorted(SUFFIXES))}) under {folder}; give a folder of many "
                             f"natural pictures, or '{EMBEDDED}'")
        most = max(2, self._cache_items) if most is None else most
        if len(names) > most or not complete:
            self._chosen = {"of": len(names) if complete else f"more than {len(names)}", "seed": seed}
            order = np.random.default_rng([seed, len(names)]).permutation(len(names))[:most]
            names = sorted(names[i] for i in order)
        self._load = [(name, lambda name=name: _decode(folder / name)) for name in names]

    def __len__(self) -> int:
        """How many pictures are drawn from."""
        return len(self._load)

    def draw(self, count: int, generator: Generator) -> Tensor:
        """`count` pictures, uniformly with repetition: float32 [count, 3, H, W] in [0, 1] on the CPU.

        A file that cannot be read is dropped and another is drawn.
        """
        pictures: list[Tensor] = []
        while len(pictures) < count:
            index = int(torch.randint(len(self._load), (1,), generator=generator))
            picture = self._picture(index)
            if picture is not None:
                pictures.append(picture)
        return torch.stack(pictures).float().div_(255)

    def each(self) -> Iterator[Tensor]:
        """Every picture that can be read, once: uint8 [3, H, W]."""
        found = (self._picture(i) for i in range(len(self)))
        return (picture for picture in found if picture is not None)

    def _picture(self, index: int) -> Tensor | None:
        if index in self._cache:
            return self._cache[index]
        name, load = self._load[index]
        try:
            array = load()
        except (OSError, ValueError, SyntaxError) as error:  # what Pillow raises for broken files
            if name not in self.unreadable:
                self.unreadable.append(name)
            if len(self.unreadable) == len(self._load):
                raise ModelError(f"textures: none of the {len(self._load)} pictures of {self.name} can be read; "
                                 f"the last: {name}: {error}") from error
            return None
        picture = torch.from_numpy(np.ascontiguousarray(array)).permute(2, 0, 1)[None].float()
        picture = F.interpolate(picture, self.size, mode="bilinear", align_corners=False, antialias=True)[0]
        picture = picture.round_().clamp_(0, 255).to(torch.uint8)
        if len(self._cache) < self._cache_items:
            self._cache[index] = picture
        return picture

    def describe(self) -> dict[str, object]:
        """For the record: the source's name, how many pictures (of how many, by which seed, where not all are used), a
        hash of their names, and what could not be read."""
        names = hashlib.sha256("\n".join(name for name, _ in self._load).encode()).hexdigest()[:16]
        return {
            "source": self.name, "pictures": len(self._load), **self._chosen, "names_sha256": names,
            "unreadable": self.unreadable[:20],
        }


@lru_cache(maxsize=4)
def _listed(folder: str, seed: int, changed: int) -> tuple[list[str], bool]:
    """Names of the pictures below `folder`, sorted, and whether these are all.

    Folders are listed in an order drawn from `seed` until LISTED pictures were found: a tree of a million files is not
    walked, and what is found depends on the seed and the tree alone. changed: when the folder was, for the cache.
    """
    random = np.random.default_rng(seed)
    found: list[str] = []
    waiting = [""]
    while waiting and len(found) < LISTED:
        inner = waiting.pop(int(random.integers(len(waiting))))
        folders = []
        with os.scandir(Path(folder, inner)) as entries:
            for entry in entries:
                name = f"{inner}/{entry.name}" if inner else entry.name
                if entry.is_dir(follow_symlinks=False):
                    folders.append(name)
                elif os.path.splitext(entry.name)[1].lower() in SUFFIXES and entry.is_file():
                    found.append(name)
        waiting += sorted(folders)
    return sorted(found), not waiting


def _decode(path: Path) -> np.ndarray:
    from PIL import Image

    with Image.open(path) as picture:
        return np.array(picture.convert("RGB"))


def _embedded(name: str, part: int) -> np.ndarray:
    """The whole of a scikit-image picture (part 0) or one of nine overlapping crops of half its sides; uint8 RGB."""
    import skimage.data

    array = getattr(skimage.data, name)()
    if array.ndim == 2:
        array = np.repeat(array[..., None], 3, axis=2)
    if part:
        height, width = array.shape[:2]
        row, column = divmod(part - 1, 3)
        top, left = row * height // 4, column * width // 4
        array = array[top : top + height // 2, left : left + width // 2]
    return array[..., :3]
