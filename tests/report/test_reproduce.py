"""`reproduce`: every table in every format, units planned once, counts from disk, and what is not there is said."""

from __future__ import annotations

import csv
import io
import json
from collections import defaultdict
from pathlib import Path

import pytest
from PIL import Image

from benchmarks.report.numbers import suites
from datasets.catalog import OFFICIAL, TEXTURES
from tests.conftest import Cli, make_mvtec

FORMATS = (".md", ".tex", ".input.tex", ".csv", ".long.csv", ".html")


def make_official(root: Path, categories: tuple[str, ...] = tuple(OFFICIAL["mvtec_ad"])) -> Path:
    """The whole MVTec AD layout with the official counts; every picture is the same one of a few pixels."""
    buffer = io.BytesIO()
    Image.new("L", (2, 2)).save(buffer, "PNG")
    png = buffer.getvalue()
    for category in categories:
        official = OFFICIAL["mvtec_ad"][category]
        good, cut = official.test["good"], official.test["defective"]
        parts = {"train/good": official.train, "test/good": good, "test/cut": cut, "ground_truth/cut": cut}
        for folder, count in parts.items():
            place = root / "mvtec_ad" / category / folder
            place.mkdir(parents=True)
            for i in range(count):
                (place / f"{i:03d}{'_mask' if 'ground' in folder else ''}.png").write_bytes(png)
    return root


def long_rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_table_of_counts_on_the_full_layout(cli: Cli, tmp_path: Path) -> None:
    """RB-AE's Table I, counted on disk and compared with the paper's print, without running anything."""
    root = make_official(tmp_path / "data")
    done = cli("reproduce", "--paper", "rb_ae", "--table", "I", "--data-root", root, "--results", tmp_path / "r")
    assert done.returncode == 0, done.stderr
    rows = long_rows(tmp_path / "r" / "tables" / "rb_ae" / "I.long.csv")
    measured = {(r["row_group"], r["row"], r["column"].lower()): int(float(r["value"])) for r in rows
                if r["source"] == "measured"}
    printed = {(r["row_group"], r["row"], r["column"].lower()): int(r["value"]) for r in rows
               if r["source"] == "published"}
    assert len(measured) == 15 and len(printed) == 20
    off = {}
    for category in TEXTURES:
        official = OFFICIAL["mvtec_ad"][category]
        found = tuple(measured[key] for key in (("Training", "normal", category), ("Testing", "abnormal", category),
                                                ("Testing", "normal", category)))
        assert found == (official.train, official.test["defective"], official.test["good"])
        off |= {key: measured[key] - printed[key] for key in measured if key[2] == category and
                measured[key] != printed[key]}
    assert {key[2] for key in off} == {"carpet", "leather"}, "the paper prints fewer test pictures for these two"
    assert all(difference > 0 and key[0] == "Testing" for key, difference in off.items())
    text = (tmp_path / "r" / "tables" / "rb_ae" / "I.md").read_text()
    assert "Nothing measured yet" not in text and "Seed" not in text and "†" not in text
    one = cli("table", "rb_ae/I", "--data-root", root, "--results", tmp_path / "r")
    assert one.stdout.strip() == text.strip()


def test_counts_of_what_is_there_only(cli: Cli, tmp_path: Path) -> None:
    root = make_official(tmp_path / "data", ("tile", "wood"))
    next((root / "mvtec_ad" / "tile" / "test" / "good").glob("*.png")).unlink()
    (tmp_path / "r").mkdir()
    done = cli("table", "rb_ae/I", "--format", "csv", "--data-root", root, "--results", tmp_path / "r")
    assert done.returncode == 0, done.stderr
    rows = {(row["group"], row["row"]): row for row in csv.DictReader(io.StringIO(done.stdout))}
    good = rows["Testing", "normal"]
    assert {c: good[f"{c.capitalize()} measured"] for c in TEXTURES} == {
        "carpet": "missing", "grid": "missing", "leather": "missing", "tile": "32.0", "wood": "19.0",
    }
    assert (good["Tile difference"], good["Wood difference"]) == ("-1.0", "0.0")
    text = cli("table", "rb_ae/I", "--data-root", root, "--results", tmp_path / "r").stdout
    assert "Neither files nor a record on mvtec_ad: carpet, grid, leather." in text


def test_every_table_of_every_paper_in_every_format(cli: Cli, tmp_path: Path) -> None:
    make_mvtec(tmp_path / "data" / "mvtec_ad" / "bottle")
    done = cli("reproduce", "--paper", "all", "--quick", "--dry-run", "--data-root", tmp_path / "data",
               "--weights", "none", "--results", tmp_path / "r")
    assert done.returncode == 0, done.stderr
    asked = cli("reproduce", "--paper", "production", "--dry-run", "--data-root", tmp_path / "data",
                "--weights", "none", "--results", tmp_path / "r")
    assert asked.returncode == 0, asked.stderr
    for suite in suites.all():
        for table in suite.tables:
            for suffix in FORMATS:
                path = tmp_path / "r" / "tables" / suite.paper / f"{table.name}{suffix}"
                assert path.stat().st_size > 100, path
    listed = done.stdout.splitlines()
    assert "to run   gen_encdec@quick mvtec_ad/bottle seed 0" in listed
    assert len(listed) == len(set(listed)) and all(line.startswith("to run") for line in listed)
    assert "constructed_button" in done.stderr and f"{len(listed)} of them to run; nothing was run" in done.stderr
    assert not list((tmp_path / "r" / "runs").rglob("seed*"))
    text = (tmp_path / "r" / "tables" / "gen_encdec" / "I.md").read_text()
    bottle = next(line for line in text.splitlines() if "Bottle" in line)
    assert "—" not in bottle and "Nothing measured yet." in text


def test_measured_chooses_what_is_run_and_shown(cli: Cli, tmp_path: Path) -> None:
    make_mvtec(tmp_path / "data" / "mvtec_ad" / "bottle")
    shown = {}
    for measured in ("all", "ours", "none"):
        done = cli("reproduce", "--paper", "gen_encdec", "--table", "I", "--quick", "--dry-run", "--measured", measured,
                   "--data-root", tmp_path / "data", "--weights", "none", "--results", tmp_path / measured)
        assert done.returncode == 0, done.stderr
        units = {line.split()[2] for line in done.stdout.splitlines()}
        text = (tmp_path / measured / "tables" / "gen_encdec" / "I.md").read_text()
        shown[measured] = units, "—" in next(line for line in text.splitlines() if "Bottle" in line)
    assert shown["all"] == ({"kdad@quick", "fcdd@quick", "gen_encdec@quick"}, True)
    assert shown["ours"] == ({"gen_encdec@quick"}, False) and shown["none"] == (set(), False)


def test_reproduce_runs_what_is_missing_and_shows_what_is_stored(cli: Cli, tmp_path: Path) -> None:
    """One unit runs, one fails and says why, and another run's record of the same protocol stands beside them."""
    make_mvtec(tmp_path / "data" / "mvtec_ad" / "bottle", size=(64, 64))
    make_mvtec(tmp_path / "data" / "mvtec_ad" / "pill", size=(64, 64))
    shared = ("--data-root", tmp_path / "data", "--results", tmp_path / "r", "--device", "cpu", "--quiet")
    short = ("--set", "dae.epochs=2", "cae.epochs=1", "dae.train_batch=2", "cae.train_batch=2")
    done = cli("reproduce", "--paper", "dae_cae", "--table", "1", "--quick", "--categories", "bottle", "--methods",
               "dae@quick", *shared, *short, "--weights", "none", "--keep-maps")
    assert done.returncode == 0, done.stderr
    drawn = {p.name for p in (tmp_path / "r" / "figures").iterdir()}
    assert len(drawn) == 2 and "dae@quick-mvtec_ad-bottle.png" in drawn, drawn
    rows = long_rows(tmp_path / "r" / "tables" / "dae_cae" / "1.long.csv")
    mine = [r for r in rows if r["source"] == "measured" and r["state"] == "value"]
    assert {(r["method"], r["categories"]) for r in mine} == {("dae@quick", "bottle")}
    assert len(mine) == 3 and {"short", "modified", "reduced"} <= set(mine[0]["marks"].split())
    again = cli("reproduce", "--paper", "dae_cae", "--quick", "--categories", "pill", "--methods", "dae", "--dry-run",
                *shared, "--weights", "none")
    listed = again.stdout.splitlines()  # every preset of the method and none of another
    assert again.returncode == 0 and "to run   dae@quick mvtec_ad/pill seed 0" in listed
    assert all(line.startswith("to run   dae@") and "/pill " in line for line in listed), listed
    # the stored unit of `dae@quick` had other settings, and so tells nothing of these
    assert "one worker: unknown, since no stored unit tells (no record: dae@quick" in again.stderr
    settled = cli("reproduce", "--paper", "dae_cae", "--quick", "--categories", "pill", "--methods", "dae@quick",
                  "--dry-run", *shared, *short, "--weights", "none")
    assert " s for 1 as stored units of other categories took" in settled.stderr, settled.stderr
    absent = cli("reproduce", "--paper", "dae_cae", "--quick", "--categories", "pill", "--methods", "dae@quick",
                 "--dry-run", *shared[:4], "--device", "cuda:7", *short, "--weights", "none")
    assert absent.returncode == 0 and "time on cuda:7 (not there), one worker: unknown" in absent.stderr
    rows = long_rows(tmp_path / "r" / "tables" / "dae_cae" / "1.long.csv")
    shown = {r["categories"] for r in rows if r["source"] == "measured" and r["state"] == "value"}
    assert shown == {"bottle"}, "what an earlier command ran is still in the table"
    (tmp_path / "weights").mkdir()
    failed = cli("reproduce", "--paper", "gen_encdec", "--table", "I", "--quick", *shared, "--weights",
                 tmp_path / "weights", "--categories", "bottle")
    assert failed.returncode == 1 and "vgg19" in failed.stderr
    text = (tmp_path / "r" / "tables" / "gen_encdec" / "I.md").read_text()
    assert "Failed: gen_encdec@quick mvtec_ad/bottle" in text and "vgg19" in text
    cut = next((tmp_path / "r" / "runs").rglob("seed0-*.json"))
    cut.write_text(cut.read_text()[:100])
    named = cli("reproduce", "--paper", "tsdn", "--dry-run", *shared, "--weights", "none")
    assert named.returncode == 0 and f"left out {cut}" in named.stderr


@pytest.mark.parametrize("arguments, wanted", [
    (("--paper", "nobody"), "unknown paper 'nobody'"),
    (("--paper", "rb_ae", "--table", "IX"), "no table 'IX'"),
    (("--table", "I"), "name its paper too"),
    (("--paper", "rb_ae", "--methods", "rb_ea"), "no table asks for it"),
    (("--paper", "rb_ae", "--categories", "bottle"), "no table asks for it"),
])
def test_wrong_use(cli: Cli, tmp_path: Path, arguments: tuple[str, ...], wanted: str) -> None:
    done = cli("reproduce", *arguments, "--data-root", tmp_path, "--results", tmp_path / "r")
    assert done.returncode == 2 and wanted in done.stderr


def test_no_unit_is_computed_twice_under_two_names() -> None:
    """Presets of one method with equal settings stand under one name in all tables, so that one run serves them."""
    from models import registry

    for quick in (False, True):
        names: dict[str, set[str]] = defaultdict(set)
        for suite in suites.all():
            for spec, _, _ in suites.units(suite.paper, quick=quick):
                plain = spec.partition(" ")[0]  # a setting may follow
                method, preset = registry.parse(plain)
                names[json.dumps([method, repr(registry.config(plain))])].add(f"{method}@{preset}")
        assert not [same for same in names.values() if len(same) > 1]


def test_all_papers_leave_the_settings_out() -> None:
    from benchmarks import papers

    assert "production" not in papers.papers("all") and "tsdn" in papers.papers("all")
    assert papers.papers("production") == ["production"]
