#!/usr/bin/env python3
"""Run chapters and store what they print and draw, small enough for a repository.

`python tools/store_outputs.py nbs/foundations/classic.ipynb ...` runs each notebook in a kernel of
its own and writes its outputs into it: printed text, Markdown, SVG and PNG pictures. What a browser
would have to run (plotly, widgets) is left out; a figure is stored as the drawing that it makes of
itself. Cells that tests skip are not run, those marked `hide` or exported show nothing.
Without names: every notebook but the experiments, the results and the sweep.
"""

import argparse
import copy
import json
import os
import re
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))
from export import notebooks  # noqa: E402

SKIPPED = {"notest", "slow", "cuda", "skip_exec"}
SILENT = {"hide", "hide_output", "export", "exporti", "exports"}
# The most that is stored of each kind, in characters; larger ones are left out, text is cut.
LIMITS = {
    "image/svg+xml": 150_000,
    "image/png": 60_000,
    "text/markdown": 6_000,
    "text/plain": 3_000,
}
DIRECTIVE = re.compile(r"^\s*#\s*\|\s*([\w-]+)")
MACHINE = re.compile(r"/(tmp|home|root|work|Users|var)/\S+")
ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
# Run notebooks whose own settings take hours are shown with those of their tests.
SHORT = {"04_evaluate.ipynb", "train.ipynb", "classifier.ipynb", "card.ipynb"}


def directives(source: str) -> set[str]:
    """The nbdev directives at the head of a cell."""
    found = set()
    for line in source.splitlines():
        mark = DIRECTIVE.match(line)
        if not mark:
            break
        found.add(mark[1])
    return found


def tidy(text: str) -> str:
    """Printed text as it would stand on a page: no overwritten lines, no path of one machine."""
    lines = [line.split("\r")[-1] for line in ANSI.sub("", text).split("\n")]
    text = MACHINE.sub("...", "\n".join(lines))
    limit = LIMITS["text/plain"]
    return text if len(text) <= limit else text[:limit] + "\n..."


def kept(output: nbformat.NotebookNode) -> nbformat.NotebookNode | None:
    """The part of an output that is stored, or None."""
    if output.output_type == "stream":
        text = tidy(output.text)
        is_shown = output.name == "stdout" and text
        return nbformat.v4.new_output("stream", name="stdout", text=text) if is_shown else None
    if output.output_type not in ("display_data", "execute_result"):
        return None
    if "application/vnd.jupyter.widget-view+json" in output.data:
        return None
    for kind, limit in LIMITS.items():
        content = output.data.get(kind)
        if content is None:
            continue
        content = "".join(content)
        if kind == "text/plain":
            content = tidy(content)
        if len(content) <= limit + 4 and not MACHINE.search(content):
            return nbformat.v4.new_output("display_data", data={kind: content})
    return None


def joined(outputs: list[nbformat.NotebookNode]) -> list[nbformat.NotebookNode]:
    """Printed lines that follow each other as one output."""
    found: list[nbformat.NotebookNode] = []
    for output in outputs:
        if found and output.output_type == found[-1].output_type == "stream":
            found[-1].text += output.text
        else:
            found.append(output)
    return found


def run(path: Path) -> int:
    """Run one notebook and store its outputs; returns their size in characters."""
    notebook = nbformat.read(path, as_version=4)
    program = copy.deepcopy(notebook)
    cells = [cell for cell in program.cells if cell.cell_type == "code"]
    for cell in cells:
        if SKIPPED & directives(cell.source):
            cell.source = ""
    client = NotebookClient(
        program, timeout=3600, resources={"metadata": {"path": str(path.parent)}}
    )
    client.execute()
    found = {cell.id: cell.outputs for cell in cells}
    size = 0
    for cell in notebook.cells:
        if cell.cell_type != "code":
            continue
        cell.execution_count = None
        shown = [] if SILENT & directives(cell.source) else found[cell.id]
        cell.outputs = joined([one for one in map(kept, shown) if one is not None])
        size += len(json.dumps(cell.outputs))
    temporary = path.with_suffix(".ipynb.tmp")
    nbformat.write(notebook, temporary)
    os.replace(temporary, path)
    return size


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("notebooks", nargs="*", type=Path)
    given = parser.parse_args().notebooks
    own = {"experiments", "results.ipynb", "index.ipynb", "04_evaluate.ipynb"}
    every = [p for p in notebooks(ROOT) if not own & set(p.relative_to(ROOT / "nbs").parts)]
    os.environ["PYTHONPATH"] = str(ROOT)
    failed = []
    for path in [p.resolve() for p in given] or every:
        os.environ.pop("IN_TEST", None)
        if path.name in SHORT:
            os.environ["IN_TEST"] = "1"
        try:
            size = run(path)
            print(f"{path.relative_to(ROOT)}: {size // 1000} KB", flush=True)
        except Exception as e:
            failed.append(path)
            print(f"{path.relative_to(ROOT)}: FAILED: {str(e)[-1500:]}", flush=True)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
