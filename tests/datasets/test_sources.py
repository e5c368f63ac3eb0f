"""From a name or a YAML file to categories, and the official figures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import datasets
from datasets.base import DatasetError
from datasets.catalog import OFFICIAL, TEXTURES
from datasets.sources import name_of
from tests.conftest import make_mvtec
from tests.datasets.conftest import put


def test_official_totals() -> None:
    totals = {
        name: (len(c), sum(o.train for o in c.values()), sum(o.validation for o in c.values()),
               sum(sum(o.test.values()) for o in c.values()))
        for name, c in OFFICIAL.items() if name in ("mvtec_ad", "mvtec_loco")
    }
    assert totals == {"mvtec_ad": (15, 3629, 0, 1725), "mvtec_loco": (5, 1778, 305, 1568)}
    assert set(TEXTURES) < set(OFFICIAL["mvtec_ad"])


def test_below_the_root_or_directly_in_it(tmp_path: Path) -> None:
    make_mvtec(tmp_path / "a/mvtec_ad/bottle")
    make_mvtec(tmp_path / "b/bottle")
    for root, folder in (("a", "a/mvtec_ad/bottle"), ("b", "b/bottle")):
        assert datasets.find("mvtec_ad", tmp_path / root) == {"bottle": tmp_path / folder}
    assert len(datasets.absent("mvtec_ad", tmp_path / "b")) == 14
    assert datasets.absent("own", tmp_path) == ()


def test_only_official_names_count_in_a_public_dataset(tmp_path: Path) -> None:
    make_mvtec(tmp_path / "mvtec_ad/bottle")
    make_mvtec(tmp_path / "mvtec_ad/my_bottle")
    assert list(datasets.find("mvtec_ad", tmp_path)) == ["bottle"]


def test_names_lists_public_sets_and_own_folders(mvtec: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / ".hidden").mkdir()
    assert datasets.names(tmp_path) == [*datasets.PUBLIC, "own"]
    assert datasets.names(tmp_path / "absent") == datasets.names() == list(datasets.PUBLIC)


@pytest.mark.parametrize(("dataset", "root", "words"), [
    ("mvtec_ad", "absent", "no such folder; it should hold mvtec_ad/<category>/train/good"),
    ("mvtec_ad", ".", r"mvtec_ad is not under .*looked for .*mvtec_ad/<category>/train/good.*download mvtec_ad"),
    ("onw", ".", "unknown dataset 'onw', did you mean 'own'"),
    ("mvtec_da", ".", "did you mean 'mvtec_ad'"),
    ("empty", ".", "no category there; looked for .*<category>/train/good and found wrong"),
    ("../own", ".", "no dataset name"), ("", ".", "no dataset name"), ("..", ".", "no dataset name"),
    ("own", "file", "no such folder"),
])
def test_what_is_not_found_is_named(mvtec: Path, tmp_path: Path, dataset: str, root: str, words: str) -> None:
    (tmp_path / "empty/wrong").mkdir(parents=True)
    (tmp_path / "file").write_text("x")
    with pytest.raises(DatasetError, match=words):
        datasets.find(dataset, tmp_path / root)


def test_unknown_category(mvtec: Path, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"own has no category 'nutt' under .*, did you mean 'nut'\?; it has nut"):
        datasets.load("own", "nutt", tmp_path)


def test_departures_from_the_official_data_are_noted(tmp_path: Path) -> None:
    official = OFFICIAL["mvtec_ad"]["toothbrush"]
    root = tmp_path / "mvtec_ad/toothbrush"
    for folder, count in (("train/good", official.train), ("test/good", 12), ("test/defective", 29)):
        for i in range(count):
            put(root / folder / f"{i:03d}.png", np.zeros((1024, 8), np.uint8))
    assert datasets.load("mvtec_ad", "toothbrush", tmp_path).notes == (
        "reduced data: test defective 29 of 30", "reduced data: pictures 8x1024 of 1024x1024")
    put(root / "test/defective/029.png", np.zeros((8, 8), np.uint8))
    put(root / "train/good/000.png", np.zeros((1024, 1024), np.uint8))
    assert datasets.load("mvtec_ad", "toothbrush", tmp_path).notes == ()
    put(root / "test/good/more.png", np.zeros((8, 8), np.uint8))
    assert datasets.load("mvtec_ad", "toothbrush", tmp_path).notes == ("other data: test good 13, officially 12",)


def test_own_data_have_no_departures(mvtec: Path, tmp_path: Path) -> None:
    assert datasets.load("own", "nut", tmp_path).notes == ()


# ---------------------------------------------------------------- YAML


def _yaml(tmp_path: Path, text: str) -> str:
    (tmp_path / "set.yaml").write_text(text, encoding="utf-8")
    return str(tmp_path / "set.yaml")


def test_a_yaml_file_names_a_dataset(mvtec: Path, loco: Path, tmp_path: Path) -> None:
    spec = _yaml(tmp_path, "name: button\nroot: own\n")  # relative to the file, whatever the data root
    assert list(datasets.find(spec, Path("absent"))) == ["nut", "tray"]
    spec = _yaml(tmp_path, f"name: button\nroot: {tmp_path / 'own'}\ncategories: [tray]\n")
    assert list(datasets.find(spec, Path("absent"))) == ["tray"]
    category = datasets.load(spec, "tray", Path("absent"))
    assert (category.dataset, category.name, category.layout) == ("button", "tray", "loco")


def test_numbers_in_a_yaml_file_are_names_as_they_are_written(tmp_path: Path) -> None:
    for name in ("01", "02", "1e3"):
        make_mvtec(tmp_path / "elsewhere" / name)
    spec = _yaml(tmp_path, "\ufeffname: 2024\r\nroot: elsewhere\r\ncategories: [01, 1e3]\r\n")
    assert list(datasets.find(spec, tmp_path)) == ["01", "1e3"]
    assert datasets.load(spec, "01", tmp_path).dataset == name_of(spec) == "2024"
    assert name_of("own") == "own"


@pytest.mark.parametrize(("text", "words"), [
    ("", "needs the texts"), ("- a\n", "needs the texts"), ("name: a\n", "needs the texts"),
    ("name: [3]\nroot: own\n", "needs the texts"), ("name: [\n", "cannot be read as YAML"),
    ("name: a\nroot: own\ncategory: [nut]\n", "unknown key 'category', did you mean 'categories'"),
    ("name: mvtec_ad\nroot: own\n", "is taken"), ("name: a/b\nroot: own\n", "no plain word"),
    ("name: ..\nroot: own\n", "no plain word"), ("name: a\nroot: absent\n", "absent is no folder"),
    ("name: a\nroot: own\ncategories: nut\n", "must be a list"),
    ("name: a\nroot: own\ncategories: [[nut]]\n", "must be a list"),
    ("name: a\nroot: own\nwhite_level: 12 bit\n", "no whole number from 255 to 65535; 4095 suits 12 bits"),
    ("name: a\nroot: own\nwhite_level: 99999\n", "no whole number"),
    ("name: a\nroot: own\ncategories: [nutt]\n", "no category 'nutt' .*did you mean 'nut'"),
    ("name: a\nroot: own\ncategories: []\n", "no category under"),
    ("name: a\nroot: .\n", "no category under"), ("name: 2001-99-99\nroot: absent\n", "absent is no folder"),
    ("name: !!python/object/apply:os.getcwd []\nroot: own\n", "needs the texts"),
    ("name: a\nroot: " + "x" * 5000 + "\n", "is no folder"),
])
def test_broken_yaml(mvtec: Path, tmp_path: Path, text: str, words: str) -> None:
    spec = _yaml(tmp_path, text)
    with pytest.raises(DatasetError, match=words) as caught:
        datasets.find(spec, tmp_path)
    assert spec in str(caught.value)


def test_an_absent_yaml_file(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="no such file; it should name a dataset"):
        datasets.find(str(tmp_path / "absent.yml"), tmp_path)
