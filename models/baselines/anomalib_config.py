"""A config for each image model of anomalib: the model's own values, and its constructor's arguments as fields."""

from __future__ import annotations

import enum
import inspect
from dataclasses import dataclass, field, make_dataclass
from functools import cache
from typing import Any, ClassVar

from models.base import Config
from models.baselines.anomalib_models import COLLECTS, TAKES, TEXTURES, Schedule, schedule
from models.errors import ModelError

OURS = (
    "pre_processor", "post_processor", "evaluator", "visualizer", "precision", "epochs", "image_size", "input_shape",
    "batch_size", "size", "crop", "steps", "train_batch", "pre_trained",
)
"""Arguments of constructors that are no fields: we set them, from fields of our own where there is one,
and leave `pre_trained` true, since `--weights none` runs untrained and says so."""


@dataclass(frozen=True, kw_only=True)
class GenericConfig(Config):
    """What every model has; the subclass of a model has its own values as defaults, and its constructor's arguments."""

    size: int = 256
    crop: int | None = None  # side of the centre crop after the resize
    epochs: int | None = None
    steps: int | None = None
    train_batch: int = 32
    own: ClassVar[Schedule] = Schedule(None)
    model: ClassVar[str] = ""

    def __post_init__(self) -> None:
        side = self.crop or self.size
        multiple, least, most = TAKES.get(self.model, (1, 1, None))
        if self.model == "fre" and getattr(self, "input_dim", 0) != 65_536:
            multiple, least, most = 1, 1, None  # the default is what resnet50 gives of 256 pixels
        if self.crop is not None and self.crop > self.size:
            raise ModelError(f"anomalib/{self.model}: crop={self.crop} is larger than size={self.size}")
        if side % multiple or side < least or (most and side > most):
            takes = f"exactly {most}" if most == least else f"at least {least}" + (f", at most {most}" if most else "")
            raise ModelError(
                f"anomalib/{self.model}: its network gets {side} x {side} pixels (crop or size); it takes {takes}"
                + (f", in multiples of {multiple}" if multiple > 1 and most != least else "")
            )
        if self.own.source == COLLECTS and (self.epochs, self.steps) != (self.own.epochs, None):
            raise ModelError(f"anomalib/{self.model} collects features in exactly {self.own.epochs} epochs, no steps")
        if self.epochs is None and self.steps is None and self.model:
            raise ModelError(f"anomalib/{self.model}: give epochs or steps")

    @property
    def short(self) -> bool:
        """Also where epochs or steps are below the model's own, or are counted in the other of the two."""
        cut = any(own is not None and (ours is None or ours < own) for ours, own in
                  ((self.epochs, self.own.epochs), (self.steps, self.own.steps)))
        return self.shortened or cut or (self.steps is not None and self.own.steps is None)


@cache
def image_models() -> dict[str, type]:
    """Class of every image model of anomalib by the name of its folder (`cfa`, `efficient_ad`, `anomaly_dino`)."""
    from anomalib.models import image

    classes = [getattr(image, name) for name in image.__all__]
    return {cls.__module__.split(".")[3]: cls for cls in classes}


def __getattr__(name: str) -> Any:
    """`Config_<model>`, so that a config can travel to a worker."""
    if name.startswith("Config_"):
        model = name.removeprefix("Config_")
        return config_class(model, image_models()[model])
    raise AttributeError(name)


@cache
def config_class(name: str, cls: Any) -> type[GenericConfig]:
    from torchvision.transforms.v2 import CenterCrop, Resize

    steps = cls.configure_pre_processor().transform
    steps = getattr(steps, "transforms", [steps])
    own, size = schedule(name, cls), next(int(t.size[0]) for t in steps if isinstance(t, Resize))
    crop = next((int(t.size[0]) for t in steps if isinstance(t, CenterCrop) and t.size[0] != size), None)
    defaults: list[tuple[str, Any, Any]] = [
        ("size", int, size), ("crop", int | None, crop), ("epochs", int | None, own.epochs),
        ("steps", int | None, own.steps), ("train_batch", int, own.batch),
    ]
    for key, parameter in arguments(cls).items():
        if name in TEXTURES and key == TEXTURES[name]:
            defaults.append(("textures", str | None, None))  # a folder of natural pictures, or 'embedded'
        elif (hint := _hint(parameter)) is not None:
            default = parameter.default
            value = default.value if isinstance(default, enum.Enum) else default
            defaults.append((key, hint, tuple(value) if isinstance(value, list) else value))
    fields = [(key, hint, field(default=value)) for key, hint, value in defaults]
    space = {"own": own, "model": name, "__module__": __name__}
    return make_dataclass(f"Config_{name}", fields, bases=(GenericConfig,), namespace=space, frozen=True, kw_only=True)


def arguments(cls: Any) -> dict[str, inspect.Parameter]:
    """What a constructor takes besides what we set, and the fields that every config has."""
    taken = (*OURS, "batch", "shortened")
    return {k: p for k, p in inspect.signature(cls).parameters.items() if k not in taken}


def _hint(parameter: inspect.Parameter) -> Any:
    """The type of an argument as a field: of its default, or, where that is None, as annotated; None if neither."""
    default, written = parameter.default, str(parameter.annotation)
    if isinstance(default, enum.Enum):
        return type(default.value)
    if isinstance(default, bool | int | float | str):
        return type(default)
    if isinstance(default, list | tuple) and default and isinstance(default[0], int | float | str):
        return tuple[type(default[0]), ...]  # type: ignore[misc]
    if default is not None or "list[list" in written:
        return None
    kind = next((k for text, k in (("int", int), ("float", float), ("str", str)) if text in written), None)
    many = any(text in written for text in ("list[", "tuple[", "Sequence["))
    return None if kind is None else tuple[kind, ...] | None if many else kind | None  # type: ignore[valid-type]
