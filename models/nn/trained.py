"""What methods with one training loop have in common: preprocessing, the loop, and their state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

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
    """A method with trained modules; its state is theirs, since frozen parts come from the weights by tag."""

    Config = TrainedConfig
    config: TrainedConfig
    normalise: ClassVar[bool] = True

    def __init__(self, config: TrainedConfig, context: Context) -> None:
        super().__init__(config, context)
        self.preprocess = Preprocess((config.size, config.size), normalise=self.normalise)
        self.trained: dict[str, nn.Module] = {}

    def _trained(self, **modules: nn.Module) -> None:
        self.trained = {name: module.to(self.context.device).eval() for name, module in modules.items()}

    def _train(
        self, step: Any, optimizers: Sequence[Any], count: int, progress: Progress, **more: Any
    ) -> dict[str, Any]:
        """Train `self.trained` for the configured epochs unless `more` says otherwise; see `training.train`."""
        more = {"epochs": self.config.epochs, **more}
        return train(
            step, self.trained, optimizers, count=count, batch=self.config.train_batch, context=self.context,
            key=(self.name, key_of(self.config)), progress=progress, **more,
        )

    def _pictures(self, images: Images) -> Tensor:
        return load_pictures(images, self.preprocess, self.context.device)

    def _parameters(self) -> list[nn.Parameter]:
        return [parameter for module in self.trained.values() for parameter in module.parameters()]

    def state_dict(self) -> dict[str, Any]:
        return {name: module.state_dict() for name, module in self.trained.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for name, module in self.trained.items():
            module.load_state_dict(state[name])
