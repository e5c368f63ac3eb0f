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

from benchmarks.report.numbers.compare import comparisons
from benchmarks.report.numbers.pool import ReportError, pool
from benchmarks.report.numbers.ranking import frontier, ranking
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
    assert len([path for path in drawings if not path.name.startswith("speed-")]) == 12
    for drawing in drawings:
        text = drawing.read_text(encoding="utf-8").replace('xmlns="http://www.w3.org/2000/svg"', "")
        assert not re.search(r"https?:|href|url\(|@import|<script|<image|<foreignObject| on\w+=", text), drawing


def test_provenance_is_one_click_away(report: Path) -> None:
    page = next((report / "methods").glob("*rb_ae*"))
    text = page.read_text()
    for wanted in ("python run_benchmark.py run --methods rb_ae@paper", "cpu: test", "sha256 " + "0" * 64, "0123abc",
                   "backbone", "seed 0", "maximum of the map", "runs/mvtec_ad/wood/rb_ae@paper/seed0-0123456789.json"):
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
    records = store(root, [make_record(image_auroc=0.5)], maps=20)
    data = {}
    for i, kind in enumerate(["good", "cut"] * 10):
        if i != 1:
            folder = tmp_path / "data"
            folder.mkdir(exist_ok=True)
            Image.new("RGB", (90, 60), (200, 10, 10)).save(folder / f"{i}.png")
            Image.new("L", (90, 60), 255 if kind == "cut" else 0).save(folder / f"{i}_mask.png")
            data[f"{kind}/{i:03d}"] = (folder / f"{i}.png", [folder / f"{i}_mask.png"] if kind == "cut" else [])
    index = html.write(root / "report", records, results=root, samples=lambda dataset, category: data)
    pictures = sorted((index.parent / "images").rglob("*.jpg"))
    page = next((index.parent / "methods").glob("*.html")).read_text()
    assert len(pictures) == page.count('src="../images/')
    assert len(pictures) == 6 and "ground truth</span>" in page and "<strong>worst</strong> cut/" in page
    assert "maps of all 20 test pictures" in page
    with Image.open(pictures[-1]) as image:
        assert image.height <= 224 and image.width > 2 * image.height


def test_worst_median_and_best_of_every_kind(tmp_path: Path) -> None:
    """A unit whose worst misses are all good pictures shows its defects too."""
    from benchmarks.report.numbers.misses import examples, worst

    record = store(tmp_path, [make_record(image_auroc=0.5)])[0]
    scores = {"good": [0.1, 0.9, 0.2, 0.8, 0.3], "cut": [0.95, 0.99, 0.97], "dent": [0.96, 0.98], "hole": [0.94]}
    flat = [(kind, f"{kind}/{i}", value) for kind, values in scores.items() for i, value in enumerate(values)]
    np.savez(
        Path(record["path"]).with_suffix(".npz"), name=np.array([n for _, n, _ in flat]),
        kind=np.array([k for k, _, _ in flat]), label=np.array([int(k != "good") for k, _, _ in flat], np.int8),
        score=np.array([v for *_, v in flat], np.float32),
    )
    shown = [(word, miss.name) for word, miss in examples(worst(record))]
    assert shown == [
        ("worst", "good/1"), ("median", "good/4"), ("best", "good/0"), ("worst", "cut/0"), ("median", "cut/2"),
        ("best", "cut/1"), ("worst", "dent/0"), ("best", "dent/1"), ("worst", "hole/0"),
    ]


def test_colours_are_scaled_over_all_maps_and_the_mask_is_outlined(tmp_path: Path) -> None:
    """Good pictures alone would set a scale on which every defect is white."""
    from benchmarks.report.drawings.overlays import OUTLINE, outline

    root = tmp_path / "results"
    records = store(root, [make_record(image_auroc=0.5)], maps=20)
    for path in root.rglob("maps/**/*.tiff"):
        values = np.ones((64, 64), np.float32)
        values[20:40, 20:40] = 40.0 if "cut" in path.parts else 1.0
        tifffile.imwrite(path, values)
    data = {}
    for path in root.rglob("maps/**/*.tiff"):
        name = f"{path.parent.name}/{path.stem}"
        picture, mask = tmp_path / f"{path.stem}.png", tmp_path / f"{path.stem}_mask.png"
        Image.new("RGB", (64, 64), (90, 90, 90)).save(picture)
        truth = np.zeros((64, 64), np.uint8)
        truth[20:40, 20:40] = 255
        Image.fromarray(truth).save(mask)
        data[name] = (picture, [mask] if path.parent.name == "cut" else [])
    index = html.write(root / "report", records, results=root, samples=lambda dataset, category: data)
    page = next((index.parent / "methods").glob("*.html")).read_text()
    assert re.search(r"dark up to 1 .* brightest from 40 ", page), re.findall("Colours over.*", page)
    strips = re.findall(r'<img loading="lazy" src="\.\./(images/[^"]+)" alt="[^"]*of cut/', page)
    with Image.open(index.parent / strips[0]) as image:
        strip = np.asarray(image.convert("RGB")).astype(int)
    shown = strip[:, -64:]
    assert np.abs(shown[20, 30] - OUTLINE).sum() < 200 < np.abs(shown[30, 30] - OUTLINE).sum()
    inside = np.zeros((5, 5), bool)
    inside[1:4, 1:4] = True
    assert not outline(inside)[2, 2] and outline(inside).sum() == 20 and not outline(np.zeros((5, 5), bool)).any()


def test_means_are_labelled_and_marked_and_colours_are_fixed(tmp_path: Path) -> None:
    records = [
        make_record("a@x", "bottle", image_auroc=1.0, marks=("untrained",)),
        make_record("b@x", "bottle", image_auroc=0.998), make_record("a@x", "pill", image_auroc=0.81),
        make_record("c@x", "zipper", dataset="own", image_auroc=0.998),
        make_record("d@x", "zipper", dataset="own", image_auroc=0.42),
    ]
    text = html.write(tmp_path / "r", records).read_text()
    cells = re.findall(r'<td class="h(\d?)"[^>]*>(?:<a [^>]*>)?([^<]*)(?:</a>)?(?:<sup>(.)</sup>)?', text)
    assert "Mean over 2 of 15 categories" in text and "Mean over 1 category" in text
    assert ("7", "90.5", "†") in [("7" if c[1] == "90.5" else c[0], *c[1:]) for c in cells], cells
    assert {level for level, value, _ in cells if value == "99.8"} == {"9"}, "the same colour in both tables"
    assert ("9", "100.0", "†") in cells and ("0", "42.0", "") in cells
    assert ("", "99.8 (1 of 2)", "") in cells


def test_ablations_leave_the_comparison_standing(tmp_path: Path) -> None:
    """Presets of one column of a paper ran one category; the methods are still compared over all that they ran."""
    textures = ("carpet", "grid", "leather", "tile", "wood")
    records = [make_record(f"rb_ae@{p}", "wood", image_auroc=0.5) for p in "abcdef"]
    records += [make_record("rb_ae@paper", c, image_auroc=0.9) for c in textures]
    records += [make_record(m, c, image_auroc=v) for m, v in (("padim@x", 0.8), ("stfpm@x", 0.7))
                for c in (*textures, "bottle")]
    records.append(make_record("dae@x", "bottle", image_auroc=0.6))
    html.write(tmp_path / "r", records)
    text = (tmp_path / "r" / "compare.html").read_text()
    assert '<span class="over">5</span> of 6 categories' in text
    assert text.count(" checked") == 3 and text.count('type="checkbox"') == 10
    assert "dae@x is not compared: it lacks carpet, grid, leather, tile, wood" in text
    assert re.search(r"rb_ae@paper</label></th><td class=\"mean\">90.00</td><td class=\"rank\">1.00</td>", text)
    assert (tmp_path / "r" / "images" / "compare-0.png").exists()


def test_a_report_can_be_carried_elsewhere(report: Path) -> None:
    for page in report.rglob("*.html"):
        for tag, attrs in tags_of(page):
            target = attrs.get("href") if tag == "a" else None
            if target:
                place = page.parent / unquote(urldefrag(target)[0] or page.name)
                assert place.resolve().is_relative_to(report), target


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
    """Tables and report in a process of their own: under 1 GiB, and 2.1 MB without pictures."""
    store(tmp_path, thousand(), images=100)
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(tmp_path)], capture_output=True, text=True, check=True,
        cwd=Path(__file__).resolve().parents[2],
    )
    count, peak_mib = json.loads(done.stdout)
    size = sum(p.stat().st_size for p in (tmp_path / "report").rglob("*") if p.suffix not in (".png", ".jpg", ".svg"))
    assert count == 1000
    assert peak_mib < 1024
    assert size < 2.1e6


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def browse(page: str, *extra: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--enable-logging=stderr",
         "--v=0", "--allow-file-access-from-files", "--virtual-time-budget=4000", *extra, page],
        capture_output=True, text=True, timeout=120, check=True,
    )


def browser_test(report: Path, page: str, script: str, *extra: str, library: str = "") -> str:
    """Run a script in a copy of a page after the report's own (and a library's), return what it writes as the title."""
    path = report / page
    text = path.read_text()
    path.with_name("library.js").write_text(library)
    path.with_name("probe.js").write_text(
        "window.addEventListener('load', () => { (async () => {" + script + "})()"
        ".then(r => { document.title = 'RESULT ' + r; }, e => { document.title = 'RESULT error ' + e; }); });"
    )
    probe = path.with_name(f"probe-{path.name}")
    added = "".join(f'<script src="{name}.js" defer></script>' for name in ("library", "probe"))
    probe.write_text(text.replace("</head>", f"{added}</head>"))
    done = browse(probe.as_uri(), "--dump-dom", *extra)
    problems = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    assert not problems, problems
    return html_text.unescape(re.search(r"<title>(.*?)</title>", done.stdout, re.S).group(1)).removeprefix("RESULT ")


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: apt-get install chromium")
def test_search_of_every_page_leads_to_the_units_with_the_words(report: Path) -> None:
    """The form needs no script; without one the whole list is shown."""
    page = next((report / "methods").glob("*rb_ae*")).relative_to(report).as_posix()
    asked = browser_test(report, page, """
        const form = document.querySelector('form.search'), input = form.querySelector('input');
        input.value = 'rb_ae wood';
        const at = new URL(form.action);
        at.search = new URLSearchParams(new FormData(form));
        return [form.method, at.pathname.split('/').pop(), at.search].join();
    """)
    assert asked == "get,units.html,?q=rb_ae+wood"
    done = browse((report / "units.html").as_uri() + "?q=rb_ae+wood", "--dump-dom")
    body = re.search(r'id="units".*?<tbody>(.*?)</tbody>', done.stdout, re.S).group(1)
    rows = re.findall(r"<tr( hidden=\"\")?>(.*?)</tr>", body, re.S)
    shown = [text for hidden, text in rows if not hidden]
    assert 0 < len(shown) < len(rows) and all("rb_ae" in text and "wood" in text for text in shown)


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
def test_the_reader_chooses_what_is_compared(report: Path) -> None:
    shown = browser_test(report, "compare.html", """
        const section = document.querySelector('section.choice');
        const row = (name) => Array.from(section.querySelectorAll('.heat tbody tr'))
          .find((r) => r.cells[0].textContent.trim() === name);
        const say = (name) => ['mean', 'rank'].map((c) => row(name).querySelector('td.' + c).textContent).join(' ');
        const before = [say('a@x'), say('rb_ae@paper'), section.querySelector('.over').textContent];
        for (const box of section.querySelectorAll('input'))
          box.checked = ['a@x', 'rb_ae@paper'].includes(box.closest('tr').cells[0].textContent.trim());
        section.dispatchEvent(new Event('change'));
        const after = ['a@x', 'rb_ae@paper', 'b@x'].map(say);
        return [...before, ...after, section.querySelector('.over').textContent].join('|');
    """)
    assert shown == "88.00 2.00|— —|3|86.00 2.00|97.00 1.00|— —|1"


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: apt-get install chromium")
def test_names_are_whole_on_a_phone_and_groups_stand_once(tmp_path: Path) -> None:
    names = [f"feature_ensemble@wrn50_independent_members_{kind}" for kind in ("global", "local")]
    records = [make_record(m, c, image_auroc=0.9) for m in names for c in ("carpet", "wood")]
    page = html.write(tmp_path / "r", records).parent
    tall = """
        for (const part of document.querySelectorAll('details')) part.open = true;
        const heights = Array.from(document.querySelectorAll('tbody th:first-child'), (c) => c.clientHeight);
        return String(heights.length > 0 && Math.max(...heights) < 110);
    """
    for name in ("papers.html", next((page / "methods").glob("*.html")).relative_to(page).as_posix()):
        assert browser_test(page, name, tall, "--window-size=390,900") == "true", f"{name}: a column of single letters"
    shown = browser_test(page, "index.html", """
        const cut = Array.from(document.querySelectorAll('tbody th:first-child'))
          .filter((c) => c.scrollWidth > c.clientWidth + 1 || getComputedStyle(c).textOverflow === 'ellipsis');
        return cut.length + ' ' + (document.documentElement.scrollWidth <= window.innerWidth) + ' ' + window.innerWidth;
    """, "--window-size=390,900")
    assert shown.startswith("0 true ") and int(shown.split()[2]) <= 500
    table = (page / "papers.html").read_text()
    body = re.search(r'id="table-rb_ae-I".*?</table>', table, re.S).group(0)
    assert body.count('<span class="again">Testing</span>') >= 1
    assert body.count(">Testing<") - body.count('<span class="again">Testing</span>') == 1


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: apt-get install chromium")
@pytest.mark.parametrize("mode", ["light", "dark"])
@pytest.mark.parametrize("page", ["index", "papers", "compare", "units", "method"])
def test_no_serious_finding_of_axe(report: Path, page: str, mode: str) -> None:
    """Contrast, names, roles and labels, with every part of the page opened."""
    axe = pytest.importorskip("axe_core_python", reason="pip install axe-core-python")
    library = next(Path(axe.__file__).parent.rglob("axe.min.js")).read_text(encoding="utf-8")
    name = f"{page}.html"
    if page == "method":
        name = next((report / "methods").glob("*rb_ae*")).relative_to(report).as_posix()
    shown = browser_test(report, name, """
        for (const part of document.querySelectorAll('details')) part.open = true;
        const found = (await axe.run()).violations.filter((v) => ['serious', 'critical'].includes(v.impact));
        const dark = matchMedia('(prefers-color-scheme: dark)').matches;
        return JSON.stringify([dark, ...found.map((v) => [v.id, v.nodes.length, v.nodes[0].html.slice(0, 160)])]);
    """, f"--blink-settings=preferredColorScheme={int(mode == 'light')}", library=library)
    assert json.loads(shown) == [mode == "dark"]


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


def test_the_first_page_says_who_is_best_by_how_much_and_at_what_cost(tmp_path: Path) -> None:
    """Places, gaps, costs and marks by hand; a method that lacks a category is named and not ranked."""
    figures = {"a@x": (0.95, 0.91, 10.0), "b@x": (0.93, 0.90, 20.0), "c@x": (0.80, 0.70, 5.0)}
    records = []
    for method, (wood, tile, rate) in figures.items():
        for category, value in (("wood", wood), ("tile", tile)):
            made = make_record(method, category, image_auroc=value, marks=("reduced",) if method == "a@x" else ())
            made["timing"] |= {"images_per_s": rate}
            records.append(made)
    records.append(make_record("d@x", "wood", image_auroc=0.99))
    made = comparisons(pool(records[:-1]), list(figures))
    rows = ranking(made, pool(records[:-1]))
    assert [(r.place, r.spec, round(r.mean, 6), round(r.behind, 6)) for r in rows] == [
        (1, "a@x", 93.0, 0.0), (2, "b@x", 91.5, 1.5), (3, "c@x", 75.0, 18.0)]
    assert [r.costs["images_per_s"] for r in rows] == [10.0, 20.0, 5.0]
    assert [r.spec for r in frontier(rows)] == ["a@x", "b@x"], "c is slower and worse than both"
    page = html.write(tmp_path / "r", records)
    text = re.sub(r"<[^>]+>", "", page.read_text())
    assert ("a@x is best in Image AUROC with 93.00 %‡ at 10.0 test pictures per second, 1.50 points before b@x; mean "
            "over 2 categories that all of these ran. 2 categories are too few") in text
    assert "d@x is not ranked: it lacks tile" in text and "on cpu: test" in text
    drawing = (tmp_path / "r" / "charts" / "speed-0.svg").read_text()
    assert drawing.count('class="d"') == 2 and drawing.count('class="o"') == 1
    records[2]["environment"]["device"] = records[3]["environment"]["device"] = "gpu: other"
    text = html.write(tmp_path / "two", records).read_text()
    assert "those of different devices are not to be compared" in text and "gpu: other" in text
    assert (tmp_path / "two" / "charts" / "speed-0.svg").read_text().count("<circle") == 2, "b ran elsewhere"


def test_equal_means_share_a_place_and_one_method_alone_is_not_best(tmp_path: Path) -> None:
    two = [make_record(m, "wood", image_auroc=0.5) for m in ("a@x", "b@x")]
    assert [r.place for r in ranking(comparisons(pool(two), ["a@x", "b@x"]), pool(two))] == [1, 1]
    text = re.sub(r"<[^>]+>", "", html.write(tmp_path / "r", two[:1]).read_text())
    assert "a@x has Image AUROC 50.00 %" in text and "is best" not in text


def test_a_methods_page_begins_with_its_categories(report: Path) -> None:
    page = next((report / "methods").glob("*-c-x.html")).read_text()
    table = page[page.index('<table class="heat">') : page.index('class="unit"')]
    assert re.findall(r'<th scope="row"><a href="(#u\d+)">(\w+)</a>', table) and 'id="u0"' in page
    assert "Mean over" in table and re.search(r'<td class="h\d">\d+\.\d\d', table)


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: apt-get install chromium")
def test_datasets_are_tabs_with_javascript_and_all_there_without(report: Path) -> None:
    shown = browser_test(report, "index.html", """
        const seen = () => Array.from(document.querySelectorAll('.tab')).map((t) => t.offsetHeight > 0).join('');
        const first = seen(); location.hash = '#d1'; window.dispatchEvent(new Event('hashchange'));
        const second = seen(); const at = document.querySelector('nav.tabs [aria-current]').hash;
        return [first, second, at].join('|');
    """)
    assert shown == "truefalse|falsetrue|#d1"
    assert "display" not in (report / "index.html").read_text(), "without a script nothing is hidden"
