"""`from benchmarks import run, reproduce, table, compare, records`, and the notebook that shows them."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pandas
import pytest

import benchmarks
from benchmarks.errors import UsageError
from benchmarks.report.numbers.suites import SuiteError
from tests.conftest import REPO, Cli, make_mvtec
from tests.report.conftest import make_record
from tests.report.test_html import store

NOTEBOOK = REPO / "docs" / "tutorial.ipynb"


def test_what_python_gives_is_what_the_command_line_prints(cli: Cli, tmp_path: Path) -> None:
    store(tmp_path, [
        make_record(method, category, seed, image_auroc=0.91234567891 + 0.01 * seed, pixel_auroc=0.5)
        for method in ("rb_ae@paper", "padim@wrn50") for category in ("wood", "tile") for seed in (0, 1)
    ])
    both = {
        "table": (cli("table", "rb_ae/II", "--format", "csv-long", "--results", tmp_path),
                  benchmarks.table("rb_ae/II", results=tmp_path)),
        "compare": (cli("compare", "rb_ae", "padim@wrn50", "--datasets", "mvtec_ad", "--format", "csv", "--results",
                        tmp_path),
                    benchmarks.compare(["rb_ae", "padim@wrn50"], ["mvtec_ad"], results=tmp_path)),
    }
    for name, (done, frame) in both.items():
        assert done.returncode == 0, done.stderr
        printed = pandas.read_csv(io.StringIO(done.stdout))
        assert list(printed.columns) == list(frame.columns) and len(printed) == len(frame) > 3, name
        for column in ("value", "sd", "rank", "seeds"):
            pandas.testing.assert_series_equal(printed[column].astype(float), frame[column].astype(float))
        assert (printed.marks.fillna("") == frame.marks.fillna("")).all()
    measured = both["table"][1].query("source == 'measured' and row == 'Wood' and method == 'rb_ae@paper'")
    assert measured.value.item() == pytest.approx(91.734567891, abs=1e-9) and measured.seeds.item() == 2
    frame = benchmarks.records(tmp_path)
    assert len(frame) == 16 and frame.value.max() == 0.92234567891


def test_a_run_gives_its_records_and_says_what_failed(quick_workers: None, tmp_path: Path) -> None:
    make_mvtec(tmp_path / "parts" / "nut", train=3, good=2, bad=2)
    make_mvtec(tmp_path / "parts" / "plate", train=3, good=2, bad=2)
    asked = {"data_root": tmp_path, "results": tmp_path / "r", "weights": "none", "device": "cpu"}
    frame = benchmarks.run("fake", "parts", categories=["nut"], seeds=[0, 1], **asked)
    assert set(frame.seed) == {0, 1} and frame[frame.metric == "image_auroc"].value.notna().all()
    again = benchmarks.run(["fake"], ["parts"], categories=["nut"], seeds=[0, 1], **asked)
    pandas.testing.assert_frame_equal(frame, again)  # the time of finishing among the columns: nothing was run again
    with pytest.warns(UserWarning, match="failed: fake_bad@error"):
        assert benchmarks.run(["fake_bad@error"], ["parts"], categories=["nut"], **asked).empty
    assert set(benchmarks.records(tmp_path / "r").method) == {"fake"}


def test_wrong_use_says_what_to_do(tmp_path: Path) -> None:
    for error, text, call in (
        (UsageError, "did you mean 'data_root'", lambda: benchmarks.run(["fake"], ["parts"], dataroot=tmp_path)),
        (UsageError, "rb_ae/II", lambda: benchmarks.table("rb_ae", results=tmp_path)),
        (SuiteError, "unknown paper", lambda: benchmarks.reproduce("rbae", data_root=tmp_path)),
        (UsageError, "nothing to run", lambda: benchmarks.reproduce("rb_ae", data_root=tmp_path, results=tmp_path)),
    ):
        with pytest.raises(error, match=text):
            call()
    assert not hasattr(benchmarks, "tabel") and issubclass(SuiteError, ValueError)


def test_importing_benchmarks_imports_nothing_heavy() -> None:
    heavy = ("torch", "pandas", "numpy", "benchmarks.api")
    code = f"import sys, benchmarks; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_script_needs_no_guard(tmp_path: Path) -> None:
    """Worker processes do not run the user's script once more."""
    make_mvtec(tmp_path / "parts" / "nut", train=3, good=2, bad=2)
    script = tmp_path / "mine.py"
    script.write_text(
        "from benchmarks import run\nprint('begun')\n"
        "print(len(run(['fake'], ['parts'], data_root='.', results='r', weights='none', device='cpu')) > 3)\n"
    )
    done = subprocess.run([sys.executable, script], cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(REPO)},
                          capture_output=True, text=True, check=False, timeout=120)
    assert done.stdout.split() == ["begun", "True"], done.stderr


def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    book = nbformat.read(NOTEBOOK, as_version=4)
    monkeypatch.setenv("PYTHONPATH", str(REPO))
    nbclient.NotebookClient(book, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    shown = ["".join(str(out.get("data", {}).get("text/plain", "")) for out in cell.outputs)
             for cell in book.cells if cell.cell_type == "code"]
    assert "untrained" in shown[1] and "aupro@0.3" in shown[2] and "padim" in shown[4] and "Wood" in shown[3], shown


def test_the_notebook_is_kept_without_outputs() -> None:
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    assert not [cell for cell in cells if cell.get("outputs") or cell.get("execution_count")]
