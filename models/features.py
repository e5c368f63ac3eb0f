"""Frozen backbones that stop at the last layer asked for, and one shared pass over a category's pictures."""

from __future__ import annotations

import contextlib
import difflib
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from models.base import Images, ModelError
from models.nn.preprocess import Preprocess
from models.weights import IGNORED, TORCHVISION, WeightStore, load_into

CHUNK = 8  # pictures per pass; fixed, because the cache may only share what was computed in the same batches


class _Reached(Exception):
    """The last layer asked for has run: the rest of the network is not needed."""


class Backbone(nn.Module):
    """Frozen network in evaluation mode: [B, 3, h, w] normalised float32 -> {layer: [B, C, h', w']}.

    tag, layers: as given to `backbone`. channels: {layer: C}. identity: hashable, equal for equal weights.
    """

    def __init__(self, net: nn.Module, tag: str, layers: Sequence[str]) -> None:
        super().__init__()
        self.net = net
        self.tag = tag
        self.layers = tuple(layers)
        self.channels: dict[str, int] = {}
        self.identity: tuple[str, str] = (tag, "untrained")
        self._found: dict[str, Tensor] = {}
        modules = dict(net.named_modules())
        for layer in self.layers:
            if layer not in modules or not layer:
                near = difflib.get_close_matches(layer, modules, n=3)
                hint = f"; near names: {', '.join(near)}" if near else ""
                raise ModelError(f"{tag} has no layer {layer!r}{hint}; its stages: {', '.join(_stages(net))}")
            modules[layer].register_forward_hook(self._hook(layer))
        for module in modules.values():
            if getattr(module, "inplace", False):
                module.inplace = False  # an in-place ReLU after a layer would change the features taken from it

    def _hook(self, layer: str) -> Any:
        def keep(module: nn.Module, inputs: Any, output: Tensor) -> None:
            self._found[layer] = output
            if len(self._found) == len(self.layers):
                raise _Reached

        return keep

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        self._found = {}
        with contextlib.suppress(_Reached):
            self.net(x)
        found, self._found = self._found, {}
        return {layer: found[layer] for layer in self.layers}

    def train(self, mode: bool = True) -> Backbone:
        """Stays in evaluation mode: batch statistics of a frozen network never change."""
        return super().train(False)


def _stages(net: nn.Module) -> list[str]:
    """Names worth showing in a message: the children, and the entries of sequences."""
    names = []
    for name, child in net.named_children():
        names += [f"{name}.{i}" for i in range(len(child))] if type(child) is nn.Sequential else [name]
    return names


def architecture(tag: str) -> nn.Module:
    """The network of a tag with fresh weights, as timm defines it, else torchvision. Raises ModelError if unknown."""
    import timm
    import torchvision

    name, _, variant = tag.partition(".")
    only_torchvision = variant in TORCHVISION and not timm.list_models(tag, pretrained=True)
    if timm.is_model(name) and not only_torchvision:
        return timm.create_model(name, pretrained=False)
    if name in torchvision.models.list_models():
        return torchvision.models.get_model(name, weights=None)
    near = difflib.get_close_matches(name, timm.list_models() + torchvision.models.list_models(), n=3)
    hint = f", did you mean {' or '.join(near)}?" if near else ""
    raise ModelError(f"unknown network {name!r} in tag {tag!r}{hint}")


def backbone(tag: str, layers: Sequence[str], store: WeightStore, device: torch.device | str = "cpu") -> Backbone:
    """Frozen network of `tag` (`resnet18.tv_in1k`) up to the deepest of `layers`, in evaluation mode.

    layers: the network's own module names (`layer2`; `features.16` for VGG and SqueezeNet; `blocks.3` for
        EfficientNet). Only the weights those layers need are asked for, so that a partial file may do.
    In mode 'none' of `store` the weights are random but the same for a tag in every run and method.
    Raises ModelError for an unknown network or layer, WeightsError when the weights are missing or do not fit.
    """
    if not layers:
        raise ModelError(f"{tag}: name at least one layer")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = Backbone(architecture(tag), tag, layers)
    net.eval().requires_grad_(False)
    _prune(net)
    # the names a weights file uses: of the modules that run, without the counters that inference never reads
    needed = [key for key in net.net.state_dict() if not key.endswith(IGNORED)]
    state = store.load(tag, needed)
    if state is not None:
        load_into(net.net, state, tag)
        net.identity = (tag, store.used[tag]["sha256"])  # type: ignore[index]
    return net.to(device)


def _prune(net: Backbone) -> None:
    """Find by a small dry run which modules the layers need, and drop the others."""
    ran: set[nn.Module] = set()
    handles = [m.register_forward_pre_hook(lambda module, _: ran.add(module)) for m in net.net.modules()]
    with torch.no_grad():
        found = net(torch.zeros(1, 3, 64, 64))
    net.channels = {layer: tensor.shape[1] for layer, tensor in found.items()}
    for handle in handles:
        handle.remove()
    modules = dict(net.net.named_modules())
    for name, module in modules.items():
        if module not in ran:
            parent = modules[name.rpartition(".")[0]]
            if parent in ran and any(True for _ in module.parameters()):
                setattr(parent, name.rpartition(".")[2], nn.Identity())


class FeatureCache:
    """Features of pictures by content, so that methods on one backbone share one pass over a category.

    A key holds the weights' hash, the preprocessing and the pixels of a chunk of pictures, so that a hit is what the
    pass would have computed, bit for bit. Once `limit` bytes are held, nothing more is kept: a sequence read from
    start to end twice gains from its first part, where dropping the oldest would lose all of it.

    stats: 'computed' and 'reused' count pictures, 'bytes' what is held, 'full' pictures not kept for want of room.
    """

    def __init__(self, limit: int = 2 << 30) -> None:
        self.limit = limit
        self.stats = {"computed": 0, "reused": 0, "bytes": 0, "full": 0}
        self._held: dict[Any, dict[str, Tensor]] = {}

    def get(self, key: Any, layers: Sequence[str], pictures: int, compute: Any) -> Mapping[str, Tensor]:
        """{layer: [B, C, h, w]} of `key` from memory, else from `compute()`; kept where room is left."""
        held = self._held.get(key, {})
        if all(layer in held for layer in layers):
            self.stats["reused"] += pictures
            return {layer: held[layer] for layer in layers}
        self.stats["computed"] += pictures
        found: dict[str, Tensor] = compute()
        fresh = {layer: tensor.cpu() for layer, tensor in found.items() if layer not in held}
        size = sum(tensor.nbytes for tensor in fresh.values())
        if self.stats["bytes"] + size <= self.limit:
            self._held[key] = {**held, **fresh}
            self.stats["bytes"] += size
        else:
            self.stats["full"] += pictures
        return found


def extract(
    net: Backbone, preprocess: Preprocess, images: Images, device: torch.device | str, cache: FeatureCache | None = None
) -> Iterator[dict[str, Tensor]]:
    """Features of `images` in order, {layer: float32 [b, C, h, w]} on `device` for up to CHUNK pictures at a time.

    The same values with and without a cache: the pass always runs in the same chunks.
    """
    for start in range(0, len(images), CHUNK):
        pictures = [images[i] for i in range(start, min(start + CHUNK, len(images)))]

        def compute(pictures: list[np.ndarray] = pictures) -> dict[str, Tensor]:
            with torch.no_grad():  # not inference_mode: heads may be trained on these features
                return net(preprocess(pictures, device))

        if cache is None:
            yield compute()
            continue
        digest = hashlib.blake2b(digest_size=16)
        for picture in pictures:
            digest.update(repr(picture.shape).encode())
            digest.update(np.ascontiguousarray(picture))
        key = (net.identity, preprocess, str(device), digest.digest())
        found = cache.get(key, net.layers, len(pictures), compute)
        yield {layer: tensor.to(device) for layer, tensor in found.items()}
