"""The static report: complete, escaped, self-contained, small, fast; and, in a browser, sortable and filterable."""

from __future__ import annotations

import html as html_text
import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag

import numpy as np
import pytest
import tifffile
from PIL import Image

from benchmarks.report.numbers.pool import ReportError
from benchmarks.report.pages import html
from tests.report.conftest import make_record

HOSTILE = "<script>document.title='pwned'</script>"


def store(root: Path, records: list[dict], images: int = 20, maps: int = 0) -> list[dict]:
    """Write records with per-image scores (and maps) where a run would put them; returns them with their path."""
    rng = np.random.default_rng(0)
    placed = []
    for record in records:
        unit = record["unit"]
        folder = root / "runs" / unit["dataset"] / unit["category"].replace("/", "%2F").replace("<", "%3C") / (
            f"{unit['method']}@{unit['preset']}".replace("/", "%2F"))
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"seed{unit['seed']}-0123456789.json"
        kinds = ["good", "cut"] * (images // 2)
        names = [f"{kind}/{i:03d}{HOSTILE if i == 1 else ''}".replace("</", "<\\") for i, kind in enumerate(kinds)]
        np.savez(
            path.with_suffix(".npz"), name=np.array(names), kind=np.array(kinds),
            label=np.array([int(k != "good") for k in kinds], np.int8),
            score=rng.random(len(kinds)).astype(np.float32), score_max=np.full(len(kinds), np.nan, np.float32),
        )
        record["images"]["scores"] = path.with_suffix(".npz").name
        path.write_text(json.dumps(record))
        for name in names[:maps]:
            place = root / "maps" / path.relative_to(root / "runs").with_suffix("") / unit["category"] / "test"
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            tifffile.imwrite(place / f"{name}.tiff", rng.random((64, 64)).astype(np.float32))
        placed.append({**record, "path": str(path)})
    return placed


def some(root: Path) -> list[dict]:
    values = {"a@x": 0.9, "b@x": 0.8, "c@x": 0.99}
    records = [
        make_record(m, c, image_auroc=v - 0.02 * i, pixel_auroc=v - 0.05, **{"aupro@0.3": v - 0.1})
        for m, v in values.items() for i, c in enumerate(("carpet", "grid", "wood"))
    ]
    records += [
        make_record("rb_ae@paper", "wood", image_auroc=0.97, marks=("untrained",)),
        make_record("a@x", HOSTILE.replace("/", "|"), dataset="own", image_auroc=0.5),
        make_record(HOSTILE, "tile", image_auroc=0.5),
    ]
    return store(root, records)


class Collector(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


def tags_of(path: Path) -> list[tuple[str, dict[str, str | None]]]:
    collector = Collector()
    collector.feed(path.read_text(encoding="utf-8"))
    return collector.tags


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("results")
    return html.write(root / "report", some(root), results=root).parent


def test_pages_are_there(report: Path) -> None:
    assert {p.name for p in report.glob("*.html")} == {"index.html", "papers.html", "compare.html", "units.html"}
    assert len(list((report / "methods").glob("*.html"))) == 5
    text = (report / "index.html").read_text()
    assert "97.0" in text and "rb_ae@paper" in text and "†" in text


def test_markup_in_names_shows_as_text(report: Path) -> None:
    for page in report.rglob("*.html"):
        scripts = [attrs for tag, attrs in tags_of(page) if tag == "script"]
        assert all(attrs.get("src", "").endswith("assets/report.js") for attrs in scripts), page
        assert "<script>document" not in page.read_text()
    assert html_text.escape(HOSTILE, quote=False)[:12] in (report / "units.html").read_text()


def test_nothing_is_loaded_from_outside_and_every_link_leads_somewhere(report: Path) -> None:
    ids = {}
    for page in report.rglob("*.html"):
        tags = tags_of(page)
        ids[page] = {attrs["id"] for _, attrs in tags if attrs.get("id")}
        for tag, attrs in tags:
            assert not any(name.startswith("on") or name == "style" for name in attrs), (page, tag, attrs)
            if tag == "style" or (tag == "base"):
                pytest.fail(f"{page}: {tag}")
    links = 0
    for page in ids:
        for tag, attrs in tags_of(page):
            for name in ("href", "src"):
                target = attrs.get(name)
                if not target or target == "data:,":
                    continue
                assert "//" not in target and not target.startswith("/"), target
                file, anchor = urldefrag(target)
                there = (page.parent / unquote(file)).resolve() if file else page
                assert there.exists(), (page.name, target)
                if tag != "a":
                    assert there.is_relative_to(report)
                if anchor and there.suffix == ".html":
                    assert anchor in ids[there], target
                links += 1
    assert links > 50
    drawings = list((report / "charts").glob("*.svg"))
    assert len(drawings) == 12
    for drawing in drawings:
        text = drawing.read_text(encoding="utf-8").replace('xmlns="http://www.w3.org/2000/svg"', "")
        assert not re.search(r"https?:|href|url\(|@import|<script|<image|<foreignObject| on\w+=", text), drawing


def test_provenance_is_one_click_away(report: Path) -> None:
    page = next((report / "methods").glob("*rb_ae*"))
    text = page.read_text()
    for wanted in ("python run_benchmark.py run --methods rb_ae@paper", "cpu: test", "sha256 " + "0" * 64, "0123abc",
                   "backbone", "seed 0", "maximum of the map"):
        assert wanted in text, wanted


def test_worst_misses_first(tmp_path: Path) -> None:
    from benchmarks.report.numbers.misses import worst

    record = store(tmp_path, [make_record(image_auroc=0.5)])[0]
    path = Path(record["path"]).with_suffix(".npz")
    np.savez(
        path, name=np.array(["g0", "g1", "d0", "d1"]), kind=np.array(["good", "good", "cut", "cut"]),
        label=np.array([0, 0, 1, 1], np.int8), score=np.array([0.1, 0.8, 0.2, 0.9], np.float32),
    )
    misses = worst(record)
    assert [m.name for m in misses[:2]] == ["g1", "d0"]
    assert [m.wrong for m in misses] == [0.5, 0.5, 0.0, 0.0]
    path.write_bytes(b"cut short")
    assert worst(record) == []


def test_pictures_of_kept_maps(tmp_path: Path) -> None:
    root = tmp_path / "results"
    records = store(root, [make_record(image_auroc=0.5)], maps=10)
    data = {}
    for i, kind in enumerate(["good", "cut"] * 5):
        if i != 1:
            folder = tmp_path / "data"
            folder.mkdir(exist_ok=True)
            Image.new("RGB", (90, 60), (200, 10, 10)).save(folder / f"{i}.png")
            Image.new("L", (90, 60), 255 if kind == "cut" else 0).save(folder / f"{i}_mask.png")
            data[f"{kind}/{i:03d}"] = (folder / f"{i}.png", [folder / f"{i}_mask.png"] if kind == "cut" else [])
    index = html.write(root / "report", records, results=root, samples=lambda dataset, category: data)
    pictures = sorted((index.parent / "images").rglob("*.jpg"))
    assert len(pictures) == 8
    page = next((index.parent / "methods").glob("*.html")).read_text()
    assert page.count('src="../images/') == 8
    assert "input, ground truth and anomaly map of cut/003" in page
    with Image.open(pictures[0]) as image:
        assert image.height <= 224 and image.width > 2 * image.height


def test_failed_and_broken_are_named(tmp_path: Path) -> None:
    records = [make_record(image_auroc=0.9), make_record(category="tile", status="failed"), {"path": "runs/x.json"}]
    index = html.write(tmp_path / "r", records, broken={"runs/cut.json": "not a whole JSON file"})
    text = index.read_text()
    for wanted in ("runs/x.json", "runs/cut.json", "NaN scores"):
        assert wanted in text


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(ReportError, match="no record"):
        html.write(tmp_path / "a", [])
    both = [make_record(image_auroc=0.9), make_record(category="tile", image_auroc=0.9, size=256)]
    with pytest.raises(ReportError, match="protocols"):
        html.write(tmp_path / "b", both)
    assert "256 x 256" in html.write(tmp_path / "c", both, mixed=True).read_text()
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "thesis.txt").write_text("mine")
    with pytest.raises(ReportError, match="other files"):
        html.write(tmp_path / "d", [make_record(image_auroc=0.9)])
    assert (tmp_path / "d" / "thesis.txt").read_text() == "mine"


def thousand() -> list[dict]:
    keys = ["image_auroc", "image_ap", "image_f1max", "pixel_auroc", "pixel_ap", "pixel_f1max", "aupro@0.01",
            "aupro@0.05", "aupro@0.1", "aupro@0.3", "aupro@1"]
    rng = np.random.default_rng(1)
    categories = [f"category_{i}" for i in range(12)] + ["carpet", "wood", "tile"]
    specs = [*(f"method{i}@wrn50" for i in range(19)), "rb_ae@paper", "padim@wrn50", "stfpm@paper", "ganomaly@paper"]
    return [
        make_record(m, c, seed, **{k: float(v) for k, v in zip(keys, rng.random(len(keys)), strict=True)})
        for m in specs for c in categories for seed in (0, 1, 2)
    ][:1000]


CHILD = """
import json, sys
from pathlib import Path
from benchmarks.provenance import peak_memory
from benchmarks.report import views
from benchmarks.report.pages import html
root = Path(sys.argv[1])
records = [{**json.loads(p.read_text()), "path": str(p)} for p in sorted((root / "runs").rglob("*.json"))]
html.write(root / "report", records, results=root)
views.overview(records)
views.write_suite("rb_ae", records, root / "tables")
print(json.dumps([len(records), peak_memory("cpu")["peak_host_mb"]]))
"""


def test_a_thousand_records(tmp_path: Path) -> None:
    """Tables and report in a process of their own: under 1 GiB, and 2 MB without pictures."""
    store(tmp_path, thousand(), images=100)
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(tmp_path)], capture_output=True, text=True, check=True,
        cwd=Path(__file__).resolve().parents[2],
    )
    count, peak_mib = json.loads(done.stdout)
    size = sum(p.stat().st_size for p in (tmp_path / "report").rglob("*") if p.suffix not in (".png", ".jpg", ".svg"))
    assert count == 1000
    assert peak_mib < 1024
    assert size < 2e6


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def browse(page: str, *extra: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--enable-logging=stderr",
         "--v=0", "--allow-file-access-from-files", "--virtual-time-budget=4000", *extra, page],
        capture_output=True, text=True, timeout=120, check=True,
    )


def browser_test(report: Path, page: str, script: str) -> str:
    """Run a script in a copy of a page after the report's own, and return what it writes into the title."""
    path = report / page
    text = path.read_text()
    path.with_name("probe.js").write_text(
        "window.addEventListener('load', () => { (async () => {" + script + "})()"
        ".then(r => { document.title = 'RESULT ' + r; }, e => { document.title = 'RESULT error ' + e; }); });"
    )
    probe = path.with_name(f"probe-{path.name}")
    probe.write_text(text.replace("</head>", '<script src="probe.js" defer></script></head>'))
    done = browse(probe.as_uri(), "--dump-dom")
    problems = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    assert not problems, problems
    return html_text.unescape(re.search(r"<title>(.*?)</title>", done.stdout, re.S).group(1)).removeprefix("RESULT ")


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: apt-get install chromium")
def test_filter_and_sort_in_a_browser(report: Path) -> None:
    shown = browser_test(report, "units.html", """
        const input = document.querySelector('input.filter');
        input.value = 'C@X wood'; input.dispatchEvent(new Event('input'));
        const rows = Array.from(document.querySelectorAll('#units tbody tr')).filter(r => !r.hidden);
        return rows.length + '|' + rows.map(r => r.cells[0].textContent + ' ' + r.cells[2].textContent).join(',')
          + '|' + document.querySelector('.hits').textContent;
    """)
    assert shown == "1|c@x wood|1 of 12"
    shown = browser_test(report, "units.html", """
        const head = Array.from(document.querySelectorAll('#units th')).find(h => h.textContent === 'Image AUROC');
        const values = () => Array.from(document.querySelectorAll('#units tbody tr'))
          .map(r => parseFloat(r.cells[head.cellIndex].textContent));
        head.querySelector('button').click(); const down = values();
        head.querySelector('button').click(); const up = values();
        const sorted = a => a.every((v, i) => i === 0 || a[i - 1] >= v);
        return [sorted(down), sorted(up.slice().reverse()), sorted(up), head.getAttribute('aria-sort')].join();
    """)
    assert shown == "true,true,false,ascending"


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: apt-get install chromium")
def test_heat_table_switches_its_metric_in_a_browser(report: Path) -> None:
    shown = browser_test(report, "index.html", """
        const section = document.querySelector('section.heat');
        const row = Array.from(section.querySelectorAll('tbody tr')).find(r => r.cells[0].textContent === 'a@x');
        const cell = row.cells[1]; const before = cell.textContent;
        const select = section.querySelector('select'); select.value = '1'; select.dispatchEvent(new Event('change'));
        const wide = document.documentElement.scrollWidth <= window.innerWidth;
        return [before, cell.textContent, section.querySelector('.shown').textContent, wide].join('|');
    """)
    before, after, name, fits = shown.split("|")
    assert (before, after, name, fits) == ("90.0", "85.0", "Pixel AUROC", "true")


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: apt-get install chromium")
def test_charts_load_in_a_browser(report: Path) -> None:
    """Under the page's content security policy, from disk, when the part of the page is opened."""
    page = next((report / "methods").glob("*rb_ae*")).relative_to(report).as_posix()
    shown = browser_test(report, page, """
        const picture = document.querySelector('img[src$=".svg"]');
        for (const part of document.querySelectorAll('details')) part.open = true;
        picture.loading = 'eager';
        await picture.decode();
        return [picture.naturalWidth, picture.getBoundingClientRect().width <= window.innerWidth].join();
    """)
    assert shown == "540,true"


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: apt-get install chromium")
@pytest.mark.parametrize("width", [1280, 390])
def test_screenshots(report: Path, tmp_path: Path, width: int) -> None:
    """Pages are drawn without a console message, at desktop and phone width."""
    for page in (report / "index.html", report / "papers.html", next((report / "methods").glob("*rb_ae*"))):
        target = tmp_path / f"{page.stem}.png"
        done = browse(page.as_uri(), f"--screenshot={target}", f"--window-size={width},900", "--hide-scrollbars")
        assert not [line for line in done.stderr.splitlines() if "CONSOLE" in line], page
        with Image.open(target) as image:
            assert image.width == width
            assert len(image.convert("L").resize((100, 100)).getcolors()) > 20
