"""Resize, crop and the way back: both rules for pictures that are not square."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from models.nn.preprocess import Preprocess


def picture(height: int, width: int) -> np.ndarray:
    """Its value tells the place: red the row, green the column, as shares of the height and width."""
    rows, columns = np.mgrid[:height, :width]
    planes = [(rows + 0.5) / height * 255, (columns + 0.5) / width * 255, np.zeros((height, width))]
    return np.stack(planes, 2).round().astype(np.uint8)


def torchvisions(image: np.ndarray, size: int, crop: int) -> np.ndarray:
    """What `Resize(size)` and `CenterCrop(crop)` of torchvision give, the authors' two lines."""
    from torchvision.transforms import CenterCrop, Resize

    return np.asarray(CenterCrop(crop)(Resize(size)(Image.fromarray(image))))


@pytest.mark.parametrize(("height", "width"), [(160, 80), (80, 131), (90, 90)])
@pytest.mark.parametrize(("size", "crop"), [(64, 56), (64, 64), (65, 56)])
def test_short_side_is_torchvisions(height: int, width: int, size: int, crop: int) -> None:
    image = np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)
    view = Preprocess((size, size), (crop, crop), normalise=False, aspect="short")
    ours = view([image])[0].permute(1, 2, 0).mul(255).numpy()
    assert np.abs(ours - torchvisions(image, size, crop)).max() < 1.01  # theirs is rounded to whole values twice


def test_the_two_rules_agree_on_square_pictures() -> None:
    image = picture(90, 90)
    for crop in (None, (56, 56)):
        squash, short = (Preprocess((64, 64), crop, aspect=rule) for rule in ("squash", "short"))
        maps = torch.rand(1, *squash.output)
        assert torch.equal(squash([image]), short([image]))
        assert torch.equal(squash.restore(maps, [(90, 90)])[0], short.restore(maps, [(90, 90)])[0])
        mask = picture(90, 90)[..., 0] > 100
        assert (squash.mask(mask) == short.mask(mask)).all()


@pytest.mark.parametrize("aspect", ["squash", "short"])
@pytest.mark.parametrize("crop", [None, (56, 56)])
@pytest.mark.parametrize("to", [None, (100, 100)])
def test_a_map_comes_back_to_where_it_was_seen(aspect: str, crop: tuple[int, int] | None, to: tuple | None) -> None:
    """The picture's own planes as maps: the way back must give them again wherever the network saw the picture."""
    view = Preprocess((64, 64), crop, normalise=False, aspect=aspect)
    images = [picture(160, 80), picture(90, 135)]
    x = view(images)
    for plane, axis in ((0, 0), (1, 1)):
        for found, image in zip(view.restore(x[:, plane], [i.shape[:2] for i in images], to), images, strict=True):
            shape = to or image.shape[:2]
            assert tuple(found.shape) == shape
            expected = np.broadcast_to(
                np.expand_dims((np.arange(shape[axis]) + 0.5) / shape[axis], 1 - axis), shape)
            seen = [share(aspect, crop, image.shape[:2], a) for a in (0, 1)]
            inside = np.ix_(*(slice_of(s, n) for s, n in zip(seen, shape, strict=True)))
            assert np.abs(found.numpy()[inside] - expected[inside]).max() < 0.02


def share(aspect: str, crop: tuple | None, size: tuple[int, int], axis: int) -> float:
    """How much of the picture along an axis the network sees."""
    part = (crop or (64, 64))[axis] / 64
    return part if aspect == "squash" else part * min(size) / size[axis]


def slice_of(part: float, length: int) -> np.ndarray:
    margin = (1 - part) / 2 * length + 3
    return np.arange(int(np.ceil(margin)), int(length - margin))


def test_masks_are_cropped_as_the_picture_is() -> None:
    image = picture(160, 80)
    view = Preprocess((64, 64), (56, 56), normalise=False, aspect="short")
    mask = image[..., 0] > 140
    share_of_picture = (view([image])[0, 0] > 140 / 255).float().mean()
    assert abs(view.mask(mask).mean() - float(share_of_picture)) < 0.02
