"""Settings: what they draw is nested and seeded, masks move with pictures, and what cannot be is said at once."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import datasets
from datasets.base import Category, DatasetError, Sample
from datasets.corruptions import KINDS, MOVES, corrupt, moved
from datasets.images import Pictures
from datasets.settings import NAMES, Seen, joined, parse
from tests.conftest import make_mvtec


def category(train: int = 40, good: int = 5, bad: int = 10) -> Category:
    def samples(split: str, kind: str, count: int) -> tuple[Sample, ...]:
        return tuple(Sample(Path(f"/own/nut/{split}/{kind}/{i:03}.png"), kind) for i in range(count))

    return Category("own", "nut", Path("/own/nut"), "mvtec", samples("train", "good", train), (),
                    (*samples("test", "good", good), *samples("test", "scratch", bad)))


def photo(seed: int = 0, size: tuple[int, int] = (96, 128)) -> np.ndarray:
    rng = np.random.default_rng(seed)
    rough = rng.integers(40, 216, (size[0] // 8, size[1] // 8, 3))
    return np.kron(rough, np.ones((8, 8, 1))).astype(np.uint8)


def test_shots_are_nested_seeded_and_unchanged_in_number() -> None:
    base, found = category(), {}
    for count in (1, 2, 4, 8, 16, 40):
        found[count] = set(parse(f"shots={count}").category(base, 3).train)
        assert len(found[count]) == count
    assert found[1] < found[2] < found[4] < found[16] < found[40] == set(base.train)
    assert set(parse("shots=4").category(base, 4).train) != found[4]
    assert parse("shots=4").category(base, 3).test == base.test


def test_contamination_takes_defects_out_of_the_test_set_or_leaves_them_there() -> None:
    base = category()
    for text, unscored in (("contaminated=0.1", 4), ("contaminated=0.1:left", 0)):
        made = parse(text).category(base, 0)
        assert len(made.train) == 40 and made.train[:36] == base.train[:36]
        assert all(s.kind == "scratch" and s in base.test for s in made.train[36:])
        assert made.test == base.test and len(made.unscored) == unscored
        assert not made.unscored or made.unscored == {s.name for s in made.train[36:]}
        assert made.told[0].startswith("4 of 40 training pictures are defective (4 scratch); ")
    few = parse("contaminated=0.05").category(base, 0).train[38:]
    assert set(few) < set(parse("contaminated=0.1").category(base, 0).train[36:])


def test_what_is_held_out_is_not_trained_on() -> None:
    base = category()
    made = parse("held_out=0.1").category(base, 0)
    assert len(made.held_out) == 4 and len(made.train) == 36 and not set(made.train) & set(made.held_out)
    assert made.test == base.test


@pytest.mark.parametrize(("text", "words"), [
    ("shots=41", "has 40 training pictures; ask for fewer"),
    ("contaminated=0.25", r"has 10 and must keep one: give at most 0\.225"),
    ("contaminated=0.3:left", r"has 10: give at most 0\.250"),
    ("contaminated=0.01", "is none"),
    ("held_out=0.02", "a threshold needs 2"),
])
def test_pictures_that_do_not_suffice(text: str, words: str) -> None:
    with pytest.raises(DatasetError, match=words):
        parse(text).category(category(), 0)


def test_categories_are_joined_with_what_is_to_be_known_of_each() -> None:
    nut = replace(category(4), notes=("train: 4 of 9",), validation=category(2).train)
    nail = replace(category(3), name="nail", root=Path("/own/nail"), notes=("train: 3 of 8",))
    made = joined(nut, [nail, nut], official=15)
    assert made.train == nail.train + nut.train and made.validation == nut.validation and made.test == nut.test
    assert made.notes == ("nail: train: 3 of 8", "train: 4 of 9", "multi_class: 2 of 15 categories")
    assert made.told == ("one model for 2 categories: nail, nut",)
    assert joined(nut, [nail, nut], official=2).notes == made.notes[:2] == joined(nut, [nail, nut]).notes
    with pytest.raises(DatasetError, match="nut is the only category of own"):
        joined(nut, [nut])


@pytest.mark.parametrize(("text", "words"), [
    ("shot=4", "did you mean 'shots'"), ("shots=0", "write shots=N"), ("shots=-1", "write shots=N"), ("", "unknown"),
    ("contaminated=1.5", "write contaminated=SHARE"), ("contaminated=0.1:lef", "write contaminated"),
    ("contaminated=nan", "write contaminated"), ("held_out=0", "write held_out"),
    ("corrupted=blurr:3", "did you mean 'blur'"), ("corrupted=blur", "severity from 1 to 5"),
    ("corrupted=blur:6", "severity from 1 to 5"), ("size=big", "write size=N"),
    ("multi_class=3", "write multi_class$"), ("multiclass", "did you mean 'multi_class'"),
])
def test_names_that_do_not_exist(text: str, words: str) -> None:
    with pytest.raises(DatasetError, match=words):
        parse(text)


def test_one_setting_has_one_spelling() -> None:
    assert parse("contaminated=0.10").text == parse(" contaminated=.1").text == "contaminated=0.1"
    texts = ["shots=4", "contaminated=0.05:left", "held_out=0.1", "corrupted=jpeg:5", "size=64", "multi_class"]
    assert [parse(text).text for text in texts] == texts and {t.partition("=")[0] for t in texts} == set(NAMES)


@pytest.mark.parametrize("kind", [*KINDS, *MOVES])
def test_corruptions_grow_with_their_severity_and_hang_on_nothing_else(kind: str) -> None:
    picture = photo()
    before = picture.copy()
    made = [corrupt(picture, kind, severity, "good/000", 0) for severity in range(1, 6)]
    far = [float(np.abs(m.astype(float) - picture).mean()) for m in made]
    assert all(m.dtype == np.uint8 and m.shape == picture.shape for m in made) and (picture == before).all()
    assert far[0] > 0.5 and far[0] < far[2] < far[4] * (1.2 if kind in MOVES else 1)
    assert (corrupt(picture, kind, 3, "good/000", 0) == made[2]).all()
    if kind in ("noise", "motion", *MOVES):
        others = [corrupt(picture, kind, 3, f"good/{i:03}", 0) for i in range(6)]
        assert any((other != made[2]).any() for other in others)


@pytest.mark.parametrize("kind", MOVES)
def test_masks_move_with_their_pictures(kind: str) -> None:
    mask = np.zeros((96, 128), np.uint8)
    mask[40:60, 50:90] = 255
    picture = np.repeat(mask[..., None], 3, 2)
    for severity in (1, 3, 5):
        for name in ("scratch/000", "scratch/001"):
            shown, truth = corrupt(picture, kind, severity, name, 0), moved(mask, kind, severity, name, 0)
            assert set(np.unique(truth)) == {0, 255}
            assert ((shown[..., 0] > 127) != (truth > 0)).mean() < 0.002
            assert (moved(mask > 0, kind, severity, name, 0) == (truth > 0)).all()
    assert ((moved(mask, kind, 5, "scratch/000", 0) > 0) != (mask > 0)).mean() > 0.01


def test_only_test_pictures_are_corrupted_and_their_truth_moves(tmp_path: Path) -> None:
    make_mvtec(tmp_path / "own" / "nut", size=(64, 64))
    base = datasets.load("own", "nut", tmp_path)
    pictures = Pictures([*base.train, *base.test])
    setting = parse("corrupted=shift:5")
    made = setting.category(base, 0)
    train, test = (Seen([pictures], getattr(made, split), split, setting, 0) for split in ("train", "test"))
    assert len(train) == 6 and all((train[i] == pictures[i]).all() for i in range(6))
    assert len(test) == 8 and all((test[i] != pictures[6 + i]).any() for i in range(8))
    assert (test[2:4][1] == test[3]).all()
    sample = next(s for s in made.test if s.label)
    found, stored = (datasets.truth(c, sample, (64, 64)) for c in (made, base))
    assert (found != stored).any() and (found == moved(stored, "shift", 5, sample.name, 0)).all()
    clean = Seen([pictures], base.test, "test", parse("shots=1"), 0)
    assert (clean[0] == pictures[6]).all()


def test_a_small_camera_sees_less_of_all_pictures(tmp_path: Path) -> None:
    make_mvtec(tmp_path / "own" / "nut", size=(40, 48))
    base = datasets.load("own", "nut", tmp_path)
    pictures = Pictures([*base.train, *base.test])
    setting = parse("size=20")
    for split in ("train", "test"):
        seen = Seen([pictures], getattr(base, split), split, setting, 0)
        assert seen[0].shape == (40, 48, 3)
        fine = [np.abs(np.diff(x.astype(float), axis=1)).mean() for x in (seen[0], pictures[0])]
        assert fine[0] < 0.7 * fine[1]
    with pytest.raises(DatasetError, match="has only 48 x 40 pixels"):
        Seen([pictures], base.train, "train", parse("size=41"), 0)[0]
