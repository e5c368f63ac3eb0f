"""`run` and `python -m benchmarks.metrics` read every kind of data set alike: the same figures to the last bit, or the
same error."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tifffile

from benchmarks.metrics.__main__ import main
from benchmarks.store import Store
from tests.conftest import Cli
from tests.datasets.kinds import KINDS
from tests.datasets.test_kinds import make


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data root whose dataset `own` has a category of each kind."""
    root = tmp_path_factory.mktemp("kinds")
    for name, kind in KINDS.items():
        kind.change(make(kind.layout, root / "own" / name))
    return root


def test_the_same_figures_to_the_last_bit(own: Path, tmp_path: Path, cli: Cli, capsys: pytest.CaptureFixture) -> None:
    done = cli("run", "--methods", "fake", "--datasets", "own", "--data-root", own, "--results", tmp_path,
               "--keep-maps", "--quiet", "--device", "cpu")
    assert done.returncode == 1  # some kinds are errors
    records = {r["unit"]["category"]: r for r in Store(tmp_path).records()}
    assert sorted(records) == sorted(name for name, kind in KINDS.items() if not kind.error)
    failed = {line.split(":")[0].removeprefix("FAILED own/") for line in done.stderr.splitlines() if "FAILED" in line}
    assert failed == {name for name, kind in KINDS.items() if kind.error}
    compared = 0
    for name, record in records.items():
        maps = tmp_path / "maps" / Path(record["path"]).relative_to(tmp_path / "runs").with_suffix("")
        capsys.readouterr()
        assert main([str(maps), str(own / "own")]) == 0
        out, err = capsys.readouterr()
        found = json.loads(out)["categories"][name]
        # those at thresholds from held-out pictures need the method; maps alone do not tell them
        of_maps, undefined = ({k: v for k, v in record[part].items() if "@mean3sd" not in k and "@q98" not in k}
                              for part in ("metrics", "undefined"))
        assert found["metrics"] == of_maps and found["undefined"] == undefined, name
        compared += len(found["metrics"])
        for remark in found["notes"]:
            assert remark in record["notes"] and remark in err, name
        if KINDS[name].metrics:
            assert bool(found["notes"]) == bool(KINDS[name].remark) == ("noted" in record["marks"]), name
        if KINDS[name].same and not name.startswith("loco"):
            assert record["metrics"] == records["control"]["metrics"], name
        if "ground truth" in name and not KINDS[name].same:
            assert record["metrics"]["image_auroc"] == records["control"]["metrics"]["image_auroc"]
            assert record["metrics"]["aupro@0.3"] is None and "ground truth folder" in record["undefined"]["aupro@0.3"]
    assert compared > 400


@pytest.mark.parametrize("name", [name for name, kind in KINDS.items() if kind.error and kind.metrics])
def test_the_same_errors(own: Path, tmp_path: Path, name: str, cli: Cli, capsys: pytest.CaptureFixture) -> None:
    done = cli("run", "--methods", "fake", "--datasets", "own", "--categories", name, "--data-root", own, "--results",
               tmp_path, "--quiet", "--device", "cpu")
    assert done.returncode == 1
    for path in (own / "own" / name / "test").glob("*/*.png"):
        target = tmp_path / "maps" / name / "test" / path.parent.name / f"{path.stem}.tiff"
        target.parent.mkdir(parents=True, exist_ok=True)
        tifffile.imwrite(target, np.random.default_rng(0).random((40, 48), np.float32))
    capsys.readouterr()
    assert main([str(tmp_path / "maps"), str(own / "own")]) == 2
    lines = capsys.readouterr().err.removeprefix("error: ").splitlines()
    assert lines and all(line in done.stderr for line in lines)
