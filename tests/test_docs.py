"""The site: chapters and public names have a place, nothing hidden shows, links lead somewhere."""

import json
import re
import sys
from html.parser import HTMLParser
from pathlib import Path

import check_site
import gas_nb
import make_docs
import pytest
from docs_api import facades, first_line
from docs_pages import Site, code_cell, directives, fold, is_hidden, modules, read_map, subtitled
from export import notebooks, settings, tree_files

ROOT = Path(__file__).resolve().parent.parent
TREE = re.compile(r"```\{toctree\}\n(.*?)```", re.DOTALL)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    return Site(ROOT, tmp_path_factory.mktemp("source"))


@pytest.fixture(scope="module")
def pages(site):
    """Every page of the site as Sphinx is given it, notebooks as values."""
    found = make_docs.pages(site)
    return {k: json.loads(v) if k.endswith(".ipynb") else v for k, v in found.items()}


def text_of(page) -> str:
    return page if isinstance(page, str) else "\n".join(c["source"] for c in page["cells"])


def below(pages: dict, name: str) -> list[str]:
    """What the navigation of a page leads to, in its order, the pages below those included."""
    found = []
    for tree in TREE.findall(text_of(pages[name])):
        for line in filter(None, (line.strip() for line in tree.splitlines())):
            if line.startswith(":"):
                continue
            entry = re.sub(r".*<(.+)>", r"\1", line)
            folder = "" if entry.startswith("/") else name.rpartition("/")[0]
            place = f"{folder}/{entry}".strip("/")
            page = next(p for p in (f"{place}.md", f"{place}.ipynb") if p in pages)
            found += [page, *below(pages, page)]
    return found


# --- what is there


def test_every_chapter_is_in_the_navigation_once_and_in_the_order_of_the_map(pages):
    order = below(pages, "index.ipynb")
    named = [page for page in pages if not page.startswith("api/gas_nb.")]  # by the API's index
    assert sorted(order + ["index.ipynb"]) == sorted(named)  # no page twice, none left out
    for chapters in read_map(ROOT).values():
        apart = (make_docs.GUIDES, *make_docs.APART)
        names = [c.page for c in chapters if not c.page.startswith(apart)]
        assert [page for page in order if page in names] == names
    parts = ["tutorials.md", "00_solver.ipynb", "api/index.md", "results.ipynb"]
    parts += ["experiments/index.md", "changelog.md"]
    assert sorted(parts, key=order.index) == parts


def test_the_landing_page_leads_to_every_guide_by_task(pages):
    text = pages["tutorials.md"].split("```{toctree}")[0]
    guides = [page for page in pages if page.startswith("guides/")]
    assert len(guides) >= 11 and [g for g in guides if f"]({g})" not in text] == []


def test_every_public_name_is_in_the_api(pages):
    index = pages["api/index.md"]
    for name in gas_nb.__all__:
        found = re.search(rf"\{{py:obj\}}`gas_nb\.{name} <(gas_nb\.[\w.]+)\.{name}>`: \S", index)
        assert found and found[1] in sys.modules, name
        homes = [m for m in modules(ROOT) if name in getattr(sys.modules.get(m), "__all__", ())]
        assert homes and f"automodule:: {homes[0]}\n   :members:" in pages[f"api/{homes[0]}.md"]
    assert [m for m in modules(ROOT) if f"[`{m}`]({m}.md)" not in index] == []


def test_other_addresses_are_those_of_modules_without_a_chapter(site, pages):
    found = facades(site)
    assert {"gas_nb.fit", "gas_nb.teacher", "gas_nb.figures"} <= set(found)
    assert not set(found) & set(modules(ROOT))
    assert [name for name in found if f"- `{name}`" not in pages["api/index.md"]] == []


# --- what is hidden


def code(name: str) -> list[dict]:
    found = json.loads((ROOT / name).read_text(encoding="utf-8"))["cells"]
    return [c | {"source": "".join(c["source"])} for c in found if c["cell_type"] == "code"]


def test_no_hidden_cell_and_no_directive_is_on_a_page(site, pages):
    hidden = 0
    for path in notebooks(ROOT):
        name = path.relative_to(ROOT).as_posix()
        shown = [c for c in pages[site.place(name)]["cells"] if c["cell_type"] == "code"]
        kept = [cell for cell in code(name) if not is_hidden(cell) and cell["source"].strip()]
        hidden += sum("hide" in directives(cell["source"]) for cell in code(name))
        assert [cell["id"] for cell in shown] == [cell["id"] for cell in kept]
        assert [c["source"] for c in shown if re.search(r"^\s*#\s*\|", c["source"], re.M)] == []
    assert hidden > 100


def test_cells_that_are_hidden():
    for source in ("#| hide\nx = 1", "#| default_exp a.b", "#|include: false\nx"):
        assert is_hidden(dict(cell_type="code", source=source))
    for source in ("#| export\nx = 1", "x = 1  # | hide", "#| hide_input\nx"):
        assert not is_hidden(dict(cell_type="code", source=source))


def test_long_exported_cells_and_imports_are_folded():
    body = "\n".join(["def f():", *["    x = 1"] * 30])
    assert fold(body) == "def f (31 lines)" and fold("x = 1") is None
    assert fold("import a\nimport b\nimport c\nimport d\nimport e") == "Imports"
    folded = code_cell(dict(source=f"#| export\n{body}"))
    assert folded["source"] == body and folded["metadata"]["tags"] == ["hide-input"]
    assert code_cell(dict(source=body))["metadata"]["tags"] == []  # a demonstration
    assert code_cell(dict(source="#| hide_input\nx"))["metadata"]["tags"] == ["remove-input"]


def test_the_line_under_a_title_is_its_subtitle():
    text = subtitled("# A title\n> what it is\n\nProse.", "NOTE")
    assert text == "# A title\n\n{.subtitle}\nwhat it is\n\nNOTE\n\nProse."


# --- links


def test_links_lead_to_pages_and_files_of_the_site(site):
    name = "nbs/foundations/distil.ipynb"
    assert site.link("../03_train_gas.ipynb#top", name) == "../03_train_gas.ipynb#top"
    assert site.link("../../CONTRIBUTING.md", name) == "../contributing.md"
    assert site.link("nbs/experiments", "CONTRIBUTING.md") == "experiments/index.md"
    assert site.link("nbs/images/app.png", "README.md") == "images/app.png"
    assert site.link("../../LICENSE", name) == "../files/LICENSE"
    assert (site.source / "files" / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()
    for same in ("https://arxiv.org/abs/2510.17699", "#here"):
        assert site.link(same, name) == same
    with pytest.raises(ValueError, match="distil.ipynb links to ../nowhere.ipynb"):
        site.link("../nowhere.ipynb", name)


def test_chapters_and_modules_named_as_code_become_links(site):
    name = "nbs/foundations/distil.ipynb"
    text = "`metrics/spec`, `gas_nb.tableau` and `a/b`; [`gas_nb.tableau`](schedule.ipynb)"
    linked = "[`metrics/spec`](../metrics/spec.ipynb), [`gas_nb.tableau`](../api/gas_nb.tableau.md)"
    rest = " and `a/b`; [`gas_nb.tableau`](schedule.ipynb)"
    assert site.text(text, name) == linked + rest
    fenced = "```\n`gas_nb.tableau`\n```"
    assert site.text(fenced, name) == fenced


def test_a_formula_of_two_lines_is_no_list(site):
    text = "x:\n$$a\n + b$$\n\n- $5 and\n- $6"
    assert site.text(text, "README.md") == "x:\n$$a  + b$$\n\n- $5 and\n- $6"


def test_dead_links_are_found(tmp_path):
    def write(body):
        (tmp_path / "index.html").write_text(f"<html><body>{body}</body></html>")
        return [line.split(": ", 1)[1] for line in check_site.trouble(tmp_path)]

    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "index.html").write_text('<p id="here"><a href="../index.html">up</a>')
    good = '<a id="a" href="#a"></a><a href="sub/index.html#here"></a><a href="sub/"></a>'
    assert write(good + '<a href="https://arxiv.org/abs/1"></a><a href="mailto:a@b.org"></a>') == []
    assert write('<a href="nowhere.html"></a>') == ["nowhere.html: no such page"]
    assert write('<a href="sub/index.html#b"></a>') == ["sub/index.html#b: no such anchor"]
    assert write('<img src="a.png">') == ["a.png: no such page"]
    assert write('<a href="http:arxiv"></a>') == ["http:arxiv: is no address"]
    assert "is none of" in write('<a href="file:///a"></a>')[0]
    assert "loaded from elsewhere" in write('<script src="https://cdn.org/a.js"></script>')[0]
    assert check_site.main([str(tmp_path)]) == 1
    assert check_site.trouble(tmp_path / "none") != []


def test_the_first_sentence_of_a_docstring():
    def f():
        "UniPC (arXiv 1, Alg. 8), order 1\n    to 4. More."

    assert first_line(f) == "UniPC (arXiv 1, Alg. 8), order 1 to 4"


# --- what Sphinx makes of it


class Text(HTMLParser):
    """The prose and the code of a page."""

    def __init__(self):
        super().__init__()
        self.prose, self.code, self.inside = [], [], []

    def handle_starttag(self, tag, attrs):
        if tag in ("pre", "code", "script", "style"):
            self.inside.append(tag)

    def handle_endtag(self, tag):
        if self.inside[-1:] == [tag]:
            self.inside.pop()

    def handle_data(self, data):
        if not self.inside:
            self.prose.append(data)
        elif "pre" in self.inside:
            self.code.append(data)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The site that `make docs` has made of the present files, or one that is made now."""
    out = ROOT / settings(ROOT)["doc_path"]
    made = out / "index.html"
    newest = max((ROOT / name).stat().st_mtime for name in tree_files(ROOT))
    if not made.exists() or made.stat().st_mtime < newest:
        out = tmp_path_factory.mktemp("site")
        work = tmp_path_factory.mktemp("work")
        assert make_docs.main(["--out", str(out), "--work", str(work)]) == 0
    return out


@pytest.mark.slow
def test_the_site_as_it_is_built(built):
    assert check_site.trouble(built) == []
    front = (built / "index.html").read_text(encoding="utf-8")
    api = (built / "api" / "index.html").read_text(encoding="utf-8")
    for chapter in [c for section in read_map(ROOT).values() for c in section]:
        page = chapter.page.removesuffix(".ipynb") + ".html"
        assert f'href="{page}"' in front and (built / page).exists()
    for name in gas_nb.__all__:
        assert re.search(rf'href="(gas_nb\.[\w.]+\.html)#gas_nb\.[\w.]+\.{name}"', api), name
    for path in built.rglob("*.html"):
        page = Text()
        page.feed(path.read_text(encoding="utf-8"))
        assert not re.search(r"\$\$|\\[a-z]{3,}|^#\|", "".join(page.prose), re.M), path
        assert not re.search(r"^#\|", "".join(page.code), re.M), path
