"""The source of natural pictures: a folder with surprises in it, the embedded ones, or none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from models.base import ModelError
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
    with pytest.raises(ModelError, match="no picture"):
        Textures(str(tmp_path), (8, 8))


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


def test_draws_depend_on_the_generator_only_and_not_on_the_cache(tmp_path: Path, monkeypatch) -> None:
    folder(tmp_path)
    first = Textures(str(tmp_path), (8, 8))
    once = first.draw(20, seeded(1))
    assert torch.equal(once, first.draw(20, seeded(1)))  # now from memory
    monkeypatch.setattr("models.nn.textures.CACHE_BYTES", 0)
    assert torch.equal(once, Textures(str(tmp_path), (8, 8)).draw(20, seeded(1)))
    assert not torch.equal(once, first.draw(20, seeded(2)))


def test_embedded_pictures_are_many_and_different() -> None:
    textures = Textures("embedded", (16, 16))
    assert len(textures) == 140 and textures.describe()["source"] == "embedded"
    drawn = textures.draw(30, seeded())
    assert len({tuple(picture.flatten().tolist()) for picture in drawn}) > 20
    assert not textures.unreadable
