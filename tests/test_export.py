"""tools/export.py: a tree out of step with its notebooks is found, and mended."""

import shutil
import subprocess
from pathlib import Path

import nbformat
import pytest
from export import main
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

ROOT = Path(__file__).resolve().parent.parent


def write_notebook(path: Path, *sources: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    cells = [new_code_cell(source) for source in sources]
    kernel = {"kernelspec": {"display_name": "python3", "language": "python", "name": "python3"}}
    nbformat.write(
        new_notebook(cells=[new_markdown_cell(f"# {path.stem}"), *cells], metadata=kernel), path
    )


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A small project under git, with exporting notebooks, in step."""
    root = tmp_path_factory.mktemp("export") / "project"
    (root / "tools").mkdir(parents=True)
    for name in (
        "settings.ini",
        "pyproject.toml",
        ".gitignore",
        "tools/export.py",
        "tools/make_readme.py",
    ):
        shutil.copy(ROOT / name, root / name)
    write_notebook(root / "nbs" / "index.ipynb")
    for name in ("gone", "edited", "patched", "executed"):
        write_notebook(
            root / "nbs" / f"{name}.ipynb",
            f"#| default_exp {name}",
            "#| export\ndef double(x): return 2*x",
        )
    if shutil.which("git"):
        subprocess.run(["git", "init", "-q", str(root)], check=True)
    assert main(["--root", str(root)]) == 0
    return root


@pytest.fixture
def project(base, tmp_path):
    """A copy of `base` to change."""
    return Path(shutil.copytree(base, tmp_path / "project"))


def contents(root: Path) -> dict:
    return {
        path: path.read_bytes()
        for path in root.rglob("*")
        if path.is_file() and ".git" not in path.parts
    }


def test_a_tree_in_step_passes_and_a_check_changes_nothing(project, capsys):
    before = contents(project)
    assert main(["--root", str(project), "--check"]) == 0, capsys.readouterr().err
    assert contents(project) == before
    assert "def double" in (project / "gas_nb" / "edited.py").read_text()


def test_export_leaves_the_files_written_by_hand_alone(base):
    for name in ("settings.ini", "pyproject.toml", ".gitignore"):
        assert (base / name).read_bytes() == (ROOT / name).read_bytes()


def replace(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def test_what_is_out_of_step_is_named_and_export_mends_it(project, capsys):
    (project / "nbs" / "gone.ipynb").unlink()
    replace(project / "nbs" / "edited.ipynb", "2*x", "4*x")
    replace(project / "gas_nb" / "patched.py", "2*x", "3*x")
    replace(project / "nbs" / "executed.ipynb", '"execution_count": null', '"execution_count": 7')
    write_notebook(project / "nbs" / "added.ipynb", "#| default_exp added", "#| export\nx = 1")
    (project / "README.md").write_text("mine")

    assert main(["--root", str(project), "--check"]) == 1
    report = capsys.readouterr().err
    wrong = [
        "gas_nb/gone.py",
        "gas_nb/edited.py",
        "gas_nb/patched.py",
        "nbs/executed.ipynb",
        "gas_nb/added.py",
        "README.md",
    ]
    assert [name for name in wrong if name not in report] == []
    assert "gas_nb/executed.py" not in report and "make export" in report

    assert main(["--root", str(project)]) == 0
    assert main(["--root", str(project), "--check"]) == 0, capsys.readouterr().err
    assert not (project / "gas_nb" / "gone.py").exists()
    assert "4*x" in (project / "gas_nb" / "edited.py").read_text()
    assert "2*x" in (project / "gas_nb" / "patched.py").read_text()
