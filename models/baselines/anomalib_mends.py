"""What anomalib's models do wrong, set right, and what they would download, taken from the harness."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from models.base import Context
from models.baselines import anomalib_models as facts
from models.baselines.anomalib_config import GenericConfig
from models.errors import ModelError
from models.weights import load_into


@contextlib.contextmanager
def timm_as_it_was(anomalibs: bool = False) -> Iterator[None]:
    """Put back timm's interpolation of position embeddings, which anomalib replaces for the whole process.

    anomalibs: take anomalib's replacement inside, as its models have it from when they are built.
    """
    from anomalib.models.components.feature_extractors.timm import _disable_pos_embed_antialiasing
    from timm.models import vision_transformer as vit

    before = vit.resample_abs_pos_embed
    if anomalibs:
        _disable_pos_embed_antialiasing()
    try:
        yield
    finally:
        vit.resample_abs_pos_embed = before


def texture_folder(name: str, config: GenericConfig, context: Context) -> str | None:
    """A folder of natural pictures for a model that reads one; None where it can do without or is fed otherwise."""
    from models.nn.textures import EMBEDDED, Textures

    source = getattr(config, "textures", None) or context.extras.get("textures")
    if not source:
        if name in facts.NEEDS_TEXTURES:
            raise ModelError(
                f"anomalib/{name} learns with natural pictures: give a folder of them (ImageNet, DTD) as --textures "
                f"DIR, or --textures {EMBEDDED} for the few that scikit-image ships"
            )
        return None
    textures = Textures(source, (config.size, config.size))
    if name == "efficient_ad" or source != EMBEDDED:
        return str(source)
    if context.scratch is None:
        raise ModelError(f"anomalib/{name} reads textures from a folder; give one as --textures DIR")
    from PIL import Image

    folder = context.scratch / "textures"
    folder.mkdir(parents=True, exist_ok=True)
    for i, picture in enumerate(textures.draw(100, torch.Generator().manual_seed(context.seed))):
        array = (picture * 255).round().byte().permute(1, 2, 0).numpy()
        Image.fromarray(array).save(folder / f"{i:03d}.png")
    return str(folder)


class Focal(nn.Module):
    """Focal loss of both classes alike, for what kornia's does with alpha 1. logits or probabilities: [B, 2, H, W]."""

    def __init__(self, logits: bool) -> None:
        super().__init__()
        self.logits = logits

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        from models.nn.focal import focal_loss

        defect = (prediction.softmax(1) if self.logits else prediction)[:, 1]
        return focal_loss(defect, target.float(), gamma=2.0)


def mend(name: str, module: Any, config: GenericConfig, context: Context) -> None:
    """Set right what anomalib does wrong (`anomalib_models.MENDED`) and take what it would download."""
    if name in ("dinomaly", "inp_former"):
        configure = module.configure_optimizers

        def by_step() -> Any:
            (optimizer,), (scheduler,) = configure()
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

        module.configure_optimizers = by_step
    elif name == "draem":
        module.loss.focal_loss = Focal(logits=True)
        module.augmenter.anomaly_source_paths.sort()  # else in the order of the file system
    elif name == "glass":
        module.model.augmentor.anomaly_source_paths.sort()
    elif name == "dsr":
        module.second_stage_loss.focal_loss = module.third_stage_loss.focal_loss = Focal(logits=False)
        _take(module.model.discrete_latent_model, "vq_model_pretrained_128_4096", context)
        module.prepare_pretrained_model = lambda: None
        module.model.load_pretrained_discrete_model_weights = lambda path, device: None
    elif name == "efficient_ad":
        _take(module.model.teacher, f"pretrained_teacher_{module.model_size.value}", context)
        module.prepare_pretrained_model = lambda: None
        module.prepare_imagenette_data = lambda size: setattr(
            module, "imagenet_iterator", _penalty(str(module.imagenet_dir), tuple(size), context.seed)
        )


def _take(part: nn.Module, tag: str, context: Context) -> None:
    state = context.weights.load(tag, part.state_dict())
    if state is not None:
        load_into(part, state, tag)


def _penalty(source: str, size: tuple[int, int], seed: int) -> Iterator[tuple[Tensor, int]]:
    """Natural pictures [1, 3, h, w] as EfficientAD's penalty takes them: the centre of twice the size, 30 % grey."""
    from models.nn.textures import Textures

    (h, w), generator = size, torch.Generator().manual_seed(seed)
    textures = Textures(source, (2 * h, 2 * w))
    while True:
        x = textures.draw(1, generator)[..., h // 2 : h // 2 + h, w // 2 : w // 2 + w]
        if torch.rand(1, generator=generator) < 0.3:
            x = 0.2989 * x[:, :1] + 0.587 * x[:, 1:2] + 0.114 * x[:, 2:]
            x = x.expand(-1, 3, -1, -1)
        yield x, 0
