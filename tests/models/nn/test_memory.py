"""Work goes on in halves when memory runs out, and says so; what nothing helps ends in the error itself."""

from __future__ import annotations

import itertools
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from models.nn import memory
from models.nn.memory import available, in_parts, note, noted, out_of_memory
from tests.conftest import REPO


def limited(most, sizes, error=torch.OutOfMemoryError):
    """Doubles its items; more than `most` at a time exceed the memory."""

    def call(items):
        sizes.append(len(items))
        if len(items) > most:
            raise error("CUDA out of memory. Tried to allocate 2.00 GiB" if error is not MemoryError else "")
        return [2 * item for item in items]

    return call


@pytest.mark.parametrize(("most", "tried"), [(9, [8, 3]), (4, [8, 4, 4, 3]), (3, [8, 4, 2, 2, 2, 2, 2, 1])])
def test_halves_until_it_fits_and_stays_there(most, tried):
    sizes = []
    with noted() as notes:
        parts = in_parts(limited(most, sizes), list(range(11)), 8, "things are done")
    assert [x for part in parts for x in part] == [2 * i for i in range(11)] and sizes == tried
    assert notes == [f"out of memory: things are done {b} at a time instead of {a}"
                     for a, b in itertools.pairwise(tried) if a > most]


def test_one_item_that_does_not_fit_and_other_errors_pass():
    with pytest.raises(torch.OutOfMemoryError, match="Tried to allocate"):
        in_parts(limited(0, []), [1, 2], 8, "things")
    with pytest.raises(RuntimeError, match="another"):
        in_parts(lambda items: exec('raise RuntimeError("another thing")'), [1, 2], 8, "things")


@pytest.mark.parametrize(("error", "is_memory"), [
    (torch.cuda.OutOfMemoryError("x"), True), (MemoryError(), True),
    (RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: 8 bytes"), True),
    (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
    (RuntimeError("shape mismatch"), False), (ValueError("out of memory"), False), (KeyboardInterrupt(), False),
])
def test_what_counts_as_memory(error, is_memory):
    assert out_of_memory(error) is is_memory


def test_notes_are_collected_once_each_and_only_inside():
    note("nobody listens")
    with noted() as outer:
        note("a")
        with noted() as inner:
            note("b")
        note("a")
    assert outer == ["a"] and inner == ["b"]


def test_available_memory_is_what_the_system_says(monkeypatch):
    lines = Path("/proc/meminfo").read_text().splitlines()
    total = int(next(line.split()[1] for line in lines if line.startswith("MemTotal")))
    assert 10 << 20 < available("cpu") <= total * 1024
    texts = {
        "/proc/meminfo": "MemTotal: 9000 kB\nMemAvailable: 8000 kB\n", "/sys/fs/cgroup/memory.max": "5000000\n",
        "/sys/fs/cgroup/memory.current": "4000000\n", "/sys/fs/cgroup/memory.stat": "anon 1\ninactive_file 500000\n",
    }
    monkeypatch.setattr(memory.Path, "read_text", lambda self: texts[str(self)])
    assert available("cpu") == 1_500_000
    texts["/sys/fs/cgroup/memory.max"] = "max\n"
    assert available("cpu") == 8000 * 1024


SMALL_MACHINE = """
import resource, torch
from models.nn.memory import noted
from models.nn.neighbours import knn
torch.set_num_threads(1)
g = torch.Generator().manual_seed(0)
queries, bank = torch.randn(4000, 8, generator=g), torch.randn(20000, 8, generator=g)
few = knn(queries[:50], bank)
used = next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmSize"))
resource.setrlimit(resource.RLIMIT_AS, (used + (60 << 20), -1))
with noted() as notes:
    distances, indices = knn(queries, bank, budget=1 << 30)  # blocks of 80 MB, were they there
assert torch.equal(distances[:50], few[0]) and torch.equal(indices[:50], few[1]) and len(distances) == 4000
print(notes[-1])
try:
    torch.empty(1 << 28)
except RuntimeError as error:
    from models.nn.memory import out_of_memory
    assert out_of_memory(error), error
    print("known")
"""


def test_neighbours_on_a_machine_with_too_little_memory():
    done = subprocess.run([sys.executable, "-c", SMALL_MACHINE], cwd=REPO, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.startswith("out of memory: neighbours are searched for") and "known" in done.stdout
