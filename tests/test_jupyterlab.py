"""A run notebook in a real JupyterLab: stored figures are drawn, a slider changes a live one."""

import os
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook

ROOT = Path(__file__).resolve().parent.parent
pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
]  # a whole JupyterLab: minutes, and it wants the machine to itself

EXPLORE = """import torch
from gas_nb.figures import explore, nfe_explorer
x = torch.linspace(-1, 1, 64).reshape(1, 1, 8, 8)
nfe_explorer({n: {"ddim": x * n / 10, "gas": x} for n in (4, 6, 10)}, x)"""

WATCH = """import time
from gas_nb.figures import LiveDashboard
def steps():
    for i in range(600):
        time.sleep(0.05)
        yield dict(phase="gs", step=i + 1, steps=600, loss=0.1 * 0.99 ** i, val_loss=None)
dashboard = LiveDashboard("A run")
for record in dashboard.watch(steps()): pass
print("loop ended at", record["step"])"""


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """The address of a JupyterLab in a folder with an executed notebook."""
    pytest.importorskip("selenium.webdriver")
    from conftest import browser_programs

    browser_programs()
    folder = tmp_path_factory.mktemp("lab")
    kernel = dict(kernelspec=dict(display_name="python3", language="python", name="python3"))
    notebook = new_notebook(
        cells=[new_code_cell(EXPLORE), new_code_cell(WATCH.replace("600", "30"))], metadata=kernel
    )
    nbformat.write(notebook, folder / "plain.ipynb")
    run = [
        sys.executable,
        "-m",
        "papermill",
        str(folder / "plain.ipynb"),
        str(folder / "run.ipynb"),
        "--no-progress-bar",
        "--cwd",
        str(folder),
    ]
    subprocess.run(run, check=True, capture_output=True, timeout=180)
    notebook.cells[1].source = WATCH
    nbformat.write(notebook, folder / "plain.ipynb")
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    settings = [
        "--no-browser",
        f"--port={port}",
        "--ServerApp.port_retries=0",
        "--IdentityProvider.token=",
        "--ServerApp.password=",
        f"--ServerApp.root_dir={folder}",
        "--allow-root",
        "--LabApp.news_url=None",
    ]
    own = {
        name: str(folder / name.lower())
        for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR")
    }
    with open(folder / "log", "w") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "jupyter", "lab", *settings],
            stdout=log,
            stderr=subprocess.STDOUT,
            env=os.environ | own,
        )
        for _ in range(240):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/lab", timeout=2).close()
                break
            except OSError:
                assert server.poll() is None, (folder / "log").read_text()
                time.sleep(0.5)
        yield f"http://127.0.0.1:{port}/lab/tree", folder
        server.terminate()
        server.wait(30)


def wait(driver, script, what, seconds=90):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if (value := driver.execute_script(script)) not in (None, False, 0, ""):
            return value
        time.sleep(0.1)
    raise AssertionError(
        f"waited {seconds} s for {what}: "
        f"{driver.execute_script('return document.body.innerText')[:2000]}"
    )


IMAGES = (
    "return [...document.querySelectorAll('.js-plotly-plot image')]"
    ".map(i => i.getAttribute('href') || i.getAttribute('xlink:href')).join('\\n')"
)


def run_cells(driver, count):
    """Click the first cell and press Shift+Enter `count` times."""
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys

    wait(
        driver,
        "return [...document.querySelectorAll('.jp-Notebook-ExecutionIndicator')].some(e "
        "=> e.dataset.status === 'idle')",
        "an idle kernel",
    )
    wait(driver, "return document.querySelectorAll('.jp-CodeCell .cm-content').length", "the cells")
    driver.find_element("css selector", ".jp-CodeCell .cm-content").click()
    for _ in range(count):
        ActionChains(driver).key_down(Keys.SHIFT).send_keys(Keys.ENTER).key_up(Keys.SHIFT).perform()
        time.sleep(0.3)


def test_a_run_notebook_shows_its_figures_without_running_anything(browser, lab):
    address, folder = lab
    assert (folder / "run.ipynb").stat().st_size < 100_000
    browser.get(f"{address}/run.ipynb?reset")
    wait(
        browser,
        "return document.querySelectorAll('.js-plotly-plot').length >= 2",
        "the stored figures",
    )
    assert wait(browser, IMAGES, "pictures").count("data:image/png") == 3


def test_a_slider_moves_and_the_figure_changes(browser, lab):
    from selenium.webdriver.common.keys import Keys

    address, _ = lab
    browser.get(f"{address}/run.ipynb?reset")
    run_cells(browser, 1)
    wait(browser, "return document.querySelectorAll('.widget-slider').length", "the slider", 60)
    wait(
        browser,
        "return document.querySelectorAll('.jp-OutputArea "
        ".widget-vbox .js-plotly-plot image').length === 3",
        "the live figure",
        60,
    )
    live = IMAGES.replace(".js-plotly-plot image", ".widget-vbox .js-plotly-plot image")
    before = browser.execute_script(live)
    handle = browser.find_element("css selector", ".widget-slider .noUi-handle")
    handle.send_keys(Keys.ARROW_RIGHT)
    after = wait(
        browser,
        f"const now = (() => {{ {live} }})(); return now !== arguments[0] && now".replace(
            "arguments[0]", repr(before)
        ),
        "another figure",
        20,
    )
    assert (
        after.split("\n")[0] != before.split("\n")[0]
        and after.split("\n")[1] == before.split("\n")[1]
    )
    assert (
        browser.execute_script(
            "return document.querySelector('.widget-slider .widget-readout').innerText"
        )
        == "6"
    )


CLICK = """return [...document.querySelectorAll('.jp-OutputArea button.jupyter-button')].filter(
    b => b.innerText.trim() === '%s' && !b.disabled).map(b => b.click()).length"""


def test_stop_and_resume_reach_a_kernel_that_is_busy(browser, lab):
    address, folder = lab
    notebook = nbformat.read(folder / "plain.ipynb", 4)
    notebook.cells = notebook.cells[1:] + [
        new_code_cell("print(dashboard.state, 'behind', dashboard.last['step'])")
    ]
    nbformat.write(notebook, folder / "watch.ipynb")
    browser.get(f"{address}/watch.ipynb?reset")
    run_cells(browser, 1)
    wait(browser, CLICK % "Stop", "a Stop button that can be pressed")
    ended = wait(
        browser,
        "return /loop ended at "
        "(\\d+)\\n/.exec([...document.querySelectorAll('.jp-OutputArea-output')].map(e "
        "=> e.innerText + '\\n').join(''))?.[1]",
        "the loop's end",
        20,
    )
    assert 0 < int(ended) < 600
    wait(browser, CLICK % "Resume", "a Resume button that can be pressed", 20)
    wait(browser, "return document.body.innerText.includes('done ·')", "the resumed run's end", 60)
