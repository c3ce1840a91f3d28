"""Sweeps: what is swept, what a folder remembers, kills and
failures, tables, and what the app reads of them."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch

from gas_nb.app import Workbench
from gas_nb.data import EVAL_SEED
from gas_nb.sweep import (
    Cell,
    Sweep,
    SweepConfig,
    finished_run,
    load_sweep,
    main,
    provenance,
    settle_reference,
    summary,
    sweep_cells,
    trained,
    training_config,
    training_free_rows,
)
from gas_nb.sweeps import runner
from gas_nb.tableau import Tableau
from gas_nb.teacher import GaussianMixture

ROOT = Path(__file__).resolve().parent.parent
SMALL = SweepConfig(
    "digits", nfes="4 5", solvers="ddim unipc", n_samples=60, repeats=2, n_search=20, device="cpu"
)


def quiet(line):
    pass


def untimed(frame):
    return frame.drop(columns="seconds_per_image")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A small sweep, run to its end in this process."""
    sweep = Sweep(SMALL, tmp_path_factory.mktemp("runs"))
    assert sweep.run(1, quiet) == []
    return sweep


def test_cells_are_every_solver_at_every_nfe_one_repeat_after_the_other():
    cells = sweep_cells(SweepConfig("digits", nfes="6 4", repeats=2))
    assert len(cells) == len(set(cells)) == 2 * 2 * (2 * 5 + 2)
    assert [c.repeat for c in cells] == sorted(c.repeat for c in cells)
    assert {c.choice for c in cells if c.solver in training_free_rows()} == {"best", "default"}
    assert {c.choice for c in cells if c.solver not in training_free_rows()} == {"learned"}


def test_repeats_use_seeds_that_no_training_and_no_other_repeat_has(finished):
    blocks = [set(finished.seeds(r)) for r in range(2)]
    assert not blocks[0] & blocks[1] and min(blocks[0] | blocks[1]) == EVAL_SEED
    frame = finished.results()
    assert sorted(frame.first_seed.unique()) == [EVAL_SEED, EVAL_SEED + 60]
    assert (frame.groupby(["solver", "choice", "nfe"]).l1.nunique() == 2)[["ddim", "unipc"]].all()


def test_results_are_complete_and_say_where_they_come_from(finished):
    frame = finished.write_results()
    assert len(frame) == len(sweep_cells(SMALL)) + 2 and (frame.n == 60).all()
    assert (frame[frame.solver == "teacher"].l1 == 0).all()
    assert (frame.network_calls == frame.nfe).all() and (frame.guidance_passes == 0).all()
    pd.testing.assert_frame_equal(
        pd.read_csv(finished.folder / "results.csv"), frame, check_dtype=False
    )
    stored = json.loads((finished.folder / "results.json").read_text())
    assert len(stored["rows"]) == len(frame) and stored["config"]["n_samples"] == 60
    assert (
        set(stored["provenance"])
        == set(provenance())
        == {"date", "commit", "versions", "device", "device_name", "threads"}
    )
    assert (
        stored["provenance"]["versions"]["torch"]
        == pd.Series([torch.__version__]).str.split("+").str[0][0]
        or "+" in torch.__version__
    )
    best = frame[(frame.solver == "unipc") & (frame.choice == "best")].groupby("nfe").l1.mean()
    default = (
        frame[(frame.solver == "unipc") & (frame.choice == "default")].groupby("nfe").l1.mean()
    )
    assert (best <= default + 1e-3).all()


def test_the_spread_is_that_of_the_repeats(finished):
    frame = finished.results()
    rows = summary(frame).set_index(["solver", "choice", "nfe"])
    mine = frame[(frame.solver == "ddim") & (frame.choice == "best") & (frame.nfe == 4)].l1
    row = rows.loc[("ddim", "best", 4)]
    assert (
        row.l1 == pytest.approx(mine.mean())
        and row.l1_std == pytest.approx(mine.std(ddof=1))
        and row.repeats == 2
    )


def test_the_table_has_a_row_per_solver_and_a_column_per_nfe(finished):
    finished.write_results()
    lines = (finished.folder / "table.md").read_text().splitlines()
    assert "60 samples" in lines[0] and provenance()["date"][:4] in lines[0]
    rows = [line for line in lines if line.startswith("| UniPC, best")]
    assert len(rows) == 3 and all(row.count("±") == 2 for row in rows)
    assert {"PSNR (dB)", "What a sample costs"} <= set(lines)
    assert "| network calls per sample | 4.0 | 5.0 | 20 |" in lines
    assert any(line.startswith("The teacher itself (20 evaluations)") for line in lines)


def test_the_app_reads_a_sweep(finished):
    finished.write_results()
    rows = Workbench(finished.root, "cpu").sweep_rows("digits")
    assert {(r["solver"], r["nfe"]) for r in rows} >= {
        ("ddim", 4),
        ("ddim", 5),
        ("unipc", 4),
        ("unipc", 5),
        ("teacher", 20),
    }
    assert all(
        {"psnr", "network_calls", "seconds_per_image"} <= set(r) for r in rows if r["nfe"] < 9
    )
    mean = summary(finished.results()).set_index(["solver", "choice", "nfe"]).l1
    assert mean[("unipc", "best", 5)] == pytest.approx(
        min(r["l1"] for r in rows if (r["solver"], r["nfe"]) == ("unipc", 5))
    )


def test_a_changed_setting_is_another_cell_and_an_unchanged_one_is_not(finished):
    cell = Cell("ddim", "default", 4, 0)
    name = finished.run_cell(cell)["cell"]
    assert Sweep(SMALL, finished.root).run_cell(cell)["cell"] == name
    for change in (
        dict(n_samples=61),
        dict(condition="none"),
        dict(metrics="l1"),
        dict(reference="dataset"),
    ):
        other = Sweep(replace(SMALL, **change), finished.root)
        other.frozen = True
        with pytest.raises(LookupError, match="not measured"):
            other.run_cell(cell)
    assert Sweep(SMALL, finished.root).run_cell(Cell("ddim", "default", 4, 1))["cell"] != name


def test_a_second_run_measures_nothing(finished, monkeypatch):
    again = Sweep(SMALL, finished.root)
    assert (
        again.teacher.config == finished.teacher.config
    )  # who it is takes a few questions, measuring none
    monkeypatch.setattr(GaussianMixture, "forward", None)
    assert again.run(1, quiet) == []
    pd.testing.assert_frame_equal(again.results(), finished.results())


def test_cells_are_found_again_whatever_the_last_bits_of_the_reference(finished, monkeypatch):
    """How many threads add up the statistics decides their
    rounding, and the reference's digest is part of a cell's name."""
    mean, covariance = finished.teacher.reference()
    again = Sweep(SMALL, finished.root)
    again.teacher = replace(
        again.teacher, reference=lambda: (mean * (1 + 1e-12), covariance * (1 + 1e-11))
    )
    pd.testing.assert_frame_equal(again.results(), finished.results())
    assert again.judge.reference.digest == finished.judge.reference.digest
    monkeypatch.setattr(runner, "settle_reference", lambda path, reference, **options: reference)
    fresh = Sweep(SMALL, finished.root)
    fresh.teacher = again.teacher
    assert fresh.results().empty  # without it no cell would be found


def test_another_reference_takes_the_place_of_the_kept_one(tmp_path):
    sweep = Sweep(SMALL, tmp_path)
    first = sweep.judge.reference
    kept = sweep.folder / "reference.safetensors"
    other = replace(first, mean=first.mean + 1e-3)  # what some changed images would do
    assert settle_reference(kept, other, write=False) is other  # only looks
    assert settle_reference(kept, first, write=False).digest == first.digest
    for one in (other, first, other):
        assert settle_reference(kept, one) is one
    assert settle_reference(kept, replace(other, features=None)).features is None
    kept.write_bytes(b"cut short")
    assert settle_reference(kept, first) is first
    rounded = replace(first, mean=first.mean + 1e-9)
    assert settle_reference(kept, rounded).digest == first.digest


def test_a_killed_sweep_goes_on_where_it_was(finished, tmp_path):
    """SIGKILL in the middle; the cells that were finished
    stay as they are, and all rows come out as without a kill."""
    runs = str(tmp_path / "runs")
    code = "from gas_nb.sweep import *\nimport tests_config\n"
    code += f"Sweep(tests_config.SMALL, {runs!r}).run(1, print)"
    (tmp_path / "tests_config.py").write_text(
        f"from gas_nb.sweep import SweepConfig\nSMALL = {SMALL!r}\n"
    )
    env = dict(os.environ, PYTHONPATH=f"{ROOT}{os.pathsep}{tmp_path}")
    process = subprocess.Popen(
        [sys.executable, "-c", code], env=env, cwd=tmp_path, stdout=subprocess.DEVNULL
    )
    cells = tmp_path / "runs" / "sweep-digits" / "cells"
    deadline = time.monotonic() + 300
    while (
        len(list(cells.glob("*.json"))) < 4
        and time.monotonic() < deadline
        and process.poll() is None
    ):
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = {p: p.stat().st_mtime_ns for p in cells.glob("*.json")}
    assert len(before) >= 4
    resumed = Sweep(SMALL, tmp_path / "runs")
    assert resumed.run(1, quiet) == []
    assert {p: p.stat().st_mtime_ns for p in before} == before
    pd.testing.assert_frame_equal(untimed(resumed.results()), untimed(finished.results()))


def test_two_processes_give_the_rows_of_one_and_report_what_fails(finished, tmp_path):
    config = replace(SMALL, solvers="ddim unipc gs")
    sweep, lines = Sweep(config, tmp_path), []
    failed = sweep.run(2, lines.append)
    assert len(failed) == 4 and all(
        line.startswith("gs (learned), NFE") and "make train" in line for line in failed
    )
    pd.testing.assert_frame_equal(untimed(sweep.results()), untimed(finished.results()))
    assert sum("to go" in line for line in lines) == 2
    assert sorted(p.name for p in (sweep.folder / "logs").iterdir()) == ["nfe-4.log", "nfe-5.log"]
    assert load_sweep(sweep.folder).config == config
    assert (
        main(["--job", str(sweep.folder), "--nfe", "4"]) == 1
    )  # the missing solver again, nothing else
    with pytest.raises(ValueError, match="start it again"):
        load_sweep(tmp_path)


def test_training_on_the_way_is_done_once(tmp_path):
    config = replace(
        SMALL, nfes="4", solvers="gs gas ddim", repeats=1, train=True, preset="quick", n_samples=40
    )
    sweep = Sweep(config, tmp_path)
    assert sweep.run(1, quiet) == []
    run = finished_run(tmp_path, training_config(config, 4)).folder
    assert run is not None and (run / "gs.json").is_file() and (run / "gas.json").is_file()
    assert trained(sweep, "gas", 4) == Tableau.load(run / "gas.json")
    stamp = {p: p.stat().st_mtime_ns for p in run.iterdir()}
    assert (
        Sweep(config, tmp_path).run(1, quiet) == []
        and {p: p.stat().st_mtime_ns for p in run.iterdir()} == stamp
    )
    assert len(list(tmp_path.glob("digits-nfe4-*"))) == 1
    assert set(sweep.results().solver) == {"teacher", "gs", "gas", "ddim"}
    elsewhere = Sweep(replace(config, train=False), tmp_path / "other", tmp_path)
    found = trained(elsewhere, "gs", 4)
    assert found == Tableau.load(run / "gs.json")

    import make_solvers

    sweep.write_results()
    make_solvers.from_sweep(tmp_path, "digits", [4], tmp_path / "shipped")
    kept, (row,) = (
        Tableau.load(tmp_path / "shipped" / "digits-gs-4.json"),
        [r for r in sweep.results().to_dict("records") if r["solver"] == "gs"],
    )
    assert (
        kept == found
        and kept.meta["weights"] == sweep.teacher.weights_hash
        and kept.meta["figures"]["l1"] == pytest.approx(row["l1"])
    )
    assert (
        kept.meta["figures"]["best_training_free"]["solver"] == "ddim"
        and kept.meta["figures"]["n_eval"] == 40
    )
    with pytest.raises(ValueError, match=r"no GS for \[6\] evaluations"):
        make_solvers.from_sweep(tmp_path, "digits", [4, 6], tmp_path / "shipped")


def test_a_solver_of_another_network_is_not_taken(tmp_path):
    sweep = Sweep(replace(SMALL, solvers="gs"), tmp_path)
    table = sweep.tableau(Cell("ddim", "default", 4, 0))
    folder = tmp_path / "run-1"
    for meta, good in (
        (dict(teacher="fmnist"), False),
        (dict(teacher="digits", weights="other"), False),
        (dict(teacher="digits"), True),
    ):
        Tableau(table.times, table.offsets, table.A, table.C, dict(table.meta, **meta)).save(
            folder / "gs.json"
        )
        if good:
            assert trained(sweep, "gs", 4) == table
        else:
            with pytest.raises(LookupError):
                trained(sweep, "gs", 4)
    with pytest.raises(LookupError):
        trained(sweep, "gs", 5)


def test_distance_to_the_exact_solution_falls_with_the_steps(tmp_path):
    config = SweepConfig(
        "digits",
        nfes="4 10",
        solvers="unipc",
        n_samples=30,
        repeats=1,
        n_search=20,
        exact_steps=200,
        device="cpu",
    )
    sweep = Sweep(config, tmp_path)
    assert sweep.run(1, quiet) == []
    exact = sweep.results().set_index(["solver", "choice", "nfe"]).l1_exact
    assert (
        0
        < exact[("teacher", "own", 20)]
        < exact[("unipc", "best", 10)]
        < exact[("unipc", "best", 4)]
    )


def test_what_would_stop_a_sweep_later_stops_it_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    for change, error, message in (
        (dict(metrics="l1 beauty"), ValueError, "beauty"),
        (dict(features="inception"), FileNotFoundError, "Inception weights"),
        (dict(reference="no/folder"), ValueError, "no folder of images"),
    ):
        with pytest.raises(error, match=message):
            Sweep(replace(SMALL, **change), tmp_path).run(1, quiet)
    with pytest.raises(ValueError, match="processes=0"):
        Sweep(SMALL, tmp_path).run(0, quiet)
    assert not list(tmp_path.rglob("pairs-*"))


@pytest.mark.slow
def test_papermill_runs_the_notebook(tmp_path):
    out = tmp_path / "out.ipynb"
    options = dict(
        teacher="digits",
        nfes="4",
        solvers="ddim gs",
        n_samples="40",
        repeats="2",
        n_search="20",
        output_dir=str(tmp_path),
        device="cpu",
        train="True",
        preset="quick",
    )
    flags = [v for k, value in options.items() for v in ("-p", k, value)]
    subprocess.run(
        [
            sys.executable,
            "-m",
            "papermill",
            str(ROOT / "nbs" / "04_evaluate.ipynb"),
            str(out),
            *flags,
        ],
        check=True,
        capture_output=True,
    )
    tables = (tmp_path / "sweep-digits" / "table.md").read_text()
    assert tables.count("difference to GS on the same noises") == 2  # of L1 and Frechet
    assert tables.count("| **GS** |") == 3 + 2  # L1, Frechet and PSNR, and the differences
    kinds = [
        set(o.get("data", {}))
        for c in json.loads(out.read_text())["cells"]
        for o in c.get("outputs", [])
    ]
    assert sum("application/vnd.plotly.v1+json" in kind for kind in kinds) >= 6
