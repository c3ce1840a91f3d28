"""The table of nbs/guides/nothing_lost.ipynb, made of what the benchmarks have measured.

python benchmarks/fault_table.py            write it into the page
python benchmarks/fault_table.py --check    status 1 if the page says something else
"""

import argparse
import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "nbs" / "guides" / "nothing_lost.ipynb"
CELL = "nothinglosttable"
FILES = dict(
    faults="Commands, disturbed",
    fuzz="Readers, fed with mutated files",
    numbers="Numbers that break",
    load="The app under load",
)
COLUMNS = dict(what="what", tried="tried", refused="refused in words", worked="worked", lost="lost")


def _value(value) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)


def table(results: Path = RESULTS) -> str:
    "Markdown: a table for each file of results that is there."
    parts = []
    for name, title in FILES.items():
        path = results / f"{name}.json"
        if not path.is_file():
            continue
        found = json.loads(path.read_text(encoding="utf-8"))
        lines = [
            f"### {title}",
            "",
            f"| {' | '.join(COLUMNS.values())} |",
            "|---|---:|---:|---:|---:|",
        ]
        for row in found["rows"]:
            lines.append(f"| {' | '.join(_value(row.get(key, 0)) for key in COLUMNS)} |")
        lines += ["", f"`benchmarks/results/{name}.json`, {found['machine']}, {found['date']}."]
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    given = parser.parse_args(argv)
    page = json.loads(PAGE.read_text(encoding="utf-8"))
    (cell,) = [cell for cell in page["cells"] if cell["id"] == CELL]
    text = table().rstrip("\n")
    if "".join(cell["source"]) == text:
        return 0
    if given.check:
        print(f"{PAGE.name} is not in step: python benchmarks/fault_table.py", file=sys.stderr)
        return 1
    cell["source"] = text.splitlines(keepends=True)
    PAGE.write_text(json.dumps(page, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
