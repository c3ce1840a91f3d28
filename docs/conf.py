"""How Sphinx renders the site; tools/make_docs.py prepares its sources and calls it."""

import re
from configparser import ConfigParser
from pathlib import Path

import gas_nb
import ziamath
from docutils.nodes import SkipNode
from latex2mathml.converter import convert

HERE = Path(__file__).resolve().parent
config = ConfigParser(delimiters=["="], interpolation=None)
config.read(HERE.parent / "settings.ini", encoding="utf-8")
facts = config["DEFAULT"]

project = facts["title"]
author = facts["author"]
project_copyright = facts["copyright"]
version = release = gas_nb.__version__
language = "en"

extensions = ["myst_nb", "sphinx.ext.autodoc"]
nb_execution_mode = "off"  # what is stored is shown
nb_render_markdown_format = "gfm"
nb_merge_streams = True
myst_enable_extensions = ["attrs_block", "attrs_inline", "deflist", "dollarmath"]
myst_dmath_double_inline = True  # as in Jupyter
myst_heading_anchors = 4
suppress_warnings = ["mystnb.unknown_mime_type"]

autodoc_default_options = {"member-order": "bysource", "undoc-members": True, "no-value": True}
autodoc_inherit_docstrings = False
autodoc_typehints_format = "short"
python_maximum_signature_line_length = 140
add_module_names = False
# Types of other packages have no entry here, nor have private ones.
nitpick_ignore_regex = [(r"py:.*", r"(?!gas_nb\.).*|.*\._\w+")]

html_theme = "furo"
pygments_dark_style = "github-dark"
html_title = project
html_static_path = ["_static", str(Path(ziamath.__file__).parent / "fonts")]  # STIX Two Math
html_css_files = ["site.css"]
html_copy_source = False
html_domain_indices = False  # the index of the API has all modules
html_show_sourcelink = False
html_show_sphinx = False
html_math_renderer = "mathml"


# MathML as browsers space it well: infinity is a letter, a minus behind a relation is a sign.
INFINITY = ("<mo>&#x0221E;</mo>", "<mi>&#x0221E;</mi>")
SIGN = re.compile(
    r"(<mo[^>]*>&#x(?:0003D|0003C|0003E|02264|02265|0002C|02208);</mo>)<mo>(?=&#x02212;)"
)


def visit_math(self, node) -> None:
    "A formula as MathML, which browsers draw by themselves."
    block = node.tagname == "math_block"
    tag = re.search(r"\\tag\{([^}]*)\}", node.astext())
    formula = re.sub(r"\\tag\{[^}]*\}", "", node.astext())
    markup = convert(formula.strip(), display="block" if block else "inline")
    markup = SIGN.sub(r"\1<mo form='prefix'>", markup.replace(*INFINITY))
    if block:
        number = f'<span class="number">({tag[1]})</span>' if tag else ""
        markup = f'<div class="formula">{markup}{number}</div>'
    self.body.append(markup)
    raise SkipNode


def as_rst(lines: list[str]) -> list[str]:
    "A docstring is plain text with code in backticks: what else RST would read into it is escaped."
    found = []
    for line in lines:
        parts = re.split(r"(`+[^`]*`+)", line)
        for i, part in enumerate(parts):
            code = i % 2
            parts[i] = f"``{part.strip('`')}``" if code else re.sub(r"([*_|\\`])", r"\\\1", part)
        found.append("".join(parts))
    return found


def docstring(app, what, name, value, options, lines) -> None:
    "The docstring of a module is the line under the title of its page."
    lines[:] = [] if what == "module" else as_rst(lines)


def signature(app, what, name, value, options, arguments, returns) -> tuple:
    "A default made by a factory is written as three dots, which can be read as Python."
    return (arguments or "").replace("<factory>", "...") or None, returns


def setup(app) -> dict:
    "What is added to Sphinx."
    app.add_html_math_renderer("mathml", (visit_math, None), (visit_math, None))
    app.connect("autodoc-process-docstring", docstring)
    app.connect("autodoc-process-signature", signature)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
