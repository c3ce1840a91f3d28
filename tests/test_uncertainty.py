"""Standard errors of figures and of differences: against brute force, against known distances,
in the judge, in a sweep's tables, and in benchmarks/gas.py."""

import json
import math
import runpy
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from gas_nb.app.tradeoff import opening_rows, shipped_results
from gas_nb.classic import classic_tableau
from gas_nb.data import eval_seeds, make_pairs
from gas_nb.evaluation import Estimate, Judge, combine, difference_of_rows, estimate_of
from gas_nb.evaluation import frechet_distance, jackknife, kernel_distance, paired_difference
from gas_nb.evaluation import samples_needed
from gas_nb.metrics.distributions import frechet_to
from gas_nb.metrics.uncertainty import BlockStatistics, kernel_left_out
from gas_nb.sweep import Sweep, SweepConfig, markdown_tables, summary
from gas_nb.teacher import load_teacher

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def digits():
    return load_teacher("digits", "cpu")


@pytest.fixture(scope="module")
def pairs(digits):
    return make_pairs(digits, eval_seeds(130), "random")


def rows_of(n, width, seed):
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(width, width, generator=generator, dtype=torch.float64)
    return torch.randn(n, width, generator=generator, dtype=torch.float64) @ mix


@pytest.mark.parametrize("n, blocks", [(200, 10), (203, 10), (37, 50), (61, 7)])
def test_block_moments_are_those_of_the_rows_that_are_left(n, blocks):
    rows = rows_of(n, 6, 0)
    statistics = BlockStatistics(blocks)
    for part in rows.split(13):
        statistics.update(part)
    block = torch.arange(n) % min(blocks, n)
    found = list(statistics.without_each())
    assert len(found) == min(blocks, n)
    for b, (mean, covariance) in enumerate(found):
        left = rows[block != b]
        assert torch.allclose(mean, left.mean(0), atol=1e-10)
        assert torch.allclose(covariance, left.T.cov(), atol=1e-10)
    assert torch.allclose(statistics.whole().covariance, rows.T.cov(), atol=1e-10)


def test_frechet_and_kernel_distance_without_blocks_against_brute_force():
    rows, real = rows_of(95, 4, 1), rows_of(70, 4, 2)
    moments = real.mean(0), real.T.cov()
    slow = jackknife(lambda x: frechet_distance(x.mean(0), x.T.cov(), *moments), rows, blocks=8)
    fast = BlockStatistics(8).update(rows).left_out(frechet_to(*moments))
    assert fast == pytest.approx(slow.left_out, rel=1e-8)
    slow = jackknife(lambda x: kernel_distance(x, real), rows, blocks=8)
    assert kernel_left_out(rows, real, 8) == pytest.approx(slow.left_out, rel=1e-8)


def test_the_error_covers_a_known_difference_in_two_of_three_trials():
    """Features z and 1.1 z of the same noises; their Frechet distances to N(0.5, 1.5) are known."""
    width, n, trials = 4, 300, 300
    sd = 1.5**0.5
    truth = width * ((1 - sd) ** 2 - (1.1 - sd) ** 2)
    distance = frechet_to(torch.full((width,), 0.5), 1.5 * torch.eye(width))
    generator = torch.Generator().manual_seed(7)
    inside = narrower = 0
    for _ in range(trials):
        z = torch.randn(n, width, generator=generator, dtype=torch.float64)
        found = []
        for x in (z, 1.1 * z):
            statistics = BlockStatistics(20).update(x)
            whole = statistics.whole()
            value = distance(whole.mean, whole.covariance)
            found.append(Estimate(value, statistics.left_out(distance), n))
        difference = paired_difference(*found)
        inside += abs(difference.value - truth) < difference.error
        narrower += difference.error < math.hypot(*(one.error for one in found))
    assert 0.60 <= inside / trials <= 0.76  # 0.68, give or take three times its own error
    assert narrower == trials


def test_the_error_is_the_spread_over_disjoint_sets():
    generator = torch.Generator().manual_seed(3)
    distance = frechet_to(torch.zeros(3), torch.eye(3))
    values, errors = [], []
    for _ in range(120):
        x = 1.3 * torch.randn(250, 3, generator=generator, dtype=torch.float64)
        statistics = BlockStatistics(25).update(x)
        whole = statistics.whole()
        values.append(distance(whole.mean, whole.covariance))
        errors.append(Estimate(values[-1], statistics.left_out(distance), 250).error)
    spread = torch.tensor(values).std().item()
    assert sum(errors) / len(errors) == pytest.approx(spread, rel=0.2)


def test_only_figures_of_the_same_noises_are_paired():
    a = jackknife(torch.mean, torch.arange(40.0), blocks=10)
    for other in (
        jackknife(torch.mean, torch.arange(41.0), blocks=10),
        jackknife(torch.mean, torch.arange(40.0), blocks=8),
    ):
        with pytest.raises(ValueError, match="same noises"):
            paired_difference(a, other)
    same = paired_difference(a, a)
    assert same.value == same.error == 0 and not same.tells()
    assert combine(lambda x, y: x / y, a, a).error == 0
    with pytest.raises(ValueError, match="at least 2"):
        Estimate(1.0, (1.0,), 5)


def test_a_pilot_says_how_many_samples_are_needed():
    generator = torch.Generator().manual_seed(5)
    gaps = 0.05 + torch.randn(40_000, generator=generator, dtype=torch.float64)
    pilot = jackknife(torch.mean, gaps[:1000])
    needed = samples_needed(pilot.n, pilot.error, 0.05)
    assert needed == pytest.approx(1600, rel=0.25)  # (2 / 0.05)^2
    error = jackknife(torch.mean, gaps[:needed]).error
    assert error == pytest.approx(0.025, rel=0.25)
    with pytest.raises(ValueError, match="difference=0"):
        samples_needed(1000, 0.1, 0)


def test_the_judge_keeps_blocks_when_asked_and_its_figures_stay_the_same(digits, pairs):
    tables = [
        classic_tableau(name, digits.schedule, 3, "logSNR", digits.t_eps)
        for name in ("ddim", "unipc")
    ]
    real = digits.denoiser.net.centres.reshape(-1, 1, 8, 8).clamp(-1, 1)
    names = "l1 psnr frechet kid precision"
    kept = Judge(digits, names, reference=real, blocks=13)(tables, pairs)
    plain = Judge(digits, names, reference=real)(tables, pairs)
    for row, other in zip(kept, plain):
        assert {name: row[name] for name in names.split()} == {
            name: other[name] for name in names.split()
        }
        assert "left_out" not in other
        assert set(row["left_out"]) == {"l1", "psnr", "frechet", "kid"}
        assert all(len(values) == 13 for values in row["left_out"].values())
        json.dumps(row, allow_nan=False)
    exact = Judge(digits, "l1 psnr", blocks=5)(digits.tableau, pairs)[0]
    assert exact["psnr"] is None and set(exact["left_out"]) == {"l1"}
    assert difference_of_rows(*kept, "l1").tells()
    assert difference_of_rows(*kept, "precision") is None
    assert estimate_of(plain[0], "l1") is None


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """A finished sweep with few evaluations; what it measured is on disk."""
    config = SweepConfig(
        "digits",
        nfes="1 2",
        solvers="ddim unipc gs",
        n_samples=120,
        repeats=2,
        n_search=20,
        metrics="l1 frechet",
        train=True,
        preset="quick",
        device="cpu",
    )
    made = Sweep(config, tmp_path_factory.mktemp("sweep"))
    assert made.run(report=lambda line: None) == []
    return made


def test_a_sweep_prints_differences_on_the_same_noises(sweep):
    frame = sweep.write_results()
    means = summary(frame)
    gs = means[(means.solver == "gs") & (means.nfe == 2)].iloc[0]
    assert gs.l1_rival in ("ddim", "unipc")
    rival = means[(means.solver == gs.l1_rival) & (means.nfe == 2) & (means.choice == "best")]
    assert gs.l1_difference == pytest.approx(gs.l1 - rival.iloc[0].l1, abs=1e-9)
    each = frame[(frame.solver == "gs") & (frame.nfe == 2)].frechet_difference_se
    assert gs.frechet_difference_se == pytest.approx(math.hypot(*each) / 2)
    assert "left_out" not in frame
    table = (sweep.folder / "table.md").read_text()
    assert "L1 to the teacher: difference to GS on the same noises ± its standard error" in table
    assert "| **GS** | **-0." in table and "NFE 1 |" in table


def test_cells_of_older_sweeps_load_and_have_no_errors(sweep):
    new = sweep.results()
    for path in (sweep.folder / "cells").glob("*.json"):
        cell = json.loads(path.read_text())
        del cell["row"]["left_out"]
        path.write_text(json.dumps(cell))
    old = sweep.results()
    assert old.l1.tolist() == new.l1.tolist()
    assert not [name for name in old if name.endswith(("_se", "_difference", "_rival"))]
    facts = dict(
        config=dict(teacher="digits", n_samples=120, repeats=2, n_search=20),
        provenance=dict(date="2026-01-01", device_name="a machine", commit=None),
        features="pixels",
    )
    means = json.loads(summary(old).to_json(orient="records"))
    assert "difference to" not in markdown_tables(means, facts)


@pytest.mark.parametrize("teacher", ["digits", "fmnist"])
def test_the_tradeoff_tab_opens_on_what_was_published(teacher, tmp_path):
    publish = runpy.run_path(str(ROOT / "tools" / "publish_results.py"))
    published = json.loads((ROOT / "nbs" / "results" / f"{teacher}.json").read_text())
    assert shipped_results(teacher) == publish["shipped"](published)
    rows, text = opening_rows(tmp_path, teacher)
    assert {row["solver"] for row in rows} >= {"teacher", "gs", "unipc"}
    assert "ship with the package" in text
    (tmp_path / "mine").mkdir()
    own = dict(teacher=teacher, rows=[dict(solver="gs", nfe=4, l1=0.1)])
    (tmp_path / "mine" / "metrics.json").write_text(json.dumps(own))
    assert opening_rows(tmp_path, teacher) == (own["rows"], "1 results of the runs")
    assert opening_rows(tmp_path, "no/such/teacher")[0] == []


def test_published_figures_of_gas_are_marked_only_when_told():
    entry = runpy.run_path(str(ROOT / "tools" / "publish_results.py"))["entry"]
    row = dict(solver="gas", nfe=2, l1=0.1, l1_difference=-0.01, l1_difference_se=0.004)
    assert entry(row) == "**0.1000**"
    assert entry(row | dict(l1_difference_se=0.006)) == "0.1000"
    assert entry(row | dict(l1_difference=0.01)) == "0.1000"
    assert entry(dict(solver="gas", nfe=2, l1=0.1)) == "0.1000"


def test_the_benchmark_of_gas(digits, tmp_path, capsys):
    files = {}
    for name, solver, kind in (
        ("gs-a", "ddim", "logSNR"),
        ("gs-b", "ddim", "time_quadratic"),
        ("gas", "unipc", "time_quadratic"),
    ):
        files[name] = tmp_path / f"{name}.json"
        classic_tableau(solver, digits.schedule, 3, kind, digits.t_eps).save(files[name])
    fresh = make_pairs(digits, eval_seeds(100), "random")
    folder = tmp_path / "shards"
    folder.mkdir()
    for i in range(2):
        part = fresh[50 * i : 50 * i + 50]
        columns = dict(x_T=part.x_T, x_0=part.x_0, condition=part.condition)
        save_file(
            {name: value.clone() for name, value in columns.items()}, folder / f"{i}.safetensors"
        )
    main = runpy.run_path(str(ROOT / "benchmarks" / "gas.py"))["main"]
    arguments = ["--teacher", "digits", "--n", "100", "--pairs", str(folder), "--free", "unipc"]
    arguments += ["--search", "10", "--work", str(tmp_path), "--output", str(tmp_path / "out.json")]
    arguments += ["--solver", f"gs={files['gs-a']},{files['gs-b']}"]
    first = main([*arguments, "--free"])
    arguments += ["--solver", f"gas={tmp_path}/gas.*"]
    done = main(arguments)
    assert [row["name"] for row in first["rows"]] == ["teacher", "gs", "gs"]
    assert done["rows"][:3] == first["rows"]  # resumed
    assert {row["name"] for row in done["rows"]} == {"teacher", "gs", "gas", "unipc"}
    table = capsys.readouterr().out
    assert "| 3 | GS | 2 |" in table and "| 3 | GAS | 1 |" in table and "%" in table
    by = {row["name"]: row for row in done["rows"]}
    whole = Judge(digits, "l1 frechet", blocks=50).compare(fresh.x_0, fresh.x_0, fresh.condition)
    assert by["teacher"]["frechet"] == pytest.approx(whole["frechet"], rel=1e-9)
    with pytest.raises(SystemExit, match="measured otherwise"):
        main([*arguments, "--blocks", "20"])
    with pytest.raises(SystemExit, match="NAME=FILE"):
        main(["--solver", "gs=no-such-file.json", "--teacher", "digits"])
