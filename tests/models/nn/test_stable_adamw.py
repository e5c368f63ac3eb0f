"""StableAdamW without its waits against the library's."""

from __future__ import annotations

import torch
from anomalib.models.image.dinomaly.components.optimizer import StableAdamW as Library

from models.nn.stable_adamw import StableAdamW
from tests.gpu.pretended import pretended_gpus

SETTINGS = {"lr": 2e-3, "weight_decay": 1e-2, "amsgrad": True, "eps": 1e-10}


def trained(kind: type[torch.optim.Optimizer], threshold: float) -> torch.Tensor:
    random = torch.Generator().manual_seed(0)
    weight = torch.nn.Parameter(torch.rand(7, 5, generator=random))
    unused = torch.nn.Parameter(torch.ones(2))
    optimizer = kind([weight, unused], clip_threshold=threshold, **SETTINGS)
    for i in range(6):
        weight.grad = torch.randn(7, 5, generator=random) * 10.0**-i
        optimizer.step()
    assert torch.equal(unused.detach(), torch.ones(2))
    return weight.detach()


def test_weights_are_the_library_s_to_the_last_bit_with_and_without_a_cut() -> None:
    cut, never = (trained(StableAdamW, threshold) for threshold in (0.3, 1e9))
    assert not torch.equal(cut, never), "the threshold cuts steps"
    assert torch.equal(cut, trained(Library, 0.3)) and torch.equal(never, trained(Library, 1e9))


def test_a_step_does_not_wait() -> None:
    with pretended_gpus() as counts:
        weight = torch.nn.Parameter(torch.ones(3, device="cuda:0"))
        optimizer = StableAdamW([weight], **SETTINGS)
        weight.grad = torch.ones_like(weight)
        before = counts.total()
        optimizer.step()
        assert counts.total() == before and (weight.detach().cpu() < 1).all()
