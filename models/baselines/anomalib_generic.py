"""Any one-class image model of anomalib as `anomalib/<name>`, fitted by Lightning's trainer as anomalib means it.

Raw output of the torch model only: no post-processor, no validation data, no callbacks of anomalib's engine. Backbones
that a model takes from timm come from the weights by their exact tag; other downloads are the model's own business.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar
from unittest.mock import patch

import torch
from torch import Tensor

from models.base import Config, Context, Detector, Images, Prediction, Progress, no_progress
from models.errors import ModelError, near
from models.nn.preprocess import Preprocess
from models.weights import IGNORED, WeightStore, load_into


@dataclass(frozen=True, kw_only=True)
class GenericConfig(Config):
    """anomalib's own defaults, but for what its engine would leave open."""

    size: int = 256
    epochs: int = 100  # unless the model itself asks for a number, as the ones that only collect features do
    train_batch: int = 32


@cache
def image_models() -> dict[str, type]:
    """Class of every image model of anomalib by the name of its folder (`cfa`, `efficient_ad`, `anomaly_dino`)."""
    from anomalib.models import image

    classes = [getattr(image, name) for name in image.__all__]
    return {cls.__module__.split(".")[3]: cls for cls in classes}


@cache
def detector_class(name: str) -> type[Detector]:
    """The detector of an anomalib model. Raises ModelError with near names when there is none."""
    known = image_models()
    if name not in known:
        raise ModelError(f"anomalib has no image model {name!r}{near(name, known)}; it has {', '.join(sorted(known))}")
    return type(f"Anomalib_{name}", (Generic,), {
        "name": f"anomalib/{name}", "model": known[name], "__doc__": f"{known[name].__name__} as anomalib has it",
    })


class Generic(Detector):
    """One model of anomalib; subclasses set `model`."""

    Config = GenericConfig
    config: GenericConfig
    model: ClassVar[Any]

    def __init__(self, config: GenericConfig, context: Context) -> None:
        super().__init__(config, context)
        from anomalib import LearningType
        from torchvision.transforms.v2 import CenterCrop

        size = (config.size, config.size)
        prepare = self.model.configure_pre_processor(size)
        with timm_from(context.weights):
            self.module = self.model(pre_processor=prepare, post_processor=False, evaluator=False, visualizer=False)
        if self.module.learning_type != LearningType.ONE_CLASS:
            raise ModelError(f"{self.name} learns {self.module.learning_type.value}, not from normal pictures alone")
        crops = [t.size for t in getattr(prepare.transform, "transforms", []) if isinstance(t, CenterCrop)]
        self.input = Preprocess(size, normalise=False)  # anomalib's pre-processor normalises and crops
        self.preprocess = Preprocess(size, tuple(crops[0]) if crops else None, normalise=False)
        self.module.to(context.device)  # left in the modes it was built in: the trainer keeps them

    def fit(self, train: Images, validation: Images | None, progress: Progress = no_progress) -> dict[str, Any]:
        from lightning.pytorch import Callback, Trainer, seed_everything

        losses: list[float] = []

        class Watch(Callback):
            def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, index: int) -> None:
                loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
                value = float(loss) if isinstance(loss, Tensor) and loss.numel() == 1 else None
                if value is not None and value != value:
                    raise ModelError(f"loss became NaN in epoch {trainer.current_epoch + 1}; lower the learning rate")
                losses.extend([] if value is None else [value])
                total = trainer.num_training_batches * trainer.max_epochs
                progress(trainer.global_step or index + 1, total, **({} if value is None else {"loss": value}))

        logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
        seed_everything(self.context.seed, verbose=False)
        asked = {"max_epochs": self.config.epochs, **self.module.trainer_arguments, "num_sanity_val_steps": 0}
        device = self.context.device
        asked.update(accelerator="gpu" if device.type == "cuda" else "cpu", limit_val_batches=0, logger=False,
                     devices=[device.index or 0] if device.type == "cuda" else 1, callbacks=[Watch()],
                     enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
                     default_root_dir=self.context.scratch)
        trainer = Trainer(**asked)
        trainer.fit(self.module, self._loader(train))
        self.module.to(device).eval()
        return {"loss": losses, "epochs": trainer.current_epoch}

    def _loader(self, images: Images) -> Any:
        from anomalib.data import ImageBatch
        from torch.utils.data import DataLoader

        def collate(indices: list[int]) -> Any:
            x = self.input([images[i] for i in indices])
            normal = torch.zeros(len(x), dtype=torch.bool)
            return ImageBatch(image=x, gt_label=normal, gt_mask=torch.zeros(x[:, 0].shape, dtype=torch.bool))

        order = torch.Generator().manual_seed(self.context.seed)
        batch = min(self.config.train_batch, len(images))
        return DataLoader(range(len(images)), batch, shuffle=True, collate_fn=collate, generator=order)  # type: ignore

    @torch.no_grad()
    def predict(self, batch: Images) -> Prediction:
        self.module.eval()
        x = self.input(batch, self.context.device)
        result = self.module.model(self.module.pre_processor(x))
        maps, score = getattr(result, "anomaly_map", None), getattr(result, "pred_score", None)
        if maps is None and score is None:
            raise ModelError(f"{self.name} gave neither a map nor a score")
        return Prediction(
            None if maps is None else maps.reshape(len(x), *maps.shape[-2:]).float(),
            None if score is None else score.reshape(len(x)).float(),
        )

    def state_dict(self) -> dict[str, Any]:
        return dict(self.module.state_dict())

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.module.load_state_dict(state)


@contextlib.contextmanager
def timm_from(store: WeightStore) -> Iterator[None]:
    """While it lasts, networks that ask timm for pretrained weights get them from `store` by timm's default tag."""
    import timm

    original = timm.create_model

    def create(name: str, pretrained: bool = False, **settings: Any) -> Any:
        net = original(name, pretrained=False, **settings)
        if pretrained:
            default = timm.get_pretrained_cfg(name)
            tag = name if "." in name or not default or not default.tag else f"{name}.{default.tag}"
            state = store.load(tag, [key for key in net.state_dict() if not key.endswith(IGNORED)])
            if state is not None:
                load_into(net, state, tag)
        return net

    with patch.object(timm, "create_model", create):
        yield
