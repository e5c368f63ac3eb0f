"""GANomaly (Akcay et al., ACCV 2018): the distance between the codes of a picture and of its reconstruction.

Compared with the authors' code (samet-akcay/ganomaly, lib/model.py at 106a59e, lib/networks.py at 662b5a8). The same:
encoder, decoder, second encoder and discriminator with their initial weights, loss (1 x squared distance of the
discriminator's features + 50 x L1 + 1 x squared distance of the codes; for the discriminator the mean of both binary
cross entropies), both players stepped from one state, the discriminator started anew when its loss falls below 1e-5,
Adam 2e-4 with betas 0.5 and 0.999, batch 64, 15 epochs; 64 px as for the paper's X-ray pictures (32 px, its code's
default, is for CIFAR-10); score = mean squared distance of the codes. Left: the last epoch is kept (theirs: the best on
the test set); batch norms use their running statistics at test (theirs stay in training mode, so that a score depends
on its batch); an incomplete last batch is trained on (theirs is dropped). Layers are anomalib's.
15 epochs are 60 steps on 209 pictures; the paper's sets are a thousand times as large. Preset `anomalib`: 256 px, 100
epochs, batch 32, L2 between the discriminator's answers, smooth L1 between codes, first padding 4, no new start.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim import Adam

from models.base import Context, Images, ModelError, Prediction, Progress, no_progress
from models.nn.dcgan import dcgan_init
from models.nn.trained import Trained, TrainedConfig
from models.registry import register

TOO_GOOD = 1e-5  # the discriminator's loss below which it starts anew


@dataclass(frozen=True, kw_only=True)
class GanomalyConfig(TrainedConfig):
    """Akcay et al., ACCV 2018, Sec. 3 and 4, and the authors' code."""

    size: int = 64
    epochs: int = 15
    train_batch: int = 64
    lr: float = 2e-4
    features: int = 64
    latent: int = 100
    weights: tuple[float, ...] = (1.0, 50.0, 1.0)  # adversarial, contextual, encoder loss
    library: bool = False  # anomalib's losses and padding instead of the authors'


@register("ganomaly", presets={
    "paper": GanomalyConfig(),
    "anomalib": GanomalyConfig(library=True, size=256, epochs=100, train_batch=32),
    "quick": GanomalyConfig(epochs=10, train_batch=8, features=16, shortened=True),
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
        if len(config.weights) != 3:
            raise ModelError(f"ganomaly: weights={config.weights}: give three, e.g. weights=1,50,1")
        from anomalib.models.image.ganomaly.torch_model import GanomalyModel

        model = GanomalyModel((config.size, config.size), 3, config.features, config.latent)
        generate, judge = model.generator.apply(dcgan_init), model.discriminator.apply(dcgan_init)
        if not config.library:  # anomalib pads them by 4
            for first in (generate.encoder1.input_layers[0], generate.encoder2.input_layers[0], judge.features[0]):
                first.padding = (1, 1)
        judge.register_buffer("loss", torch.ones(()))  # of the last step; saved, so that a resumed training agrees
        judge.register_buffer("restarts", torch.zeros(()))
        self._trained(generator=generate, discriminator=judge)

    def fit(self, train: Images, validation: Images | None, progress: Progress = no_progress) -> dict[str, Any]:
        config, pictures = self.config, self._pictures(train) * 2 - 1  # the decoder ends in tanh
        generate, judge = self.trained["generator"], self.trained["discriminator"]

        def step(indices: Tensor, noise: torch.Generator) -> dict[str, Tensor]:
            if not config.library and float(judge.loss) < TOO_GOOD:
                judge.apply(dcgan_init)
                judge.restarts += 1
            real = pictures[indices]
            fake, code, code_of_fake = generate(real)
            fixed = {name: parameter.detach() for name, parameter in judge.named_parameters()}
            fooled = torch.func.functional_call(judge, fixed, (fake,))  # no gradient for the discriminator
            answer = judge(real)
            of_real = tuple(part.detach() for part in answer)
            losses = library_losses if config.library else generator_losses
            parts = losses(real, fake, code, code_of_fake, of_real, fooled)
            d_loss = discriminator_loss(answer[0], judge(fake.detach())[0])
            judge.loss.copy_(d_loss.detach())
            g_loss = sum(weight * part for weight, part in zip(config.weights, parts.values(), strict=True))
            return {"loss": g_loss + d_loss, "generator": g_loss, "discriminator": d_loss, **parts}

        optimizers = [Adam(m.parameters(), config.lr, (0.5, 0.999)) for m in (generate, judge)]
        log = self._train(step, optimizers, len(train), progress)
        return {**log, "discriminator_restarts": int(judge.restarts)}

    @torch.no_grad()
    def predict(self, batch: Images) -> Prediction:
        _, code, code_of_fake = self.trained["generator"](self.preprocess(batch, self.context.device) * 2 - 1)
        return Prediction(None, (code - code_of_fake).square().flatten(1).mean(1))


Answer = tuple[Tensor, Tensor]  # of the discriminator: how real [B], features [B, C, h, w]


def generator_losses(
    real: Tensor, fake: Tensor, code: Tensor, code_of_fake: Tensor, of_real: Answer, of_fake: Answer
) -> dict[str, Tensor]:
    """Eq. 1 to 3: distances of the discriminator's features, of the pictures, and of the codes."""
    return {
        "adversarial": F.mse_loss(of_fake[1], of_real[1]),
        "contextual": F.l1_loss(fake, real),
        "encoder": F.mse_loss(code_of_fake, code),
    }


def library_losses(
    real: Tensor, fake: Tensor, code: Tensor, code_of_fake: Tensor, of_real: Answer, of_fake: Answer
) -> dict[str, Tensor]:
    """anomalib's: the discriminator's answers instead of its features, and a smooth L1 distance of the codes."""
    return {
        "adversarial": F.mse_loss(of_fake[0], of_real[0]),
        "contextual": F.l1_loss(fake, real),
        "encoder": F.smooth_l1_loss(code_of_fake, code),
    }


def discriminator_loss(says_real: Tensor, says_fake: Tensor) -> Tensor:
    """Mean of the binary cross entropies of real pictures (1) and of reconstructions (0)."""
    real = F.binary_cross_entropy(says_real, torch.ones_like(says_real))
    return (real + F.binary_cross_entropy(says_fake, torch.zeros_like(says_fake))) / 2
