"""The source of natural pictures: a folder with surprises in it, the embedded ones, or none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from models.base import ModelError
from models.nn import textures as module
from models.nn.textures import Textures


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def folder(tmp_path: Path) -> Path:
    """Colour, grey, palette, RGBA and 16-bit pictures, one of them with an upper-case suffix in a subfolder."""
    random = np.random.default_rng(0)
    colour = random.integers(0, 256, (30, 40, 3), dtype=np.uint8)
    (tmp_path / "sub").mkdir()
    Image.fromarray(colour).save(tmp_path / "colour.png")
    Image.fromarray(colour[..., 0]).save(tmp_path / "grey.png")
    Image.fromarray(colour).convert("P").save(tmp_path / "palette.png")
    Image.fromarray(np.dstack([colour, colour[..., :1]])).save(tmp_path / "rgba.png")
    Image.fromarray(colour).save(tmp_path / "sub" / "UPPER.JPG")
    return tmp_path


def test_no_source_is_an_error_that_names_the_alternative() -> None:
    for source in (None, ""):
        with pytest.raises(ModelError, match=r"no natural pictures.*'embedded'"):
            Textures(source, (8, 8))


def test_missing_and_empty_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="nowhere"):
        Textures(str(tmp_path / "nowhere"), (8, 8))
    (tmp_path / "notes.txt").write_text("no picture")
    with pytest.raises(ModelError, match=r"no picture.*'embedded'"):
        Textures(str(tmp_path), (8, 8))


def test_a_folder_of_one_picture_is_refused(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(tmp_path / "only.png")
    with pytest.raises(ModelError, match=r"one picture.*'embedded'"):
        Textures(str(tmp_path), (8, 8))
    Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(tmp_path / "second.png")
    assert len(Textures(str(tmp_path), (8, 8))) == 2


def tree(tmp_path: Path, folders: int = 6, each: int = 5) -> Path:
    """Pictures of one colour each in several folders, one of them deeper."""
    for i in range(folders):
        inner = tmp_path / "deep" / f"class{i}" if i == 0 else tmp_path / f"class{i}"
        inner.mkdir(parents=True)
        for j in range(each):
            Image.fromarray(np.full((4, 4, 3), 8 * i + j, np.uint8)).save(inner / f"{j}.png")
    return tmp_path


def test_large_folder_gives_a_seeded_subset_that_the_record_names(tmp_path: Path) -> None:
    root = str(tree(tmp_path))
    whole = Textures(root, (4, 4))
    assert len(whole) == 30 and "of" not in whole.describe()
    some, same, other = (Textures(root, (4, 4), seed=seed, most=7) for seed in (1, 1, 2))
    assert len(some) == 7 and len(set(some.draw(60, seeded()).mean((1, 2, 3)).tolist())) == 7
    assert some.describe() == same.describe() and some.describe() | {"names_sha256": ""} == {
        "source": tmp_path.name, "pictures": 7, "of": 30, "seed": 1, "names_sha256": "", "unreadable": [],
    }
    assert some.describe()["names_sha256"] != other.describe()["names_sha256"]


def test_default_subset_fits_the_cache_and_is_decoded_once(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(module, "CACHE_BYTES", 10 * 3 * 4 * 4)
    textures = Textures(str(tree(tmp_path)), (4, 4))
    decoded, decode = [], module._decode
    monkeypatch.setattr(module, "_decode", lambda path: (decoded.append(path), decode(path))[1])
    textures.draw(200, seeded())
    assert len(textures) == 10 and len(decoded) == len(set(decoded)) == 10


def test_folders_are_listed_only_until_enough_is_found(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(module, "LISTED", 8)
    opened, scan = [], module.os.scandir
    monkeypatch.setattr(module.os, "scandir", lambda path: (opened.append(path), scan(path))[1])
    root = tree(tmp_path)
    textures = Textures(str(root), (4, 4), seed=3)
    assert len(opened) <= 4 and len(textures) == 10  # the root, two folders of five, perhaps the one between
    assert textures.describe()["of"] == "more than 10"
    listed = len(opened)
    assert len(Textures(str(root), (4, 4), seed=3)) == 10 and len(opened) == listed  # the next fit lists nothing


def test_any_mode_and_suffix_is_read(tmp_path: Path) -> None:
    textures = Textures(str(folder(tmp_path)), (16, 24))
    assert len(textures) == 5
    drawn = textures.draw(40, seeded())
    assert drawn.shape == (40, 3, 16, 24) and drawn.dtype == torch.float32
    assert drawn.min() >= 0 and drawn.max() <= 1 and not textures.unreadable
    grey = [picture for picture in drawn if torch.equal(picture[0], picture[1]) and torch.equal(picture[0], picture[2])]
    assert grey


def test_unreadable_pictures_are_skipped_and_listed(tmp_path: Path) -> None:
    folder(tmp_path)
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    (tmp_path / "empty.jpg").write_bytes(b"")
    cut = (tmp_path / "colour.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(cut[: len(cut) // 2])
    textures = Textures(str(tmp_path), (8, 8))
    assert len(textures.draw(100, seeded())) == 100
    assert sorted(textures.unreadable) == ["broken.png", "cut.png", "empty.jpg"]
    assert textures.describe()["unreadable"] == textures.unreadable


def test_nothing_readable_is_an_error(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(b"no picture")
    with pytest.raises(ModelError, match="none of the 2 pictures"):
        Textures(str(tmp_path), (8, 8)).draw(1, seeded())


def test_draws_depend_on_the_generator_only_and_not_on_the_cache(tmp_path: Path) -> None:
    folder(tmp_path)
    first = Textures(str(tmp_path), (8, 8))
    once = first.draw(20, seeded(1))
    assert torch.equal(once, first.draw(20, seeded(1)))  # now from memory
    uncached = Textures(str(tmp_path), (8, 8))
    uncached._cache_items = 0
    assert torch.equal(once, uncached.draw(20, seeded(1)))
    assert not torch.equal(once, first.draw(20, seeded(2)))


def test_embedded_pictures_are_many_and_different() -> None:
    textures = Textures("embedded", (16, 16))
    assert len(textures) == 140 and textures.describe()["source"] == "embedded"
    drawn = textures.draw(30, seeded())
    assert len({tuple(picture.flatten().tolist()) for picture in drawn}) > 20
    assert not textures.unreadable
