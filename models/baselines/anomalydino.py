"""AnomalyDINO (Damm et al., WACV 2025; arXiv 2405.14529): nearest neighbours among DINOv2's patches, no training.

Compared with the authors' code (dammsi/AnomalyDINO): the same in the bicubic resize of the shorter side, the crop at
the right and lower edge to whole patches, DINOv2 ViT-S/14 without registers (its last block and norm) with DINOv2's
own position embeddings, eight rotations of every reference picture about its centre with mirrored borders, the cosine
distance to the nearest reference patch, the foreground mask on test pictures of the categories that they list, the
mean of the highest 1 % of the patches as image score, and the map, brought bilinearly to the picture's size and
smoothed with sigma 4 there. Left: their rotation is of 8-bit pictures by OpenCV, ours by SciPy, rounded to 8 bits too;
their search is by faiss, ours exact by matrix products; in an ensemble, pictures of several sizes in one batch get
maps of the largest. anomalib's model differs: 252 x 252 pixels, no rotations, the mask on references too, a map of
nearest cells.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from models.base import Config, Context, Detector, Images, ModelError, Prediction, Progress, no_progress
from models.nn.neighbours import knn
from models.nn.preprocess import Preprocess
from models.nn.smooth import gaussian_smooth
from models.nn.transfer import together
from models.registry import register
from models.vit import VitTokens

MASKED = {"mvtec_ad": ("capsule", "hazelnut", "pill", "screw", "toothbrush")}
"""Categories whose background the authors mask (`masking_default` in their code, found with their masking test)."""


@dataclass(frozen=True, kw_only=True)
class AnomalyDinoConfig(Config):
    """The authors' default, their mode 'agnostic', where not said otherwise."""

    encoder: str = "vit_small_patch14_dinov2.lvd142m"
    size: int = 448  # of the shorter side; the paper also has 672
    shots: int | None = None  # reference pictures, consecutive by file name and seed; None: all (full-shot)
    rotate: bool = True  # every reference picture in eight rotations of 45 degrees
    mask: Literal["authors", "on", "off"] = "authors"  # background of test pictures out; 'authors': the table above


@register("anomalydino", presets={
    "full": AnomalyDinoConfig(),
    "shot1": AnomalyDinoConfig(shots=1),
    "shot4": AnomalyDinoConfig(shots=4),
    "shot16": AnomalyDinoConfig(shots=16),
    "full_672": AnomalyDinoConfig(size=672),
    "demo": AnomalyDinoConfig(size=112, shots=4, shortened=True),
})
class AnomalyDino(Detector):
    """AnomalyDINO: nearest neighbours among the patches of DINOv2, of all or of a few normal pictures"""

    Config = AnomalyDinoConfig
    config: AnomalyDinoConfig
    own_sizes = True

    def __init__(self, config: AnomalyDinoConfig, context: Context) -> None:
        super().__init__(config, context)
        self.net = VitTokens(config.encoder, [-1], context.weights, norm=True).to(context.device)
        if config.size < self.net.patch:
            raise ModelError(f"anomalydino: size={config.size}; give at least one patch, {self.net.patch} pixels")
        self.preprocess = Preprocess((config.size, config.size))
        where = (str(context.extras.get("dataset")), str(context.extras.get("category")))
        self.masked = config.mask == "on" or (config.mask == "authors" and where[1] in MASKED.get(where[0], ()))
        self.bank = torch.empty(0, self.net.channels, device=context.device)

    def fit(self, train: Images, validation: Images | None, progress: Progress = no_progress) -> dict[str, Any]:
        start, count = 0, len(train)
        if self.config.shots is not None:
            start, count = self.context.seed * self.config.shots, self.config.shots
            if start + count > len(train):
                raise ModelError(
                    f"anomalydino: shots={count} with seed {self.context.seed} needs {start + count} training "
                    f"pictures, there are {len(train)}; take fewer shots or a lower seed"
                )
        rows = []
        for i in range(start, start + count):
            turns = [train[i], *(rotated(train[i], 45 * k) for k in range(1, 8 if self.config.rotate else 1))]
            rows.append(F.normalize(self._patches(turns)[0].flatten(0, 1), dim=1))
            progress(i - start + 1, count)
        self.bank = torch.cat(rows)
        return {"patches": len(self.bank), "references": count, "masked": self.masked}

    def predict(self, batch: Images) -> Prediction:
        largest = max((image.shape[:2] for image in batch), key=math.prod)
        maps, scores = [], []
        alike = len({image.shape for image in batch}) == 1
        found = self._patches(batch) if alike else None
        for i, image in enumerate(batch):
            patches, grid = found or self._patches([image])
            patches = patches[i if alike else 0]
            distances = knn(F.normalize(patches, dim=1), self.bank)[0][:, 0].square() / 2  # of unit vectors: 1 - cosine
            if self.masked:
                inside = foreground(patches.cpu().numpy(), grid, self.context.seed)
                distances = distances * torch.from_numpy(inside).to(distances)
            scores.append(distances.topk(max(1, int(len(distances) * 0.01)))[0].mean())
            full = F.interpolate(distances.view(1, 1, *grid), image.shape[:2], mode="bilinear", align_corners=False)
            smooth = gaussian_smooth(full[:, 0], 4.0, border="reflect")
            if smooth.shape[-2:] != largest:
                smooth = F.interpolate(smooth[None], largest, mode="bilinear", align_corners=False)[0]
            maps.append(smooth)
        return Prediction(torch.cat(maps).float(), torch.stack(scores).float())

    def _patches(self, images: Images) -> tuple[Tensor, tuple[int, int]]:
        """Patch features [B, h * w, C] of pictures of one size, and their grid (h, w)."""
        patch, shorter = self.net.patch, min(images[0].shape[:2])
        size = [int(self.config.size * side / shorter) for side in images[0].shape[:2]]
        grid = (size[0] // patch, size[1] // patch)

        def resized(image: np.ndarray) -> Tensor:
            """Rounded to 8 bits, as Pillow's resize does; on the host: a GPU's last digit would round otherwise."""
            x = torch.tensor(image).permute(2, 0, 1)[None]
            if list(x.shape[-2:]) != size:
                x = F.interpolate(x.float(), size, mode="bicubic", align_corners=False, antialias=True)
            return x.round().clamp(0, 255).byte()[0, :, : grid[0] * patch, : grid[1] * patch]

        x = torch.stack(together(self.context.device, *map(resized, images)))
        x = self.preprocess.normalised(x.float() / 255)
        return self.net(x)[0][:, self.net.prefix :], grid

    def feature_maps(self, batch: Images) -> list[Tensor]:
        """The patch features that the distances are between, one map [B, C, h, w] on the largest grid of the batch."""
        maps = []
        for image in batch:
            patches, grid = self._patches([image])
            maps.append(F.normalize(patches, dim=-1).transpose(1, 2).unflatten(-1, grid))
        largest = max((m.shape[-2:] for m in maps), key=math.prod)
        return [torch.cat([F.interpolate(m, largest, mode="bilinear", align_corners=False) for m in maps])]

    def state_dict(self) -> dict[str, Any]:
        return {"bank": self.bank}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.bank = state["bank"].to(self.context.device)


def rotated(image: np.ndarray, degrees: float) -> np.ndarray:
    """uint8 [H, W, 3] turned anticlockwise about (W/2, H/2), bilinear, with mirrored borders, in the same frame."""
    from scipy.ndimage import affine_transform

    angle, (height, width) = math.radians(degrees), image.shape[:2]
    cos, sin = math.cos(angle), math.sin(angle)
    back = np.array([[cos, sin], [-sin, cos]])  # (row, column) of the result -> of the picture
    centre = np.array([height / 2, width / 2])
    turned = [affine_transform(image[..., c].astype(np.float32), back, centre - back @ centre, order=1, mode="mirror")
              for c in range(3)]
    return np.stack(turned, 2).round().clip(0, 255).astype(np.uint8)


def foreground(patches: np.ndarray, grid: tuple[int, int], seed: int, threshold: float = 10.0) -> np.ndarray:
    """Which of the patches [h * w, C] show the object, bool [h * w]: the first principal component above a threshold.

    The other way round where that leaves hardly anything of the picture's middle; then dilated and closed by 3 x 3.
    """
    from scipy.ndimage import binary_dilation, binary_erosion
    from sklearn.decomposition import PCA

    first = PCA(1, svd_solver="randomized", random_state=seed).fit_transform(patches.astype(np.float32)).reshape(grid)
    mask = first > threshold
    rows, columns = (slice(int(side * 0.2), int(side * 0.8)) for side in grid)
    if mask[rows, columns].sum() <= mask[rows, columns].size * 0.35:
        mask = -first > threshold
    square = np.ones((3, 3), bool)
    closed = binary_dilation(binary_dilation(mask, square), square)
    return binary_erosion(closed, square, border_value=1).reshape(-1)  # what lies outside eats nothing, as in OpenCV
