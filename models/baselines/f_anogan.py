"""f-AnoGAN (Schlegl et al., Medical Image Analysis 54, 2019): a GAN of normal pictures, and an encoder into it.

First a Wasserstein GAN with gradient penalty learns to draw normal pictures; then an encoder E learns to find a
picture's code under the fixed generator G and critic (the paper's izi_f): loss and image score = mean squared error of
G(E(x)) + kappa x mean squared error of the critic's last features; map = |x - G(E(x))|, mean over colours. Compared
with the authors' code (tSchlegl/f-AnoGAN, wgangp_64x64.py at 798c8bf, z_encoding_izif.py and anomaly_detection.py at
a73a92e). The same: residual networks of 64 px and width 64, layer norm in the critic, batch norm in generator and
encoder, 128 codes from N(0, 1), values in [-1, 1], Adam 1e-4 with betas 0 and 0.9, five steps of the critic to one of
the generator, penalty 10, batch 64; encoder by RMSprop 5e-5 in 50,000 steps, kappa 1, mirrored at random. Left: colours
instead of grey; codes end in tanh as the paper has it (the committed code has that switched off); the code counts
epochs over pictures that are not public, so that the 50,000 steps of the critic are ours; the generator steps on the
codes of the critic's fifth step; torch's momentum of batch norms. Neither MVTec AD nor a map is in the code. It is
another method than AnoGAN (2017), which searches for each picture's code by descent and is not built here.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Adam, RMSprop

from models.base import Context, Images, ModelError, Prediction, Progress, no_progress
from models.nn.floor import against_floor
from models.nn.residual import Generator, LayerNorm, judge
from models.nn.trained import Trained, TrainedConfig
from models.nn.training import Phase, key_of, train_phases
from models.registry import register

SIDE = 64  # px


@dataclass(frozen=True, kw_only=True)
class FAnoGanConfig(TrainedConfig):
    """The authors' code; `gan_steps` is ours."""

    size: int = SIDE
    width: int = 64
    latent: int = 128
    gan_steps: int = 50_000  # of the critic
    critic_steps: int = 5  # to one of the generator
    penalty: float = 10.0
    steps: int = 50_000  # of the encoder
    encoder_lr: float = 5e-5
    kappa: float = 1.0
    train_batch: int = 64
    lr: float = 1e-4


@register("f_anogan", presets={
    "paper": FAnoGanConfig(),
    "quick": FAnoGanConfig(
        width=8, latent=32, gan_steps=600, critic_steps=2, steps=200, encoder_lr=1e-3, train_batch=8, lr=1e-3,
        shortened=True,
    ),
})
class FAnoGan(Trained):
    """f-AnoGAN: a Wasserstein GAN of normal pictures and an encoder into its codes, residual and feature error"""

    Config = FAnoGanConfig
    config: FAnoGanConfig
    normalise = False

    def __init__(self, config: FAnoGanConfig, context: Context) -> None:
        super().__init__(config, context)
        if config.size != SIDE:
            raise ModelError(f"f_anogan: size={config.size}; its networks are for {SIDE} px")
        widths = [config.width * level for level in (1, 2, 4, 8, 8)]
        self._trained(
            generator=Generator(config.latent, widths[::-1]), critic=judge(widths, LayerNorm, 1),
            encoder=judge(widths, nn.BatchNorm2d, config.latent),
        )

    def fit(self, train: Images, validation: Images | None, progress: Progress = no_progress) -> dict[str, Any]:
        config, pictures, nets = self.config, self._pictures(train) * 2 - 1, self.trained
        generate, critic, encoder = nets["generator"], nets["critic"], nets["encoder"]
        players = [Adam(m.parameters(), config.lr, (0.0, 0.9)) for m in (critic, generate)]
        first = next(critic.parameters())

        def mirrored(indices: Tensor, noise: torch.Generator) -> Tensor:
            turn = torch.rand(len(indices), 1, 1, 1, generator=noise, device=pictures.device) < 0.5
            return torch.where(turn, pictures[indices].flip(3), pictures[indices])

        def play(indices: Tensor, noise: torch.Generator) -> dict[str, Tensor]:
            real = mirrored(indices, noise)
            fake = generate(torch.randn(len(real), config.latent, generator=noise, device=real.device))
            mix = torch.rand(len(real), 1, 1, 1, generator=noise, device=real.device)
            distance, penalty = critic_terms(critic, real, fake.detach(), mix)
            loss = distance + config.penalty * penalty
            # Adam counts on the CPU; without a gradient the generator's leaves its weights as they are
            if (int(players[0].state[first].get("step", 0)) + 1) % config.critic_steps == 0:
                fixed = {name: parameter.detach() for name, parameter in critic.named_parameters()}
                loss = loss - torch.func.functional_call(critic, fixed, (fake,)).mean()
            return {"loss": loss, "critic": distance, "penalty": penalty}

        def encode(indices: Tensor, noise: torch.Generator) -> Tensor:
            return self._errors(mirrored(indices, noise))[0].mean()

        def phases() -> Iterator[Phase]:
            yield Phase("gan", play, {"critic": critic, "generator": generate}, players, epochs[0])
            for net in (critic, generate):
                net.requires_grad_(False)
            optimizer = RMSprop(encoder.parameters(), config.encoder_lr)
            yield Phase("izi", encode, {"encoder": encoder}, [optimizer], epochs[1])

        each = math.ceil(len(pictures) / config.train_batch)
        epochs = [math.ceil(steps / each) for steps in (config.gan_steps, config.steps)]
        log = train_phases(
            phases(), epochs=sum(epochs), count=len(pictures), batch=config.train_batch, context=self.context,
            key=(self.name, key_of(config)), progress=progress,
        )
        against_floor(log, pictures, self._rebuilt, lambda x, y: (x - y).square().mean((1, 2, 3)))
        return self._noted(log)

    def _rebuilt(self, x: Tensor) -> Tensor:
        return self.trained["generator"](self.trained["encoder"](x).tanh())

    def _errors(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Score of each picture [B, 3, 64, 64], [B], and its reconstruction."""
        y, features = self._rebuilt(x), self.trained["critic"][:-1]
        apart = (features(x) - features(y)).square().mean(1)
        return (x - y).square().mean((1, 2, 3)) + self.config.kappa * apart, y

    @torch.no_grad()
    def predict(self, batch: Images) -> Prediction:
        x = self._seen(batch) * 2 - 1
        score, y = self._errors(x)
        return Prediction((x - y).abs().mean(1), score, {"reconstruction": (y + 1) / 2})


def critic_terms(critic: nn.Module, real: Tensor, fake: Tensor, mix: Tensor) -> tuple[Tensor, Tensor]:
    """Mean answer to fake less that to real pictures [B, 3, h, w], and the penalty of the slope between them.

    mix: where between them, [B, 1, 1, 1] from 0 (real) to 1.
    """
    between = (real + mix * (fake - real)).requires_grad_()
    (gradient,) = torch.autograd.grad(critic(between).sum(), between, create_graph=True)
    penalty = (gradient.flatten(1).norm(dim=1) - 1).square().mean()
    return critic(fake).mean() - critic(real).mean(), penalty
