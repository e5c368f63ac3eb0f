"""Arguments of the commands that run units, and what they ask for."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.commands.common import places
from benchmarks.errors import UsageError

if TYPE_CHECKING:
    from benchmarks.plan import Options


@cache
def running() -> argparse.ArgumentParser:
    """What `run`, `reproduce` and `demo` have in common."""
    parser = argparse.ArgumentParser(add_help=False, parents=[places()])
    parser.add_argument("--seeds", type=int, nargs="+", metavar="N", help="seeds (0; for demo and suites their own)")
    parser.add_argument("--weights", default="auto", metavar="DIR|auto|none",
                        help="pretrained weights: a directory, the library caches and download, or untrained (auto)")
    parser.add_argument("--weights-for", nargs="+", action="extend", default=[], metavar="TAG=FILE",
                        help="take FILE instead of the weights that TAG names; every figure is marked")
    parser.add_argument("--device", default="auto", metavar="auto|cpu|cuda[:i]", help="where to compute (auto)")
    parser.add_argument("--repeatable", action="store_true",
                        help="on a GPU, deterministic forms of all operations too, which cost time (cuDNN and cuBLAS)")
    parser.add_argument("--textures", default="", metavar="DIR|embedded",
                        help="natural pictures for methods that paste them as defects (none)")
    parser.add_argument("--metric-size", default="original", metavar="original|model|N",
                        help="size at which maps are scored (original)")
    parser.add_argument("--set", nargs="+", action="extend", default=[], metavar="FIELD=VALUE",
                        help="settings for all methods (field=value) or one (method.field=value)")
    parser.add_argument("--launcher", choices=("local", "ray"), default="local", help="how units are run (local)")
    parser.add_argument("--address", default=None, metavar="ADDR", help="address of the Ray cluster (own, local one)")
    parser.add_argument("--workers", type=int, default=1, metavar="N", help="units at a time (1)")
    parser.add_argument("--time-limit", type=float, default=0, metavar="S", help="seconds a unit may take (no limit)")
    parser.add_argument("--force", action="store_true", help="run again what has a finished record")
    parser.add_argument("--keep-maps", action="store_true",
                        help="write anomaly maps under results/maps; reproduce then draws figures too")
    parser.add_argument("--watch-test", type=int, default=0, metavar="N",
                        help="score the test pictures N times during training, for a plot and no choice (0)")
    parser.add_argument("--cache-size", default="20GB", metavar="SIZE",
                        help="bound of the cache of decoded pictures; 0 turns it off (20GB)")
    parser.add_argument("--limit", type=int, default=0, metavar="N",
                        help="at most N pictures of each split, the same ones every time; figures are marked (all)")
    parser.add_argument("--config", type=Path, default=None, metavar="FILE",
                        help="YAML of flags, as each run writes one below results/configs; flags typed besides win")
    parser.add_argument("--dry-run", action="store_true",
                        help="run nothing: show the units, the data, weights and time; reproduce still writes the "
                             "tables from what is stored")
    parser.add_argument("--quiet", action="store_true", help="no progress bars")
    return parser


def options(args: argparse.Namespace) -> Options:
    """What every unit of the run shares. Raises UsageError for what cannot be meant."""
    from benchmarks.plan import Options

    settings = {}
    for text in args.set:
        key, sign, value = text.partition("=")
        if not sign or not key:
            raise UsageError(f"--set {text!r}: write field=value, for example --set epochs=5")
        settings[key] = value
    weights_for = {}
    for text in args.weights_for:
        tag, sign, file = text.partition("=")
        if not sign or not tag or not file or tag in weights_for:
            raise UsageError(
                f"--weights-for {text!r}: write one TAG=FILE per tag, for example vgg19.tv_in1k=weights/mine.pth"
            )
        weights_for[tag] = Path(file)
    size = _bytes(args.cache_size)
    if not 0 <= args.watch_test <= 200:
        raise UsageError(f"--watch-test {args.watch_test}: give 0 to 200")
    if args.limit and args.limit < 2:
        raise UsageError(f"--limit {args.limit}: give 2 or more, for a good and an anomalous test picture")
    if not args.time_limit >= 0:
        raise UsageError(f"--time-limit {args.time_limit:g}: give seconds from 0 (no limit) on")
    if args.workers < 1:
        raise UsageError(f"--workers {args.workers}: give 1 or more")
    if args.results.exists() and not args.results.is_dir():
        raise UsageError(f"--results {args.results}: is a file; name a folder")
    return Options(
        data_root=args.data_root, results=args.results, weights=args.weights, weights_for=weights_for,
        device=args.device, repeatable=args.repeatable, textures=args.textures, metric_size=args.metric_size,
        settings=settings, keep_maps=args.keep_maps, watch=args.watch_test,
        cache_dir=args.results / "cache" if size else None, cache_size=size, time_limit=args.time_limit,
        limit=args.limit,
    )


def seeds(args: argparse.Namespace) -> list[int]:
    """The seeds asked for, else 0."""
    chosen: Sequence[int] = (0,) if args.seeds is None else args.seeds
    if any(seed < 0 for seed in chosen):
        raise UsageError("--seeds: give numbers from 0 on")
    return list(chosen)


def _bytes(text: str) -> int:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(|[kKmMgGtT])i?[bB]?", text.strip())
    if not match:
        raise UsageError(f"--cache-size {text!r}: write a size such as 20GB, 500MB or 0")
    return int(float(match[1]) * 1000 ** " kmgt".index(match[2].lower() or " "))
