"""AnoViT (Lee & Kang, IEEE Access 10, 2022, arXiv 2203.10808): a transformer reconstructs pictures from its patches.

The tokens of the last block of ViT-B/16 (ImageNet-21k, tuned on ImageNet at 384 px), laid out on their grid without the
class token, go through six transposed convolutions to a picture; both halves are trained by the squared error. Compared
with what survives of the authors' code in a course (tkdleksms/LG_ES_anomaly, AnoViT/model.py at dd169a4) and a user's
copy of its script (Mostafa-Haggag/LG_ES_anomaly, main.py at c918ccf); the paper's text was not at hand. The same:
encoder, widths and strides of the decoder, instance norm, enlargement with aligned corners, tanh; Adam 2e-4 with betas
0.5 and 0.999, at most 200 epochs, ended after 12 without a better error on 40 % of the pictures; map = the colours'
mean squared error, Gaussian of sigma 6; score = maximum under sigma 15 (how the code gets from that map to a score is
not in it). Left: batch 16 (2 in the copy, the original unknown); all held-out pictures count (theirs: the last batch).
Preset `authors` is the code as found: pictures are standardised by the category's mean and deviation, but the last
convolution goes through instance norm, ReLU and tanh into [0, 1), so that nothing below the mean can be drawn. In
`paper` pictures lie in [-1, 1] and the last convolution in tanh, which reaches all of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Adam

from models.base import Context, Images, ModelError, Prediction, Progress, no_progress
from models.nn.floor import against_floor, mean_error
from models.nn.smooth import gaussian_smooth
from models.nn.trained import Trained, TrainedConfig
from models.nn.training import Best, split
from models.registry import register
from models.weights import load_into

WIDTHS = (256, 128, 64, 32, 16, 3)  # of the decoder; the first three keep the scale, the others double it


@dataclass(frozen=True, kw_only=True)
class AnoVitConfig(TrainedConfig):
    """The code named above."""

    encoder: str = "vit_base_patch16_384.augreg_in21k_ft_in1k"  # a name without weights starts at random (`quick`)
    size: int = 384
    as_found: bool = False  # targets and last layers of the authors' code
    epochs: int = 200
    patience: int = 12
    held_out: float = 0.4
    train_batch: int = 16
    lr: float = 2e-4
    sigma: float = 6.0  # of the map
    score_sigma: float = 15.0


@register("anovit", presets={
    "paper": AnoVitConfig(),
    "authors": AnoVitConfig(as_found=True),
    "quick": AnoVitConfig(
        encoder="vit_tiny_patch16_384", size=128, epochs=40, held_out=0.1, train_batch=8, lr=1e-3,
        sigma=2.0, score_sigma=5.0, shortened=True,
    ),
})
class AnoVit(Trained):
    """AnoViT: a vision transformer and transposed convolutions reconstruct the picture, squared error"""

    Config = AnoVitConfig
    config: AnoVitConfig
    normalise = False
    kept = ("centre", "spread")

    def __init__(self, config: AnoVitConfig, context: Context) -> None:
        super().__init__(config, context)
        encoder = tokens(config, context)
        self.centre, self.spread = torch.full((1, 3, 1, 1), 0.5), torch.full((1, 3, 1, 1), 0.5)
        self._trained(encoder=encoder, decoder=Decoder(encoder.embed_dim, config.size, config.as_found))

    def fit(self, train: Images, validation: Images | None, progress: Progress = no_progress) -> dict[str, Any]:
        config, pictures = self.config, self._pictures(train)
        if config.as_found:
            self.centre = pictures.mean((0, 2, 3), keepdim=True)
            self.spread = pictures.std((0, 2, 3), keepdim=True).clamp_min(1e-6)
        pictures = self._scaled(pictures)
        chosen, held = split(len(train), config.held_out, self.context)
        learn = torch.tensor(chosen, device=self.context.device)

        def step(indices: Tensor, noise: torch.Generator) -> Tensor:
            x = pictures[learn[indices]]
            return errors(x, self._rebuilt(x)).mean()

        def validate() -> float:
            return mean_error(pictures[held], self._rebuilt, errors, config.batch)

        optimizer = Adam(self._parameters(), config.lr, (0.5, 0.999))
        best = Best(patience=config.patience)
        log = self._train(step, [optimizer], len(chosen), progress, validate=validate, stop=best)
        against_floor(log, pictures, self._rebuilt, errors, config.batch)
        return {**log, "held_out": len(held)}

    def _scaled(self, x: Tensor) -> Tensor:
        return (x - self.centre.to(x.device)) / self.spread.to(x.device)

    def _rebuilt(self, x: Tensor) -> Tensor:
        encoder = self.trained["encoder"]
        return self.trained["decoder"](encoder.forward_features(x)[:, encoder.num_prefix_tokens :])

    @torch.no_grad()
    def predict(self, batch: Images) -> Prediction:
        x = self._scaled(self._seen(batch))
        y = self._rebuilt(x)
        found = (x - y).square().mean(1)
        maps, smooth = (gaussian_smooth(found, s, "reflect") for s in (self.config.sigma, self.config.score_sigma))
        shown = (y * self.spread.to(y.device) + self.centre.to(y.device)).clamp(0, 1)
        return Prediction(maps, smooth.flatten(1).amax(1), {"reconstruction": shown})


def tokens(config: AnoVitConfig, context: Context) -> Any:
    """timm's transformer at `size`, to be trained: with the weights of its tag, or by a bare name from nothing."""
    import timm

    name = config.encoder.partition(".")[0]
    if not timm.is_model(name) or not name.startswith("vit_"):
        raise ModelError(f"anovit: encoder={config.encoder!r} is no vision transformer that timm knows")
    net = timm.create_model(name, pretrained=False, num_classes=0, global_pool="")
    if "." in config.encoder and (state := context.weights.load(config.encoder, net.state_dict())) is not None:
        load_into(net, state, config.encoder)
    if config.size % net.patch_embed.patch_size[0]:
        raise ModelError(f"anovit: size={config.size} must be a multiple of {net.patch_embed.patch_size[0]}")
    net.set_input_size((config.size, config.size))  # other sizes than the weights': positions are resized
    return net


class Decoder(nn.Module):
    """Tokens [B, n * n, C] -> pictures [B, 3, size, size]; in (-1, 1), or in [0, 1) where `as_found`."""

    def __init__(self, channels: int, size: int, as_found: bool) -> None:
        super().__init__()
        self.size, layers = size, []
        for i, (a, b) in enumerate(zip((channels, *WIDTHS[:-1]), WIDTHS, strict=True)):
            layers.append(nn.ConvTranspose2d(a, b, 3, 1 if i < 3 else 2, 0 if i < 3 else 1))
            if as_found or b != WIDTHS[-1]:
                layers += [nn.InstanceNorm2d(b), nn.ReLU()]
        self.layers = nn.Sequential(*layers)

    def forward(self, tokens: Tensor) -> Tensor:
        side = round(tokens.shape[1] ** 0.5)
        x = self.layers(tokens.transpose(1, 2).unflatten(2, (side, side)))
        return F.interpolate(x, (self.size, self.size), mode="bilinear", align_corners=True).tanh()


def errors(x: Tensor, y: Tensor) -> Tensor:
    """Mean squared error of each picture [B, 3, h, w]: [B]."""
    return (x - y).square().mean((1, 2, 3))
