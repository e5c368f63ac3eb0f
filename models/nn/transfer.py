"""What a training step brings from the host: several tensors in one copy, and random material made a step ahead."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

import torch
from torch import Tensor

ALIGNED = 16  # bytes; a view of a tensor's bytes in another type must begin at a multiple of that type's size
Made = TypeVar("Made")


class Packed:
    """CPU tensors ready to be copied to `device` together: `arrive` gives them there, in the order given.

    They lie in one piece of pinned memory, from which a copy neither makes the host wait nor needs a second one. Where
    the device is the CPU they are kept as they are.
    """

    def __init__(self, device: torch.device | str, *tensors: Tensor) -> None:
        self.device, self.tensors = torch.device(device), tensors
        if self.device.type == "cpu":
            return
        self.sizes = [tensor.nbytes + -tensor.nbytes % ALIGNED for tensor in tensors]
        self.bytes = torch.empty(sum(self.sizes), dtype=torch.uint8, pin_memory=True)
        for tensor, place in zip(tensors, self.bytes.split(self.sizes), strict=True):
            place[: tensor.nbytes].copy_(tensor.contiguous().reshape(-1).view(torch.uint8))

    def arrive(self) -> Sequence[Tensor]:
        """The tensors on the device; each is a part of one memory there, so that all live as long as one."""
        if self.device.type == "cpu":
            return self.tensors
        there = self.bytes.to(self.device, non_blocking=True).split(self.sizes)
        return [
            place[: tensor.nbytes].view(tensor.dtype).view(tensor.shape)
            for tensor, place in zip(self.tensors, there, strict=True)
        ]


def together(device: torch.device | str, *tensors: Tensor) -> Sequence[Tensor]:
    """CPU tensors on `device`, by one copy that nothing waits for; on the CPU the tensors themselves."""
    return Packed(device, *tensors).arrive()


class Ahead(Generic[Made]):
    """`make(count, generator)` with a generator seeded from torch's global state, which checkpoints restore.

    On a GPU a thread makes the next step's while the device works on this one: it looks at the seed that the global
    state will give without drawing it, so that what is made is the same with and without the thread. What was made for
    another count (the last, smaller batch) is made again.
    """

    def __init__(self, make: Callable[[int, torch.Generator], Made], device: torch.device) -> None:
        self.make = make
        self.thread = ThreadPoolExecutor(1) if device.type == "cuda" else None
        self.next: tuple[tuple[int, int], Future[Made]] | None = None

    def __call__(self, count: int) -> Made:
        key = (count, _seed())
        waiting, self.next = self.next, None
        made = waiting[1].result() if waiting is not None and waiting[0] == key else self._made(*key)
        if self.thread is not None:
            following = torch.Generator()
            following.set_state(torch.get_rng_state())
            key = (count, _seed(following))
            self.next = key, self.thread.submit(self._made, *key)
        return made

    def _made(self, count: int, seed: int) -> Made:
        return self.make(count, torch.Generator().manual_seed(seed))


def _seed(generator: torch.Generator | None = None) -> int:
    return int(torch.randint(2**62, (1,), generator=generator))
