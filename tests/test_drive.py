"""The drive: its events and their order, what it leaves in the
folder, and that it can be stopped anywhere and taken up again."""

import json
import os
import shutil
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from gas_nb.distil import PARAMETERS
from gas_nb.drive import (
    Bar,
    Finished,
    Job,
    Journal,
    Judged,
    Opened,
    PairsMade,
    PairsProgress,
    Paused,
    Saved,
    Step,
    console,
    drive,
    in_words,
    progress_bar,
    training_free,
)
from gas_nb.metrics.judge import measure
from gas_nb.runs import Run, RunLog, claim_run, runs_in
from gas_nb.runtime.files import FolderInUse, claim_folder, release_folder
from gas_nb.tableau import Tableau
from gas_nb.teacher import load_teacher
from gas_nb.training import load_state, make_eval_pairs, make_training_pairs, preset_config, train

ROOT = Path(__file__).resolve().parent.parent
QUICK = preset_config("quick", teacher="digits", device="cpu", nfe=3, n_eval=10, n_pairs=16)
SETTINGS = {name: default for name, (default, _) in PARAMETERS.items()} | dict(
    teacher="digits", preset="quick", device="cpu", nfe=3, n_eval=10, n_pairs=16
)
ORDER = [Opened, PairsProgress, PairsMade, Bar, Step, Saved, PairsProgress, Judged, Finished]


@pytest.fixture(scope="module")
def digits():
    return load_teacher("digits", "cpu")


@pytest.fixture(scope="module")
def whole(tmp_path_factory, digits):
    """The events of a drive that nobody disturbed, and its folder."""
    root = tmp_path_factory.mktemp("whole")
    events = list(drive(QUICK, output_dir=root, teacher=digits, bar=True))
    return events, events[0].run


def of(events, kind):
    return [event for event in events if isinstance(event, kind)]


def is_free(run):
    taken = claim_folder(run)
    release_folder(run)
    return taken


# --- what comes and what stays


def test_the_events_come_in_their_order(whole):
    kinds = [type(event) for event in whole[0]]
    stages = [kind for i, kind in enumerate(kinds) if i == 0 or kind != kinds[i - 1]]
    assert stages == ORDER


def test_the_folder_holds_what_the_events_said(whole):
    events, run = whole
    (saved,), (finished,) = of(events, Saved), of(events, Finished)
    assert run.finished and is_free(run)
    for name, table in (saved.tables | dict(solver=saved.tables["gas"])).items():
        assert Tableau.load(run.folder / f"{name}.json") == table
    assert run.metrics() == json.loads(json.dumps(finished.metrics))
    assert finished.metrics["rows"] == [event.row for event in of(events, Judged)]
    assert [row["solver"] for row in finished.metrics["rows"]] == [
        "teacher",
        *training_free_names(),
        "gs",
        "gas",
    ]
    steps = [(event.record.phase, event.record.step) for event in of(events, Step)]
    assert [(row["phase"], row["step"]) for row in RunLog(run).records] == steps


def training_free_names():
    return ["ddim", "dpm_solver_pp", "unipc", "ipndm"]


def test_the_numbers_are_those_of_its_parts(whole, digits):
    """Pairs, rivals, training and rows as they come without a drive, bit for bit."""
    events, _ = whole
    pairs = make_training_pairs(QUICK, digits)
    *_, last = train(QUICK, digits, pairs=pairs)
    assert of(events, Saved)[0].tables["gas"] == last.tableau
    assert of(events, Bar)[0].tables == training_free(digits, 3, pairs[1][:32])
    judged = make_eval_pairs(QUICK, digits)
    row = measure(digits, last.tableau, judged, digits.reference())[0]
    kept = of(events, Judged)[-1].row
    for figure in ("l1", "l2", "frechet"):
        assert kept[figure] == row[figure]


def test_the_rivals_are_measured_if_asked(whole, tmp_path, digits):
    bar = of(whole[0], Bar)[0]
    assert list(bar.rows) == training_free_names() == list(bar.tables)
    assert bar.best() == min(bar.rows, key=lambda name: bar.rows[name]["l1"])
    for event in drive(QUICK, output_dir=tmp_path, teacher=digits):
        if isinstance(event, Bar):
            break
    assert list(event.tables) == training_free_names() and event.rows == {}
    with pytest.raises(ValueError, match="bar=True"):
        event.best()


def test_the_notebooks_parameters_are_a_job(whole, tmp_path):
    events = list(drive(SETTINGS | dict(output_dir=str(tmp_path))))
    assert events[0].config == QUICK
    assert of(events, Saved)[0].tables == of(whole[0], Saved)[0].tables


def test_a_sweep_judges_on_the_held_out_pairs_without_rivals(tmp_path, digits):
    """And makes no others."""
    options = dict(output_dir=tmp_path, teacher=digits, rivals=None, judged_on="held_out")
    events = list(drive(QUICK, **options))
    assert [event.row["solver"] for event in of(events, Judged)] == ["gs", "gas"]
    metrics = of(events, Finished)[0].metrics
    assert metrics["n_eval"] == QUICK.n_val and metrics["rows"][0]["frechet"] is None
    assert len(list((tmp_path / "pairs").iterdir())) == 2  # those of the run, those of its game


def test_a_job_is_what_it_is_made_of(tmp_path):
    job = Job(QUICK, tmp_path, bar=True)
    assert Job.of(job, bar=False) == replace(job, bar=False)
    assert Job.of(QUICK, output_dir=tmp_path) == Job(QUICK, tmp_path)
    with pytest.raises(ValueError, match="judged_on='train': choose evaluation or held_out"):
        Job(QUICK, judged_on="train")


# --- what is wrong comes first


def test_wrong_settings_are_refused_at_once(tmp_path):
    with pytest.raises(ValueError, match="nfe=0"):
        drive(SETTINGS | dict(nfe=0, output_dir=str(tmp_path)))
    with pytest.raises(ValueError, match="unknown settings: colour"):
        drive(SETTINGS | dict(colour=1, output_dir=str(tmp_path)))
    assert not list(tmp_path.iterdir())


def test_a_distance_that_cannot_start_says_so_before_the_pairs(tmp_path, digits):
    with pytest.raises(ValueError, match="digits has no feature network"):
        next(drive(replace(QUICK, loss="features"), output_dir=tmp_path, teacher=digits))
    assert not runs_in(tmp_path) and not (tmp_path / "pairs").exists()


def test_a_run_of_another_process_is_refused(tmp_path):
    code = "import sys, time\nfrom gas_nb.runtime.files import claim_folder\n"
    code += "claim_folder(sys.argv[1])\nprint('held', flush=True)\ntime.sleep(100)"
    run = claim_run(tmp_path, QUICK)
    run.release()
    other = subprocess.Popen(
        [sys.executable, "-c", code, str(run.folder)],
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    try:
        assert other.stdout.readline().strip() == b"held"
        with pytest.raises(FolderInUse, match=f"process {other.pid}"):
            next(drive(QUICK, output_dir=tmp_path))
    finally:
        other.kill()
        other.wait()


# --- stopped and taken up again


@pytest.mark.parametrize("stop", [Opened, PairsProgress, PairsMade, Bar, Step, Saved, Judged])
def test_closed_behind_any_event_it_gives_the_folder_back_and_goes_on_later(
    whole, tmp_path, digits, stop
):
    events = drive(QUICK, output_dir=tmp_path, teacher=digits)
    for event in events:
        if isinstance(event, stop):
            break
    events.close()
    runs = [run for run in runs_in(tmp_path) if run.config]
    assert len(runs) == 1 and is_free(runs[0]) and not runs[0].finished
    assert all(is_free(Run.at(folder)) for folder in (tmp_path / "pairs").glob("*"))
    rest = list(drive(QUICK, output_dir=tmp_path, teacher=digits))
    assert rest[0].run.folder == runs[0].folder and isinstance(rest[-1], Finished)
    assert of(rest, Saved)[0].tables == of(whole[0], Saved)[0].tables
    steps = [(row["phase"], row["step"]) for row in RunLog(whole[1]).records]
    assert [(row["phase"], row["step"]) for row in RunLog(rest[0].run).records] == steps


def test_a_training_that_was_over_before_is_only_judged(whole, tmp_path, digits):
    events = drive(QUICK, output_dir=tmp_path, teacher=digits)
    while not isinstance(next(events), Saved):
        pass
    events.close()
    assert load_state(QUICK, digits, Run.at(tmp_path / "digits-nfe3-1")).phase == "done"
    rest = list(drive(QUICK, output_dir=tmp_path, teacher=digits))
    assert not of(rest, Step)
    assert of(rest, Saved)[0].tables == of(whole[0], Saved)[0].tables


@pytest.mark.parametrize("after", [1, 3, 4])
def test_a_pause_shows_what_there_is_and_loses_nothing(whole, tmp_path, digits, after):
    pause, seen = threading.Event(), []
    for event in drive(QUICK, pause, output_dir=tmp_path, teacher=digits):
        seen.append(event)
        if len(of(seen, Step)) == after and not of(seen, Saved):
            pause.set()
        if isinstance(event, Paused):
            assert not event.run.finished and not is_free(event.run)
            assert Tableau.load(event.run.folder / "solver.json").nfe == 3
    stages = [type(event) for event in seen if not isinstance(event, (Judged, PairsProgress))]
    assert stages == [Opened, PairsMade, Bar, *[Step] * after, Saved, Paused] + [
        *[Step] * (len(of(whole[0], Step)) - after),
        Saved,
        Finished,
    ]
    assert of(seen, Saved)[-1].tables == of(whole[0], Saved)[0].tables
    assert list(of(seen, Saved)[0].tables) == (["gs"] if after < 4 else ["gs", "gas"])


def test_an_error_on_the_way_gives_the_folder_back(tmp_path, digits):
    def broken(teacher, nfe, pairs):
        raise RuntimeError("no rivals today")

    events = drive(QUICK, output_dir=tmp_path, teacher=digits, rivals=broken)
    with pytest.raises(RuntimeError, match="no rivals today"):
        list(events)
    assert is_free(Run.at(tmp_path / "digits-nfe3-1"))


# --- on the console


def test_the_console_prints_stages_progress_and_the_table(tmp_path, digits, capsys):
    events = list(console(drive(QUICK, output_dir=tmp_path, teacher=digits, bar=True)))
    text = capsys.readouterr().out
    assert isinstance(events[-1], Finished)
    for words in (
        f"results: {tmp_path / 'digits-nfe3-1'}",
        "training pairs   [####################] 32/32",
        "the bar, on held-out pairs:\n  DDIM",
        "fit              [######..............] 1/3 loss",
        "gas              [####################] 1/1 loss",
        "evaluation pairs [####################] 10/10",
        "solver         NFE  spacing                l1        "
        "l2   frechet\nTeacher         20  logSNR",
        "The solver and its figures are in",
    ):
        assert text.count(words) == 1, (words, text)
    assert [line.split()[0] for line in text.splitlines() if "learned" in line] == ["GS", "GAS"]


def test_the_console_leaves_out_what_comes_too_often(capsys):
    def events():
        yield from (PairsProgress("training pairs", done, 100) for done in range(101))

    assert len(list(console(events(), every=100))) == 101
    assert capsys.readouterr().out.count("\n") == 1
    list(console(events(), every=-1))
    assert capsys.readouterr().out.count("\n") == 101


def test_closing_the_console_closes_the_drive(tmp_path, digits):
    events = console(drive(QUICK, output_dir=tmp_path, teacher=digits))
    run = next(events).run
    events.close()
    assert is_free(run)


def test_a_bar_is_as_long_as_what_is_done():
    assert [progress_bar(done, 4, 4) for done in range(5)] == [
        "[....] 0/4",
        "[#...] 1/4",
        "[##..] 2/4",
        "[###.] 3/4",
        "[####] 4/4",
    ]
    assert progress_bar(0, 0, 2) == "[..] 0/0"


def test_what_shows_nothing_has_no_words(whole):
    made, saved = of(whole[0], PairsMade)[0], of(whole[0], Saved)[0]
    assert [in_words(event, 0.0) for event in (made, saved, Bar({}))] == ["", "", ""]


# --- in a notebook


def journal(root, teacher):
    return Journal(lambda pause: drive(QUICK, pause, output_dir=root, teacher=teacher))


def test_a_journal_gives_cells_what_they_ask_for_again_and_again(whole, tmp_path, digits):
    cells = journal(tmp_path, digits)
    opened = cells.until(Opened)
    assert cells.until(Opened) is opened and len(cells.until(PairsMade).held_out) == QUICK.n_val
    steps = [(record.phase, record.step) for record in cells.records()]
    assert steps == [(row["phase"], row["step"]) for row in RunLog(whole[1]).records]
    saved = cells.until(Saved)
    assert saved.tables == of(whole[0], Saved)[0].tables
    assert cells.until(Finished, Paused) is cells.until(Finished)
    assert len(cells.all(Judged)) == 7 and list(cells.records()) == []
    assert cells.until(Saved) is saved
    with pytest.raises(ValueError, match="the run ended without Paused"):
        cells.until(Paused)


def test_a_journal_pauses_and_goes_on_behind_the_pause(whole, tmp_path, digits):
    cells = journal(tmp_path, digits)
    records = cells.records()
    next(records)
    cells.pause()
    assert list(cells.until(Saved).tables) == ["gs"]
    cells.until(Finished, Paused)
    assert len(cells.all(Judged)) == 6
    rest = list(records)
    assert len(rest) == len(of(whole[0], Step)) - 1
    assert cells.until(Saved).tables == of(whole[0], Saved)[0].tables
    cells.until(Finished, Paused)
    assert len(cells.all(Judged)) == 7 and not cells.all(Paused)


def test_an_interrupted_journal_goes_on_from_the_checkpoint(whole, tmp_path, digits):
    asked = []

    def start(pause):
        for event in drive(QUICK, pause, output_dir=tmp_path, teacher=digits):
            yield event
            if isinstance(event, Step) and not asked:
                asked.append(event)
                raise KeyboardInterrupt

    cells = Journal(start)
    with pytest.raises(KeyboardInterrupt):
        list(cells.records())
    with pytest.raises(RuntimeError, match="run the cell of its training again"):
        cells.until(Saved)
    assert is_free(Run.at(tmp_path / "digits-nfe3-1"))
    assert len(list(cells.records())) == len(of(whole[0], Step)) - 1
    assert cells.until(Saved).tables == of(whole[0], Saved)[0].tables


def test_a_closed_journal_gives_its_folder_back_and_begins_anew(tmp_path, digits):
    cells = journal(tmp_path, digits)
    run = cells.until(Bar) and cells.until(Opened).run
    cells.close()
    assert is_free(run) and cells.all(Opened) == []
    assert cells.until(Opened).run == run
    cells.close()


# --- make train


def test_make_train_shows_the_run_and_keeps_the_notebook(tmp_path):
    if shutil.which("make") is None:
        pytest.skip("there is no make")
    command = ["make", "train", "-o", ".venv/.installed", f"BIN={Path(sys.executable).parent}"]
    command += ["TEACHER=digits", "NFE=2", f"OUT={tmp_path}", "ARGS=-p preset quick -p device cpu"]
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=env, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
    for words in (
        f"results: {tmp_path / 'digits-nfe2-1'}",
        "training pairs   [####################]",
        "fit              [######..............] 1/3 loss",
        "solver         NFE  spacing",
        "GAS: L1",
        f"The executed notebook, with the figures, is {tmp_path / 'out.ipynb'}.",
    ):
        assert words in done.stdout, done.stdout
    assert "Executing Cell" not in done.stdout + done.stderr
    assert (tmp_path / "out.ipynb").is_file() and Run.at(tmp_path / "digits-nfe2-1").finished
