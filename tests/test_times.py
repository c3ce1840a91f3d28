"""Times for a solver that another program has: its rule against that program, and their fit."""

import json
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch

from gas_nb import distil_solver, load_solver
from gas_nb.data import make_pairs
from gas_nb.distil import main
from gas_nb.drive import drive
from gas_nb.fitting.times import fit_times, usual_times, whole_times
from gas_nb.rules import RULES, rule_of
from gas_nb.schedule import NoiseSchedule, spacing
from gas_nb.tableau import Tableau, sample
from gas_nb.teacher import load_teacher
from gas_nb.training import TrainConfig

ROOT = Path(__file__).resolve().parent.parent

VP = NoiseSchedule.ddpm(0.00085, 0.012, scaled=True)
FLOW = NoiseSchedule.flow()
NET_TIMES = [999, 803, 555, 310, 120, 30]


def guess(x, sigma):
    """A made-up data prediction of (state over signal, noise over signal)."""
    return torch.tanh(x / (1 + sigma)) * (1 - 0.2 * torch.sin(3 * sigma))


def clean_of(schedule, x, t):
    """The prediction for a state at t: a flow's is asked as it is, others over their signal."""
    if schedule is FLOW:
        return guess(x, t)
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    return guess(x / alpha, sigma / alpha)


def denoiser(schedule):
    def predict(x, t, offset=0.0, condition=None):
        t = torch.as_tensor(t, dtype=torch.float64)
        clean = clean_of(schedule, x, t + offset)
        if offset:  # one answer, split at the levels of t
            s = t + offset
            hidden = (x - schedule.alpha(s) * clean) / schedule.sigma(s)
            clean = (x - schedule.sigma(t) * hidden) / schedule.alpha(t)
        return clean.to(x.dtype)

    return predict


def noise():
    return torch.randn(4, 16, generator=torch.Generator().manual_seed(1))


def times_of(net_times, end):
    return torch.tensor([(i + 1) / 1000 for i in net_times] + [end], dtype=torch.float64)


def run_diffusers(scheduler, x, predict):
    """A scheduler of diffusers on `x`; `predict(state, sigma)` is the noise that is in it."""
    for t in scheduler.timesteps:
        index = scheduler.step_index if scheduler.step_index is not None else 0
        model_input = scheduler.scale_model_input(x, t)
        sigma = scheduler.sigmas[index].double()
        x = scheduler.step(predict(model_input, sigma), t, x).prev_sample
    return x


def noise_of(x, sigma):
    """For a variance-preserving state: what a network of noise answers."""
    alpha = 1 / (1 + sigma**2).sqrt()
    clean = guess(x / alpha, sigma)
    return ((x / alpha - clean) / sigma).float()


def velocity_of(x, sigma):
    """For a flow's state: what a network of velocities answers."""
    clean = guess(x, sigma)
    return ((x - clean) / sigma).float()


def scheduler_for(name, **settings):
    import diffusers

    betas = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    return getattr(diffusers, name)(**betas, **settings)


def settings_of(rule, program="diffusers"):
    return next(p for p in RULES[rule].programs if p.program == program)


@pytest.mark.parametrize("end", ["zero", "sigma_min"])
@pytest.mark.parametrize("rule", ["dpmpp_2m", "unipc_2", "unipc_3"])
def test_multistep_rules_are_those_of_diffusers(rule, end):
    told = settings_of(rule)
    scheduler = scheduler_for(told.name, **told.settings, final_sigmas_type=end)
    last = 0.0 if end == "zero" else 1e-3
    times = times_of(NET_TIMES, last)
    scheduler.set_timesteps(len(NET_TIMES))
    ratios = (VP.sigma(times) / VP.alpha(times)).float()
    scheduler.sigmas, scheduler.timesteps = ratios, torch.tensor(NET_TIMES)
    ours = sample(denoiser(VP), noise(), RULES[rule].tableau(VP, times))
    theirs = run_diffusers(scheduler, noise(), noise_of)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize("rule, name", [("euler", "Euler"), ("heun", "Heun")])
def test_euler_and_heun_are_those_of_diffusers(rule, name):
    scheduler = scheduler_for(f"{name}DiscreteScheduler")
    assert scheduler.__class__.__name__ == settings_of(rule).name
    scheduler.set_timesteps(timesteps=NET_TIMES)
    times = times_of(NET_TIMES, 0.0)
    table = RULES[rule].tableau(VP, times)
    ours = sample(denoiser(VP), noise(), table)
    start = noise() * scheduler.sigmas[0] * (1 + 1 / scheduler.sigmas[0] ** 2) ** 0.5
    theirs = run_diffusers(scheduler, start, noise_of)
    assert table.nfe == len(scheduler.timesteps)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize("rule", ["euler", "dpmpp_2m", "unipc_2", "unipc_3", "heun"])
def test_rules_of_a_flow_are_those_of_diffusers(rule):
    import diffusers

    sigmas = np.array([1.0, 0.93, 0.8, 0.6, 0.35, 0.1])
    if rule in ("euler", "heun"):
        kind = dict(euler="Euler", heun="Heun")[rule]
        scheduler = getattr(diffusers, f"FlowMatch{kind}DiscreteScheduler")()
    else:
        told = settings_of(rule)
        flow = dict(use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=1.0)
        scheduler = getattr(diffusers, told.name)(**told.settings, **flow)
    if rule.startswith("unipc") or rule == "euler":
        scheduler.set_timesteps(sigmas=sigmas.copy())
    else:  # no list of levels is taken: they are put in where the class keeps them
        scheduler.set_timesteps(len(sigmas))
        levels = torch.tensor([*sigmas, 0.0], dtype=torch.float32)
        if rule == "heun":
            inner = levels[1:-1].repeat_interleave(2)
            levels = torch.cat([levels[:1], inner, levels[-1:]])
        scheduler.sigmas, scheduler.timesteps = levels, levels[:-1] * 1000
    times = torch.tensor([*sigmas, 0.0], dtype=torch.float64)
    table = RULES[rule].tableau(FLOW, times)
    x = noise()
    for k, t in enumerate(scheduler.timesteps):
        answer = velocity_of(x.double(), scheduler.sigmas[k].double())
        x = scheduler.step(answer, t, x).prev_sample
    assert table.nfe == len(scheduler.timesteps)
    torch.testing.assert_close(sample(denoiser(FLOW), noise(), table), x, rtol=0, atol=1e-5)


# --- k-diffusion's loops, written out: x and sigma as ComfyUI has them, D of (x, sigma)


def comfy_2m(model, x, sigmas):
    old = None
    for i in range(len(sigmas) - 1):
        denoised = model(x, sigmas[i])
        t, t_next = -sigmas[i].log(), -sigmas[i + 1].log()
        h, used = t_next - t, denoised
        if old is not None and sigmas[i + 1] > 0:
            r = (t + sigmas[i - 1].log()) / h
            used = (1 + 1 / (2 * r)) * denoised - old / (2 * r)
        x = sigmas[i + 1] / sigmas[i] * x - torch.expm1(-h) * used
        old = denoised
    return x


def comfy_res(model, x, sigmas):
    old = None
    for i in range(len(sigmas) - 1):
        denoised = model(x, sigmas[i])
        if old is None or sigmas[i + 1] == 0:
            x = x + (x - denoised) / sigmas[i] * (sigmas[i + 1] - sigmas[i])
        else:
            h = (sigmas[i] / sigmas[i + 1]).log()
            c2 = (sigmas[i] / sigmas[i - 1]).log() / h
            phi_1 = torch.expm1(-h) / -h
            phi_2 = (phi_1 - 1) / -h
            x = (-h).exp() * x + h * ((phi_1 - phi_2 / c2) * denoised + phi_2 / c2 * old)
        old = denoised
    return x


def comfy_heun(model, x, sigmas):
    for i in range(len(sigmas) - 1):
        slope = (x - model(x, sigmas[i])) / sigmas[i]
        step = sigmas[i + 1] - sigmas[i]
        x_2 = x + slope * step
        if sigmas[i + 1] > 0:
            slope_2 = (x_2 - model(x_2, sigmas[i + 1])) / sigmas[i + 1]
            x_2 = x + (slope + slope_2) / 2 * step
        x = x_2
    return x


LOOPS = dict(dpmpp_2m=comfy_2m, res_2m=comfy_res, heun=comfy_heun)


@pytest.mark.parametrize("end", [0.0, 0.02])
@pytest.mark.parametrize("kind", ["vp", "flow"])
@pytest.mark.parametrize("rule", LOOPS)
def test_rules_are_those_of_comfyui(rule, kind, end):
    schedule = dict(vp=VP, flow=FLOW)[kind]
    times = torch.tensor([1.0, 0.9, 0.7, 0.45, 0.2, end], dtype=torch.float64)
    asked, x = denoiser(schedule), noise().double()
    if kind == "flow":
        ratios, begin = times, x

        def model(state, sigma):
            return asked(state, sigma.item())
    else:
        alpha, sigmas = schedule.alpha(times), schedule.sigma(times)
        ratios, begin = sigmas / alpha, x / alpha[0]

        def model(state, sigma):
            return guess(state, sigma)

    chosen = RULES[rule]
    if "levels" in chosen.options:
        chosen = chosen.with_options(levels="sigma")
    table = chosen.tableau(schedule, times)
    ends = LOOPS[rule](model, begin, ratios)
    if kind == "vp":
        ends = ends * schedule.alpha(times[-1])
    torch.testing.assert_close(sample(asked, x, table), ends, rtol=0, atol=1e-10)
    assert rule_of(Tableau.from_json(table.to_json())) == chosen


@pytest.mark.parametrize("rule", RULES)
def test_a_table_says_its_rule_and_is_checked(rule):
    times = spacing(VP, 5, "time_quadratic")
    table = RULES[rule].tableau(VP, times)
    assert table.nfe == 5 * RULES[rule].stages and rule_of(table) == RULES[rule]
    torch.testing.assert_close(RULES[rule].grid(table), times, rtol=0, atol=1e-12)
    wrong = Tableau(table.times, table.offsets + 1e-3, table.A, table.C, table.meta)
    with pytest.raises(ValueError, match="coefficients are others"):
        rule_of(wrong)


# --- the fit


@pytest.fixture(scope="module")
def digits():
    return load_teacher("digits", "cpu")


@pytest.fixture(scope="module")
def pairs(digits):
    return make_pairs(digits, range(72)).split(24)


def loss(teacher, table, pairs):
    samples = sample(teacher.denoiser, pairs.x_T, table)
    return (samples - pairs.x_0).abs().flatten(1).mean(1).mean().item()


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("last", [None, 0.0, "free"])
def test_never_worse_than_any_usual_grid(digits, pairs, rule, last):
    fitted, held_out = pairs
    nfe = 5 if RULES[rule].stages == 2 and last != "free" else 6
    fit = fit_times(rule, digits, nfe, fitted, held_out, last=last, steps=3)
    grids = usual_times(fit.rule, digits.schedule, nfe, digits.t_eps, None if last else last)
    usual = {
        n: loss(digits, fit.rule.tableau(digits.schedule, g), held_out) for n, g in grids.items()
    }
    ours = loss(digits, fit.tableau, held_out)
    assert ours <= min(usual.values()) * (1 + 1e-5) or last == "free"
    assert ours <= fit.usual[fit.best_usual] * (1 + 1e-5)
    rounding = 1e-3 if last == "free" else 1e-4  # far from the samples it is magnified
    assert fit.loss == pytest.approx(ours, rel=rounding)
    assert fit.tableau.nfe == nfe and rule_of(fit.tableau) == RULES[rule]
    assert fit.times[0] == 1 and (last != 0.0 or fit.times[-1] == 0)


def test_a_fit_gains_and_counts(digits, pairs):
    before = digits.denoiser.evaluations
    fit = fit_times("unipc_2", digits, 6, *pairs, steps=6)
    assert fit.evaluations == digits.denoiser.evaluations - before
    assert fit.loss < 0.9 * fit.usual[fit.best_usual] and fit.steps > 1
    same = fit_times("unipc_2", digits, 6, *pairs, steps=6)
    assert same.tableau == fit.tableau and "UniPC 2" in repr(fit)


@pytest.mark.parametrize("budget", [3_000, 6_000])
def test_a_budget_is_kept(digits, pairs, budget):
    fit = fit_times("euler", digits, 4, *pairs, budget=budget)
    assert fit.evaluations <= budget and fit.loss <= fit.usual[fit.best_usual]


@pytest.mark.parametrize("rule, nfe", [("euler", 6), ("dpmpp_2m", 6), ("heun", 5), ("heun", 6)])
def test_whole_times_are_whole_and_distinct(digits, pairs, rule, nfe):
    fit = fit_times(rule, digits, nfe, *pairs, integer=True, steps=3)
    assert fit.loss <= fit.usual[fit.best_usual]
    asked = digits.schedule.net_time(fit.times)
    asked = asked if fit.rule.stages == 2 and fit.times[-1] > 0 else asked[:-1]
    numbers = asked.round()
    torch.testing.assert_close(asked, numbers, rtol=0, atol=1e-6)
    assert len(numbers.unique()) == len(numbers) and rule_of(fit.tableau) == fit.rule


def test_whole_times_need_a_network_that_counts():
    assert len(whole_times(NoiseSchedule.flow(1000, shift=3.0))) == 1000
    with pytest.raises(ValueError, match="networks that count steps"):
        whole_times(NoiseSchedule.edm(), 4)


@pytest.mark.parametrize(
    "changed, message",
    [
        (dict(rule="rk4"), "choose one of euler, dpmpp_2m"),
        (dict(rule="dpmpp_2m:order=7"), "orders 1 to 3"),
        (dict(rule="unipc_2:variant=bh9"), "bh1 and bh2"),
        (dict(rule="euler:order=2"), "has the options none"),
        (dict(rule="dpmpp_2m:order"), "options are written as"),
        (dict(nfe=0), "nfe=0"),
        (dict(rule="heun", nfe=4, last=0.0), "one evaluation more or less"),
        (dict(last=-0.1), "from 0 to below 1"),
        (dict(last="end"), "from 0 to below 1"),
    ],
)
def test_what_cannot_be_fitted_is_refused_before_the_network_is_asked(
    digits, pairs, changed, message
):
    asked = dict(rule="euler", nfe=4) | changed
    before = digits.denoiser.evaluations
    with pytest.raises(ValueError, match=message):
        fit_times(teacher=digits, pairs=pairs[0], val=pairs[1], **asked)
    assert digits.denoiser.evaluations == before


# --- the ways in


def test_the_front_door_keeps_the_budget_and_says_the_rule(digits, tmp_path):
    before = digits.denoiser.evaluations
    told = []
    solver = distil_solver(digits, [4, 6], rule="dpmpp_2m", budget=8_000, progress=told.append)
    assert digits.denoiser.evaluations - before <= 8_000
    assert [rule_of(table).name for table in solver.tableaus.values()] == ["dpmpp_2m"] * 2
    for row in solver.figures:
        assert row["rule"] == "dpmpp_2m" and row["l1"] <= row["training_free_l1"]
    assert "times for dpmpp_2m" in repr(solver) and "DPM-Solver++ 2M on" in " ".join(told)
    solver.save(tmp_path / "solver")
    read = load_solver(tmp_path / "solver")
    assert read.tableaus[4] == solver.tableaus[4] and rule_of(read.tableaus[4]).name == "dpmpp_2m"


@pytest.mark.parametrize(
    "given, message",
    [
        (dict(rule="nothing"), "choose one of"),
        (dict(rule="euler", guidance=[1, 3]), "once for each guidance_scale"),
        (dict(rule="euler", budget=50), "evaluations at least"),
    ],
)
def test_the_front_door_refuses(digits, given, message):
    before = digits.denoiser.evaluations
    with pytest.raises(ValueError, match=message):
        distil_solver(digits, 4, progress=None, **given)
    assert digits.denoiser.evaluations == before


@pytest.mark.parametrize("budget", [0, 3_000])
def test_a_run_by_a_rule_is_recorded_and_goes_on(digits, tmp_path, budget):
    pairs = {} if budget else dict(n_pairs=16, n_val=16, fit_steps=3)
    facts = dict(teacher="digits", nfe=4, rule="dpmpp_2m", adversarial_weight=0, device="cpu")
    config = TrainConfig(**facts, budget=budget, n_eval=8, **pairs)
    *_, finished = drive(config, output_dir=tmp_path, rivals=None)
    rows = {row["solver"]: row for row in finished.metrics["rows"]}
    assert rows["gs"]["rule"] == "dpmpp_2m" and "rule" not in rows["teacher"]
    table = Tableau.load(finished.run.folder / "solver.json")
    assert rule_of(table).name == "dpmpp_2m" and not table.late
    assert json.loads((finished.run.folder / "config.json").read_text())["rule"] == "dpmpp_2m"
    if budget:
        assert finished.metrics["evaluations"] <= budget
    *_, again = drive(config, output_dir=tmp_path, rivals=None)
    assert Tableau.load(again.run.folder / "solver.json") == table


def test_the_command_takes_a_rule(capsys, tmp_path):
    asked = "--teacher digits --rule euler --budget 2000 --n-eval 4 --device cpu --output-dir"
    main([*asked.split(), str(tmp_path)])
    assert "learned times" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main([*asked.split(), str(tmp_path / "other"), "--adversarial", "0.1"])
    assert "adversarial_weight=0" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


def test_the_benchmark_in_short(tmp_path, capsys):
    program = runpy.run_path(str(ROOT / "benchmarks" / "times.py"))
    output = tmp_path / "times.json"
    given = ["--quick", "--n", "8", "--pairs", "8", "--output", str(output)]
    done = program["main"]([*given, "--work", str(tmp_path)])
    assert {row["rule"] for row in done["rows"]} == {"full", "dpmpp_2m", "euler"}
    table = capsys.readouterr().out
    assert "DPM-Solver++ 2M | 4" in table
    program["main"]([*given, "--work", str(tmp_path)])  # nothing is left to do
    assert json.loads(output.read_text()) == done
