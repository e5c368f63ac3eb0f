"""What must be known of each image model of anomalib 2.7 beside its code: its schedule, sizes, and faults mended here.

anomalib's engine trains for as long as it is told, so most schedules stand in its configuration files or read-mes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Schedule:
    """How long a model trains: epochs or steps, with pictures per step, and where that is said."""

    epochs: int | None
    steps: int | None = None
    batch: int = 32  # of anomalib's data modules
    source: str = ""


CONFIG = "anomalib's configuration file up to 0.7"
SCHEDULES = {
    "cfa": Schedule(30, batch=4, source=CONFIG),
    "cflow": Schedule(50, batch=16, source=CONFIG),
    "csflow": Schedule(240, batch=16, source=CONFIG),
    "dinomaly": Schedule(None, 5000, 16, "its module's MAX_STEPS_DEFAULT, batch from its read-me"),
    "draem": Schedule(700, batch=8, source=CONFIG),
    "dsr": Schedule(700, batch=8, source=CONFIG),
    "efficient_ad": Schedule(None, 70_000, 1, CONFIG + "; its module takes batches of 1 only"),
    "fastflow": Schedule(500, source=CONFIG),
    "foundad": Schedule(2000, source="its read-me, for its few-shot setting"),
    "fre": Schedule(1000, source="none is given: Lightning's own default"),
    "ganomaly": Schedule(100, source=CONFIG),
    "general_ad": Schedule(160, source="its constructor"),
    "glass": Schedule(100, batch=8, source="its read-me"),
    "inp_former": Schedule(200, batch=16, source="its module's MAX_EPOCHS_DEFAULT, batch from the authors' code"),
    "l2bt": Schedule(50, source="its read-me"),
    "patchflow": Schedule(200, source="its example configuration, which also stops early on the test set"),
    "reverse_distillation": Schedule(200, batch=16, source=CONFIG + ", batch from its read-me"),
    "stfpm": Schedule(100, source=CONFIG),
    "supersimplenet": Schedule(300, source="its read-me"),
    "uflow": Schedule(50, batch=14, source=CONFIG),
    "uninet": Schedule(100, batch=8, source="the authors' code; anomalib names none"),
}
COLLECTS = "its module: passes that collect features"

NOT_IMAGES_ALONE = {"cfm": "needs a point cloud beside every picture"}

# side of the network's input, from the model's code: a multiple of the patch or of the pooling, at least, at most
TAKES: dict[str, tuple[int, int, int | None]] = {
    "dinomaly": (14, 14, None), "inp_former": (14, 14, None), "l2bt": (14, 14, None), "foundad": (14, 14, None),
    "general_ad": (14, 14, None), "rad": (16, 16, None), "super_add": (1, 448, None), "uflow": (448, 448, 448),
    "efficient_ad": (1, 256, None), "mh_patchcore": (1, 224, 224), "draem": (32, 32, None), "dsr": (32, 32, None),
    "supersimplenet": (1, 128, None), "fre": (256, 256, 256),
}

MENDED = {
    "cfa": "the centre of its memory bank comes from normalised pictures, as in training; anomalib's are not",
    "dinomaly": "the learning rate moves once a step, in which its schedule counts; anomalib moves it once an epoch",
    "draem": "focal loss weighs both classes 1; anomalib's alpha of 1 gives normal pixels the weight 0",
    "dsr": "focal loss weighs both classes 1 and takes its softmax once; anomalib's gives normal pixels the weight 0",
    "efficient_ad": "quantiles come from validation pictures or a tenth of training; anomalib's from the test set",
    "glass": "the centre of its features comes from normalised pictures, as in training; anomalib's are not",
    "inp_former": "the learning rate moves once a step, in which its schedule counts; anomalib moves it once an epoch",
}

TEXTURES = {"draem": "dtd_dir", "efficient_ad": "imagenet_dir", "glass": "anomaly_source_path"}
"""Constructor argument that is a folder of natural pictures; `--textures` gives it."""
NEEDS_TEXTURES = ("draem", "efficient_ad")


def schedule(name: str, cls: Any) -> Schedule:
    """The model's own schedule: from its module where that fixes the number of passes, else from `SCHEDULES`."""
    fixed = constant(cls, "trainer_arguments") or {}
    if "max_epochs" in fixed and name not in SCHEDULES:
        return Schedule(fixed["max_epochs"], source=COLLECTS)
    return SCHEDULES.get(name, Schedule(1000, source="none is known: Lightning's own default"))


def constant(cls: Any, name: str) -> Any:
    """A property of a module that has not been built, where it does not hang on the instance; else None."""
    from types import SimpleNamespace

    try:
        return getattr(cls, name).fget(SimpleNamespace(k_shot=0))
    except AttributeError:
        return None


def why_not(name: str, cls: Any) -> str:
    """Why a model cannot be fitted to normal pictures alone; empty when it can."""
    from anomalib import LearningType

    learning = constant(cls, "learning_type")
    if name in NOT_IMAGES_ALONE:
        return NOT_IMAGES_ALONE[name]
    if learning is not None and learning != LearningType.ONE_CLASS:
        return f"learns {learning.value.replace('_', '-')}, not from normal pictures alone"
    return ""
