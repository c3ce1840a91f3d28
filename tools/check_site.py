#!/usr/bin/env python3
"""Check a folder of HTML: every link and anchor inside it leads somewhere, links out of it are
well formed, and no page loads anything from elsewhere.

`python tools/check_site.py _docs` prints what is wrong and exits 1; no network is needed.
"""

import argparse
import sys
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

LOADS = {"img": "src", "script": "src", "source": "src", "iframe": "src", "link": "href"}
SCHEMES = ("http", "https", "mailto", "data")


@dataclass
class Page(HTMLParser):
    """The anchors, links and loaded files of one page."""

    anchors: set[str] = field(default_factory=set)
    links: list[str] = field(default_factory=list)
    loads: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__(convert_charrefs=True)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value for name, value in attrs if value}
        self.anchors |= {given[name] for name in ("id", "name") if name in given}
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        if tag in LOADS and LOADS[tag] in given:
            self.loads.append(given[LOADS[tag]])


def read_page(path: Path) -> Page:
    """Read one page."""
    page = Page()
    page.feed(path.read_text(encoding="utf-8"))
    return page


def trouble(folder: Path) -> list[str]:
    """One line for each link of the site in `folder` that does not lead anywhere."""
    pages = {path: read_page(path) for path in sorted(folder.rglob("*.html"))}
    if not pages:
        return [f"{folder}: no pages"]
    found = []
    for path, page in pages.items():
        name = path.relative_to(folder)
        found += [f"{name}: {t}: {why}" for t in page.links if (why := wrong(path, t, pages))]
        for target in page.loads:
            why = wrong(path, target, pages)
            if urlsplit(target).scheme in ("http", "https") or target.startswith("//"):
                why = "is loaded from elsewhere"
            found += [f"{name}: {target}: {why}"] if why else []
    return list(dict.fromkeys(found))


def wrong(path: Path, target: str, pages: dict[Path, Page]) -> str:
    """What is wrong with a link on the page `path`; "" if nothing is."""
    parts = urlsplit(target)
    if parts.scheme:
        return well_formed(target)
    if parts.netloc:
        return "has no scheme"
    place = (path.parent / unquote(parts.path)).resolve() if parts.path else path
    place = place / "index.html" if place.is_dir() else place
    known = pages.get(place)
    if known is None and not place.is_file():
        return "no such page"
    anchor = unquote(parts.fragment)
    return "no such anchor" if anchor and known and anchor not in known.anchors else ""


def well_formed(target: str) -> str:
    """What is wrong with the form of a link to elsewhere."""
    parts = urlsplit(target)
    if parts.scheme not in SCHEMES:
        return f"scheme {parts.scheme!r} is none of {', '.join(SCHEMES)}"
    hosted = parts.scheme in ("http", "https")
    if hosted and (not parts.hostname or "." not in parts.hostname or " " in target):
        return "is no address"
    return ""


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    parser = argparse.ArgumentParser(description="Check the links of a folder of HTML")
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args(argv).folder.resolve()
    found = trouble(folder)
    for line in found:
        print(line, file=sys.stderr)
    print(f"{len(list(folder.rglob('*.html')))} pages, {len(found)} links that lead nowhere")
    return 1 if found else 0


if __name__ == "__main__":
    raise SystemExit(main())
