"""Two GPUs pretended on the CPU: the values are real, and what CUDA would refuse raises.

A tensor on `cuda:i` wraps a CPU tensor with the values and knows its place. Its dispatch device is `lazy`, whose
backward pass autograd runs in the calling thread. What is seen of a real GPU's behaviour:

- tensors of two devices in one operation, a generator of another device, and `.numpy()` raise;
- a captured graph runs nothing while it is captured, records what happens on the current device only, refuses whatever
  waits for the host, and replays into the memory of the capture;
- waits for the device and copies to it are counted, by operation (`Counts`). A copy to the device is a wait as well,
  unless it is asked not to block: torch synchronises the stream after it.

Not seen: what kernels do (TF32, another order of sums), time, memory, asynchronous errors.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter, tree_map

CPU = torch.device("cpu")
GIB = 1 << 30
MODELS = f"{Path(__file__).parents[2] / 'models'}/"
# indices may lie on the CPU; CUDA copies them over, which is counted
TAKES_CPU_INDICES = {"index", "_unsafe_index", "index_put", "index_put_", "_index_put_impl_"}
WAITING = {"_local_scalar_dense", "nonzero", "masked_select", "bincount", "unique_consecutive", "_unique2", "equal",
           "unique_dim", "is_nonzero"}


@dataclass
class Counts:
    """How often the host waited for a device and how often values were copied to one, by operation.

    where: by line of the repository, as 'wait at models/nn/a.py:12'.
    """

    waits: Counter[str] = field(default_factory=Counter)
    copies: Counter[str] = field(default_factory=Counter)
    where: Counter[str] = field(default_factory=Counter)

    def total(self) -> tuple[int, int]:
        return self.waits.total(), self.copies.total()

    def note(self, kind: str, operation: str) -> None:
        (self.waits if kind == "wait" else self.copies)[operation] += 1
        frame = sys._getframe(1)
        while frame is not None and not frame.f_code.co_filename.startswith(MODELS):
            frame = frame.f_back
        if frame is not None:
            self.where[f"{kind} at models/{frame.f_code.co_filename[len(MODELS):]}:{frame.f_lineno}"] += 1


@dataclass
class _Machine:
    current: int = 0
    counts: Counts = field(default_factory=Counts)
    graph: Graph | None = None


_machine = _Machine()


class OnGPU(torch.Tensor):
    """A tensor that says it is on a GPU; `values` is the CPU tensor behind it."""

    __torch_function__ = torch._C._disabled_torch_function_impl
    values: torch.Tensor
    place: torch.device

    @staticmethod
    def __new__(cls, values: torch.Tensor, place: torch.device) -> OnGPU:
        self = torch.Tensor._make_wrapper_subclass(
            cls, values.size(), strides=values.stride(), storage_offset=values.storage_offset(), dtype=values.dtype,
            device=torch.device("lazy", place.index), requires_grad=False,
        )
        self.values, self.place = values, place
        return self

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return self.place

    @property
    def is_cuda(self) -> bool:  # type: ignore[override]
        return True

    @property
    def is_cpu(self) -> bool:  # type: ignore[override]
        return False

    def numpy(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError(f"can't convert {self.place} device type tensor to numpy; use Tensor.cpu() first")

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.values.detach().__reduce_ex__(protocol)  # a saved state holds the values

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _operate(func, args, kwargs or {})


OnGPU.__module__ = "torch"  # code that tells tensors from arrays by their module must see a tensor


class Generator(torch.Generator):
    """A CPU generator that says it is on the device it was asked for."""

    place: torch.device

    def __new__(cls, device: Any = "cpu") -> Generator:
        self = super().__new__(cls, "cpu")
        self.place = _full(torch.device(device))
        return self

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return self.place


class Graph:
    """What `torch.cuda.CUDAGraph` does: operations noted while captured, run again on the same memory by `replay`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.steps: list[tuple[Any, Any, Any, Any]] = []
        self.before: dict[int, tuple[Any, Any]] = {}
        self.place = CPU

    def keep(self, func: Any, args: Any, kwargs: Any) -> None:
        """Remember the memory that an operation will write, so that the capture can be undone."""
        for tensor in _written(func, args, kwargs):
            storage = tensor.untyped_storage()
            self.before.setdefault(storage.data_ptr(), (storage, storage.clone()))

    def undo(self) -> None:
        for storage, content in self.before.values():
            storage.copy_(content)

    def replay(self) -> None:
        for func, args, kwargs, results in self.steps:
            fresh = func(*args, **kwargs)
            for new, old in zip(tree_iter(fresh), tree_iter(results), strict=True):
                if isinstance(old, torch.Tensor) and new.data_ptr() != old.data_ptr():
                    old.copy_(new)


def _full(device: torch.device) -> torch.device:
    """'cuda' with the index of the current device; 'lazy:i', which C++ code reads from a tensor, is 'cuda:i'."""
    if device.type == "lazy":
        return torch.device("cuda", device.index or 0)
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", _machine.current)
    return device


def _written(func: Any, args: Any, kwargs: Any) -> list[Any]:
    found = []
    for i, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = kwargs.get(argument.name, args[i] if i < len(args) else None)
            found += [v for v in tree_iter(value) if isinstance(v, torch.Tensor)]
    return found


def _operate(func: Any, args: Any, kwargs: Any) -> Any:
    """One ATen operation with at least one tensor on a GPU, or one that is asked to make one there."""
    leaves = list(tree_iter((args, kwargs)))
    on_gpu = [x for x in leaves if isinstance(x, OnGPU)]
    asked = next((_full(x) for x in leaves if isinstance(x, torch.device)), None)
    if not on_gpu and (asked is None or asked.type != "cuda"):
        return func(*args, **kwargs)
    if torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd"):
        with _Dispatch():  # inference mode hands such operations over whole
            parts = func.decompose(*args, **kwargs)
        if parts is not NotImplemented:
            return parts
    name = func._schema.name.split("::")[1]
    places = {x.place for x in on_gpu}
    copying = name in ("copy_", "_to_copy")
    on_cpu = [x for x in leaves if isinstance(x, torch.Tensor) and not isinstance(x, OnGPU)]
    from_cpu = any(x.dim() for x in on_cpu)  # a CPU tensor without dimensions is taken as a number
    if not copying and (len(places) > 1 or (from_cpu and name not in TAKES_CPU_INDICES)):
        found = sorted({str(p) for p in places} | ({"cpu"} if on_cpu else set()))
        raise RuntimeError(f"{name}: expected all tensors to be on the same device, found {' and '.join(found)}")
    place = asked if asked is not None else args[0].place if copying and isinstance(args[0], OnGPU) else None
    if place is None:
        place = CPU if name == "copy_" else next(iter(places))
    down = copying and bool(on_gpu) and place.type == "cpu"
    up = (copying and not down and (not on_gpu or (name == "copy_" and bool(on_cpu)))) or (
        name in TAKES_CPU_INDICES and from_cpu)
    blocks = not (kwargs.get("non_blocking") or (name == "copy_" and len(args) > 2 and args[2]))
    if name in WAITING or down or (up and blocks):
        _machine.counts.note("wait", name)
    if up:
        _machine.counts.note("copy", name)
    graph = _machine.graph if _machine.graph is not None and place == _machine.graph.place else None
    if graph is not None and (name in WAITING or down or up):
        raise RuntimeError(f"{name}: operation not permitted when stream is capturing")

    plain_args, plain_kwargs = tree_map(_plain, args), tree_map(_plain, kwargs)
    for ignored in ("pin_memory", "non_blocking"):
        plain_kwargs.pop(ignored, None)
    if graph is not None:
        graph.keep(func, plain_args, plain_kwargs)
    try:
        result = func(*plain_args, **plain_kwargs)
    except IndexError:
        if graph is None:  # a capture runs nothing, so a step beyond the end is no error in one
            raise
        result = plain_args[0] if name.endswith("_") else plain_args[0].index_select(plain_args[1], plain_args[2] * 0)
    if graph is not None:
        graph.steps.append((func, plain_args, plain_kwargs, result))
    targets = _written(func, args, kwargs)
    if targets and all(r.alias_info is not None for r in func._schema.returns):  # in place, or with out=
        count = len(func._schema.returns)
        return targets[0] if count == 1 else tuple(targets) if count else None
    if place.type == "cpu":
        return result
    return tree_map(lambda x: OnGPU(x, place) if isinstance(x, torch.Tensor) else x, result)


def _plain(x: Any) -> Any:
    return x.values if isinstance(x, OnGPU) else CPU if isinstance(x, torch.device) else x


class _Dispatch(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _operate(func, args, kwargs or {})


class _Functions(TorchFunctionMode):
    """Generators are checked here, above dispatch; and forms that torch builds below it are rewritten."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        first = args[0] if args else None
        if func is torch.Tensor.new_tensor and isinstance(first, OnGPU):
            return torch.tensor(args[1], dtype=kwargs.get("dtype") or first.dtype).to(first.place)
        if func in (torch.tensor, torch.as_tensor) and kwargs.get("device") is not None:
            place = _full(torch.device(kwargs.pop("device")))
            return func(*args, **kwargs).to(place)
        if func is torch.Tensor.__getitem__ and isinstance(first, OnGPU) and isinstance(args[1], list):
            return first[torch.tensor(args[1]).to(first.place)]
        for generator in (x for x in (*args, *kwargs.values()) if isinstance(x, Generator)):
            place = kwargs.get("device")
            place = next((x.device for x in args if isinstance(x, torch.Tensor)), CPU) if place is None else place
            if torch.device(place).type != generator.place.type:
                raise RuntimeError(f"{func.__name__}: generator on {generator.place}, values on {place}")
        return func(*args, **kwargs)


@contextmanager
def _capturing(graph: Graph, *args: Any, **kwargs: Any) -> Iterator[None]:
    _machine.graph, graph.place = graph, torch.device("cuda", _machine.current)
    try:
        yield
    finally:
        _machine.graph = None
        graph.undo()


def _exchange(index: int) -> int:
    before = _machine.current
    if index >= 0:
        _machine.current = index
    return before


def _enter_inference(mode: Any) -> None:
    """Wrapped tensors cannot be made in inference mode; without gradients the values are the same."""
    mode.stand_in = torch.set_grad_enabled(torch.is_grad_enabled() and not mode.mode)


def _leave_inference(mode: Any, *error: Any) -> None:
    mode.stand_in.__exit__(*error)


def _empty(*size: Any, pin_memory: bool = False, empty: Any = torch.empty, **kwargs: Any) -> Any:
    return empty(*size, **kwargs)  # pinned memory needs a real GPU


def _set_device(device: Any) -> None:
    _machine.current = device if isinstance(device, int) else _full(torch.device(device)).index


@contextmanager
def pretended_gpus(count: int = 2) -> Iterator[Counts]:
    """Inside, `cuda:0` to `cuda:<count - 1>` can be used; gives the counts. anomalib must be imported before."""
    global _machine
    outer, _machine = _machine, _Machine()
    stubs = {
        "is_available": lambda: True, "device_count": lambda: count, "current_device": lambda: _machine.current,
        "_lazy_init": lambda: None, "is_initialized": lambda: True, "set_device": _set_device,
        "_exchange_device": _exchange, "_maybe_exchange_device": _exchange,
        "synchronize": lambda *device: _machine.counts.waits.update(["synchronize"]),
        "empty_cache": lambda: None, "mem_get_info": lambda *device: (70 * GIB, 80 * GIB),
        "get_device_name": lambda *device: "pretended GPU", "is_current_stream_capturing": lambda: False,
        "get_rng_state": lambda *device: torch.get_rng_state(),
        "set_rng_state": lambda state, *device: torch.set_rng_state(state),
        "reset_peak_memory_stats": lambda *device: None, "max_memory_allocated": lambda *device: 0,
        "is_bf16_supported": lambda *args: True, "set_sync_debug_mode": lambda mode: None,
        "get_device_properties": lambda *device: SimpleNamespace(
            name="pretended GPU", total_memory=80 * GIB, major=9, minor=0),
        "CUDAGraph": Graph, "graph": _capturing,
    }
    with ExitStack() as stack:
        stack.enter_context(patch.object(torch, "Generator", Generator))
        stack.enter_context(patch.object(torch, "empty", _empty))
        stack.enter_context(patch.object(torch.inference_mode, "__enter__", _enter_inference))
        stack.enter_context(patch.object(torch.inference_mode, "__exit__", _leave_inference))
        for name, stub in stubs.items():
            stack.enter_context(patch.object(torch.cuda, name, stub))
        stack.enter_context(_Functions())
        stack.enter_context(_Dispatch())
        try:
            yield _machine.counts
        finally:
            _machine = outer
