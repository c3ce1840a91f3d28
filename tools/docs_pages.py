"""The pages of the site: notebooks and markdown of the project, as Sphinx with MyST reads them.

The map in CONTRIBUTING.md gives the chapters and their order. Here cells that are hidden in a
notebook are left out, nbdev's directives taken off, and links pointed at the pages of the site.
"""

import ast
import json
import os
import re
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath

import nbformat
from export import DEFAULT_EXP
from make_readme import DIRECTIVE, change_links

# Documents beside the notebooks, by their place in the project and on the site.
TEXTS = {
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "README.md": "index.ipynb",
    "docs/tutorials.md": "tutorials.md",
    "gas_nb/weights/fmnist/README.md": "model_card.md",
    "gas_nb/solvers/fmnist/README.md": "shipped_solvers.md",
}
FOLDERS = {"nbs/experiments": "experiments/index.md", "nbs/results": "results.ipynb"}
FOLDED = 24  # an exported cell with more lines is folded
SECTION = re.compile(r"^### (.+)$", re.MULTILINE)
ROW = re.compile(
    r"^\| \[[^\]]+\]\(nbs/(?P<page>[^)]+)\) \| (?:`(?P<module>[^`]+)`)? ?\| (?P<about>.+) \|$"
)
NAMED = re.compile(r"^`((?:[a-z_0-9]+/)+[a-z_0-9]+)`$")
MODULE = re.compile(r"^`(gas_nb(?:\.[a-z_0-9]+)+)`$")
FORMULA = re.compile(r"\$\$(?:[^$`\n]|\n(?!\n))+\$\$")
ELSEWHERE = re.compile(r"^([a-zA-Z][a-zA-Z0-9+.-]*:|#|//)")


@dataclass(frozen=True)
class Chapter:
    """A row of the map: the notebook under nbs/, its module ("" for none), what it holds."""

    page: str
    module: str
    about: str


def read_map(root: Path) -> dict[str, list[Chapter]]:
    """The sections of the map in CONTRIBUTING.md with their chapters, each chapter once."""
    text = (root / "CONTRIBUTING.md").read_text(encoding="utf-8").split("\n## Map\n")[1]
    parts = SECTION.split(text)[1:]
    found: dict[str, list[Chapter]] = {}
    seen: set[str] = set()
    for title, body in zip(parts[::2], parts[1::2]):
        rows = [ROW.match(line) for line in body.splitlines()]
        chapters = [Chapter(m["page"], m["module"] or "", m["about"]) for m in rows if m]
        found[title] = [c for c in chapters if c.page not in seen and not seen.add(c.page)]
    return found


@lru_cache
def modules(root: Path) -> dict[str, Chapter]:
    """The chapters that are modules, by the module's name, in the order of the map."""
    found = [chapter for chapters in read_map(root).values() for chapter in chapters]
    return {chapter.module: chapter for chapter in found if chapter.module}


def slug(title: str) -> str:
    """A heading as the name of a file."""
    return re.sub(r"\W+", "-", title.lower()).strip("-")


@dataclass(frozen=True)
class Site:
    """The project at `root` as sources for Sphinx in `source`."""

    root: Path
    source: Path

    def place(self, name: str) -> str | None:
        """Where a file or folder of the project is on the site; None if it is no page of it."""
        if name in TEXTS or name in FOLDERS:
            return (TEXTS | FOLDERS)[name]
        is_notebook = name.startswith("nbs/") and name.endswith(".ipynb")
        return name.removeprefix("nbs/") if is_notebook else None

    def link(self, target: str, name: str) -> str:
        """`target`, a link in the project's file `name`, as a link of that file's page.

        What is no page is copied beside the pages; ValueError if it is not there at all.
        """
        if ELSEWHERE.match(target):
            return target
        path, mark, anchor = target.partition("#")
        full = os.path.normpath(PurePosixPath(name).parent / path)
        if not (self.root / full).exists():
            raise ValueError(f"{name} links to {target}, which is not there")
        page = self.place(full)
        if page is None:
            page = full.removeprefix("nbs/") if full.startswith("nbs/") else f"files/{full}"
            copy(self.root / full, self.source / page)
        return self.relative(page, name) + mark + anchor

    def relative(self, page: str, name: str) -> str:
        """The link from the page of the project's file `name` to a page of the site."""
        here = self.place(name) or name
        return os.path.relpath(page, PurePosixPath(here).parent)

    def text(self, text: str, name: str) -> str:
        """A markdown text of the file `name`, for the site: chapters and modules named as code
        turned into links, and all links pointed at pages."""
        kept = on_one_line(text)
        return self._named(change_links(kept, lambda target: self.link(target, name)), name)

    def _named(self, text: str, name: str) -> str:
        out, fence = [], False
        for line in text.split("\n"):
            fence ^= line.lstrip().startswith(("```", "~~~"))
            heading = line.startswith("#")
            out.append(line if fence or heading else self._named_in(line, name))
        return "\n".join(out)

    def _named_in(self, line: str, name: str) -> str:
        parts = re.split(r"(`[^`]*`)", line)
        for i in range(1, len(parts), 2):
            linked = parts[i - 1].rfind("[") > parts[i - 1].rfind("]") or parts[i + 1][:2] == "]("
            page = None if linked else self._page_of(parts[i])
            if page:
                parts[i] = f"[{parts[i]}]({self.relative(page, name)})"
        return "".join(parts)

    def _page_of(self, code: str) -> str | None:
        """The page that a piece of code names, as in `metrics/spec` or `gas_nb.tableau`."""
        chapter, module = NAMED.match(code), MODULE.match(code)
        if chapter and (self.root / "nbs" / f"{chapter[1]}.ipynb").exists():
            return f"{chapter[1]}.ipynb"
        return f"api/{module[1]}.md" if module and module[1] in modules(self.root) else None


def on_one_line(text: str) -> str:
    """A text whose formulas each stand on one line: a line in one that begins with + is no list."""
    return FORMULA.sub(lambda found: found[0].replace("\n", " "), text)


def copy(path: Path, target: Path) -> None:
    """Copy a file, unless the same one is there."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if not target.exists() or target.read_bytes() != path.read_bytes():
        shutil.copyfile(path, target)


def write(path: Path, text: str) -> None:
    """Write a page, unless it is there: Sphinx reads again what is newer."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")


# --- notebooks


def directives(source: str) -> set[str]:
    """The directives of a cell, as in {"export"}."""
    return {found[1] for line in source.split("\n") if (found := DIRECTIVE.match(line))}


def is_hidden(cell: dict) -> bool:
    """Whether a reader of the site does not see a cell: hidden, or there to name a module."""
    marks = directives(cell["source"]) if cell["cell_type"] == "code" else set()
    names_module = any(mark.startswith("default_exp") for mark in marks)
    return names_module or bool(marks & {"hide", "include: false"})


def is_imports(source: str) -> bool:
    """Whether a cell holds imports and nothing else."""
    try:
        body = ast.parse(source).body
    except SyntaxError:
        return False
    return bool(body) and all(isinstance(node, (ast.Import, ast.ImportFrom)) for node in body)


def fold(source: str) -> str | None:
    """What stands in the place of a folded cell; None for one that is shown."""
    count = len(source.split("\n"))
    if is_imports(source):
        return "Imports" if count > 4 else None
    names = re.findall(r"^(?:def|class) \w+", source, re.MULTILINE)
    shown = ", ".join(names[:3]) + (" ..." if len(names) > 3 else "")
    return f"{shown or 'Code'} ({count} lines)" if count > FOLDED else None


def code_cell(cell: dict) -> dict:
    """A code cell without directives; folded where it is exported and long."""
    marks, metadata = directives(cell["source"]), {}
    lines = [line for line in cell["source"].split("\n") if not DIRECTIVE.match(line)]
    source = "\n".join(lines).strip("\n")
    tags = []
    if marks & {"hide_input", "echo: false"}:
        tags.append("remove-input")
    if marks & {"hide_output", "output: false"}:
        tags.append("remove-output")
    foldable = marks & {"export", "exporti", "exports"} or is_imports(source)
    summary = fold(source) if foldable else None
    if summary:
        tags.append("hide-input")
        metadata["mystnb"] = dict(code_prompt_show=summary, code_prompt_hide=summary)
    return cell | dict(source=source, metadata=metadata | dict(tags=tags))


def title_of(notebook: Path) -> tuple[str, str]:
    """The title and the line under it of a notebook."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    texts = ["".join(c["source"]) for c in cells if c["cell_type"] == "markdown"]
    head = next(text for text in texts if text.startswith("# "))
    title, *below = head.split("\n")
    about = next((line[2:] for line in below if line.startswith("> ")), "")
    return title[2:].strip(), about


def subtitled(text: str, note: str) -> str:
    """The title cell: its quoted line is the subtitle, and below it stands `note`."""
    title, *below = text.split("\n")
    rest = "\n".join(below).strip("\n")
    if rest.startswith("> "):
        about, _, rest = rest.partition("\n")
        rest = rest.lstrip("\n")
        title += f"\n\n{{.subtitle}}\n{about[2:]}"
    return f"{title}\n\n{note}\n\n{rest}".rstrip("\n")


def module_of(cells: Iterable[dict]) -> str:
    """The module that a notebook exports to, as in gas_nb.tableau; "" for none."""
    names = [name for cell in cells for name in DEFAULT_EXP.findall(cell["source"])]
    return f"gas_nb.{names[0]}" if names else ""


def notebook_page(site: Site, name: str) -> dict:
    """The notebook `name` of the project as a page of the site."""
    notebook = nbformat.read(site.root / name, as_version=4)
    note = f"{{.made-from}}\nNotebook `{name}`"
    module = module_of(c for c in notebook.cells if c.cell_type == "code")
    if module:
        note += f", module [`{module}`]({site.relative(f'api/{module}.md', name)})"
    cells, titled = [], False
    for cell in notebook.cells:
        if is_hidden(cell) or not cell.source.strip():
            continue
        if cell.cell_type == "markdown":
            text = site.text(cell.source, name)
            if not titled and text.startswith("# "):
                text, titled = subtitled(text, note if name != "nbs/index.ipynb" else ""), True
            cell = cell | dict(source=text)
        elif cell.cell_type == "code":
            cell = code_cell(cell)
        cells.append(cell)
    language = dict(name="python", pygments_lexer="python")
    return notebook | dict(cells=cells, metadata=notebook.metadata | dict(language_info=language))
