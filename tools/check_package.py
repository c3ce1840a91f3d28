#!/usr/bin/env python3
"""Build wheel and sdist, install the wheel where the repository is not, and use it there.

First with its core alone: import, README's ten lines, the command. Then with all extras: a card, an
export, a sweep, the app over HTTP. The packages of the extras are those of the environment that
runs this script, seen through a .pth file, so that only the core is installed anew; with `--full`
pip installs the extras as well.
"""

import argparse
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import time
import urllib.request
import venv
import zipfile
from contextlib import contextmanager
from pathlib import Path

from export import copy_tree

ROOT = Path(__file__).resolve().parent.parent
NOT_IN_CORE = "diffusers transformers gradio plotly ipywidgets IPython jupyterlab papermill pandas"
NAMES = "gas_nb.load_teacher, gas_nb.TrainConfig, gas_nb.train, gas_nb.Tableau, gas_nb.sample"
SECONDS = 2.0  # what importing the core may take, torch included
TIMES = 3  # how often that is measured; the best counts

LOADED = f"""
import sys
there = set("{NOT_IN_CORE}".split()) & {{name.partition(".")[0] for name in sys.modules}}
assert not there, f"loaded by the core: {{sorted(there)}}"
"""


def say(text: str) -> None:
    print(f"{time.perf_counter() - STARTED:5.0f} s  {text}", flush=True)


STARTED = time.perf_counter()


class Place:
    """An environment with a working folder, where the repository is not on the path."""

    def __init__(self, folder: Path):
        self.env, self.work = folder / "env", folder / "work"
        self.work.mkdir()
        venv.create(self.env, with_pip=True)
        self.bin = self.env / ("Scripts" if os.name == "nt" else "bin")
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "VIRTUAL_ENV"))}
        kept |= dict(HF_HUB_OFFLINE="1", GRADIO_ANALYTICS_ENABLED="False", PYTHONNOUSERSITE="1")
        self.variables = {"OMP_NUM_THREADS": "1"} | kept

    def run(self, *words: str, status: int = 0) -> str:
        """What a program of the environment prints; RuntimeError for another exit status."""
        command = [str(self.bin / words[0]), *words[1:]]
        options = dict(cwd=self.work, env=self.variables, capture_output=True, text=True)
        done = subprocess.run(command, **options)
        said = done.stdout + done.stderr
        if done.returncode != status or "Traceback" in said:
            told = f"{' '.join(words)[:200]}: status {done.returncode}, expected {status}"
            raise RuntimeError(f"{told}\n{said[-4000:]}")
        return said

    def python(self, source: str) -> str:
        return self.run("python", "-c", source)

    def pip(self, *words: str) -> None:
        limits = ("-c", str(ROOT / "constraints.txt"))
        options = ("--disable-pip-version-check", "--no-compile")
        self.run("python", "-m", "pip", "install", *options, *limits, *words)

    def see_packages_of_this_environment(self) -> None:
        """A path in a .pth file is only searched: what is installed in `env` itself comes first,
        and .pth files over there, that of an editable install say, are not read."""
        inside = self.python("import sysconfig; print(sysconfig.get_path('purelib'))").strip()
        Path(inside, "others.pth").write_text(sysconfig.get_path("purelib") + "\n")


def require(holds: bool, words: str) -> None:
    if not holds:
        raise RuntimeError(words)


def build(folder: Path) -> tuple[Path, Path]:
    """Wheel and sdist of a copy of the tree; the wheel is built from the sdist."""
    copy_tree(ROOT, folder / "tree")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder / "dist")]
    done = subprocess.run([*command, str(folder / "tree")], capture_output=True, text=True)
    require(done.returncode == 0, done.stdout[-4000:] + done.stderr)
    (wheel,) = (folder / "dist").glob("*.whl")
    (sdist,) = (folder / "dist").glob("*.tar.gz")
    return wheel, sdist


def check_contents(wheel: Path, sdist: Path, tree: Path) -> None:
    """The wheel has all of gas_nb and nothing else, the sdist all that it is made from."""
    inside = set(zipfile.ZipFile(wheel).namelist())
    ours = {p.relative_to(tree).as_posix() for p in (tree / "gas_nb").rglob("*") if p.is_file()}
    ours = {name for name in ours if "__pycache__" not in name}
    require(ours <= inside, f"not in the wheel: {sorted(ours - inside)}")
    for name in (
        "gas_nb/py.typed",
        "gas_nb/app/page.css",
        "gas_nb/solvers/fmnist-gs-4.json",
        "gas_nb/results/fmnist.json",
    ):
        require(name in inside, f"not in the wheel: {name}")
    require(any(n.endswith(".safetensors") for n in inside), "no weights in the wheel")
    rest = {name for name in inside - ours if ".dist-info/" not in name}
    require(not rest, f"does not belong into the wheel: {sorted(rest)}")
    source = {name.partition("/")[2] for name in tarfile.open(sdist).getnames()}
    wanted = {"settings.ini", "nbs/index.ipynb", "constraints.txt", "tests/test_project.py"}
    require(wanted | ours <= source, f"not in the sdist: {sorted((wanted | ours) - source)}")


# --- the core


def seconds(place: Place, source: str) -> float:
    """Processor time of Python with `source`, less that of an empty start: the best of TIMES.

    On a machine with nothing else to do it is what a clock would say."""

    def best(code: str) -> float:
        found = []
        for _ in range(TIMES):
            before = os.times()
            place.python(code)
            after = os.times()
            user = after.children_user - before.children_user
            found.append(user + after.children_system - before.children_system)
        return min(found)

    return best(source) - best("")


def check_import(place: Place) -> None:
    place.python(f"import gas_nb\n{NAMES}\n{LOADED}")
    where = place.python("import gas_nb; print(gas_nb.__file__)").strip()
    require(where.startswith(str(place.env)), f"gas_nb came from {where}")
    alone, torch, names = (
        seconds(place, code)
        for code in ("import gas_nb", "import torch", f"import gas_nb; {NAMES}")
    )
    say(f"import gas_nb: {alone:.2f} s; the names of the ten lines: {names:.2f} s")
    say(f"torch alone: {torch:.2f} s (processor time, best of {TIMES}, Python's own start off)")
    # Where torch alone takes longer, that is not ours.
    require(names < max(SECONDS, torch + 0.5), f"importing the core takes {names:.2f} s")


def ten_lines() -> str:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    return re.search(r"## Ten lines of Python.*?```python\n(.*?)```", text, re.DOTALL)[1]


DISTIL = "--teacher digits --nfe 4 --preset quick --adversarial 0 --device cpu".split()


def check_core(place: Place) -> None:
    check_import(place)
    said = place.python(ten_lines() + LOADED.replace("pandas", ""))
    require((place.work / "solver.json").is_file(), "the ten lines wrote no solver.json")
    say(f"README's ten lines: {said.strip().splitlines()[-1]}")
    require("distil" in place.run("gas-nb", "--help"), "gas-nb --help does not name distil")
    place.run("gas-nb", "distil", *DISTIL)
    require((place.work / "runs" / "digits-nfe4-1" / "solver.json").is_file(), "no solver")
    say("gas-nb distil: a solver for digits")
    for words, extra in (
        (["distil", "--nfe", "4", "--device", "cpu"], "diffusers"),
        (["card", "solver.json"], "diffusers"),
        (["app"], "app"),
        (["sweep"], "eval"),
    ):
        said = place.run("gas-nb", *words, status=1)
        require(f"pip install 'gas_nb[{extra}]'" in said, f"gas-nb {words}: {said}")
    say("what an extra is needed for says so")


# --- the extras


def check_exchange(place: Place) -> None:
    card = place.run("gas-nb", "card", "runs/digits-nfe4-1")
    require("Solvers with 4 network evaluations" in card, card)
    place.run("gas-nb", "export", "runs/digits-nfe4-1", "--to", "numpy", "--out", "alone")
    require(any((place.work / "alone").iterdir()), "gas-nb export wrote nothing")
    say("gas-nb card, export")


SWEEP = "--teacher digits --nfes 4 --repeats 1 --n-samples 40 --n-search 20 --device cpu".split()


def check_sweep(place: Place) -> None:
    said = place.run("gas-nb", "sweep", *SWEEP, "--solvers", "ddim gs")
    require("| DDIM, best |" in said and "| **GS** |" in said, said)
    say("gas-nb sweep: the table of two solvers")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def heeds_interrupts() -> None:
    """For a new process: Ctrl-C counts, though this one may run in the background of a shell."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@contextmanager
def served(place: Place, port: int):
    """The app while it runs, its output in a file."""
    command = [str(place.bin / "gas-nb"), "app", "--port", str(port), "--device", "cpu"]
    with (place.work / "app.log").open("w") as log:
        options = dict(cwd=place.work, env=place.variables, stdout=log, stderr=log)
        process = subprocess.Popen(command, preexec_fn=heeds_interrupts, **options)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def first_page(port: int, process: subprocess.Popen) -> str:
    """What the app answers, once it does; empty if it ends or says nothing for five minutes."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    for _ in range(600):
        if process.poll() is not None:
            break
        try:
            with opener.open(f"http://127.0.0.1:{port}/", timeout=5) as answer:
                return answer.read().decode()
        except OSError:
            time.sleep(0.5)
    return ""


def check_app(place: Place) -> None:
    port = free_port()
    with served(place, port) as process:
        page = first_page(port, process)
        log = (place.work / "app.log").read_text()
        require("gas_nb: few-step solvers" in page, f"the app answers {page[:200]!r}\n{log}")
        process.send_signal(signal.SIGINT)
        status = process.wait(60)
    log = (place.work / "app.log").read_text()
    require(status == 130 and "Traceback" not in log, f"the app ended with {status}\n{log}")
    say("gas-nb app: a page over HTTP, and status 130 for Ctrl-C")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--full", action="store_true", help="let pip install the extras as well")
    parser.add_argument("--keep", metavar="DIR", help="put wheel and sdist there")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        wheel, sdist = build(folder)
        check_contents(wheel, sdist, folder / "tree")
        sizes = [f"{p.name} {p.stat().st_size / 1e6:.1f} MB" for p in (wheel, sdist)]
        say(f"built {', '.join(sizes)}")
        if given.keep:
            Path(given.keep).mkdir(parents=True, exist_ok=True)
            for path in (wheel, sdist):
                shutil.copy(path, given.keep)
        place = Place(folder)
        place.pip(str(wheel))
        say("the core is installed")
        check_core(place)
        if not given.full:
            place.see_packages_of_this_environment()
        place.pip("gas_nb[all]")
        say("so are the extras")
        check_exchange(place)
        check_sweep(place)
        check_app(place)
    say("the package works without the repository")


if __name__ == "__main__":
    main()
