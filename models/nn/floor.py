"""The floor under every reconstruction method: one picture for all, the mean of the training pictures.

A network that reconstructs no better than that has learnt nothing that its score could rest on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

Error = Callable[[Tensor, Tensor], Tensor]
"""(pictures, reconstructions), both [B, 3, h, w] -> the method's own error of each picture [B]."""

CODE_GAIN = 1.05
"""Least factor by which the error must grow when every picture gets the mean code, for the code to count as used."""


@torch.inference_mode()
def floor(pictures: Tensor, error: Error, batch: int = 8) -> float:
    """Mean error of pictures [N, 3, h, w] when the mean picture stands for the reconstruction of each."""
    mean = pictures.mean(0, keepdim=True)
    return _mean(error(x, mean.expand_as(x)) for x in pictures.split(batch))


@torch.inference_mode()
def mean_error(pictures: Tensor, rebuild: Callable[[Tensor], Tensor], error: Error, batch: int = 8) -> float:
    """Mean error of pictures [N, 3, h, w] and what `rebuild` makes of each batch of them."""
    return _mean(error(x, rebuild(x).float()) for x in pictures.split(batch))


def against_floor(
    log: dict[str, Any], pictures: Tensor, rebuild: Callable[[Tensor], Tensor], error: Error, batch: int = 8
) -> None:
    """`compared` for a network that sees the training pictures themselves.

    pictures: the training pictures [N, 3, h, w] as the method loads them; rebuild: the network as it is used at test,
    in eval mode.
    """
    compared(log, floor(pictures, error, batch), mean_error(pictures, rebuild, error, batch))


def compared(log: dict[str, Any], below: float, reached: float, by_epoch: Sequence[float] = ()) -> None:
    """Put 'floor', 'error' (of the trained network) and 'error_over_floor' into a training log.

    by_epoch: the same error in training, for the series 'over_floor' (what it is to the floor after each epoch).
    A network that does not beat the mean picture adds a line to log['notes'] and 'floor' to log['marks'], which every
    table shows.
    """
    log |= {"floor": below, "error": reached, "error_over_floor": reached / below if below else float(reached > 0)}
    if by_epoch and below:
        log["over_floor"] = [value / below for value in by_epoch]
    if reached >= below:
        mark(log, "floor", (
            f"the trained network does not reconstruct the training pictures better than their mean picture does "
            f"(error {reached:.4g}, mean picture {below:.4g}): train it longer"
        ))


def code_used(log: dict[str, Any], gain: float) -> None:
    """Put 'code_gain' into a log: the error with the mean code for every picture over the error with each one's own.

    A dense code that is hardly used (below `CODE_GAIN`) gets a note, and the mark 'code'.
    """
    log["code_gain"] = gain
    if gain < CODE_GAIN:
        mark(log, "code", (
            f"the dense code is hardly used: one code for all pictures makes the error {gain:.3f} times as large"
        ))


def mark(log: dict[str, Any], name: str, note: str) -> None:
    """Add a mark for the tables and the line that explains it."""
    log.setdefault("marks", []).append(name)
    log.setdefault("notes", []).append(note)


def _mean(parts: Iterator[Tensor]) -> float:
    return float(torch.cat([part.double().reshape(-1) for part in parts]).mean())
