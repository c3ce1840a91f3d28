"""What holds for the project as a whole: its settings, its notebooks, and who may import whom."""

import ast
import configparser
import json
import re
import subprocess
import sys
import zipfile
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
import yaml
from export import DEFAULT_EXP, copy_tree, notebooks, tree_files
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent
LIB = ROOT / "gas_nb"
NOTEBOOKS = notebooks(ROOT)
NOTEBOOK_IDS = [nb.relative_to(ROOT / "nbs").as_posix() for nb in NOTEBOOKS]
MODULES = [p for p in sorted(LIB.rglob("*.py")) if p.name not in ("__init__.py", "_modidx.py")]
PACKAGES = {
    ".".join(p.parent.relative_to(LIB).parts) for p in LIB.rglob("*/__init__.py")
}  # figures, teachers

# Notebooks that papermill runs: each has one cell tagged `parameters`.
RUN_NOTEBOOKS = (
    "03_train_gas",
    "04_evaluate",
    "examples/fmnist_teacher/train",
    "examples/fmnist_teacher/classifier",
    "examples/fmnist_teacher/card",
)

# Imports run from left to right only; inside one layer they may not form a circle.
LAYERS = (
    {"registry", "runtime", "schedule"},
    {"denoiser", "tableau"},
    {"classic", "solver"},
    {"data", "discriminator", "fit", "fitting", "rules"},
    {"game"},
    {"teachers.base", "teachers.reading"},
    {"teachers.asking"},
    {"teachers.calls", "teachers.network", "teachers.decoding", "teachers.trial"},
    {"teachers"},
    {"teacher"},
    {"metrics", "runs"},
    {"evaluation", "exchange", "interop", "training"},
    {"drive"},
    {"distil", "front", "sweep", "sweeps"},
    {"figures"},
    {"app"},
    {"command", "__main__"},
)
FRONT_ONLY = {"gradio", "plotly", "ipywidgets", "anywidget"}
FRONT = {"figures", "app"}

DIRECTIVES = {
    "classes",
    "code-fold",
    "code-summary",
    "cuda",
    "default_exp",
    "echo",
    "error",
    "eval",
    "exec_doc",
    "export",
    "exporti",
    "exports",
    "fig-align",
    "fig-cap",
    "filter_stream",
    "hide",
    "hide_input",
    "hide_output",
    "include",
    "label",
    "layout-ncol",
    "notest",
    "output",
    "skip_exec",
    "slow",
    "warning",
}
MISSPELT = re.compile(
    r"^\s*#\s*[\\/!:;]*\s*(default_exp(\s+\S+)?|export[is]?|hide(_input|_output)?|skip_exec|notest)\s*$"
)


def settings() -> dict:
    config = configparser.ConfigParser(delimiters=["="], interpolation=None)
    config.read(ROOT / "settings.ini")
    return dict(config["DEFAULT"])


def cells(notebook: Path, kind: str = "code") -> list[dict]:
    found = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return [
        cell | {"source": "".join(cell["source"])} for cell in found if cell["cell_type"] == kind
    ]


def directives(source: str) -> list[str]:
    """The directives that nbdev sees: `#|` lines before the first line of anything else."""
    found = []
    for line in source.splitlines():
        if re.match(r"^\s*#\s*\|", line):
            found.append(line.split("|", 1)[1].strip())
        elif line.strip() and not line.startswith("%%"):
            break
    return found


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(LIB).with_suffix("").parts)


def imports(path: Path) -> set[str]:
    """Full names of everything that a module of gas_nb imports, those inside functions included."""
    package = ["gas_nb", *path.relative_to(LIB).parent.parts]
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            origin = ".".join([*base, *([node.module] if node.module else [])])
            found |= {f"{origin}.{alias.name}" for alias in node.names}
    return found


def own_imports(path: Path) -> set[str]:
    """The modules of gas_nb that a module imports; a package, if it takes a name from there."""
    names = {module_name(p) for p in MODULES} | PACKAGES
    found = set()
    for full in imports(path):
        parts = full.split(".")
        if parts[0] == "gas_nb":
            # The longest prefix that is a module: from gas_nb.teachers.edm import f -> teachers.edm
            prefixes = [".".join(parts[1:n]) for n in range(len(parts), 1, -1)]
            found |= set([prefix for prefix in prefixes if prefix in names][:1])
    return found - {module_name(path)}


def named_by_string(path: Path) -> set[str]:
    """What a module imports by a text: literals given to import_module, __import__ or find_spec.

    A text that is put together when the program runs counts as `gas_nb`: nobody can check it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call) or not node.args:
            continue
        called = getattr(node.func, "attr", getattr(node.func, "id", ""))
        if called in ("import_module", "__import__", "find_spec"):
            name = node.args[0]
            literal = isinstance(name, ast.Constant) and isinstance(name.value, str)
            found.add(name.value if literal else "gas_nb")
    return found


def layer(module: str) -> int:
    found = [
        i
        for name in (module, module.split(".")[0])
        for i, names in enumerate(LAYERS)
        if name in names
    ]
    assert found, f"gas_nb.{module} has no layer: name it in LAYERS in tests/test_project.py"
    return found[0]


# --- settings and packaging


def extras() -> dict[str, list[str]]:
    """The requirements of each extra, those of extras that it names put in their place."""
    tail = "_requirements"
    cfg = settings()
    listed = {k.removesuffix(tail): v.split() for k, v in cfg.items() if k.endswith(tail)}

    def of(name: str) -> list[str]:
        found = []
        for text in listed[name]:
            own = re.fullmatch(r"gas_nb\[([\w,]+)\]", text)
            found += [r for one in own[1].split(",") for r in of(one)] if own else [text]
        return list(dict.fromkeys(found))

    return {name: of(name) for name in listed}


def test_environment_yml_installs_what_settings_ini_requires():
    dependencies = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    pip = next(entry["pip"] for entry in dependencies if isinstance(entry, dict))
    assert pip == ["-c constraints.txt", "-e .[dev]"]
    python = next(
        entry for entry in dependencies if isinstance(entry, str) and entry.startswith("python=")
    )
    version = tuple(map(int, python.removeprefix("python=").split(".")))
    assert version >= tuple(map(int, settings()["min_python"].split(".")))


def test_extras_are_those_of_the_readme_and_dev_has_them_all():
    found = extras()
    assert set(found) == {"diffusers", "notebooks", "app", "eval", "all", "dev"}
    for name, wanted in found.items():
        assert set(wanted) <= set(found["dev"]) and (
            name == "dev" or set(wanted) <= set(found["all"])
        )
    core = {Requirement(text).name for text in settings()["requirements"].split()}
    assert core == {"torch", "numpy", "safetensors", "scikit-learn", "filelock"}


def test_requirements_are_ranges_and_a_package_has_one():
    """An exact version would clash with other people's; constraints.txt has those."""
    ranges: dict[str, set[str]] = {}
    for text in [*settings()["requirements"].split(), *extras()["dev"]]:
        requirement = Requirement(text)
        ranges.setdefault(requirement.name, set()).add(str(requirement.specifier))
        assert all(part.operator != "==" for part in requirement.specifier), text
    assert {name: found for name, found in ranges.items() if len(found) > 1} == {}


INSTALLED_AS = {"sklearn": "scikit-learn", "PIL": "pillow"}
HOSTS = {"comfy"}  # programs that a file of ours is copied into


def test_what_modules_import_is_required():
    """What the core imports without an extra it requires; everything else comes with one."""
    core = {Requirement(text).name for text in settings()["requirements"].split()}
    everything = core | {Requirement(text).name for text in extras()["all"]}
    own = {"gas_nb", *HOSTS, *sys.stdlib_module_names}
    for path in [*MODULES, *LIB.rglob("*/__init__.py")]:
        names = {full.split(".")[0] for full in imports(path)} - own
        if path.parent.name == "figures":
            names -= {"IPython"}  # ipywidgets brings it
        lost = {INSTALLED_AS.get(name, name) for name in names} - everything
        assert not lost, f"{path.relative_to(ROOT)} imports {sorted(lost)}: no extra has them"


def test_the_core_imports_without_any_extra():
    """The front door's names of the core, and every room that a solver and its fit need."""
    blocked = "diffusers huggingface_hub transformers accelerate PIL gradio plotly ipywidgets"
    code = f"import sys\nfor name in '{blocked} IPython pandas torchvision lpips'.split():\n"
    code += "    sys.modules[name] = None\n"
    code += "import gas_nb, gas_nb.distil, gas_nb.command, gas_nb.evaluation, gas_nb.teacher\n"
    code += "for name in gas_nb.__all__:\n    try: getattr(gas_nb, name)\n"
    code += "    except ModuleNotFoundError as error: print(name, error)\n"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    refused = dict(line.split(" ", 1) for line in done.stdout.splitlines())
    assert set(refused) == PIPELINES_ONLY
    assert set(refused.values()) == {"diffusers is not installed: pip install 'gas_nb[diffusers]'"}


PIPELINES_ONLY = {
    "Distilled",
    "GASScheduler",
    "distil_solver",
    "join_solvers",
    "load_published_checkpoint",
    "load_solver",
    "shipped_scheduler",
}


def test_constraints_pin_every_requirement_and_agree_with_it():
    lines = [
        line.split("#")[0].strip() for line in (ROOT / "constraints.txt").read_text().splitlines()
    ]
    pins = {}
    for line in filter(None, lines):
        name, sep, version = line.partition("==")
        assert sep and version and "+" not in version, (
            f"constraints.txt: {line!r} is not NAME==VERSION"
        )
        assert not name.startswith("nvidia"), (
            f"constraints.txt: {line!r}: torch brings its CUDA libraries itself"
        )
        pins[name.lower().replace("_", "-")] = version
    for text in settings()["requirements"].split() + extras()["dev"]:
        requirement = Requirement(text)
        name = requirement.name.lower().replace("_", "-")
        assert name in pins, f"constraints.txt does not pin {text}"
        assert requirement.specifier.contains(pins[name]), (
            f"constraints.txt pins {name}=={pins[name]} against {text}"
        )


def test_settings_keep_what_papermill_and_the_test_flags_need():
    cfg = settings()
    assert "tags" in cfg["allowed_cell_metadata_keys"].split()
    assert cfg["tst_flags"].split() == ["notest", "slow", "cuda"]
    assert cfg["update_pyproject"] == "False"


def test_wheel_holds_modules_weights_and_solvers(tmp_path):
    """What `pip install` would get: a wheel of a copy of
    the tree has every module, weight file and solver."""
    pytest.importorskip("setuptools")
    tree, out = tmp_path / "tree", tmp_path / "wheel"
    names = copy_tree(ROOT, tree)
    probe = tree / "gas_nb" / "weights" / "probe" / "model.safetensors"
    probe.parent.mkdir(parents=True)
    probe.write_bytes(b"0")
    (probe.parent / "config.json").write_text("{}")
    (tree / "gas_nb" / "solvers").mkdir(exist_ok=True)
    (tree / "gas_nb" / "solvers" / "probe.json").write_text("{}")
    pip = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--no-deps",
        "--no-build-isolation",
        "-q",
        "-w",
        str(out),
        str(tree),
    ]
    done = subprocess.run(pip, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    inside = set(zipfile.ZipFile(next(out.glob("gas_nb-*.whl"))).namelist())
    expected = {
        name
        for name in names
        if name.startswith("gas_nb/") and name.endswith((".py", ".css", ".safetensors", ".json"))
    }
    expected |= {
        "gas_nb/weights/probe/model.safetensors",
        "gas_nb/weights/probe/config.json",
        "gas_nb/solvers/probe.json",
    }
    assert expected <= inside, f"not in the wheel: {sorted(expected - inside)}"


# --- notebooks


def test_run_notebooks_have_one_parameters_cell():
    present = [ROOT / "nbs" / f"{name}.ipynb" for name in RUN_NOTEBOOKS]
    for notebook in filter(Path.exists, present):
        tagged = [
            cell for cell in cells(notebook) if "parameters" in cell["metadata"].get("tags", [])
        ]
        assert len(tagged) == 1, (
            f"{notebook.name}: {len(tagged)} cells tagged parameters; papermill needs exactly one"
        )
        assert not directives(tagged[0]["source"]), (
            f"{notebook.name}: a directive on the parameters cell hides its names"
        )


def test_every_notebook_names_its_kernel():
    """papermill does not run one that does not."""
    kernels = {
        notebook.name: json.loads(notebook.read_text())["metadata"]
        .get("kernelspec", {})
        .get("name")
        for notebook in NOTEBOOKS
    }
    assert set(kernels.values()) == {"python3"}, {
        name: kernel for name, kernel in kernels.items() if kernel != "python3"
    }


def test_every_module_has_one_notebook():
    origin = {}
    for notebook in NOTEBOOKS:
        names = [name for cell in cells(notebook) for name in DEFAULT_EXP.findall(cell["source"])]
        assert len(names) <= 1, f"{notebook.name}: more than one default_exp: {names}"
        exports = any("export" in directives(cell["source"]) for cell in cells(notebook))
        assert names or not exports, f"{notebook.name}: exports cells and has no default_exp"
        for name in names:
            assert name not in origin, (
                f"{notebook.name} and {origin[name]} both export to {name}: the last would win"
            )
            origin[name] = notebook.name


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=NOTEBOOK_IDS)
def test_directives_are_spelt_right_and_come_first(notebook):
    for cell in cells(notebook):
        heads = directives(cell["source"])
        for head in heads:
            name = re.split(r"[\s:]", head)[0]
            assert name in DIRECTIVES, f"{notebook.name}: unknown directive #| {head}"
        marks = [line for line in cell["source"].splitlines() if re.match(r"^\s*#\s*\|", line)]
        assert len(marks) == len(heads), (
            f"{notebook.name}: below code nbdev ignores {marks[len(heads) :]}"
        )
        wrong = [line for line in cell["source"].splitlines() if MISSPELT.match(line)]
        assert not wrong, (
            f"{notebook.name}: {wrong} is a comment to nbdev; a directive is written `#| export`"
        )


def is_one_class(source: str) -> bool:
    """Whether a cell defines a class, constants beside it apart."""
    definitions = [
        node for node in ast.parse(source).body if not isinstance(node, (ast.Assign, ast.AnnAssign))
    ]
    return len(definitions) == 1 and isinstance(definitions[0], ast.ClassDef)


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=NOTEBOOK_IDS)
def test_exported_cells_are_short_and_import_names_one_by_one(notebook):
    for cell in cells(notebook):
        if not {"export", "exporti", "exports"} & set(directives(cell["source"])):
            continue
        lines = [
            line
            for line in cell["source"].strip().splitlines()
            if not re.match(r"^\s*#\s*\|", line)
        ]
        start = next((line for line in lines if line.strip()), "")
        most = 60 if is_one_class("\n".join(lines)) else 40
        assert len(lines) <= most, (
            f"{notebook.name}: an exported cell of {len(lines)} lines (at most {most}): {start!r}"
        )
        stars = [line for line in lines if re.match(r"^\s*from\s+\S+\s+import\s+\*", line)]
        assert not stars, f"{notebook.name}: {stars} hides missing names; import them one by one"


DRAW = re.compile(
    r"\b(torch|np\.random)\.(rand|randn|randint|randperm|rand_like|randn_like|normal|bernoulli|multinomial)\((?!.*generator=)"
)


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=NOTEBOOK_IDS)
def test_what_a_notebook_draws_is_seeded(notebook):
    """nbdev_test runs several notebooks in one process:
    without a seed, a check sees other numbers in every run."""
    seeded = False
    for cell in cells(notebook):
        if "export" in directives(cell["source"]):
            continue
        seeded = seeded or "manual_seed(" in cell["source"]
        draw = DRAW.search(cell["source"])
        assert seeded or not draw, f"{cell['id']}: {draw[0]} before any manual_seed"


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=NOTEBOOK_IDS)
def test_stored_outputs_are_small(notebook):
    size = sum(len(json.dumps(cell.get("outputs", []))) for cell in cells(notebook))
    assert size <= 300_000, f"{notebook.name}: {size // 1000} KB of stored outputs (at most 300)"


def test_stored_outputs_of_all_chapters_fit_into_3_mb():
    stored = [c.get("outputs", []) for notebook in NOTEBOOKS for c in cells(notebook)]
    assert sum(len(json.dumps(outputs)) for outputs in stored) <= 3_000_000


def test_the_map_names_every_chapter():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    apart = ("index.ipynb", "experiments/")
    lost = [name for name in NOTEBOOK_IDS if not name.startswith(apart)]
    assert [name for name in lost if f"(nbs/{name})" not in text] == []


def test_no_file_is_larger_than_9_mb():
    large = {name: (ROOT / name).stat().st_size for name in tree_files(ROOT)}
    large = {name: size for name, size in large.items() if size > 9_000_000}
    assert not large


def test_no_path_of_one_machine():
    """Paths such as a home folder hold on one machine only;
    /usr/share/datasets, Debian's place, is no such path."""
    tops = "|".join(["home", "root", "Users", "work", "tmp", "opt", "mnt", "content"])
    machine_path = re.compile(rf"(?<![\w.~$)}}\]/-])/({tops})/\w")
    found = []
    for name in tree_files(ROOT):
        try:
            text = (ROOT / name).read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        found += [
            f"{name}: {line.strip()[:100]}"
            for line in text.splitlines()
            if machine_path.search(line)
        ]
    assert not found


def test_links_of_the_front_page_lead_somewhere():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    targets = [
        t.split("#")[0] for t in re.findall(r"\]\(([^)\s]+)", text) if not re.match(r"[a-z]+:|#", t)
    ]
    assert targets and [t for t in targets if not (ROOT / t).exists()] == []


CHAPTER = re.compile(r"`((?:[a-z]+/)+[a-z_0-9]+)`")


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=NOTEBOOK_IDS)
def test_links_of_chapters_lead_somewhere(notebook):
    """Links to files, and chapters named as in `foundations/schedule`."""
    text = "\n".join(cell["source"] for cell in cells(notebook, "markdown"))
    targets = [t.split("#")[0] for t in re.findall(r"\]\(([^)\s]+)", text)]
    files = [t for t in targets if t and not re.match(r"[a-z]+:", t)]
    lost = [t for t in files if not (notebook.parent / t).exists()]
    rooms = {p.name for p in (ROOT / "nbs").iterdir() if p.is_dir()}
    named = [name for name in CHAPTER.findall(text) if name.split("/")[0] in rooms]
    places = {name: ROOT / "nbs" / name for name in named}
    lost += [n for n, p in places.items() if not (p.is_dir() or p.with_suffix(".ipynb").exists())]
    assert not lost


# --- who imports whom


def test_imports_run_one_way():
    graph = {}
    for path in [*MODULES, *LIB.rglob("*/__init__.py")]:
        name = module_name(path).removesuffix(".__init__")
        graph[name] = own_imports(path) - {name}
        for other in graph[name]:
            assert layer(other) <= layer(name), (
                f"gas_nb.{name} imports gas_nb.{other}, which stands above it"
            )
    list(TopologicalSorter(graph).static_order())


def test_no_module_imports_another_by_a_string():
    """A circle of such imports would not be seen above."""
    for path in [*MODULES, *LIB.rglob("*/__init__.py")]:
        own = {name for name in named_by_string(path) if re.match(r"gas_nb\b|\.", name)}
        assert not own, (
            f"{path.relative_to(ROOT)} imports {sorted(own)} by a string: name it plainly"
        )


def test_teachers_register_themselves_and_no_network_library_is_loaded():
    """The base names no teacher, and importing all of them stays light."""
    leaves = {module_name(p) for p in MODULES if module_name(p).startswith("teachers.")}
    base = next(p for p in MODULES if module_name(p) == "teachers.base")
    assert not own_imports(base) & leaves
    code = "import sys, gas_nb.teacher as t\nprint(*t.TEACHERS)\n"
    code += (
        "print(sorted({'diffusers', 'sklearn', 'torchvision', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    names, heavy = done.stdout.strip().splitlines()[-2:]
    assert names.split()[:2] == ["digits", "fmnist"] and "cifar10" in names.split()
    assert heavy == "[]"


def test_the_front_door_has_its_names_and_loads_nothing_before_they_are_asked_for():
    code = "import sys, gas_nb\nprint(len(gas_nb.__all__), 'torch' in sys.modules)\n"
    code += "print([n for n in gas_nb.__all__ if getattr(gas_nb, n).__name__ != n])\n"
    code += "print({'Distilled', 'distil_solver', 'load_solver'} <= set(dir(gas_nb)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    size, *rest = done.stdout.strip().splitlines()[-3:]
    count, loaded = size.split()
    assert int(count) <= 30 and (loaded, *rest) == ("False", "[]", "True")


def test_only_figures_and_app_import_the_front_end():
    for path in MODULES:
        if module_name(path).split(".")[0] not in FRONT:
            front = {full.split(".")[0] for full in imports(path)} & FRONT_ONLY
            assert not front, (
                f"gas_nb.{module_name(path)} imports "
                f"{sorted(front)}: that belongs into figures or app"
            )


def test_import_of_a_module_loads_no_front_end():
    """Also through others: training a solver on a server needs no plotting library."""
    names = [
        f"gas_nb.{module_name(p)}" for p in MODULES if module_name(p).split(".")[0] not in FRONT
    ]
    code = f"import importlib, sys\nfor n in {names!r}: importlib.import_module(n)\n"
    code += f"print(sorted({FRONT_ONLY!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().splitlines()[-1] == "[]"
