"""`make speed`: what stands in which section, and that a failed command leaves its section as it was."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from benchmarks.speed import __main__ as speed
from benchmarks.speed.common import checkout_of

OLD = "# Speed\n\nIntroduction.\n\n## First\n\nold\n\n## Second\n\nstays\n\n### Part\n\nstays too\n\n## GPU\n\nstays\n"


def test_a_section_is_replaced_where_it_stands_or_added_before_the_gpus() -> None:
    found = speed.replaced(OLD, "First", "new")
    assert found == OLD.replace("old", "new")
    assert speed.replaced(OLD, "Third", "new") == OLD.replace("## GPU", "## Third\n\nnew\n\n## GPU")
    assert speed.replaced("# Speed\n", "Third", "new") == "# Speed\n\n## Third\n\nnew\n"
    assert speed.replaced(found, "First", "new") == found


def test_every_section_names_a_script_and_keeps_its_place_in_the_file() -> None:
    text = speed.TARGET.read_text(encoding="utf-8")
    titles = [section.title for section in speed.SECTIONS.values()]
    assert len(set(titles)) == len(titles)
    for section in speed.SECTIONS.values():
        script = speed.REPO / "benchmarks" / "speed" / f"{section.command.split()[0]}.py"
        options = {word for word in f"{section.command} {section.quick}".split() if word.startswith("--")}
        code = script.read_text(encoding="utf-8") + (script.parent / "common.py").read_text(encoding="utf-8")
        assert all(f'"{option}"' in code for option in options), (section.command, options)
    by_hand = {"AUPRO of the whole unit beside anomalib's", "GPU"}
    assert set(re.findall(r"(?m)^## (.*)$", text)) <= {*titles, *by_hand}  # no subject stands there twice


def test_a_command_is_run_and_shown_without_the_paths_of_this_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "data/mvtec_ad/bottle/train/good").mkdir(parents=True)
    target = tmp_path / "speed.md"
    target.write_text(OLD)
    monkeypatch.setattr(speed, "SECTIONS", {
        "good": speed.Section("First", "report_speed --records N", "--records 3", "pictures."),
        "bad": speed.Section("Second", "parts_speed neighbours --data-root DIR --rounds N --train none", "", ""),
    })
    code = speed.main(["--data-root", str(tmp_path / "data"), "--rounds", "4", "--target", str(target), "--quick"])
    text = target.read_text()
    assert code == 1 and "left as they were: bad" in capfd.readouterr().err
    assert "python -m benchmarks.speed.report_speed --records 4 --records 3\n```" in text
    assert "Lacking: pictures." in text and str(tmp_path) not in text
    assert re.search(r"## First\n\n```\n.*\n```\n\n.*3 records", text, re.S) and "## Second\n\nstays\n" in text


def test_a_section_has_its_own_number_of_rounds_at_most_and_quick_arguments_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mvtec_ad/bottle/train/good").mkdir(parents=True)
    monkeypatch.setattr(speed, "SECTIONS", {
        "few": speed.Section("Few", "report_speed --records N", "", "x.", 3),
        "many": speed.Section("Many", "report_speed --records N", "--records 2 --seed 1", "x."),
        "anew": speed.Section("Anew", "report_speed a b --records N", "a --records 2", "x."),
    })
    seen: list[list[str]] = []

    def done(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        seen.append(command[3:])
        return subprocess.CompletedProcess(command, 0, "text")

    monkeypatch.setattr(speed.subprocess, "run", done)
    common = ["--data-root", str(tmp_path), "--target", str(tmp_path / "speed.md"), "--rounds", "5"]
    assert speed.main(common) == speed.main([*common, "--quick"]) == 0
    assert seen == [
        ["--records", "3"], ["--records", "5"], ["a", "b", "--records", "5"],
        ["--records", "3"], ["--records", "5", "--records", "2", "--seed", "1"], ["a", "--records", "2"],
    ]
    assert re.search(r"few \.\.\. \d+ s\n", capsys.readouterr().out)


def test_a_commit_is_unpacked_for_as_long_as_it_is_compared(tmp_path: Path) -> None:
    with checkout_of("HEAD") as found:
        assert (found / "run_benchmark.py").is_file() and found != speed.REPO
    assert not found.exists()
    with checkout_of(str(speed.REPO)) as found:
        assert found == speed.REPO
    with pytest.raises(SystemExit, match="neither a checkout"), checkout_of("no-such-commit"):
        pass


def test_quick_figures_do_not_overwrite_the_real_ones(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mvtec_ad/bottle/train/good").mkdir(parents=True)
    for arguments, words in ((["--quick"], "name another file"), (["--only", "unit"], "no mvtec_ad/bottle")):
        root = tmp_path if "--quick" in arguments else tmp_path / "nothing"
        with pytest.raises(SystemExit):
            speed.main(["--data-root", str(root), *arguments])
        assert words in capsys.readouterr().err
