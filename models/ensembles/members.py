"""Members of an ensemble: built from their spec, fitted once per category and seed, shared by every ensemble.

Fitted members live in `context.extras['members']`, a dict that the harness hands to every unit of one (category, seed),
and as files in the folder `context.extras['member_dir']`, so that other processes and later runs reuse them too.
"""

from __future__ import annotations

import hashlib
import os
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models import registry
from models.base import Config, Context, Detector, Images, ModelError, Progress
from models.ensembles.unseen import Split
from models.features import current_precision

CHUNK = 8  # pictures per pass through the members
PAIR = ("patchcore", "simplenet")
SIX = (*PAIR, "ast", "draem", "reverse_distillation", "csflow")


@dataclass
class Member:
    """A detector within an ensemble. `how` is 'fitted' or 'reused' after `fit_members`."""

    spec: str
    config: Config
    detector: Detector
    weights: dict[str, Any] = field(default_factory=dict)  # what the detector loaded, for the record
    log: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    how: str = ""
    kept: Any = None  # feature maps of the training pictures, for the next feature ensemble

    def features(self, batch: Images) -> list[Tensor]:
        """The detector's maps, one [B, C, h, w] per scale, of the field of view of its input; checked for shape."""
        maps = self.detector.feature_maps(batch)  # type: ignore[attr-defined]
        if not maps or any(m.ndim != 4 or len(m) != len(batch) for m in maps):
            shapes = [tuple(m.shape) for m in maps]
            raise ModelError(f"member {self.spec}: feature_maps gave {shapes}, not maps [{len(batch)}, C, h, w]")
        return maps


def chunks(images: Images) -> Iterator[tuple[int, list[np.ndarray]]]:
    """(index of the first, up to CHUNK pictures) until the sequence ends."""
    for start in range(0, len(images), CHUNK):
        yield start, [images[i] for i in range(start, min(start + CHUNK, len(images)))]


def parse_members(specs: Sequence[str], ensemble: str) -> list[tuple[str, str, Config]]:
    """'patchcore@resnet18' or 'ast@quick:cut=student:epochs=8' -> (spec, method name, config).

    Any registered method will do. Raises ModelError for unknown methods or settings, for no member, for a single one of
    a feature ensemble, and for one named twice.
    """
    if not specs:
        raise ModelError(f"{ensemble}: no members; give them as members=a,b")
    found = []
    for text in specs:
        spec, *settings = text.split(":")
        wrong = [s for s in settings if "=" not in s]
        if wrong:
            raise ModelError(f"{ensemble}: member {text!r}: {wrong[0]!r} is not field=value, as in ast@quick:epochs=8")
        name, preset = registry.parse(spec)
        config = registry.config(f"{name}@{preset}", dict(s.split("=", 1) for s in settings))
        if config.precision != "float32":
            raise ModelError(f"{ensemble}: member {text!r}: set the precision of the ensemble, not of one member")
        found.append((":".join([f"{name}@{preset}", *settings]), name, config))
    names = [spec for spec, _, _ in found]
    twice = next((n for n in names if names.count(n) > 1), None)
    if twice:
        raise ModelError(f"{ensemble}: member {twice!r} is named twice; name each member once")
    return found


def any_short(specs: Sequence[str]) -> bool:
    """Whether the schedule of one of the members is below its paper's."""
    return any(config.short for _, _, config in parse_members(specs, "members"))


def build_members(
    specs: Sequence[str], context: Context, ensemble: str, *, features: bool = False
) -> list[Member]:
    """Members with their detectors, not fitted yet. With `features` each must have `feature_maps`.

    Every detector starts from the same random state, whatever was built before it, so that it is the same detector in
    every ensemble.
    """
    parsed = parse_members(specs, ensemble)
    if features and len(parsed) < 2:
        raise ModelError(f"{ensemble}: at least two members are joined, got only {specs[0]!r}; run that method itself")
    for spec, name, _ in parsed:
        if features and not hasattr(registry.method_class(name), "feature_maps"):
            raise ModelError(
                f"{ensemble}: member {spec!r} gives no feature maps (it has no `feature_maps`), so it cannot be part "
                "of a feature ensemble; use score_ensemble, which combines scores and maps of any method"
            )
    members = [_build(spec, name, config, context) for spec, name, config in parsed]
    cropped = [m.spec for m in members if features and m.detector.preprocess.aspect != "squash"]
    if cropped:
        raise ModelError(f"{ensemble}: member {cropped[0]!r} sees another part of each picture; set aspect=squash")
    return members


def _build(spec: str, name: str, config: Config, context: Context) -> Member:
    store = context.weights.fresh()
    scratch = context.scratch / "members" / _slug(spec) if context.scratch else None
    with _random_state(context.seed, context.device):
        detector = registry.method_class(name)(config, replace(context, weights=store, scratch=scratch))
    context.weights.used.update(store.used)
    context.weights.forms.update(store.forms)
    return Member(spec, config, detector, dict(store.used))


def fit_members(
    members: list[Member], data: Split, context: Context, progress: Progress
) -> dict[str, Any]:
    """Fit each member of the list, or replace it by the one that an earlier ensemble of this category and seed fitted.

    progress: called with counts in thousandths of one member. Returns the log: `members` {spec: 'fitted' or 'reused'},
    `member_fit_s` (what fitting took when it was done), `member_training` (each member's own log), `held_out`.
    Raises ModelError naming the member when one fails, or failed before.
    """
    total = 1000 * len(members)
    for i, member in enumerate(members):

        def step(done: int, count: int, /, i: int = i, **values: float) -> None:
            progress(max(1, 1000 * i + 1000 * done // max(count, 1)), total, **values)

        members[i] = _fitted(member, data, context, step)
    return {
        "members": {m.spec: m.how for m in members},
        "member_fit_s": {m.spec: round(m.seconds, 3) for m in members},
        "member_training": {m.spec: m.log for m in members},
        "held_out": len(data.held),
    }


def seconds_elsewhere(log: Mapping[str, Any] | None) -> float:
    """What fitting the members of an ensemble's log took in other units, which lent them to it; 0 for other methods."""
    how, seconds = (log or {}).get("members"), (log or {}).get("member_fit_s")
    if not isinstance(how, Mapping) or not isinstance(seconds, Mapping):
        return 0.0
    return sum(seconds[spec] for spec, state in how.items() if state == "reused")


def _fitted(member: Member, data: Split, context: Context, progress: Progress) -> Member:
    shared = context.extras.get("members")
    shared = {} if shared is None else shared
    key = (member.spec, repr(member.config), len(data.members), data.held, data.square, current_precision())
    known = shared.get(key)
    if isinstance(known, str):
        raise ModelError(f"member {member.spec} failed earlier for this category and seed: {known}")
    if known is not None:
        known.how = "reused"
        return known
    path = _file(context, key)
    with _locked(path):
        if not _load(member, path):
            start = time.perf_counter()
            try:
                with _random_state(context.seed, context.device):
                    member.log = member.detector.fit(data.members, None, progress) or {}
            except Exception as error:
                shared[key] = f"{type(error).__name__}: {error}"
                raise ModelError(f"member {member.spec} could not be fitted: {error}") from error
            member.seconds, member.how = time.perf_counter() - start + seconds_elsewhere(member.log), "fitted"
            _save(member, path)
    shared[key] = member
    return member


def _file(context: Context, key: Any) -> Path | None:
    folder = context.extras.get("member_dir")
    if folder is None:
        return None
    digest = hashlib.sha256(repr((key, context.seed)).encode()).hexdigest()[:16]
    return Path(folder) / f"{_slug(key[0])}-{digest}.pt"


def _locked(path: Path | None) -> Any:
    """One process at a time fits a member; the operating system frees the lock of a killed one."""
    if path is None:
        return nullcontext()
    from filelock import FileLock

    path.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(path.with_suffix(".lock"))


def _load(member: Member, path: Path | None) -> bool:
    """Take the state from the file; False when there is none, it cannot be read, or it belongs to other weights."""
    if path is None or not path.is_file():
        return False
    try:
        saved = torch.load(path, map_location=member.detector.context.device, weights_only=True)
        if saved["weights"] != member.weights:
            return False
        member.detector.load_state_dict(saved["state"])
    except Exception:  # whatever a broken file raises, the member is fitted again
        return False
    member.log, member.seconds, member.how = saved["log"], saved["seconds"], "reused"
    return True


def _save(member: Member, path: Path | None) -> None:
    """Write the state atomically. A full disk or a log that cannot be stored costs the reuse, not the ensemble."""
    if path is None:
        return
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    try:
        content = {
            "state": member.detector.state_dict(), "log": member.log, "seconds": member.seconds,
            "weights": member.weights,
        }
        torch.save(content, temporary)
        os.replace(temporary, path)
    except (OSError, RuntimeError):  # torch reports a failed write as RuntimeError
        temporary.unlink(missing_ok=True)


def _slug(spec: str) -> str:
    """A member's spec as a file name."""
    return "".join(c if c.isalnum() or c in "@=." else "_" for c in spec)


@contextmanager
def _random_state(seed: int, device: torch.device) -> Iterator[None]:
    """Global random generators as the harness sets them before it builds a method, put back afterwards."""
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        random.seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002
        torch.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)  # noqa: NPY002
