"""The floor: what the mean picture reaches, and the marks of networks and codes that do no better."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from models.nn.floor import against_floor, code_used, floor


def error(x: Tensor, y: Tensor) -> Tensor:
    return (x - y).square().flatten(1).mean(1)


def test_the_floor_is_the_mean_pictures_error() -> None:
    pictures = torch.rand(11, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    expected = float(pictures.double().var(0, correction=0).mean())  # of squared errors: the variance of each pixel
    assert floor(pictures, error, batch=4) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("share", "marked"), [(0.5, False), (0.0, True), (-0.5, True)])
def test_a_network_is_marked_when_it_does_not_beat_the_mean_picture(share: float, marked: bool) -> None:
    """share: how far the reconstruction lies on the way from the mean picture to the picture itself."""
    pictures = torch.rand(8, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    mean = pictures.mean(0, keepdim=True)
    log: dict[str, Any] = {"notes": ["earlier"]}
    against_floor(log, pictures, lambda x: mean + share * (x - mean), error)
    assert log["error_over_floor"] == pytest.approx((1 - share) ** 2, rel=1e-5)
    assert log["error"] == pytest.approx(log["floor"] * (1 - share) ** 2, rel=1e-5)
    assert (log.get("marks") == ["floor"]) is marked
    assert any("mean picture" in note for note in log["notes"]) is marked
    assert log["notes"][0] == "earlier"


def test_equal_pictures_leave_nothing_to_beat() -> None:
    log: dict[str, Any] = {}
    against_floor(log, torch.full((3, 3, 2, 2), 0.5), lambda x: x, error)
    assert (log["floor"], log["error_over_floor"], log["marks"]) == (0, 0, ["floor"])


def test_an_unused_code_is_marked() -> None:
    used: dict[str, Any] = {}
    unused: dict[str, Any] = {}
    code_used(used, 1.3)
    code_used(unused, 1.001)
    assert used == {"code_gain": 1.3}
    assert unused["marks"] == ["code"] and "1.001 times" in unused["notes"][0]
