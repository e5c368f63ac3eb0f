#!/usr/bin/env python3
"""Command line of the benchmark: arguments and calls, nothing else. Exit codes: 0 well, 1 failure, 2 wrong use."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path


def parser() -> argparse.ArgumentParser:
    """The whole command line."""
    top = argparse.ArgumentParser(
        prog="run_benchmark.py",
        description="Measure industrial visual anomaly detection methods and print the papers' tables beside them.",
    )
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--data-root", type=Path, default=Path("data"), metavar="DIR",
                        help="folder with mvtec_ad/, mvtec_loco/ or own datasets, or the folder of categories (data)")
    shared.add_argument("--results", type=Path, default=Path("results"), metavar="DIR",
                        help="records and tables go here (results)")

    running = argparse.ArgumentParser(add_help=False, parents=[shared])
    running.add_argument("--seeds", type=int, nargs="+", metavar="N", help="seeds (0; for demo and suites their own)")
    running.add_argument("--weights", default="auto", metavar="DIR|auto|none",
                         help="pretrained weights: a directory, the library caches and download, or untrained (auto)")
    running.add_argument("--weights-for", nargs="+", action="extend", default=[], metavar="TAG=FILE",
                         help="take FILE instead of the weights that TAG names; every figure is marked")
    running.add_argument("--device", default="auto", metavar="auto|cpu|cuda[:i]", help="where to compute (auto)")
    running.add_argument("--textures", default="", metavar="DIR|embedded",
                         help="natural pictures for methods that paste them as defects (none)")
    running.add_argument("--metric-size", default="original", metavar="original|model|N",
                         help="size at which maps are scored (original)")
    running.add_argument("--set", nargs="+", action="extend", default=[], metavar="FIELD=VALUE",
                         help="settings for all methods (field=value) or one (method.field=value)")
    running.add_argument("--launcher", choices=("local", "ray"), default="local", help="how units are run (local)")
    running.add_argument("--address", default=None, metavar="ADDR", help="address of the Ray cluster (own, local one)")
    running.add_argument("--workers", type=int, default=1, metavar="N", help="units at a time (1)")
    running.add_argument("--time-limit", type=float, default=0, metavar="S", help="seconds a unit may take (no limit)")
    running.add_argument("--force", action="store_true", help="run again what has a finished record")
    running.add_argument("--keep-maps", action="store_true",
                         help="write anomaly maps under results/maps; reproduce then draws figures too")
    running.add_argument("--watch-test", type=int, default=0, metavar="N",
                         help="score the test pictures N times during training, for a plot and no choice (0)")
    running.add_argument("--cache-size", default="20GB", metavar="SIZE",
                         help="bound of the cache of decoded pictures; 0 turns it off (20GB)")
    running.add_argument("--quiet", action="store_true", help="no progress bars")

    sub = commands.add_parser("list", help="what is registered", parents=[shared])
    sub.add_argument("what", choices=("methods", "datasets", "tables"))

    sub = commands.add_parser("run", help="run methods on datasets", parents=[running])
    sub.add_argument("--methods", nargs="+", required=True, metavar="M[@PRESET]")
    sub.add_argument("--datasets", nargs="+", required=True, metavar="D")
    sub.add_argument("--categories", nargs="+", default=[], metavar="C", help="categories (all found)")

    sub = commands.add_parser("reproduce", help="run what a paper's tables need and write them", parents=[running])
    sub.add_argument("--paper", default="all", metavar="ID|all")
    sub.add_argument("--table", default=None, metavar="T")
    sub.add_argument("--quick", action="store_true", help="short CPU presets; every figure is marked")
    sub.add_argument("--no-run", action="store_true",
                     help="run nothing: list the units and write the tables from what is stored")
    sub.add_argument("--categories", nargs="+", default=[], metavar="C", help="categories (all found)")
    sub.add_argument("--methods", nargs="+", default=[], metavar="M", help="only these methods (all of the tables)")

    sub = commands.add_parser("table", help="print one table from stored records", parents=[shared])
    sub.add_argument("table", metavar="PAPER/TABLE")
    sub.add_argument("--format", choices=("md", "latex", "csv", "html"), default="md")
    sub.add_argument("--mixed", action="store_true", help="allow records of several protocols, labelled")

    sub = commands.add_parser("compare", help="compare methods per category", parents=[shared])
    sub.add_argument("methods", nargs="+", metavar="M[@PRESET]")
    sub.add_argument("--datasets", nargs="+", required=True, metavar="D")
    sub.add_argument("--metric", default=None, metavar="KEY", help="metric key (image and pixel AUROC, AUPRO)")
    sub.add_argument("--plot", type=Path, default=None, metavar="DIR", help="also write a plot per metric here")
    sub.add_argument("--mixed", action="store_true", help="allow records of several protocols, labelled")
    sub.add_argument("--format", choices=("md", "latex", "csv", "html"), default="md")

    sub = commands.add_parser("check", help="compare records with a baseline; 1 = regression", parents=[shared])
    sub.add_argument("--baseline", type=Path, required=True, metavar="FILE")
    sub.add_argument("--junit", type=Path, default=None, metavar="FILE", help="also write JUnit XML")
    sub.add_argument("--summary", type=Path, default=None, metavar="FILE", help="also append a Markdown summary")

    sub = commands.add_parser("baseline", help="make a baseline file from records", parents=[shared])
    sub.add_argument("action", choices=("make",))
    sub.add_argument("--out", type=Path, required=True, metavar="FILE")
    sub.add_argument("--methods", nargs="+", default=[], metavar="M[@PRESET]", help="methods (all with records)")
    sub.add_argument("--datasets", nargs="+", required=True, metavar="D")

    sub = commands.add_parser("report", help="write the static HTML report", parents=[shared])
    sub.add_argument("--out", type=Path, default=None, metavar="DIR", help="folder of the report (results/report)")
    sub.add_argument("--mixed", action="store_true", help="allow records of several protocols, labelled")

    sub = commands.add_parser("figure", help="overlays, curves, histograms, losses, heat tables", parents=[shared])
    sub.add_argument("methods", nargs="+", metavar="M[@PRESET]")
    sub.add_argument("--datasets", nargs="+", required=True, metavar="D")
    sub.add_argument("--categories", nargs="+", default=[], metavar="C", help="categories (all with records)")
    sub.add_argument("--kinds", nargs="+", default=["overlay"], metavar="K", choices=(
        "overlay", "roc", "pixel_roc", "pro", "spro", "scores", "loss", "watch", "heat", "all",
    ), help="overlay, roc, pixel_roc, pro, spro, scores, loss, watch, heat or all (overlay, from kept maps)")
    sub.add_argument("--pictures", type=int, default=1, metavar="N", help="overlay: pictures per kind of defect (1)")
    sub.add_argument("--colormap", default="inferno", help="overlay: jet for likeness to the papers (inferno)")
    sub.add_argument("--limit", type=float, default=None, metavar="FPR", help="end of the area (PRO 0.3, sPRO 0.05)")
    sub.add_argument("--metric", default=None, metavar="KEY", help="heat: what to show (image AUROC)")
    sub.add_argument("--mixed", action="store_true", help="allow records of several protocols")
    sub.add_argument("--out", type=Path, required=True, metavar="DIR", help="PNG files are written here")

    sub = commands.add_parser("download", help="fetch a public dataset, or draw an embedded one", parents=[shared])
    sub.add_argument("dataset", metavar="mvtec_ad|mvtec_loco|demo|demo_loco|demo_flat_connector")

    sub = commands.add_parser("demo", help="embedded data, small presets, tables on screen", parents=[running])
    sub.add_argument("--methods", nargs="+", default=[], metavar="M", help="only these methods")
    return top


def main(arguments: list[str] | None = None) -> int:
    """Parse, call, and turn errors a person can act on into one line and an exit code."""
    args = parser().parse_args(arguments)
    from benchmarks import commands

    return commands.execute(args)


if __name__ == "__main__":
    sys.exit(main())
