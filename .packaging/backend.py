"""Build of the package for pip: an editable install only, since the folders' names belong to other packages too.

`datasets` is also a package of Hugging Face, `models` and `benchmarks` are common names: copied into site-packages they
would hide each other. An editable install leaves them here, and `run_benchmark.py` puts this folder first.
"""

from __future__ import annotations

from typing import Any, NoReturn

from setuptools.build_meta import (
    build_editable,
    get_requires_for_build_editable,
    prepare_metadata_for_build_editable,
)

__all__ = [
    "build_editable", "build_sdist", "build_wheel", "get_requires_for_build_editable", "get_requires_for_build_sdist",
    "get_requires_for_build_wheel", "prepare_metadata_for_build_editable",
]

WHY = (
    "anomaly-benchmarks is used from its folder, because its packages `benchmarks`, `datasets` and `models` would hide "
    "others of these names once installed: use `pip install -e .`, which makes the command `anomaly-bench`, or "
    "`python run_benchmark.py`"
)


def build_wheel(*_: Any, **__: Any) -> NoReturn:
    """What `pip install .` asks for: refused in one line."""
    raise SystemExit(WHY)


build_sdist = get_requires_for_build_wheel = get_requires_for_build_sdist = build_wheel
