"""What methods with a training have in common: preprocessing, pictures in memory, the loop, notes, and their state."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from models.base import Config, Context, Detector, Images, Progress
from models.nn.preprocess import Preprocess
from models.nn.training import key_of, load_pictures, train


@dataclass(frozen=True, kw_only=True)
class TrainedConfig(Config):
    size: int = 256
    epochs: int = 100
    train_batch: int = 32
    lr: float = 1e-3


class Trained(Detector):
    """A method with trained modules; its state is theirs, since frozen parts come from the weights by tag.

    A subclass calls `_trained(net=...)` in `__init__`, and `_pictures` and `_train` in `fit`. Reconstruction methods
    set `normalise = False` and `channels_last = True`. kept: attributes that belong to the state besides the modules
    (a threshold, a reference picture): tensors or plain values. notes: lines that `_train` puts into the log.
    """

    Config = TrainedConfig
    config: TrainedConfig
    normalise: ClassVar[bool] = True
    channels_last: ClassVar[bool] = False
    kept: ClassVar[tuple[str, ...]] = ()

    def __init__(self, config: TrainedConfig, context: Context) -> None:
        super().__init__(config, context)
        self.preprocess = Preprocess((config.size, config.size), normalise=self.normalise)
        self.trained: dict[str, nn.Module] = {}
        self.notes: list[str] = []

    @property
    def _format(self) -> torch.memory_format:
        return torch.channels_last if self.channels_last else torch.preserve_format

    def _trained(self, **modules: nn.Module) -> None:
        self.trained = {
            name: module.to(self.context.device, memory_format=self._format).eval() for name, module in modules.items()
        }

    def _train(
        self, step: Any, optimizers: Sequence[Any], count: int, progress: Progress, *, key: Any = (), **more: Any
    ) -> dict[str, Any]:
        """Train `self.trained` for the configured epochs unless `more` says otherwise; see `training.train`.

        key: what tells this training apart besides method and config.
        """
        if "epochs" not in more:
            more["epochs"] = self.config.epochs
        log = train(
            step, self.trained, optimizers, count=count, batch=self.config.train_batch, context=self.context,
            key=(self.name, key_of(self.config), key), progress=progress, **more,
        )
        return self._noted(log)

    def _once(self, key: Any, fit: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The log of `fit`, which is run once for all units of one category and seed in this process with an equal key.

        For presets that read one trained network in different ways: the later ones take the first one's state.
        """
        shared = self.context.extras.get("members", {})
        if key in shared:
            state, weights, log = shared[key]
            self.load_state_dict(state)
            self.context.weights.used.update(weights)
            return {**log, "shared": "trained earlier in the same process, for another reading of the same network"}
        log = fit()
        state = {
            name: {k: v.cpu() for k, v in part.items()} if isinstance(part, Mapping) else part
            for name, part in self.state_dict().items()
        }
        shared[key] = (state, dict(self.context.weights.used), log)
        return log

    def _noted(self, log: dict[str, Any]) -> dict[str, Any]:
        """The log with the notes gathered so far, which are then forgotten."""
        if self.notes:
            log["notes"], self.notes = [*log.get("notes", []), *self.notes], []
        return log

    def _pictures(self, images: Images) -> Tensor:
        """[N, 3, h, w] on the device; a note when pictures had to be enlarged."""
        pictures = load_pictures(images, self.preprocess, self.context.device, notes=self.notes)
        return pictures.contiguous(memory_format=self._format) if self.channels_last else pictures

    def _seen(self, batch: Images) -> Tensor:
        """A batch for `predict` as the network takes it: [B, 3, h, w] on the device."""
        x = self.preprocess(batch, self.context.device)
        return x.contiguous(memory_format=self._format) if self.channels_last else x

    def _parameters(self) -> list[nn.Parameter]:
        """Those of `self.trained` that are not frozen."""
        return [p for module in self.trained.values() for p in module.parameters() if p.requires_grad]

    def state_dict(self) -> dict[str, Any]:
        modules = {name: module.state_dict() for name, module in self.trained.items()}
        return modules | {name: getattr(self, name) for name in self.kept}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for name, module in self.trained.items():
            module.load_state_dict(state[name])
        for name in self.kept:
            setattr(self, name, state[name])
