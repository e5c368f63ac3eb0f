"""The members' maps of the training pictures, kept from one pass in half precision, in memory or in a file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from models.base import Images
from models.ensembles.members import CHUNK, Member, chunks


class MapStore:
    """One map of every training picture in float16, in memory or in a file; scaled so that small values survive."""

    def __init__(self, count: int, first: Tensor, file: Path | None) -> None:
        shape = (count, *first.shape[1:])
        self.channels = first.shape[1]
        self.scale = 1.0 / max(float(first.float().square().mean().sqrt()), 1e-30)
        if file is None:
            self.values = np.empty(shape, np.float16)
        else:
            file.parent.mkdir(parents=True, exist_ok=True)
            self.values = np.memmap(file, np.float16, "w+", shape=shape)

    def __len__(self) -> int:
        return len(self.values)

    def write(self, start: int, maps: Tensor) -> None:
        values = (maps.float() * self.scale).clamp_(-65504, 65504).half().cpu().numpy()
        self.values[start : start + len(values)] = values

    def read(self, start: int, device: torch.device) -> Tensor:
        """float32 [b, C, h, w] of up to CHUNK pictures from `start` on."""
        part = torch.from_numpy(np.array(self.values[start : start + CHUNK])).to(device)
        return part.float().div_(self.scale)


@torch.no_grad()
def kept_maps(members: Sequence[Member], images: Images, keep_gb: float, folder: Path | None) -> list[list[MapStore]]:
    """The members' maps of all pictures from one pass, or from an earlier ensemble where it left them in memory."""
    room = keep_gb * 2**30 - sum(s.values.nbytes for m in members for s in m.kept or ())
    missing = [m for m in members if m.kept is None]
    stores: dict[str, list[MapStore]] = {}
    for start, pictures in chunks(images) if missing else ():
        for number, member in enumerate(missing):
            maps = member.features(pictures)
            if start == 0:
                size = sum(m[0].numel() for m in maps) * 2 * len(images)
                in_memory = size <= room or folder is None
                room -= size if in_memory else 0
                files = [None if in_memory else folder / f"{number}-{i}" for i in range(len(maps))]
                own = [MapStore(len(images), m, file) for m, file in zip(maps, files, strict=True)]
                stores[member.spec] = own
                if in_memory:
                    member.kept = own
            for store, m in zip(stores[member.spec], maps, strict=True):
                store.write(start, m)
    return [stores.get(member.spec) or member.kept for member in members]
