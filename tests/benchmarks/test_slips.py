"""What a new user gets wrong: each slip ends in one line that helps, exit code 2, and nothing lost."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests.conftest import Cli, make_mvtec
from tests.report.conftest import make_record

RUN = ("run", "--methods", "patchcore@demo", "--datasets", "own", "--weights", "none", "--device", "cpu")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data/own/nut, some files, and results with records."""
    root = tmp_path_factory.mktemp("place")
    make_mvtec(root / "data" / "own" / "nut", train=3, good=2, bad=2)
    (root / "empty").mkdir()
    (root / "file").write_text("a file, no folder")
    (root / "set.yaml").write_text("nmae: button\nroot: data/own\n")
    (root / "bad.yaml").write_text("methods: [fake]\ndatsets: [own]\n")
    (root / "list.yaml").write_text("- methods\n")
    (root / "torn.yaml").write_text("methods: [fake\n")
    (root / "type.yaml").write_text("methods: fake\ndatasets: [own]\nworkers: [1, 2]\n")
    (root / "thesis").mkdir()
    (root / "thesis" / "text.txt").write_text("mine")
    (root / "notes").mkdir()
    (root / "notes" / "README.md").write_text("mine")
    for method in ("patchcore@demo", "padim@demo"):
        folder = root / "results" / "runs" / "own" / "nut" / method
        folder.mkdir(parents=True)
        for seed in range(3):
            made = make_record(method, "nut", seed, dataset="own", image_auroc=0.9)
            (folder / f"seed{seed}-0123456789.json").write_text(json.dumps(made))
    return root


SLIPS: list[tuple[tuple[str, ...], str]] = [
    # misspelt names
    (("rnu",), "did you mean 'run'"),
    ((), "required: COMMAND"),
    (("list", "method"), "did you mean 'methods'"),
    (("list",), "required: what"),
    (("tables",), "did you mean 'table'"),
    (("run", "--methods", "patchcor@demo", "--datasets", "own"), "did you mean 'patchcore'"),
    (("run", "--methods", "patchcore@dmeo", "--datasets", "own"), "did you mean 'demo'"),
    (("run", "--methods", "patchcore@", "--datasets", "own"), "has no preset ''"),
    (("run", "--methods", "PatchCore", "--datasets", "own"), "did you mean 'patchcore'"),
    (("run", "--methods", "", "--datasets", "own"), "unknown method ''"),
    (("run", "--method", "patchcore@demo", "--dataset", "won"), "did you mean 'own'"),
    (("run", "--metohds", "patchcore", "--datasets", "own"), "did you mean '--methods'"),
    ((*RUN, "--divice", "cpu"), "did you mean '--device'"),
    ((*RUN, "--categories", "nutt"), "did you mean 'nut'"),
    ((*RUN, "--set", "coresett=0.1"), "did you mean 'coreset'"),
    ((*RUN, "--set", "coreset"), "write field=value"),
    ((*RUN, "--set", "coreset=much"), "coreset"),
    ((*RUN, "--launcher", "rya"), "did you mean 'ray'"),
    (("run", "--datasets", "own"), "required: --methods"),
    (("run", "--methods", "patchcore"), "required: --datasets"),
    (("run", "--methods", "anomalib/pathcore", "--datasets", "own"), "pathcore"),
    (("reproduce", "--paper", "rb-ae"), "unknown paper 'rb-ae'"),
    (("reproduce", "--paper", "rb_ae", "--table", "6"), "no table '6'"),
    (("reproduce", "--table", "II"), "name its paper too"),
    (("reproduce", "--paper", "rb_ae", "--methods", "rbae"), "no table asks for it"),
    (("table", "rb_ae"), "rb_ae/II"),
    (("table", "rb_ae/2"), "no table '2'"),
    (("table", "rbae/II"), "unknown paper"),
    (("table", "rb_ae/II", "--format", "markdown"), "there are md, latex, latex-input, csv, csv-long, html"),
    (("download", "mvtec"), "did you mean 'mvtec_ad'"),
    (("demo", "--methods", "pathcore"), "did you mean 'patchcore'"),
    (("run", "--config", "bad.yaml"), "did you mean 'datasets'"),
    (("run", "--config", "list.yaml"), "write flag: value"),
    (("run", "--config", "torn.yaml"), "cannot be read as YAML"),
    (("run", "--config", "type.yaml"), "workers: give one value"),
    (("run", "--config", "none.yaml"), "No such file"),
    (("run", "--config"), "expected one argument"),
    (("completion", "fish"), "here are bash, zsh"),
    (("show", "patchcore@dmeo"), "did you mean 'demo'"),
    (("show",), "required: M[@PRESET]"),
    (("list", "methods", "--jsn"), "did you mean '--json'"),
    (("compare", "patchcore@demo", "padim@demo", "--dataset", "onw"), "did you mean 'own'"),
    (("compare", "patchcore@demo", "--datasets", "own", "--mertic", "image_auroc"), "did you mean '--metric'"),
    (("compare", "patchcore@demo shot=4", "--datasets", "own"), "did you mean 'shots'"),
    (("figure", "patchcore@demo", "--datasets", "own", "onw", "--out", "f"), "no record on onw"),
    (("figure", "patchcore@demo", "--datasets", "own", "--out", "f", "--kinds", "hat"), "did you mean 'heat'"),
    (("baseline", "make", "--datasets", "onw", "--out", "b.json"), "did you mean 'own'"),
    (("download", "demoo"), "did you mean 'demo'"),
    (("demo", "--datasets", "own"), "unknown argument '--datasets'"),
    (("report", "--formt", "html"), "unknown argument '--formt'"),
    (("reproduce", "--paper", "rb_ae", "II"), "unknown argument 'II'"),
    ((*RUN, "--set", "padim.size=64"), "padim is not among the methods"),
    ((*RUN, "--setting", "corrupted=blurr:3"), "did you mean 'blur'"),
    # wrong roots, and data that are not there
    (("run", "--methods", "patchcore@demo", "--datasets", "mvtec_ad"), "download mvtec_ad"),
    (("run", "--methods", "patchcore@demo", "--datasets", "mvtec_add"), "did you mean 'mvtec_ad'"),
    ((*RUN, "--data-root", "nowhere"), "no such folder"),
    ((*RUN, "--data-root", "file"), "no such folder"),
    ((*RUN, "--data-root", "empty"), "is no folder"),
    (("run", "--methods", "patchcore@demo", "--datasets", "set.yaml"), "did you mean 'name'"),
    (("run", "--methods", "patchcore@demo", "--datasets", "none.yaml"), "no such file"),
    (("reproduce", "--paper", "rb_ae", "--data-root", "nowhere"), "nothing to run: mvtec_ad: --data-root nowhere"),
    (("reproduce", "--paper", "all", "--data-root", "empty", "--quick"), "nothing to run"),
    (("prepare", "nowhere", "--as", "a/b"), "nowhere"),
    (("prepare", "empty", "--as", "button"), "DATASET/CATEGORY"),
    (("list", "datasets", "--data-root", "nowhere"), "--data-root nowhere: no such folder"),
    (("reproduce", "--paper", "rb_ae", "--data-root", "nowhere", "--dry-run"), "--data-root nowhere: no such folder"),
    (("table", "rb_ae/II", "--results", "nowhere"), "--results nowhere: no such folder"),
    (("list", "papers", "--results", "file"), "--results file: no such folder"),
    (("check", "--baseline", "list.yaml", "--results", "nowhere"), "not a baseline file"),
    (("prepare", "file", "--as", "a/b"), "file: no such folder"),
    (("prepare", "empty", "--as", "a/b"), "nothing says whether it is good"),
    (("prepare", "data/own/nut/test", "--as", "own/nut"), "data/own/nut exists"),
    (("prepare", "data/own/nut/test", "--as", "a/b", "--annotations", "torn.yaml"), "cannot be read as JSON"),
    # wrong types and values
    ((*RUN, "--setting", "shots=0"), "write shots=N"),
    ((*RUN, "--metric-size", "0"), "--metric-size '0'"),
    ((*RUN, "--device", "cpu:1"), "--device 'cpu:1'"),
    (("figure", "patchcore@demo", "--datasets", "own", "--out", "f", "--pictures", "0"), "--pictures 0"),
    (("figure", "patchcore@demo", "--datasets", "own", "--out", "f", "--kinds", "roc", "--limit", "2"), "--limit 2"),
    (("figure", "patchcore@demo", "--datasets", "own", "--out", "f", "--kinds", "pro", "--limit", "-1"), "--limit -1"),
    ((*RUN, "--seeds", "one"), "invalid int value: 'one'"),
    ((*RUN, "--seeds", "-1"), "--seeds"),
    ((*RUN, "--time-limit", "-5"), "--time-limit -5"),
    ((*RUN, "--time-limit", "nan"), "--time-limit nan"),
    ((*RUN, "--workers", "0"), "--workers 0"),
    ((*RUN, "--limit", "1"), "--limit 1"),
    ((*RUN, "--watch-test", "-1"), "--watch-test -1"),
    ((*RUN, "--cache-size", "big"), "--cache-size"),
    ((*RUN, "--metric-size", "small"), "small"),
    ((*RUN, "--device", "gpu"), "gpu"),
    ((*RUN, "--weights", "nowhere"), "not a directory"),
    ((*RUN, "--weights-for", "resnet18.tv_in1k"), "TAG=FILE"),
    ((*RUN, "--textures", "nowhere"), "not a directory"),
    # views without records, and places that cannot be written
    (("compare", "patchcore@demo", "--datasets", "mvtec_ad"), "no record"),
    (("compare", "patchcore@demo", "--datasets", "own", "--metric", "auroc"), "no record has the metric 'auroc'"),
    (("report", "--results", "empty"), "no record"),
    (("report", "--out", "file/report"), "file"),
    (("report", "--out", "file"), "file"),
    (("report", "--out", "thesis"), "other files"),
    (("export", "--out", "all.xlsx"), "end the name in .csv or .parquet"),
    (("export", "--out", "file/all.csv"), "file"),
    (("export", "--out", "all.csv", "--results", "empty"), "no record"),
    (("report", "--results", "nowhere"), "--results nowhere: no such folder"),
    (("export", "--out", "thesis", "--format", "csv"), "cannot write thesis: Is a directory; choose another place"),
    (("export", "--out", "notes", "--format", "hugging-face"), "a README.md that no export wrote"),
    (("compare", "patchcore@demo", "--datasets", "own", "--plot", "file/x"), "file"),
    (("baseline", "make", "--datasets", "own", "--out", "thesis"), "cannot write thesis"),
    (("figure", "patchcore@demo", "--datasets", "own", "--out", "figures"), "--keep-maps"),
    (("figure", "patchcore@demo", "--datasets", "own", "--out", "figures", "--colormap", "magmaa"), "'magma'"),
    (("figure", "patchcore@demo", "--datasets", "own", "--out", "file/x", "--kinds", "heat"), "file"),
    (("figure", "patchcore@demo", "--datasets", "own", "--kinds", "heat"), "required: --out"),
    (("check", "--baseline", "none.json"), "none.json"),
    (("baseline", "make", "--datasets", "own", "--out", "file/b.json"), "file"),
    ((*RUN, "--results", "file"), "file"),
]


@pytest.mark.parametrize("slip, help_", SLIPS, ids=[" ".join(slip) or "nothing" for slip, _ in SLIPS])
def test_a_slip_ends_in_one_line(
    cli: Cli, place: Path, monkeypatch: pytest.MonkeyPatch, slip: tuple[str, ...], help_: str
) -> None:
    monkeypatch.chdir(place)
    before = {p: p.read_bytes() for p in sorted(place.rglob("*")) if p.is_file()}
    done = cli(*slip)
    said = done.stderr.strip().splitlines()
    assert done.returncode == 2, (done.returncode, done.stdout, done.stderr)
    assert len(said) == 1 and said[0].startswith("error: ") and help_ in said[0], done.stderr
    assert not done.stdout.strip()
    assert all(p.exists() and p.read_bytes() == held for p, held in before.items() if p.suffix != ".lock")


def test_from_python_a_slip_is_a_value_error_that_helps(place: Path) -> None:
    from benchmarks import compare, records, run, table

    results = place / "results"
    for call, help_ in (
        (lambda: records(place / "nowhere"), "nowhere: no such folder"),
        (lambda: table("rb_ae/II", results=place / "file"), "file: no such folder"),
        (lambda: table("rb_ae/IX", results=results), "no table 'IX'"),
        (lambda: compare(["patchcore@demo"], ["onw"], results=results), "did you mean 'own'"),
        (lambda: compare(["patchcore@dmeo"], ["own"], results=results), "did you mean 'demo'"),
        (lambda: run(["patchcore@demo"], ["own"], data_root=place / "nowhere"), "nowhere: no such folder"),
        (lambda: run(["patchcore@demo"], ["own"], data_rot=place / "data"), "did you mean 'data_root'"),
        (lambda: run(["patchcore@demo"], ["own"], data_root=place / "data", settings={"padim.size": 9}), "not among"),
    ):
        with pytest.raises(ValueError, match=help_):
            call()


def test_no_suggestion_is_made_twice(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "mvtec_ad").mkdir()
    done = cli("run", "--methods", "patchcore@demo", "--datasets", "mvtec_aad", "--data-root", tmp_path)
    assert done.stderr.count("'mvtec_ad'") == 1, done.stderr


def test_a_missing_package_is_named(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tabulate", None)
    done = cli("list", "tables")
    assert done.returncode == 2 and "the package tabulate is not installed here" in done.stderr
    assert "pip install -r requirements.txt" in done.stderr


def test_one_reason_is_told_once() -> None:
    from benchmarks.commands.common import count, together

    told = together([(f"padim seed {i}", "no weights") for i in range(8)] + [("ast", "NaN scores")])
    assert told == [
        "8 (padim seed 0, padim seed 1, padim seed 2, padim seed 3 and 4 more): no weights", "ast: NaN scores",
    ]
    assert (count(1, "unit"), count(2, "unit"), count(0, "unit")) == ("1 unit", "2 units", "0 units")


def test_the_demo_keeps_what_other_methods_gave_and_takes_small_presets(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from benchmarks.commands import running
    from datasets import demo as embedded

    seen = []
    monkeypatch.setattr(embedded, "make", lambda root: [
        make_mvtec(root / name / "brick", train=3, good=2, bad=2) for name in ("demo", "demo_loco")
    ])
    monkeypatch.setattr(running, "_launch", lambda args, plan: (seen.append(plan), (0, []))[1])
    folder = tmp_path / "runs" / "demo" / "brick" / "padim@demo"
    folder.mkdir(parents=True)
    (folder / "seed0-0123456789.json").write_text(json.dumps(
        make_record("padim@demo", "brick", dataset="demo", image_auroc=0.9)))
    done = cli("demo", "--methods", "patchcore", "--results", tmp_path)
    assert {job.unit.spec for job in seen[0].jobs} == {"patchcore@demo"}, done.stderr
    assert "padim@demo" in done.stdout, "what an earlier demo measured is still in the table"


def test_data_that_the_tables_need_and_lack_end_in_1(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from benchmarks.commands import running

    make_mvtec(tmp_path / "data" / "mvtec_ad" / "wood", train=3, good=2, bad=2)
    monkeypatch.setattr(running, "_launch", lambda args, plan: (0, []))
    arguments = ("reproduce", "--paper", "rb_ae", "--table", "II", "--data-root", tmp_path / "data", "--results",
                 tmp_path / "r", "--weights", "none")
    partial = cli(*arguments)
    assert partial.returncode == 1 and "incomplete: mvtec_ad lacks carpet, grid, leather, tile" in partial.stderr
    assert cli(*arguments, "--categories", "wood").returncode == 0
    assert cli(*arguments, "--dry-run").returncode == 0
