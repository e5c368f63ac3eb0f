"""The command line end to end on made data: runs, resumes, fails one unit at a time, refuses wrong use."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.store import Store
from tests.conftest import REPO, Cli


def run_args(data_root: Path, results: Path, *more: object) -> list[object]:
    return ["run", "--datasets", "parts", "--data-root", data_root, "--results", results, "--weights", "none",
            "--device", "cpu", "--quiet", *more]


def metrics(results: Path) -> dict[str, dict]:
    return {
        "{dataset}/{category} {method}@{preset} {seed}".format(**r["unit"]): r["metrics"]
        for r in Store(results).records()
    }


def test_run_then_resume_then_other_seed(cli: Cli, data_root: Path, tmp_path: Path) -> None:
    done = cli(*run_args(data_root, tmp_path, "--methods", "fake"))
    assert done.returncode == 0, done.stderr
    assert "2 units: 2 run now" in done.stderr and "nut" in done.stdout and "plate" in done.stdout
    records = Store(tmp_path).records()
    assert len(records) == 2
    record = records[0]
    assert record["images"] | {"scores": ""} == {
        "train": 6, "validation": 0, "test": 8, "test_good": 4, "test_anomalous": 4, "sizes": "48x40", "scores": "",
    }
    assert 0.5 < record["metrics"]["pixel_auroc"] <= 1 and record["protocol"]["image_score"] == "max"
    assert record["environment"]["command"].startswith("python run_benchmark.py run --methods fake@plain")
    assert record["training"]["loss"] == [1.0, 0.5] and record["memory"]["peak_host_mb"] > 50
    again = cli(*run_args(data_root, tmp_path, "--methods", "fake"))
    assert again.returncode == 0 and "0 run now, 2 finished before" in again.stderr
    assert again.stdout == done.stdout
    more = cli(*run_args(data_root, tmp_path, "--methods", "fake", "--seeds", 0, 1))
    assert "4 units: 2 run now, 2 finished before" in more.stderr


def test_weights_of_a_folder_are_part_of_what_is_resumed(cli: Cli, data_root: Path, tmp_path: Path) -> None:
    import torch
    from torchvision.models import resnet18

    folder, results = tmp_path / "weights", tmp_path / "results"
    folder.mkdir()
    command = ["run", "--datasets", "parts", "--categories", "nut", "--data-root", data_root, "--results", results,
               "--weights", folder, "--device", "cpu", "--quiet", "--methods", "padim@demo"]
    for expected in ("1 run now", "0 run now"), ("1 run now", "0 run now"):  # a second file of the same name
        torch.save(resnet18().state_dict(), folder / "resnet18.tv_in1k.pth")
        for count in expected:
            done = cli(*command)
            assert done.returncode == 0 and count in done.stderr, done.stderr
    assert Store(results).records()[0]["weights"]["resnet18.tv_in1k"]["file"] == "resnet18.tv_in1k.pth"


def test_substitute_weights_are_named_marked_and_another_record(cli: Cli, data_root: Path, tmp_path: Path) -> None:
    import hashlib

    import torch
    from torchvision.models import resnet18

    results = tmp_path / "results"
    command = ["run", "--datasets", "parts", "--categories", "nut", "--data-root", data_root, "--results", results,
               "--weights", "none", "--device", "cpu", "--quiet", "--methods", "padim@demo"]
    untrained = cli(*command)
    assert untrained.returncode == 0 and "†" in untrained.stdout and "△" not in untrained.stdout
    files = []
    for name in ("one.pth", "two.pth"):  # other content is another record; the same content is not run again
        files.append(tmp_path / name)
        torch.save(resnet18().state_dict(), files[-1])
        for count in ("1 run now", "0 run now"):
            done = cli(*command, "--weights-for", f"resnet18.tv_in1k={files[-1]}")
            assert done.returncode == 0 and count in done.stderr, done.stderr
    records = [r for r in Store(results).records() if r["marks"] != ["untrained", "short"]]
    used = [r["weights"]["resnet18.tv_in1k"] for r in records]
    assert sorted(used, key=lambda u: u["file"]) == [
        {"sha256": hashlib.sha256(f.read_bytes()).hexdigest(), "file": f.name, "substitute": True} for f in files
    ]
    assert all("other_weights" in r["marks"] and "untrained" not in r["marks"] for r in records)
    assert "△" in done.stdout and "other pretrained weights than the preset names" in done.stdout
    assert any("--weights-for resnet18.tv_in1k=two.pth" in r["environment"]["command"] for r in records)


def test_a_substitute_that_nobody_asks_for_is_noted(cli: Cli, data_root: Path, tmp_path: Path) -> None:
    import torch

    torch.save({"a": torch.ones(1)}, tmp_path / "a.pth")
    done = cli(*run_args(data_root, tmp_path, "--methods", "fake", "--weights-for", f"vgg19.tv_in1k={tmp_path}/a.pth"))
    assert done.returncode == 0, done.stderr
    for record in Store(tmp_path).records():
        assert "other_weights" not in record["marks"] and record["weights"] == {}
        assert "--weights-for vgg19.tv_in1k: no network of this unit asked for these weights" in record["notes"]


def test_a_substitute_of_another_shape_names_the_first_layer_before_training(
    cli: Cli, data_root: Path, tmp_path: Path
) -> None:
    import torch
    from torchvision.models import vgg11

    torch.save(vgg11().features.state_dict(prefix="features."), tmp_path / "v.pth")
    done = cli(*run_args(data_root, tmp_path, "--methods", "gen_encdec@quick", "--categories", "nut",
                         "--weights-for", f"vgg19.tv_in1k={tmp_path / 'v.pth'}"))
    assert done.returncode == 1 and "Traceback" not in done.stderr
    (failed,) = Store(tmp_path).records(failed=True)
    assert failed["error"]["phase"] == "build"
    assert "v.pth lacks" in failed["error"]["message"] and "first 'features.2.weight'" in failed["error"]["message"]


def test_the_same_unit_twice_gives_the_same_metrics_bit_for_bit(cli: Cli, data_root: Path, tmp_path: Path) -> None:
    for folder in ("a", "b"):
        assert cli(*run_args(data_root, tmp_path / folder, "--methods", "fake@noisy", "--seeds", 5)).returncode == 0
    assert metrics(tmp_path / "a") == metrics(tmp_path / "b")


def test_workers_share_the_units_and_change_no_number(cli: Cli, data_root: Path, tmp_path: Path) -> None:
    for folder, workers in (("a", 1), ("b", 3)):
        done = cli(*run_args(data_root, tmp_path / folder, "--methods", "fake", "fake@noisy", "--seeds", 0, 1,
                             "--workers", workers))
        assert done.returncode == 0, done.stderr
    assert len(metrics(tmp_path / "a")) == 8
    assert metrics(tmp_path / "a") == metrics(tmp_path / "b")


def test_a_hanging_unit_ends_at_its_time_limit(cli: Cli, data_root: Path, tmp_path: Path) -> None:
    done = cli(*run_args(data_root, tmp_path, "--methods", "fake_bad@hang", "fake", "--categories", "nut",
                         "--time-limit", 8))
    assert done.returncode == 1 and "passed the time limit of 8 s" in done.stderr
    assert list(metrics(tmp_path)) == ["parts/nut fake@plain 0"]


def test_what_a_training_says_of_itself_marks_the_record(cli: Cli, data_root: Path, tmp_path: Path) -> None:
    done = cli(*run_args(data_root, tmp_path, "--methods", "fake", "--set", "how=floor", "--categories", "nut"))
    assert done.returncode == 0, done.stderr
    (record,) = Store(tmp_path).records()
    assert record["marks"] == ["modified", "floor"]
    assert "no better than the mean picture" in record["notes"]
    assert not {"marks", "notes"} & set(record["training"])


def test_constant_scores_are_half_and_noted(cli: Cli, data_root: Path, tmp_path: Path) -> None:
    assert cli(*run_args(data_root, tmp_path, "--methods", "fake_bad@constant", "--categories", "nut")).returncode == 0
    record = Store(tmp_path).records()[0]
    assert record["metrics"]["image_auroc"] == 0.5 == record["metrics"]["pixel_auroc"]
    assert "every test picture got the same score" in record["notes"]


@pytest.mark.parametrize(("arguments", "words"), [
    (["--methods", "fak"], "did you mean 'fake'"),
    (["--methods", "fake@plan"], "did you mean 'plain'"),
    (["--methods", "fake", "--set", "siz=3"], "did you mean 'size'"),
    (["--methods", "fake", "--set", "size"], "write field=value"),
    (["--methods", "fake", "--categories", "nutt"], "did you mean 'nut'"),
    (["--methods", "fake", "--metric-size", "big"], "--metric-size 'big'"),
    (["--methods", "fake", "--weights", "no/such"], "--weights no/such: not a directory"),
    (["--methods", "fake", "--weights-for", "vgg19.tv_in1k"], "write one TAG=FILE per tag"),
    (["--methods", "fake", "--weights-for", "v.tv=a.pth", "v.tv=b.pth"], "write one TAG=FILE per tag"),
    (["--methods", "fake", "--weights-for", "vgg19.tv_in1k=no/such"], "no/such: no such file"),
    (["--methods", "fake", "--weights-for", f"vgg19.tv_in1k={__file__}"], "cannot be read as weights"),
    (["--methods", "fake", "--seeds", "-1"], "--seeds"),
    (["--methods", "fake", "--workers", "0"], "--workers 0"),
    (["--methods", "fake", "--cache-size", "lots"], "--cache-size 'lots'"),
    (["--methods", "fake", "--datasets", "mvtec_a"], "mvtec_a"),
    (["--methods", "fake", "--data-root", "no/such/root"], "no/such/root"),
])
def test_wrong_use_is_exit_2_without_a_traceback(
    cli: Cli, data_root: Path, tmp_path: Path, arguments: list[str], words: str
) -> None:
    done = cli(*run_args(data_root, tmp_path, *arguments))
    assert done.returncode == 2, done.stderr
    assert words in done.stderr and "Traceback" not in done.stderr
    assert not Store(tmp_path).records(failed=True)


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write everywhere")
def test_read_only_results(cli: Cli, data_root: Path, tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    done = cli(*run_args(data_root, tmp_path / "r", "--methods", "fake"))
    assert done.returncode == 1 and "--results" in done.stderr and "Traceback" not in done.stderr


def test_results_below_a_file_cannot_be_written(cli: Cli, data_root: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    done = cli(*run_args(data_root, tmp_path / "file" / "r", "--methods", "fake"))
    assert done.returncode == 2 and "Not a directory; choose another place for it" in done.stderr
    assert "Traceback" not in done.stderr


def test_settings_are_another_record_and_marked(cli: Cli, data_root: Path, tmp_path: Path) -> None:
    for more in ([], ["--set", "fake.size=16"], ["--metric-size", "32"], ["--metric-size", "model"]):
        done = cli(*run_args(data_root, tmp_path, "--methods", "fake", "--categories", "nut", *more))
        assert "1 run now" in done.stderr, done.stderr
    marks = [r["marks"] for r in Store(tmp_path).records()]
    assert len(marks) == 4 and sum("modified" in m for m in marks) == 1


@pytest.fixture
def own(data_root: Path, tmp_path: Path) -> Iterator[Path]:
    """A copy of the data that a test may break."""
    root = tmp_path / "data"
    shutil.copytree(data_root, root)
    yield root


@pytest.mark.parametrize(("breakage", "words"), [
    ("truncated", "003.png"), ("text", "003.png"), ("mask missing", "002"), ("mask size", "002"),
    ("mask empty", "002"),
])
def test_broken_data_fails_its_own_category_only(
    cli: Cli, own: Path, tmp_path: Path, breakage: str, words: str
) -> None:
    picture = own / "parts/nut/train/good/003.png"
    mask = own / "parts/nut/ground_truth/spot/002_mask.png"
    match breakage:
        case "truncated":
            picture.write_bytes(picture.read_bytes()[:200])
        case "text":
            picture.write_text("not a picture")
        case "mask missing":
            mask.unlink()
        case "mask size":
            Image.fromarray(np.full((5, 5), 255, np.uint8)).save(mask)
        case "mask empty":
            Image.fromarray(np.zeros((40, 48), np.uint8)).save(mask)
    done = cli(*run_args(own, tmp_path / "r", "--methods", "fake"))
    assert done.returncode == 1, done.stderr
    assert "FAILED" in done.stderr and words in done.stderr and "Traceback" not in done.stderr
    assert list(metrics(tmp_path / "r")) == ["parts/plate fake@plain 0"]


@pytest.mark.parametrize(("folder", "undefined"), [("test/good", True), ("test/spot", True), ("test", False)])
def test_missing_kinds_of_test_pictures(
    cli: Cli, own: Path, tmp_path: Path, folder: str, undefined: bool
) -> None:
    shutil.rmtree(own / "parts/nut" / folder)
    done = cli(*run_args(own, tmp_path / "r", "--methods", "fake"))
    if not undefined:
        assert done.returncode == 1 and "FAILED parts/nut" in done.stderr
        return
    assert done.returncode == 0, done.stderr
    record = next(r for r in Store(tmp_path / "r").records() if r["unit"]["category"] == "nut")
    assert record["metrics"]["image_auroc"] is None and record["undefined"]["image_auroc"]


def test_a_dataset_named_by_a_yaml_file(cli: Cli, data_root: Path, tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text(f"name: mine\nroot: {data_root / 'parts'}\ncategories: [plate]\n")
    done = cli("run", "--methods", "fake", "--datasets", tmp_path / "own.yaml", "--results", tmp_path / "r",
               "--weights", "none", "--quiet")
    assert done.returncode == 0, done.stderr
    assert list(metrics(tmp_path / "r")) == ["mine/plate fake@plain 0"]


def test_changed_data_is_run_again(cli: Cli, own: Path, tmp_path: Path) -> None:
    first = cli(*run_args(own, tmp_path / "r", "--methods", "fake", "--categories", "nut"))
    assert "1 run now" in first.stderr
    path = own / "parts/nut/test/good/000.png"
    image = np.array(Image.open(path))
    image[0, 0, 0] ^= 1
    Image.fromarray(image).save(path)
    again = cli(*run_args(own, tmp_path / "r", "--methods", "fake", "--categories", "nut"))
    assert "1 run now, 0 finished before" in again.stderr


def start(*arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(REPO / "run_benchmark.py"), *map(str, arguments)], cwd=REPO, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )


def wait_for_records(results: Path, count: int, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while len(list((results / "runs").rglob("seed*.json"))) < count:
        assert time.monotonic() < end, "no records appeared"
        time.sleep(0.02)


def test_kill_in_the_third_unit_then_run_again(cli: Cli, data_root: Path, tmp_path: Path) -> None:
    arguments = run_args(data_root, tmp_path, "--methods", "fake@slow", "--seeds", 0, 1, "--set", "wait=0.15")
    process = start(*arguments)
    wait_for_records(tmp_path, 2)
    time.sleep(0.2)
    process.kill()
    process.communicate()
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "runs").rglob("seed*.json")}
    assert len(before) == 2
    done = cli(*arguments)
    assert done.returncode == 0 and "4 units: 2 run now, 2 finished before" in done.stderr
    assert all(p.stat().st_mtime_ns == time_ for p, time_ in before.items()), "a finished unit was run again"
    undisturbed = tmp_path / "undisturbed"
    assert cli(*run_args(data_root, undisturbed, *arguments[arguments.index("--quiet") + 1 :])).returncode == 0
    assert metrics(tmp_path) == {**metrics(undisturbed)}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_in_order(data_root: Path, tmp_path: Path, number: signal.Signals) -> None:
    process = start(*run_args(data_root, tmp_path, "--methods", "fake@slow", "--seeds", 0, 1, 2, 3,
                              "--set", "wait=0.3"))
    wait_for_records(tmp_path, 1)
    process.send_signal(number)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130 and "the same command goes on" in stderr and "Traceback" not in stderr
    assert 1 <= len(Store(tmp_path).records(failed=True)) < 8
    assert all(r["status"] == "ok" for r in Store(tmp_path).records(failed=True))


def test_two_runs_at_once_share_the_work(data_root: Path, tmp_path: Path) -> None:
    arguments = run_args(data_root, tmp_path, "--methods", "fake@slow", "--seeds", *range(4))
    both = [start(*arguments) for _ in range(2)]
    outputs = [p.communicate(timeout=240)[1] for p in both]
    assert [p.returncode for p in both] == [0, 0], outputs
    assert len(metrics(tmp_path)) == 8
    ran = [int(o.split(" run now")[0].rpartition(" ")[2]) for o in outputs]
    assert all("8 units" in o for o in outputs), outputs
    stamps = [json.loads(p.read_text())["environment"]["started"] for p in (tmp_path / "runs").rglob("seed*.json")]
    assert len(set(stamps)) == 8 and sum(ran) == 8


def test_kept_maps_are_raw_float32_at_the_original_size(cli: Cli, data_root: Path, tmp_path: Path) -> None:
    import tifffile

    assert cli(*run_args(data_root, tmp_path, "--methods", "fake", "--categories", "nut", "--keep-maps")
               ).returncode == 0
    maps = sorted((tmp_path / "maps").rglob("*.tiff"))
    assert len(maps) == 8 and maps[0].parts[-4:-1] == ("nut", "test", "good")
    array = tifffile.imread(maps[0])
    assert array.dtype == np.float32 and array.shape == (40, 48)
    panel = np.asarray(Image.open(maps[0].with_name(f"{maps[0].stem}.reconstruction.png")))
    assert panel.dtype == np.uint8 and panel.shape[2] == 3 and panel.std() > 0
    done = cli("figure", "fake", "--datasets", "parts", "--data-root", data_root, "--results", tmp_path,
               "--out", tmp_path / "figures")
    assert done.returncode == 0, done.stderr
    assert Image.open(tmp_path / "figures" / "fake@plain-parts-nut.png").size[0] > 300
    done = cli("figure", "fake", "--datasets", "other", "--results", tmp_path, "--out", tmp_path)
    assert done.returncode == 2 and "no record on other" in done.stderr
    shutil.copytree(data_root / "parts", tmp_path / "own" / "demo")  # a demo set that lies under another data root
    own = ("--datasets", "demo", "--categories", "nut", "--data-root", tmp_path / "own", "--results", tmp_path / "b")
    assert cli("run", "--methods", "fake", *own, "--keep-maps").returncode == 0
    done = cli("figure", "fake", *own, "--out", tmp_path / "figures")
    assert done.returncode == 0, done.stderr
    maps_dir = maps[0].parents[3]
    scored = subprocess.run(
        [sys.executable, "-m", "benchmarks.metrics", str(maps_dir), str(data_root / "parts")],
        cwd=REPO, capture_output=True, text=True, check=True,
    )
    record = Store(tmp_path).records()[0]
    alone = json.loads(scored.stdout)["categories"]["nut"]["metrics"]
    assert alone == record["metrics"], "the stand-alone command differs"


def test_every_preset_of_every_method_can_be_planned(data_root: Path, tmp_path: Path) -> None:
    """All together: jobs are ordered by what they share, whatever the fields of a method mean."""
    from benchmarks.plan import Options, make_plan
    from models import registry

    specs = [f"{e.name}@{preset}" for e in registry.entries().values() for preset in e.presets]
    jobs = make_plan(specs, ["parts"], Options(data_root=data_root, results=tmp_path, weights="none")).jobs
    assert {job.unit.spec for job in jobs} == set(specs)
