"""The pieces that trained methods share: pictures in memory, seeded order, checks, checkpoints, early stopping.

`train` puts them together for the usual case of one loss; a method with its own loop takes the pieces it needs.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import math
import os
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from models.base import Context, Images, ModelError, Precision, Progress, no_progress
from models.nn.memory import note
from models.nn.preprocess import Preprocess

Step = Callable[[Tensor, torch.Generator], "Tensor | dict[str, Tensor]"]
MIN_PICTURES = 10  # fewer leave nothing to hold back from training


def load_pictures(
    images: Images, preprocess: Preprocess, device: torch.device | str = "cpu", *,
    dtype: torch.dtype = torch.float32, notes: list[str] | None = None,
) -> Tensor:
    """Every picture decoded once and brought to the model's size: [N, 3, h, w] on `device`.

    float32: exactly what `preprocess` gives. uint8: values in [0, 255] before normalisation, a quarter of the memory
    and rounded to 1/255; `from_bytes` turns a batch of it into the network's input. Sizes may differ between pictures.
    notes: gets a line when pictures were smaller than the model's size and had to be enlarged.
    """
    if not len(images):
        raise ModelError("there are no training pictures; check the category's train folder")
    plain = preprocess if dtype == torch.float32 else Preprocess(
        preprocess.size, preprocess.crop, normalise=False, antialias=preprocess.antialias
    )
    height, width = preprocess.output
    out = torch.empty(len(images), 3, height, width, dtype=dtype, device=device)
    enlarged = 0
    for i in range(len(images)):
        picture = images[i]
        enlarged += picture.shape[0] < preprocess.size[0] or picture.shape[1] < preprocess.size[1]
        x = plain([picture], device)[0]
        out[i] = x if dtype == torch.float32 else x.mul(255).round().clamp_(0, 255)
    if enlarged and notes is not None:
        size = f"{preprocess.size[1]}x{preprocess.size[0]}"
        notes.append(f"{enlarged} of {len(images)} training pictures are smaller than {size} and were enlarged")
    return out


def from_bytes(batch: Tensor, preprocess: Preprocess) -> Tensor:
    """uint8 [B, 3, h, w] from `load_pictures` -> float32 input of the network, normalised as configured."""
    return preprocess.normalised(batch.float().div_(255))


def generator(context: Context, name: str, device: torch.device | str = "cpu") -> torch.Generator:
    """A stream of random numbers of its own for each purpose, from the unit's seed."""
    seed = int(np.random.SeedSequence([context.seed % 2**32, zlib.crc32(name.encode())]).generate_state(1)[0])
    return torch.Generator(device).manual_seed(seed)


def step_generator() -> torch.Generator:
    """A CPU generator for one step of `train`, seeded from torch's global state, which checkpoints restore.

    One that is made before a training and drawn from in its steps would start anew when the training is resumed.
    """
    return torch.Generator().manual_seed(int(torch.randint(2**62, (1,))))


def split(count: int, fraction: float, context: Context, *, minimum: int = MIN_PICTURES) -> tuple[list[int], list[int]]:
    """Indices (training, held back), each sorted; `fraction` of `count` pictures is held back, at least one.

    Raises ModelError when there are fewer than `minimum` pictures.
    """
    if count < minimum:
        raise ModelError(
            f"{count} training pictures are too few: {fraction:.0%} of them are held back for validation, "
            f"which needs at least {minimum}; add pictures to the category's train folder"
        )
    held = max(1, round(count * fraction))
    order = torch.randperm(count, generator=generator(context, "split")).tolist()
    return sorted(order[held:]), sorted(order[:held])


def batches(
    count: int, size: int, order: torch.Generator, device: torch.device | str = "cpu"
) -> Iterator[Tensor]:
    """One epoch: a random order of `count` indices in batches of `size`; the last one may be smaller.

    The order is drawn on the CPU, so that it is the same for every device, and copied once.
    """
    yield from torch.randperm(count, generator=order).to(device).split(size)


def autocast(device: torch.device, precision: Precision) -> AbstractContextManager[Any]:
    """Mixed precision for the forward pass. bf16 has float32's range, so the loss needs no scaling."""
    if precision != "bf16":
        return contextlib.nullcontext()
    note("trained network computed in bf16, its weights kept in float32")
    return torch.autocast(device.type, dtype=torch.bfloat16)


@contextlib.contextmanager
def own_random_state(context: Context, name: str) -> Iterator[None]:
    """Global random numbers (dropout draws from them) seeded from the unit, and put back afterwards."""
    devices = [context.device] if context.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(generator(context, name).initial_seed())
        yield


def check_finite(values: Mapping[str, float], epoch: int, kept: int | None = None) -> None:
    """Raise ModelError naming the epoch (counted from 1) and the value that is not a finite number."""
    for name, value in values.items():
        if not math.isfinite(value):
            saved = f"; the checkpoint of epoch {kept} is kept" if kept else ""
            raise ModelError(
                f"{name} became {value} in epoch {epoch}{saved}; lower the learning rate or use precision=float32"
            )


@dataclass
class Best:
    """Early stopping on a validation loss: the best epoch, and the weights it had.

    Epochs before `start` are not looked at. `patience` epochs without a better loss end the training; the count
    starts at `start` (so it ends at start + patience at the earliest).
    """

    patience: int
    start: int = 0
    loss: float = math.inf
    epoch: int = 0
    state: dict[str, Any] | None = field(default=None, repr=False)

    def update(self, epoch: int, loss: float, modules: Mapping[str, nn.Module]) -> bool:
        """Take in the loss after `epoch` (from 1); True when the training should end."""
        if epoch < self.start:
            return False
        if loss < self.loss:
            self.loss, self.epoch = loss, epoch
            self.state = {name: copy.deepcopy(module.state_dict()) for name, module in modules.items()}
        return epoch - self.epoch >= self.patience

    def restore(self, modules: Mapping[str, nn.Module]) -> None:
        """Give the modules the best epoch's weights, when there was one."""
        if self.state is not None:
            for name, module in modules.items():
                module.load_state_dict(self.state[name])


class Checkpoint:
    """`<scratch>/checkpoint.pt`, replaced atomically, at most every `every_s` seconds.

    `key` says what the state belongs to; a file of another key, or one that cannot be read, is not used.
    """

    def __init__(self, scratch: Path | None, key: Any, every_s: float = 60.0) -> None:
        self.path = scratch / "checkpoint.pt" if scratch else None
        self.key = hashlib.sha256(repr(key).encode()).hexdigest()
        self.every_s = every_s
        self.epoch: int | None = None  # last epoch on disk
        self.note: str | None = None
        self._last = time.monotonic()

    def due(self) -> bool:
        return self.path is not None and self.note is None and time.monotonic() - self._last >= self.every_s

    def save(self, epoch: int, state: Mapping[str, Any]) -> None:
        """Write the state of a finished epoch; a disk that is full or read-only does not end the training."""
        if self.path is None:
            return
        temporary = self.path.with_suffix(".tmp")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            torch.save({"key": self.key, "epoch": epoch, **state}, temporary)
            os.replace(temporary, self.path)
            self.epoch = epoch
        except (OSError, RuntimeError) as error:  # torch reports a failed write as RuntimeError
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            self.note = f"no checkpoint could be written ({error})"
        self._last = time.monotonic()

    def load(self) -> dict[str, Any] | None:
        """The saved state on the CPU, or None. Modules and optimizers copy what they need to their own device.

        Loaded onto a GPU, an optimizer's step counters would stay there and be waited for in every step.
        """
        if self.path is None or not self.path.is_file():
            return None
        try:
            state = torch.load(self.path, map_location="cpu", weights_only=True)
            if state["key"] != self.key:
                return None
        except Exception:  # whatever a broken file raises, training starts again from the beginning
            return None
        self.epoch = state["epoch"]
        return state


def train(
    step: Step,
    modules: Mapping[str, nn.Module],
    optimizers: Sequence[torch.optim.Optimizer],
    *,
    count: int,
    batch: int,
    epochs: int,
    context: Context,
    key: Any,
    progress: Progress = no_progress,
    validate: Callable[[], float] | None = None,
    stop: Best | None = None,
    schedulers: Sequence[torch.optim.lr_scheduler.LRScheduler] = (),
    checkpoint_s: float = 60.0,
    keep_end: bool = False,
    host_indices: bool = False,
) -> dict[str, Any]:
    """Train `modules`; returns the log {'loss': [...], 'epochs': n, ...} with one mean per epoch.

    step(indices int64 [b] on the device, noise generator on the device) returns the batch's loss, or a dict with
        'loss' and further scalars to log. `train` does backward and lets every optimizer (and, once an epoch, every
        scheduler) step.
    modules: what is trained, by name; set to train() before each epoch and to eval() at the end.
    key: anything whose repr tells trainings apart (the config, the number of pictures); with the seed it decides
        whether a checkpoint in `context.scratch` is continued. A continued training equals an undisturbed one on CPU.
    validate: called after each epoch in eval mode and without gradients; its value goes to `stop`, after which the
        best epoch's weights are restored.
    keep_end: the last epoch is saved however short the training was (what follows builds on exactly these weights).
    host_indices: `step` gets them on the CPU, and brings them to the device with what else it draws there.

    Raises ModelError, naming the epoch, when a loss or a weight is not finite; the last checkpoint stays.
    """
    device = context.device
    order, noise = generator(context, "order"), generator(context, "noise", device)
    log: dict[str, Any] = {"loss": [], "epochs": 0}
    store = Checkpoint(context.scratch, (key, context.seed, count, batch), checkpoint_s)
    first, begin, steps = 0, time.monotonic(), math.ceil(count / batch)

    with own_random_state(context, "train"):
        if (saved := store.load()) is not None:
            first, log = saved["epoch"], saved["log"]
            log.setdefault("resumed_after_epoch", []).append(first)
            _restore(saved, modules, optimizers, schedulers, stop, order, noise)
        ended = bool(first) and bool(log.get("ended"))
        for epoch in range(first + 1, epochs + 1):
            if ended:
                break
            for module in modules.values():
                module.train()
            parts: dict[str, list[Tensor]] = {}
            for i, indices in enumerate(batches(count, batch, order, "cpu" if host_indices else device), 1):
                result = step(indices, noise)
                values = {"loss": result} if isinstance(result, Tensor) else result
                for optimizer in optimizers:
                    optimizer.zero_grad(set_to_none=True)
                values["loss"].backward()
                for optimizer in optimizers:
                    optimizer.step()
                for name, value in values.items():
                    parts.setdefault(name, []).append(value.detach())
                shown = _shown(parts, log, device)
                check_finite(shown, epoch, store.epoch)
                progress((epoch - 1) * steps + i, epochs * steps, **shown)
            means = {name: float(torch.stack(values).double().mean()) for name, values in parts.items()}
            check_finite(means, epoch, store.epoch)
            _check_weights(modules, epoch, store.epoch)
            for name, value in means.items():
                log.setdefault(name, []).append(value)
            log["epochs"] = epoch
            for scheduler in schedulers:
                scheduler.step()
            if validate is not None:
                value = _validated(validate, modules)
                check_finite({"validation_loss": value}, epoch, store.epoch)
                log.setdefault("validation_loss", []).append(value)
                ended = stop is not None and stop.update(epoch, value, modules)
            log["ended"] = ended
            over = ended or epoch == epochs
            if store.due() or (over and (keep_end or time.monotonic() - begin > checkpoint_s)):
                store.save(epoch, _state(modules, optimizers, schedulers, stop, order, noise, log))
    if stop is not None and stop.state is not None:
        stop.restore(modules)
        log["best_epoch"] = stop.epoch
    for module in modules.values():
        module.eval()
    log.pop("ended", None)
    if store.note:
        log["notes"] = [store.note]
    return log


@dataclass(frozen=True)
class Phase:
    """One training among several of a method; step, modules and optimizers as in `train`."""

    name: str
    step: Step
    modules: Mapping[str, nn.Module]
    optimizers: Sequence[torch.optim.Optimizer]
    epochs: int


def train_phases(
    phases: Iterable[Phase], *, epochs: int, count: int, batch: int, context: Context, key: Any,
    progress: Progress = no_progress, checkpoint_s: float = 60.0,
) -> dict[str, Any]:
    """Train one phase after the other: the log {'loss': all, 'epochs': n, <name of phase>: its log, ...}.

    phases: a generator, in which whatever stands between two `yield`s (freezing a part, choosing a reference) runs when
        the phase before has ended, also in a training that goes on after an interruption. Finished phases are kept in
        `context.scratch/<name>` with their weights, so that none is trained twice.
    epochs: of all phases together, for the progress shown. The others are as in `train`.
    """
    log: dict[str, Any] = {"loss": [], "epochs": 0}
    steps = math.ceil(count / batch)
    for phase in phases:
        before = log["epochs"] * steps

        def report(done: int, total: int, /, before: int = before, **values: float) -> None:
            progress(before + done, epochs * steps, **values)

        folder = context.scratch / phase.name if context.scratch else None
        part = train(
            phase.step, phase.modules, phase.optimizers, count=count, batch=batch, epochs=phase.epochs,
            context=replace(context, scratch=folder), key=(phase.name, key), progress=report,
            checkpoint_s=checkpoint_s, keep_end=True,
        )
        log["loss"] += part["loss"]
        log["epochs"] += part["epochs"]
        log[phase.name] = part
    return log


def _shown(parts: Mapping[str, list[Tensor]], log: Mapping[str, Any], device: torch.device) -> dict[str, float]:
    """The loss to show after a step; on a GPU the last epoch's, since reading the step's would wait for it."""
    if device.type == "cpu":
        return {"loss": float(parts["loss"][-1])}
    return {"loss": log["loss"][-1]} if log["loss"] else {}


@torch.no_grad()
def _check_weights(modules: Mapping[str, nn.Module], epoch: int, kept: int | None) -> None:
    """One sum per module: a weight that is NaN or infinite makes it so."""
    for name, module in modules.items():
        parameters = [p.sum(dtype=torch.float32) for p in module.parameters()]
        if parameters:
            check_finite({f"a weight of {name}": float(torch.stack(parameters).sum())}, epoch, kept)


@torch.no_grad()
def _validated(validate: Callable[[], float], modules: Mapping[str, nn.Module]) -> float:
    for module in modules.values():
        module.eval()
    return float(validate())


def _state(
    modules: Mapping[str, nn.Module], optimizers: Sequence[torch.optim.Optimizer],
    schedulers: Sequence[torch.optim.lr_scheduler.LRScheduler], stop: Best | None,
    order: torch.Generator, noise: torch.Generator, log: dict[str, Any],
) -> dict[str, Any]:
    return {
        "modules": {name: module.state_dict() for name, module in modules.items()},
        "optimizers": [optimizer.state_dict() for optimizer in optimizers],
        "schedulers": [scheduler.state_dict() for scheduler in schedulers],
        "stop": None if stop is None else {name: getattr(stop, name) for name in ("loss", "epoch", "state")},
        "random": {
            "order": order.get_state(), "noise": noise.get_state(), "cpu": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state(noise.device) if noise.device.type == "cuda" else None,
        },
        "log": log,
    }


def _restore(
    saved: Mapping[str, Any], modules: Mapping[str, nn.Module], optimizers: Sequence[torch.optim.Optimizer],
    schedulers: Sequence[torch.optim.lr_scheduler.LRScheduler], stop: Best | None,
    order: torch.Generator, noise: torch.Generator,
) -> None:
    for name, module in modules.items():
        module.load_state_dict(saved["modules"][name])
    for target, state in zip([*optimizers, *schedulers], [*saved["optimizers"], *saved["schedulers"]], strict=True):
        target.load_state_dict(state)
    if stop is not None:
        for name, value in saved["stop"].items():
            setattr(stop, name, value)
    random = saved["random"]
    order.set_state(random["order"].cpu())
    noise.set_state(random["noise"].cpu())
    torch.set_rng_state(random["cpu"].cpu())
    if random["cuda"] is not None:
        torch.cuda.set_rng_state(random["cuda"].cpu(), noise.device)


def key_of(config: Any) -> str:
    """A config as a text for `train(key=...)`, without what does not change the training."""
    values = asdict(config)
    values.pop("batch", None)
    return repr(sorted(values.items()))
