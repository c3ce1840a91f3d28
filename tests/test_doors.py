"""The doors that users come through: tiny pipelines of each
kind by notebook, command and app; wrong values; a run's owner."""

import gas_nb.runtime.device  # noqa: F401  (before diffusers)

import json
import os
import signal
import socket
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pipelines
import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler

from gas_nb import app, distil
from gas_nb.denoiser import Denoiser
from gas_nb.runtime.files import FolderInUse, claim_folder, release_folder
from gas_nb.schedule import NoiseSchedule
from gas_nb.sweep import SweepConfig, finished_run, load_sweep, training_config
from gas_nb.sweep import main as sweep_main
from gas_nb.tableau import Tableau
from gas_nb.teacher import Teacher, load_teacher
from gas_nb.training import (
    RunLog,
    StepRecord,
    TrainConfig,
    load_state,
    open_run,
    preset_config,
    resolve,
    train,
)

ROOT = Path(__file__).resolve().parent.parent
QUICK = preset_config("quick", teacher="digits", device="cpu")
KINDS = dict(
    epsilon=lambda: pipelines.ddpm(),
    v=lambda: pipelines.ddpm(DDIMScheduler(prediction_type="v_prediction", **pipelines.NO_CLIP)),
    flow=lambda: pipelines.ddpm(FlowMatchEulerDiscreteScheduler()),
    classes=lambda: pipelines.dit(),
    text=lambda: pipelines.stable_diffusion(),
    text_v=lambda: pipelines.stable_diffusion(prediction_type="v_prediction"),
    text_flow=lambda: pipelines.stable_diffusion_3(),
)


@pytest.fixture(scope="module")
def digits():
    return load_teacher("digits", "cpu")


@pytest.fixture
def folder(tmp_path):
    def save(kind):
        KINDS[kind]().save_pretrained(tmp_path / kind)
        (tmp_path / "captions.txt").write_text("a cat\na red shoe\n")
        (tmp_path / "calls.json").write_text('[{"class_labels": [1]}, {"class_labels": [2]}]')
        prompts = str(tmp_path / "captions.txt") if kind.startswith("text") else ""
        return dict(
            teacher=str(tmp_path / kind),
            prompts=prompts,
            calls=str(tmp_path / "calls.json") if kind == "classes" else "",
            nfe=3,
            preset="quick",
            n_pairs=8,
            n_eval=4,
            device="cpu",
            output_dir=str(tmp_path / "runs"),
        )

    return save


def check_run(tmp_path):
    (run,) = (tmp_path / "runs").glob("*-nfe3-1")
    rows = {row["solver"]: row for row in json.loads((run / "metrics.json").read_text())["rows"]}
    assert set(rows) == {"teacher", "ddim", "dpm_solver_pp", "unipc", "ipndm", "gs"}
    assert all(row["l1"] == row["l1"] for row in rows.values()) and rows["teacher"]["l1"] < 1e-3
    assert Tableau.load(run / "solver.json").nfe == 3


# --- the doors


@pytest.mark.parametrize("kind", ["v", "classes", "text_flow"])
def test_a_pipeline_goes_through_the_command(tmp_path, folder, kind):
    distil.main(
        [
            word
            for name, value in folder(kind).items()
            for word in (f"--{name.replace('_', '-')}", str(value))
        ]
    )
    check_run(tmp_path)


@pytest.mark.parametrize("kind", ["text"])
def test_a_pipeline_goes_through_the_notebook(tmp_path, folder, kind):
    options = [word for name, value in folder(kind).items() for word in ("-p", name, str(value))]
    command = [
        sys.executable,
        "-m",
        "papermill",
        str(ROOT / "nbs" / "03_train_gas.ipynb"),
        str(tmp_path / "out.ipynb"),
        "--no-progress-bar",
        *options,
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    check_run(tmp_path)


@pytest.mark.parametrize("kind", ["epsilon", "text_v", "flow"])
def test_a_pipeline_is_trained_and_compared_in_the_app(tmp_path, folder, kind):
    """The page's own functions, with `--teacher FOLDER`;
    solvers are among the rows by what the run's config says."""
    given = folder(kind)
    files = {name: given[name] for name in ("teacher", "prompts", "calls")}
    bench = app.Workbench(tmp_path / "runs", "cpu", **files)
    assert app.build(bench=bench) is not None
    *_, (line, _) = bench.distil(bench.first, 3, "quick", pause=0.05)
    assert f"kept in {kind}-nfe3-1" in line
    condition = app.condition_choices(bench.classes(bench.first))[0][1]
    assert condition == ("mixed" if given["prompts"] else "none")
    solvers = ["ddim", "gs", "gas"]
    ask = app.make_ask(bench.first, condition, 1.0, 0, 2, [3], solvers, "best", bench=bench)
    *_, (line, page, found) = bench.compare(ask)
    assert "3 pictures in" in line and page.count("<button") == 2 and "Teacher" in page
    assert all(c.l1 == c.l1 for c in found["cells"].values() if c.solver != "teacher")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--teacher", "mnist"], "teacher 'mnist'"),
        (["--teacher", "."], "has no config.json"),
        (["--prompts", "no.txt"], "cannot be read"),
        (["--prompts", __file__], "give the text teacher"),
    ],
)
def test_the_app_refuses_a_wrong_teacher(tmp_path, monkeypatch, capsys, options, words):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        app.main(["--device", "cpu", *options])
    assert stopped.value.code == 2 and words in capsys.readouterr().err


# --- shapes


@pytest.mark.parametrize("shape", [(1, 28, 28), (2,), (3, 10), (1, 8, 12), (2, 3, 4, 4)], ids=str)
@pytest.mark.parametrize("method", ["gauss_newton", "adam"])
def test_a_sample_of_any_shape_is_trained_to_the_end(shape, method):
    denoiser = Denoiser(lambda x, t, label=None: 0.3 * x.tanh(), NoiseSchedule.ddpm(), "epsilon")
    teacher = Teacher("p", denoiser, shape, dict(solver="unipc", nfe=20))
    config = replace(
        QUICK, teacher="p", nfe=3, condition="none", method=method, iterations=2, batch_size=4
    )
    *_, last = train(config, teacher)
    assert last.phase == "gas" and last.tableau.nfe == 3


def test_what_cannot_be_trained_is_refused_before_the_fit(digits):
    from gas_nb.data import make_pairs

    other = make_pairs(
        Teacher(
            "p", Denoiser(lambda x, t: x, NoiseSchedule.ddpm()), (3,), dict(solver="unipc", nfe=2)
        ),
        range(4),
    )
    with pytest.raises(
        ValueError, match=r"pairs of shapes \(3,\).*digits has samples of shape \(1, 8, 8\)"
    ):
        next(train(QUICK, digits, pairs=(other, other)))
    cannot = Teacher(
        "p",
        digits.denoiser,
        (1, 8, 8),
        digits.recipe,
        features=lambda x: x[:, 5],
        features_name="own",
    )
    with pytest.raises(ValueError, match="loss='features' cannot look at samples"):
        next(train(replace(QUICK, loss="features"), cannot))


# --- a run's owner

HOLD = """
import sys, time
from gas_nb.training import open_run, preset_config
print(open_run(sys.argv[1], preset_config("quick", teacher="digits", device="cpu")), flush=True)
time.sleep(300)
"""


def test_a_run_that_another_process_works_on_is_refused_by_name_and_free_when_that_was_killed(
    tmp_path, capsys
):
    other = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    try:
        run = Path(other.stdout.readline().strip())
        with pytest.raises(
            FolderInUse, match=rf"process {other.pid} since.*choose another output_dir"
        ):
            open_run(tmp_path, QUICK)
        with pytest.raises(FolderInUse):
            next(train(QUICK, run_dir=run))
        with pytest.raises(SystemExit) as stopped:
            distil.main(
                [
                    "--teacher",
                    "digits",
                    "--preset",
                    "quick",
                    "--device",
                    "cpu",
                    "--output-dir",
                    str(tmp_path),
                ]
            )
        assert stopped.value.code == 2 and f"process {other.pid}" in capsys.readouterr().err
        assert not (run / "metrics.jsonl").exists()
    finally:
        other.send_signal(signal.SIGKILL)
        other.wait()
    assert open_run(tmp_path, QUICK) == run
    release_folder(run)


def test_a_run_is_free_after_an_interrupt_in_the_same_process(tmp_path, digits):
    run = open_run(tmp_path, QUICK)
    records = train(QUICK, digits, run)
    next(records)
    with pytest.raises(KeyboardInterrupt):
        records.throw(KeyboardInterrupt)
    assert open_run(tmp_path, QUICK) == run
    assert [r.phase for r in train(QUICK, digits, run)][-1] == "gas"
    release_folder(run)
    assert claim_folder(run) is True
    release_folder(run)


# --- what is half finished


def test_a_log_whose_last_line_was_cut_loses_no_other(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text(
        '{"phase": "fit", "step": 1}\n[]\n{"phase": "nap", "step": 2}\n{"phase": "fit", "st'
    )
    log = RunLog(tmp_path)
    log.add(StepRecord("fit", 2, 3, 0.5, None, 1.0))
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2] and len(
        RunLog(tmp_path).records
    ) == 2


@pytest.mark.parametrize(
    "state",
    ["{}", "[]", '{"phase": "gas", "step": 1, "seconds": 0, "config": {}, "teacher": {}}', "true"],
)
def test_a_checkpoint_that_is_not_a_runs_is_a_value_error(tmp_path, digits, state):
    from safetensors.torch import save_file

    save_file(dict(x=torch.zeros(1)), tmp_path / "checkpoint.safetensors", dict(state=state))
    with pytest.raises(ValueError, match="checkpoint.safetensors"):
        load_state(QUICK, digits, tmp_path)


def test_a_checkpoint_without_its_tensors_is_a_value_error(tmp_path, digits):
    from safetensors import safe_open
    from safetensors.torch import save_file

    for _ in train(replace(QUICK, adversarial_weight=0.0), digits, tmp_path):
        pass
    with safe_open(tmp_path / "checkpoint.safetensors", "pt") as f:
        header = f.metadata()
    save_file(dict(x=torch.zeros(1)), tmp_path / "checkpoint.safetensors", header)
    with pytest.raises(ValueError, match="does not hold what a run of these settings needs"):
        load_state(replace(QUICK, adversarial_weight=0.0), digits, tmp_path)


def test_a_half_finished_run_is_no_finished_one(tmp_path):
    config = training_config(SweepConfig("digits", nfes="4", preset="quick", device="cpu"), 4)
    run = open_run(tmp_path, config)
    (run / "metrics.json").write_text("{}")
    assert finished_run(tmp_path, config) is None
    release_folder(run)


@pytest.mark.parametrize(
    "text", ["{", "[]", "{}", '{"config": {"beauty": 1}, "output_dir": ".", "runs": "."}']
)
def test_a_folder_that_is_no_sweeps_is_refused_in_words(tmp_path, capsys, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match="config.json"):
        load_sweep(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        sweep_main(["--job", str(tmp_path), "--nfe", "4"])
    assert stopped.value.code == 2 and "config.json" in capsys.readouterr().err


def test_a_teacher_whose_name_has_brackets_gets_a_second_run(tmp_path):
    config = replace(QUICK, teacher="my[1]")
    runs = []
    for _ in range(2):
        runs.append(open_run(tmp_path, config))
        (runs[-1] / "metrics.json").write_text("{}")
        release_folder(runs[-1])
    assert [r.name for r in runs] == ["my[1]-nfe4-1", "my[1]-nfe4-2"]


# --- values of the wrong kind

GIVEN = dict(
    nfe=4,
    teacher="digits",
    weights="",
    prompts="",
    preset="quick",
    method="",
    loss="",
    condition="random",
    adversarial=-1.0,
    iterations=0,
    batch_size=0,
    n_pairs=0,
    n_eval=0,
    lr=0.0,
    seed=0,
    device="cpu",
    output_dir="runs",
    tracker="",
)
WRONG = (None, 5, 2.5, True, "nonsense", ["a"], {}, float("nan"))


def right(name, value):
    default = GIVEN[name]
    if isinstance(default, str):
        return name in ("output_dir", "weights") and value == "nonsense"
    return (
        isinstance(value, (int, float) if isinstance(default, float) else int)
        and not isinstance(value, bool)
        and value == value
    )


@pytest.mark.parametrize("name", GIVEN)
def test_a_parameter_of_the_wrong_kind_is_named_with_its_value(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    for value in WRONG:
        if not right(name, value):
            with pytest.raises(ValueError) as error:
                resolve(GIVEN | {name: value})
            assert name in str(error.value) and repr(value) in str(error.value), (
                name,
                value,
                error.value,
            )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", [f for f in TrainConfig.__dataclass_fields__])
def test_a_setting_of_the_wrong_kind_is_named_with_its_value(name):
    default = getattr(QUICK, name)
    for value in (
        None,
        [1],
        {},
        object(),
        "7" if not isinstance(default, str) else 7,
        float("nan"),
    ):
        if value is None and name in ("order", "t_eps"):
            continue
        if value == {} and name in ("fit", "tangent"):  # a group of options: none of them is given
            continue
        with pytest.raises(ValueError, match=name):
            replace(QUICK, **{name: value})


def test_a_setting_that_is_as_good_is_taken(tmp_path):
    import numpy as np

    config = replace(
        QUICK,
        teacher=Path("digits"),
        device=torch.device("cpu"),
        nfe=np.int64(5),
        lr=np.float32(0.5),
    )
    assert (
        json.loads(json.dumps(asdict(config)))["nfe"] == 5
        and config.teacher == "digits"
        and config.lr == 0.5
    )


def test_missing_and_unknown_settings_are_named():
    with pytest.raises(ValueError, match="missing settings: nfe"):
        resolve({k: v for k, v in GIVEN.items() if k != "nfe"})
    with pytest.raises(ValueError, match="unknown settings: colour"):
        resolve(GIVEN | dict(colour=1))


def test_an_output_dir_that_is_a_file_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="output_dir=.*it is a file. Choose another"):
        resolve(GIVEN | dict(output_dir=str(tmp_path / "file")))


@pytest.mark.parametrize("name", SweepConfig.__dataclass_fields__)
def test_a_sweeps_setting_of_the_wrong_kind_is_named(name):
    for value in (None, 2.5, [], [None], {}):
        with pytest.raises(ValueError, match=name):
            SweepConfig(**(dict(teacher="digits", device="cpu") | {name: value}))


def test_an_empty_list_of_solvers_names_those_there_are():
    for nothing in ("", [], (), " , "):
        with pytest.raises(ValueError, match="solvers=.*at least one of ddim"):
            SweepConfig("digits", solvers=nothing)


# --- the app


def test_compare_offers_every_number_that_train_makes(tmp_path, digits):
    bench = app.Workbench(tmp_path, "cpu")
    bench.teachers["digits"] = digits
    for nfe in (2, 3):
        for _ in bench.distil("digits", nfe, "quick", pause=0.02):
            pass
        ask = app.make_ask("digits", "none", 1.0, 0, 2, [nfe], ["gs", "ddim"], "best")
        cells = [c for c in app.generate(ask, digits, bench.solvers()) if c.solver != "teacher"]
        assert cells and all(c.images is not None for c in cells)
    assert set(range(2, 11)) <= set(app.NFES)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--port", "99999"], "--port 99999: give a number from 1 to 65535"),
        (["--port", "0"], "--port 0: give"),
        (["--port", "-3"], "--port -3: give"),
        (["--host", "no such host"], "is no address"),
        (["--host", "192.0.2.1", "--port", "7999"], "cannot listen there"),
        (["--runs", __file__], "is a file, give a folder"),
    ],
)
def test_the_app_refuses_a_wrong_argument_before_it_starts(arguments, words, capsys, monkeypatch):
    monkeypatch.setattr(app.Workbench, "teacher", lambda *a: pytest.fail("something heavy started"))
    with pytest.raises(SystemExit) as stopped:
        app.main(["--device", "cpu", *arguments])
    assert stopped.value.code == 2 and words in capsys.readouterr().err


def test_the_app_refuses_a_port_that_is_in_use(capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(SystemExit) as stopped:
            app.main(["--device", "cpu", "--port", str(taken.getsockname()[1])])
    assert stopped.value.code == 2 and "in use" in capsys.readouterr().err


def test_ci_runs_the_slow_tests():
    assert (
        "make slow" in (ROOT / ".ci" / "run").read_text()
        and "--run-slow -m slow" in (ROOT / "Makefile").read_text()
    )
