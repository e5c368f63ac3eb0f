"""Scores anomaly maps of any program: `python -m benchmarks.metrics MAPS DATASET`, JSON on standard output."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from benchmarks.metrics import LIMITS, VERSION
from benchmarks.metrics.files import categories, find, score
from benchmarks.metrics.ranks import MetricError
from datasets.base import DatasetError


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit code: 0, or 2 for wrong use or unusable files (said on standard error)."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.metrics",
        description="Exact image and pixel metrics of anomaly maps. A folder with defects_config.json is scored as "
        "MVTec LOCO AD, any other as MVTec AD. The score of an image is the maximum of its map.",
    )
    parser.add_argument("maps", type=Path, help="holds <category>/test/<type>/<name>.tiff or .npy")
    parser.add_argument("dataset", type=Path, help="holds <category>/ground_truth/<type>/...")
    parser.add_argument("--categories", nargs="+", metavar="NAME", help="only these")
    parser.add_argument("--limits", nargs="+", type=float, default=list(LIMITS), metavar="FPR")
    parser.add_argument("--threshold", type=float, help="adds accuracy, tpr, tnr, f1 of images with a greater score")
    parser.add_argument("--pixel-threshold", type=float, help="adds PRO (LOCO: sPRO) and IoU of pixels with more")
    parser.add_argument("--curves", type=int, default=0, metavar="POINTS", help="adds curves of at most so many points")
    parser.add_argument("--memory-mb", type=int, metavar="N", help="MB of scores to keep in memory, the rest on disk")
    parser.add_argument("--scratch", type=Path, help="where scores beyond --memory-mb lie meanwhile")
    parser.add_argument("--out", type=Path, help="write the JSON there instead")
    args = parser.parse_args(arguments)
    try:
        names = categories(args.maps, args.dataset)
        unknown = sorted(set(args.categories or ()) - set(names))
        if unknown:
            raise MetricError(f"--categories: no maps for {', '.join(unknown)}; there are {', '.join(names)}")
        report = {"metric_version": VERSION, "categories": {}}
        for name in args.categories or names:
            found = find(args.maps, args.dataset, name)
            missing = found.unscored
            if missing:
                print(f"warning: {name}: pictures without a map: {len(missing)}, first {missing[0]}", file=sys.stderr)
            scores, remarks = score(
                found,
                limits=args.limits,
                threshold=args.threshold,
                pixel_threshold=args.pixel_threshold,
                curve_points=args.curves,
                memory_limit=None if args.memory_mb is None else args.memory_mb << 20,
                scratch=args.scratch,
            )
            for remark in remarks:
                print(f"warning: {name}: {remark}", file=sys.stderr)
            report["categories"][name] = {
                "metrics": scores.metrics,
                "undefined": scores.undefined,
                "facts": scores.facts | {"pictures_without_map": len(missing)},
                "notes": list(remarks),
            }
            if args.curves:
                report["categories"][name]["curves"] = {
                    key: {axis: values.tolist() for axis, values in curve.items()}
                    for key, curve in scores.curves.items()
                }
        text = json.dumps(report, indent=1)
        if args.out:
            args.out.write_text(text + "\n", encoding="utf-8")
        else:
            print(text)
    except (MetricError, DatasetError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
