"""Builds a unit's detector and fits it, and keeps what a record says of that for units that are fitted alike."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.units import Job, digest
from benchmarks.watching import Watch

if TYPE_CHECKING:
    from benchmarks.lending import Lending
    from datasets.base import Category
    from models.base import Detector, Images
    from models.weights import WeightStore

Report = Callable[[str, int, int, dict[str, float]], None]
"""Progress of a unit: phase, steps done, steps in all, values to show. May raise `Stopped`."""



@dataclass
class Fitted:
    """A fitted detector with all that a record says of how it came about."""

    detector: Detector
    weights: WeightStore
    watch: Watch | None
    log: Mapping[str, Any] | None
    remarks: list[str]
    seconds: dict[str, float]  # build, fit, fit_read: the latter a part of fit
    lent: float  # seconds of frozen features that its fit took from other units
    cost: dict[str, float] = field(default_factory=dict)  # as deployed; measured after the first scores
    borrowed_s: float = 0.0  # of another unit, for the total of a unit that takes the detector

    def __post_init__(self) -> None:
        """Keep the state of random numbers: test pictures are then predicted as right after the fit."""
        import torch

        self._random = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
        self._device = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []

    def restore_random(self) -> None:
        """Set random numbers back to where they were after the fit."""
        import torch

        random.setstate(self._random[0])
        np.random.set_state(self._random[1])  # noqa: NPY002
        torch.set_rng_state(self._random[2])
        if self._device:
            torch.cuda.set_rng_state_all(self._device)


class Timed(Sequence[np.ndarray]):
    """Pictures that add the seconds spent on reading them to `spent[0]`."""

    def __init__(self, pictures: Sequence[np.ndarray], spent: list[float]) -> None:
        self._pictures, self._spent = pictures, spent

    def __len__(self) -> int:
        return len(self._pictures)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return Timed(self._pictures[index], self._spent)
        start = time.perf_counter()
        picture = self._pictures[index]
        self._spent[0] += time.perf_counter() - start
        return picture


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and torch; how a device computes is set by `devices.prepare`."""
    import torch

    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002  libraries below us draw from the global generator
    torch.manual_seed(seed)


def fit(
    job: Job, device: str, category: Category, pictures: Mapping[str, Images], features: Lending,
    members: dict[Any, Any], scratch: Path,
    phase: Callable[[str], Any], report: Report,
) -> Fitted:
    """The unit's detector, fitted.

    features, members: what units of the category share. phase: context manager that times a part of the unit by name.
    """
    import torch

    from benchmarks.scoring import score_test
    from models import registry
    from models.base import Context
    from models.features import precision
    from models.nn.memory import noted
    from models.weights import WeightStore

    spent: dict[str, float] = {}

    @contextmanager
    def timed(name: str) -> Iterator[None]:
        start = time.perf_counter()
        with phase(name):
            yield
        spent[name] = time.perf_counter() - start

    with timed("build"):
        seed_everything(job.unit.seed)
        weights = WeightStore(job.weights, substitutes={tag: Path(file) for tag, file, _ in job.weights_for})
        context = Context(
            device=torch.device(device), seed=job.unit.seed, weights=weights, scratch=scratch,
            features=features,
            extras={
                "dataset": category.dataset, "category": "" if job.joint else category.name,
                "textures": job.textures or None, "members": members,
                "member_dir": job.unit.path(job.results / "members").parent.parent
                / "-".join((f"seed{job.unit.seed}", job.fingerprint[:10], *(
                    [digest(job.training, 10)] if job.training else []
                ))),
            },
        )
        detector = registry.method_class(job.unit.method)(job.config, context)
    watch = Watch(detector, lambda: features.apart(lambda: score_test(
        detector, category, pictures["test"], job.protocol.metric_size, lambda done, total: None,
    ).metrics), job.watch) if job.watch else None

    def progress(done: int, total: int, /, **values: float) -> None:
        report("fit", done, total, values)
        if watch is not None:
            watch.step(done, total)

    reading = [0.0]
    with noted() as remarks, precision(job.config.precision), timed("fit"):
        log = detector.fit(
            Timed(pictures["train"], reading),
            Timed(pictures["validation"], reading) if len(pictures["validation"]) else None,
            progress,
        )
    return Fitted(detector, weights, watch, log, remarks, {**spent, "fit_read": reading[0]}, features.turn())
