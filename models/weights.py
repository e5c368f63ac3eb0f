"""Pretrained weights by exact tag (`wide_resnet50_2.tv_in1k`): a directory, the library caches, or a download.

The default weights behind an architecture's bare name change with library versions, so presets always pin a tag.
Partial files (a trunk without its last stage) are accepted exactly when every key asked for is in them.
"""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from contextvars import ContextVar
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from models.errors import ModelError, near

SUFFIXES = (".pth", ".pt", ".safetensors")
IGNORED = "num_batches_tracked"  # a counter of batch norm that inference never reads; older files lack it
# weights that lie in an archive: tag -> its address and SHA-256; the file in it is named after the tag
_TEACHERS = (
    "https://github.com/open-edge-platform/anomalib/releases/download/efficientad_pretrained_weights/"
    "efficientad_pretrained_weights.zip", "c09aeaa2b33f244b3261a5efdaeae8f8284a949470a4c5a526c61275fe62684a",
)
ARCHIVES = {f"pretrained_teacher_{size}": _TEACHERS for size in ("small", "medium")}
TORCHVISION = {"tv_in1k": "IMAGENET1K_V1", "tv2_in1k": "IMAGENET1K_V2"}

reading: ContextVar[bool] = ContextVar("reading", default=False)  # True while a store reads a file or downloads it


class WeightsError(ModelError):
    """Weights missing, unreadable or of other shapes. The message names the file, the key, and what to put where."""


class WeightStore:
    """Finds weights by tag and remembers what it gave.

    mode: 'auto' searches the caches of torch hub and Hugging Face and then downloads; 'none' gives None for every tag
        (the method runs untrained); anything else is a directory that is searched with its subfolders.
    urls: tag -> address, tried before the libraries' own addresses in mode 'auto' (a mirror, file:// included).
    substitutes: tag -> file taken for it in every mode, though it holds other weights than the tag names.
    used: tag -> {'sha256': full hex, 'file': base name} or 'untrained', filled by every `load`; a substitute has
        'substitute': True besides.
    forms: tag -> how a frozen network of these weights computes, filled by `models.features.backbone`.
    """

    def __init__(
        self, mode: str | Path, urls: Mapping[str, str] | None = None, substitutes: Mapping[str, Path] | None = None
    ) -> None:
        self.mode = str(mode)
        self.urls = dict(urls or {})
        self.substitutes = dict(substitutes or {})
        self.used: dict[str, dict[str, Any] | str] = {}
        self.forms: dict[str, str] = {}
        self.directory = None if self.mode in ("auto", "none") else Path(mode)
        if self.directory is not None and not self.directory.is_dir():
            raise WeightsError(f"weights directory {self.directory} does not exist; give a directory, 'auto' or 'none'")

    def fresh(self) -> WeightStore:
        """A store with the same sources that has given nothing yet."""
        return WeightStore(self.mode, self.urls, self.substitutes)

    def load(
        self, tag: str, needed: Mapping[str, Tensor] | Iterable[str] | None = None
    ) -> dict[str, Tensor] | None:
        """The tensors of `tag` under their torchvision/timm key names, or None in mode 'none'.

        With `needed`, names or a network's state, only those keys are returned (but for counters of batch norm), and a
        file that lacks one, or has it in another shape than the network, is passed over.
        Raises WeightsError when there is no such file or none that can be used.
        """
        if self.mode == "none" and tag not in self.substitutes:
            self.used[tag] = "untrained"
            return None
        if needed is not None and not isinstance(needed, Mapping):
            needed = dict.fromkeys(needed)
        token = reading.set(True)
        try:
            return self._load(tag, needed)
        finally:
            reading.reset(token)

    def _load(self, tag: str, needed: Mapping[str, Tensor | None] | None) -> dict[str, Tensor]:
        unfit: list[str] = []
        for path in [self.substitutes[tag]] if tag in self.substitutes else self._files(tag):
            state = read(path)
            if needed is not None:
                if why := _misfit(state, needed):
                    unfit.append(f"{path.name} {why}")
                    continue
                state = {key: state[key] for key in needed if key in state}
            self.used[tag] = {"sha256": sha256(path), "file": path.name}
            if tag in self.substitutes:
                self.used[tag]["substitute"] = True
            return state
        raise WeightsError(self._not_found(tag, unfit))

    def _files(self, tag: str) -> Iterator[Path]:
        """Candidate files, best first; in mode 'auto' the download comes last."""
        if self.directory is not None:
            yield from _in_directory(self.directory, tag)
        else:
            yield from _cached(tag, self.urls.get(tag))
            path = _download(tag, self.urls.get(tag))
            if path is not None:
                yield path

    def _not_found(self, tag: str, lacking: list[str]) -> str:
        if tag in self.substitutes:
            given = f"--weights-for {tag}={self.substitutes[tag]}"
            return f"{given}: {'; '.join(lacking)}; give a file that fits the network"
        given = near(tag, self.substitutes)
        names = f"{tag}.pth, {tag}.pt or {tag}.safetensors (a partial file: {tag}.<anything>.pth)"
        if tag in ARCHIVES:
            names = f"{tag}.pth from {ARCHIVES[tag][0]}"
        if self.directory is not None:
            if lacking:
                return f"weights {tag!r} in {self.directory}: {'; '.join(lacking)}; put a complete file there: {names}"
            return f"weights {tag!r} not found in {self.directory}{given}; put one of these there: {names}"
        found = f" ({'; '.join(lacking)})" if lacking else ""
        return (
            f"weights {tag!r} not in the caches of torch hub and Hugging Face and not to be downloaded{found}{given}; "
            f"put {names} in a directory and give it as --weights DIR, or run untrained with --weights none"
        )


def _misfit(state: Mapping[str, Tensor], needed: Mapping[str, Tensor | None]) -> str:
    """The first layer, in the network's order, that `state` lacks or has in another shape; empty when all fit."""
    wanted = {key: tensor for key, tensor in needed.items() if not key.endswith(IGNORED)}
    missing = [key for key in wanted if key not in state]
    for key, tensor in wanted.items():
        if key not in state:
            return f"lacks {len(missing)} of {len(wanted)} keys, first {key!r}"
        if tensor is not None and state[key].shape != tensor.shape:
            return f"has {key!r} of shape {tuple(state[key].shape)}, the network needs {tuple(tensor.shape)}"
    return ""


def found_in(directory: str | Path, tag: str) -> Path | None:
    """The first file in a weights directory that is tried for a tag; None when there is none. No file is read."""
    return next(iter(_in_directory(Path(directory), tag)), None)


def load_into(module: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Copy `state` into `module`, whose every key must be there with its own shape; further keys are ignored.

    source: tag or file, for the message. Raises WeightsError naming the key (and both shapes when they differ).
    """
    own = module.state_dict()
    for key, tensor in own.items():
        if key.endswith(IGNORED):
            continue
        if key not in state:
            raise WeightsError(f"weights {source!r} have no key {key!r}")
        if state[key].shape != tensor.shape:
            raise WeightsError(
                f"weights {source!r}: {key!r} has shape {tuple(state[key].shape)}, the network needs "
                f"{tuple(tensor.shape)}; the file belongs to another architecture or variant"
            )
    module.load_state_dict({key: state.get(key, tensor) for key, tensor in own.items()})


def read(path: Path) -> dict[str, Tensor]:
    """Tensors of a .pth, .pt or .safetensors file by key, on the CPU; no code of the file is run.

    Raises WeightsError naming the file when it is cut short, not a weights file, or holds something else.
    """
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            state: Any = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # zip, pickle, safetensors and OS errors alike
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise WeightsError(f"{path} cannot be read as weights (cut short or another format): {reason}") from error
    for wrapper in ("state_dict", "model"):
        if isinstance(state, Mapping) and isinstance(state.get(wrapper), Mapping):
            state = state[wrapper]
    if not isinstance(state, Mapping) or not state or not all(isinstance(v, Tensor) for v in state.values()):
        raise WeightsError(f"{path} holds no dict of tensors; save the network's state_dict there")
    return dict(state)


def sha256(path: Path) -> str:
    """Full hash of a file, read once and again only when the file has changed."""
    return _sha256(path, path.stat().st_mtime_ns)


@lru_cache(maxsize=256)
def _sha256(path: Path, mtime_ns: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _in_directory(directory: Path, tag: str) -> list[Path]:
    """`<tag>.pth`, then `<tag>.<anything>.pth`, then `<tag>/model.safetensors`, then torchvision's own file name."""
    files = sorted(p for p in directory.rglob("*") if p.suffix in SUFFIXES and p.is_file())
    exact = [p for p in files if p.stem == tag]
    partial = [p for p in files if p.name.startswith(f"{tag}.") and p not in exact]
    folder = [p for p in files if p.parent.name == tag and p not in exact + partial]
    if not exact + partial + folder and (url := _torchvision_url(tag)):
        return [p for p in files if p.name == _file_name(url)]
    return exact + partial + folder


def _cached(tag: str, url: str | None) -> Iterator[Path]:
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    for address in (url, _torchvision_url(tag)):
        if address and (path := folder / _file_name(address)).is_file():
            yield path
    yield from (path for suffix in SUFFIXES if (path := folder / f"{tag}{suffix}").is_file())
    from huggingface_hub import try_to_load_from_cache

    for name in ("model.safetensors", "pytorch_model.bin"):
        found = try_to_load_from_cache(f"timm/{tag}", name) if _is_timm(tag) else None
        if isinstance(found, str):
            yield Path(found)


def _download(tag: str, url: str | None) -> Path | None:
    """Fetch from `url`, torchvision, or timm's place on Hugging Face; None when none of them can be had."""
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    sources = [(address, _file_name(address)) for address in (url, _torchvision_url(tag)) if address]
    if _is_timm(tag):
        from huggingface_hub import hf_hub_url

        sources.append((hf_hub_url(f"timm/{tag}", "model.safetensors"), f"{tag}.safetensors"))
    for address, name in sources:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(address, str(folder / name), progress=False)
        except OSError:  # no network, not found, a full disk: the next source, then the message
            continue
        return _verified(folder / name)
    return _from_archive(tag, folder) if tag in ARCHIVES else None


def _from_archive(tag: str, folder: Path) -> Path | None:
    """Fetch the archive, compare its hash, and take the tag's file out of it; None when it cannot be had."""
    address, expected = ARCHIVES[tag]
    archive, path = folder / _file_name(address), folder / f"{tag}.pth"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(address, str(archive), progress=False)
        if (found := sha256(archive)) != expected:
            raise WeightsError(f"{archive.name} came with SHA-256 {found[:8]}..., not {expected[:8]}...; try again")
        with zipfile.ZipFile(archive) as packed:
            member = next(name for name in packed.namelist() if Path(name).name == path.name)
            part = path.with_suffix(".part")
            part.write_bytes(packed.read(member))
            part.replace(path)
    except OSError:
        return None
    finally:
        archive.unlink(missing_ok=True)
    return path


def _verified(path: Path) -> Path:
    """Compare a downloaded file with the hash in its name (`resnet18-f37072fd.pth`), where there is one."""
    expected = path.stem.rpartition("-")[2]
    if len(expected) >= 8 and all(c in "0123456789abcdef" for c in expected):
        digest = sha256(path)
        if not digest.startswith(expected):
            path.unlink()
            raise WeightsError(f"download of {path.name} has SHA-256 {digest[:8]}..., not {expected}...; try again")
    return path


def _file_name(url: str) -> str:
    return url.rstrip("/").rpartition("/")[2].partition("?")[0]


def _torchvision_url(tag: str) -> str | None:
    """torchvision's address of a `<name>.tv_in1k` or `<name>.tv2_in1k` tag."""
    name, _, variant = tag.partition(".")
    if variant not in TORCHVISION:
        return None
    from torchvision.models import get_model_weights

    try:
        return get_model_weights(name)[TORCHVISION[variant]].url
    except (ValueError, KeyError):
        return None


def _is_timm(tag: str) -> bool:
    import timm

    return timm.is_model(tag.partition(".")[0])
