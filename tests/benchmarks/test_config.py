"""`--config` and the file that repeats a run, `--dry-run` of every command that runs, `--json`, and completion."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
import yaml

import run_benchmark
from benchmarks.commands import config
from tests.conftest import Cli
from tests.report.conftest import make_record
from tests.report.test_html import store


def parsed(*arguments: str) -> dict:
    """What the command line makes of them."""
    top = run_benchmark.parser()
    return vars(top.parse_args(config.expand(top, arguments))) | {"flags": None}


def test_a_config_is_the_flags_that_it_lists(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(
        "methods: [fake@noisy, padim]\ndatasets: parts\ncategories: [01, nut]\nseeds: [3, 4]\nworkers: 2\n"
        "set: {noise: 1e-3, padim.size: 64}\nweights_for: [resnet18.tv_in1k=a.pth]\nkeep-maps: true\nforce: false\n"
    )
    typed = ("--methods", "fake@noisy", "padim", "--datasets", "parts", "--categories", "01", "nut", "--seeds", "3",
             "4", "--workers", "2", "--set", "noise=1e-3", "padim.size=64", "--weights-for", "resnet18.tv_in1k=a.pth",
             "--keep-maps")
    for flag in (("--config", str(file)), (f"--config={file}",)):
        assert parsed("run", *flag) | {"config": None} == parsed("run", *typed)
    over = parsed("run", "--config", str(file), "--seeds", "9", "--set", "noise=2", "--workers", "1")
    assert (over["seeds"], over["workers"], over["methods"]) == ([9], 1, ["fake@noisy", "padim"])
    assert over["set"][-1] == "noise=2", "typed flags win"


def test_a_run_writes_the_file_that_repeats_it(cli: Cli, data_root: Path, tmp_path: Path) -> None:
    asked = ("run", "--methods", "fake", "--datasets", "parts", "--categories", "nut", "--data-root", data_root,
             "--results", tmp_path, "--weights", "none", "--device", "cpu", "--set", "noise=0.25", "--quiet")
    first = cli(*asked)
    assert first.returncode == 0, first.stderr
    (written,) = (tmp_path / "configs").iterdir()
    assert f"{written} repeats this" in first.stderr and written.name.startswith("run-")
    assert yaml.safe_load(written.read_text())["set"] == ["noise=0.25"]
    again = cli("run", "--config", written)
    assert "1 unit: 0 run now, 1 finished before" in again.stderr, again.stderr
    assert again.stdout == first.stdout and list((tmp_path / "configs").iterdir()) == [written]
    (tmp_path / "new").mkdir()
    moved = cli("run", "--config", written, "--results", tmp_path / "new", "--dry-run")
    assert moved.returncode == 0 and "1 unit, 1 of them to run; nothing was run" in moved.stdout
    assert not (tmp_path / "new" / "configs").exists()


def test_the_demo_can_be_looked_at_first(cli: Cli, tmp_path: Path) -> None:
    done = cli("demo", "--methods", "padim", "--dry-run", "--results", tmp_path)
    assert done.returncode == 0 and "padim@demo" in done.stdout and "nothing was run" in done.stdout
    assert not list((tmp_path / "runs").rglob("seed*.json")) and not (tmp_path / "tables").exists()


@pytest.mark.parametrize("view", [
    ("list", "methods"), ("list", "datasets"), ("list", "tables"), ("list", "papers"), ("show", "padim@resnet18"),
    ("table", "rb_ae/II"), ("compare", "rb_ae", "padim@wrn50", "--datasets", "mvtec_ad"),
], ids=" ".join)
def test_views_as_json(cli: Cli, tmp_path: Path, view: tuple[str, ...]) -> None:
    store(tmp_path, [make_record(m, c, image_auroc=0.95, marks=("reduced",)) for m in ("rb_ae@paper", "padim@wrn50")
                     for c in ("wood", "tile")])
    done = cli(*view, "--json", "--results", tmp_path, "--data-root", tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    if view[0] == "list":
        keys = {"methods": "presets", "datasets": "categories", "tables": "content", "papers": "measured_here"}
        assert len(found) > 5 and all(keys[view[1]] in row for row in found)
    elif view[0] == "show":
        fields = {one["field"]: one for one in found["settings"]}
        assert found["weights"] == ["resnet18.tv_in1k"] and fields["backbone"]["value"] == "resnet18.tv_in1k"
    else:
        table = found if view[0] == "table" else found[0]
        measured = [f for f in table["figures"] if f["source"] == "measured" and f["value"] is not None]
        assert {f["value"] for f in measured} == {95.0} and all("reduced" in f["marks"] for f in measured)
        assert "reduced" in table["marks"] and table["notes"]


def test_bash_completes_flags_choices_and_names(cli: Cli, tmp_path: Path) -> None:
    pytest.importorskip("shtab")
    script = tmp_path / "complete.sh"
    script.write_text(cli("completion", "bash").stdout)
    for words, wanted in (
        (("rep",), {"reproduce", "report"}), (("run", "--metho"), {"--methods"}),
        (("run", "--methods", "patchcore@wrn50_1"), {"patchcore@wrn50_10pct", "patchcore@wrn50_1pct"}),
        (("reproduce", "--paper", "rb"), {"rb_ae"}), (("table", "rb_ae/II"), {"rb_ae/II", "rb_ae/III"}),
        (("list", "pap"), {"papers"}),
    ):
        line = " ".join(words)
        code = (f"source {script}; COMP_WORDS=(anomaly-bench {line}); COMP_CWORD={len(words)}; _shtab_anomaly_bench; "
                "echo ${COMPREPLY[@]}")
        done = subprocess.run(["bash", "-c", code], capture_output=True, text=True, check=True)
        assert set(done.stdout.split()) == wanted, (words, done.stdout, done.stderr)
    assert cli("completion", "zsh").stdout.startswith("#compdef anomaly-bench")
