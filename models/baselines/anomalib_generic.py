"""Any one-class image model of anomalib as `anomalib/<name>`, fitted by Lightning's trainer as anomalib means it.

Size, preprocessing, batch and schedule are the model's own; its constructor's arguments are fields, so `--set` reaches
them. Raw output of the torch model only: no post-processor, no callbacks of anomalib's engine, no choice of an epoch.
Weights come from the store whatever library loads them (`models/loading.py`). What anomalib does wrong and is mended
(`anomalib_mends.py`) stands in `anomalib_models.MENDED`, in the docs' table and in the record's notes.
"""

from __future__ import annotations

import enum
import inspect
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar

import torch
from torch import Tensor

from models.base import Context, Detector, Images, Prediction, Progress, no_progress
from models.baselines import anomalib_mends as mends
from models.baselines import anomalib_models as facts
from models.baselines.anomalib_config import GenericConfig, arguments, config_class, image_models
from models.errors import ModelError, near
from models.loading import weights_from
from models.nn.memory import note
from models.nn.preprocess import Preprocess


@cache
def detector_class(name: str) -> type[Detector]:
    """The detector of an anomalib model. Raises ModelError with near names when there is none, or why it cannot be."""
    known = image_models()
    if name not in known:
        raise ModelError(f"anomalib has no image model {name!r}{near(name, known)}; it has {', '.join(sorted(known))}")
    if why := facts.why_not(name, known[name]):
        raise ModelError(f"anomalib/{name} {why}; it cannot be run here")
    return type(f"Anomalib_{name}", (Generic,), {
        "name": f"anomalib/{name}", "model": known[name], "__doc__": f"{known[name].__name__} as anomalib has it",
        "Config": config_class(name, known[name]),
    })


@dataclass(frozen=True)
class OwnTransform(Preprocess):
    """A model's own resize, crop and normalisation, of each picture alone as in anomalib's data modules."""

    transform: Any = None

    def _resized(self, image: Tensor) -> Tensor:
        return self.transform(image.permute(2, 0, 1).float().div_(255))


class Generic(Detector):
    """One model of anomalib; subclasses set `model` and `Config`."""

    Config = GenericConfig
    config: GenericConfig
    model: ClassVar[Any]

    def __init__(self, config: GenericConfig, context: Context) -> None:
        super().__init__(config, context)
        self.short_name = self.name.removeprefix("anomalib/")
        prepare = self._pre_processor()
        self.preprocess = OwnTransform((config.size,) * 2, (config.crop,) * 2 if config.crop else None, normalise=False,
                                       transform=_without_padding(prepare.transform))
        with mends.timm_as_it_was(), weights_from(context.weights):
            try:
                self.module = self.model(**self._constructor(), pre_processor=prepare, post_processor=False,
                                         evaluator=False, visualizer=False)
            except ModelError:
                raise
            except (ValueError, TypeError, RuntimeError, AssertionError, KeyError, NotImplementedError) as error:
                raise ModelError(f"{self.name} cannot be built so: {error}") from error
            mends.mend(self.short_name, self.module, config, context)
        self.module.configure_callbacks = list  # pictures come preprocessed; anomalib's callback would do it again
        self.module.to(context.device)  # left in the modes it was built in: the trainer keeps them

    def _pre_processor(self) -> Any:
        accepts = inspect.signature(self.model.configure_pre_processor).parameters
        asked: dict[str, Any] = {"image_size": (self.config.size,) * 2}
        own_crop = type(self.config)().crop
        if self.config.crop is not None and self.config.crop != own_crop and not accepts.keys() & _CROPS.keys():
            raise ModelError(f"{self.name} crops nothing, or always {own_crop} pixels: leave `crop` alone")
        if self.config.crop is not None:
            asked |= {key: make(self.config.crop) for key, make in _CROPS.items() if key in accepts}
        return self.model.configure_pre_processor(**asked)

    def _constructor(self) -> dict[str, Any]:
        """Arguments for the model's constructor, in the kinds of their defaults."""
        config, parameters = self.config, inspect.signature(self.model).parameters
        found: dict[str, Any] = {}
        for key, parameter in arguments(self.model).items():
            if key == facts.TEXTURES.get(self.short_name):
                folder = mends.texture_folder(self.short_name, config, self.context)
                found |= {key: folder} if folder else {}
            elif hasattr(config, key):
                value, default = getattr(config, key), parameter.default
                kind = list if isinstance(default, list) or "list[" in str(parameter.annotation) else None
                found[key] = (type(default)(value) if isinstance(default, enum.Enum) else
                              kind(value) if kind and value is not None else value)
        side = config.crop or config.size
        ours = {"image_size": config.size, "input_shape": (side, side), "batch_size": config.train_batch,
                "epochs": config.epochs or 1}
        return found | {key: value for key, value in ours.items() if key in parameters}

    def fit(self, train: Images, validation: Images | None, progress: Progress = no_progress) -> dict[str, Any]:
        from lightning.pytorch import Callback, Trainer, seed_everything
        from torch.utils.data import Subset

        losses: list[float] = []
        steps = 0

        class Watch(Callback):
            def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, index: int) -> None:
                loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
                nonlocal steps
                steps += 1
                value = float(loss) if isinstance(loss, Tensor) and loss.numel() == 1 else None
                if value is not None and value != value:
                    raise ModelError(f"loss became NaN in epoch {trainer.current_epoch + 1}; lower the learning rate")
                losses.extend([] if value is None else [value])
                epochs = trainer.num_training_batches * trainer.max_epochs
                total = trainer.max_steps if trainer.max_steps > 0 else epochs
                progress(trainer.global_step or index + 1, total, **({} if value is None else {"loss": value}))

        if text := facts.MENDED.get(self.short_name):
            note(f"{self.name}: {text}")
        logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
        seed_everything(self.context.seed, verbose=False)
        device = self.context.device
        asked = {
            **self.module.trainer_arguments,
            "max_epochs": self.config.epochs or -1, "max_steps": self.config.steps or -1,
            "num_sanity_val_steps": 0, "accelerator": "gpu" if device.type == "cuda" else "cpu", "limit_val_batches": 0,
            "logger": False, "devices": [device.index or 0] if device.type == "cuda" else 1, "callbacks": [Watch()],
            "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False,
            "default_root_dir": self.context.scratch,
        }
        trainer = Trainer(**asked)
        kept, held = train, validation
        if self.short_name == "efficient_ad" and not (validation is not None and len(validation)):
            order = torch.randperm(len(train), generator=torch.Generator().manual_seed(self.context.seed)).tolist()
            count = max(1, len(train) // 10)
            kept, held = Subset(train, sorted(order[count:])), Subset(train, sorted(order[:count]))  # type: ignore
        with mends.timm_as_it_was(), weights_from(self.context.weights):
            try:
                trainer.fit(self.module, datamodule=_data(kept, held, self.preprocess, self.config, self.context.seed))
            except (ValueError, RuntimeError, AssertionError, IndexError, ArithmeticError) as error:
                if steps or isinstance(error, ModelError) or "out of memory" in str(error):
                    raise
                raise ModelError(f"{self.name} refuses its first pictures with these settings: {error}") from error
            self.module.to(device).eval()
            with torch.no_grad():
                self.module.on_validation_start()  # where anomalib's memory banks and quantiles are settled
        return {"loss": losses, "epochs": trainer.current_epoch}

    @torch.no_grad()
    def predict(self, batch: Images) -> Prediction:
        self.module.eval()
        x = self.preprocess(batch, self.context.device)
        with mends.timm_as_it_was(anomalibs=True):
            result = self.module.model(x)
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


_CROPS = {"crop_size": int, "center_crop_size": lambda side: (side, side)}


def _without_padding(transform: Any) -> Any:
    """The transform less padding to a square, to which anomalib's data modules leave nothing: they resize first."""
    from torchvision.transforms.v2 import Compose

    steps = getattr(transform, "transforms", [transform])
    return Compose([t for t in steps if type(t).__name__ != "SquarePad"])


def _data(train: Images, held: Images | None, preprocess: Preprocess, config: GenericConfig, seed: int) -> Any:
    """A data module of preprocessed pictures; five of anomalib's models ask it for its loader themselves."""
    from anomalib.data import ImageBatch
    from lightning.pytorch import LightningDataModule
    from torch.utils.data import DataLoader

    def loader(images: Images, shuffle: bool) -> Any:
        def collate(indices: list[int]) -> Any:
            x = preprocess([images[i] for i in indices])
            normal = torch.zeros(len(x), dtype=torch.bool)
            return ImageBatch(image=x, gt_label=normal, gt_mask=torch.zeros(x[:, 0].shape, dtype=torch.bool))

        order = torch.Generator().manual_seed(seed)
        batch = min(config.train_batch, len(images))
        return DataLoader(range(len(images)), batch, shuffle=shuffle, collate_fn=collate, generator=order)  # type: ignore

    class Data(LightningDataModule):
        train_batch_size = config.train_batch

        def train_dataloader(self) -> Any:
            return loader(train, True)

        def val_dataloader(self) -> Any:
            return loader(held if held is not None and len(held) else train, False)

    return Data()
