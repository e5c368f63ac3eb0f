"""SLIC labels and the random filling of TSDN."""

from __future__ import annotations

import pytest
import torch

from models.nn.superpixels import fill, label_all, superpixels


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def blocks(side: int, cells: int, batch: int = 1) -> torch.Tensor:
    """A raster of cells x cells labels."""
    index = torch.arange(side) * cells // side
    return (index[:, None] * cells + index)[None].repeat(batch, 1, 1).to(torch.int16)


def test_labels_have_no_gaps_and_their_number_is_near_what_was_asked() -> None:
    picture = torch.nn.functional.interpolate(torch.rand(1, 3, 12, 12, generator=seeded()), 352, mode="bicubic")[0]
    labels = superpixels(picture.clamp(0, 1))
    assert labels.dtype == torch.int16 and labels.shape == (352, 352)
    count = int(labels.max()) + 1
    assert labels.unique().tolist() == list(range(count)) and 300 <= count <= 480


def test_uniform_and_tiny_pictures_have_labels_too() -> None:
    assert int(superpixels(torch.full((3, 64, 64), 0.5), 16).max()) + 1 >= 9
    tiny = superpixels(torch.rand(3, 8, 8, generator=seeded()), 400)  # fewer pixels than superpixels
    assert 1 <= int(tiny.max()) + 1 <= 64
    filled, mask = fill(torch.rand(1, 3, 8, 8), tiny[None], seeded())
    assert 0 < mask.mean() < 1 and filled.isfinite().all()


def test_label_all_equals_one_by_one() -> None:
    pictures = torch.rand(5, 3, 32, 32, generator=seeded())
    labels = label_all(pictures, 20)
    for index in range(5):
        assert torch.equal(labels[index], superpixels(pictures[index], 20))


def test_exactly_so_many_superpixels_are_filled_with_one_colour_each() -> None:
    labels = blocks(80, 20, batch=3)  # 400 superpixels
    pictures = torch.full((3, 3, 80, 80), 0.5)
    filled, mask = fill(pictures, labels, seeded())
    for b in range(3):
        hit = labels[b][mask[b, 0] > 0].unique()
        assert len(hit) == 50
        colours = set()
        for label in hit.tolist():
            inside = filled[b][:, labels[b] == label]
            assert (inside == inside[:, :1]).all()  # uniform
            colours.add(tuple(inside[:, 0].tolist()))
            assert (mask[b, 0][labels[b] == label] == 1).all()
        assert len(colours) == 50
    assert torch.equal(filled[mask.expand_as(filled) == 0], pictures[mask.expand_as(filled) == 0])
    assert not torch.equal(mask[0], mask[1])


def test_a_share_of_the_pictures_stays_clean() -> None:
    pictures = torch.full((64, 3, 80, 80), 2.0)  # no colour drawn from [0, 1] equals it
    filled, mask = fill(pictures, blocks(80, 20, batch=64), seeded(), probability=0.5)
    hit = mask.flatten(1).amax(1) > 0
    assert 15 < int(hit.sum()) < 50 and torch.equal(filled.flatten(1).amin(1) < 2, hit)


@pytest.mark.parametrize("cells, expected", [(10, 12), (2, 1), (1, 1)])
def test_too_few_superpixels_are_filled_in_the_same_share(cells: int, expected: int) -> None:
    """100 of 400 asked for: 12 are filled, an eighth, not 50."""
    labels = blocks(40, cells)
    _, mask = fill(torch.rand(1, 3, 40, 40), labels, seeded())
    assert len(labels[0][mask[0, 0] > 0].unique()) == expected


def test_pictures_of_one_batch_may_have_different_numbers_of_superpixels() -> None:
    labels = torch.cat([blocks(80, 20), blocks(80, 16)])
    _, mask = fill(torch.rand(2, 3, 80, 80), labels, seeded())
    assert [len(labels[b][mask[b, 0] > 0].unique()) for b in (0, 1)] == [50, 50]


def test_the_generator_alone_decides() -> None:
    labels, pictures = blocks(40, 20), torch.rand(1, 3, 40, 40)
    first, second = fill(pictures, labels, seeded(1)), fill(pictures, labels, seeded(1))
    assert torch.equal(first[0], second[0]) and torch.equal(first[1], second[1])
    assert not torch.equal(first[1], fill(pictures, labels, seeded(2))[1])
