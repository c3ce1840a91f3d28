"""Faults on purpose: the short form of benchmarks/faults.py, and what it found, one by one."""

import json
import os
import shutil
import signal
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))

import fault_table  # noqa: E402
import faults  # noqa: E402
from fmnist_teacher.state import CHECKPOINT  # noqa: E402
from fmnist_teacher.training import run_training  # noqa: E402
from test_data import MatrixTeacher, small  # noqa: E402
from test_fmnist_training import TINY, toy_data  # noqa: E402

from gas_nb.data import folder as pairs_on_disk  # noqa: E402
from gas_nb.data import generate_pairs  # noqa: E402
from gas_nb.runs import Run, claim_run, is_whole  # noqa: E402
from gas_nb.runtime.files import FolderInUse, atomic_path, claim_folder, release_folder  # noqa: E402
from gas_nb.runtime.files import save_safetensors_atomic, sweep_up  # noqa: E402
from gas_nb.sweeps import runner  # noqa: E402
from gas_nb.tableau import Tableau  # noqa: E402

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")


@pytest.fixture(scope="module")
def usual(tmp_path_factory):
    "The undisturbed runs, made when they are asked for."
    known = {}

    def of(name):
        if name not in known:
            place = tmp_path_factory.mktemp(name)
            known[name] = faults.undisturbed(faults.PROGRAMS[name], place)
        return known[name]

    return of


def disturbed(key, usual, faults_in_a_row, place):
    """What came of a case; of another of its kind where the command had ended before its moment."""
    name, kind, number = key.split("/")
    for n in range(int(number), int(number) + 3):
        found = faults.one_case(f"{name}/{kind}/{n}", usual(name), faults_in_a_row, place / str(n))
        if found.tried:
            break
    assert found.wrong == [] and found.tried >= 1
    assert found.identical == found.resumed == found.tried
    assert found.half == found.remade == found.leftover == found.outside == 0
    return found


# --- the commands, disturbed


def test_pairs_go_on_where_there_was_no_room(usual, tmp_path):
    assert disturbed("pairs/full/1", usual, 1, tmp_path).refused >= 1


def test_distil_goes_on_behind_kills_at_its_writes(usual, tmp_path):
    assert disturbed("distil/write/0", usual, 2, tmp_path).tried == 2


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["kill", "term", "int", "denied", "damaged", "shared"])
def test_distil_goes_on_behind_all_that_is_done_to_it(usual, tmp_path, kind):
    disturbed(f"distil/{kind}/0", usual, 2, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sweep", "app", "teacher"])
def test_the_other_commands_go_on_behind_kills(usual, tmp_path, name):
    disturbed(f"{name}/write/0", usual, 2, tmp_path)


@pytest.mark.slow
def test_a_killed_worker_ends_the_others_and_any_number_goes_on(usual, tmp_path):
    found = disturbed("launch/worker/0", usual, 1, tmp_path)
    assert found.refused == 1 and found.seconds < 60


# --- what is left of a killed writer


def in_a_child(act) -> int:
    """A child of this process that does `act` and waits to be killed; its id, behind that."""
    done, doing = os.pipe()
    child = os.fork()
    if not child:
        act()
        os.write(doing, b"x")
        signal.pause()
    os.close(doing)
    assert os.read(done, 1) == b"x"
    os.close(done)
    return child


def end(child: int) -> None:
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def test_what_a_killed_writer_left_goes_and_what_is_written_now_stays(tmp_path):
    def write_half():
        writing = atomic_path(tmp_path / "a.json")
        writing.__enter__().write_text("half")
        kept.append(writing)

    kept = []
    end(in_a_child(write_half))
    (left,) = tmp_path.glob(".a.json.*.tmp")
    (tmp_path / ".mine.tmp").write_text("not ours")
    with atomic_path(tmp_path / "b.json") as temporary:
        temporary.write_text("whole")
        assert sweep_up(tmp_path) == [left] and temporary.exists()
    assert (tmp_path / "b.json").read_text() == "whole"
    assert sorted(os.listdir(tmp_path)) == [".mine.tmp", "b.json"]


def test_whoever_claims_a_folder_sweeps_it_up(tmp_path):
    (tmp_path / ".a.json.0123456789ab.tmp").write_text("half")
    claim_folder(tmp_path)
    release_folder(tmp_path)
    assert os.listdir(tmp_path) == [".lock"]


# --- runs


def test_the_folder_of_a_run_killed_before_it_had_settings_is_used(tmp_path):
    blank = tmp_path / "digits-nfe4-1"
    blank.mkdir()
    (blank / ".lock").touch()
    run = claim_run(tmp_path, dict(teacher="digits", nfe=4))
    run.release()
    assert run.folder == blank and Run.at(blank).config["nfe"] == 4


@pytest.mark.parametrize("content", ["", "[]", '{"teacher'])
def test_a_folder_with_nothing_but_damaged_settings_is_used(tmp_path, content):
    run = claim_run(tmp_path, dict(teacher="digits", nfe=2))
    run.release()
    run.file("config.json").write_text(content)
    again = claim_run(tmp_path, dict(teacher="digits", nfe=2, seed=1))
    again.release()
    assert again.folder == run.folder and Run.at(run.folder).config == again.config


@pytest.mark.parametrize("name", ["gs.json", "metrics.json"])
def test_a_finished_run_that_was_damaged_is_not_whole(tmp_path, name):
    run = claim_run(tmp_path, dict(teacher="digits", nfe=2))
    run.save_solvers(dict(gs=Tableau.load(next(ROOT.glob("gas_nb/solvers/*gs-4.json")))))
    run.write_metrics(dict(rows=[dict(solver="gs")]))
    run.release()
    assert is_whole(Run.at(run.folder))
    path = run.file(name)
    path.write_bytes(path.read_bytes()[:-9])
    assert not is_whole(Run.at(run.folder))
    again = claim_run(tmp_path, run.config)
    again.release()
    assert again.folder == run.folder


def with_checkpoint(root, settings):
    "An unfinished run whose checkpoint says its settings."
    run = claim_run(root, settings)
    state = json.dumps(dict(config=run.config, teacher={}))
    save_safetensors_atomic(run.checkpoint, dict(a=torch.zeros(1)), dict(state=state))
    run.release()
    return run


@pytest.mark.parametrize("content", [None, b"", b'{"teacher": "dig'])
def test_a_run_that_lost_its_settings_is_known_by_its_checkpoint(tmp_path, content):
    settings = dict(teacher="digits", nfe=2)
    run = with_checkpoint(tmp_path, settings)
    run.file("config.json").unlink()
    if content is not None:
        run.file("config.json").write_bytes(content)
    other = claim_run(tmp_path, dict(settings, seed=1))
    again = claim_run(tmp_path, settings)
    assert (other.folder.name, again) == ("digits-nfe2-2", run)
    assert Run.at(run.folder).config == settings
    for one in (other, again):
        one.release()


def test_a_run_that_is_not_known_any_more_keeps_nothing_half_written(tmp_path):
    run = claim_run(tmp_path, dict(teacher="digits", nfe=2))
    run.release()
    run.file("config.json").write_text("{")
    run.file("metrics.jsonl").write_text("")
    left = run.file(".checkpoint.safetensors.0123456789ab.tmp")
    left.write_text("half")
    (tmp_path / "digits-nfe2-9").symlink_to(run.folder)
    next_one = claim_run(tmp_path, run.config)
    next_one.release()
    assert next_one.folder.name == "digits-nfe2-10" and not left.exists()


def test_a_link_among_the_runs_is_not_swept_up(tmp_path):
    outside, runs = tmp_path / "outside", tmp_path / "runs"
    outside.mkdir()
    runs.mkdir()
    (outside / ".lock").touch()
    (outside / "metrics.jsonl").touch()
    (outside / ".a.json.0123456789ab.tmp").write_text("somebody's")
    (runs / "digits-nfe2-1").symlink_to(outside)
    claim_run(runs, dict(teacher="digits", nfe=2)).release()
    assert (outside / ".a.json.0123456789ab.tmp").exists()


# --- pairs


def test_pairs_that_another_process_is_making_are_waited_for(tmp_path, monkeypatch, capsys):
    "And those that it made meanwhile are taken."
    small(tmp_path / "other")
    asked = []

    def claim(folder, wait=0.0):
        asked.append(wait)
        if len(asked) == 1:
            shutil.copytree(tmp_path / "other", folder, dirs_exist_ok=True)
            raise FolderInUse("somebody has it")
        return claim_folder(folder)

    monkeypatch.setattr(pairs_on_disk, "claim_folder", claim)
    teacher = MatrixTeacher()
    data, _ = small(tmp_path / "mine", teacher)
    assert len(data) == 30 and asked[1] == -1
    assert teacher.batches == [] or sum(teacher.batches) < 30
    assert "which is making the pairs" in capsys.readouterr().out


def test_a_whole_folder_of_pairs_is_not_written_to(tmp_path):
    small(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in [tmp_path, *tmp_path.iterdir()]}
    small(tmp_path)
    assert {p: p.stat().st_mtime_ns for p in [tmp_path, *tmp_path.iterdir()]} == before


def test_a_cut_manifest_is_named_with_the_remedy(tmp_path):
    small(tmp_path)
    os.truncate(tmp_path / "manifest.json", 100)
    with pytest.raises(
        ValueError, match="manifest.json is not JSON: .*; restore it, or empty the folder"
    ):
        generate_pairs(MatrixTeacher(), range(30), tmp_path, "random", 10, 5)


# --- sweeps


JOB = """
import sys, time
from gas_nb.sweeps.jobs import end_with_parent
end_with_parent()
time.sleep(60)
"""


def test_a_job_whose_sweep_died_while_it_was_starting_ends():
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    env = os.environ | dict(PYTHONPATH=str(ROOT), GAS_NB_PARENT=str(dead.pid))
    job = subprocess.run([sys.executable, "-c", JOB], env=env, timeout=60)
    assert job.returncode == 1


@pytest.mark.parametrize(
    ("error", "traced"), [(FolderInUse("it is in use"), False), (RuntimeError("a mistake"), True)]
)
def test_a_sweep_tells_a_refusal_in_words(monkeypatch, capsys, error, traced):
    def refuse(*_):
        raise error

    monkeypatch.setattr(runner, "train_solvers", refuse)
    monkeypatch.setattr(runner, "sweep_cells", lambda *_: [])
    sweep = types.SimpleNamespace(config=types.SimpleNamespace(trains=True))
    failed = runner.run_job(sweep, 4, lambda line: None)
    assert failed == [f"training for NFE 4: {type(error).__name__}: {error}"]
    assert ("Traceback" in capsys.readouterr().err) is traced


def test_a_sweep_waits_for_a_training_that_another_process_has(tmp_path, monkeypatch):
    """And takes what came of it; it used to fail for both, where each had one of the trainings."""
    tries, told = [], []

    def drive(config, **options):
        tries.append(config.nfe)
        if len(tries) < 3:
            raise FolderInUse("it is in use by ada")
        monkeypatch.setattr(runner, "finished_run", lambda root, config: "the other's")
        raise FolderInUse("it is in use by ada")

    monkeypatch.setattr(runner, "drive", drive)
    monkeypatch.setattr(runner, "_LOOKS_AGAIN", 0.0)
    monkeypatch.setattr(runner, "finished_run", lambda root, config: None)
    config = runner.SweepConfig(teacher="digits", preset="quick", device="cpu", train=True)
    lab = types.SimpleNamespace(config=config, root=tmp_path, teacher=None)
    assert runner.train_solvers(lab, 4, told.append) == "the other's"
    assert tries == [4, 4, 4] and told == ["NFE 4: waiting, as it is in use by ada"]


# --- the training of a teacher


def test_a_cut_checkpoint_of_a_teacher_is_named_with_the_remedy(tmp_path):
    list(run_training(TINY, *toy_data(), tmp_path, device="cpu", log_every=1))
    os.truncate(tmp_path / CHECKPOINT, 1000)
    with pytest.raises(ValueError, match="is not a checkpoint .*delete it to start over"):
        next(run_training(TINY, *toy_data(), tmp_path, device="cpu", log_every=1))


def test_two_trainings_of_a_teacher_do_not_share_a_folder(tmp_path):
    other = in_a_child(lambda: claim_folder(tmp_path))
    try:
        with pytest.raises(FolderInUse, match=f"process {other}"):
            next(run_training(TINY, *toy_data(), tmp_path, device="cpu"))
        assert sorted(os.listdir(tmp_path)) == [".lock", ".owner.json"]
    finally:
        end(other)


# --- the page


def test_the_table_counts_what_the_files_say(tmp_path):
    row = dict(what="a: b", tried=1234, refused=2, worked=1232, lost=0)
    found = dict(rows=[row], machine="m", date="2026-01-02")
    (tmp_path / "faults.json").write_text(json.dumps(found))
    table = fault_table.table(tmp_path)
    assert "| a: b | 1,234 | 2 | 1,232 | 0 |" in table and "2026-01-02" in table
    assert "fuzz" not in table


def test_the_page_has_the_present_counts():
    assert fault_table.main(["--check"]) == 0
