"""tools/make_readme.py: what of a notebook reaches the README, and whether both are in step."""

import nbformat
import pytest
from make_readme import main, rebase_links, render
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output


@pytest.fixture
def project(tmp_path):
    """A folder with nbs/index.ipynb; call it with the notebook's cells."""

    def make(*cells):
        (tmp_path / "nbs").mkdir(exist_ok=True)
        nbformat.write(new_notebook(cells=list(cells)), tmp_path / "nbs" / "index.ipynb")
        return tmp_path

    return make


def rendered(root) -> str:
    return render(root / "nbs" / "index.ipynb", root)


def test_markdown_code_and_text_outputs_are_rendered(project):
    outputs = [
        new_output("stream", name="stdout", text="step 1\n\x1b[32mstep 2\x1b[0m\n"),
        new_output("execute_result", data={"text/plain": "42"}),
    ]
    text = rendered(
        project(
            new_markdown_cell("# Title"),
            new_code_cell("#| eval: false\nx = 42\nx", outputs=outputs),
        )
    )
    assert text.startswith("<!--") and "nbs/index.ipynb" in text.splitlines()[0]
    assert text.partition("-->\n\n")[2] == (
        "# Title\n\n```python\nx = 42\nx\n```\n\n```\nstep 1\nstep 2\n```\n\n```\n42\n```\n"
    )


@pytest.mark.parametrize(
    "directive", ["#| hide", "#|hide", "#| include: false", "#| default_exp core"]
)
def test_hidden_cells_are_left_out(project, directive):
    hidden = new_code_cell(
        f"{directive}\nsecret = 1", outputs=[new_output("stream", name="stdout", text="secret")]
    )
    assert "secret" not in rendered(project(new_markdown_cell("# Title"), hidden))


def test_input_or_output_can_be_hidden(project):
    out = [new_output("stream", name="stdout", text="printed")]
    text = rendered(project(new_code_cell("#| echo: false\nf()", outputs=out)))
    assert "printed" in text and "f()" not in text
    text = rendered(project(new_code_cell("#| hide_output\nf()", outputs=out)))
    assert "printed" not in text and "f()" in text


def test_pictures_and_errors_in_outputs_are_left_out(project):
    outputs = [
        new_output("display_data", data={"image/png": "aGk=", "text/plain": "<Figure>"}),
        new_output(
            "display_data", data={"application/vnd.plotly.v1+json": {}, "text/plain": "Figure()"}
        ),
        new_output("error", ename="E", evalue="bad", traceback=["bad"]),
    ]
    text = rendered(project(new_code_cell("show()", outputs=outputs)))
    assert text.endswith("```python\nshow()\n```\n")


def test_markdown_output_stays_markdown(project):
    table = "| a |\n| - |\n| 1 |"
    text = rendered(
        project(
            new_code_cell("t", outputs=[new_output("display_data", data={"text/markdown": table})])
        )
    )
    assert text.endswith(f"```python\nt\n```\n\n{table}\n")


@pytest.mark.parametrize(
    ("link", "expected"),
    [
        ("![plot](images/plot.png)", "![plot](nbs/images/plot.png)"),
        ("[design](../ARCHITECTURE.md#rooms)", "[design](ARCHITECTURE.md#rooms)"),
        ("[train](03_train_gas.ipynb 'the run')", "[train](nbs/03_train_gas.ipynb 'the run')"),
        (
            "[`schedule`](foundations/schedule.ipynb)",
            "[`schedule`](nbs/foundations/schedule.ipynb)",
        ),
        ('<img src="images/plot.png" width="300">', '<img src="nbs/images/plot.png" width="300">'),
        ("[paper](https://arxiv.org/abs/2510.17699)", "[paper](https://arxiv.org/abs/2510.17699)"),
        ("[below](#map)", "[below](#map)"),
        ("code `[a](b)` stays", "code `[a](b)` stays"),
        ("```\n[a](b)\n```\n[a](b)", "```\n[a](b)\n```\n[a](nbs/b)"),
    ],
)
def test_links_become_relative_to_the_root(link, expected):
    assert rebase_links(link, "nbs") == expected


def test_fence_is_longer_than_backticks_inside(project):
    text = rendered(project(new_code_cell("s = '''\n```\n'''")))
    assert text.endswith("````python\ns = '''\n```\n'''\n````\n")


def test_check_reports_a_readme_out_of_step(project, capsys):
    root = project(new_markdown_cell("# One"))
    assert main(["--root", str(root), "--check"]) == 1
    assert main(["--root", str(root)]) == 0
    assert main(["--root", str(root), "--check"]) == 0
    capsys.readouterr()
    readme = (root / "README.md").read_text()
    project(new_markdown_cell("# Two"))
    assert main(["--root", str(root), "--check"]) == 1
    assert "make readme" in capsys.readouterr().err
    assert (root / "README.md").read_text() == readme, "a check writes nothing"


def test_a_missing_notebook_is_reported(tmp_path, capsys):
    assert main(["--root", str(tmp_path)]) == 1
    assert "index.ipynb" in capsys.readouterr().err
