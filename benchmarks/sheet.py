"""The table of all baselines on the page docs/baselines.md, from their files: `python -m benchmarks.sheet [--check]`.

Paper, code and departures are read from the docstring that opens a method's file, the backbone from its default
preset, the kind from the families in README.md, and figures from the tables of results/measured/. --check writes
nothing and ends with 1 where the page is not what would be written.
"""

from __future__ import annotations

import argparse
import ast
import re
from dataclasses import asdict
from pathlib import Path

from models import registry
from models.weights import ARCHIVES

REPO = Path(__file__).resolve().parents[1]
PAGE = REPO / "docs" / "baselines.md"
START, END = "<!-- methods: start -->", "<!-- methods: end -->"
HEAD = re.compile(r".+? \(([^()]+)\)")
YEAR = re.compile(r"\b(?:19|20)\d\d\b(?!\.\d)")
CODE = re.compile(  # owner/name, perhaps a file, perhaps a commit
    r"(?<![\w./])([A-Za-z][\w-]+/[A-Za-z][\w.-]+?)(?=[,):]| at | itself| \()"
    r"(?:(?:,(?: [\w./]+\.py)?)? (?:at|commit) ([0-9a-f]{7}))?"
)
DEPARTURE = re.compile(r"\b(?:Left|Other|(?:C|and c)hosen here[^:.]*)[:,] (.*?)(?<!App)(?<!Sec)(?<!Eq)\.(?= [A-Z`]|$)")
TAG = re.compile(r"\w+\.[a-z]\w+")


def sheet() -> str:
    """Both tables, in Markdown."""
    rows = [
        "| method | paper | year | kind | backbone of its default preset | held against | known departures |",
        "|---|---|---|---|---|---|---|",
    ]
    kinds = families()
    for name, entry in registry.entries().items():
        if entry.module.startswith("models.baselines."):
            paper, year, code, left = about(entry.module)
            rows.append(f"| `{name}` | {paper} | {year} | {kinds[name]} | {backbone(name)} | {code} | {left} |")
    found = measured()
    rows += [
        "", "Image AUROC / pixel AUROC / AUPRO@0.3 in percent, where figures of a category are published and a record",
        "was kept. The page named in the last column says what the letters mean and under what the records were made.",
        "", "| method | category | published | measured | from |", "|---|---|---|---|---|", *found,
    ]
    return "\n".join(rows)


def about(module: str) -> tuple[str, str, str, str]:
    """Paper, its year, whose code a method's file was held against, and what departs: from the file's docstring."""
    path = REPO / (module.replace(".", "/") + ".py")
    text = " ".join((ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").split())
    head = HEAD.match(text)
    if head is None or not (year := YEAR.search(head[1])):
        raise ValueError(f"{path}: its docstring must open with 'NAME (authors, where and year): ...'")
    repositories = dict(m.groups() for m in CODE.finditer(text) if not m[1].endswith(".py"))
    code = "; ".join(
        f"[{repo}](https://github.com/{repo})" + (f" at {commit}" if commit else "")
        for repo, commit in repositories.items()
    )
    absent = re.search("published no code|never published|came with code", text)
    whose = f"{'others' if absent else 'authors'}': {code}" if code else "no code is public" if absent else "nothing"
    return head[1], year[0], whose, "; ".join(DEPARTURE.findall(text)) or "none known"


def backbone(name: str) -> str:
    """The tags of pretrained weights in the default preset."""
    values = asdict(registry.config(name))
    tags = [value for value in values.values() if isinstance(value, str) and TAG.fullmatch(value)]
    tags += [tag for tag in ARCHIVES if tag == f"pretrained_teacher_{values.get('model')}"]
    return ", ".join(f"`{tag}`" for tag in dict.fromkeys(tags)) or "none"


def families() -> dict[str, str]:
    """Method -> its family in README.md."""
    text = (REPO / "README.md").read_text(encoding="utf-8")
    table = text[text.index("| family | methods |") :].split("\n\n")[0].splitlines()[2:]
    return {name: row.split("|")[1].strip() for row in table for name in re.findall(r"`(\w+)`", row)}


def measured() -> list[str]:
    """Rows of the tables 'method, category, published, measured' in results/measured/."""
    found = []
    for path in sorted((REPO / "results" / "measured").glob("*.md")):
        lines = path.read_text(encoding="utf-8").splitlines()
        for i, line in enumerate(lines):
            if line == "| method | category | published | measured |":
                rest = lines[i + 2 :]
                rows = rest[: next((j for j, row in enumerate(rest) if not row.startswith("|")), len(rest))]
                found += [f"{row} [{path.stem}](../results/measured/{path.name}) |" for row in rows]
    return found


def page() -> str:
    """The whole page with today's tables."""
    text = PAGE.read_text(encoding="utf-8")
    before, rest = text.split(START)
    return f"{before}{START}\n\n{sheet()}\n\n{END}{rest.split(END)[1]}"


def main() -> int:
    """Write the page, or with --check say whether it is current."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    made, args = page(), parser.parse_args()
    if args.check:
        current = PAGE.read_text(encoding="utf-8") == made
        print(f"{PAGE.name}: " + ("current" if current else "not current; run python -m benchmarks.sheet"))
        return int(not current)
    PAGE.write_text(made, encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
