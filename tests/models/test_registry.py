"""Registry: discovery without imports, collisions, near names, typed settings."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from models import registry
from models.base import ModelError

REPO = Path(__file__).parents[2]


def test_listing_imports_neither_torch_nor_a_method() -> None:
    code = (
        "import sys; from models import registry; registry.entries(); "
        "print(sorted({'torch', 'anomalib', 'timm', 'fakes'} & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"


@pytest.mark.parametrize("first", ["timm", "anomalib", "torchvision"])
@pytest.mark.parametrize("ours_first", [True, False])
def test_folder_names_do_not_break_libraries_that_import_packages_of_the_same_name(
    first: str, ours_first: bool
) -> None:
    ours = "import datasets, models, models.registry; import datasets.base"
    code = f"{ours}; import {first}" if ours_first else f"import {first}; {ours}"
    code += f"; assert datasets.__file__.startswith({str(REPO)!r}), datasets.__file__"
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], cwd=REPO, check=True, capture_output=True)


def test_first_preset_is_the_default() -> None:
    assert registry.parse("fake") == ("fake", "plain")
    assert registry.parse("fake@noisy") == ("fake", "noisy")


@pytest.mark.parametrize(("spec", "words"), [
    ("fak", "did you mean 'fake'"),
    ("fake@nois", "did you mean 'noisy'"),
    ("anomalib/patchcor", "patchcore"),
    ("", "unknown method"),
])
def test_unknown_names_suggest_near_ones(spec: str, words: str) -> None:
    with pytest.raises(ModelError, match=words):
        registry.config(spec)


def test_settings_are_typed_and_checked() -> None:
    config = registry.config("fake", {"size": "16", "noise": "1e-3", "shortened": "yes", "how": "x"})
    assert (config.size, config.noise, config.shortened, config.how) == (16, 1e-3, True, "x")
    for settings, words in (({"siz": "1"}, "did you mean 'size'"), ({"size": "big"}, "not a valid int")):
        with pytest.raises(ModelError, match=words):
            registry.config("fake", settings)


def test_a_name_used_twice_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("one", "two"):
        (tmp_path / f"{name}.py").write_text('@register("twice")\nclass A:\n    pass\n')
    monkeypatch.setenv("BENCH_METHODS", str(tmp_path))
    registry.entries.cache_clear()
    try:
        with pytest.raises(ModelError, match=r"'twice' is registered twice: one.py line 1 and two.py line 1"):
            registry.entries()
    finally:
        monkeypatch.undo()
        registry.entries.cache_clear()


def test_a_broken_method_file_is_named_and_stops_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "broken.py").write_text('@register("x")\nclass A(:\n')
    (tmp_path / "whole.py").write_text('@register("whole")\nclass A:\n    pass\n')
    monkeypatch.setenv("BENCH_METHODS", str(tmp_path))
    registry.entries.cache_clear()
    try:
        assert {"whole", "patchcore"} <= registry.entries().keys()
        assert "broken.py, line 2" in capsys.readouterr().err
        monkeypatch.setattr(registry, "HERE", tmp_path.parent)  # a file of the harness itself does stop it
        monkeypatch.setattr(registry, "ROOMS", (tmp_path.name,))
        registry.entries.cache_clear()
        with pytest.raises(ModelError, match=r"broken.py, line 2"):
            registry.entries()
    finally:
        monkeypatch.undo()
        registry.entries.cache_clear()
