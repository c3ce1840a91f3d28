"""Times for a solver that another program has: its rule against that program, and their fit."""

import numpy as np
import pytest
import torch

from gas_nb.rules import RULES, rule_of
from gas_nb.schedule import NoiseSchedule, spacing
from gas_nb.tableau import Tableau, sample

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
