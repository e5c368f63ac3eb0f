"""Resize, crop and normalise on the device, and the way back from a model's map to the picture's own size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

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

    size: (height, width) after the resize; the aspect ratio is not kept, as in the papers.
    crop: (height, width) of the centre crop after the resize, or None.
    normalise: subtract ImageNet's mean and divide by its standard deviation; otherwise values stay in [0, 1].
    """

    size: tuple[int, int]
    crop: tuple[int, int] | None = None
    normalise: bool = True
    antialias: bool = True

    @property
    def output(self) -> tuple[int, int]:
        """(height, width) of the network's input."""
        return self.crop or self.size

    def _box(self) -> tuple[int, int, int, int]:
        (height, width), (h, w) = self.size, self.output
        top, left = (height - h) // 2, (width - w) // 2
        return top, left, h, w

    def __call__(self, images: Sequence[np.ndarray], device: torch.device | str = "cpu") -> Tensor:
        """Batch of pictures uint8 [H, W, 3] (sizes may differ) -> float32 [B, 3, h, w] on `device`."""
        return self.normalised(torch.stack([self._resized(image, device) for image in images]))

    def normalised(self, batch: Tensor) -> Tensor:
        """float32 [B, 3, h, w] in [0, 1] -> normalised as configured."""
        return imagenet(batch) if self.normalise else batch

    def _resized(self, image: np.ndarray, device: torch.device | str) -> Tensor:
        x = torch.tensor(image).to(device).permute(2, 0, 1).unsqueeze(0).float().div_(255)
        if x.shape[-2:] != self.size:
            x = F.interpolate(x, self.size, mode="bilinear", align_corners=False, antialias=self.antialias)
        if self.crop:
            top, left, h, w = self._box()
            x = x[..., top : top + h, left : left + w]
        return x[0]

    def restore(self, maps: Tensor, sizes: Sequence[tuple[int, int]]) -> list[Tensor]:
        """Maps [B, h', w'] of the network's field of view -> one float32 [H, W] per picture size in `sizes`.

        Upsampled bilinearly to the input size; a crop is undone by repeating the nearest edge value, since the
        method saw nothing there; then resized bilinearly to the picture.
        """
        x = maps.float().unsqueeze(1)
        if self.crop:
            top, left, h, w = self._box()
            if x.shape[-2:] != (h, w):
                x = F.interpolate(x, (h, w), mode="bilinear", align_corners=False)
            height, width = self.size
            x = F.pad(x, (left, width - w - left, top, height - h - top), mode="replicate")
        return [
            (x[i : i + 1] if x.shape[-2:] == size
             else F.interpolate(x[i : i + 1], size, mode="bilinear", align_corners=False))[0, 0]
            for i, size in enumerate(sizes)
        ]

    def mask(self, mask: np.ndarray) -> np.ndarray:
        """Ground truth bool [H, W] at the network's input: nearest resize and the same crop (`--metric-size model`)."""
        x = torch.from_numpy(np.ascontiguousarray(mask)).float()[None, None]
        x = F.interpolate(x, self.size, mode="nearest-exact")[0, 0] > 0.5
        top, left, h, w = self._box()
        return x[top : top + h, left : left + w].numpy()
