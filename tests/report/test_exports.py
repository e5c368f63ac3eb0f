"""`export`: what other programs read is what the records hold, nothing twice, and marks with it. CSV: test_views.py."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import yaml

from tests.conftest import Cli
from tests.report.conftest import make_record
from tests.report.test_html import store


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """Records of two units, one with a mark, a figure that is undefined and a size of its own."""
    first = make_record("padim@wrn50", "wood", marks=("reduced",), image_auroc=0.875, **{"aupro@0.3": None})
    first["undefined"] = {"aupro@0.3": "no anomalous pixel"}
    store(tmp_path / "r", [first, make_record("padim@wrn50", "tile", 1, size=256, image_auroc=0.5)])
    return tmp_path / "r"


def test_parquet_keeps_values_and_types(cli: Cli, results: Path, tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow", reason="Parquet needs pyarrow")
    done = cli("export", "--results", results, "--out", tmp_path / "all.parquet")
    assert done.returncode == 0 and "3 lines of 2 units" in done.stderr, done.stderr
    assert cli("export", "--results", results, "--out", tmp_path / "all.csv").returncode == 0
    frame, text = pandas.read_parquet(tmp_path / "all.parquet"), pandas.read_csv(tmp_path / "all.csv")
    assert list(frame.columns) == list(text.columns)
    pandas.testing.assert_series_equal(frame.value, text.value)
    assert set(frame.metric_size) == {"original", "256"} and frame.seed.dtype.kind == "i"


def test_mlflow_gets_a_run_for_each_unit_once(cli: Cli, results: Path, tmp_path: Path) -> None:
    pytest.importorskip("mlflow", reason="needs mlflow or mlflow-skinny")
    from mlflow import MlflowClient

    for added in ("2 new runs of 2 units", "0 new runs of 2 units"):
        done = cli("export", "--results", results, "--format", "mlflow", "--out", tmp_path / "mlruns")
        assert done.returncode == 0 and added in done.stderr, done.stderr
    os.environ["MLFLOW_ALLOW_FILE_STORE"] = "true"
    client = MlflowClient((tmp_path / "mlruns").as_uri())
    runs = client.search_runs([client.get_experiment_by_name("mvtec_ad").experiment_id])
    assert len(runs) == 2
    wood = next(run for run in runs if run.data.params["category"] == "wood")
    assert wood.info.run_name == "padim@wrn50 wood seed 0" and wood.info.status == "FINISHED"
    assert wood.data.metrics["image_auroc"] == 0.875 and "aupro_at_0.3" not in wood.data.metrics
    assert wood.data.tags["undefined.aupro_at_0.3"] == "no anomalous pixel" and wood.data.tags["marks"] == "reduced"
    assert wood.data.params["epochs"] == "3" and wood.data.metrics["timing/total_s"] == 17.0
    losses = client.get_metric_history(wood.info.run_id, "training/loss")
    assert [(m.step, m.value) for m in losses] == [(0, 1.0), (1, 0.5), (2, 0.25)]


def test_a_missing_package_is_named(cli: Cli, results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module, form, name in (("mlflow", "mlflow", "mlflow-skinny"), ("pyarrow", "parquet", "pyarrow")):
        monkeypatch.setitem(sys.modules, module, None)
        done = cli("export", "--results", results, "--format", form, "--out", tmp_path / "x")
        assert done.returncode == 2 and f"pip install {name}`" in done.stderr, done.stderr


def test_a_folder_for_the_hugging_face_hub(cli: Cli, results: Path, tmp_path: Path) -> None:
    out = tmp_path / "hub"
    done = cli("export", "--results", results, "--format", "hugging-face", "--out", out)
    assert done.returncode == 0, done.stderr
    head, body = (out / "README.md").read_text().split("---\n", 2)[1:]
    card = yaml.safe_load(head)
    assert (out / card["configs"][0]["data_files"]).read_text().count("\n") == 4
    assert card["size_categories"] == ["n<1K"] and card["pretty_name"]
    assert "`padim@wrn50`" in body and "mvtec_ad/tile, mvtec_ad/wood" in body
    assert "- `reduced`: the data differ from the full public set" in body and str(tmp_path) not in body
