"""A frozen backbone's features of the training pictures, kept for all epochs where memory allows."""

from __future__ import annotations

import torch
from torch import Tensor

from models.base import Images
from models.features import Backbone, FeatureCache, extract, room
from models.nn.memory import note
from models.nn.preprocess import Preprocess
from models.nn.training import load_pictures


class FrozenFeatures:
    """Called with indices of pictures: their features, float32 [b, C, h, w] per layer, without gradients.

    The backbone runs once over all pictures when their features fit into `room`; otherwise the pictures are kept and
    it runs again for every batch, and the record gets a note that says so.
    """

    def __init__(
        self, net: Backbone, preprocess: Preprocess, images: Images, device: torch.device,
        cache: FeatureCache | None = None,
    ) -> None:
        self.net = net
        self.features: dict[str, Tensor] = {}
        self.pictures: Tensor | None = None
        first = next(extract(net, preprocess, [images[0]], device))
        if sum(maps.nbytes for maps in first.values()) * len(images) > room(device):
            note(f"features of {net.tag} did not fit into memory and were computed anew in every epoch")
            self.pictures = load_pictures(images, preprocess, device)
            return
        self.features = {k: maps.new_empty(len(images), *maps.shape[1:]) for k, maps in first.items()}
        done = 0
        for part in extract(net, preprocess, images, device, cache):
            for layer, maps in part.items():
                self.features[layer][done : done + len(maps)] = maps
            done += len(maps)

    @torch.no_grad()
    def __call__(self, indices: Tensor) -> list[Tensor]:
        if self.pictures is not None:
            return list(self.net(self.pictures[indices]).values())
        return [maps[indices] for maps in self.features.values()]
