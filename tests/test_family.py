"""Solvers for every guidance: fitted at some values, served between, found by the scheduler."""

import gas_nb.runtime.device  # noqa: F401  (before diffusers)

import copy
import json
import math
import pickle
import subprocess
import sys
import warnings
from dataclasses import replace

import pipelines
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from gas_nb.classic import classic_tableau
from gas_nb.data import make_pairs
from gas_nb.exchange import portable
from gas_nb.fitting.chart import to_chart
from gas_nb.fitting.family import Family, family_of, load_tableau, read_solver
from gas_nb.front import distil_solver, join_solvers, load_solver
from gas_nb.interop import GASScheduler
from gas_nb.metrics.distances import l1
from gas_nb.schedule import NoiseSchedule
from gas_nb.tableau import Tableau, sample
from gas_nb.teacher import load_teacher

VP, FLOW = NoiseSchedule.vp_linear(), NoiseSchedule.flow(1000.0)
SD = NoiseSchedule.ddpm(0.00085, 0.012, 1000, scaled=True)
RECIPES = [
    ("unipc", "time_uniform"),
    ("ipndm", "time_quadratic"),
    ("dpm_solver_pp", "time_uniform"),
]


def solver(schedule, recipe, nfe=4, **said):
    """A training-free solver that says what it is for."""
    kind, grid = recipe
    made = classic_tableau(kind, schedule, nfe, spacing=grid, order=2)
    return replace(made, meta=dict(made.meta, schedule=schedule.config, **said))


def family(schedule=VP, values=(1.0, 3.0, 8.0), nfe=4, **said):
    solvers = [solver(schedule, recipe, nfe, **said) for recipe in RECIPES]
    return family_of("guidance", dict(zip(values, solvers)))


def of(schedule, table, value=None):
    """The numbers of a solver, as a family hands them out."""
    return to_chart(table if value is None else table.at(value), schedule).vector()


@pytest.fixture(scope="module")
def digits():
    return load_teacher("digits", "cpu")


# --- the family


@pytest.mark.parametrize("schedule", [VP, FLOW, SD], ids=["vp", "flow", "ddpm"])
def test_the_fitted_solvers_are_kept_and_those_between_are_between(schedule):
    made = family(schedule)
    for value, member in zip(made.values, made.members):
        torch.testing.assert_close(made.at(value).times, member.times)
        torch.testing.assert_close(of(schedule, made, value), of(schedule, member))
    last = made.at(1.0).times
    for part in torch.linspace(0, 1, 41):
        value = math.exp(part * math.log(8.0))
        table = made.at(min(value, 8.0))
        assert (table.times.diff() < 0).all() and table.times[0] == 1
        assert table.times[-1] == pytest.approx(last[-1].item())
        assert table.meta["guidance"] == min(value, 8.0)


@pytest.mark.parametrize("schedule", [VP, FLOW, SD], ids=["vp", "flow", "ddpm"])
def test_nothing_jumps(schedule):
    made = family(schedule)
    for value in (1.0, 3.0, 8.0, 2.0):
        near = [v for v in (value * (1 - 1e-7), value * (1 + 1e-7)) if 1 <= v <= 8]
        for other in near:
            torch.testing.assert_close(
                of(schedule, made, other), of(schedule, made, value), atol=1e-4, rtol=1e-4
            )


def test_halfway_between_two_solvers_is_a_solver(digits):
    ends = [solver(digits.schedule, recipe) for recipe in RECIPES[:2]]
    made = family_of("guidance", {1.0: ends[0], math.e: ends[1]})
    pairs = make_pairs(digits, range(64))

    def off(table):
        return l1(digits.sample(pairs.x_T, tableau=table), pairs.x_0).mean().item()

    worst = max(map(off, ends))
    for part in (0.25, 0.5, 0.75):
        assert off(made.at(math.exp(part))) < 1.1 * worst


def test_a_family_stands_for_its_middle(digits):
    made = family(digits.schedule)
    assert made.default == 3.0 and made.nfe == 4 and isinstance(made, Tableau)
    x_T = make_pairs(digits, range(4)).x_T
    torch.testing.assert_close(
        sample(digits.denoiser, x_T, made), sample(digits.denoiser, x_T, made.at(3.0))
    )
    other = family_of("guidance", dict(zip(made.values, made.members)), default=2.0)
    torch.testing.assert_close(of(digits.schedule, other), of(digits.schedule, made, 2.0))
    assert "guidance" not in other.meta and other != made


def test_what_is_no_family_is_refused():
    a, b = solver(VP, RECIPES[0]), solver(VP, RECIPES[1])
    for wrong, words in [
        (("temperature", {1: a, 2: b}), "choose one of guidance, shift"),
        (("guidance", {1: a}), "two or more"),
        (("guidance", {}), "two or more"),
        (("guidance", {0: a, 1: b}), "positive"),
        (("guidance", {1: a, math.inf: b}), "positive"),
        (("guidance", {1: a, 2: solver(VP, RECIPES[1], 5)}), "one number"),
        (("guidance", {1: a, 2: "b"}), "no tableau"),
        (("guidance", {"x": a, 2: b}), "value: Tableau"),
        (("guidance", [a, b]), "value: Tableau"),
        (("guidance", {1: a, 2: b}, 3.0), "1 to 2"),
    ]:
        with pytest.raises(ValueError, match=words):
            family_of(*wrong)
    made = family()
    for value in (0.5, 8.1, math.nan, "3", True, None):
        with pytest.raises(ValueError, match="1 to 8"):
            made.at(value)
    silent = family_of("guidance", {1: replace(a, meta={}), 2: replace(b, meta={})})
    assert silent.at(2) == b
    with pytest.raises(ValueError, match="does not say its schedule"):
        silent.at(1.5)


def test_a_file_holds_all_of_it(tmp_path):
    made = family(prediction="epsilon")
    made.save(tmp_path / "solver.json")
    again = load_tableau(tmp_path / "solver.json")
    assert isinstance(again, Family) and again == made and again.at(2.0) == made.at(2.0)
    alone = Tableau.load(tmp_path / "solver.json")  # who knows of none reads the middle
    assert type(alone) is Tableau and alone == made.at(3.0) != made
    scheduler = GASScheduler.from_files(tmp_path / "solver.json")
    assert scheduler.tableaus[4] == made


def test_broken_files_are_refused(tmp_path):
    content = json.loads(family().to_json())
    entry = content["family"]
    for change in [
        dict(values=[1.0, 3.0]),
        dict(values="137"),
        dict(values=[1.0, None, 8.0]),
        dict(values=[1.0, 8.0, 3.0]),
        dict(solvers=entry["solvers"][:2]),
        dict(solvers=[*entry["solvers"][:2], {}]),
        dict(solvers=[*entry["solvers"][:2], 3]),
        dict(input="time"),
        dict(default=9),
        dict(default=None),
    ]:
        with pytest.raises(ValueError):
            read_solver(json.dumps(content | dict(family=entry | change)))
    for wrong in ([], 3, "x"):
        with pytest.raises(ValueError, match="must be lists"):
            read_solver(json.dumps(content | dict(family=wrong)))
    (tmp_path / "a.json").write_text(json.dumps(content | dict(family=3)))
    with pytest.raises(ValueError, match="a.json"):
        load_tableau(tmp_path / "a.json")


# --- the scheduler


def net(x, t):
    return torch.tanh(x * 0.7 + t.reshape(-1, *[1] * (x.ndim - 1)) / 1000)


def loop(scheduler, x, nfe=4, **said):
    scheduler.set_timesteps(nfe, **said)
    for t in scheduler.timesteps:
        x = scheduler.step(net(x, t), t, x).prev_sample
    return x


X_T = torch.randn(2, 3, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("value", [1.0, 1.3, 3.0, 5.0, 8.0])
def test_a_loop_that_says_its_guidance(value):
    made = family()
    scheduler = GASScheduler.from_tableau(made, VP)
    alone = GASScheduler.from_tableau(made.at(value), VP)
    torch.testing.assert_close(loop(scheduler, X_T, guidance=value), loop(alone, X_T))


def test_guidances_that_were_not_fitted():
    scheduler = GASScheduler.from_tableau(family(), VP)
    for value in (0.9, 8.5):
        with pytest.raises(ValueError, match="solvers for 1 to 8; ask for one of them"):
            scheduler.set_timesteps(4, guidance=value)
    nearest = GASScheduler.from_tableau(family(), VP, nearest=True)
    with pytest.warns(UserWarning, match="takes the nearest"):
        found = loop(nearest, X_T, guidance=20.0)
    assert torch.equal(found, loop(nearest, X_T, guidance=8.0))
    with pytest.warns(UserWarning, match="nothing says which"):
        found = loop(scheduler, X_T)
    assert torch.equal(found, loop(scheduler, X_T, guidance=3.0))


def test_plain_solvers_take_no_notice():
    scheduler = GASScheduler.from_tableau(solver(VP, RECIPES[0]), VP)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(loop(scheduler, X_T, guidance=99.0), loop(scheduler, X_T))


def test_copies_and_configs_keep_it():
    scheduler = GASScheduler.from_tableau(family(), VP)
    wanted = loop(scheduler, X_T, guidance=2.0)
    for other in (
        copy.deepcopy(scheduler),
        pickle.loads(pickle.dumps(scheduler)),
        GASScheduler.from_config(scheduler.config),
        GASScheduler.for_pipeline(pipelines.ddpm().scheduler, scheduler, VP, "epsilon"),
    ):
        torch.testing.assert_close(loop(other, X_T, guidance=2.0), wanted)


@pytest.mark.parametrize("schedule", [VP, FLOW], ids=["vp", "flow"])
def test_the_file_that_runs_alone(tmp_path, schedule):
    said = dict(prediction="flow_prediction" if schedule is FLOW else "epsilon")
    scheduler = GASScheduler.from_tableau(family(schedule, **said))
    scheduler.save_pretrained(tmp_path)
    again = GASScheduler.from_pretrained(tmp_path)
    assert again.tableaus == scheduler.tableaus
    wanted = [loop(again, X_T, guidance=g).tolist() for g in (1.0, 1.4, 3.0, 6.0, 8.0)]
    program = f"""
import torch
from gas_scheduler import GASScheduler

scheduler = GASScheduler.from_pretrained({str(tmp_path)!r})
X_T = torch.randn(2, 3, generator=torch.Generator().manual_seed(0))
for g, wanted in zip((1.0, 1.4, 3.0, 6.0, 8.0), {wanted!r}):
    scheduler.set_timesteps(4, guidance=g)
    x = X_T
    for t in scheduler.timesteps:
        x = scheduler.step(torch.tanh(x * 0.7 + t / 1000), t, x).prev_sample
    torch.testing.assert_close(x, torch.tensor(wanted), atol=1e-5, rtol=1e-5)
import sys
assert "gas_nb" not in sys.modules
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_whole_times_alone_are_those_of_a_rung(tmp_path):
    made = family(SD, prediction="epsilon")
    GASScheduler.from_tableau(made, integer_timesteps=True).save_pretrained(tmp_path)
    ours = GASScheduler.from_pretrained(tmp_path)
    config = json.loads((tmp_path / "scheduler_config.json").read_text())
    alone = portable.GASScheduler.from_config(config)
    for value in (1.0, 3.0, 8.0):
        torch.testing.assert_close(
            loop(alone, X_T, guidance=value), loop(ours, X_T, guidance=value)
        )
    for value in (1.1, 2.0, 5.0):
        alone.set_timesteps(4, guidance=value)
        ours.set_timesteps(4, guidance=value)
        assert alone.timesteps.dtype == torch.int64
        near = (alone.timesteps - ours.timesteps).abs()
        assert (near <= 0.1 * ours.timesteps + 2).all()


def ask(pipe, **said):
    """The image of a pipeline for one noise."""
    generator = torch.Generator().manual_seed(0)
    words = dict(num_inference_steps=4, output_type="latent", generator=generator)
    return pipe("a cat", **words, **said).images


def test_a_pipeline_is_served_by_its_guidance():
    pipe = pipelines.stable_diffusion()
    made = family(SD, prediction="epsilon")
    theirs = GASScheduler.for_pipeline(pipe, made)
    for value in (1.0, 2.5, 8.0):
        pipe.scheduler = GASScheduler.for_pipeline(pipe, made.at(value))
        wanted = ask(pipe, guidance_scale=value)
        pipe.scheduler = theirs
        torch.testing.assert_close(ask(pipe, guidance_scale=value), wanted)
    with pytest.raises(ValueError, match="guidance=12"):
        ask(pipe, guidance_scale=12.0)


def test_a_flow_pipeline_is_served_by_its_shift():
    pipe = pipelines.flux()
    pipe.scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    solvers = [solver(FLOW, recipe, prediction="flow_prediction") for recipe in RECIPES]
    made = family_of("shift", dict(zip((1.0, 2.0, 4.0), solvers)))
    theirs = GASScheduler.for_pipeline(pipe, made)
    asked = []
    usual = theirs.set_timesteps
    theirs.set_timesteps = lambda *a, mu=None, **k: (asked.append(mu), usual(*a, mu=mu, **k))
    pipe.scheduler = theirs
    found = ask(pipe)
    (mu,) = asked
    pipe.scheduler = GASScheduler.for_pipeline(pipe, made.at(math.exp(mu)))
    torch.testing.assert_close(found, ask(pipe))


# --- the front door


def test_one_call_for_every_guidance(digits, tmp_path):
    made = distil_solver(digits, nfe=[3, 4], guidance=[4, 1], budget=2400, progress=None)
    assert made.card["evaluations"] <= made.card["budget"] == 2400
    assert [row["guidance"] for row in made.figures] == [1.0, 1.0, 4.0, 4.0]
    assert all(row["l1"] <= row["training_free_l1"] for row in made.figures)
    assert "NFE 3, guidance 4" in repr(made)
    made.save(tmp_path)
    again = load_solver(tmp_path)
    assert again.tableaus == made.tableaus and again.figures == made.figures
    pairs = make_pairs(digits.with_guidance(2.0), range(1000, 1064), "random")

    def off(table):
        asked = digits.with_guidance(2.0)
        found = asked.sample(pairs.x_T, tableau=table, condition=pairs.condition)
        return l1(found, pairs.x_0).mean().item()

    free = classic_tableau("ipndm", digits.schedule, 4, spacing="time_quadratic", order=2)
    assert off(again.tableaus[4].at(2.0)) < off(free)


def test_a_pipeline_for_every_guidance():
    pipe = pipelines.stable_diffusion()
    made = distil_solver(
        pipe,
        nfe=4,
        prompts=["a cat", "a dog"],
        guidance=[1.5, 6.0],
        budget=1600,
        progress=None,
        size=16,
        batch_size=8,
    )
    pipe.scheduler = made.scheduler_for(pipe)
    for value in (1.5, 3.0, 6.0):
        assert ask(pipe, guidance_scale=value, height=16, width=16).isfinite().all()


@pytest.mark.parametrize("wrong", [3.0, [3.0], [1, 1], [0, 2], ["1", 2], [1, math.nan]])
def test_guidances_that_cannot_be_asked(digits, wrong):
    with pytest.raises(ValueError, match="guidance"):
        distil_solver(digits, nfe=4, guidance=wrong, progress=None)


def test_what_cannot_be_joined(digits):
    a = distil_solver(digits, nfe=[3], budget=150, progress=None)
    b = distil_solver(digits, nfe=[4], budget=200, progress=None)
    with pytest.raises(ValueError, match="differ in more than shift"):
        join_solvers("shift", {1.0: a, 3.0: b})
    with pytest.raises(ValueError, match="two values or more"):
        join_solvers("shift", {1.0: a})
    joined = join_solvers("shift", {1.0: a, 3.0: a})
    assert joined.tableaus[3].input == "shift" and joined.card["evaluations"] <= 300
