"""How sure a figure is: the same metrics on test pictures drawn again with replacement (Efron and Tibshirani 1993).

Pictures are drawn within the good ones and within each kind of defect, so that every draw has as many of each. Image
metrics are exact; pixel metrics come from counts over a ladder of thresholds (`ladder`).
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping

import numpy as np

DRAWS = 2000
LEVEL = 0.95
BLOCK = 250  # draws at a time, so that what is computed of them stays small

Arrays = Mapping[str, np.ndarray]
TYPES = {"logical": "logical_anomalies", "structural": "structural_anomalies"}


def weights(names: np.ndarray, kinds: np.ndarray, draws: int = DRAWS, seed: int = 0) -> np.ndarray:
    """float64 [draws, n]: how often each draw holds each picture.

    The same for the same pictures in the same order, whatever the method: differences between methods are paired.
    """
    key = zlib.crc32("\n".join(f"{kind}/{name}" for name, kind in zip(names, kinds, strict=True)).encode())
    rng = np.random.default_rng([seed, key])
    out = np.zeros((draws, len(kinds)))
    for kind in sorted(set(kinds.tolist())):
        chosen = np.flatnonzero(kinds == kind)
        drawn = rng.integers(0, chosen.size, (draws, chosen.size)) + chosen.size * np.arange(draws)[:, None]
        out[:, chosen] = np.bincount(drawn.ravel(), minlength=draws * chosen.size).reshape(draws, chosen.size)
    return out


def evaluate(arrays: Arrays, counts: np.ndarray, wanted: Iterable[str]) -> dict[str, np.ndarray]:
    """Metrics of weighted pictures: float64 [draws] by key, NaN where a draw has none; unknown keys are left out.

    arrays: of n pictures `label`, `kind`, `score`, `score_max`, `threshold` where a method has one, and the statistics
    of `Scores`. counts: [draws, n], see `weights`; a row of ones gives the metrics themselves.
    """
    wanted = list(wanted)
    parts = [_block(arrays, counts[i : i + BLOCK].astype(np.float64), wanted) for i in range(0, len(counts), BLOCK)]
    return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]} if parts else {}


def intervals(
    arrays: Arrays, exact: Mapping[str, float | None], wanted: Iterable[str], draws: int = DRAWS, seed: int = 0
) -> dict[str, tuple[float, float] | None]:
    """The interval of each metric that can have one. arrays: see `evaluate`.

    exact: the metrics themselves; draws are moved by what the ladder takes from them.
    """
    kinds = arrays["kind"].astype(str)
    ones = np.ones((1, kinds.size))
    found = evaluate(arrays, np.vstack([ones, weights(arrays["name"], kinds, draws, seed)]), wanted)
    return {
        key: interval(values[1:] + (exact[key] - values[0]), kinds.size, len(set(kinds.tolist())))
        for key, values in found.items() if exact.get(key) is not None
    }


def interval(draws: np.ndarray, pictures: int, kinds: int, level: float = LEVEL) -> tuple[float, float] | None:
    """Expanded percentiles of the draws (Hesterberg 2015, section 5): plain ones are too close for few pictures.

    pictures, kinds: how many were drawn, within how many kinds, over all categories together; they give the degrees of
    freedom of Student's t. None where fewer than nine in ten draws have a value, or all the same one (perfect
    separation): such draws say nothing of other pictures.
    """
    from scipy import stats

    held = draws[np.isfinite(draws)]
    if held.size < 0.9 * draws.size or not held.size or held.max() - held.min() < 1e-12:
        return None
    freedom = max(pictures - kinds, 1)
    tail = stats.norm.sf(stats.t.ppf((1 + level) / 2, freedom) * np.sqrt(pictures / freedom))
    low, high = np.quantile(held, [tail, 1 - tail])
    return float(low), float(high)


def _block(arrays: Arrays, counts: np.ndarray, wanted: list[str]) -> dict[str, np.ndarray]:
    out = _images(arrays, counts, wanted)
    if "ladder.background" in arrays:
        with np.errstate(divide="ignore", invalid="ignore"):
            out |= _pixels(arrays, counts, wanted)
    return out


# Images


def _images(arrays: Arrays, counts: np.ndarray, wanted: list[str]) -> dict[str, np.ndarray]:
    label, kind = arrays["label"].astype(bool), arrays["kind"].astype(str)
    loco = set(TYPES.values()) & set(kind.tolist()) and set(kind.tolist()) <= {"good", *TYPES.values()}
    out: dict[str, np.ndarray] = {}
    for suffix, name in (("", "score"), ("@max", "score_max")):
        keys = [f"{key}{suffix}" for key in ("image_auroc", "image_ap", "image_f1max")]
        if name not in arrays:  # of a record made before it was kept
            continue
        scores = arrays[name].astype(np.float64)
        if not any(key.partition("/")[0] in keys for key in wanted) or not np.isfinite(scores).all():
            continue
        parts = {"": np.ones(label.size, bool)}
        if loco:
            parts |= {short: (kind == long) | ~label for short, long in TYPES.items()}
        for part, chosen in parts.items():
            values = _by_score(label[chosen], scores[chosen], counts[:, chosen])
            out |= {f"{key}/{part}" if part else key: v for key, v in zip(keys, values, strict=True)}
        for key in keys if loco else ():
            out[f"{key}/pooled"] = out[key]
            out[f"{key}/mean"] = (out[f"{key}/logical"] + out[f"{key}/structural"]) / 2
    if "threshold" in arrays and "accuracy" in wanted:
        out |= _at_threshold(label, arrays["score"].astype(np.float64) > float(arrays["threshold"]), counts)
    return {key: out[key] for key in wanted if key in out}


def _by_score(label: np.ndarray, scores: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, ...]:
    order = np.argsort(-scores)
    last = np.append(np.flatnonzero(np.diff(scores[order])), scores.size - 1)  # of each group of equal scores
    ordered, marked = counts[:, order], label[order]
    hits = np.cumsum(ordered * marked, axis=1)[:, last]
    return _ranked(hits, np.cumsum(ordered * ~marked, axis=1)[:, last])


def _at_threshold(label: np.ndarray, found: np.ndarray, counts: np.ndarray) -> dict[str, np.ndarray]:
    hits, alarms = counts @ (found & label), counts @ (found & ~label)
    bad, good = counts @ label, counts @ ~label
    with np.errstate(divide="ignore", invalid="ignore"):
        return {
            "accuracy": (hits + good - alarms) / (bad + good), "tpr": hits / bad, "tnr": (good - alarms) / good,
            "f1": 2 * hits / (bad + hits + alarms),
        }


def _ranked(hits: np.ndarray, alarms: np.ndarray, steps: np.ndarray | None = None) -> tuple[np.ndarray, ...]:
    """AUROC, AP and F1-max from counts [draws, thresholds] not below each threshold, the last ones of all.

    steps: bool [thresholds], where AP is the step-wise sum because what lies from the threshold before on has one
    score; None: everywhere. Elsewhere hits and alarms rise together on a straight line, and AP is the integral of
    precision.
    """
    h1, f1 = hits, alarms
    h0, f0 = _before(hits), _before(alarms)
    rise = h1 - h0
    bad, good = h1[:, -1], f1[:, -1]
    with np.errstate(divide="ignore", invalid="ignore"):
        auroc = np.sum((f1 - f0) * (h0 + h1), axis=1) / (2 * bad * good)
        f1max = np.max(np.nan_to_num(2 * h1 / (bad[:, None] + h1 + f1)), axis=1)
        area = rise * h1 / (h1 + f1)
        if steps is not None:
            # precision is h / (slope h + rest) on a segment; its integral over h has this closed form
            slope = 1 + (f1 - f0) / rise
            rest = f0 - (slope - 1) * h0
            line = rise / slope - rest / slope**2 * np.log((h1 + f1) / (h0 + f0))
            area = np.where(steps, area, np.where(h0 + f0 > 0, line, rise / slope))
        ap = np.sum(np.where(rise > 0, area, 0.0), axis=1) / bad
    f1max[~((bad > 0) & (good > 0))] = np.nan
    return auroc, ap, f1max


def _before(values: np.ndarray) -> np.ndarray:
    return np.concatenate([np.zeros((len(values), 1)), values[:, :-1]], axis=1)


# Pixels


def _pixels(arrays: Arrays, counts: np.ndarray, wanted: list[str]) -> dict[str, np.ndarray]:
    def summed(rows: str, of: np.ndarray, pictures: np.ndarray | None = None) -> np.ndarray:
        """[draws, K + 1]: the drawn sum of the rows that are `of` these pictures, not below each threshold."""
        held = arrays[f"ladder.{rows}"] if pictures is None else arrays[f"ladder.{rows}"][pictures]
        return np.cumsum(counts[:, of] @ held.astype(np.float64), axis=1)

    out: dict[str, np.ndarray] = {}
    every, marked = np.arange(counts.shape[1]), arrays["ladder.marked"]
    pixel = [key for key in wanted if key.startswith("pixel_")]
    areas = [key for key in wanted if key.startswith("aupro@")]
    if pixel or areas:
        background = summed("background", every)
    if pixel:
        found = _ranked(summed("hits", marked), background, arrays["ladder.steps"])
        out |= dict(zip(("pixel_auroc", "pixel_ap", "pixel_f1max"), found, strict=True))
    if areas:
        overlap = summed("overlap", marked) / (counts[:, marked] @ arrays["ladder.regions"])[:, None]
        for key in areas:
            out[key] = area(background / background[:, -1:], overlap, float(key.partition("@")[2]))
    if "ladder.spro_overlap" in arrays and any(key.startswith("auspro@") for key in wanted):
        out |= _auspro(arrays, counts, summed, wanted)
    return {key: out[key] for key in wanted if key in out}


def _auspro(arrays: Arrays, counts: np.ndarray, summed, wanted: list[str]) -> dict[str, np.ndarray]:  # type: ignore[no-untyped-def]
    kind = arrays["kind"].astype(str)
    owner, name, regions = (arrays[f"ladder.spro_{key}"] for key in ("picture", "name", "regions"))
    limits = sorted({key.partition("@")[2].partition("/")[0] for key in wanted if key.startswith("auspro@")})
    out: dict[str, np.ndarray] = {}
    sums: dict[str, list[tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]]] = {}
    for short, long in TYPES.items():
        pictures = np.flatnonzero((kind == "good") | (kind == long))
        background = summed("background", pictures, pictures)
        rate = background / background[:, -1:]
        of_type = kind[owner] == long
        for defect in sorted(set(name[of_type].tolist())):
            rows = np.flatnonzero(of_type & (name == defect))
            total, held = counts[:, owner[rows]] @ regions[rows], summed("spro_overlap", owner[rows], rows)
            each = {limit: area(rate, held, float(limit)) for limit in limits}
            sums.setdefault(defect, []).append((total, of_type, each))
            sums.setdefault(f"/{short}", []).append((total, of_type, each))
        for limit in limits:
            parts = sums.get(f"/{short}", [])
            out[f"auspro@{limit}/{short}"] = (
                sum(each[limit] for _, _, each in parts) / sum(total for total, _, _ in parts)
                if parts else np.full(len(counts), np.nan)
            )
    for limit in limits:
        out[f"auspro@{limit}/mean"] = (out[f"auspro@{limit}/logical"] + out[f"auspro@{limit}/structural"]) / 2
        for defect, parts in sums.items():
            if not defect.startswith("/"):
                out[f"auspro@{limit}/defect:{defect}"] = (
                    sum(each[limit] for _, _, each in parts) / sum(total for total, _, _ in parts)
                )
    return out


def area(rate: np.ndarray, overlap: np.ndarray, limit: float) -> np.ndarray:
    """[draws]: area below overlap over the false positive rate, both [draws, K], from (0, 0) up to the limit, divided
    by it. At the limit the curve is interpolated."""
    x0, y0 = _before(rate), _before(overlap)
    width = rate - x0
    reach = np.clip(limit - x0, 0, width)
    share = np.divide(reach, width, out=np.zeros_like(reach), where=width > 0)
    return np.sum(reach * (y0 + (overlap - y0) * share / 2), axis=1) / limit
