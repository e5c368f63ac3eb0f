"""Several tensors in one copy, and random material made a step ahead."""

from __future__ import annotations

import threading

import pytest
import torch

from models.nn.transfer import Ahead, Packed, together
from tests.gpu.pretended import pretended_gpus

CPU, GPU = torch.device("cpu"), torch.device("cuda:1")


def tensors() -> list[torch.Tensor]:
    return [
        torch.arange(6.0).view(2, 3).T, torch.tensor([True, False, True]), torch.tensor(7), torch.empty(0, 4),
        torch.arange(5, dtype=torch.int16), torch.linspace(0, 1, 3, dtype=torch.float64),
    ]


def test_on_the_cpu_nothing_is_copied() -> None:
    given = tensors()
    assert all(a is b for a, b in zip(together("cpu", *given), given, strict=True))


def test_all_arrive_by_one_copy_that_nothing_waits_for() -> None:
    with pretended_gpus() as counts:
        found = Packed(GPU, *tensors()).arrive()
        assert counts.total() == (0, 1)
        for a, b in zip(found, tensors(), strict=True):
            assert a.device == GPU and a.dtype == b.dtype and a.shape == b.shape and torch.equal(a.cpu(), b)


@pytest.mark.parametrize("device", [CPU, GPU])
def test_the_thread_changes_no_value_and_draws_no_number(device: torch.device) -> None:
    """Also where the last batch is smaller and something else draws from the global state in between."""
    def run(where: torch.device) -> list[list[float]]:
        torch.manual_seed(3)
        ahead, found = Ahead(lambda count, random: torch.rand(count, generator=random).tolist(), where), []
        for count in (4, 4, 2, 4, 4):
            found.append(ahead(count))
            if count == 2:
                found.append(torch.rand(3).tolist())
        return found

    assert run(device) == run(CPU) and len({str(values) for values in run(CPU)}) == 6


def test_on_a_gpu_the_next_is_made_before_it_is_asked_for() -> None:
    made, names = threading.Event(), []

    def make(count: int, random: torch.Generator) -> int:
        names.append(threading.current_thread() is threading.main_thread())
        if not names[-1]:
            made.set()
        return count

    ahead = Ahead(make, GPU)
    assert ahead(3) == 3 and made.wait(20) and names == [True, False]
    assert ahead(3) == 3 and names[:2] == [True, False] and True not in names[1:]


def test_what_goes_wrong_in_the_thread_is_raised_in_the_step() -> None:
    ahead = Ahead(lambda count, random: 1 // count, GPU)
    assert ahead(1) == 1
    with pytest.raises(ZeroDivisionError):
        ahead(0)
