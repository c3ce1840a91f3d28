"""How the code reads, in numbers: what a line holds, how
long a function is, where methods stand."""

import ast
import io
import re
import statistics
import tokenize
from functools import lru_cache
from pathlib import Path

import pytest
from test_project import LIB, MODULES, NOTEBOOK_IDS, NOTEBOOKS, cells, directives, module_name

MODULE_IDS = [module_name(path) for path in MODULES]

MOST_NODES_A_LINE = 8.0
MOST_NODES_A_FUNCTION = 300
MOST_LINES_A_CELL = 12  # median of all exported cells

# No thought: the context of a name (read, written, deleted), which Python's grammar adds.
CONTEXTS = (ast.Load, ast.Store, ast.Del)
LAYOUT = (
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENDMARKER,
)
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def docstring(node: ast.AST) -> ast.stmt | None:
    """The statement that is the docstring of a module, class or function."""
    if not isinstance(node, DOCUMENTED) or not node.body:
        return None
    first = node.body[0]
    is_text = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
    return first if is_text and isinstance(first.value.value, str) else None


def count_nodes(node: ast.AST) -> int:
    """Syntax nodes below and with `node`, docstrings and contexts apart."""
    text = docstring(node)
    children = [child for child in ast.iter_child_nodes(node) if child is not text]
    own = 0 if isinstance(node, CONTEXTS) else 1
    return own + sum(count_nodes(child) for child in children)


def code_lines(source: str, tree: ast.Module) -> int:
    """Lines that hold code: no blank line, no comment, no docstring."""
    lines = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in LAYOUT:
            lines |= set(range(token.start[0], token.end[0] + 1))
    for text in filter(None, map(docstring, ast.walk(tree))):
        lines -= set(range(text.lineno, text.end_lineno + 1))
    return len(lines)


@lru_cache(maxsize=None)
def parsed(path: Path) -> tuple[str, ast.Module]:
    source = path.read_text(encoding="utf-8")
    return source, ast.parse(source)


def functions(tree: ast.Module) -> list[ast.FunctionDef]:
    return [n for n in ast.walk(tree) if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef))]


def exported_cells(notebook: Path) -> list[str]:
    """The sources of a notebook's exported cells, without the directives."""
    marks = {"export", "exporti", "exports"}
    found = [c["source"] for c in cells(notebook) if marks & set(directives(c["source"]))]
    return ["\n".join(x for x in s.splitlines() if not re.match(r"\s*#\s*\|", x)) for s in found]


def only_imports(source: str) -> bool:
    return all(isinstance(n, (ast.Import, ast.ImportFrom)) for n in ast.parse(source).body)


@pytest.mark.parametrize("path", MODULES, ids=MODULE_IDS)
def test_a_line_says_one_thing(path):
    source, tree = parsed(path)
    density = count_nodes(tree) / max(1, code_lines(source, tree))
    assert density <= MOST_NODES_A_LINE, f"{density:.2f} syntax nodes a code line"


@pytest.mark.parametrize("path", MODULES, ids=MODULE_IDS)
def test_a_function_does_one_thing(path):
    large = {f.name: count_nodes(f) for f in functions(parsed(path)[1])}
    large = {name: nodes for name, nodes in large.items() if nodes > MOST_NODES_A_FUNCTION}
    assert not large, f"split these (syntax nodes): {large}"


@pytest.mark.parametrize("path", MODULES, ids=MODULE_IDS)
def test_methods_stand_in_their_class(path):
    """Not attached from outside, where neither a reader nor a type checker finds them."""
    tree = parsed(path)[1]
    classes = {n.name for n in ast.walk(tree) if isinstance(n, ast.ClassDef)}
    attached = []
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            marks = [ast.unparse(d) for d in node.decorator_list]
            attached += [f"@{mark} {node.name}" for mark in marks if mark.startswith("patch")]
        elif isinstance(node, ast.Assign):
            targets = [t for t in node.targets if isinstance(t, ast.Attribute)]
            owners = [t for t in targets if isinstance(t.value, ast.Name) and t.value.id in classes]
            attached += [ast.unparse(t) for t in owners]
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "setattr" and node.args:
            owner = ast.unparse(node.args[0])
            attached += [ast.unparse(node)] if owner in classes else []
    assert not attached


@pytest.mark.parametrize("path", MODULES, ids=MODULE_IDS)
def test_public_functions_say_their_types(path):
    """Every parameter and every result of what a module offers, methods included."""
    bare = []
    for owner in [
        parsed(path)[1],
        *(n for n in parsed(path)[1].body if isinstance(n, ast.ClassDef)),
    ]:
        if isinstance(owner, ast.ClassDef) and owner.name.startswith("_"):
            continue
        for node in owner.body:
            if not isinstance(node, ast.FunctionDef) or node.name.startswith("_"):
                continue
            given = node.args.posonlyargs + node.args.args + node.args.kwonlyargs
            given = [a for a in given if a.arg not in ("self", "cls")]
            missing = [a.arg for a in given if a.annotation is None]
            missing += [] if node.returns is not None else ["its result"]
            bare += [f"{node.name}: {name}" for name in missing]
    assert not bare


@pytest.mark.parametrize("path", MODULES, ids=MODULE_IDS)
def test_no_exported_line_is_wider_than_100_columns(path):
    """nbdev's own lines apart: the headers of cells and the list of names."""
    source, tree = parsed(path)
    names = [n for n in tree.body if isinstance(n, ast.Assign) and "__all__" in ast.unparse(n)]
    own = {i for n in names for i in range(n.lineno, n.end_lineno + 1)}
    lines = enumerate(source.splitlines(), start=1)
    lines = [(i, x) for i, x in lines if not x.startswith(("# %%", "# AUTOGENERATED"))]
    assert not [f"{i}: {x}" for i, x in lines if len(x) > 100 and i not in own]


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=NOTEBOOK_IDS)
def test_imports_stand_together(notebook):
    """At most two cells of imports; a library that is only shown may come later."""
    alone = [s for s in exported_cells(notebook) if s.strip() and only_imports(s)]
    assert len(alone) <= 2, f"{len(alone)} exported cells of imports only"


def test_an_exported_cell_is_one_idea():
    sources = [s for notebook in NOTEBOOKS for s in exported_cells(notebook)]
    sizes = [sum(bool(line.strip()) for line in s.splitlines()) for s in sources]
    assert statistics.median(sizes) <= MOST_LINES_A_CELL


def test_package_folders_only_hand_on_names():
    """A hand-written `__init__` or facade defines nothing
    of its own but the front door's loader."""
    for path in LIB.rglob("__init__.py"):
        defined = {f.name for f in functions(parsed(path)[1])}
        assert defined <= {"__getattr__", "__dir__"}, f"{path.relative_to(LIB)}: {defined}"
