"""Frozen backbones that stop at the last layer asked for, and one shared pass over a category's pictures."""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from models.base import Images, ModelError
from models.nn.memory import available, in_parts, may_give_up, note
from models.nn.preprocess import Preprocess
from models.weights import TORCHVISION, WeightStore, load_into

RESNET18 = "resnet18.tv_in1k"
WIDE50 = "wide_resnet50_2.tv_in1k"
STAGES = ("layer1", "layer2", "layer3")

CHUNK = 8  # pictures per pass; fixed, because the cache may only share what was computed in the same batches
SAME = 1e-5  # of the range of a layer's features: what folding batch norms may move them by
PRECISIONS = ("float32", "tf32", "bf16")

_precision: ContextVar[str] = ContextVar("precision", default="float32")


@contextlib.contextmanager
def precision(name: str) -> Iterator[None]:
    """Inside, frozen backbones compute in `name`: 'float32', or 'bf16' with features brought back to float32.

    'tf32' lets a GPU's convolutions, of frozen and of trained networks, round their factors to 10 bits; distances and
    other matrix products stay exact. Everywhere else it is off.
    """
    if name not in PRECISIONS:
        raise ModelError(f"precision={name!r}: use {' or '.join(PRECISIONS)}")
    token, before = _precision.set(name), torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = name == "tf32"
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before
        _precision.reset(token)


def current_precision() -> str:
    """The precision in which backbones compute here."""
    return _precision.get()


class _Reached(Exception):
    """The last layer asked for has run: the rest of the network is not needed."""


class Backbone(nn.Module):
    """Frozen network in evaluation mode: [B, 3, h, w] normalised float32 -> {layer: [B, C, h', w']}.

    tag, layers: as given to `backbone`. channels: {layer: C}. identity: hashable, equal for equal weights. form: how it
    computes; features of two forms differ in their last digits.
    """

    form = "channels last"

    def __init__(self, net: nn.Module, tag: str, layers: Sequence[str]) -> None:
        super().__init__()
        self.net = net
        self.tag = tag
        self.layers = tuple(layers)
        self.channels: dict[str, int] = {}
        self.identity: tuple[str, str] = (tag, "untrained")
        self.most = CHUNK  # pictures per pass that memory suffices for, as far as is known
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
        # not `self`, which holds the network and so the hook: a circle would stay on the device until it is collected
        found, count = self._found, len(self.layers)

        def keep(module: nn.Module, inputs: Any, output: Tensor) -> None:
            found[layer] = output
            if len(found) == count:
                raise _Reached

        return keep

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        self._found.clear()
        low = current_precision() == "bf16"
        if low:
            note("frozen backbone computed in bf16")
        x = x.contiguous(memory_format=torch.channels_last)
        with contextlib.suppress(_Reached), torch.autocast(x.device.type, torch.bfloat16, enabled=low):
            self.net(x)
        found = dict(self._found)
        self._found.clear()
        # the order of memory stays in here: heads and losses of other libraries take views of what they are given
        return {layer: found[layer].float().contiguous() for layer in self.layers}

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


def backbone(
    tag: str, layers: Sequence[str], store: WeightStore, device: torch.device | str = "cpu", *, trained: bool = False
) -> Backbone:
    """Frozen network of `tag` (`resnet18.tv_in1k`) up to the deepest of `layers`, in evaluation mode.

    layers: the network's own module names (`layer2`; `features.16` for VGG and SqueezeNet; `blocks.3` for
        EfficientNet). Only the weights those layers need are asked for, so that a partial file may do.
    trained: its weights will be changed, so that its batch norms stay layers of their own.
    In mode 'none' of `store` the weights are random but the same for a tag in every run and method. `store.forms` is
    told how it computes.
    Raises ModelError for an unknown network or layer, WeightsError when the weights are missing or do not fit.
    """
    if not layers:
        raise ModelError(f"{tag}: name at least one layer")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = Backbone(architecture(tag), tag, layers)
    net.eval().requires_grad_(False)
    _prune(net)
    state = store.load(tag, net.net.state_dict())  # of the modules that run
    if state is not None:
        load_into(net.net, state, tag)
        net.identity = (tag, store.used[tag]["sha256"])  # type: ignore[index]
    if not trained and torch.device(device).type == "cpu":
        _fold(net)
    store.forms[tag] = net.form
    return net.to(device).to(memory_format=torch.channels_last)


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
        if module not in ran and modules[name.rpartition(".")[0]] in ran and any(True for _ in module.parameters()):
            _put(net, module, nn.Identity())


@torch.no_grad()
def _fold(net: Backbone) -> None:
    """Take batch norms into the convolutions whose output they are given, where features stay the `SAME`.

    Nothing is folded when a layer asked for is one of these, so that all of a network's layers have one form.
    """
    calls: list[tuple[nn.Module, Tensor, Tensor]] = []
    handles = [
        module.register_forward_hook(lambda module, inputs, output: calls.append((module, inputs[0], output)))
        for module in net.net.modules() if type(module) in (nn.Conv2d, nn.BatchNorm2d)  # heirs may do more
    ]
    x = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    before = net(x)
    for handle in handles:
        handle.remove()
    made = {id(output): module for module, _, output in calls if type(module) is nn.Conv2d}
    pairs = {made[id(given)]: module for module, given, _ in calls if id(given) in made}
    asked = {net.net.get_submodule(layer) for layer in net.layers}
    often = len({module for module, *_ in calls}) < len(calls)
    if not pairs or often or asked & {*pairs, *pairs.values()}:
        return
    swaps = [(conv, fuse_conv_bn_eval(conv, norm)) for conv, norm in pairs.items()]
    swaps += [(norm, nn.Identity()) for norm in pairs.values()]
    for old, new in swaps:
        _put(net, old, new)
    after = net(x)
    if all((after[k] - before[k]).abs().max() <= SAME * (before[k].max() - before[k].min()) for k in before):
        net.form = f"{net.form}, batch norm folded"
        return
    for old, new in swaps:
        _put(net, new, old)


def _put(net: Backbone, old: nn.Module, new: nn.Module) -> None:
    name = next(name for name, module in net.net.named_modules() if module is old)
    parent, _, child = name.rpartition(".")
    setattr(net.net.get_submodule(parent), child, new)


def room(device: torch.device | str) -> int:
    """Bytes that held features may take: a quarter of what is free on their device, at most 4 GiB."""
    return min(4 << 30, available(device) // 4)


class FeatureCache:
    """Features of pictures by content, so that methods on one backbone share one pass over a category.

    A key holds the weights' hash, the network's form, the preprocessing, the precision and the pixels of a chunk of
    pictures, so that a hit is what the pass would have computed, bit for bit. Features stay where they were computed.
    At most `limit` bytes are held (None: `room`). When they are full, features of a backbone and preprocessing that no
    method has asked for since `begin` make room; then nothing more is kept: a sequence read from start to end twice
    gains from its first part, where dropping the oldest would lose all of it.

    stats, since `begin`: 'computed' and 'reused' count pictures, 'full' pictures not kept for want of room,
    'compute_s' seconds spent, 'saved_s' seconds that computing the reused ones took before. 'bytes': held now.
    """

    def __init__(self, limit: int | None = None) -> None:
        self.limit = limit
        self.stats: dict[str, float] = {"bytes": 0}
        self._held: dict[Any, dict[bytes, tuple[dict[str, Tensor], float]]] = {}  # by group, then by pictures
        self._used: set[Any] = set()  # groups of this unit
        may_give_up(self)
        self.begin()

    def begin(self) -> None:
        """A new unit: counts start at zero."""
        self.stats = {
            "computed": 0, "reused": 0, "full": 0, "compute_s": 0.0, "saved_s": 0.0, "bytes": self.stats["bytes"],
        }
        self._used = set()

    def clear(self) -> None:
        """Drop everything that is held."""
        self._held = {}
        self.stats["bytes"] = 0

    def holds(self) -> int:
        """Bytes held now."""
        return int(self.stats["bytes"])

    def give_up(self) -> int:
        """Memory ran out: drop everything and keep nothing more; returns the bytes that were held."""
        held, self.limit = self.holds(), 0
        self.clear()
        return held

    def serves(self, group: Any) -> bool:
        """Whether features of this group are held or may be kept, so that their pictures need a digest."""
        may_go = any(held not in self._used for held in self._held)
        return self.limit is None or self.stats["bytes"] < self.limit or may_go or group in self._held

    def get(
        self, group: Any, pictures: bytes | None, count: int, layers: Sequence[str],
        compute: Callable[[], dict[str, Tensor]],
    ) -> Mapping[str, Tensor]:
        """{layer: [count, C, h, w]} from memory, else from `compute()` and kept where room is left.

        group: what makes the features besides the pictures; pictures: digest of their pixels; none where the
        group is not served.
        """
        self._used.add(group)
        held, seconds = self._held.get(group, {}).get(pictures, ({}, 0.0))
        if all(layer in held for layer in layers):
            self.stats["reused"] += count
            self.stats["saved_s"] += seconds
            # tensors from a prediction cannot be trained on
            return {k: held[k] if torch.is_inference_mode_enabled() or not held[k].is_inference() else held[k].clone()
                    for k in layers}
        start = time.perf_counter()
        found = compute()
        if any(tensor.is_cuda for tensor in found.values()):
            torch.cuda.synchronize(next(iter(found.values())).device)
        seconds = time.perf_counter() - start
        self.stats["computed"] += count
        self.stats["compute_s"] += seconds
        fresh = {layer: tensor for layer, tensor in found.items() if layer not in held}
        size = sum(tensor.nbytes for tensor in fresh.values())
        if pictures is not None and self._fits(size, next(iter(found.values())).device):
            self._held.setdefault(group, {})[pictures] = ({**held, **fresh}, seconds)
            self.stats["bytes"] += size
        else:
            self.stats["full"] += count
        return found

    def _fits(self, size: int, device: torch.device) -> bool:
        if self.limit is None:
            self.limit = room(device)
        for group in list(self._held):
            if self.stats["bytes"] + size <= self.limit:
                break
            if group not in self._used:
                dropped = self._held.pop(group)
                self.stats["bytes"] -= sum(t.nbytes for found, _ in dropped.values() for t in found.values())
        return self.stats["bytes"] + size <= self.limit


def extract(
    net: Backbone, preprocess: Preprocess, images: Images, device: torch.device | str, cache: FeatureCache | None = None
) -> Iterator[dict[str, Tensor]]:
    """Features of `images` in order, {layer: float32 [b, C, h, w]} on `device` for up to CHUNK pictures at a time.

    The same values with and without a cache: the pass always runs in the same chunks, unless memory does not suffice
    for one; then it runs in halves, and `models.nn.memory.note` says so.
    """
    for start in range(0, len(images), CHUNK):
        pictures = [images[i] for i in range(start, min(start + CHUNK, len(images)))]

        def compute(pictures: list[np.ndarray] = pictures) -> dict[str, Tensor]:
            with torch.no_grad():  # not inference_mode: heads may be trained on these features
                parts = in_parts(
                    lambda part: net(preprocess(part, device)), pictures, net.most, f"features of {net.tag} are taken"
                )
            if len(parts) == 1:
                return parts[0]
            net.most = len(parts[-2][net.layers[0]])
            return {layer: torch.cat([part[layer] for part in parts]) for layer in net.layers}

        group = (net.identity, net.form, preprocess, str(device), current_precision())
        if cache is None:
            yield compute()
            continue
        digest = _digest(pictures) if cache.serves(group) else None
        yield dict(cache.get(group, digest, len(pictures), net.layers, compute))


def _digest(pictures: Sequence[np.ndarray]) -> bytes:
    """Of sizes and pixels; SHA-256, for which processors have instructions, on several cores at once."""
    def one(picture: np.ndarray) -> bytes:
        found = hashlib.sha256(repr(picture.shape).encode())
        found.update(np.ascontiguousarray(picture))
        return found.digest()

    return b"".join(_hashing().map(one, pictures))


@lru_cache(maxsize=1)
def _hashing() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(CHUNK)
