"""Each kind of fault in `kinds.py`: the same ground truth, a counted remark, or an error before any work."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from datasets.base import Category, DatasetError, raise_problems
from datasets.checking import examine
from datasets.layouts import scan, truth
from tests.conftest import make_mvtec
from tests.datasets.conftest import make_loco
from tests.datasets.kinds import KINDS


def make(layout: str, root: Path) -> Path:
    return make_mvtec(root) if layout == "mvtec" else make_loco(root)


def everything(category: Category) -> dict[str, np.ndarray]:
    """Union of each anomalous picture's mask, or its regions by defect."""
    size = (40, 48) if category.layout == "mvtec" else (20, 24)
    found = {}
    for i, sample in enumerate(s for s in category.test if s.label):
        value = truth(category, sample, size)
        held = value > 0 if isinstance(value, np.ndarray) else np.stack([c.mask * c.defect.pixel_value for c in value])
        found[f"{sample.kind}/{i}"] = held
    return found


@pytest.mark.parametrize("name", KINDS)
def test_every_kind(tmp_path: Path, name: str) -> None:
    kind = KINDS[name]
    sound = scan("own", "sound", make(kind.layout, tmp_path / "own/sound"))
    root = make(kind.layout, tmp_path / "own/changed")
    kind.change(root)
    if kind.error:
        with pytest.raises(DatasetError, match=kind.error) as caught:
            raise_problems(examine(scan("own", "changed", root)).problems)
        assert str(root) in str(caught.value)
        return
    category = scan("own", "changed", root)
    found = examine(category)
    assert found.problems == ()
    if kind.remark:
        assert re.search(kind.remark, "\n".join(found.remarks)), found.remarks
    else:
        assert found.remarks == ()
    if kind.same:
        before, after = everything(sound), everything(category)
        assert list(before) == list(after) and all(np.array_equal(before[k], after[k]) for k in before)
        assert len(category.train) == len(sound.train) and len(category.test) == len(sound.test)
    elif category.unmasked:
        assert "ground truth folder" in category.unmasked and truth(category, category.test[-1], (40, 48)) is None


def test_all_problems_of_a_category_are_listed_together(tmp_path: Path) -> None:
    root = make_mvtec(tmp_path / "own/nut")
    for name in ("nested test", "dangling training", "loose test", "webp", "two masks"):
        KINDS[name].change(root)
    with pytest.raises(DatasetError) as caught:
        scan("own", "nut", root)
    lines = str(caught.value).splitlines()
    assert len(lines) == 5 and all(str(root) in line for line in lines)
