"""From a dataset's name, or a small YAML file, to the folders of its categories."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from os.path import isdir  # unlike Path.is_dir it has no error for absurd names
from pathlib import Path
from typing import Any, NamedTuple

from datasets.base import DatasetError, composed
from datasets.catalog import OFFICIAL, PRIVATE
from datasets.images import DEEP
from datasets.layouts import folders, is_category
from datasets.public import LAYOUTS, found_in

YAML_KEYS = {"name", "root", "categories", "white_level"}


class Source(NamedTuple):
    """A dataset's name, the folder that holds its categories, and the categories' own folders."""

    name: str
    root: Path
    categories: dict[str, Path]
    white_level: int = DEEP


def near(word: str, known: Iterable[str]) -> str:
    """', did you mean ...?' for the closest known words, or nothing."""
    close = difflib.get_close_matches(word, list(dict.fromkeys(known)), n=3, cutoff=0.5)
    return f", did you mean {' or '.join(repr(c) for c in close)}?" if close else ""


def source(dataset: str, data_root: Path) -> Source:
    """Find a dataset below a data root, or through a YAML file.

    A public dataset lies at `<data-root>/<name>/<category>`, or the data root itself holds its categories.
    Raises DatasetError naming what was looked for.
    """
    if dataset.endswith((".yaml", ".yml")):
        return _from_yaml(Path(dataset))
    if not isdir(data_root):
        raise DatasetError(
            f"--data-root {data_root}: no such folder; it should hold {dataset}/<category>/train/good, or the "
            "categories themselves"
        )
    if not dataset or dataset != Path(dataset).name or dataset in (".", ".."):
        raise DatasetError(f"{dataset!r} is no dataset name; use a public one ({', '.join(OFFICIAL)}), a folder's name "
                           "or a YAML file")
    if dataset in PRIVATE:
        raise DatasetError(
            f"{dataset}: its ground truth is not published, so nothing can be measured here; the authors' server "
            f"scores it (https://benchmark.mvtec.com). The public part is {PRIVATE[dataset]}"
        )
    inside = data_root / dataset
    if isdir(inside):
        found = found_in(dataset, inside, OFFICIAL[dataset]) if dataset in OFFICIAL else _categories(inside)
        if found:
            return Source(dataset, inside, found)
        seen = ", ".join(f.name for f in folders(inside)[:5]) or "no folders"
        raise DatasetError(
            f"{inside}: no category there; looked for {inside}/<category>/train/good and found {seen}"
        )
    official = OFFICIAL.get(dataset)
    if official:
        found = found_in(dataset, data_root, official, converted=dataset not in LAYOUTS)
        if found:
            return Source(dataset, data_root, found)
        raise DatasetError(
            f"{dataset} is not under {data_root}: looked for {inside}/<category>/train/good and for "
            f"{data_root}/{next(iter(official))}/train/good and its sisters; `run_benchmark.py download {dataset} "
            f"--data-root {data_root}` fetches it"
        )
    known = [*OFFICIAL, *(f.name for f in folders(data_root))]
    raise DatasetError(
        f"unknown dataset {dataset!r}{near(dataset, known)}; it is no public dataset ({', '.join(OFFICIAL)}), and "
        f"{inside} is no folder"
    )


def _categories(root: Path) -> dict[str, Path]:
    """Folders that look like categories."""
    return {composed(f.name): f for f in folders(root) if is_category(f)}


def _from_yaml(path: Path) -> Source:
    import yaml

    try:
        # BaseLoader: every scalar is a text, so that a category 01 stays 01
        raw = yaml.load(path.read_text(encoding="utf-8-sig"), yaml.BaseLoader)
    except FileNotFoundError:
        raise DatasetError(f"{path}: no such file; it should name a dataset: name, root, categories") from None
    except Exception as error:  # besides YAMLError, odd scalars raise ValueError, KeyError, IndexError and others
        raise DatasetError(f"{path}: cannot be read as YAML ({' '.join(str(error).split())})") from error
    unknown = sorted(str(k) for k in set(raw) - YAML_KEYS) if isinstance(raw, dict) else []
    if unknown:
        hint = near(unknown[0], YAML_KEYS)
        raise DatasetError(f"{path}: unknown key {unknown[0]!r}{hint}; keys: {', '.join(sorted(YAML_KEYS))}")
    if not isinstance(raw, dict) or not isinstance(raw.get("name"), str) or not isinstance(raw.get("root"), str):
        raise DatasetError(f"{path}: needs the texts `name:` and `root:`")
    name, root = raw["name"], Path(raw["root"])
    if name in OFFICIAL or not name or name != Path(name).name or name in (".", ".."):
        raise DatasetError(f"{path}: name {name!r} is taken or no plain word; give your dataset a name of its own")
    root = root if root.is_absolute() else path.parent / root
    if not isdir(root):
        raise DatasetError(f"{path}: root {root} is no folder; it should hold <category>/train/good")
    found = _categories(root)
    wanted = raw.get("categories")
    if wanted is not None:
        if not isinstance(wanted, list) or not all(isinstance(c, str) for c in wanted):
            raise DatasetError(f"{path}: categories must be a list of folder names")
        wanted = [composed(c) for c in wanted]
        for category in wanted:
            if category not in found:
                raise DatasetError(f"{path}: no category {category!r} under {root}{near(category, found)}")
        found = {c: found[c] for c in wanted}
    if not found:
        raise DatasetError(f"{path}: no category under {root}; looked for {root}/<category>/train/good")
    return Source(name, root, found, _white_level(path, raw.get("white_level", str(DEEP))))


def _white_level(path: Path, text: Any) -> int:
    if not isinstance(text, str) or not re.fullmatch(r"\d{1,5}", text) or not 255 <= int(text) <= DEEP:
        raise DatasetError(f"{path}: white_level {text!r} is no whole number from 255 to {DEEP}; 4095 suits 12 bits")
    return int(text)


def name_of(dataset: str) -> str:
    """The name under which records of a dataset are kept: that within a YAML file, else the name itself."""
    return _from_yaml(Path(dataset)).name if dataset.endswith((".yaml", ".yml")) else dataset
