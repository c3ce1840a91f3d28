"""The pages of the API: one for each module of the map, and an index with the front door first."""

import importlib
import pkgutil
import re
from types import ModuleType

from docs_pages import Chapter, Site, modules, read_map, title_of

# The navigation has the index alone: a tree of all names beside every page would be most of it.
PAGE = """---
orphan: true
---

# `{module}`

{{.subtitle}}
{about}

{{.made-from}}
The chapter: [{title}](../{page}), all modules: [API](index.md)

```{{eval-rst}}
.. automodule:: {module}
   :members:
```
"""
INDEX = """# API

{{.subtitle}}
The public names with their types and what they need; from A to Z in the {{ref}}`genindex`

## The front door

`import gas_nb` has these names; each is loaded when it is first asked for.

{front}

## The modules

{rooms}

## Other addresses

Packages and short modules that hand on names of the modules above.

{others}
"""


def api_page(site: Site, chapter: Chapter) -> str:
    """The page of a module: what its names are is said by Sphinx's autodoc."""
    title = title_of(site.root / "nbs" / chapter.page)[0]
    return PAGE.format(module=chapter.module, about=chapter.about, title=title, page=chapter.page)


def full_name(module: ModuleType, name: str) -> str | None:
    """Where a name that a module hands on is defined, as in gas_nb.tableau.sample."""
    value = getattr(module, name)
    home = getattr(value, "__module__", "")
    known = isinstance(home, str) and home.startswith("gas_nb.")
    return f"{home}.{value.__name__}" if known and hasattr(value, "__name__") else None


def reference(full: str, text: str) -> str:
    """A link to the entry of a name."""
    return f"{{py:obj}}`{text} <{full}>`"


def first_line(value: object) -> str:
    """The first sentence of a docstring, on one line."""
    text = " ".join((getattr(value, "__doc__", None) or "").split("\n\n")[0].split())
    return re.split(r"(?<!Alg)(?<!Eq)(?<!Sec)\. ", text)[0].rstrip(".:")


def front_door() -> str:
    """A line for each name of gas_nb.__all__."""
    door = importlib.import_module("gas_nb")
    lines = []
    for name in door.__all__:
        full = full_name(door, name)
        lines.append(f"- {reference(full, f'gas_nb.{name}')}: {first_line(getattr(door, name))}")
    return "\n".join(lines)


def rooms(site: Site) -> str:
    """The modules of each section of the map."""
    blocks = []
    for title, chapters in read_map(site.root).items():
        lines = [f"- [`{c.module}`]({c.module}.md): {c.about}" for c in chapters if c.module]
        blocks += [f"### {title}\n\n" + "\n".join(lines)] if lines else []
    return "\n\n".join(blocks)


def facades(site: Site) -> list[str]:
    """The modules of gas_nb that have no chapter and hand on names."""
    package = importlib.import_module("gas_nb")
    found = [m.name for m in pkgutil.walk_packages(package.__path__, "gas_nb.")]
    private = re.compile(r"\._")  # a command's __main__ too
    return [n for n in found if n not in modules(site.root) and not private.search(n)]


def others(site: Site) -> str:
    """A line for each facade with its names."""
    lines = []
    for name in facades(site):
        module = importlib.import_module(name)
        values = {n: getattr(module, n) for n in getattr(module, "__all__", [])}
        names = [n for n, value in values.items() if not isinstance(value, ModuleType)]
        places = {n: full_name(module, n) for n in names}
        shown = [reference(full, n) if full else f"`{n}`" for n, full in places.items()]
        lines.append(f"- `{name}`: {', '.join(shown)}" if shown else f"- `{name}`")
    return "\n".join(lines)


def api_index(site: Site) -> str:
    """The index of the API."""
    return INDEX.format(front=front_door(), rooms=rooms(site), others=others(site))
