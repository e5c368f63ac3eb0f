"""What is planned, run, stored and checked: the unit, the protocol, and the job that carries both to a worker."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from shlex import quote as quoted
from typing import Any
from urllib.parse import quote

from benchmarks.errors import UsageError
from models.base import Config


def digest(value: Any, length: int = 16) -> str:
    """Stable short sha256 of a JSON-like value."""
    text = json.dumps(value, sort_keys=True, default=str, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:length]


@dataclass(frozen=True, order=True)
class Unit:
    """One (method preset, dataset, category, seed), and where it is not clean a setting (`datasets.settings`)."""

    dataset: str
    category: str
    method: str
    preset: str
    seed: int
    setting: str = ""

    @property
    def spec(self) -> str:
        """`method@preset`, with a setting `method@preset shots=4`: what stands in tables and on the command line."""
        return f"{self.method}@{self.preset}" + (f" {self.setting}" if self.setting else "")

    def __str__(self) -> str:
        return f"{self.spec} {self.dataset}/{self.category} seed {self.seed}"

    def as_dict(self) -> dict[str, Any]:
        return {
            "method": self.method, "preset": self.preset, "dataset": self.dataset,
            "category": self.category, "seed": self.seed, **({"setting": self.setting} if self.setting else {}),
        }

    def path(self, root: Path) -> Path:
        """Folder-safe place of the unit's records under `root`, without the key and the suffix."""
        parts = (quote(p, safe=" ()+,@=") for p in (self.dataset, self.category, self.spec))
        return root.joinpath(*parts, f"seed{self.seed}")


def metric_size(text: str) -> str | int:
    """`original`, `model` or a number of pixels per side, as given to --metric-size."""
    if text in ("original", "model"):
        return text
    if re.fullmatch(r"[1-9]\d{0,4}", text):
        return int(text)
    raise UsageError(f"--metric-size {text!r}: use original, model or a number of pixels such as 256")


@dataclass(frozen=True)
class Protocol:
    """How scores become numbers."""

    metric_size: str | int = "original"


@dataclass(frozen=True)
class Job:
    """A unit with all that a worker needs to run it; picklable."""

    unit: Unit
    config: Config
    config_hash: str
    modified: bool  # the config differs from the preset (--set)
    fingerprint: str
    protocol: Protocol
    source: str  # the dataset as the user named it: a name, or a YAML file's absolute path
    data_root: Path
    results: Path
    weights: str = "auto"  # 'auto', 'none' or a directory
    weights_for: tuple[tuple[str, str, str], ...] = ()  # tag, file taken instead of what it names, the file's sha256
    device: str = "auto"
    repeatable: bool = False  # deterministic forms of all operations on a GPU
    textures: str = ""  # source of natural pictures for methods that paste them: a directory, 'embedded', or none
    keep_maps: bool = False
    watch: int = 0  # how often the test pictures are scored during training, for a plot only
    cache_dir: Path | None = None
    cache_size: int = 0
    time_limit: float = 0.0
    settings: dict[str, str] = field(default_factory=dict)
    limit: int = 0  # pictures of each split; 0 for all
    training: str = ""  # what training sees of the unit's setting
    joint: tuple[tuple[str, str], ...] = ()  # categories that one model is fitted on, with each one's fingerprint
    lend_fit: bool = False  # the next unit is fitted alike and may take the detector
    remarks: tuple[str, ...] = ()  # what was found in the category's files that figures hang on

    @property
    def key(self) -> str:
        """Ten hex digits for everything besides the unit that moves its numbers: settings, data, metrics, weights."""
        from benchmarks.metrics import VERSION

        trained = "none" if self.weights == "none" else "pretrained"
        parts = [self.config_hash, self.fingerprint, VERSION, self.protocol.metric_size, trained]
        if self.textures:
            parts.append(Path(self.textures).name)
        if self.weights_for:
            parts.append({tag: sha256 for tag, _, sha256 in self.weights_for})
        return digest(parts, 10)

    @property
    def fit_key(self) -> tuple[Any, ...]:
        """Units of a category with the same key are fitted alike."""
        return self.unit.spec.partition(" ")[0], self.config_hash, self.unit.seed, self.training, self.textures

    def fitted_like(self, other: Job) -> bool:
        """Whether one detector serves both."""
        mine, its = self.unit, other.unit
        near = mine.dataset == its.dataset and (mine.category == its.category or bool(self.joint))
        return near and self.fingerprint == other.fingerprint and self.fit_key == other.fit_key

    def command(self) -> str:
        """The command that repeats this unit, quoted for a shell; paths are left for the reader to fill in."""
        parts = [
            "python run_benchmark.py run",
            f"--methods {quoted(self.unit.spec)}", f"--datasets {quoted(Path(self.source).name)}",
            f"--categories {quoted(self.unit.category)}", f"--seeds {self.unit.seed}",
            f"--metric-size {self.protocol.metric_size}",
            "--weights none" if self.weights == "none" else "--weights DIR" if self.weights != "auto" else "",
            *(f"--weights-for {quoted(f'{tag}={Path(file).name}')}" for tag, file, _ in self.weights_for),
            f"--textures {self.textures if self.textures == 'embedded' else 'DIR'}" if self.textures else "",
            f"--limit {self.limit}" if self.limit else "",
            "--repeatable" if self.repeatable else "",
            *(f"--set {quoted(f'{key}={value}')}" for key, value in self.settings.items()),
        ]
        return " ".join(p for p in parts if p)


# fields that came later, with the value that does what was done before: a record made without them stays valid
LATER = {
    "precision": "float32", "aspect": "squash", "border": "mirror", "dimension": None, "squared": False, "starts": 1,
}


def config_dict(config: Config) -> dict[str, Any]:
    """The config as plain JSON values, without the fields of `LATER` that have the value given there."""
    values = json.loads(json.dumps(asdict(config), default=str))
    return {key: value for key, value in values.items() if key not in LATER or value != LATER[key]}
