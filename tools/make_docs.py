#!/usr/bin/env python3
"""Render the notebooks, the guides by task and the API to a static site; nothing is executed.

`python tools/make_docs.py` writes _docs/ (settings.ini's doc_path): first the sources of Sphinx in
_proc/, then their HTML, warnings being errors, then a check of every link in it. What did not
change since the last time is not built again.
"""

import argparse
import json
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path

import check_site
from docs_api import api_index, api_page
from docs_pages import TEXTS, Chapter, Site, modules, notebook_page, read_map, slug, title_of, write
from export import notebooks, settings

ROOT = Path(__file__).resolve().parent.parent
INDEX = "nbs/index.ipynb"
GUIDES = "guides/"
APART = ("results.ipynb",)  # chapters that the navigation has in a place of their own
REFERENCE = ("api/index", "results", "model_card", "shipped_solvers", "experiments/index")
PROJECT = ("contributing", "changelog")


def toctree(caption: str, pages: Iterable[str]) -> str:
    """A part of the navigation."""
    head = f":caption: {caption}\n" if caption else ""
    return "```{toctree}\n:hidden:\n" + head + "\n" + "\n".join(pages) + "\n```\n"


def docname(page: str) -> str:
    """A notebook's name without its ending."""
    return page.removesuffix(".ipynb")


def entries(site: Site, chapters: Iterable[Chapter]) -> str:
    """Chapters as a list: title, module, what each holds."""
    lines = ["{.chapters}"]
    for chapter in chapters:
        title = title_of(site.root / "nbs" / chapter.page)[0]
        module = f" [`{chapter.module}`](../api/{chapter.module}.md)" if chapter.module else ""
        lines.append(f"- [{title}](../{chapter.page}){module} \\\n  {chapter.about}")
    return "\n".join(lines)


def section_page(site: Site, title: str, chapters: list[Chapter]) -> str:
    """A section of the map: its chapters, in its order."""
    text = f"# {title}\n\n{entries(site, chapters)}\n\n"
    apart = [c for c in chapters if not c.page.startswith((GUIDES, *APART))]
    return text + toctree("", [f"/{docname(c.page)}" for c in apart])


def experiments(site: Site) -> list[Chapter]:
    """The notebooks of what was measured once."""
    names = [p.relative_to(site.root / "nbs").as_posix() for p in notebooks(site.root)]
    found = [name for name in names if name.startswith("experiments/")]
    return [Chapter(name, "", title_of(site.root / "nbs" / name)[1]) for name in found]


def experiments_page(site: Site) -> str:
    """The list of what was measured once."""
    head = "# Experiments\n\n{.subtitle}\nWhat was measured once, with dates and machines\n\n"
    pages = experiments(site)
    tree = toctree("", [f"/{docname(c.page)}" for c in pages])
    return head + entries(site, pages) + "\n\n" + tree


def tutorials_page(site: Site) -> str:
    """The guides by task, and in the navigation all of them."""
    name = "docs/tutorials.md"
    text = site.text((site.root / name).read_text(encoding="utf-8"), name)
    chapters = [c for section in read_map(site.root).values() for c in section]
    guides = [docname(c.page) for c in chapters if c.page.startswith(GUIDES)]
    order = sorted(guides, key=lambda guide: place_in(text, guide))
    return text + "\n" + toctree("", order)


def place_in(text: str, name: str) -> int:
    """Where a text first names something; its end if it never does."""
    found = text.find(name)
    return len(text) if found < 0 else found


def navigation(site: Site) -> str:
    """What the front page has besides its notebook: tutorials, chapters, reference."""
    sections = [f"chapters/{slug(title)}" for title in read_map(site.root)]
    parts = {"Start": ["tutorials"], "Chapters": sections, "Reference": REFERENCE}
    return "\n".join(toctree(c, pages) for c, pages in (parts | {"Project": PROJECT}).items())


def front_page(site: Site) -> dict:
    """The index notebook with the navigation at its end."""
    page = notebook_page(site, INDEX)
    cell = dict(cell_type="markdown", id="navigation", metadata={}, source=navigation(site))
    return page | dict(cells=[*page["cells"], cell])


def pages(site: Site) -> dict[str, str]:
    """Every page of the site, by its name in the folder of sources."""
    found = {"tutorials.md": tutorials_page(site), "experiments/index.md": experiments_page(site)}
    for name in (path.relative_to(site.root).as_posix() for path in notebooks(site.root)):
        page = front_page(site) if name == INDEX else notebook_page(site, name)
        found[site.place(name)] = json.dumps(page, indent=1, ensure_ascii=False)
    for name, place in TEXTS.items():
        if place.endswith(".md") and place not in found:
            found[place] = site.text((site.root / name).read_text(encoding="utf-8"), name)
    for title, chapters in read_map(site.root).items():
        found[f"chapters/{slug(title)}.md"] = section_page(site, title, chapters)
    for chapter in modules(site.root).values():
        found[f"api/{chapter.module}.md"] = api_page(site, chapter)
    return found | {"api/index.md": api_index(site)}


def stage(root: Path, source: Path) -> None:
    """Write the sources of the site to the folder `source`; what does not belong there goes."""
    site = Site(root, source)
    found = pages(site)
    for name, text in found.items():
        write(source / name, text)
    for path in [*source.rglob("*.md"), *source.rglob("*.ipynb")]:
        if path.relative_to(source).as_posix() not in found:
            path.unlink()


def build(root: Path, work: Path) -> int:
    """HTML in `work`/html of the sources beside it, by Sphinx; 0 if it warned of nothing."""
    from sphinx.cmd.build import main as sphinx

    options = ["-b", "html", "-q", "-W", "--keep-going", "-n", "-j", "auto"]
    folders = [str(work / "source"), str(work / "html")]
    return sphinx([*options, "-c", str(root / "docs"), "-d", str(work / "doctrees"), *folders])


def publish(work: Path, out: Path) -> None:
    """Put the site in place of the one in `out`: the pages and what they load, no ghosts."""
    made, source = work / "html", work / "source"
    known = {Path(name) for name in ("genindex", "search")}
    known |= {path.relative_to(source).with_suffix("") for path in source.rglob("*.*")}
    for page in made.rglob("*.html"):
        if page.relative_to(made).with_suffix("") not in known:
            page.unlink()
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(made, out, ignore=shutil.ignore_patterns(".buildinfo*", "_sources"))


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    parser = argparse.ArgumentParser(description="Render the project to a static site")
    parser.add_argument("--root", type=Path, default=ROOT, help="root of the project")
    parser.add_argument("--out", type=Path, help="folder of the site (default: doc_path)")
    parser.add_argument("--work", type=Path, help="folder of the sources (default: _proc)")
    parser.add_argument("--fresh", action="store_true", help="forget what was built before")
    args = parser.parse_args(argv)
    root = args.root.resolve()
    out = (args.out or root / settings(root)["doc_path"]).resolve()
    work = (args.work or root / "_proc").resolve()
    if args.fresh:
        shutil.rmtree(work, ignore_errors=True)
    sys.path.insert(0, str(root))
    stage(root, work / "source")
    failed = build(root, work)
    publish(work, out)
    return check_site.main([str(out)]) or failed


if __name__ == "__main__":
    raise SystemExit(main())
