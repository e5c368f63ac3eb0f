"""Every load of pretrained weights goes through the store by its exact tag, whatever library asks, or is refused.

anomalib's models take weights from timm, torchvision, torch hub, the Hugging Face hub and downloads of their own, each
with its cache. Within `weights_from` all of these ask the `WeightStore`: a record names every file that was read, and a
file that merely lies in a cache is not.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from models.errors import ModelError
from models.weights import IGNORED, TORCHVISION, WeightsError, WeightStore, load_into, reading


class Loaded(dict[str, Tensor]):
    """What torchvision gets instead of a downloaded state; empty in the store's mode 'none'."""

    tag = ""


@contextlib.contextmanager
def weights_from(store: WeightStore) -> Iterator[None]:
    """While it lasts, timm and torchvision take pretrained weights from `store`; all other ways to read some are shut.

    Raises, inside, WeightsError when the weights of a tag are missing or do not fit, and ModelError that names the
    library and what it asked for when there is no tag.
    """
    import huggingface_hub
    import safetensors
    import safetensors.torch
    import timm
    from anomalib.data.utils import download_and_extract
    from timm.models import _builder
    from torchvision.models._api import WeightsEnum

    holes: dict[int, tuple[Tensor, str]] = {}  # what a partial file lacks, and what to say if a network keeps it
    shut = {
        "torch": [torch.load, torch.jit.load],
        "safetensors": [safetensors.torch.load_file, safetensors.torch.load_model, safetensors.safe_open],
        "torch.hub": [torch.hub.load, torch.hub.load_state_dict_from_url, torch.hub.download_url_to_file],
        "huggingface_hub": [huggingface_hub.hf_hub_download, huggingface_hub.snapshot_download],
        "timm": [_builder.load_custom_pretrained],
        "anomalib": [download_and_extract],
    }
    replaced: dict[Any, Any] = {f: _refuse(f, library) for library, functions in shut.items() for f in functions}
    replaced[_builder.load_pretrained] = _timm_loader(_builder, store, holes)
    replaced[timm.create_model] = _timm_create(timm.create_model, holes)
    load_state_dict, get_state_dict = nn.Module.load_state_dict, WeightsEnum.get_state_dict

    def load(self: nn.Module, state: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        if isinstance(state, Loaded):
            return load_into(self, state, state.tag) if state else None
        return load_state_dict(self, state, *args, **kwargs)

    _everywhere(replaced)
    nn.Module.load_state_dict, WeightsEnum.get_state_dict = load, lambda self, *a, **k: _torchvision(self, store)
    try:
        yield
    finally:
        nn.Module.load_state_dict, WeightsEnum.get_state_dict = load_state_dict, get_state_dict
        _everywhere({new: old for old, new in replaced.items()})


def _everywhere(replaced: Mapping[Any, Any]) -> None:
    """Put one function in another's place in every module that has it under some name."""
    by_id = {id(old): new for old, new in replaced.items()}
    for module in list(sys.modules.values()):
        names = getattr(module, "__dict__", None)
        if isinstance(names, dict) and names is not globals():
            for name, value in list(names.items()):
                if id(value) in by_id:
                    names[name] = by_id[id(value)]


def _refuse(function: Callable[..., Any], library: str) -> Callable[..., Any]:
    def refused(*args: Any, **kwargs: Any) -> Any:
        if reading.get():  # the store itself
            return function(*args, **kwargs)
        asked = ", ".join([*map(str, args[:2]), *(f"{k}={v}" for k, v in list(kwargs.items())[:2])])
        raise ModelError(
            f"{library} asks for {asked!r} by {function.__name__}, past the weights that --weights names; no tag "
            "stands for it, so it is not loaded"
        )

    return refused


def _timm_loader(builder: Any, store: WeightStore, holes: dict[int, tuple[Tensor, str]]) -> Callable[..., None]:
    original, resolve = builder.load_pretrained, builder._resolve_pretrained_source

    def load(model: nn.Module, pretrained_cfg: Mapping[str, Any] | None = None, *args: Any, **kwargs: Any) -> None:
        about = pretrained_cfg or getattr(model, "pretrained_cfg", {})
        tag = ".".join(filter(None, (about.get("architecture"), about.get("tag"))))
        state = store.load(tag)
        if state is None:
            return
        own = type(model).load_state_dict

        def partial(state: Mapping[str, Tensor], strict: bool = True, **rest: Any) -> Any:
            result = own(model, state, strict=False, **rest)
            head = about.get("classifier") or ()
            dropped = () if strict else (head,) if isinstance(head, str) else tuple(head)  # timm made a new head
            tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
            for key in result.missing_keys:
                if not key.endswith(IGNORED) and not any(key.startswith(f"{name}.") for name in dropped):
                    why = f"weights {tag!r} have no key {key!r}, which the network needs"
                    holes[id(tensors[key])] = (tensors[key], why)
            return result

        model.load_state_dict = partial  # type: ignore[method-assign]
        builder._resolve_pretrained_source = lambda _: ("state_dict", dict(state))
        try:
            original(model, pretrained_cfg, *args, **kwargs)
        except RuntimeError as error:
            lines = [line.strip() for line in str(error).splitlines() if "size mismatch" in line]
            file = store.used.pop(tag)["file"]  # type: ignore[index]
            raise WeightsError(f"weights {tag!r} ({file}) do not fit: {(lines or [str(error)])[0]}") from error
        finally:
            builder._resolve_pretrained_source = resolve
            del model.load_state_dict

    return load


def _timm_create(
    original: Callable[..., nn.Module], holes: Mapping[int, tuple[Tensor, str]]
) -> Callable[..., nn.Module]:
    """timm.create_model, which refuses a network that kept a tensor that the file did not have."""

    def create(*args: Any, **kwargs: Any) -> nn.Module:
        net = original(*args, **kwargs)
        for tensor in (*net.parameters(), *net.buffers()):
            if id(tensor) in holes:
                raise WeightsError(holes[id(tensor)][1])
        return net

    return create


def _torchvision(weights: Any, store: WeightStore) -> Loaded:
    """The state behind a member of one of torchvision's enumerations of weights, by our tag."""
    from torchvision.models import get_model_weights, list_models

    variants = {name: variant for variant, name in TORCHVISION.items()}
    name = next((n for n in list_models() if get_model_weights(n) is type(weights)), None)
    if name is None or weights.name not in variants:
        raise ModelError(f"torchvision asks for {weights}; only {', '.join(variants)} of its image networks have a tag")
    loaded = Loaded(store.load(f"{name}.{variants[weights.name]}") or {})
    loaded.tag = f"{name}.{variants[weights.name]}"
    return loaded
