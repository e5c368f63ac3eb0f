"""How sure a figure is: the same metrics on test pictures drawn again with replacement (Efron and Tibshirani 1993).

Pictures are drawn within the good ones and within each kind of defect, so that every draw has as many of each. Image
metrics are exact; pixel metrics come from counts over a ladder of thresholds (`ladder`).
"""

from __future__ import annotations

import zlib
from bisect import bisect
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
    rows = _cumulated(arrays, wanted)
    parts = [
        _block(arrays, rows, counts[i : i + BLOCK].astype(np.float64), wanted) for i in range(0, len(counts), BLOCK)
    ]
    out = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]} if parts else {}
    if rows:
        out |= _below_curves(arrays, rows, counts.astype(np.float64), wanted)
    return {key: out[key] for key in wanted if key in out}


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


def _block(arrays: Arrays, rows: Arrays, counts: np.ndarray, wanted: list[str]) -> dict[str, np.ndarray]:
    out = _images(arrays, counts, wanted)
    if rows and {"pixel_ap", "pixel_f1max"} & set(wanted):
        hits = counts[:, arrays["ladder.marked"]] @ rows["hits"][:, 1:]
        found = _precision(hits, counts @ rows["background"][:, 1:], arrays["ladder.steps"])
        out |= {f"pixel_{key}": values for key, values in found.items()}
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
        keys = [key for key in keys if any(key == one.partition("/")[0] for one in wanted)]
        if not keys or not np.isfinite(scores).all():
            continue
        parts = {"": np.ones(label.size, bool)}
        if loco:
            parts |= {short: (kind == long) | ~label for short, long in TYPES.items()}
        for part, chosen in parts.items():
            values = _by_score(label[chosen], scores[chosen], counts[:, chosen], keys)
            out |= {f"{key}/{part}" if part else key: v for key, v in values.items()}
        for key in keys if loco else ():
            out[f"{key}/pooled"] = out[key]
            out[f"{key}/mean"] = (out[f"{key}/logical"] + out[f"{key}/structural"]) / 2
    if "threshold" in arrays and "accuracy" in wanted:
        out |= _at_threshold(label, arrays["score"].astype(np.float64) > float(arrays["threshold"]), counts)
    return {key: out[key] for key in wanted if key in out}


def _by_score(
    label: np.ndarray, scores: np.ndarray, counts: np.ndarray, keys: list[str]
) -> dict[str, np.ndarray]:
    out: dict[str, np.ndarray] = {}
    for key in keys:
        if key.startswith("image_auroc"):
            bad, good = scores[label], scores[~label][:, None]
            drawn, others = counts[:, ~label], counts[:, label]
            wins = _pairs(drawn, 2.0 * (bad > good) + (bad == good), others)
            with np.errstate(divide="ignore", invalid="ignore"):
                out[key] = wins / (2 * drawn.sum(axis=1) * others.sum(axis=1))
    if len(out) < len(keys):
        order = np.argsort(-scores)
        last = np.append(np.flatnonzero(np.diff(scores[order])), scores.size - 1)  # of each group of equal scores
        ordered, marked = counts[:, order], label[order]
        hits = np.cumsum(ordered * marked, axis=1)[:, last]
        found = _precision(hits, np.cumsum(ordered * ~marked, axis=1)[:, last])
        out |= {key: found["ap" if key.startswith("image_ap") else "f1max"] for key in keys if key not in out}
    return out


def _at_threshold(label: np.ndarray, found: np.ndarray, counts: np.ndarray) -> dict[str, np.ndarray]:
    hits, alarms = counts @ (found & label), counts @ (found & ~label)
    bad, good = counts @ label, counts @ ~label
    with np.errstate(divide="ignore", invalid="ignore"):
        return {
            "accuracy": (hits + good - alarms) / (bad + good), "tpr": hits / bad, "tnr": (good - alarms) / good,
            "f1": 2 * hits / (bad + hits + alarms),
        }


def _pairs(weights: np.ndarray, table: np.ndarray, others: np.ndarray) -> np.ndarray:
    """[draws]: sums of a table [n, m] over rows and columns, drawn so often: weights [draws, n], others [draws, m]."""
    return np.einsum("dm,dm->d", weights @ table, others)


def _precision(hits: np.ndarray, alarms: np.ndarray, steps: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """`ap` and `f1max` from counts [draws, thresholds] not below each threshold, the last ones of all.

    steps: bool [thresholds], where AP is the step-wise sum because what lies from the threshold before on has one
    score; None: everywhere. Elsewhere hits and alarms rise together on a straight line, and AP is the integral of
    precision.
    """
    h1, f1 = hits, alarms
    h0, f0 = _before(hits), _before(alarms)
    rise = h1 - h0
    bad, good = h1[:, -1], f1[:, -1]
    with np.errstate(divide="ignore", invalid="ignore"):
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
    return {"ap": ap, "f1max": f1max}


def _before(values: np.ndarray) -> np.ndarray:
    return np.concatenate([np.zeros((len(values), 1)), values[:, :-1]], axis=1)


# Pixels


def _cumulated(arrays: Arrays, wanted: list[str]) -> dict[str, np.ndarray]:
    """float64 [rows, 1 + K + 1] by statistic: 0, then what each row has not below each threshold.

    Empty where no pixel metric is wanted or stored.
    """
    if "ladder.background" not in arrays or all(key.startswith("image_") for key in wanted):
        return {}
    return {
        name: np.pad(np.cumsum(arrays[f"ladder.{name}"].astype(np.float64), axis=1), ((0, 0), (1, 0)))
        for name in ("background", "hits", "overlap", "spro_overlap") if f"ladder.{name}" in arrays
    }


def _below_curves(arrays: Arrays, rows: Arrays, counts: np.ndarray, wanted: list[str]) -> dict[str, np.ndarray]:
    """What is an area below a curve: AUROC, AUPRO, AUsPRO of pixels."""
    out: dict[str, np.ndarray] = {}
    background, marked = rows["background"], counts[:, arrays["ladder.marked"]]
    with np.errstate(divide="ignore", invalid="ignore"):
        if "pixel_auroc" in wanted:
            out["pixel_auroc"] = area(counts, background, marked, rows["hits"], 1.0) / (marked @ rows["hits"][:, -1])
        for key in (key for key in wanted if key.startswith("aupro@")):
            held = area(counts, background, marked, rows["overlap"], float(key.partition("@")[2]))
            out[key] = held / (marked @ arrays["ladder.regions"])
        if "spro_overlap" in rows and any(key.startswith("auspro@") for key in wanted):
            out |= _auspro(arrays, rows, counts, wanted)
    return out


def _auspro(arrays: Arrays, rows: Arrays, counts: np.ndarray, wanted: list[str]) -> dict[str, np.ndarray]:
    kind = arrays["kind"].astype(str)
    owner, name, regions = (arrays[f"ladder.spro_{key}"] for key in ("picture", "name", "regions"))
    limits = sorted({key.partition("@")[2].partition("/")[0] for key in wanted if key.startswith("auspro@")})
    out: dict[str, np.ndarray] = {}
    sums: dict[str, list[tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]]] = {}
    for short, long in TYPES.items():
        pictures = np.flatnonzero((kind == "good") | (kind == long))
        of_type = kind[owner] == long
        for defect in sorted(set(name[of_type].tolist())):
            of = np.flatnonzero(of_type & (name == defect))
            drawn = counts[:, owner[of]]
            total, below = drawn @ regions[of], (counts[:, pictures], rows["background"][pictures])
            each = {limit: area(*below, drawn, rows["spro_overlap"][of], float(limit)) for limit in limits}
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


def area(
    weights: np.ndarray, background: np.ndarray, others: np.ndarray, overlap: np.ndarray, limit: float
) -> np.ndarray:
    """[draws]: area below the overlap over the false positive rate, from (0, 0) up to the limit, divided by it.

    Rows of `_cumulated` and how often draws hold them: weights [draws, n] of background [n, K], others [draws, m] of
    overlap [m, K]. At the limit the curve is interpolated. Segments that lie below it in every draw are sums over pairs
    of rows; only those around it are made draw by draw.
    """
    total = weights @ background[:, -1]

    def rate(k: int) -> np.ndarray:
        return weights @ background[:, k] / total

    size = background.shape[1]
    whole = bisect(range(size), 0, key=lambda k: bool((rate(k) > limit).any())) - 1  # the last that none has passed
    end = bisect(range(size), 0, key=lambda k: not (rate(k) < limit).any())  # the first that all have reached
    table = np.diff(background[:, : whole + 1]) @ (overlap[:, :whole] + overlap[:, 1 : whole + 1]).T
    below = _pairs(weights, table, others) / (2 * total)
    x, y = weights @ background[:, whole : end + 1] / total[:, None], others @ overlap[:, whole : end + 1]
    width = np.diff(x)
    reach = np.clip(limit - x[:, :-1], 0, width)
    share = np.divide(reach, width, out=np.zeros_like(reach), where=width > 0)
    return (below + np.sum(reach * (y[:, :-1] + np.diff(y) * share / 2), axis=1)) / limit
