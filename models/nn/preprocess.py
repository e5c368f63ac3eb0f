"""Resize, crop and normalise on the device, and the way back from a model's map to the picture's own size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from models.nn.transfer import together

Aspect = Literal["squash", "short"]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def imagenet(x: Tensor) -> Tensor:
    """Pictures [B, 3, h, w] in [0, 1] with ImageNet's mean subtracted and divided by its standard deviation."""
    mean, std = _imagenet(x.device, x.dtype)
    return (x - mean) / std


@lru_cache(maxsize=8)
def _imagenet(device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation [1, 3, 1, 1], brought to a device once."""
    with torch.inference_mode(False):  # a tensor made in inference mode could not take part in a later training
        both = torch.tensor([IMAGENET_MEAN, IMAGENET_STD], device=device, dtype=dtype)
        return both[0].view(1, 3, 1, 1), both[1].view(1, 3, 1, 1)


@dataclass(frozen=True)
class Preprocess:
    """uint8 pictures of any size -> float32 [B, 3, h, w].

    size: (height, width) after the resize.
    crop: (height, width) of the centre crop after the resize, or None.
    aspect: 'squash': both sides are brought to `size`, whatever the picture's own ratio. 'short': the shorter side is,
        the ratio is kept, and the centre is cropped to `crop`, or to `size`; of a long picture the ends are not seen.
        On square pictures the two are the same.
    normalise: subtract ImageNet's mean and divide by its standard deviation; otherwise values stay in [0, 1].
    """

    size: tuple[int, int]
    crop: tuple[int, int] | None = None
    normalise: bool = True
    antialias: bool = True
    aspect: Aspect = "squash"

    @property
    def output(self) -> tuple[int, int]:
        """(height, width) of the network's input."""
        return self.crop or self.size

    def _resize(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) that a picture of this size has after the resize."""
        if self.aspect == "squash":
            return self.size
        short = min(height, width)
        return self.size[0] * height // short, self.size[1] * width // short

    def _box(self, resized: tuple[int, int]) -> tuple[int, int, int, int]:
        """Top, left, height and width of what the network sees of a resized picture."""
        (height, width), (h, w) = resized, self.output
        return round((height - h) / 2), round((width - w) / 2), h, w

    def __call__(self, images: Sequence[np.ndarray], device: torch.device | str = "cpu") -> Tensor:
        """Batch of pictures uint8 [H, W, 3] (sizes may differ) -> float32 [B, 3, h, w] on `device`."""
        arrived = together(device, *map(torch.tensor, images))
        return self.normalised(torch.stack([self._resized(image) for image in arrived]))

    def normalised(self, batch: Tensor) -> Tensor:
        """float32 [B, 3, h, w] in [0, 1] -> normalised as configured."""
        return imagenet(batch) if self.normalise else batch

    def _resized(self, image: Tensor) -> Tensor:
        x = image.permute(2, 0, 1).unsqueeze(0).float().div_(255)
        size = self._resize(*x.shape[-2:])
        if x.shape[-2:] != size:
            x = F.interpolate(x, size, mode="bilinear", align_corners=False, antialias=self.antialias)
        if size != self.output:
            top, left, h, w = self._box(size)
            x = x[..., top : top + h, left : left + w]
        return x[0]

    def restore(
        self, maps: Tensor, sizes: Sequence[tuple[int, int]], to: tuple[int, int] | None = None
    ) -> list[Tensor]:
        """Maps [B, h', w'] of the network's field of view -> one float32 map of each whole picture.

        sizes: the pictures' own (height, width). to: the size of every map, where it shall not be the picture's own.
        Upsampled bilinearly to the input size; a crop is undone by repeating the nearest edge value, since the
        method saw nothing there; then resized bilinearly.
        """
        x = maps.float().unsqueeze(1)
        if (self.crop or self.aspect == "short") and x.shape[-2:] != self.output:
            x = F.interpolate(x, self.output, mode="bilinear", align_corners=False)
        found = []
        for one, size in zip(x.split(1), sizes, strict=True):
            height, width = self._resize(*size)
            if self.crop or self.aspect == "short":
                top, left, h, w = self._box((height, width))
                one = F.pad(one, (left, width - w - left, top, height - h - top), mode="replicate")
            if one.shape[-2:] != (to or size):
                one = F.interpolate(one, to or size, mode="bilinear", align_corners=False)
            found.append(one[0, 0])
        return found

    def mask(self, mask: np.ndarray) -> np.ndarray:
        """Ground truth at the network's input: nearest resize and the same crop (`--metric-size model`).

        bool [H, W], or whole numbers below 2^24, such as those of regions; the type stays.
        """
        x = torch.from_numpy(np.ascontiguousarray(mask)).float()[None, None]
        size = self._resize(*mask.shape)
        x = F.interpolate(x, size, mode="nearest-exact")[0, 0]
        top, left, h, w = self._box(size)
        return x[top : top + h, left : left + w].numpy().astype(mask.dtype)
