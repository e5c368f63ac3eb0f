"""Training logs in records: long series go beside the record, whole; the record keeps what tells them apart.

A log is what `Detector.fit` returns: nested mappings in which a list of numbers is a series with one value per epoch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

LONGEST = 200
"""Values that a series may have inside a record; beyond that the record's JSON would be mostly numbers nobody reads."""
PREFIX = "training."


def split(log: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """A log for the record, and the series taken out of it as {'training.<path>': float64 [n]}.

    In their place stands {'values': n, 'first': a, 'last': b}. Keys of the path are joined by '/'.
    """
    arrays: dict[str, np.ndarray] = {}

    def kept(value: Any, path: tuple[str, ...]) -> Any:
        if isinstance(value, Mapping):
            return {key: kept(item, (*path, str(key))) for key, item in value.items()}
        if _numbers(value) and len(value) > LONGEST:
            arrays[PREFIX + "/".join(path)] = np.asarray(value, np.float64)
            return {"values": len(value), "first": value[0], "last": value[-1]}
        return value

    return kept(log, ()), arrays


def series(log: Mapping[str, Any], arrays: Mapping[str, np.ndarray] | None = None) -> dict[str, np.ndarray]:
    """Every series of a record's log by path, from the record and from the arrays beside it, float64 [n].

    A list counts as one when its name ends in 'loss' or when it has as many values as its neighbour `epochs` says.
    """
    found = dict(_series(log, ()))
    for name, values in (arrays or {}).items():
        if name.startswith(PREFIX):
            found[name.removeprefix(PREFIX)] = np.asarray(values, np.float64)
    return {name: found[name] for name in sorted(found, key=lambda name: (name.count("/"), name))}


def _series(log: Mapping[str, Any], path: tuple[str, ...]) -> Iterator[tuple[str, np.ndarray]]:
    for key, value in log.items():
        if isinstance(value, Mapping):
            yield from _series(value, (*path, str(key)))
        elif _numbers(value) and len(value) > 1 and (str(key).endswith("loss") or len(value) == log.get("epochs")):
            yield "/".join((*path, str(key))), np.asarray(value, np.float64)


def _numbers(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(
        isinstance(v, int | float) and not isinstance(v, bool) for v in value
    )
