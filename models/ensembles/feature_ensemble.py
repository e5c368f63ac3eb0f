"""Feature-level ensemble: feature maps of different fitted detectors, reduced by PCA, judged by one discriminator.

Saghir, "Ensemble Methods for Visual Anomaly Detection in Manufacturing Settings" (thesis): the members are trained as
usual, frozen, and cut before their own decision; a global or an independent transformation block joins the maps;
Gaussian noise makes fake features; SimpleNet's discriminator learns to tell them apart. The thesis leaves sizes and
rates open: the fields say which value is whose.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from models.base import Context, Detector, Images, ModelError, Prediction, Progress, no_progress
from models.ensembles.grid import Squares, from_square
from models.ensembles.maps import kept_maps
from models.ensembles.members import CHUNK, PAIR, SIX, any_short, build_members, chunks, fit_members
from models.ensembles.projection import Block, BlockConfig
from models.ensembles.unseen import Split, artificial_anomalies, hold_out, overall, pixel_quality
from models.features import room
from models.nn.discriminator import TRAIN_BATCH, Discriminator, map_and_score, noise_loss, optimizer, start
from models.nn.preprocess import Preprocess
from models.nn.textures import EMBEDDED
from models.nn.training import generator, key_of, own_random_state, train
from models.registry import register


@dataclass(frozen=True, kw_only=True)
class FeatureEnsembleConfig(BlockConfig):
    members: tuple[str, ...] = PAIR  # method@preset, settings after colons: ast@quick:cut=teacher
    adapter: bool = False  # a linear layer trained with the discriminator; the thesis puts q in the adapter's place
    # of the fake features, in units of the joined features' mean standard deviation; open in the thesis. The level
    # whose discriminator finds artificial anomalies best is kept: 0.015 (SimpleNet) to 0.1 hardly leave the normal
    # features after a PCA, and a discriminator that never saw anything far from them answers there at random
    noise_std: tuple[float, ...] = (0.1, 0.3, 1.0)
    hidden: int = 1024  # of the discriminator, as SimpleNet
    margin: float = 0.5  # SimpleNet, section 3.4
    epochs: int = 160  # SimpleNet, section 4.1
    train_batch: int = TRAIN_BATCH
    lr: float = 2e-4  # SimpleNet, section 4.1
    size: int = 256  # px, of the anomaly map
    sigma: float = 4.0  # px at `size`, of the Gaussian that smooths the map, as SimpleNet; 0 for none
    holdout: float = 0.2  # not given to the members where the data have no validation split, see `unseen`
    pad_square: bool = False  # pictures padded to squares, for members too, instead of resized to them (an ablation)
    keep_gb: float = 4.0  # memory for the members' training maps; what is beyond goes to a file
    textures: str | None = EMBEDDED  # folder of natural pictures for the artificial anomalies that choose noise_std

    def __post_init__(self) -> None:
        levels = self.noise_std
        if not levels or min(levels) <= 0 or len(set(levels)) < len(levels):
            raise ModelError(f"feature_ensemble: noise_std={levels}; give one level above 0, or several different ones")

    @property
    def short(self) -> bool:
        return self.shortened or any_short(self.members)


SMALL = {  # three noise levels are trained: half the epochs of a single one's 40
    "members": ("patchcore@resnet18", "simplenet@resnet18", "ast@quick"),
    "maps": 192, "member_maps": (64,), "hidden": 256, "epochs": 20, "lr": 1e-3, "shortened": True,
}
# sized for one core: pictures at 128 px, a 16 x 16 grid
TINY = {
    "members": ("patchcore@demo", "simplenet@demo", "ast@tiny"), "grid": 16,
    "maps": 96, "member_maps": (32,), "hidden": 128, "epochs": 20, "lr": 1e-3, "shortened": True,
}


@register("feature_ensemble", presets={
    "global_pair": FeatureEnsembleConfig(),
    "independent_pair": FeatureEnsembleConfig(block="independent"),
    "global_all": FeatureEnsembleConfig(members=SIX),
    "independent_all": FeatureEnsembleConfig(  # DRAEM's map has 64 channels
        members=SIX, block="independent", member_maps=(128, 128, 128, 64, 128, 128)
    ),
    "global_pair_padded": FeatureEnsembleConfig(pad_square=True),
    "resnet18_global": FeatureEnsembleConfig(**SMALL),
    "resnet18_independent": FeatureEnsembleConfig(**SMALL, block="independent"),
    "tiny_global": FeatureEnsembleConfig(**TINY),
    "tiny_independent": FeatureEnsembleConfig(**TINY, block="independent"),
    "resnet18_global_padded": FeatureEnsembleConfig(**SMALL, pad_square=True),
    "demo": FeatureEnsembleConfig(
        members=("patchcore@demo", "simplenet@demo"), grid=16, maps=64, hidden=64, epochs=20, lr=1e-3, size=128,
        sigma=2.0, shortened=True,
    ),
})
class FeatureEnsemble(Detector):
    """Discriminator on the joined, PCA-reduced feature maps of several fitted detectors."""

    Config = FeatureEnsembleConfig
    config: FeatureEnsembleConfig

    def __init__(self, config: FeatureEnsembleConfig, context: Context) -> None:
        super().__init__(config, context)
        wanted, own = len(config.member_maps), len(config.members)
        if config.block == "independent" and wanted not in (1, own):
            raise ModelError(f"feature_ensemble: member_maps has {wanted} numbers for {own} members; give one or {own}")
        self.preprocess = Preprocess((config.size, config.size))
        self.members = build_members(config.members, context, "feature_ensemble", features=True)
        self.block = Block(config.block, config.grid)
        self.head = nn.ModuleDict()

    def fit(self, train_images: Images, validation: Images | None, progress: Progress = no_progress) -> dict[str, Any]:
        """Members (fitted or reused), PCA on the training pictures, then the discriminator on all of them.

        Of several `noise_std` each gets a discriminator, trained on the pictures that the members saw; the one that
        finds artificial anomalies in the others best is kept (`noise_std` and `noise_quality` in the log, as
        `pixel_quality`). The log has the discriminator's loss, what was kept of each member (`explained`, `loading`),
        and the members' logs. Raises ModelError for a member that fails, or more components than there are channels.
        """
        config, context = self.config, self.context
        if not len(train_images):
            raise ModelError("feature_ensemble: there are no training pictures; check the category's train folder")
        data, several = hold_out(train_images, validation, config.holdout, context), len(config.noise_std) > 1
        if several and not len(data.unseen):
            raise ModelError(
                "feature_ensemble: several noise levels are judged on artificial anomalies made from pictures that the "
                "members have not seen, and there are none; set holdout above 0, or give one noise_std"
            )
        seen = replace(data, members=self._shaped(data.members), square=config.pad_square)
        log = fit_members(self.members, seen, context, lambda done, total, /, **v: progress(done, 2 * total, **v))
        joined = self._train_block(train_images, log)
        judges = self._judges(data) if several else None
        learnt = [i for i in range(len(joined)) if not several or i not in data.held]
        best: dict[str, Any] = {}
        quality: dict[str, dict[str, float]] = {}
        for i, level in enumerate(config.noise_std):

            def second(done: int, total: int, /, i: int = i, **values: float) -> None:
                progress(total + (i * total + done) // len(config.noise_std), 2 * total, **values)

            own = self._train_head(joined, learnt, level, (key_of(config), log["members"].keys()), second)
            found = self._quality(*judges) if judges else {}
            if not best or overall(found) > max(map(overall, quality.values())):
                best, trained = {**own, "noise_std": level}, {k: v.clone() for k, v in self.head.state_dict().items()}
            quality[f"{level:g}"] = found
        self.head.load_state_dict(trained)
        if judges:
            log["noise_quality"] = {level: round(overall(found), 5) for level, found in quality.items()}
            log["noise_quality_by_grade"] = quality
        return {**best, **log, "channels": joined.shape[1]}

    def _shaped(self, images: Images) -> Images:
        return Squares(images) if self.config.pad_square else images

    @torch.no_grad()
    def _train_block(self, images: Images, log: dict[str, Any]) -> Tensor:
        """PCA on all training pictures, told in the log; returns their joined features, float16 [n, N, grid, grid]."""
        device, scratch = self.context.device, self.context.scratch
        stores = kept_maps(
            self.members, self._shaped(images), self.config.keep_gb, scratch / "maps" if scratch else None
        )
        log |= self.block.fit(self.members, stores, self.config, generator(self.context, "pca"), device)
        channels = sum(p.weight.shape[0] for p in self.block.projections)
        fits = 2 * len(images) * channels * self.config.grid**2 <= room(device)  # then no step waits for a copy
        return torch.cat([
            self.block([[s.read(first, device) for s in own] for own in stores], self.members).half()
            .to(device if fits else "cpu") for first in range(0, len(images), CHUNK)
        ])

    def _train_head(
        self, joined: Tensor, learnt: Sequence[int], level: float, key: Any, progress: Progress
    ) -> dict[str, Any]:
        """A discriminator of its own for noise of `level`, from the same start; returns its log."""
        config, context, channels = self.config, self.context, joined.shape[1]
        self._build_head(channels)
        rows = torch.as_tensor(learnt, device=joined.device)

        def step(indices: Tensor, noise: torch.Generator) -> Tensor:
            drawn = joined[rows[indices.to(joined.device)]].to(context.device)
            real = drawn.float().permute(0, 2, 3, 1).reshape(-1, channels)
            if config.adapter:
                real = self.head["adapter"](real)
            return noise_loss(self.head["discriminator"], real, level, config.margin, noise)

        own = replace(context, scratch=context.scratch / "head" / f"noise_{level}" if context.scratch else None)
        return train(
            step, {"head": self.head}, [optimizer(self.head, config.lr)], count=len(learnt), batch=config.train_batch,
            epochs=config.epochs, context=own, key=(key, level), progress=progress,
        )

    @torch.no_grad()
    def _judges(self, data: Split) -> tuple[Tensor, np.ndarray, list[str], list[tuple[int, int]]]:
        """Artificial anomalies: joined features [n, N, grid, grid], masks bool [n, h, w], grades, pictures' sizes.

        Not in half precision, in which features far from the normal ones may not fit.
        """
        config = self.config
        made = artificial_anomalies(data.unseen, config.textures, self.preprocess.size, self.context)
        pictures = [anomaly.picture for anomaly in made]
        joined = [self.joined(batch).cpu() for _, batch in chunks(pictures)]
        masks = np.stack([self.preprocess.mask(anomaly.mask) for anomaly in made])
        return torch.cat(joined), masks, [anomaly.grade for anomaly in made], [p.shape[:2] for p in pictures]

    @torch.no_grad()
    def _quality(self, joined: Tensor, masks: np.ndarray, grades: list[str], sizes: Sequence[Any]) -> dict[str, float]:
        """What the discriminator's maps of the artificial anomalies are worth, by grade."""
        maps = torch.cat([
            self._judged(joined[first : first + CHUNK].to(self.context.device), sizes[first : first + CHUNK])[0].cpu()
            for first in range(0, len(joined), CHUNK)
        ])
        if not torch.isfinite(maps).all():
            raise ModelError("feature_ensemble: a map of an artificial anomaly is not finite; check the members' maps")
        return pixel_quality(maps.numpy(), masks, grades)

    def _build_head(self, channels: int) -> None:
        with own_random_state(self.context, "head"):
            self.head = nn.ModuleDict({"discriminator": Discriminator(channels, self.config.hidden)})
            if self.config.adapter:
                self.head["adapter"] = nn.Linear(channels, channels)
            start(self.head.modules())
        self.head.to(self.context.device).eval()

    @torch.no_grad()
    def predict(self, batch: Images) -> Prediction:
        """Map: minus the discriminator's output, upsampled and smoothed. Score: its largest value over positions."""
        return Prediction(*self._judged(self.joined(batch), [picture.shape[:2] for picture in batch]))

    def _judged(self, joined: Tensor, sizes: Sequence[tuple[int, int]]) -> tuple[Tensor, Tensor]:
        """Joined features [B, N, grid, grid] of pictures of `sizes` -> maps [B, size, size] and scores [B]."""
        vectors = joined.permute(0, 2, 3, 1).flatten(0, 2)
        if self.config.adapter:
            vectors = self.head["adapter"](vectors)
        cells = -self.head["discriminator"](vectors).view(len(joined), 1, *joined.shape[-2:])
        maps, scores = map_and_score(cells, self.preprocess.output, self.config.sigma)
        return from_square(maps, sizes) if self.config.pad_square else maps, scores

    @torch.no_grad()
    def joined(self, batch: Images) -> Tensor:
        """The joined features q, float32 [B, N, grid, grid]."""
        return self.block([member.features(self._shaped(batch)) for member in self.members], self.members)

    def state_dict(self) -> dict[str, Any]:
        return {
            "members": [member.detector.state_dict() for member in self.members],
            "block": self.block.state_dict(), "head": self.head.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for member, saved in zip(self.members, state["members"], strict=True):
            member.detector.load_state_dict(saved)
        self.block.restore(state["block"])
        self.block.to(self.context.device)
        self._build_head(sum(p.weight.shape[0] for p in self.block.projections))
        self.head.load_state_dict(state["head"])
