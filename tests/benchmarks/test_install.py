"""How it is installed: only editable, with exact versions, and in containers."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml

import run_benchmark
from tests.conftest import REPO


def pip(*arguments: str | Path) -> subprocess.CompletedProcess:
    """pip without a network, building with the setuptools that is installed."""
    command = [sys.executable, "-m", "pip", *map(str, arguments), "--no-index", "--no-deps", "--no-build-isolation",
               "--disable-pip-version-check"]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of what pip reads, so that nothing is written into the repository."""
    place = tmp_path / "checkout"
    place.mkdir()
    for name in ("pyproject.toml", "requirements.txt", "LICENSE", "README.md", ".packaging", "run_benchmark.py",
                 "benchmarks", "datasets", "models"):
        (place / name).symlink_to(REPO / name)
    return place


def test_a_plain_install_is_refused_in_one_line(checkout: Path, tmp_path: Path) -> None:
    pytest.importorskip("setuptools", minversion="70.1")
    done = pip("install", checkout, "--target", tmp_path / "site")
    lines = [line.strip() for line in done.stderr.splitlines() if "pip install -e ." in line]
    assert done.returncode == 1 and len(lines) == 1 and "anomaly-bench" in lines[0], done.stderr
    assert "Traceback" not in done.stderr and not (tmp_path / "site").exists()


def test_an_editable_install_gives_the_command(checkout: Path, tmp_path: Path) -> None:
    pytest.importorskip("setuptools", minversion="70.1")
    code = f"import sys; sys.path.insert(0, '.packaging'); import backend; backend.build_editable({str(tmp_path)!r})"
    done = subprocess.run([sys.executable, "-c", code], cwd=checkout, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        text = {Path(name).name: wheel.read(name).decode() for name in wheel.namelist()}
    assert "anomaly-bench = run_benchmark:main" in text["entry_points.txt"]
    assert "Requires-Dist: torch==2.11.0" in text["METADATA"]


def test_the_command_finds_its_own_folders_first(tmp_path: Path) -> None:
    (tmp_path / "datasets").mkdir()
    (tmp_path / "datasets" / "__init__.py").write_text("raise ImportError('the other datasets')\n")
    code = f"import sys; sys.path.append({str(REPO)!r}); import run_benchmark; run_benchmark.main()"
    done = subprocess.run([sys.executable, "-c", code, "list", "datasets"], cwd=tmp_path, capture_output=True,
                          text=True, env=os.environ | {"PYTHONPATH": str(tmp_path)}, check=False)
    assert done.returncode == 0 and "mvtec_ad" in done.stdout, done.stderr


def pinned() -> dict[str, str]:
    """Name -> version of requirements.lock."""
    lines = (REPO / "requirements.lock").read_text().splitlines()
    return dict(re.fullmatch(r"([\w.-]+)==(\S+)(?: ; .*)?", line).groups() for line in lines if line[0] != "#")


def test_the_lock_has_one_exact_version_of_all_that_is_asked_for() -> None:
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    held = {canonicalize_name(name): version for name, version in pinned().items()}
    assert len(held) == len(pinned())
    assert (held["torch"], held["torchvision"], held["anomalib"]) == ("2.11.0", "0.26.0", "2.7.0")
    for file in ("requirements.txt", "requirements-dev.txt", "requirements-cluster.txt"):
        for line in (REPO / file).read_text().splitlines():
            if (text := line.partition("#")[0].strip()) and not text.startswith("-r"):
                asked = Requirement(text)
                version = held[canonicalize_name(asked.name)]
                assert asked.specifier.contains(version), f"{line}: requirements.lock has {version}; run make lock"


def test_both_commands_install_from_the_lock() -> None:
    dry = {"cwd": REPO, "capture_output": True, "text": True, "check": True}
    said = subprocess.run(["make", "-n", "-B", "reproduce", "test"], **dry)
    installs = [line for line in said.stdout.splitlines() if " pip install " in line]
    assert len(installs) == 2 and all("-c requirements.lock -r requirements" in line for line in installs)
    newest = subprocess.run(["make", "-n", "-B", "test", "LOCK="], **dry)
    assert "requirements.lock" not in newest.stdout
    job = yaml.safe_load((REPO / ".github" / "workflows" / "newest.yml").read_text())
    assert {"run": "make test LOCK="} in job["jobs"]["test"]["steps"]


def test_the_dockerfile_names_what_is_there() -> None:
    text = (REPO / "Dockerfile").read_text()
    copied = [name for line in re.findall(r"^COPY (.+) \S+$", text, re.M) for name in line.split()]
    assert "requirements.lock" in copied and all((REPO / name).exists() for name in copied)
    (entry,), (default,) = (re.findall(rf"^{word} (\[.*\])$", text, re.M) for word in ("ENTRYPOINT", "CMD"))
    done = subprocess.run([sys.executable, *json.loads(entry)[1:], *json.loads(default)], cwd=REPO, capture_output=True,
                          text=True, check=False)
    assert done.returncode == 0 and "reproduce" in done.stdout
    for line in re.findall(r"^#   docker run .*? anomaly-bench\S* (.+)$", text, re.M):
        run_benchmark.parser().parse_args(line.split())
    ignored = (REPO / ".dockerignore").read_text().split()
    assert not {"benchmarks", "models", "datasets", ".git", "requirements.lock"} & set(ignored)
    assert {"!results/published", "!results/baselines"} <= set(ignored), "the tables need the published figures"


def test_hadolint_finds_nothing_in_the_dockerfile() -> None:
    program = Path(sys.executable).with_name("hadolint")
    if not program.exists():
        pytest.skip("hadolint is not installed")
    done = subprocess.run([program, REPO / "Dockerfile"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
