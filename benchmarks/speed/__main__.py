"""Every table of results/measured/speed.md that this machine can make, anew: `make speed`, or

    python -m benchmarks.speed --data-root DIR --weights WDIR [--rounds 5] [--only neighbours coreset]

Each section of the file is the output of one command, which stands above it, and below it what it lacks. Sections of
other titles, and those whose command failed, stay as they are. Let nothing else run meanwhile: each table tells the
load that it began under. DIR holds mvtec_ad/bottle. `--quick` takes sizes of a few minutes, to see that all runs.
"""

from __future__ import annotations

import argparse
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks.speed.common import REPO

# commits that 'before' means, unpacked from git while they are measured: before the folded form of frozen backbones,
# and before the loop and the memory formats that trainings share
BEFORE, BEFORE_STEPS = "e1bd5fc", "1e203f4"
TARGET = REPO / "results" / "measured" / "speed.md"


class Section(NamedTuple):
    """A command below benchmarks/speed, the title of its section, arguments that make it quick, and what it lacks.

    quick: options to add, or all arguments where it begins with none. most: rounds at most, where one costs minutes; 0
    takes `--rounds`.
    """

    title: str
    command: str
    quick: str
    lacks: str
    most: int = 0


SECTIONS = {
    "unit": Section(
        "Whole unit: PatchCore 1 %, ResNet-18, beside anomalib's Engine",
        "unit_speed --data-root DIR --weights WDIR --rounds N", "--images 8",
        "Pictures in sizes other than bottle's; more rounds: anomalib's coreset takes minutes in each.", 2),
    "padim": Section(
        "Whole unit: PaDiM, ResNet-18, beside anomalib's Engine",
        "unit_speed --method padim --data-root DIR --weights WDIR --rounds N", "--images 8",
        "Wide ResNet-50.", 3),
    "training": Section(
        "Training steps beside anomalib's under Lightning",
        "train_speed stfpm efficientad draem --data-root DIR --weights WDIR --rounds N",
        "stfpm --data-root DIR --weights WDIR --steps 2 --rounds 1",
        "EfficientAD's own teacher and ImageNet; a loss of DRAEM's and EfficientAD's that is equal step by step, since "
        "what is drawn differs; a training to its end.", 3),
    "before": Section(
        "Training steps before and after",
        "step_speed dae@mse:size=128 cae@mse:size=128 gen_encdec@paper:size=64 tsdn@paper:size=128 "
        f"rb_ae@paper:size=128 draem@paper:size=64 simplenet@resnet18 --against {BEFORE_STEPS} --rounds N",
        f"dae@mse:size=64 simplenet@demo --against {BEFORE_STEPS} --rounds 1",
        "The papers' sizes and batches.", 3),
    "start-up": Section(
        "Start-up", "startup_speed --data-root DIR --weights WDIR --rounds N", "",
        "A cold disk; methods that train anomalib's networks, whose import takes seconds more."),
    "profile": Section(
        "Profile of whole units, before and after",
        f"unit_profile patchcore@resnet18 tsdn@quick:epochs=1 --data-root DIR --weights WDIR --against {BEFORE} "
        "--rounds N", f"patchcore@demo --data-root DIR --weights WDIR --against {BEFORE} --rounds 1",
        "TSDN's full training: this is one of its 20 epochs, and what is made once weighs more in it.", 1),
    "neighbours": Section(
        "Neighbour search beside anomalib's",
        "parts_speed neighbours --data-root DIR --weights WDIR --train 24 --rounds N", "--train 8",
        "Wide ResNet-50, and banks of more than 24 pictures."),
    "growth": Section(
        "Growth with the number of pictures",
        "parts_speed growth --data-root DIR --weights WDIR --images 8 --rounds N", "--train 8 --images 2",
        "More than 8 times the pictures."),
    "distances": Section(
        "Share of the distances that the coreset computes",
        "parts_speed distances --data-root DIR --weights WDIR --train 24", "--train 8", "Other categories."),
    "second": Section(
        "Second method on a category",
        "parts_speed second --data-root DIR --weights WDIR --rounds N", "--train 8", "Other pairs of methods.", 3),
    "coreset": Section(
        "Coreset beside anomalib's KCenterGreedy",
        "coreset_speed --pictures DIR/mvtec_ad/bottle/train/good --weights WDIR --points 16384 65536 --rounds N",
        "--points 4096 --steps 3", "anomalib's selection in full: its time is taken from single steps.", 3),
    "metrics": Section(
        "Metrics beside others", "metrics_speed --rounds N", "--quick", "Pictures of a real data set.", 3),
    "metrics growth": Section(
        "Metrics: cost over the number of pixels", "metrics_speed --growth --rounds N", "--quick",
        "More than 500 million pixels.", 2),
    "defects": Section(
        "Artificial defects, and inference of the two methods that train on them",
        "defects_speed --only defects inference", "--only defects", "Another implementation beside it."),
    "passes": Section(
        "A frozen backbone's pass on a CPU", "cpu_speed passes --rounds N", "--pictures 1",
        "torch.compile's form, and networks other than ResNets."),
    "load": Section(
        "The demo beside busy processes", "cpu_speed load --rounds N", "",
        "All methods of the demo, which take minutes more.", 1),
    "waiting": Section(
        "How waiting threads wait", "cpu_speed waiting --rounds N", "",
        "A machine of its own, where threads that spin answer sooner."),
    "steps": Section(
        "What a training step is bound by", "epoch_speed dae@mse tsdn@quick rb_ae@quick --profile",
        "dae@mse --profile", "Another implementation beside it."),
    "ensembles": Section(
        "Ensembles", "ensemble_speed --weights WDIR --rounds N", "--size 2000 200 --pictures 10",
        "Members of other backbones; more rounds: scikit-learn's IncrementalPCA takes 100 s in each.", 1),
}


def run(section: Section, arguments: argparse.Namespace) -> str | None:
    """The body of a section in Markdown; None when its command failed, whose errors went to the screen."""
    rounds = min(arguments.rounds, section.most or arguments.rounds)
    words = section.command.replace(" N", f" {rounds}").split()
    if arguments.quick:
        quick = section.quick.split()
        words = words + quick if section.quick.startswith("--") else [words[0], *(quick or words[1:])]
    shown = shlex.join(["python", "-m", f"benchmarks.speed.{words[0]}", *words[1:]])
    places = {"WDIR": str(arguments.weights), "DIR": str(arguments.data_root)}
    real = [re.sub("WDIR|DIR", lambda found: places[found[0]], word) for word in words]
    done = subprocess.run([sys.executable, "-m", f"benchmarks.speed.{real[0]}", *real[1:]], cwd=REPO,
                          stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        return None
    for place, path in places.items():  # no path of this machine
        done.stdout = done.stdout.replace(path, place) if len(path) > 1 else done.stdout
    return f"```\n{shown}\n```\n\n{done.stdout.strip()}\n\nLacking: {section.lacks}"


def replaced(text: str, title: str, body: str) -> str:
    """The Markdown file with another body below `## title`; a title that is not there is added before `## GPU`."""
    parts = re.split(r"(?m)^(?=## )", text)
    section = f"## {title}\n\n{body.strip()}\n\n"
    for i, part in enumerate(parts):
        if part.startswith(f"## {title}\n"):
            return "".join([*parts[:i], section, *parts[i + 1 :]]).rstrip() + "\n"
    place = next((i for i, part in enumerate(parts) if part.startswith("## GPU\n")), len(parts))
    parts[place - 1] = parts[place - 1].rstrip() + "\n\n"
    return "".join([*parts[:place], section, *parts[place:]]).rstrip() + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; exit code 1 when a command failed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=Path, required=True, help="holds mvtec_ad/bottle")
    parser.add_argument("--weights", default="auto", help="directory of weights, auto or none")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="+", choices=list(SECTIONS), default=list(SECTIONS))
    parser.add_argument("--quick", action="store_true", help="small sizes, whose figures say nothing")
    parser.add_argument("--target", type=Path, default=TARGET, help="the Markdown file (results/measured/speed.md)")
    given = parser.parse_args(arguments)
    if not (given.data_root / "mvtec_ad" / "bottle" / "train" / "good").is_dir():
        parser.error(f"--data-root {given.data_root}: there is no mvtec_ad/bottle/train/good below it")
    if given.quick and given.target.resolve() == TARGET:
        parser.error("--quick makes no figures worth keeping: name another file by --target")
    given.data_root = given.data_root.resolve()
    if given.weights not in ("auto", "none"):
        given.weights = Path(given.weights).resolve()
    failed = []
    for name in given.only:
        print(f"{name} ...", end="", flush=True)
        start = time.monotonic()
        body = run(SECTIONS[name], given)
        print(f" {'failed after ' if body is None else ''}{time.monotonic() - start:.0f} s", flush=True)
        if body is None:
            failed.append(name)
            continue
        text = given.target.read_text(encoding="utf-8") if given.target.exists() else "# Speed\n"
        given.target.write_text(replaced(text, SECTIONS[name].title, body), encoding="utf-8")
    if failed:
        print(f"failed, and left as they were: {', '.join(failed)}", file=sys.stderr)
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
