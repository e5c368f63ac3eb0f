"""Data: MVTec AD, MVTec LOCO AD, folders of own classes, the demo sets, download and decode cache.

A dataset is named by a public name (`mvtec_ad`, `visa`, ...), by the name of a folder under the data root, or by a
small YAML file. Light on purpose: other libraries look for a package called `datasets` and may import this one.
"""

from __future__ import annotations

from pathlib import Path

PUBLIC = (
    "mvtec_ad", "mvtec_loco", "visa", "mvtec_ad_2", "btad", "mpdd", "mvtec_3d", "kolektor_sdd2", "real_iad",
)


def names(data_root: Path | None = None) -> list[str]:
    """The public datasets, and every folder under the data root that holds categories."""
    from datasets.layouts import folders, is_category

    found = list(PUBLIC)
    if data_root is not None and Path(data_root).is_dir():
        found += [
            folder.name for folder in folders(Path(data_root))
            if folder.name not in found and any(is_category(c) for c in folders(folder))
        ]
    return found


def find(dataset: str, data_root: Path) -> dict[str, Path]:
    """{category: folder} of a dataset, in name order. Raises DatasetError that names what was looked for."""
    from datasets.sources import source

    return dict(source(dataset, Path(data_root)).categories)


def absent(dataset: str, data_root: Path) -> tuple[str, ...]:
    """Official categories of a public dataset that are not under the data root."""
    from datasets.catalog import OFFICIAL

    official = OFFICIAL.get(dataset, {})
    found = find(dataset, data_root) if official else {}
    return tuple(c for c in official if c not in found)


def official(dataset: str) -> int:
    """How many categories a public dataset has; 0 for any other."""
    from datasets.catalog import OFFICIAL

    return len(OFFICIAL.get(dataset, {}))


def load(dataset: str, category: str, data_root: Path, limit: int = 0):
    """The `Category` of a dataset: its samples by split, with notes on departures from the official data.

    limit: at most so many pictures of each split; 0 for all.
    """
    from dataclasses import replace

    from datasets.base import DatasetError, composed
    from datasets.catalog import departures
    from datasets.images import picture_size
    from datasets.layouts import limited, scan
    from datasets.public import LAYOUTS, place
    from datasets.sources import near, source

    found = source(dataset, Path(data_root))
    category = composed(category)
    if category not in found.categories:
        raise DatasetError(
            f"{found.name} has no category {category!r} under {found.root}{near(category, found.categories)}; "
            f"it has {', '.join(found.categories)}"
        )
    folder = found.categories[category]
    if place(found.name, found.root, category) == folder:
        scanned = LAYOUTS[found.name].read(found.name, category, folder)
    else:
        scanned = scan(found.name, category, folder, white_level=found.white_level)
    scanned = replace(scanned, notes=departures(scanned, picture_size(scanned.train[0].path)))
    return limited(scanned, limit) if limit else scanned


def truth(category, sample, size: tuple[int, int]):
    """Ground truth of an anomalous test picture; see `datasets.layouts.truth`."""
    from datasets.layouts import truth as read

    return read(category, sample, size)


def examine(category, memory: Path | None = None, *, pictures: bool = True):
    """Fingerprint, problems and remarks of a category; see `datasets.checking.examine`."""
    from datasets.checking import examine as look

    return look(category, memory, pictures=pictures)


def fingerprint(category, memory: Path | None = None) -> str:
    """sha256 over a category's files; see `datasets.checking.fingerprint`."""
    from datasets.checking import fingerprint as compute

    return compute(category, memory)
