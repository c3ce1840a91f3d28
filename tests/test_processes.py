"""Two processes of `accelerate launch` against one: the same results; and a run's trackers."""

import json
import os
import re
import signal
import struct
import subprocess
import sys
from pathlib import Path

import parallel_program
import pytest

from gas_nb.runtime import trackers
from gas_nb.distil import PARAMETERS, main
from gas_nb.runtime.processes import gather, in_order, launched, on_main
from gas_nb.tableau import Tableau
from gas_nb.runtime.trackers import Tracker, tracker_names

ROOT = Path(__file__).parent.parent
OPTIONS = (
    "--multi_gpu --num_processes 2 --num_machines 1 --mixed_precision no --dynamo_backend no "
    "--main_process_port 0"
)
LAUNCH = ["-m", "accelerate.commands.launch", *OPTIONS.split()]


def launch(*program: str, timeout: float = 900) -> subprocess.CompletedProcess:
    """Two processes on this machine's CPU, on a free port; nothing is left running."""
    env = os.environ | {
        "ACCELERATE_USE_CPU": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1",
    }
    process = subprocess.Popen(
        [sys.executable, *LAUNCH, *program],
        env=env,
        cwd=ROOT,
        text=True,
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        out, err = process.communicate(timeout=timeout)
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        raise
    return subprocess.CompletedProcess(program, process.returncode, out, err)


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """The folders of the same runs in one process (this
    one) and in two, and what the two had to say."""
    one, two = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("two")
    done = launch("tests/parallel_program.py", str(two))
    assert done.returncode == 0, done.stderr[-3000:]
    parallel_program.run(one)
    return one, two, done


def shards_of(folder):
    """Those of the runs; the program that runs in two processes alone keeps some in `pairs`."""
    found = [p.relative_to(folder) for p in folder.rglob("pairs-*.safetensors")]
    return sorted(path for path in found if path.parts[0] != "pairs")


def test_pairs_are_the_same_bytes(both):
    one, two, _ = both
    shards, others = shards_of(one), shards_of(two)
    assert len(shards) == 4 and shards == others
    for shard in shards:
        assert (one / shard).read_bytes() == (two / shard).read_bytes(), shard


def test_the_fit_is_the_same_solver(both):
    one, two = (
        Tableau.load(folder / "fit" / "digits-nfe3-1" / "solver.json") for folder in both[:2]
    )
    assert one == two


def test_training_by_gradients_agrees_to_rounding(both):
    for name in ("gs", "gas"):
        one, two = (
            Tableau.load(folder / "adam" / "digits-nfe3-1" / f"{name}.json") for folder in both[:2]
        )
        for values in ("times", "offsets", "A", "C"):
            assert (getattr(one, values) - getattr(two, values)).abs().max() < 1e-6, (name, values)


@pytest.mark.parametrize("name", ["fit", "adam"])
def test_metrics_are_the_same(both, name):
    one, two = (
        json.loads((folder / name / "digits-nfe3-1" / "metrics.json").read_text())
        for folder in both[:2]
    )
    assert one["processes"] == 1 and two["processes"] == 2
    assert [row["solver"] for row in one["rows"]] == [row["solver"] for row in two["rows"]]
    for a, b in zip(one["rows"], two["rows"]):
        exact = name == "fit" or a["solver"] not in ("gs", "gas")
        for key in a.keys() - {"seconds_per_image"}:
            expected = (
                a[key]
                if exact or not isinstance(a[key], float)
                else pytest.approx(a[key], rel=1e-4)
            )
            assert b[key] == expected, (a["solver"], key)


@pytest.mark.parametrize("name", ["fit", "adam"])
def test_one_process_writes_and_prints(both, name):
    """The same files, every step once in metrics.jsonl, every line once on the screen."""
    one, two, done = both
    files = [
        sorted(p.relative_to(f / name).as_posix() for p in (f / name).rglob("*") if p.is_file())
        for f in (one, two)
    ]
    assert files[0] == files[1]
    logs = [
        [
            json.loads(line)
            for line in (f / name / "digits-nfe3-1" / "metrics.jsonl").read_text().splitlines()
        ]
        for f in (one, two)
    ]
    assert [(r["phase"], r["step"]) for r in logs[0]] == [(r["phase"], r["step"]) for r in logs[1]]
    for a, b in zip(*logs):
        assert b["loss"] == pytest.approx(a["loss"], rel=1e-4)
    assert done.stdout.count(f"results: {two / name}") == 1


def test_what_several_processes_do_together(both):
    answers = json.loads((both[1] / "answers.json").read_text())
    assert len(answers) == 2
    for a in answers:
        assert a["processes"] == 2 and a["alone"] == [1] * 4
        assert a["values"] == [[pytest.approx(i / 10)] * 2 for i in range(4)]
        assert (
            a["bad_item"] == "ValueError: item 4 is bad"
            and a["full_disk"] == "OSError: the disk is full"
        )
        assert a["no_share"].startswith("ValueError: a batch of 1 for 2 processes")
        assert "a folder on a disk that all machines share" in a["unseen"]
        assert a["total"] == {"loss": 36.0} and a["gradient"] == [36.0, 36.0]
        assert a["resumed"] is True and a["diverged"] == "ValueError"  # its pairs are looked at
    assert [a["rows"] for a in answers] == [[0.0, 1.0, 2.0, 3.0], [4.0, 5.0, 6.0, 7.0, 8.0]]


def test_one_process_is_left_alone(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert not launched() and gather(3) == [3] and on_main(max, 1, 2) == 2
    lazy = in_order(lambda x: 1 // x, iter([1, 0]))
    assert next(lazy) == 1
    with pytest.raises(ZeroDivisionError):
        next(lazy)


@pytest.mark.slow
def test_the_command_under_accelerate_launch(tmp_path):
    common = (
        "--teacher",
        "digits",
        "--preset",
        "quick",
        "--device",
        "cpu",
        "--output-dir",
        str(tmp_path),
    )
    done = launch("-m", "gas_nb.distil", "--nfe", "3", *common)
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads((tmp_path / "digits-nfe3-1" / "metrics.json").read_text())["processes"] == 2
    wrong = launch("-m", "gas_nb.distil", "--nfe", "0", *common)
    assert wrong.returncode != 0 and wrong.stderr.count("error: nfe=0: must be") == 1


# ---- the command ---------------------------------------------------------------------------------


def test_the_command_has_the_parameters_of_the_notebook():
    cells = json.loads((ROOT / "nbs" / "03_train_gas.ipynb").read_text())["cells"]
    source = next(
        "".join(c["source"]) for c in cells if "parameters" in c["metadata"].get("tags", [])
    )
    values = {}
    exec(re.sub(r":\s*(int|str|float)\s*=", " =", source), values)
    del values["__builtins__"]
    assert values == {name: default for name, (default, _) in PARAMETERS.items()}


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--teacher", "mnist"], "teacher 'mnist': choose digits, fmnist"),
        (
            ["--tracker", "tensorbord"],
            "tracker 'tensorbord': choose from tensorboard, wandb, trackio",
        ),
    ],
)
def test_the_command_names_a_wrong_value(tmp_path, capsys, arguments, text):
    with pytest.raises(SystemExit) as stopped:
        main(["--output-dir", str(tmp_path), "--device", "cpu", *arguments])
    assert stopped.value.code == 2 and text in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


# ---- trackers ------------------------------------------------------------------------------------


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """The scalars in TensorBoard's event files: records of
    length (8 bytes), checksum (4), an Event, checksum (4)."""
    event_pb2 = pytest.importorskip("tensorboardX.proto.event_pb2")
    found = {}
    for path in sorted(folder.rglob("events.out.tfevents.*")):
        data = path.read_bytes()
        while data:
            (size,) = struct.unpack("<Q", data[:8])
            event, data = event_pb2.Event.FromString(data[12 : 12 + size]), data[16 + size :]
            for value in event.summary.value:
                if value.WhichOneof("value") == "simple_value":
                    found.setdefault(value.tag, []).append((event.step, value.simple_value))
    return found


def test_tensorboard_gets_what_metrics_jsonl_gets(tmp_path):
    pytest.importorskip("tensorboardX")
    main(
        [
            "--nfe",
            "2",
            "--teacher",
            "digits",
            "--preset",
            "quick",
            "--device",
            "cpu",
            "--output-dir",
            str(tmp_path),
            "--tracker",
            "tensorboard",
        ]
    )
    run = tmp_path / "digits-nfe2-1"
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    seen = scalars(run)
    for phase in ("fit", "gas"):
        expected = [
            (i, pytest.approx(r["loss"], rel=1e-6))
            for i, r in enumerate(lines, 1)
            if r["phase"] == phase
        ]
        assert seen[f"{phase}/loss"] == expected and len(expected) >= (2 if phase == "fit" else 1)
    rows = json.loads((run / "metrics.json").read_text())["rows"]
    for row in rows:
        assert seen[f"evaluation/{row['solver']}/l1"] == [
            (len(lines), pytest.approx(row["l1"], rel=1e-6))
        ]


def test_a_tracker_without_its_package_is_named(monkeypatch):
    import accelerate.tracking

    monkeypatch.setattr(accelerate.tracking, "get_available_trackers", lambda: [])
    with pytest.raises(
        ValueError, match="tracker 'wandb': its package is not installed; pip install wandb trackio"
    ):
        tracker_names("wandb, trackio,wandb")


def test_no_tracker_by_default(tmp_path, monkeypatch):
    monkeypatch.setattr(
        trackers, "is_main", lambda: pytest.fail("asked although no tracker is named")
    )
    tracker = Tracker("", tmp_path, {})
    tracker.log({"loss": 1.0}, 1)
    tracker.close()
    assert PARAMETERS["tracker"][0] == "" and not list(tmp_path.iterdir())
