"""Broken records, baselines, dataset files, defect lists and settings by the hundred, through the command line.

Every one must end in exit code 0, 1 or 2 with a message, never in a traceback. `-s` prints the counts; BENCH_FUZZ=400
makes more of them.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import regression
from benchmarks.plan import Options, make_plan
from benchmarks.runner import run_unit
from benchmarks.store import Store
from tests.benchmarks.test_regression import record as plain_record
from tests.conftest import Cli, Done
from tests.datasets.conftest import DEFECTS, make_loco
from tests.datasets.test_fuzz import broken

WRONG: tuple[Any, ...] = (
    None, True, False, 0, -1, 3, 1e308, 0.5, "", "x", "../../x", "\u0000", "é" * 50, [], [[]], [None, {}], {},
    {"a": [1]}, 10**30, "2" * 400,
)
LIMIT = int(os.environ.get("BENCH_FUZZ", "60"))  # of each kind


def wrong_values(data: Any, seed: int, count: int) -> Iterator[Any]:
    """Copies of a JSON value in which one to three places hold another type, lack, or are doubled."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        copy = json.loads(json.dumps(data))
        for _ in range(int(rng.integers(1, 4))):
            places = list(_places(copy))
            parent, key = places[int(rng.integers(len(places)))]
            if rng.random() < 0.2 and isinstance(parent, dict):
                del parent[key]
            else:
                parent[key] = deepcopy(WRONG[int(rng.integers(len(WRONG)))])
        yield copy


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    for key in list(value) if isinstance(value, dict) else range(len(value)):
        yield value, key
        if isinstance(value[key], dict | list):
            yield from _places(value[key])


def all_broken(data: Any, seed: int, count: int = LIMIT) -> Iterator[bytes]:
    """Wrong types in valid JSON, then damaged bytes, cuts, NaN and nesting beyond any parser."""
    text = json.dumps(data)
    yield from (json.dumps(value).encode() for value in wrong_values(data, seed, count))
    yield from broken(text.encode(), seed + 1, count)
    yield from (text[: len(text) * i // 20].encode() for i in range(20))
    yield b"[" * 100_000
    yield b'{"a":' * 100_000
    yield text.replace("0.", "NaN", 1).encode()
    yield text.replace("0.", "1e999", 1).encode()
    yield b"\xff\xfe" + text.encode("utf-16-le")


@pytest.fixture(scope="module")
def finished(data_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results of one unit with three seeds, on which views and the check can be called."""
    results = tmp_path_factory.mktemp("finished")
    options = Options(data_root=data_root, results=results, weights="none", device="cpu", settings={"size": "16"})
    for job in make_plan(["fake"], ["parts"], options, categories=["nut"], seeds=range(3)).jobs:
        assert run_unit(job, lambda *_: None)["status"] == "ok"
    return results


def fine(done: Done, case: object) -> int:
    assert done.returncode in (0, 1, 2) and "Traceback" not in done.stderr, (case, done.stderr)
    assert done.returncode == 0 or done.stderr.strip() or done.stdout.strip(), (case, "no message")
    return done.returncode


def test_broken_records(cli: Cli, finished: Path, tmp_path: Path) -> None:
    results = tmp_path / "r"
    shutil.copytree(finished, results)
    path = sorted((results / "runs").rglob("seed0-*.json"))[0]
    whole = json.loads(path.read_text())
    baseline = tmp_path / "b.json"
    assert cli("baseline", "make", "--datasets", "parts", "--results", results, "--out", baseline).returncode == 0
    codes: Counter[str] = Counter()
    for i, data in enumerate(all_broken(whole, seed=1)):
        path.write_bytes(data)
        store = Store(results)
        kept = len(store.records())
        assert kept + len(store.broken) == 3, (i, data[:300])
        codes["left out" if store.broken else "read"] += 1
        codes[f"check {fine(cli('check', '--baseline', baseline, '--results', results), data)}"] += 1
        if i % 4 == 0:
            compared = cli("compare", "fake", "fake@noisy", "--datasets", "parts", "--results", results)
            codes[f"compare {fine(compared, data)}"] += 1
        if i % 40 == 0:
            codes[f"report {fine(cli('report', '--results', results, '--out', tmp_path / 'html'), data)}"] += 1
    print("records:", dict(codes))
    assert codes["left out"] > LIMIT and codes["read"] > 0


def test_a_broken_record_is_run_again(cli: Cli, data_root: Path, finished: Path, tmp_path: Path) -> None:
    results = tmp_path / "r"
    shutil.copytree(finished, results)
    options = Options(data_root=data_root, results=results, weights="none", device="cpu", settings={"size": "16"})
    plan = make_plan(["fake"], ["parts"], options, categories=["nut"], seeds=range(3))
    store = Store(results)
    path = store.path(plan.jobs[0])
    whole = path.read_bytes()
    again = 0
    for data in all_broken(json.loads(whole), seed=2):
        path.write_bytes(data)
        missing = plan.open(store)
        assert missing in ([], [plan.jobs[0]])
        again += bool(missing)
        if not missing:  # what is taken for finished has all that a record needs
            assert store.load(plan.jobs[0])["config_hash"] == plan.jobs[0].config_hash
    print("resume:", again, "of", 2 * LIMIT + 25, "broken records are run again")
    assert again > LIMIT


def test_broken_baselines(cli: Cli, finished: Path, tmp_path: Path) -> None:
    records = [plain_record(s, category, 0.8 + s / 100) for s in range(3) for category in "ab"]
    baseline, path = regression.make_baseline(records, "x"), tmp_path / "b.json"
    codes: Counter[int] = Counter()
    for data in all_broken(baseline, seed=3):
        path.write_bytes(data)
        codes[fine(cli("check", "--baseline", path, "--results", finished), data)] += 1
        try:
            lines = regression.compare(regression.read_baseline(path), records)
        except regression.UsageError as error:
            assert str(path) in str(error)
        else:
            assert regression.junit(lines) and regression.summary(lines) and regression.exit_code(lines) in (0, 1, 2)
            regression.table(lines)
    print("baselines:", dict(codes))
    assert set(codes) == {2}, "records of other units cannot be judged"


def test_broken_fingerprint_memory(data_root: Path, tmp_path: Path) -> None:
    """The file that remembers content hashes is no source of truth: whatever it holds, planning goes on."""
    options = Options(data_root=data_root, results=tmp_path, weights="none", device="cpu")
    time.sleep(2.1)  # what changed within two seconds is not remembered
    planned = make_plan(["fake"], ["parts"], options).jobs
    path = tmp_path / "runs" / ".fingerprints.json"
    memory = json.loads(path.read_text())
    for data in all_broken(memory, seed=4, count=100):
        path.write_bytes(data)
        assert len(make_plan(["fake"], ["parts"], options).jobs) == len(planned), data[:200]


def plan_only(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> Cli:
    """The command line up to the point where units would run."""
    from benchmarks.launchers import local

    monkeypatch.setattr(local, "run", lambda jobs, **_: local.Outcome(finished=len(jobs)))
    return cli


def test_broken_dataset_files(cli: Cli, data_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    call, path = plan_only(cli, monkeypatch), tmp_path / "set.yaml"
    text = f"name: button\nroot: {data_root / 'parts'}\ncategories: [nut]\n"
    plain = {"name": "button", "root": str(data_root / "parts"), "categories": ["nut"]}
    bombs = [
        b"a: &a [x,x,x,x,x,x,x,x,x]\n" + b"".join(
            b"%c: &%c [%s]\n" % (98 + i, 98 + i, b",".join([b"*%c" % (97 + i)] * 9)) for i in range(9)),
        b"[" * 5000, b"!!python/object/apply:os.system ['true']", b"&a [*a]", b"? {a: b}\n: c", b"name: !!binary x",
    ]
    codes: Counter[int] = Counter()
    for data in [*all_broken(plain, seed=5), *broken(text.encode(), 6, LIMIT), *bombs]:
        path.write_bytes(data)
        codes[fine(call("run", "--methods", "fake", "--datasets", path, "--results", tmp_path / "r", "--weights",
                        "none", "--quiet"), data[:300])] += 1
    print("dataset files:", dict(codes))
    assert codes[2] > LIMIT and codes[0] > 0


def test_broken_defect_lists(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    call = plan_only(cli, monkeypatch)
    root = make_loco(tmp_path / "data" / "own" / "tray")
    codes: Counter[int] = Counter()
    for data in all_broken(DEFECTS, seed=7):
        (root / "defects_config.json").write_bytes(data)
        codes[fine(call("run", "--methods", "fake", "--datasets", "own", "--data-root", tmp_path / "data", "--results",
                        tmp_path / "r", "--weights", "none", "--quiet"), data[:300])] += 1
    print("defect lists:", dict(codes))
    assert codes[1] + codes[2] > LIMIT


def test_broken_settings(cli: Cli, data_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    call, rng = plan_only(cli, monkeypatch), np.random.default_rng(8)
    keys = ["size", "noise", "wait", "how", "batch", "fake.size", "fake.", ".size", "", "fak.size", "layers", "=",
            "a.b.c", "coreset", "patchcore.layers", "patchcore.crop", "patchcore.upsample", "crop"]
    values = ["", "1", "-1", "0", "nan", "inf", "1e999", "None", "none", "True", "[1,2]", "a,b", "(", "9" * 400,
              "é\u202e", "0x10", "1_000", " 3 ", "=", "a=b", "\n", "{}", "1.5", "--force"]
    flags = [("--seeds", ["-1", "x", "1.5", "9" * 30, "0"]), ("--metric-size", ["0", "model", "1e3", "99999", "-3"]),
             ("--workers", ["0", "-2", "x", "1"]), ("--cache-size", ["", "1XB", "-1GB", "1e9", "5GB", "9" * 50]),
             ("--time-limit", ["x", "-1", "nan", "1e400", "3"]), ("--device", ["cuda:99", "gpu", "cpu", ""]),
             ("--weights", ["", "none", "/", "auto"]), ("--textures", ["", "embedded", "no"]),
             ("--categories", ["", "nut", "../nut"]), ("--data-root", ["", "/dev/null"])]
    codes: Counter[int] = Counter()
    for _ in range(2 * LIMIT):
        pairs = [f"{rng.choice(keys)}={rng.choice(values)}" for _ in range(int(rng.integers(1, 3)))]
        if rng.random() < 0.2:
            pairs[0] = pairs[0].replace("=", "")
        arguments = ["run", "--methods", str(rng.choice(["fake", "patchcore@demo", "fake@", "@", "anomalib/", "x y"])),
                     "--datasets", "parts", "--data-root", str(data_root), "--results", str(tmp_path), "--weights",
                     "none", "--quiet", f"--set={pairs[0]}", *(f"--set={pair}" for pair in pairs[1:])]
        if rng.random() < 0.6:
            flag, choices = flags[int(rng.integers(len(flags)))]
            arguments.append(f"{flag}={rng.choice(choices)}")
        codes[fine(call(*arguments), arguments)] += 1
    print("settings:", dict(codes))
    assert codes[2] > LIMIT / 2 and codes[0] > 0
