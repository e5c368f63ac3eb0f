"""GANomaly (Akcay et al., ACCV 2018): the distance between the codes of a picture and of its reconstruction.

Networks and losses are anomalib's, trained by our own loop and scored from their raw output.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Adam

from models.base import Context, Images, ModelError, Prediction, Progress, no_progress
from models.nn.trained import Trained, TrainedConfig
from models.registry import register


@dataclass(frozen=True, kw_only=True)
class GanomalyConfig(TrainedConfig):
    """Akcay et al., ACCV 2018, Sec. 4; the size is anomalib's, since the paper's 32 px data is not MVTec AD."""

    epochs: int = 100
    lr: float = 2e-4
    features: int = 64
    latent: int = 100
    weights: tuple[int, int, int] = (1, 50, 1)  # adversarial, contextual, encoder loss


@register("ganomaly", presets={
    "paper": GanomalyConfig(),
    "quick": GanomalyConfig(size=64, epochs=10, train_batch=8, features=16, shortened=True),
})
class Ganomaly(Trained):
    """GANomaly: distance between a picture's code and that of its reconstruction; no map"""

    Config = GanomalyConfig
    config: GanomalyConfig
    normalise = False
    has_map = False

    def __init__(self, config: GanomalyConfig, context: Context) -> None:
        super().__init__(config, context)
        if config.size < 32 or config.size & (config.size - 1):
            raise ModelError(f"ganomaly: size={config.size} must be a power of two, at least 32")
        from anomalib.models.image.ganomaly.torch_model import GanomalyModel

        model = GanomalyModel((config.size, config.size), 3, config.features, config.latent)
        for module in model.modules():  # anomalib's own call reaches only the top module
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.BatchNorm2d):
                model.weights_init(module)
        self._trained(generator=model.generator, discriminator=model.discriminator)

    def fit(self, train: Images, validation: Images | None, progress: Progress = no_progress) -> dict[str, Any]:
        from anomalib.models.image.ganomaly.loss import DiscriminatorLoss, GeneratorLoss

        pictures = self._pictures(train) * 2 - 1  # the decoder ends in tanh
        generate, judge = self.trained["generator"], self.trained["discriminator"]
        generator_loss, judge_loss = GeneratorLoss(*self.config.weights), DiscriminatorLoss()

        def step(indices: Tensor, noise: torch.Generator) -> dict[str, Tensor]:
            real = pictures[indices]
            fake, code, code_of_fake = generate(real)
            fixed = {name: parameter.detach() for name, parameter in judge.named_parameters()}
            says_fake, _ = torch.func.functional_call(judge, fixed, (fake,))  # no gradient for the discriminator
            says_real, _ = judge(real)
            g_loss = generator_loss(code, code_of_fake, real, fake, says_real.detach(), says_fake)
            d_loss = judge_loss(says_real, judge(fake.detach())[0])
            return {"loss": g_loss + d_loss, "generator": g_loss, "discriminator": d_loss}

        optimizers = [Adam(m.parameters(), self.config.lr, (0.5, 0.999)) for m in (generate, judge)]
        return self._train(step, optimizers, len(train), progress)

    @torch.no_grad()
    def predict(self, batch: Images) -> Prediction:
        _, code, code_of_fake = self.trained["generator"](self.preprocess(batch, self.context.device) * 2 - 1)
        return Prediction(None, (code - code_of_fake).square().flatten(1).mean(1))
