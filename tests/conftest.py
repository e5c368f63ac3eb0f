"""Shared by all tests: where real data lies, the fake methods, a small dataset, and the command line in-process."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

REPO = Path(__file__).parent.parent
sys.path.insert(0, str(REPO))
os.environ.setdefault("BENCH_METHODS", str(REPO / "tests" / "methods"))
REAL = Path(os.environ.get("BENCH_REAL_DATA", REPO.parent / "shared" / "real"))


@pytest.fixture(scope="session")
def real() -> Path:
    """Folder of real pictures and weights; the test is skipped where it is absent."""
    if not REAL.is_dir():
        pytest.skip(f"real pictures not found under {REAL}; set BENCH_REAL_DATA")
    return REAL


def picture(rng: np.random.Generator, size: tuple[int, int] = (40, 48)) -> np.ndarray:
    """A grey gradient with a little noise, uint8 [H, W, 3]."""
    height, width = size
    base = np.linspace(60, 160, width)[None, :, None] + rng.normal(0, 4, (height, width, 3))
    return base.clip(0, 255).astype(np.uint8)


def make_mvtec(root: Path, seed: int = 0, train: int = 6, good: int = 4, bad: int = 4,
               size: tuple[int, int] = (40, 48)) -> Path:
    """A category in MVTec AD layout with bright square defects; returns `root`."""
    rng = np.random.default_rng(seed)
    for folder, count in (("train/good", train), ("test/good", good), ("test/spot", bad)):
        (root / folder).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            image = picture(rng, size)
            if folder == "test/spot":
                top, left = rng.integers(2, 25, 2)
                mask = np.zeros(size, np.uint8)
                mask[top : top + 9, left : left + 9] = 255
                image[mask > 0] = np.minimum(image[mask > 0].astype(int) + rng.integers(8, 60), 255)
                (root / "ground_truth/spot").mkdir(parents=True, exist_ok=True)
                Image.fromarray(mask).save(root / f"ground_truth/spot/{i:03d}_mask.png")
            Image.fromarray(image).save(root / folder / f"{i:03d}.png")
    return root


@pytest.fixture(scope="session")
def data_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data root with the folder dataset `parts` of two categories, `nut` and `plate`."""
    root = tmp_path_factory.mktemp("data")
    make_mvtec(root / "parts" / "nut", seed=1)
    make_mvtec(root / "parts" / "plate", seed=2, size=(36, 36))
    return root


@dataclass(frozen=True)
class Done:
    """What a command printed and returned."""

    returncode: int
    stdout: str
    stderr: str


Cli = Callable[..., Done]


@pytest.fixture
def quick_workers() -> Iterator[None]:
    """The launcher's workers are forks; a file whose subject is their start has one that does nothing."""
    from tests.forked import forked_workers

    with forked_workers():
        yield


@pytest.fixture
def cli(quick_workers: None) -> Cli:
    """Call the command line within this process (its workers are processes of their own)."""
    import run_benchmark

    def call(*arguments: object, timeout: float = 0) -> Done:
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                code = run_benchmark.main([str(a) for a in arguments])
            except SystemExit as stop:  # argparse
                code = int(stop.code or 0)
        return Done(code, out.getvalue(), err.getvalue())

    return call
