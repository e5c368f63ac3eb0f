"""The pretended GPU behaves as a GPU where the tests rely on it, and the parts that touch the device directly work."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from models.base import Context
from models.nn.coreset import greedy_coreset, plain_greedy
from models.nn.neighbours import knn
from models.nn.training import train
from models.weights import WeightStore
from tests.gpu.pretended import Graph, pretended_gpus


def test_values_are_real_and_devices_do_not_mix() -> None:
    with pretended_gpus() as counts:
        x = torch.arange(6.0).view(2, 3).to("cuda:0")
        w = torch.ones(3, device="cuda:0", requires_grad=True)
        loss = (x * w).square().sum()
        loss.backward()
        assert w.grad is not None and w.grad.cpu().tolist() == [18.0, 34.0, 58.0]
        assert str(loss.device) == "cuda:0" and float(loss.detach()) == 55.0
        with pytest.raises(RuntimeError, match="same device, found cpu and cuda:0"):
            x + torch.ones(3)
        with pytest.raises(RuntimeError, match="found cuda:0 and cuda:1"):
            x + torch.ones(3, device="cuda:1")
        with pytest.raises(TypeError, match="numpy"):
            x.numpy()
        with pytest.raises(RuntimeError, match="generator on cpu"):
            torch.rand(2, device="cuda:0", generator=torch.Generator())
        assert counts.waits == {"_to_copy": 2, "_local_scalar_dense": 1}  # to the device, back, and the loss
        assert counts.copies == {"_to_copy": 1}
        torch.ones(3).to("cuda:0", non_blocking=True)
        assert counts.waits["_to_copy"] == 2 and counts.copies["_to_copy"] == 2


def test_a_capture_runs_nothing_and_a_replay_writes_where_the_capture_would_have() -> None:
    with pretended_gpus():
        x, y = torch.zeros(3, device="cuda:0"), torch.zeros(3, device="cuda:0")
        graph = torch.cuda.CUDAGraph()
        assert isinstance(graph, Graph)
        with torch.cuda.graph(graph):
            x.add_(1)
            y.copy_(x * 2)
        assert x.cpu().tolist() == [0, 0, 0]
        for _ in range(2):
            graph.replay()
        assert x.cpu().tolist() == [2, 2, 2] and y.cpu().tolist() == [4, 4, 4]
        with pytest.raises(RuntimeError, match="capturing"), torch.cuda.graph(torch.cuda.CUDAGraph()):
            float(x.sum())


@pytest.mark.parametrize("device", ["cuda:0", "cuda:1"])
def test_the_coreset_is_the_same_on_every_gpu_whichever_is_current(device: str) -> None:
    """A capture notes the work of the current device only: on the second GPU it caught nothing and replayed nothing."""
    points = torch.from_numpy(np.random.default_rng(0).normal(size=(900, 12)).astype(np.float32))
    with pretended_gpus() as counts:
        chosen = greedy_coreset(points.to(device), 300, start=5).cpu()
        assert counts.waits.total() < 60  # once a block of selections, not once a selection
    assert torch.equal(chosen, plain_greedy(points, 300, start=5))


@pytest.mark.parametrize("device", ["cuda:0", "cuda:1"])
def test_neighbours_are_the_same_on_every_gpu(device: str) -> None:
    rng = np.random.default_rng(1)
    queries, bank = (torch.from_numpy(rng.normal(size=(n, 8)).astype(np.float32)) for n in (70, 40))
    expected = knn(queries, bank, 3)
    with pretended_gpus():
        distances, indices = knn(queries.to(device), bank.to(device), 3)
        assert torch.equal(distances.cpu(), expected[0]) and torch.equal(indices.cpu(), expected[1])


def test_a_resumed_training_does_not_wait_for_its_step_counters(tmp_path: Path) -> None:
    """Adam reads its counters on the host: loaded onto the device they cost a wait for each parameter and step."""
    device = torch.device("cuda:1")
    seen: list[tuple[int, int]] = []
    with pretended_gpus() as counts:
        context = Context(device=device, seed=0, weights=WeightStore("none"), scratch=tmp_path)
        data = torch.rand(6, 4, generator=torch.Generator()).to(device)
        for epochs in (1, 2):
            net = torch.nn.Linear(4, 4).to(device)
            train(
                lambda indices, noise, net=net: (net(data[indices]) - data[indices]).square().mean(), {"net": net},
                [torch.optim.Adam(net.parameters())], count=6, batch=1, epochs=epochs, context=context, key="k",
                progress=lambda *step, **values: seen.append(counts.total()), checkpoint_s=0.0,
            )
    assert len(seen) == 12, "the second training goes on from the first"
    assert seen[11] == seen[6], "the steps of the second epoch wait or copy"
