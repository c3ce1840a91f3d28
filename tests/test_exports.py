"""Solvers for other programs: each file read back by its consumer, or by a stand-in of its
documented protocol, gives the samples of `sample`; what cannot be held is refused, unwritten."""

import importlib
import importlib.util
import json
import re
import sys
import types
import zipfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import gas_nb.runtime.device  # noqa: F401  (before diffusers)

import diffusers
import numpy as np
import pipelines
import pytest
import torch

from gas_nb.app import Ask, Workbench
from gas_nb.classic import classic_tableau
from gas_nb.denoiser import Denoiser
from gas_nb.exchange.alone import Run
from gas_nb.exchange.export import TARGETS, export, main
from gas_nb.exchange.pasted import FIELDS, grid_of, pasted
from gas_nb.exchange.source import source_of
from gas_nb.exchange.stepping import start_at
from gas_nb.fitting.family import family_of
from gas_nb.front import load_solver
from gas_nb.interop import GASScheduler
from gas_nb.rules import RULES
from gas_nb.schedule import NoiseSchedule
from gas_nb.solver import GeneralizedSolver
from gas_nb.tableau import Tableau, sample
from gas_nb.teacher import load_teacher

VP = NoiseSchedule.ddpm(0.00085, 0.012, scaled=True)
FLOW = NoiseSchedule.flow(1000)
KINDS = dict(epsilon=VP, v_prediction=VP, flow_prediction=FLOW)


def clean(x, alpha, sigma):
    """A made-up data prediction."""
    return torch.tanh(x / (alpha + sigma)) * (1 - 0.2 * torch.sin(3 * sigma))


def network(kind):
    """net(x, time) with predictions of this kind, for a state at the time's own level."""
    schedule = KINDS[kind]

    def net(x, time):
        time = torch.as_tensor(time, dtype=torch.float64).reshape(-1)
        t = time / 1000 if schedule is FLOW else (time + 1) / 1000
        shape = (-1,) + (1,) * (x.ndim - 1)
        alpha, sigma = (level(t).reshape(shape) for level in (schedule.alpha, schedule.sigma))
        wide = x.double()
        data = clean(wide, alpha, sigma)
        eps = (wide - alpha * data) / sigma
        answers = dict(epsilon=eps, v_prediction=alpha * eps - sigma * data)
        return answers.get(kind, eps - data).to(x.dtype)

    return net


def learned(schedule, nfe, seed=0):
    """A solver with offsets and coefficients of its own."""
    solver = GeneralizedSolver(schedule, nfe)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in solver.parameters():
            p += 0.03 * torch.randn(p.shape, dtype=p.dtype, generator=generator)
        table = solver.tableau()
    offsets = 0.01 * torch.randn(nfe, dtype=torch.float64, generator=generator)
    offsets[0] = 0.0 if schedule is FLOW else -0.05
    return replace(table, offsets=offsets, meta=dict(name="gs", teacher="made-up"))


def file_of(tmp_path, kind, nfe=4, **meta):
    schedule = KINDS[kind]
    said = dict(schedule=schedule.config, prediction=kind, **meta)
    table = learned(schedule, nfe)
    table = replace(table, meta=table.meta | said)
    table.save(tmp_path / f"{kind}-{nfe}.json")
    return table, tmp_path / f"{kind}-{nfe}.json"


def noise(dtype=torch.float32):
    return torch.randn(3, 2, 4, 4, generator=torch.Generator().manual_seed(1), dtype=dtype)


def ours(kind, table, x, net=None):
    return sample(Denoiser(net or network(kind), KINDS[kind], kind), x, table)


def close(a, b, atol=1e-5):
    torch.testing.assert_close(torch.as_tensor(a), torch.as_tensor(b), rtol=0, atol=atol)


@pytest.fixture
def without_gas_nb(monkeypatch):
    """Whoever imports gas_nb from here on fails."""

    def begin():
        for name in [name for name in sys.modules if name.split(".")[0] == "gas_nb"]:
            monkeypatch.setitem(sys.modules, name, None)

    return begin


# --- ComfyUI: its sampling protocol, written from what its documentation and sources say


class ModelSampling:
    """Level and time, first noise and last state of ComfyUI's eps, v and flow models."""

    def __init__(self, kind):
        self.kind, self.flow = kind, kind == "flow_prediction"
        t = torch.arange(1, 1001, dtype=torch.float64) / 1000
        self.sigmas = t if self.flow else VP.sigma(t) / VP.alpha(t)

    def timestep(self, sigma):
        if self.flow:
            return sigma * 1000
        distance = sigma.double().log() - self.sigmas.log()[:, None]
        return distance.abs().argmin(0).to(sigma)

    def noise_scaling(self, sigma, noise, latent, max_denoise):
        if self.flow:
            return sigma * noise + (1 - sigma) * latent
        return noise * ((1 + sigma**2) ** 0.5 if max_denoise else sigma) + latent

    def inverse_noise_scaling(self, sigma, latent):
        return latent / (1 - sigma) if self.flow else latent


class Model:
    """model(x, sigma) -> denoised, around a network that knows times only."""

    def __init__(self, kind, net):
        self.sampling, self.net = ModelSampling(kind), net

    def __call__(self, x, sigma, **extra):
        s = sigma.reshape(-1, 1, 1, 1)
        scale = 1 if self.sampling.flow else (1 + s**2) ** 0.5
        out = self.net(x / scale, self.sampling.timestep(sigma))
        if self.sampling.kind == "v_prediction":
            return x / (s**2 + 1) - out * s / (s**2 + 1) ** 0.5
        return x - out * s


class KSAMPLER:
    def __init__(self, sampler_function, extra_options=None, inpaint_options=None):
        self.sampler_function, self.extra_options = sampler_function, extra_options or {}

    def sample(self, model, sigmas, noise, latent, callback=None):
        sampling = model.sampling
        full = bool(sigmas[0] > sampling.sigmas[-1] * (1 - 1e-5))
        x = sampling.noise_scaling(sigmas[0], noise, latent, full)
        options = dict(extra_args={}, callback=callback, disable=True, **self.extra_options)
        made = self.sampler_function(model, x, sigmas, **options)
        return sampling.inverse_noise_scaling(sigmas[-1], made)


@pytest.fixture
def comfy(monkeypatch):
    samplers = types.ModuleType("comfy.samplers")
    samplers.KSAMPLER = KSAMPLER
    monkeypatch.setitem(sys.modules, "comfy", types.ModuleType("comfy"))
    monkeypatch.setitem(sys.modules, "comfy.samplers", samplers)

    def load(folder):
        """A custom node as ComfyUI finds it."""
        name = f"node_{folder.parent.name}"  # one for each test: its parts stay in sys.modules
        spec = importlib.util.spec_from_file_location(
            name, folder / "__init__.py", submodule_search_locations=[str(folder)]
        )
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, name, module)
        spec.loader.exec_module(module)
        (key,) = module.NODE_CLASS_MAPPINGS
        assert set(module.NODE_DISPLAY_NAME_MAPPINGS) == {key}
        return module.NODE_CLASS_MAPPINGS[key]

    return load


@pytest.mark.parametrize("kind", KINDS)
def test_comfyui_makes_the_same_samples(kind, tmp_path, comfy, without_gas_nb):
    made = [file_of(tmp_path, kind, nfe) for nfe in (4, 6)]
    export([file for _, file in made], "comfyui", tmp_path / "node")
    net, rounded = network(kind), network(kind)
    if kind != "flow_prediction":  # ComfyUI's tables know whole times only

        def rounded(x, time):
            return net(x, torch.as_tensor(time).round())

    goals = {table.nfe: ours(kind, table, noise(), rounded) for table, _ in made}
    without_gas_nb()
    Node = comfy(tmp_path / "node")
    required = Node.INPUT_TYPES()["required"]
    assert required["solver"] == (["made-up-gs.json"],)
    assert required["steps"] == ("INT", dict(default=4, min=4, max=6))
    for nfe, goal in goals.items():
        sampler, sigmas = getattr(Node(), Node.FUNCTION)("made-up-gs.json", nfe)
        assert sigmas.shape == (nfe + 1,) and sigmas[-1] == 0 and (sigmas.diff() < 0).all()
        seen = []
        latent = torch.zeros_like(noise())
        made = sampler.sample(Model(kind, net), sigmas, noise(), latent, seen.append)
        close(made, goal)
        assert [set(one) for one in seen] == [{"i", "x", "sigma", "sigma_hat", "denoised"}] * nfe
    with pytest.raises(ValueError, match="no solver for 5 steps: there are solvers for 4, 6"):
        Node().load("made-up-gs.json", 5)
    with pytest.raises(ValueError, match="no file '../x.json'"):
        Node().load("../x.json", 4)


@pytest.mark.parametrize("kind", KINDS)
def test_comfyui_begins_in_the_middle_and_stops_there(kind, tmp_path, comfy):
    table, file = file_of(tmp_path, kind)
    export(file, "comfyui", tmp_path / "node")
    sampler, sigmas = comfy(tmp_path / "node")().load("made-up-gs.json", 4)
    schedule, model = KINDS[kind], Model(kind, network(kind))
    image, t = torch.tanh(noise()), table.times[2]

    def rounded(x, time):
        whole = time if kind == "flow_prediction" else torch.as_tensor(time).round()
        return network(kind)(x, whole)

    state = schedule.alpha(t) * image + schedule.sigma(t) * noise()
    late = start_at(replace(table, meta={}), schedule, 2)
    goal = ours(kind, late, state.float(), rounded)
    close(sampler.sample(model, sigmas[2:], noise(), image), goal)
    denoiser = Denoiser(rounded, schedule, kind)
    path = sample(denoiser, noise(), table, return_trajectory=True)[1]
    first = sampler.sample(model, sigmas[:3], noise(), torch.zeros_like(image))
    close(first, path.states[2] / schedule.alpha(t).float(), 1e-4)
    with pytest.raises(ValueError, match="connect the output SIGMAS"):
        sampler.sample(model, sigmas * 0.9, noise(), image)


def test_comfyui_refuses_other_files(tmp_path, comfy):
    _, file = file_of(tmp_path, "epsilon")
    export(file, "comfyui", tmp_path / "node")
    Node, solvers = comfy(tmp_path / "node"), tmp_path / "node" / "solvers"
    content = json.loads((solvers / "made-up-gs.json").read_text())
    (solvers / "made-up-gs.json").write_text(json.dumps(content | dict(version=2)))
    with pytest.raises(ValueError, match="version 2, this node reads 1"):
        Node().load("made-up-gs.json", 4)
    (solvers / "made-up-gs.json").write_text(file.read_text())
    with pytest.raises(ValueError, match="not an export"):
        Node().load("made-up-gs.json", 4)


# --- mflux


def mlx_of_numpy():
    """What a scheduler of mflux uses of mlx.core, on NumPy."""
    core = types.ModuleType("mlx.core")
    core.float32 = np.float32
    core.array = lambda values, dtype=np.float32: np.asarray(values, dtype=dtype)
    return core


def mflux_of_ours():
    """The base class of mflux's schedulers, by its documented members."""
    from abc import ABC, abstractmethod

    class BaseScheduler(ABC):
        @property
        @abstractmethod
        def sigmas(self): ...

        @abstractmethod
        def step(self, noise, timestep, latents, **kwargs): ...

        def scale_model_input(self, latents, t):
            return latents

    module = types.ModuleType("mflux.models.common.schedulers.base_scheduler")
    module.BaseScheduler = BaseScheduler
    return module


@pytest.fixture(params=["stand-in", "mflux"])
def mx(request, monkeypatch):
    """mlx.core, and mflux beside it: those of the registry where they are installed."""
    if request.param == "mflux":
        pytest.importorskip("mflux.models.common.schedulers")
        return importlib.import_module("mlx.core")
    core, base = mlx_of_numpy(), mflux_of_ours()
    parts = ["mlx", "mflux", "mflux.models", "mflux.models.common"]
    for name in [*parts, "mflux.models.common.schedulers"]:
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setattr(sys.modules["mlx"], "core", core, raising=False)
    monkeypatch.setitem(sys.modules, "mlx.core", core)
    monkeypatch.setitem(sys.modules, base.__name__, base)
    return core


def mflux_loop(mx, scheduler, x, first=0):
    """The loop of mflux's FLUX.1: the time of the network is sigmas[t] * 1000."""
    net, latents = network("flow_prediction"), mx.array(x.numpy())
    for t in range(first, scheduler.config.num_inference_steps):
        latents = scheduler.scale_model_input(latents, t)
        time = float(scheduler.sigmas[t]) * 1000
        out = net(torch.from_numpy(np.array(latents)), time)
        latents = scheduler.step(noise=mx.array(out.numpy()), timestep=t, latents=latents)
    return np.array(latents)


def load_mflux(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path / "mflux"))
    monkeypatch.delitem(sys.modules, "gas_mflux", raising=False)
    importlib.invalidate_caches()
    return importlib.import_module("gas_mflux").GASScheduler


def test_mflux_makes_the_same_samples(mx, tmp_path, monkeypatch, without_gas_nb):
    kind = "flow_prediction"
    made = [file_of(tmp_path, kind, nfe) for nfe in (4, 6)]
    export([file for _, file in made], "mflux", tmp_path / "mflux")
    goals = {table.nfe: ours(kind, table, noise()) for table, _ in made}
    table = made[0][0]
    offsets = table.offsets.clone()
    offsets[2] = 0.0  # image to image asks its first question at the state's level
    late = replace(start_at(table, FLOW, 2), offsets=offsets[2:])
    image = torch.tanh(noise())
    state = ((1 - table.times[2]) * image + table.times[2] * noise()).float()
    begun = ours(kind, late, state)
    without_gas_nb()
    Scheduler = load_mflux(tmp_path, monkeypatch)
    for nfe, goal in goals.items():
        scheduler = Scheduler(SimpleNamespace(num_inference_steps=nfe, init_time_step=0))
        assert len(scheduler.sigmas) == nfe + 1 and float(scheduler.sigmas[-1]) == 0
        assert len(scheduler.timesteps) == nfe
        close(mflux_loop(mx, scheduler, noise()), goal)
    scheduler = Scheduler(SimpleNamespace(num_inference_steps=4, init_time_step=2))
    assert float(scheduler.sigmas[2]) == pytest.approx(float(table.times[2]), abs=1e-6)
    close(mflux_loop(mx, scheduler, state, first=2), begun)
    with pytest.raises(ValueError, match="no solver for 5 steps"):
        Scheduler(SimpleNamespace(num_inference_steps=5, init_time_step=0))


def test_mflux_finds_the_scheduler_by_its_name(tmp_path, monkeypatch):
    schedulers = pytest.importorskip("mflux.models.common.schedulers")
    config = pytest.importorskip("mflux.models.common.config.config")
    _, file = file_of(tmp_path, "flow_prediction")
    export(file, "mflux", tmp_path / "mflux")
    load_mflux(tmp_path, monkeypatch)
    found = schedulers.try_import_external_scheduler("gas_mflux.GASScheduler")
    assert issubclass(found, schedulers.base_scheduler.BaseScheduler)
    model = SimpleNamespace(requires_sigma_shift=True, num_train_steps=1000)
    made = config.Config(model, num_inference_steps=4, scheduler="gas_mflux.GASScheduler")
    assert type(made.scheduler) is found and len(made.scheduler.sigmas) == 5


def test_mflux_keeps_sums_in_float32(tmp_path, monkeypatch):
    """Latents in bfloat16: the network sees rounded states, the sums do not."""
    mx = pytest.importorskip("mlx.core")
    pytest.importorskip("mflux.models.common.schedulers")
    _, file = file_of(tmp_path, "flow_prediction")
    export(file, "mflux", tmp_path / "mflux")
    scheduler = load_mflux(tmp_path, monkeypatch)(SimpleNamespace(num_inference_steps=4))
    net, run = network("flow_prediction"), Run(scheduler.solver)
    exact = noise().bfloat16().float()
    latents = mx.array(exact.numpy()).astype(mx.bfloat16)
    for t in range(4):
        seen = torch.from_numpy(np.array(latents.astype(mx.float32)))
        out = net(seen, float(scheduler.sigmas[t]) * 1000)
        latents = scheduler.step(noise=mx.array(out.numpy()), timestep=t, latents=latents)
        exact = run.advance(exact, out)
    assert latents.dtype == mx.bfloat16
    close(np.array(latents.astype(mx.float32)), exact.bfloat16().float(), 0.005)


# --- NumPy


@pytest.mark.parametrize("kind", KINDS)
def test_numpy_makes_the_same_samples(kind, tmp_path, without_gas_nb):
    made = [file_of(tmp_path, kind, nfe) for nfe in (3, 5)]
    (file,) = export([file for _, file in made], "numpy", tmp_path / "numpy")
    goals = {table.nfe: ours(kind, table, noise()) for table, _ in made}
    without_gas_nb()
    space = {"__name__": "run_solver"}
    exec(file.read_text(), space)
    net = network(kind)

    def answer(x, time):
        return net(torch.from_numpy(x), time).numpy()

    for nfe, goal in goals.items():
        solver = space["chosen"](space["SOLVERS"], nfe)
        close(space["sample"](solver, answer, noise().numpy()), goal)


# --- the hub


def test_a_repository_loads_with_diffusers_alone(tmp_path, without_gas_nb):
    pipe = pipelines.ddpm()
    schedule, prediction = pipelines_schedule(pipe)
    tables = {nfe: learned(schedule, nfe) for nfe in (3, 4)}
    there = GASScheduler.from_tableau(tables, schedule, prediction)
    files = export(there, "hub", tmp_path / "repo", repo="me/solver")
    assert sorted(file.relative_to(tmp_path / "repo").as_posix() for file in files) == [
        "README.md",
        "model_index.json",
        "pipeline.py",
        "scheduler/gas_scheduler.py",
        "scheduler/scheduler_config.json",
        "scheduler_config.json",
    ]
    readme = (tmp_path / "repo" / "README.md").read_text()
    assert "DiffusionPipeline.from_pretrained('me/solver', trust_remote_code=True)" in readme
    assert load_solver(tmp_path / "repo").tableaus == there.tableaus
    assert source_of(tmp_path / "repo").nfes == [3, 4]

    def run(steps):
        generator = torch.Generator().manual_seed(0)
        return pipe(num_inference_steps=steps, output_type="np", generator=generator).images

    pipe.scheduler = GASScheduler.for_pipeline(pipe, there)
    goals = {steps: run(steps) for steps in (3, 4)}
    pipe.scheduler = pipelines.ddpm().scheduler
    without_gas_nb()
    with pytest.raises(ValueError, match="trust_remote_code"):
        diffusers.DiffusionPipeline.from_pretrained(tmp_path / "repo")
    solvers = diffusers.DiffusionPipeline.from_pretrained(tmp_path / "repo", trust_remote_code=True)
    assert solvers.put_into(pipe) is pipe and pipe.scheduler.nfes == [3, 4]
    for steps, goal in goals.items():
        close(run(steps), goal)
    with pytest.raises(ValueError, match="without a model"):
        solvers()


def pipelines_schedule(pipe):
    from gas_nb.teachers.diffusers import schedule_from_scheduler

    return schedule_from_scheduler(pipe.scheduler)


# --- times to paste, against diffusers' own schedulers


class Pipe:
    """A pipeline reduced to its loop: what the pasted lines are run with."""

    def __init__(self, scheduler, net):
        self.scheduler, self.net = scheduler, net

    def __call__(self, *_, sigmas=None, timesteps=None):
        given = dict(sigmas=sigmas) if timesteps is None else dict(timesteps=timesteps)
        self.scheduler.set_timesteps(**given)
        x = noise() * getattr(self.scheduler, "init_noise_sigma", 1.0)
        for k, t in enumerate(self.scheduler.timesteps):
            asked = x
            if hasattr(self.scheduler, "scale_model_input"):
                asked = self.scheduler.scale_model_input(x, t)
            if self.scheduler.config.get("use_flow_sigmas"):
                t_asked = 1000 * self.scheduler.sigmas[k]  # UniPC cuts `t` to a whole number
            else:
                t_asked = t
            x = self.scheduler.step(self.net(asked, t_asked), t, x).prev_sample
        self.made = x


BETAS = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
GRIDS = {
    "sigmas": [1.0, 0.83, 0.61, 0.38, 0.17, 0.0],
    "timesteps": [1.0, 0.8, 0.5, 0.25, 0.075, 0.0],
}
PASTED = [
    (kind, "flow_prediction" if flow else prediction, rule, shift)
    for kind, flow, rule, shifts in (
        ("sigmas", False, "euler", [None]),
        ("sigmas", True, "euler", [None, 3.0]),
        ("sigmas", True, "unipc_2", [None, 3.0]),
        ("sigmas", True, "unipc_3", [None]),
        ("timesteps", False, "euler", [None]),
        ("timesteps", False, "dpmpp_2m", [None]),
        ("timesteps", False, "heun", [None]),
    )
    for prediction in (["flow_prediction"] if flow else ["epsilon", "v_prediction"])
    for shift in shifts
]


@pytest.mark.parametrize("kind, prediction, rule, shift", PASTED)
def test_pasted_times_are_diffusers_own_solver(kind, prediction, rule, shift, tmp_path):
    schedule, flow = KINDS[prediction], prediction == "flow_prediction"
    grid = torch.tensor(GRIDS[kind], dtype=torch.float64)
    table = RULES[rule].tableau(schedule, grid)
    table = replace(table, meta=table.meta | dict(prediction=prediction))
    table.save(tmp_path / "solver.json")
    export(tmp_path / "solver.json", kind, tmp_path / "out", shift=shift)
    text = (tmp_path / "out" / f"{kind}.txt").read_text()
    lines = text[text.index("# diffusers") :].split("\n")[1:3]
    if flow:
        config = dict(shift=shift or 5.0)
        theirs = diffusers.FlowMatchEulerDiscreteScheduler(**config)
        if rule.startswith("unipc"):
            theirs = diffusers.UniPCMultistepScheduler(flow_shift=shift or 5.0)
    else:
        theirs = diffusers.DDIMScheduler(**BETAS, prediction_type=prediction)
    pipe = Pipe(theirs, network(prediction))
    exec("\n".join(lines), dict(vars(diffusers), pipe=pipe, np=np))
    close(pipe.made, ours(prediction, table, noise()))


def test_a_program_without_an_end_goes_on_to_0(tmp_path):
    grid = torch.tensor([1.0, 0.83, 0.61, 0.38, 0.17, 0.001], dtype=torch.float64)
    table = RULES["euler"].tableau(FLOW, grid)
    export(table, "sigmas", tmp_path, prediction="flow_prediction")
    lines = (tmp_path / "sigmas.txt").read_text().splitlines()
    at = next(k for k, line in enumerate(lines) if line.startswith("# diffusers"))
    assert "goes on to 0 (that of the fit ends at 0.001)" in lines[at]
    pipe = Pipe(diffusers.FlowMatchEulerDiscreteScheduler(), network("flow_prediction"))
    exec("\n".join(lines[at + 1 : at + 3]), dict(vars(diffusers), pipe=pipe))
    grid[-1] = 0.0
    close(pipe.made, ours("flow_prediction", RULES["euler"].tableau(FLOW, grid), noise()))


def comfy_euler(model, x, sigmas):
    for a, b in zip(sigmas, sigmas[1:]):
        x = x + (x - model(x, a * x.new_ones(len(x)))) / a * (b - a)
    return x


def comfy_2m(model, x, sigmas):
    old = None
    for i in range(len(sigmas) - 1):
        new = model(x, sigmas[i] * x.new_ones(len(x)))
        h, used = (sigmas[i] / sigmas[i + 1]).log(), new
        if old is not None and sigmas[i + 1] > 0:
            r = (sigmas[i - 1] / sigmas[i]).log() / h
            used = (1 + 1 / (2 * r)) * new - old / (2 * r)
        x, old = sigmas[i + 1] / sigmas[i] * x - torch.expm1(-h) * used, new
    return x


@pytest.mark.parametrize("end", [0.0, 0.02])
@pytest.mark.parametrize("kind", ["epsilon", "flow_prediction"])
@pytest.mark.parametrize("rule, loop", [("euler", comfy_euler), ("dpmpp_2m", comfy_2m)])
def test_pasted_levels_in_comfyui_and_stable_diffusion_cpp(rule, loop, kind, end, tmp_path):
    schedule, chosen = KINDS[kind], RULES[rule]
    if rule == "dpmpp_2m":
        chosen = chosen.with_options(levels="sigma")
    grid = torch.tensor([*GRIDS["timesteps"][:-1], end], dtype=torch.float64)
    table = chosen.tableau(schedule, grid)
    export(table, "sigmas", tmp_path, prediction=kind)
    lines = (tmp_path / "sigmas.txt").read_text().splitlines()
    at = next(k for k, line in enumerate(lines) if line.startswith("# ComfyUI"))
    assert {"euler": "(euler)", "dpmpp_2m": "(dpmpp_2m)"}[rule] in lines[at]
    # what the node ManualSigmas makes of a text
    found = re.findall(r"[-+]?(?:\d*\.*\d+)", lines[at + 1])
    sigmas = torch.FloatTensor([float(one) for one in found])
    flags = next(line for line in lines if line.startswith("--sampling-method"))
    cpp = re.fullmatch(r'--sampling-method (\S+) --sigmas "([^"]+)"', flags)
    assert cpp[1] == {"euler": "euler", "dpmpp_2m": "dpm++2m"}[rule]
    assert torch.FloatTensor([float(one) for one in cpp[2].split(",")]).equal(sigmas)
    model = Model(kind, network(kind))
    model.sampling.timestep = lambda s: s * 1000 if model.sampling.flow else exact_time(s)
    x = model.sampling.noise_scaling(sigmas[0], noise(), 0, True)
    goal = ours(kind, table, noise())
    if kind == "epsilon":
        goal = goal / schedule.alpha(grid[-1]).float()
    close(loop(model, x, sigmas), goal)


def exact_time(sigma):
    """A table between its entries: not rounded, as ComfyUI does."""
    return VP.net_time(VP.t_of_lambda(-sigma.double().log()))


def test_times_say_what_they_are_for(tmp_path):
    grid = torch.tensor(GRIDS["timesteps"], dtype=torch.float64)
    table = RULES["euler"].tableau(FLOW, grid)
    said = dict(prediction="flow_prediction", teacher="my/model", guidance=3.5)
    replace(table, meta=table.meta | said).save(tmp_path / "solver.json")
    export(tmp_path / "solver.json", "sigmas", tmp_path / "out", shift=3.0)
    for name in ("sigmas.txt", "sigmas.py", "sigmas.json"):
        text = (tmp_path / "out" / name).read_text()
        for words in ("my/model", "guidance 3.5", "Euler (DDIM)", "flow", "shift of 3"):
            assert words in text, (name, words)
    space = {}
    exec((tmp_path / "out" / "sigmas.py").read_text(), space)
    content = json.loads((tmp_path / "out" / "sigmas.json").read_text())
    assert space["SIGMAS"][5] == content["solvers"]["5"]["sigmas"] == GRIDS["timesteps"]
    assert content["version"] == 1 and content["solvers"]["5"]["programs"]["ComfyUI"] == "euler"


def test_whole_times_are_those_of_the_program_that_rounds(tmp_path):
    grid = torch.tensor([1.0, 0.8123, 0.5001, 0.2007, 0.0], dtype=torch.float64)
    table = RULES["dpmpp_2m"].tableau(VP, grid)
    export(table, "timesteps", tmp_path / "whole")
    export(table, "timesteps", tmp_path / "fractions", whole=False)
    whole, exact = (
        json.loads((tmp_path / name / "timesteps.json").read_text())["solvers"]["4"]["timesteps"]
        for name in ("whole", "fractions")
    )
    assert whole == [999, 811, 499, 200] and exact[1] == pytest.approx(811.3)
    assert "rounded by up to 0.3" in (tmp_path / "whole" / "timesteps.txt").read_text()
    moved = grid_of(table, VP, whole=True)
    again = RULES["dpmpp_2m"].tableau(VP, torch.tensor([*[(n + 1) / 1000 for n in whole], 0.0]))
    close(moved.levels, grid_of(again, VP).levels, 1e-6)


def test_every_field_belongs_to_a_program_of_a_rule():
    known = {(p.program, p.name) for rule in RULES.values() for p in rule.programs}
    for place in FIELDS:
        assert place.program in {program for program, _ in known}
        assert {(place.program, name) for name in place.names} <= known
    for rule in RULES.values():
        chosen = rule.with_options(levels="sigma") if "levels" in rule.options else rule
        grid = grid_of(chosen.tableau(VP, torch.tensor(GRIDS["sigmas"])), VP)
        comfy = {p.name for p in rule.programs if p.program == "ComfyUI"}
        assert {p.name for p in pasted(grid, "sigmas") if p.program == "ComfyUI"} == comfy


# --- what is refused


def files_of_two_schedules(tmp_path):
    one, other = learned(VP, 4), learned(NoiseSchedule.vp_linear(), 5)
    for name, table, schedule in (("a", one, VP), ("b", other, NoiseSchedule.vp_linear())):
        said = dict(schedule=schedule.config)
        replace(table, meta=table.meta | said).save(tmp_path / f"{name}.json")
    return [tmp_path / "a.json", tmp_path / "b.json"]


@pytest.mark.parametrize("target", TARGETS)
def test_files_that_are_none_are_refused_by_every_target(target, tmp_path):
    _, file = file_of(tmp_path, "flow_prediction")
    text = file.read_text()
    (tmp_path / "newer.json").write_text(text.replace('"version": 1', '"version": 2'))
    (tmp_path / "cut.json").write_text(text[:200])
    cases = [
        (dict(solver=tmp_path / "newer.json"), "newer.json.*version 2"),
        (dict(solver=tmp_path / "cut.json"), "cut.json.*not JSON"),
        (dict(solver=tmp_path / "none.json"), "none.json does not exist"),
        (dict(solver=file, nfe=8), "nfe=8: there are solvers for 4"),
        (dict(solver=file, at=3.0), "fitted for one value"),
        (dict(solver=file, prediction="epsilon"), "made for prediction flow_prediction"),
        (dict(solver=file, schedule=VP), "made for schedule"),
        (dict(solver=files_of_two_schedules(tmp_path)), "schedules"),
        (dict(solver=[file, file]), "several tableaus of one nfe"),
        (dict(solver=[]), "no tableaus"),
        (dict(solver=3), "is no tableau"),
        (dict(solver=file, steps=4), "options of an export"),
    ]
    for given, words in cases:
        with pytest.raises(ValueError, match=words):
            export(given.pop("solver"), target, tmp_path / "out", **given)
    with pytest.raises(ValueError, match="is a file: give a folder"):
        export(file, target, file)
    assert not (tmp_path / "out").exists()


def wide(schedule):
    return classic_tableau("unipc", schedule, 4)


REFUSED = [
    ("sigmas", lambda: learned(VP, 4), {}, "coefficients and evaluation offsets of its own"),
    ("timesteps", lambda: wide(VP), {}, "coefficients of its own.*fit times alone"),
    ("mflux", lambda: wide(VP), {}, "mflux has flow models only"),
    ("mflux", lambda: wide(NoiseSchedule.flow(1000, shift=3.0)), {}, "levels only"),
    ("comfyui", lambda: wide(NoiseSchedule.flow(1000, shift=3.0)), {}, "levels only"),
    ("sigmas", lambda: rule_table(FLOW, "dpmpp_2m"), {}, "none of them takes"),
    ("sigmas", lambda: rule_table(VP, "euler", C=2.0), {}, "coefficients are others"),
    ("sigmas", lambda: rule_table(VP, "euler"), dict(shift=-1.0), "shift=-1.0"),
    ("timesteps", lambda: rule_table(NoiseSchedule.vp_linear(), "euler"), {}, "one whole number"),
]


def rule_table(schedule, rule, C=1.0):
    table = RULES[rule].tableau(schedule, torch.tensor(GRIDS["sigmas"]))
    return replace(table, C=C * table.C)


@pytest.mark.parametrize("target, make, options, words", REFUSED)
def test_what_a_target_cannot_hold_is_refused(target, make, options, words, tmp_path):
    table = make()
    given = {} if "schedule" in table.meta else dict(schedule=VP)
    with pytest.raises(ValueError, match=words):
        export(table, target, tmp_path / "out", **options, **given)
    assert not (tmp_path / "out").exists()


def test_a_schedule_of_neither_form_is_refused(tmp_path):
    class Exploding(NoiseSchedule):
        config = dict(kind="exploding")

        def _log_alpha(self, t):
            return torch.zeros_like(t)

        def _sigma(self, t):
            return 10 * t + 1e-3

    from gas_nb.exchange.programs import is_flow

    with pytest.raises(ValueError, match="flows and variance preserving schedules"):
        is_flow(Exploding())


# --- the ways in


def test_a_rule_survives_a_folder(tmp_path):
    table = rule_table(VP, "unipc_3")
    GASScheduler.from_tableau(table).save_pretrained(tmp_path / "folder")
    assert load_solver(tmp_path / "folder").tableaus[5].meta["rule"] == table.meta["rule"]
    files = export(tmp_path / "folder", "sigmas", tmp_path / "out")
    assert [file.name for file in files] == ["sigmas.txt", "sigmas.json", "sigmas.py"]
    load_solver(tmp_path / "folder").export("sigmas", tmp_path / "front", nfe=5)
    assert (tmp_path / "front" / "sigmas.txt").read_text() == files[0].read_text()


def test_solvers_for_several_guidances_are_exported_for_one(tmp_path):
    members = {value: learned(VP, 4, seed) for seed, value in enumerate((1.0, 3.0, 9.0))}
    said = dict(schedule=VP.config, prediction="epsilon")
    members = {v: replace(one, meta=one.meta | said) for v, one in members.items()}
    family = family_of("guidance", members)
    (file,) = export(family, "numpy", tmp_path / "numpy", at=4.5)
    text, space = file.read_text(), {"__name__": "run_solver"}
    exec(text, space)
    assert "fitted for guidance 4.5" in text
    assert space["SOLVERS"]["4"]["A"][3] == pytest.approx(family.at(4.5).A[3].tolist())
    with pytest.raises(ValueError, match="guidance=20"):
        export(family, "numpy", tmp_path / "numpy", at=20.0)


def test_the_command(tmp_path, capsys):
    rule_table(VP, "euler").save(tmp_path / "euler.json")
    main([str(tmp_path / "euler.json"), "--to", "sigmas", "--out", str(tmp_path / "out")])
    said = capsys.readouterr().out
    assert str(tmp_path / "out" / "sigmas.txt") in said and "# ComfyUI" in said
    _, file = file_of(tmp_path, "epsilon")
    for arguments, words in (
        ([str(file), "--to", "sigmas"], "fit times alone"),
        ([str(file), "--to", "numpy", "--nfe", "4,8"], "nfe=8"),
        ([str(file), "--to", "numpy", "--nfe", "four"], "give numbers"),
        ([str(file), "--to", "onnx"], "invalid choice"),
    ):
        with pytest.raises(SystemExit) as error:
            main([*arguments, "--out", str(tmp_path / "no")])
        assert error.value.code == 2 and words in capsys.readouterr().err
    assert not (tmp_path / "no").exists()
    with pytest.raises(SystemExit) as error:
        main(["--help"])
    shown = capsys.readouterr().out
    assert error.value.code == 0 and all(target.title in shown for target in TARGETS.values())


def test_the_app_takes_a_solver_along_for_another_program(tmp_path):
    bench = Workbench(tmp_path / "runs", "cpu")
    bench.teachers["digits"] = load_teacher("digits", "cpu")
    ask = Ask("digits", nfes=(4,), solvers=("unipc",))
    for target in ("comfyui", "hub", "numpy"):
        paths, _ = bench.downloads(ask, target=target)
        assert [Path(path).suffix for path in paths] == [".json", ".zip", ".zip"]
        with zipfile.ZipFile(paths[-1]) as archive:
            archive.extractall(tmp_path / target)
    folder = tmp_path / "comfyui" / "digits-unipc-4-comfyui"
    content = json.loads(next((folder / "solvers").iterdir()).read_text())
    assert list(content["solvers"]) == ["4"] and "digits" in " ".join(content["about"])
    table = Tableau.load(paths[0])
    assert source_of(tmp_path / "hub" / "digits-unipc-4-hub").tableaus[4] == table
    with pytest.raises(ValueError, match="of its own"):
        bench.downloads(ask, target="sigmas")
    assert not list(Path(paths[0]).parent.glob("*-sigmas.zip"))
