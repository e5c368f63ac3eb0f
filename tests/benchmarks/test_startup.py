"""What is imported only where it is used, so that commands answer and units begin at once; no clock is read."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPO

LIBRARIES = {"anomalib", "lightning", "torchvision", "timm", "scipy", "pandas", "sklearn", "skimage", "matplotlib",
             "numba", "torch._dynamo", "torch._inductor", "sympy", "triton", "transformers"}
UNIT = """
from benchmarks.plan import Options, make_plan
from benchmarks.runner import Shared, run_unit
options = Options(data_root=Path(root), results=Path(out), weights="none", device="cpu", settings={"size": "64"})
(job,) = make_plan(["patchcore@demo"], ["parts"], options, categories=["nut"]).jobs
assert run_unit(job, lambda *step: None, Shared())["status"] == "ok"
"""


def imported(code: str, *places: Path) -> set[str]:
    """Which of the heavy libraries, torch among them, a new process has imported after `code`."""
    before = "import sys; from pathlib import Path; sys.path.insert(0, sys.argv[1]); root, out = sys.argv[2:]\n"
    after = f"\nprint(sorted({LIBRARIES | {'torch'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", before + code + after, str(REPO), *map(str, places)],
                          capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    return set(ast.literal_eval(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize(("code", "allowed"), [
    ("import run_benchmark; run_benchmark.main(['list', 'methods'])", set()),
    ("import run_benchmark; run_benchmark.main(['run', '--methods', 'patchcore', 'dae', '--datasets', 'parts', "
     "'--data-root', root, '--results', out, '--dry-run'])", {"torch"}),
    ("from models import registry\nfor name, entry in registry.entries().items():\n"
     "    for preset in entry.presets: registry.config(f'{name}@{preset}')", {"torch"}),  # a plan of everything
    # torchvision takes a name from torch's compiler, which brings sympy and triton along
    (UNIT, {"torch", "timm", "torchvision", "scipy", "numba", "torch._dynamo", "torch._inductor", "sympy", "triton"}),
], ids=["list", "dry run", "all presets", "patchcore unit"])
def test_only_what_is_used_is_imported(code: str, allowed: set[str], data_root: Path, tmp_path: Path) -> None:
    assert imported(code, data_root, tmp_path) <= allowed
