#!/usr/bin/env python3
"""Render nbs/index.ipynb to README.md, with its stored outputs; nothing is executed.

`python tools/make_readme.py` writes README.md; with
`--check` it only compares and exits 1 when the two differ.
"""

import argparse
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path, PurePosixPath

import nbformat

ROOT = Path(__file__).resolve().parent.parent
NOTICE = (
    "<!-- Written by tools/make_readme.py from {source}: "
    "edit that notebook, then run `make readme`. -->"
)
DIRECTIVE = re.compile(r"^\s*#\s*\|\s*(.*?)\s*$")
LINK = re.compile(r"(\]\()([^)\s]+)([^)]*\))")
ATTRIBUTE = re.compile(r"""(\b(?:src|href)=["'])([^"']+)(["'])""")
FENCE = re.compile(r"^(\s*)(`{3,}|~{3,})")
ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")


def rebase(target: str, folder: str) -> str:
    """`target`, a link written relative to `folder` (posix,
    relative to the root), made relative to the root."""
    if re.match(r"^([a-zA-Z][a-zA-Z0-9+.-]*:|#|/)", target):
        return target
    return os.path.normpath(PurePosixPath(folder) / target).replace(os.sep, "/")


def change_links(text: str, change: Callable[[str], str]) -> str:
    """Pass the links and image sources of a markdown text
    through `change`; code in fences or backticks stays as it is."""
    out, fence = [], ""
    for line in text.split("\n"):
        mark = FENCE.match(line)
        if mark and not fence:
            fence = mark[2]
        elif mark and mark[2].startswith(fence) and not line.strip().strip(fence[0]):
            fence = ""
        elif not fence:
            # Odd parts are code. A link whose text is code,
            # [`x`](y), keeps its `](y)` whole in the part after it.
            parts = re.split(r"(`[^`]*`)", line)
            for i in range(0, len(parts), 2):
                for pattern in (LINK, ATTRIBUTE):
                    parts[i] = pattern.sub(lambda m: m[1] + change(m[2]) + m[3], parts[i])
            line = "".join(parts)
        out.append(line)
    return "\n".join(out)


def rebase_links(text: str, folder: str) -> str:
    """Rewrite the relative links and image sources of a
    markdown text written in `folder`; see `change_links`."""
    return change_links(text, lambda target: rebase(target, folder))


def output_text(output: dict) -> tuple[str, str] | None:
    """The text of one stored output and its kind,
    'markdown' or 'text'; None for what a README can't show."""
    if output["output_type"] == "stream":
        return ANSI.sub("", output["text"]), "text"
    data = output.get("data", {})
    if "text/markdown" in data:
        return data["text/markdown"], "markdown"
    if "text/plain" in data and not any(
        kind.startswith(("image/", "application/")) for kind in data
    ):
        return ANSI.sub("", data["text/plain"]), "text"
    return None


def fenced(text: str, language: str = "") -> str:
    """`text` in a code fence that is longer than any run of backticks in it."""
    ticks = max((len(run) for run in re.findall(r"`{3,}", text)), default=2) + 1
    return f"{'`' * ticks}{language}\n{text.strip(chr(10))}\n{'`' * ticks}"


def render_code(cell: dict, folder: str) -> list[str]:
    """The blocks of one code cell: its source without directives, then its text outputs."""
    lines = cell["source"].split("\n")
    directives = {m[1] for line in lines if (m := DIRECTIVE.match(line))}
    if directives & {"hide", "include: false"} or any(
        d.startswith("default_exp") for d in directives
    ):
        return []
    source = "\n".join(line for line in lines if not DIRECTIVE.match(line)).strip("\n")
    blocks = (
        [fenced(source, "python")]
        if source and not directives & {"hide_input", "echo: false"}
        else []
    )
    if directives & {"hide_output", "output: false"}:
        return blocks
    for text, kind in filter(None, map(output_text, cell.get("outputs", []))):
        if text.strip():
            blocks.append(
                rebase_links(text.strip("\n"), folder) if kind == "markdown" else fenced(text)
            )
    return blocks


def render(notebook: Path, root: Path = ROOT) -> str:
    """The README text of `notebook`; links relative to the notebook become relative to `root`."""
    nb = nbformat.read(notebook, as_version=4)
    source = notebook.resolve().relative_to(root.resolve()).as_posix()
    folder = PurePosixPath(source).parent.as_posix()
    blocks = [NOTICE.format(source=source)]
    for cell in nb.cells:
        if cell.cell_type == "code":
            blocks += render_code(cell, folder)
        elif cell.cell_type == "markdown" and cell.source.strip():
            blocks.append(rebase_links(cell.source.strip("\n"), folder))
    return "\n\n".join(blocks) + "\n"


def write(path: Path, text: str) -> None:
    """Write `text` to `path` in one step, so that a reader never sees half a file."""
    tmp = path.with_name(path.name + ".tmp")
    tmp.write_text(text, encoding="utf-8")
    os.replace(tmp, path)


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    parser = argparse.ArgumentParser(description="Render nbs/index.ipynb to README.md")
    parser.add_argument(
        "--check", action="store_true", help="compare only; exit 1 when README.md is out of step"
    )
    parser.add_argument(
        "--root", type=Path, default=ROOT, help="root of the project (default: this one)"
    )
    args = parser.parse_args(argv)
    notebook, readme = args.root / "nbs" / "index.ipynb", args.root / "README.md"
    if not notebook.exists():
        print(
            f"make_readme: {notebook} does not exist: the README is made from it", file=sys.stderr
        )
        return 1
    text = render(notebook, args.root)
    if args.check:
        if readme.exists() and readme.read_text(encoding="utf-8") == text:
            return 0
        print(
            "README.md is out of step with nbs/index.ipynb: "
            "run `make readme` and commit the result",
            file=sys.stderr,
        )
        return 1
    write(readme, text)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
