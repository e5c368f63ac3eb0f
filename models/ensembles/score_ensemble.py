"""Output-level ensembles: calibrated scores and maps of fitted detectors, combined by a rule.

The classic baseline for the feature-level ensemble of the same thesis (Saghir, "Ensemble Methods for Visual Anomaly
Detection in Manufacturing Settings"), which names the combinations and asks for calibration before them. Calibration
sees normal pictures that the members have not seen; weights, forest and stacking see artificial anomalies made from
those. No test picture and no test label is used.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from models.base import Config, Context, Detector, Images, ModelError, Prediction, Progress, no_progress
from models.ensembles.calibration import Kind, calibrate, raw_values, table
from models.ensembles.members import SIX, any_short, build_members, fit_members
from models.ensembles.unseen import artificial_anomalies, hold_out, overall, pixel_quality, score_quality
from models.nn.memory import note
from models.nn.preprocess import Preprocess
from models.nn.textures import EMBEDDED
from models.nn.training import generator
from models.registry import register

TIE = 1e-3  # weight of the mean where votes or trees tie
SAME = 0.01  # weights whose largest and smallest differ by less make the weighted mean the mean
LEARNED = ("weighted", "forest", "stacking")


@dataclass(frozen=True, kw_only=True)
class ScoreEnsembleConfig(Config):
    members: tuple[str, ...] = SIX  # method@preset, settings after colons: ast@quick:epochs=8
    rule: Literal["mean", "weighted", "max", "vote", "forest", "stacking"] = "mean"
    calibration: Kind = "ecdf"
    holdout: float = 0.2  # of the training pictures, for calibration where the data have no validation split
    size: int = 256  # px, to which every member's map is brought
    power: float = 4.0  # of the quality in the weights (CAWPE: Large, Lines, Bagnall 2019); 1 is plain weighting
    vote_at: float = 0.95  # a member votes above this quantile of its calibrated normal values
    trees: int = 200
    forest_grid: int = 64  # positions per side at which the forest judges maps
    pixels: int = 20_000  # drawn for the maps of forest and stacking, half of them anomalous
    textures: str | None = EMBEDDED  # folder of natural pictures for the artificial anomalies

    @property
    def short(self) -> bool:
        return self.shortened or any_short(self.members)


RESNET18 = {"members": ("patchcore@resnet18", "simplenet@resnet18", "ast@quick")}

TINY = {"members": ("patchcore@demo", "simplenet@demo", "ast@tiny")}  # for one core, pictures at 128 px


@register("score_ensemble", presets={
    "mean": ScoreEnsembleConfig(),
    "weighted": ScoreEnsembleConfig(rule="weighted"),
    "max": ScoreEnsembleConfig(rule="max"),
    "vote": ScoreEnsembleConfig(rule="vote"),
    "forest": ScoreEnsembleConfig(rule="forest"),
    "stacking": ScoreEnsembleConfig(rule="stacking"),
    "resnet18_mean": ScoreEnsembleConfig(**RESNET18),
    "resnet18_weighted": ScoreEnsembleConfig(**RESNET18, rule="weighted"),
    "resnet18_max": ScoreEnsembleConfig(**RESNET18, rule="max"),
    "resnet18_vote": ScoreEnsembleConfig(**RESNET18, rule="vote"),
    "resnet18_forest": ScoreEnsembleConfig(**RESNET18, rule="forest"),
    "resnet18_stacking": ScoreEnsembleConfig(**RESNET18, rule="stacking"),
    "tiny_mean": ScoreEnsembleConfig(**TINY),
    "tiny_weighted": ScoreEnsembleConfig(**TINY, rule="weighted"),
    "tiny_stacking": ScoreEnsembleConfig(**TINY, rule="stacking"),
    "demo": ScoreEnsembleConfig(members=("patchcore@demo", "simplenet@demo"), size=128),
})
class ScoreEnsemble(Detector):
    """Mean, weighted mean, maximum, vote, random forest or stacking of calibrated scores and maps."""

    Config = ScoreEnsembleConfig
    config: ScoreEnsembleConfig

    def __init__(self, config: ScoreEnsembleConfig, context: Context) -> None:
        super().__init__(config, context)
        self.preprocess = Preprocess((config.size, config.size))
        self.members = build_members(config.members, context, "score_ensemble")  # one: a member alone, for comparison
        self.tables: dict[str, Tensor] = {}  # everything that `fit` learns, by name; see `_prepare`

    def fit(self, train: Images, validation: Images | None, progress: Progress = no_progress) -> dict[str, Any]:
        """Members (fitted or reused), calibration, and for the learned rules their combiner.

        The log has the members' logs, and for learned rules `quality` (per member, how well its maps find artificial
        anomalies: average precision of pixels, the mean over grades from faint to plain; of scores where a member has
        no map), `quality_by_grade`, `weights` and their `weight_spread` (largest less smallest). Raises ModelError when
        no pictures are left that the members have not seen.
        """
        config = self.config
        data = hold_out(train, validation, config.holdout, self.context)
        if len(data.unseen) < 2:
            raise ModelError(
                f"score_ensemble: {len(data.unseen)} normal pictures are left for calibration; give the category a "
                "validation split of at least two, or set holdout above 0"
            )
        log = fit_members(self.members, data, self.context, progress)
        scores, maps = self._raw(data.unseen)
        for which, values in (("scores", scores), ("maps", maps)):
            if values is not None:
                self.tables[which] = self._tables(values)
                normal = self._calibrated(values, which).transpose(0, 1).flatten(1).numpy()
                self.tables[f"{which}_vote"] = torch.from_numpy(np.quantile(normal, config.vote_at, axis=1))
        if config.rule in LEARNED:
            log |= self._learn(data.unseen, scores, maps)
        self._prepare()
        return {**log, "calibrated_on": len(data.unseen), "maps": maps is not None}

    def _raw(self, images: Images) -> tuple[Tensor, Tensor | None]:
        return raw_values(self.members, images, self.config.size)

    def _tables(self, values: Tensor) -> Tensor:
        """One calibration table per member from raw values [n, m, ...]: float64 [m, k]."""
        if not torch.isfinite(values).all():
            bad = [m.spec for i, m in enumerate(self.members) if not torch.isfinite(values[:, i]).all()]
            raise ModelError(f"score_ensemble: member {bad[0]} gave scores that are not finite on normal pictures")
        return table(values.transpose(0, 1).flatten(1).numpy(), self.config.calibration)

    def _calibrated(self, values: Tensor, which: str) -> Tensor:
        """Raw values [n, m, ...] -> calibrated float64 of the same shape."""
        columns = [
            calibrate(values[:, i], self.tables[which][i], self.config.calibration) for i in range(values.shape[1])
        ]
        return torch.stack(columns, 1)

    def _learn(self, unseen: Images, scores: Tensor, maps: Tensor | None) -> dict[str, Any]:
        """Qualities, and vectors with labels for forest and stacking, from artificial anomalies of unseen pictures."""
        config, size = self.config, self.preprocess.size
        made = artificial_anomalies(unseen, config.textures, size, self.context)
        grades = [anomaly.grade for anomaly in made]
        fake_scores, fake_maps = self._raw([anomaly.picture for anomaly in made])
        masks = np.stack([self.preprocess.mask(anomaly.mask) for anomaly in made])
        found = {
            m.spec: score_quality(scores[:, i].numpy(), fake_scores[:, i].numpy(), grades) if fake_maps is None
            else pixel_quality(fake_maps[:, i].numpy(), masks, grades) for i, m in enumerate(self.members)
        }
        self.tables["quality"] = torch.tensor([overall(by_grade) for by_grade in found.values()]).double()
        log: dict[str, Any] = {
            "quality": {spec: round(overall(by_grade), 5) for spec, by_grade in found.items()},
            "quality_by_grade": found, "artificial_anomalies": len(made),
        }
        if config.rule == "weighted":
            weights = self._weights()
            log["weights"] = {m.spec: round(float(w), 5) for m, w in zip(self.members, weights, strict=True)}
            log["weight_spread"] = round(float(weights.max() - weights.min()), 5)
            if log["weight_spread"] < SAME:
                note(f"the members' weights differ by less than {SAME}: the weighted mean is the mean")
            return log
        vectors = self._calibrated(torch.cat([scores, fake_scores]), "scores")
        labels = torch.cat([torch.zeros(len(scores)), torch.ones(len(fake_scores))])
        self.tables |= {"score_vectors": vectors, "score_labels": labels}
        if maps is not None and fake_maps is not None:
            truth = torch.cat([torch.zeros(len(maps), *size, dtype=torch.bool), torch.from_numpy(masks)])
            pixels = self._calibrated(torch.cat([maps, fake_maps]), "maps").movedim(1, -1).flatten(0, 2)
            chosen = _balanced(truth.flatten(), config.pixels, generator(self.context, "pixels"))
            self.tables |= {"map_vectors": pixels[chosen], "map_labels": truth.flatten()[chosen].double()}
        return log

    def _weights(self) -> Tensor:
        powers = self.tables["quality"].clamp_min(1e-6) ** self.config.power
        return powers / powers.sum()

    def _prepare(self) -> None:
        """Fit the forest or the logistic regression on the stored vectors."""
        self.learners = {
            which: self._learner(which.removesuffix("s"))
            for which in ("scores", "maps")
            if which in self.tables and self.config.rule in ("forest", "stacking")
        }

    def _learner(self, which: str) -> Any:
        """Fitted on the stored vectors; the same data and seed give the same learner, so only they are saved."""
        from sklearn.ensemble import RandomForestClassifier
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        if self.config.rule == "forest":
            learner: Any = RandomForestClassifier(
                self.config.trees, min_samples_leaf=3, class_weight="balanced", random_state=self.context.seed % 2**32
            )
        else:
            learner = make_pipeline(StandardScaler(), LogisticRegression(class_weight="balanced", max_iter=1000))
        return learner.fit(self.tables[f"{which}_vectors"].numpy(), self.tables[f"{which}_labels"].numpy())

    def combine(self, values: Tensor, which: str) -> Tensor:
        """Calibrated values [n, m] of `which` ('scores' or 'maps') -> one value each, float64 [n], by the rule."""
        match self.config.rule:
            case "mean":
                return values.mean(1)
            case "max":
                return values.amax(1)
            case "weighted":
                return values @ self._weights()
            case "vote":
                votes = (values > self.tables[f"{which}_vote"]).double().mean(1)
                return votes + TIE * _squashed(values.mean(1))
            case "stacking":
                return torch.from_numpy(self.learners[which].decision_function(values.numpy()))
            case _:
                shares = torch.from_numpy(self.learners[which].predict_proba(values.numpy())[:, 1])
                return shares + TIE * _squashed(values.mean(1))

    @torch.no_grad()
    def predict(self, batch: Images) -> Prediction:
        """The rule on the members' scores, and position by position on their maps (None when a member has no map)."""
        scores, maps = self._raw(batch)
        score = self.combine(self._calibrated(scores, "scores"), "scores").float()
        if maps is None or "maps" not in self.tables:
            return Prediction(None, score)
        size = maps.shape[-2:]
        if self.config.rule == "forest":
            grid = (self.config.forest_grid, self.config.forest_grid)
            maps = F.interpolate(maps, grid, mode="bilinear", align_corners=False, antialias=True)
        values = self._calibrated(maps, "maps")
        shape = (len(values), *values.shape[-2:])
        joined = self.combine(values.movedim(1, -1).flatten(0, 2), "maps").view(shape).float()
        if joined.shape[-2:] != size:
            joined = F.interpolate(joined[:, None], size, mode="bilinear", align_corners=False)[:, 0]
        return Prediction(joined, score)

    def state_dict(self) -> dict[str, Any]:
        return {"members": [m.detector.state_dict() for m in self.members], "tables": dict(self.tables)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for member, saved in zip(self.members, state["members"], strict=True):
            member.detector.load_state_dict(saved)
        self.tables = dict(state["tables"])
        self._prepare()


def _squashed(x: Tensor) -> Tensor:
    """Strictly increasing into (-1, 1)."""
    return x / (1 + x.abs())


def _balanced(truth: Tensor, count: int, random: torch.Generator) -> Tensor:
    """Indices of up to count / 2 anomalous and as many normal entries."""
    chosen = []
    for value in (True, False):
        where = (truth == value).nonzero()[:, 0]
        chosen.append(where[torch.randperm(len(where), generator=random)[: count // 2]])
    return torch.cat(chosen)
