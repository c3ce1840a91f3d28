"""The command `gas-nb`: what it says, how it ends, and that nothing heavy is loaded to say it."""

import json
import os
import re
import signal
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import pytest

from gas_nb import command
from gas_nb.runtime.extras import needs
from gas_nb.runtime.programs import errors_in_words, exit_status
from gas_nb.sweeps.command import PARAMETERS
from gas_nb.sweeps.config import SweepConfig

ROOT = Path(__file__).resolve().parent.parent
SHIPPED = Path(str(files("gas_nb"))) / "solvers"
NAMES = [one.name for one in command.COMMANDS]


def status_of(*words: str) -> int:
    """The exit status of `gas-nb`, returned or raised."""
    try:
        return command.main(words)
    except SystemExit as stopped:
        return stopped.code


# --- help


def test_help_lists_every_command_with_an_example(capsys):
    assert NAMES == ["distil", "sweep", "app", "export", "card"]
    for words in (["--help"], ["-h"], ["help"]):
        assert status_of(*words) == 0
        said = capsys.readouterr().out
        for one in command.COMMANDS:
            assert one.about in said and f"gas-nb {one.name} {one.example}" in said
        assert max(map(len, said.splitlines())) <= 100


def test_without_a_command_the_help_goes_to_the_error_stream(capsys):
    assert status_of() == 2
    said = capsys.readouterr()
    assert said.out == "" and "gas-nb distil" in said.err


def test_the_version_is_that_of_the_package(capsys):
    import gas_nb

    assert status_of("--version") == 0
    assert capsys.readouterr().out.strip() == f"gas_nb {gas_nb.__version__}"


@pytest.mark.parametrize("name", NAMES)
def test_every_command_has_a_help_of_its_own(name, capsys):
    assert status_of(name, "--help") == 0
    said = capsys.readouterr().out
    assert said.startswith("usage: ") and name in said.splitlines()[0]
    assert "-h, --help" in said


def test_the_list_is_there_before_torch_is():
    code = "import sys\nfrom gas_nb.command import main\nmain(['--help'])\n"
    code += "print('torch' in sys.modules, 'gradio' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "False False", done.stderr


def test_python_m_gas_nb_is_the_same_command():
    done = subprocess.run(
        [sys.executable, "-m", "gas_nb", "distill"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr == "gas-nb: error: 'distill' is no command: did you mean distil?\n"


# --- wrong words


@pytest.mark.parametrize(
    ("word", "hint"),
    [
        ("distill", "did you mean distil?"),
        ("swep", "did you mean sweep?"),
        ("APP", "did you mean app?"),
        ("cards", "did you mean card?"),
        ("bake", "choose one of distil, sweep, app, export, card"),
        ("--nfe", "choose one of"),
    ],
)
def test_a_word_that_is_no_command_is_answered_with_the_one_that_was_meant(word, hint, capsys):
    assert status_of(word) == 2
    said = capsys.readouterr()
    assert said.out == "" and f"'{word}' is no command: " in said.err and hint in said.err


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["distil", "--nfe", "0"], "gas-nb distil: error: nfe=0"),
        (["distil", "--nfe", "four"], "gas-nb distil: error: argument --nfe"),
        (["distil", "--teacher", "mnist"], "teacher 'mnist': choose digits, fmnist"),
        (["distil", "--calls", "no.json", "--teacher", "digits"], "gas-nb distil: error: "),
        (["sweep", "--nfes", "0"], "gas-nb sweep: error: nfes='0'"),
        (["sweep", "--solvers", "magic"], "gas-nb sweep: error: solvers ['magic']"),
        (["sweep", "--runs", "no/folder"], "gas-nb sweep: error: runs='no/folder'"),
        (["app", "--port", "0"], "gas-nb app: error: --port 0"),
        (["app", "--beauty", "1"], "gas-nb app: error: unrecognized arguments"),
        (["card", "no/such/solver.json"], "gas-nb card: error: no/such/solver.json: no such file"),
        (["card"], "gas-nb card: error: the following arguments are required"),
    ],
)
def test_wrong_values_are_told_in_one_line_and_nothing_is_written(
    words, error, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    assert status_of(*words) == 2
    said = capsys.readouterr().err
    assert error in said and "Traceback" not in said
    assert {path.name for path in tmp_path.rglob("*")} <= {".lock", "runs"}


# --- statuses


def test_errors_have_the_statuses_that_the_help_names():
    told = {ValueError: 2, FileNotFoundError: 2, PermissionError: 1, ConnectionError: 1}
    told |= {ModuleNotFoundError: 1, KeyboardInterrupt: 130, ZeroDivisionError: None}
    assert {kind: exit_status(kind()) for kind in told} == told
    assert "0 done, 1 failed, 2 wrong value, 130 stopped" in command.help_text()


def test_a_mistake_of_ours_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError), errors_in_words("gas-nb"):
        raise ZeroDivisionError


def test_a_file_that_cannot_be_read_is_named(capsys):
    with pytest.raises(SystemExit) as stopped, errors_in_words("gas-nb card"):
        open("no-such-file")
    assert stopped.value.code == 2
    assert (
        capsys.readouterr().err == "gas-nb card: error: no-such-file: No such file or directory\n"
    )


def test_ctrl_c_ends_a_run_with_130_and_the_run_can_go_on(tmp_path):
    given = "distil --teacher digits --preset quick --nfe 6 --device cpu --n-pairs 20000".split()
    process = subprocess.Popen(
        [sys.executable, "-m", "gas_nb", *given, "--output-dir", str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT), "GAS_NB_EVERY": "0"},
        # A shell's background jobs do not hear Ctrl-C, nor do their children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    for line in process.stdout:
        if "1 of" in line or "]" in line:
            break
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130 and said.endswith("gas-nb distil: stopped\n")
    assert "Traceback" not in said
    (run,) = tmp_path.glob("digits-*")
    assert not (run / ".owner.json").exists() and not (run / "metrics.json").exists()


def test_the_app_ends_with_130_when_it_is_stopped(monkeypatch, capsys):
    app = pytest.importorskip("gas_nb.app.page")
    closed, warmed = [], []

    class Page:
        def launch(self, **options):
            assert options["prevent_thread_lock"] and options["server_name"] == "127.0.0.1"

        def close(self, verbose=True):
            closed.append(verbose)

    def interrupted():
        raise KeyboardInterrupt

    monkeypatch.setattr(app, "build", lambda bench: Page())
    monkeypatch.setattr(app, "warm_up", lambda bench, ended: warmed.append(ended.wait(30)))
    monkeypatch.setattr(app, "wait_for_visitors", interrupted)
    monkeypatch.setattr(app.Workbench, "teacher", lambda self, name: CheckedTeacher())
    assert status_of("app", "--device", "cpu") == 130
    assert closed == [False] and capsys.readouterr().err == "gas-nb app: stopped\n"
    assert warmed == [True]  # it was told to end, and had ended when the program did


class CheckedTeacher:
    def check(self):
        return None


# --- extras


def test_a_program_of_an_extra_that_is_not_installed_says_which(capsys, monkeypatch):
    for name in [name for name in sys.modules if name.startswith(("gas_nb.app", "gradio"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert status_of("app") == 1
    said = capsys.readouterr().err
    assert said == "gas-nb app: error: gradio is not installed: pip install 'gas_nb[app]'\n"


def test_a_room_of_ours_that_is_missing_is_not_an_extra():
    with pytest.raises(ModuleNotFoundError, match="No module named 'gas_nb.nowhere'"):
        with needs("app"):
            import gas_nb.nowhere  # noqa: F401


@pytest.mark.parametrize("extra", ["diffusers", "notebooks", "app", "eval"])
def test_every_extra_that_a_message_names_is_one_that_pip_knows(extra):
    assert f"{extra}_requirements" in (ROOT / "settings.ini").read_text()
    sources = [path.read_text(encoding="utf-8") for path in (ROOT / "gas_nb").rglob("*.py")]
    named = {name for text in sources for name in re.findall(r'needs\("(\w+)"\)', text)}
    named |= {name for text in sources for name in re.findall(r"gas_nb\[(\w+)\]'", text)}
    assert extra in named <= {"diffusers", "notebooks", "app", "eval"}


# --- distil, sweep, card, export


def test_the_command_distils_and_prints_the_card_of_the_run(tmp_path, capsys):
    given = "--teacher digits --preset quick --nfe 3 --adversarial 0 --device cpu --output-dir"
    assert status_of("distil", *given.split(), str(tmp_path)) == 0
    (run,) = tmp_path.glob("digits-nfe3-1")
    capsys.readouterr()
    assert status_of("card", str(run)) == 0
    card = capsys.readouterr().out
    assert "# Few-step solvers for digits" in card and "Solvers with 3 network" in card
    assert "| unipc | 3 |" in card


@pytest.mark.parametrize(
    "places", [["fmnist-gs-4.json", "fmnist-gs-6.json"], ["fmnist"]], ids=["files", "folder"]
)
def test_a_card_is_printed_or_written(places, tmp_path, capsys):
    words = [str(SHIPPED / place) for place in places]
    assert status_of("card", *words) == 0
    printed = capsys.readouterr().out
    assert "Few-step solvers for fmnist" in printed and "## How to use it" in printed
    assert status_of("card", *words, "--output", str(tmp_path / "README.md")) == 0
    assert (tmp_path / "README.md").read_text() == printed.removesuffix("\n")


def test_a_card_of_mixed_things_is_refused(capsys):
    assert status_of("card", str(SHIPPED / "fmnist"), str(SHIPPED / "fmnist-gs-4.json")) == 2
    assert "give one folder of solvers, or several files or runs" in capsys.readouterr().err


def test_a_file_that_is_no_solver_gets_no_card(tmp_path, capsys):
    (tmp_path / "notes.json").write_text("{}")
    assert status_of("card", str(tmp_path / "notes.json"), "--output", str(tmp_path / "x.md")) == 2
    assert "notes.json" in capsys.readouterr().err and not (tmp_path / "x.md").exists()


def test_the_sweep_has_the_parameters_of_the_notebook():
    cells = json.loads((ROOT / "nbs" / "04_evaluate.ipynb").read_text())["cells"]
    source = next(
        "".join(c["source"]) for c in cells if "parameters" in c["metadata"].get("tags", [])
    )
    values = {}
    exec(re.sub(r":\s*(int|str|float|bool)\s*=", " =", source), values)
    del values["__builtins__"]
    assert values == {name: default for name, (default, _) in PARAMETERS.items()}


def test_the_defaults_of_the_sweep_are_those_of_its_settings():
    settings = {n: d for n, (d, _) in PARAMETERS.items() if n in SweepConfig.__annotations__}
    assert set(PARAMETERS) - set(settings) == {"output_dir", "runs", "processes"}
    assert SweepConfig(**settings) == SweepConfig()


def test_a_sweep_ends_with_its_table_and_says_what_failed(tmp_path, capsys):
    given = "--teacher digits --nfes 4 --repeats 1 --n-samples 40 --n-search 20 --device cpu"
    words = ["sweep", *given.split(), "--output-dir", str(tmp_path), "--solvers"]
    assert status_of(*words, "ddim") == 0
    assert "| DDIM, best |" in capsys.readouterr().out
    assert status_of(*words, "ddim gas") == 1
    said = capsys.readouterr()
    assert "gas-nb sweep: failed: gas (learned), NFE 4" in said.err
    assert "| DDIM, best |" in said.out and "Traceback" not in said.err


def test_the_command_exports(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    given = ["export", str(SHIPPED / "fmnist-gs-4.json"), "--out", "alone", "--to"]
    assert status_of(*given, "nonsense") == 2
    assert "Traceback" not in capsys.readouterr().err and list(tmp_path.iterdir()) == []
    assert status_of(*given, "numpy") == 0
    written = [path.name for path in (tmp_path / "alone").iterdir()]
    said = capsys.readouterr().out
    assert written and all(name in said for name in written)
