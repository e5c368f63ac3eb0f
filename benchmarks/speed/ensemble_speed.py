"""What ensembles cost: the PCA of 100,000 x 2,000 features, and a feature ensemble beside its members' features alone.

    python -m benchmarks.speed.ensemble_speed [--only pca members] [--weights DIR]

PCA: correlated random features; ours, and scikit-learn's incremental and full solvers, each in its own process.
Members: processor time of `predict` on random pictures, and of every member's `feature_maps` on the same, in turn.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

from benchmarks.speed.common import child, finish, machine, middle, table

SOLVERS = ("ours", "IncrementalPCA", "PCA covariance_eigh")
MEMBERS = ("patchcore@resnet18", "simplenet@resnet18:epochs=1", "ast@quick:epochs=1")
COMPONENTS = 512


def pca(solver: str, count: int, channels: int) -> dict[str, Any]:
    """Seconds of one PCA to 512 components, the features' own megabytes and the share of variance that is kept."""
    import numpy as np

    rng = np.random.default_rng(0)
    mixing = rng.standard_normal((channels, channels), np.float32) / np.sqrt(np.arange(1, channels + 1, dtype="f4"))
    features = np.empty((count, channels), np.float32)
    for part in np.array_split(features, 50):
        part[:] = rng.standard_normal(part.shape, np.float32) @ mixing.T
    if solver == "ours":
        import torch

        from models.nn.pca import Covariance, principal_components

        start = time.perf_counter()
        covariance = Covariance(channels)
        covariance.add(torch.from_numpy(features))
        explained = principal_components(covariance, COMPONENTS).explained
    else:
        from sklearn.decomposition import PCA, IncrementalPCA

        start = time.perf_counter()
        if solver == "IncrementalPCA":
            fitted = IncrementalPCA(COMPONENTS, batch_size=4096).fit(features)
        else:
            fitted = PCA(COMPONENTS, svd_solver="covariance_eigh", copy=False).fit(features)
        explained = float(fitted.explained_variance_ratio_.sum())
    return {"s": time.perf_counter() - start, "features_mb": features.nbytes / 2**20, "explained": explained}


def members(weights: str, pictures: int, rounds: int) -> None:
    """The ensemble's prediction, and the same members' features each by itself, alternating."""
    import numpy as np
    import torch

    from models import registry
    from models.base import Context
    from models.features import FeatureCache
    from models.weights import WeightStore

    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (256, 256, 3), np.uint8) for _ in range(pictures)]
    shared: dict[str, Any] = {"members": {}}
    cache = FeatureCache()  # members keep the one they were built with
    rows = []
    for block in ("global", "independent"):
        settings = {"members": ",".join(MEMBERS), "epochs": "1"}
        config: Any = registry.config(f"feature_ensemble@resnet18_{block}", settings)
        context = Context(torch.device("cpu"), 0, WeightStore(weights), None, cache, shared)
        ensemble: Any = registry.method_class("feature_ensemble")(config, context)
        ensemble.fit(images, None)

        def whole(ensemble: Any = ensemble, batch: int = config.batch) -> None:
            for start in range(0, pictures, batch):
                ensemble.predict(images[start : start + batch])

        def alone(ensemble: Any = ensemble, batch: int = config.batch) -> None:
            for member in ensemble.members:
                cache.clear()  # without the others' passes through the same backbone
                for start in range(0, pictures, batch):
                    member.features(images[start : start + batch])

        seconds: dict[str, list[float]] = {"whole": [], "alone": []}
        for number in range(rounds + 1):
            if number == 1:  # the first round does not count
                seconds = {"whole": [], "alone": []}
            for name, call in (("whole", whole), ("alone", alone)):
                cache.clear()
                start = time.process_time()
                call()
                seconds[name].append(time.process_time() - start)
        one, other = (statistics.median(seconds[name]) for name in ("whole", "alone"))
        rows.append((block, f"{one:.2f}", f"{other:.2f}", f"{one / other:.2f}"))
    print(f"\n{pictures} pictures of 256 x 256, members {', '.join(MEMBERS)}.\n", flush=True)
    table(("block", "ensemble, CPU s", "members' features alone, CPU s", "ratio (1.2 at most)"), rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=["pca", "members"], default=["pca", "members"])
    parser.add_argument("--size", nargs=2, type=int, default=[100_000, 2_000], metavar=("N", "D"))
    parser.add_argument("--weights", default="none", help="directory of weights, auto or none")
    parser.add_argument("--pictures", type=int, default=32, help="at least 10")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        finish(pca(arguments.child, *arguments.size))
        return
    print(f"{machine()}.\n", flush=True)
    if "pca" in arguments.only:
        def row(solver: str) -> list[str]:
            runs = [
                child(__spec__.name, ["--size", *arguments.size, "--child", solver]) for _ in range(arguments.rounds)
            ]
            peak, own = middle(runs, "peak_mb"), middle(runs, "features_mb")
            return [solver, f"{middle(runs, 's'):.1f}", f"{peak:,.0f}", f"{own:,.0f}", f"{runs[0]['explained']:.6f}"]

        heads = ("PCA to 512 components", "s", "peak MB of the process", "of which features", "variance kept")
        table(heads, (row(solver) for solver in SOLVERS))
    if "members" in arguments.only:
        weights = arguments.weights
        members(weights if weights in ("auto", "none") else str(Path(weights).resolve()), arguments.pictures,
                arguments.rounds)


if __name__ == "__main__":
    main()
