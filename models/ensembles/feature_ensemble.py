"""Feature-level ensemble: feature maps of different fitted detectors, reduced by PCA, judged by one discriminator.

Saghir, "Ensemble Methods for Visual Anomaly Detection in Manufacturing Settings" (thesis): the members are trained as
usual, frozen, and cut before their own decision; a global or an independent transformation block joins the maps;
Gaussian noise makes fake features; SimpleNet's discriminator learns to tell them apart. The thesis leaves sizes and
rates open: the fields say which value is whose.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.base import Config, Context, Detector, Images, ModelError, Prediction, Progress, no_progress
from models.ensembles.members import Member, any_short, build_members, fit_members, hold_out
from models.nn.discriminator import Discriminator, noise_loss
from models.nn.pca import Covariance, loadings, positions, principal_components
from models.nn.preprocess import Preprocess
from models.nn.pseudo import pseudo_anomalies
from models.nn.smooth import gaussian_smooth
from models.nn.textures import EMBEDDED, Textures
from models.nn.training import generator, key_of, own_random_state, train
from models.registry import register

CHUNK = 8  # pictures per pass through the members
PAIR = ("patchcore", "simplenet")
SIX = (*PAIR, "ast", "draem", "reverse_distillation", "csflow")


@dataclass(frozen=True, kw_only=True)
class FeatureEnsembleConfig(Config):
    members: tuple[str, ...] = PAIR  # method@preset, settings after colons: ast@quick:cut=student
    block: Literal["global", "independent"] = "global"
    grid: int = 32  # positions per side of the joined map; open in the thesis
    maps: int = 512  # global block: components kept; open in the thesis
    member_maps: tuple[int, ...] = (128,)  # independent block: per member, one number for all or one each; open
    variance: float = 0.0  # above 0: keep enough components for this share of variance instead of a fixed number
    scaling: Literal["member", "channel", "none"] = "member"  # before PCA: one scalar per member, per channel, or none
    whiten: bool = False  # after PCA: every component to unit variance, instead of unit variance on average
    pca_positions: int = 100_000  # drawn over all training pictures
    adapter: bool = False  # a linear layer trained with the discriminator; the thesis puts q in the adapter's place
    # of the fake features, in units of the joined features' mean standard deviation; open in the thesis. Of several
    # levels the one that finds artificial anomalies best is kept
    noise_std: tuple[float, ...] = (0.1,)
    hidden: int = 1024  # of the discriminator, as SimpleNet
    margin: float = 0.5  # SimpleNet, section 3.4
    epochs: int = 160  # SimpleNet, section 4.1
    train_batch: int = 4  # SimpleNet, section 4.1
    lr: float = 2e-4  # SimpleNet, section 4.1
    weight_decay: float = 1e-5
    size: int = 256  # px, of the anomaly map
    sigma: float = 4.0  # px at `size`, of the Gaussian that smooths the map, as SimpleNet; 0 for none
    holdout: float = 0.2  # not given to the members where the data have no validation split, see `members`
    keep_gb: float = 4.0  # memory for the members' training maps; what is beyond goes to a file
    textures: str | None = EMBEDDED  # folder of natural pictures for the artificial anomalies that choose noise_std

    def __post_init__(self) -> None:
        if not self.noise_std or min(self.noise_std) <= 0 or len(set(self.noise_std)) < len(self.noise_std):
            raise ModelError(
                f"feature_ensemble: noise_std={self.noise_std}; give one level above 0, or several different ones"
            )

    @property
    def short(self) -> bool:
        return self.shortened or any_short(self.members)


# lr: of 2e-4, 5e-4 and 1e-3 the one with the lowest training loss on bottle, see results/measured/ensembles.md
SMALL = {
    "members": ("patchcore@resnet18", "simplenet@resnet18", "ast@quick"),
    "maps": 192, "member_maps": (64,), "hidden": 256, "epochs": 40, "lr": 1e-3, "shortened": True,
}


@register("feature_ensemble", presets={
    "global_pair": FeatureEnsembleConfig(),
    "independent_pair": FeatureEnsembleConfig(block="independent"),
    "global_all": FeatureEnsembleConfig(members=SIX),
    "independent_all": FeatureEnsembleConfig(
        members=SIX, block="independent", member_maps=(128, 128, 128, 64, 128, 128)  # DRAEM's map has 64 channels
    ),
    "resnet18_global": FeatureEnsembleConfig(**SMALL),
    "resnet18_independent": FeatureEnsembleConfig(**SMALL, block="independent"),
    "demo": FeatureEnsembleConfig(
        members=("patchcore@demo", "simplenet@demo"), grid=16, maps=64, hidden=64, epochs=40, lr=1e-3, size=128,
        sigma=2.0, shortened=True,
    ),
})
class FeatureEnsemble(Detector):
    """Discriminator on the joined, PCA-reduced feature maps of several fitted detectors."""

    Config = FeatureEnsembleConfig
    config: FeatureEnsembleConfig

    def __init__(self, config: FeatureEnsembleConfig, context: Context) -> None:
        super().__init__(config, context)
        if config.block == "independent" and len(config.member_maps) not in (1, len(config.members)):
            raise ModelError(
                f"feature_ensemble: member_maps has {len(config.member_maps)} numbers for {len(config.members)} "
                "members; give one for all, or one for each"
            )
        self.preprocess = Preprocess((config.size, config.size))
        self.members = build_members(config.members, context, "feature_ensemble", features=True)
        self.block = Block(config.block, config.grid)
        self.head = nn.ModuleDict()

    def fit(self, train_images: Images, validation: Images | None, progress: Progress = no_progress) -> dict[str, Any]:
        """Members (fitted or reused), PCA on the training pictures, then the discriminator on all of them.

        Of several `noise_std` each gets a discriminator, trained on the pictures that the members saw; the one with the
        highest pixel AUROC on artificial anomalies in the others is kept (`noise_std`, `noise_quality` in the log).
        The log has the discriminator's loss, per member what was kept of it (`explained`, `loading`), and the members'
        own logs. Raises ModelError for a member that fails, and when more components are asked for than exist.
        """
        config, context = self.config, self.context
        if not len(train_images):
            raise ModelError("feature_ensemble: there are no training pictures; check the category's train folder")
        data = hold_out(train_images, validation, config.holdout, context)

        def first(done: int, total: int, /, **values: float) -> None:
            progress(done, 2 * total, **values)

        log = fit_members(self.members, data, context, first)
        folder = context.scratch / "maps" if context.scratch else None
        stores = kept_maps(self.members, train_images, config.keep_gb, folder)
        log |= self.block.fit(self.members, stores, config, generator(context, "pca"), context.device)
        with torch.no_grad():
            joined = torch.cat([
                self.block([[s.read(start, context.device) for s in own] for own in stores], self.members).half().cpu()
                for start in range(0, len(train_images), CHUNK)
            ])
        channels = joined.shape[1]
        self._build_head(channels)

        judges = self._judges(data.unseen) if len(config.noise_std) > 1 else None
        learnt = sorted(set(range(len(joined))) - set(data.held)) if judges else range(len(joined))

        def step(level: float, indices: Tensor, noise: torch.Generator) -> Tensor:
            rows = torch.as_tensor(learnt)[indices.cpu()]
            real = joined[rows].to(context.device).float().permute(0, 2, 3, 1).reshape(-1, channels)
            if config.adapter:
                real = self.head["adapter"](real)
            return noise_loss(self.head["discriminator"], real, level, config.margin, noise)

        quality: dict[float, float] = {}
        for i, level in enumerate(config.noise_std):

            def second(done: int, total: int, /, i: int = i, **values: float) -> None:
                progress(total + (i * total + done) // len(config.noise_std), 2 * total, **values)

            self._build_head(channels)
            optimizer = torch.optim.Adam(self.head.parameters(), lr=config.lr, weight_decay=config.weight_decay)
            scratch = context.scratch / "head" / f"noise_{level}" if context.scratch else None
            own = train(
                partial(step, level), {"head": self.head}, [optimizer], count=len(learnt), batch=config.train_batch,
                epochs=config.epochs, context=replace(context, scratch=scratch),
                key=(key_of(config), log["members"].keys(), level), progress=second,
            )
            quality[level] = self._quality(*judges) if judges else 1.0
            if quality[level] == max(quality.values()):
                best, trained = {**own, "noise_std": level}, {k: v.clone() for k, v in self.head.state_dict().items()}
        self.head.load_state_dict(trained)
        if judges:
            best["noise_quality"] = {f"{level:g}": round(value, 5) for level, value in quality.items()}
        return {**best, **log, "channels": channels}

    @torch.no_grad()
    def _judges(self, unseen: Images) -> tuple[Tensor, np.ndarray]:
        """Artificial anomalies made from `unseen`: joined features float32 [n, N, grid, grid], masks bool [n, h, w].

        Not in half precision: the squared differences of AST on an anomaly do not fit.
        """
        if not len(unseen):
            raise ModelError(
                "feature_ensemble: several noise levels are judged on artificial anomalies made from pictures that the "
                "members have not seen, and there are none; set holdout above 0, or give one noise_std"
            )
        textures = Textures(self.config.textures or self.context.extras.get("textures"), self.preprocess.size)
        made = list(pseudo_anomalies(unseen, textures, generator(self.context, "pseudo")))
        joined = [self.joined(batch).cpu() for _, batch in _chunks([anomaly.picture for anomaly in made])]
        return torch.cat(joined), np.stack([self.preprocess.mask(anomaly.mask) for anomaly in made])

    @torch.no_grad()
    def _quality(self, joined: Tensor, masks: np.ndarray) -> float:
        """Pixel AUROC of the discriminator on the artificial anomalies."""
        from sklearn.metrics import roc_auc_score

        maps = torch.cat([self._judged(part.to(self.context.device))[0].cpu() for part in joined.split(CHUNK)])
        if not torch.isfinite(maps).all():
            raise ModelError("feature_ensemble: a map of an artificial anomaly is not finite; check the members' maps")
        return float(roc_auc_score(masks.ravel(), maps.numpy().ravel()))

    def _build_head(self, channels: int) -> None:
        with own_random_state(self.context, "head"):
            self.head = nn.ModuleDict({"discriminator": Discriminator(channels, self.config.hidden)})
            if self.config.adapter:
                self.head["adapter"] = nn.Linear(channels, channels)
            for module in self.head.modules():
                if isinstance(module, nn.Linear):
                    nn.init.xavier_normal_(module.weight)
        self.head.to(self.context.device).eval()

    @torch.no_grad()
    def predict(self, batch: Images) -> Prediction:
        """Map: minus the discriminator's output, upsampled and smoothed. Score: its largest value over positions."""
        return Prediction(*self._judged(self.joined(batch)))

    def _judged(self, joined: Tensor) -> tuple[Tensor, Tensor]:
        """Joined features [B, N, grid, grid] -> maps [B, size, size] and scores [B]."""
        vectors = joined.permute(0, 2, 3, 1).flatten(0, 2)
        if self.config.adapter:
            vectors = self.head["adapter"](vectors)
        cells = -self.head["discriminator"](vectors).view(len(joined), 1, *joined.shape[-2:])
        maps = F.interpolate(cells, self.preprocess.output, mode="bilinear", align_corners=False)[:, 0]
        return gaussian_smooth(maps, self.config.sigma), cells.flatten(1).amax(1)

    @torch.no_grad()
    def joined(self, batch: Images) -> Tensor:
        """The joined features q, float32 [B, N, grid, grid]."""
        return self.block([member.features(batch) for member in self.members], self.members)

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


class Projection(nn.Module):
    """Centring, scaling, PCA and final scaling of the channels: [B, D, h, w] -> [B, k, h, w]."""

    def __init__(self, mean: Tensor, weight: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("weight", weight)

    def forward(self, maps: Tensor) -> Tensor:
        centred = maps - self.mean[:, None, None]  # first: a mean far above the spread would cancel in float32
        return F.conv2d(centred, self.weight[:, :, None, None])


class Block(nn.Module):
    """A transformation block: one list of maps per member -> joined features [B, N, grid, grid].

    global: resize every map to the grid, concatenate, one PCA. independent: a PCA per map on its own grid, resize,
    concatenate. Maps are resized bilinearly to the whole picture's field of view: a member that crops is continued at
    the border by its nearest value, as its anomaly maps are.
    """

    def __init__(self, kind: str, grid: int) -> None:
        super().__init__()
        self.kind, self.grid = kind, grid
        self.projections = nn.ModuleList()

    def forward(self, maps: Sequence[Sequence[Tensor]], members: Sequence[Member]) -> Tensor:
        groups = self._groups(maps, members)
        projected = [projection(x) for projection, x in zip(self.projections, groups, strict=True)]
        if self.kind == "global":
            return projected[0]
        views = [member.detector.preprocess for member, own in zip(members, maps, strict=True) for _ in own]
        return torch.cat([to_grid(x, view, self.grid) for x, view in zip(projected, views, strict=True)], 1)

    def _groups(self, maps: Sequence[Sequence[Tensor]], members: Sequence[Member]) -> list[Tensor]:
        """What each PCA sees: all resized maps in one, or every map by itself."""
        if self.kind == "independent":
            return [m.float() for own in maps for m in own]
        resized = [
            to_grid(m.float(), member.detector.preprocess, self.grid)
            for member, own in zip(members, maps, strict=True) for m in own
        ]
        return [torch.cat(resized, 1)]

    def fit(
        self, members: Sequence[Member], stores: Sequence[Sequence[MapStore]], config: FeatureEnsembleConfig,
        random: torch.Generator, device: torch.device,
    ) -> dict[str, Any]:
        """PCA on positions drawn from the training maps. Returns per member `maps`, `explained` and `loading`."""
        count = len(stores[0][0])
        each = -(-config.pca_positions // count)
        sums: list[Covariance] = []
        for start in range(0, count, CHUNK):
            groups = self._groups([[s.read(start, device) for s in own] for own in stores], members)
            sums = sums or [Covariance(group.shape[1], device) for group in groups]
            for covariance, group in zip(sums, groups, strict=True):
                covariance.add(positions(group, each, random))
        channels = [[s.channels for s in own] for own in stores]
        if self.kind == "global":
            sizes = [sum(own) for own in channels]
            return self._fit_global(sums[0], sizes, [m.spec for m in members], config)
        return self._fit_independent(sums, channels, [m.spec for m in members], config)

    def _fit_global(
        self, covariance: Covariance, sizes: list[int], specs: list[str], config: FeatureEnsembleConfig
    ) -> dict[str, Any]:
        scale = torch.cat([
            _scale(variances, config.scaling) for variances in covariance.matrix.diagonal().split(sizes)
        ])
        keep = config.variance or config.maps
        found = self._add(covariance, keep, scale, config.whiten)
        shares = loadings(found, sizes)
        return {
            "maps": len(found.directions), "explained": round(found.explained, 4),
            "loading": {spec: round(share, 4) for spec, share in zip(specs, shares, strict=True)},
        }

    def _fit_independent(
        self, sums: list[Covariance], channels: list[list[int]], specs: list[str], config: FeatureEnsembleConfig
    ) -> dict[str, Any]:
        wanted = config.member_maps * len(specs) if len(config.member_maps) == 1 else config.member_maps
        rest = iter(sums)
        maps, explained = {}, {}
        for spec, own, number in zip(specs, channels, wanted, strict=True):
            parts = spread(number, own, spec)
            found = []
            for part in parts:
                covariance = next(rest)
                scale = _scale(covariance.matrix.diagonal(), config.scaling)
                found.append(self._add(covariance, config.variance or part, scale, config.whiten))
            maps[spec] = sum(len(f.directions) for f in found)
            explained[spec] = round(sum(float(f.variance.sum()) for f in found) / sum(f.total for f in found), 4)
        total = sum(maps.values())
        return {"maps": total, "explained": explained, "loading": {s: round(n / total, 4) for s, n in maps.items()}}

    def _add(self, covariance: Covariance, keep: int | float, scale: Tensor, whiten: bool) -> Any:
        found = principal_components(covariance, keep, scale)
        variance = found.variance if whiten else found.variance.mean()
        gain = variance.clamp_min(1e-12 * max(found.total, torch.finfo(torch.float64).tiny)).rsqrt()
        weight = (found.directions.T * gain).T
        self.projections.append(Projection(covariance.mean.float(), (weight * scale).float()))
        return found

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Load a state dict whose projections' sizes are not known beforehand."""
        count = len({key.split(".")[1] for key in state})
        self.projections = nn.ModuleList(
            Projection(state[f"projections.{i}.mean"], state[f"projections.{i}.weight"]) for i in range(count)
        )


def _scale(variances: Tensor, scaling: str) -> Tensor:
    """What a member's channels are multiplied by before PCA, from their variances [D]: float64 [D]."""
    if scaling == "none":
        return torch.ones_like(variances)
    spread = variances if scaling == "channel" else variances.mean().expand_as(variances)
    return torch.where(spread > 0, spread.clamp_min(torch.finfo(torch.float64).tiny).rsqrt(), 1.0)


def spread(number: int, channels: Sequence[int], spec: str) -> list[int]:
    """`number` components over the maps of one member, as evenly as their channels allow; exactly `number` in all."""
    if number > sum(channels):
        raise ModelError(
            f"feature_ensemble: {number} components asked of member {spec}, whose maps have {sum(channels)} channels "
            f"({', '.join(map(str, channels))}); give fewer in member_maps"
        )
    if number < len(channels):
        raise ModelError(
            f"feature_ensemble: {number} components asked of member {spec}, which has {len(channels)} maps; give at "
            "least one for each in member_maps"
        )
    parts = [0] * len(channels)
    for _ in range(number):
        open_ = [i for i, most in enumerate(channels) if parts[i] < most]
        parts[min(open_, key=lambda i: parts[i])] += 1
    return parts


def to_grid(maps: Tensor, view: Preprocess, grid: int) -> Tensor:
    """Maps [B, C, h, w] of a member's field of view -> [B, C, grid, grid] of the whole picture, bilinear.

    Averages over the pixels that fall on a cell when the map is finer than the grid. Outside a centre crop the
    nearest value is repeated.
    """
    shares = [inner / outer for inner, outer in zip(view.output, view.size, strict=True)]
    inner = tuple(max(1, round(grid * share)) for share in shares)
    if maps.shape[-2] > inner[0] or maps.shape[-1] > inner[1]:
        maps = F.interpolate(maps, inner, mode="bilinear", align_corners=False, antialias=True)
    if view.crop is None:
        if maps.shape[-2:] == (grid, grid):
            return maps
        return F.interpolate(maps, (grid, grid), mode="bilinear", align_corners=False)
    centres = (torch.arange(grid, device=maps.device, dtype=maps.dtype) * 2 + 1) / grid - 1
    y, x = torch.meshgrid(centres / shares[0], centres / shares[1], indexing="ij")
    where = torch.stack([x, y], -1).expand(len(maps), -1, -1, -1)
    return F.grid_sample(maps, where, mode="bilinear", padding_mode="border", align_corners=False)


class MapStore:
    """One map of every training picture in float16, in memory or in a file; scaled so that small values survive."""

    def __init__(self, count: int, first: Tensor, file: Path | None) -> None:
        shape = (count, *first.shape[1:])
        self.channels = first.shape[1]
        self.scale = 1.0 / max(float(first.float().square().mean().sqrt()), 1e-30)
        if file is None:
            self.values = np.empty(shape, np.float16)
        else:
            file.parent.mkdir(parents=True, exist_ok=True)
            self.values = np.memmap(file, np.float16, "w+", shape=shape)

    def __len__(self) -> int:
        return len(self.values)

    def write(self, start: int, maps: Tensor) -> None:
        values = (maps.float() * self.scale).clamp_(-65504, 65504).half().cpu().numpy()
        self.values[start : start + len(values)] = values

    def read(self, start: int, device: torch.device) -> Tensor:
        """float32 [b, C, h, w] of up to CHUNK pictures from `start` on."""
        part = torch.from_numpy(np.array(self.values[start : start + CHUNK])).to(device)
        return part.float().div_(self.scale)


@torch.no_grad()
def kept_maps(members: Sequence[Member], images: Images, keep_gb: float, folder: Path | None) -> list[list[MapStore]]:
    """The members' maps of all pictures from one pass, or from an earlier ensemble where it left them in memory."""
    room = keep_gb * 2**30 - sum(s.values.nbytes for m in members for s in m.kept or ())
    missing = [m for m in members if m.kept is None]
    stores: dict[str, list[MapStore]] = {}
    for start, pictures in _chunks(images) if missing else ():
        for number, member in enumerate(missing):
            maps = member.features(pictures)
            if start == 0:
                size = sum(m[0].numel() for m in maps) * 2 * len(images)
                in_memory = size <= room or folder is None
                room -= size if in_memory else 0
                files = [None if in_memory else folder / f"{number}-{i}" for i in range(len(maps))]
                own = [MapStore(len(images), m, file) for m, file in zip(maps, files, strict=True)]
                stores[member.spec] = own
                if in_memory:
                    member.kept = own
            for store, m in zip(stores[member.spec], maps, strict=True):
                store.write(start, m)
    return [stores.get(member.spec) or member.kept for member in members]


def _chunks(images: Images) -> Iterator[tuple[int, list[np.ndarray]]]:
    for start in range(0, len(images), CHUNK):
        yield start, [images[i] for i in range(start, min(start + CHUNK, len(images)))]
