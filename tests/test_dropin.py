"""`GASScheduler` in place of the schedulers of diffusers' pipelines."""

import gas_nb.runtime.device  # noqa: F401  (before diffusers)

import copy
import inspect
import os
import json
import pickle
import subprocess
import sys
import threading
import warnings
from dataclasses import replace

import pipelines
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DiffusionPipeline,
    EDMEulerScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionXLImg2ImgPipeline,
    UniPCMultistepScheduler,
)
from diffusers.schedulers.scheduling_ddim import DDIMSchedulerOutput
from golden import relative_error
from tiny import TINY, build

from gas_nb.classic import classic_tableau, ddim, dpm_solver_pp
from gas_nb.denoiser import Denoiser, data_prediction_weights
from gas_nb.interop import GASScheduler, make_portable, save_pipeline, start_at
from gas_nb.schedule import NoiseSchedule, spacing
from gas_nb.tableau import Tableau, sample
from gas_nb.teachers.diffusers import DiffusersTeacher, schedule_from_scheduler

FLOW, SD = NoiseSchedule.flow(1000.0), NoiseSchedule.ddpm(0.00085, 0.012, 1000, scaled=True)


def solver(schedule, nfe=4):
    """A tableau that uses all its past, with offsets: no training-free solver in disguise."""
    if schedule.starts_without_signal:
        made = dpm_solver_pp(schedule, spacing(schedule, nfe, "time_uniform"), order=2)
    else:
        made = classic_tableau("unipc", schedule, nfe)
    generator = torch.Generator().manual_seed(nfe)
    draw = torch.randn(2, nfe, nfe, dtype=torch.float64, generator=generator).tril()
    offsets = 0.005 * draw[0, :, 0].abs()
    offsets[0] = 0.0
    return replace(made, A=made.A + 0.01 * draw[0], C=made.C + 0.01 * draw[1], offsets=offsets)


def net(x, t):
    return torch.tanh(x * 0.7 + t.reshape(-1, *[1] * (x.ndim - 1)) / 1000)


def loop(scheduler, x, nfe=4):
    scheduler.set_timesteps(nfe)
    for t in scheduler.timesteps:
        x = scheduler.step(net(x, t.expand(len(x))), t, x).prev_sample
    return x


# --- in the pipelines


class Recorded:
    """What a scheduler is asked and answers, by the copy that is asked."""

    def __init__(self, monkeypatch, scheduler):
        self.steps, kind = {}, type(scheduler)
        made, names = kind.step, list(inspect.signature(kind._stands_for.step).parameters)[1:]

        def step(scheduler, *args, **kwargs):
            told = dict(zip(names, args)) | kwargs
            names_kept = {"model_output", "sample", "per_token_timesteps"} & set(told)
            k = scheduler.index_for_timestep(told["timestep"])
            told = {name: told[name].clone() for name in names_kept} | dict(step=k)
            answer = made(scheduler, *args, **kwargs)
            new = answer[0] if isinstance(answer, tuple) else answer.prev_sample
            self.steps.setdefault(id(scheduler), []).append((told, new.clone()))
            return answer

        monkeypatch.setattr(kind, "step", step)


def by_hand(steps, tableau, schedule, prediction, scale=(1.0,) * 9):
    """The tableau's sums, once more, from what was recorded: the largest relative error.

    The pipeline's k-th state is `scale[k]` times the tableau's."""
    xs, Ds, worst = [], [], 0.0
    for k, (told, new) in enumerate(steps):
        x, out = told["sample"].double() / scale[k], told["model_output"].double()
        out = out[:, : new.shape[1]]
        p, q, _ = data_prediction_weights(schedule, prediction, *step_of(tableau, k))
        xs.append(x)
        Ds.append(p * x + q * out)
        row = sum(tableau.A[k, j] * xs[j] + tableau.C[k, j] * Ds[j] for j in range(k + 1))
        found = new.double() / scale[k + 1]
        worst = max(worst, float((row - found).abs().max() / row.abs().max()))
    return worst


def step_of(tableau, k):
    return tableau.times[k], tableau.offsets[k]


def described(scheduler):
    """What the network predicts, and how: what a teacher says of a pipeline."""
    try:
        return schedule_from_scheduler(scheduler)
    except ValueError:
        flow = hasattr(scheduler, "scale_noise")
        return (FLOW, "flow_prediction") if flow else (NoiseSchedule.ddpm(), "epsilon")


MOST_USED = """
    StableDiffusionPipeline StableDiffusionXLPipeline StableDiffusion3Pipeline FluxPipeline
    FluxKontextPipeline QwenImagePipeline ZImagePipeline ChromaPipeline Lumina2Pipeline
    BriaFiboPipeline WanPipeline HunyuanVideoPipeline LTXPipeline CogVideoXPipeline
    Cosmos2TextToImagePipeline StableDiffusionControlNetPipeline FluxImg2ImgPipeline
    StableDiffusionXLInpaintPipeline PixArtAlphaPipeline IFPipeline LTXConditionPipeline
""".split()


def runs_as_by_hand(name, monkeypatch):
    if name not in TINY:
        pytest.skip("not in the register of tiny pipelines")
    pipe, call = build(name), TINY[name].call()
    schedule, prediction = described(pipe.scheduler)
    original, tableau = pipe.scheduler, solver(schedule)
    pipe.scheduler = GASScheduler.for_pipeline(pipe, tableau, schedule, prediction)
    assert isinstance(pipe.scheduler, type(original))
    recorded = Recorded(monkeypatch, pipe.scheduler)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        pipe(**call | dict(num_inference_steps=4))
    assert recorded.steps
    for steps in recorded.steps.values():
        first = steps[0][0]["step"]
        ends = [k for k, (told, _) in enumerate(steps) if k and told["step"] <= first]
        late = start_at(tableau, schedule, first)
        run = without_given_tokens(steps[: min([*ends, 4])])
        scale = pipe.scheduler._numbers[4].scale[first:]
        assert by_hand(run, late, schedule, prediction, scale) < 1e-5


def without_given_tokens(steps):
    """LTX and SANA's world model negate the velocity, and give some tokens times of their own."""
    times = steps[0][0].get("per_token_timesteps")
    if times is None:
        return steps
    free = (times == times.max())[-1]
    assert free.any()
    pairs = []
    for told, new in steps:
        sample, out = told["sample"][:, free], -told["model_output"][:, free]
        pairs.append((dict(sample=sample, model_output=out), new[:, free]))
    return pairs


@pytest.mark.parametrize("name", MOST_USED)
def test_a_pipeline_runs_the_tableau_through_its_own_class(name, monkeypatch):
    runs_as_by_hand(name, monkeypatch)


EDM = """CosmosTextToWorldPipeline CosmosVideoToWorldPipeline StableAudioPipeline
    StableDiffusionXLInstructPix2PixPipeline""".split()
# Schedulers that integrate no ODE, pipelines made of others or that change their batch on the
# way, and those that have a test below.
APART = """
    CosmosTextToWorldPipeline CosmosVideoToWorldPipeline SanaSprintPipeline
    SanaSprintImg2ImgPipeline StableCascadePriorPipeline StableCascadeDecoderPipeline
    StableDiffusionXLInstructPix2PixPipeline StableAudioPipeline VisualClozePipeline
    VisualClozeGenerationPipeline TextToVideoZeroPipeline
""".split()
REST = sorted(n for n in TINY if n not in MOST_USED + APART and "Combined" not in n)


@pytest.mark.slow
@pytest.mark.parametrize("name", REST)
def test_every_other_pipeline_does_too(name, monkeypatch):
    runs_as_by_hand(name, monkeypatch)


def ends_where_sample_does(name, monkeypatch):
    """From the noise of a seed, by a teacher that asks the pipeline, and by the drop-in in it."""
    pytest.importorskip("gas_nb.teachers.calls")
    if name not in TINY:
        pytest.skip("not in the register of tiny pipelines")
    pipe, call = build(name), TINY[name].call()
    teacher = DiffusersTeacher(pipe, calls=[call])
    tableau, x_T = solver(teacher.schedule), teacher.noise([5])
    ours = teacher.sample(x_T, tableau=tableau)
    teacher.close()
    pipe.scheduler = GASScheduler.for_pipeline(pipe, tableau)
    recorded = Recorded(monkeypatch, pipe.scheduler)
    options = dict(num_inference_steps=4, generator=torch.Generator().manual_seed(5))
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        pipe(**call | options)
    scale = pipe.scheduler._numbers[4].scale
    end = recorded.steps[id(pipe.scheduler)][-1][1] / scale[-1]
    # Cosmos begins with 80 eps, where a state of its kind would be sqrt(1 + 80^2) eps.
    tolerance = 1e-5 if scale[0] == 1 else 2e-4
    assert relative_error(end.reshape(ours.shape), ours) < tolerance


# The velocity that LTX hands over with given frames is negated: no teacher reads it.
NEGATED = ("LTXConditionPipeline", "SanaWMPipeline")


def from_noise(names):
    return [n for n in names if n in TINY and TINY[n].begins == "noise" and n not in NEGATED]


@pytest.mark.parametrize("name", from_noise(MOST_USED))
def test_a_pipeline_ends_where_sample_does(name, monkeypatch):
    ends_where_sample_does(name, monkeypatch)


@pytest.mark.skipif(
    not os.environ.get("EVERY_PIPELINE"), reason="a quarter of an hour: with EVERY_PIPELINE=1"
)
@pytest.mark.parametrize("name", from_noise(REST + EDM))
def test_every_other_pipeline_ends_there_too(name, monkeypatch):
    try:
        DiffusersTeacher(build(name), calls=[TINY[name].call()]).check()
    except ValueError as e:
        pytest.skip(f"a teacher refuses it: {e}")
    ends_where_sample_does(name, monkeypatch)


@pytest.mark.parametrize("name", ["stable_diffusion", "stable_diffusion_3"])
def test_the_end_is_that_of_sample_through_the_network(name):
    """A stand-in, with the pipeline's own Euler scheduler; `sample` asks the network alone."""
    pipe = getattr(pipelines, name)()
    if name == "stable_diffusion":
        pipe.scheduler = EulerDiscreteScheduler.from_config(pipe.scheduler.config)
    teacher = DiffusersTeacher(pipe, prompts=["a shoe"], guidance_scale=2.0, size=16)
    tableau = solver(teacher.schedule)
    pipe.scheduler = GASScheduler.for_pipeline(pipe, tableau)
    x_T = torch.randn(1, *teacher.shape, generator=torch.Generator().manual_seed(1))
    options = dict(prompt="a shoe", height=16, width=16, num_inference_steps=4)
    guided = dict(latents=x_T, guidance_scale=2.0)
    theirs = pipe(**options, **guided, output_type="latent").images
    ours = teacher.sample(x_T, "a shoe", tableau)
    assert relative_error(theirs, ours) < 1e-5


# --- what is asked before the loop


def test_any_keyword_chooses_by_length_and_is_told_once():
    gas = GASScheduler.from_tableau([solver(FLOW, n) for n in (4, 6)])
    parameters = inspect.signature(gas.set_timesteps).parameters
    assert {"timesteps", "sigmas", "mu"} <= set(parameters)
    with pytest.warns(UserWarning, match="has its own times") as said:
        gas.set_timesteps(sigmas=[1.0, 0.7, 0.4, 0.1], mu=0.5, device="cpu")
        assert gas.num_inference_steps == 4 and gas.timesteps[0] == 1000
        gas.set_timesteps(timesteps=torch.linspace(999, 1, 6), shift=3.0)
        assert gas.num_inference_steps == 6
        gas.set_timesteps(4, sigmas=[1.0, 0.5, 0.2, 0.1])
    assert len(said) == 1
    with pytest.raises(ValueError, match="num_inference_steps=3.*solvers for 4, 6 steps"):
        gas.set_timesteps(sigmas=[1.0, 0.5, 0.2])
    with pytest.raises(ValueError, match="sigmas=3: give a list"):
        gas.set_timesteps(sigmas=3)


def test_a_number_without_a_solver_takes_the_nearest_if_asked_to():
    tables = [solver(FLOW, n) for n in (4, 8)]
    gas = GASScheduler.from_tableau(tables, nearest=True)
    with pytest.warns(UserWarning, match="50: takes the solver for 8") as said:
        gas.set_timesteps(50)
        gas.set_timesteps(50)
    assert len(said) == 1 and gas.num_inference_steps == 8
    with pytest.warns(UserWarning, match="solver for 4"):
        gas.set_timesteps(6)
    for wrong in (0, -3, "4", 4.5, True, None):
        with pytest.raises(ValueError, match="solvers for 4, 8"):
            gas.set_timesteps(wrong)
    again = GASScheduler.from_config(GASScheduler.from_tableau(tables).config, nearest=True)
    assert again.config.nearest


@pytest.mark.parametrize("schedule", [FLOW, SD], ids=["flow", "table"])
def test_sigmas_are_those_of_the_original(schedule):
    tableau = replace(solver(schedule), offsets=torch.zeros(4, dtype=torch.float64))
    gas = GASScheduler.from_tableau(tableau, schedule)
    gas.set_timesteps(4)
    t = tableau.times[:-1]
    level = t if schedule is FLOW else schedule.sigma(t) / schedule.alpha(t)
    assert torch.allclose(gas.sigmas, torch.cat([level, torch.zeros(1)]).float())
    assert (gas.timesteps.dtype, gas.init_noise_sigma, gas.order) == (torch.float32, 1.0, 1)
    gas.timesteps = gas.timesteps.half()
    assert gas.timesteps.dtype == torch.float16
    for wrong in (gas.timesteps / 2, gas.timesteps[:2], None):
        with pytest.raises(ValueError, match="has its own times"):
            gas.timesteps = wrong


def test_whole_timesteps_move_the_question_and_its_weights():
    tableau = solver(SD)
    gas = GASScheduler.from_tableau(tableau, SD, integer_timesteps=True)
    gas.set_timesteps(4)
    assert gas.timesteps.dtype == torch.int64
    asked = (gas.timesteps.double() + 1) / 1000
    moved = replace(tableau, offsets=asked - tableau.times[:-1])
    x = torch.randn(2, 3, generator=torch.Generator().manual_seed(0))
    denoiser = Denoiser(net, SD)
    assert relative_error(loop(gas, x), sample(denoiser, x, moved)) < 1e-5


def test_a_pipeline_that_looks_its_timesteps_up_gets_whole_ones():
    if "KandinskyImg2ImgPipeline" not in TINY:
        pytest.skip("not in the register of tiny pipelines")
    pipe = build("KandinskyImg2ImgPipeline")
    pipe.scheduler = GASScheduler.for_pipeline(pipe, solver(described(pipe.scheduler)[0]))
    assert pipe.scheduler.config.integer_timesteps
    call = TINY["KandinskyImg2ImgPipeline"].call()
    pipe(**call | dict(num_inference_steps=4))


def test_the_index_of_a_step():
    gas = GASScheduler.from_tableau(solver(SD), SD)
    gas.set_timesteps(4)
    assert gas.step_index is None and gas.begin_index is None
    x = torch.ones(1, 3)
    for k, t in enumerate(gas.timesteps):
        assert gas.index_for_timestep(t) == k
        x = gas.step(x, t, x)[0]
        assert gas.step_index == k + 1
    with pytest.raises(ValueError, match="goes by its own steps"):
        gas._step_index = 1


# --- in the loop


def test_a_step_returns_the_data_prediction_too():
    tableau = solver(SD)
    gas = GASScheduler.from_tableau(tableau, SD)
    gas.set_timesteps(4)
    x = torch.randn(2, 3, generator=torch.Generator().manual_seed(0))
    t = gas.timesteps[0]
    clean = Denoiser(net, SD)(x, 1.0)
    new, told = gas.step(net(x, t.expand(2)), t, x, return_dict=False)
    assert relative_error(told, clean) < 1e-6
    told.zero_()  # the caller's own: the history does not notice
    gas.set_timesteps(4)
    other = gas.step(torch.zeros_like(x), t, x, pred_original_sample=clean).prev_sample
    assert relative_error(other, new) < 1e-6


def test_learned_variance_is_left_out():
    gas = GASScheduler.from_tableau(solver(SD), SD)
    gas.set_timesteps(4)
    x = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    t = gas.timesteps[0]
    both = gas.step(torch.cat([x, x * 9], 1), t, x).prev_sample
    assert torch.equal(both, gas.step(x, t, x).prev_sample)


def test_words_of_other_schedulers_are_taken_or_refused():
    gas = GASScheduler.from_tableau(solver(SD), SD)
    gas.set_timesteps(4)
    t, x = gas.timesteps[0], torch.ones(1, 3)
    options = dict(generator=torch.Generator(), eta=0.0, s_noise=1.0, s_churn=0.0)
    gas.step(x, t, x, **options, prev_timestep=t, variance_noise=None)
    for wrong in (dict(eta=1.0), dict(s_churn=0.5), dict(variance_noise=x), dict(unheard=3)):
        with pytest.raises(ValueError, match="deterministic|adds no noise"):
            gas.step(x, t, x, **wrong)


def test_half_precision_is_summed_up_in_float32():
    """The state that comes back is taken for the float32 one that it was rounded from."""
    schedule = NoiseSchedule.vp_linear(net_time_scale=1000.0)
    tableau = ddim(schedule, spacing(schedule, 40))
    gas = GASScheduler.from_tableau(tableau, schedule, "sample")
    x = torch.randn(4, 64, generator=torch.Generator().manual_seed(0))
    clean = torch.randn(x.shape, generator=torch.Generator().manual_seed(1)).bfloat16()
    ends = []
    for dtype in (torch.bfloat16, torch.float64):
        gas.set_timesteps(40)
        state = x.bfloat16().to(dtype)
        for t in gas.timesteps:
            state = gas.step(clean.to(dtype), t, state).prev_sample
        ends.append(state)
    assert torch.equal(ends[0], ends[1].bfloat16())


def test_a_state_that_was_changed_is_the_one_that_counts():
    gas = GASScheduler.from_tableau(solver(SD), SD)
    gas.set_timesteps(4)
    x = torch.randn(2, 3, generator=torch.Generator().manual_seed(0)).bfloat16()
    new = gas.step(x, gas.timesteps[0], x).prev_sample
    twin = copy.deepcopy(gas)
    masked = gas.step(x, gas.timesteps[1], new.mul_(0.5)).prev_sample
    same = twin.step(x, twin.timesteps[1], new.clone()).prev_sample
    assert torch.equal(masked, same)


# --- in the place of others


def test_an_instance_of_the_pipelines_own_class_with_its_config():
    original = FlowMatchEulerDiscreteScheduler(shift=3.0, base_image_seq_len=77)
    gas = GASScheduler.for_pipeline(original, solver(FLOW))
    assert isinstance(gas, FlowMatchEulerDiscreteScheduler) and isinstance(gas, GASScheduler)
    assert (gas.config.base_image_seq_len, gas.config.shift, gas.shift) == (77, 3.0, 3.0)
    assert gas.prediction == "flow_prediction" and gas.config.solvers
    table = GASScheduler.for_pipeline(DDIMScheduler(**pipelines.SD_BETAS), solver(SD))
    assert torch.equal(table.alphas_cumprod, DDIMScheduler(**pipelines.SD_BETAS).alphas_cumprod)
    x = torch.ones(1, 3, 2, 2)
    table.set_timesteps(4)
    assert torch.equal(table.scale_model_input(x, table.timesteps[0]), x)
    with pytest.raises(AttributeError):
        table.no_such_thing


def test_solvers_of_a_folder_take_a_schedulers_place(tmp_path):
    said = [replace(solver(SD, n), meta=dict(prediction="epsilon")) for n in (4, 6)]
    GASScheduler.from_tableau(said, SD, card=dict(teacher="t")).save_pretrained(tmp_path)
    solvers, original = GASScheduler.from_pretrained(tmp_path), STANDING_IN["table"][0]
    for gas in (solvers.in_place_of(original), GASScheduler.for_pipeline(original, solvers)):
        assert isinstance(gas, DDIMScheduler) and gas.config.steps_offset == 1
        assert gas.nfes == [4, 6] and gas.config.card == dict(teacher="t")
        x = torch.randn(2, 3, generator=torch.Generator().manual_seed(0))
        assert torch.equal(loop(gas, x), loop(solvers, x))


def test_one_that_stands_in_gives_way_to_the_next():
    first = GASScheduler.for_pipeline(DDIMScheduler(**pipelines.SD_BETAS), solver(SD))
    second = GASScheduler.for_pipeline(first, solver(SD, 6))
    assert second.nfes == [6] and isinstance(second, DDIMScheduler)
    plain = GASScheduler.for_pipeline(GASScheduler.from_tableau(solver(SD), SD), solver(SD, 6))
    assert type(plain) is GASScheduler


def test_solvers_of_another_model_are_refused():
    said = replace(solver(SD), meta=dict(schedule=SD.config, prediction="epsilon"))
    with pytest.raises(ValueError, match="made for schedule"):
        GASScheduler.for_pipeline(FlowMatchEulerDiscreteScheduler(), said)
    v = DDIMScheduler(**pipelines.SD_BETAS, prediction_type="v_prediction")
    with pytest.raises(ValueError, match="made for prediction epsilon"):
        GASScheduler.for_pipeline(v, said)
    for wrong in (None, 3, "a folder", object()):
        with pytest.raises(ValueError, match="give a pipeline"):
            GASScheduler.for_pipeline(wrong, said)


def test_a_scheduler_that_is_not_known_is_believed(monkeypatch):
    said = replace(solver(SD), meta=dict(schedule=SD.config, prediction="epsilon"))
    odd = DDIMScheduler(beta_schedule="squaredcos_cap_v2")
    odd.alphas_cumprod = odd.alphas_cumprod * 0.9
    with pytest.raises(ValueError, match="table alphas_cumprod"):
        GASScheduler.for_pipeline(odd, replace(said, meta={}))
    assert GASScheduler.for_pipeline(odd, said).schedule == SD


FLOW_WORDS = dict(use_flow_sigmas=True, prediction_type="flow_prediction")
STANDING_IN = {
    "flow": (FlowMatchEulerDiscreteScheduler(shift=3.0), FLOW),
    "table": (DDIMScheduler(**pipelines.SD_BETAS, steps_offset=1), SD),
    "euler": (EulerDiscreteScheduler(**pipelines.SD_BETAS), SD),
    "unipc": (UniPCMultistepScheduler(**FLOW_WORDS), FLOW),
}


@pytest.mark.parametrize("name", STANDING_IN)
def test_copies_and_files_are_stand_ins_too(name, tmp_path):
    original, schedule = STANDING_IN[name]
    gas = GASScheduler.for_pipeline(original, [solver(schedule, n) for n in (4, 6)])
    x = torch.randn(2, 3, generator=torch.Generator().manual_seed(0))
    end = loop(gas, x)
    gas.save_pretrained(tmp_path)
    made = GASScheduler.from_pretrained
    copies = [copy.deepcopy(gas), pickle.loads(pickle.dumps(gas)), made(tmp_path)]
    for other in (*copies, GASScheduler.from_config(gas.config)):
        assert type(other) is type(gas) and isinstance(other, type(original))
        assert dict(other.config) == dict(gas.config) or other is copies[2]
        assert other.config.num_train_timesteps == 1000 and other.nfes == [4, 6]
        assert torch.equal(loop(other, x), end)


def test_a_copy_goes_on_apart():
    """LTX-2 has a second scheduler for its sound: a deep copy of the first."""
    gas = GASScheduler.for_pipeline(FlowMatchEulerDiscreteScheduler(), solver(FLOW))
    other = copy.deepcopy(gas)
    x = torch.randn(2, 3, generator=torch.Generator().manual_seed(0))
    gas.set_timesteps(4)
    other.set_timesteps(4)
    a, b = x, 2 * x
    for t in gas.timesteps:
        a, b = (one.step(net(y, t), t, y).prev_sample for one, y in ((gas, a), (other, b)))
    assert torch.equal(a, loop(gas, x)) and torch.equal(b, loop(gas, 2 * x))


def test_threads_share_a_stand_in():
    gas = GASScheduler.for_pipeline(DDIMScheduler(**pipelines.SD_BETAS), solver(SD))
    starts = torch.randn(3, 2, 3, generator=torch.Generator().manual_seed(0))
    alone, out = [loop(gas, x) for x in starts], {}

    def work(i):
        out[i] = all(torch.equal(loop(gas, starts[i]), alone[i]) for _ in range(5))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(3)]
    [thread.start() for thread in threads]
    [thread.join(60) for thread in threads]
    assert out == {0: True, 1: True, 2: True}


def test_a_class_that_is_not_diffusers_own_is_not_loaded_by_its_name():
    gas = GASScheduler.for_pipeline(DDIMScheduler(**pipelines.SD_BETAS), solver(SD))
    for name in ("os.system", "AutoencoderKL", "NoSuchScheduler", 3, None):
        config = dict(gas.config, drop_in=dict(gas.config.drop_in, **{"class": name}))
        assert type(GASScheduler.from_config(config)) is GASScheduler


def test_a_compiled_network_may_drive_it():
    gas = GASScheduler.for_pipeline(DDIMScheduler(**pipelines.SD_BETAS), solver(SD))
    compiled = torch.compile(net, backend="eager")
    x = torch.randn(2, 3, generator=torch.Generator().manual_seed(0))
    gas.set_timesteps(4)
    y = x
    for t in gas.timesteps:
        y = gas.step(compiled(y, t.expand(2)), t, y).prev_sample
    assert torch.equal(y, loop(gas, x))


# --- EDM: the state in another form


def edm_loop(gas, x_T, twice, scale):
    """Cosmos asks twice for each step, the first time with the unguided state beside."""
    gas.set_timesteps(4)
    y = x_T * gas.init_noise_sigma
    for t in gas.timesteps:
        outs = [-net(gas.scale_model_input(y, t), t * s) for s in (1000, 500)]
        if not twice:
            y = gas.step(outs[0] + 0.5 * (outs[0] - outs[1]), t, y).prev_sample
            continue
        both = gas.step(torch.cat(outs), t, torch.cat([y, y]), return_dict=False)[1]
        gas._step_index -= 1
        a, b = both.chunk(2)
        mixed = a + 0.5 * (a - b)
        y = gas.step(mixed, t, y, return_dict=False, pred_original_sample=mixed)[0]
    return y / scale


@pytest.mark.parametrize("twice", [False, True])
@pytest.mark.parametrize("scale", [0.5, 1.0])
def test_edm_keeps_its_state_and_ends_where_sample_does(twice, scale):
    """A pipeline that asks twice mixes data: then they are what is predicted."""
    schedule = NoiseSchedule.vp_edm()
    tableau, original = solver(schedule), EDMEulerScheduler(sigma_data=scale)

    def guided(x, t):
        a, b = net(x, t * 1000), net(x, t * 500)
        return a + 0.5 * (a - b)

    def guided_data(x, t):
        alpha, sigma = (f(t[0].double()).float() for f in (schedule.alpha, schedule.sigma))
        return alpha * x - sigma * guided(x, t)

    words, form, denoiser = "v_prediction", None, Denoiser(guided, schedule, "v_prediction")
    if twice:
        words, denoiser = "sample", Denoiser(guided_data, schedule, "sample")
        form = dict(data_scale=scale, negated=True, mixed="v_prediction")
    gas = GASScheduler.for_pipeline(original, tableau, schedule, words, form=form)
    x_T = torch.randn(2, 3, generator=torch.Generator().manual_seed(0))
    ours = sample(denoiser, x_T, tableau)
    for _ in range(2):
        assert relative_error(edm_loop(gas, x_T, twice, scale), ours) < 1e-5


def test_edm_scales_as_the_original_does():
    schedule = NoiseSchedule.vp_edm()
    tableau = replace(solver(schedule), offsets=torch.zeros(4, dtype=torch.float64))
    for kind in ("epsilon", "v_prediction"):
        edm = EDMEulerScheduler(sigma_data=0.5, prediction_type=kind)
        gas = GASScheduler.for_pipeline(edm, tableau, schedule, "v_prediction")
        gas.set_timesteps(4)
        y = torch.randn(2, 3, generator=torch.Generator().manual_seed(0))
        for t, s in zip(gas.timesteps, gas.sigmas):
            asked = gas.scale_model_input(y, t)
            assert relative_error(asked, edm.precondition_inputs(y, s)) < 1e-5
            answer = gas.step(net(y, t), t, y)
            clean = edm.precondition_outputs(y, net(y, t), s)
            assert relative_error(answer.pred_original_sample, clean) < 1e-4
            y = answer.prev_sample


@pytest.mark.parametrize("name", EDM)
def test_edm_pipelines_run(name, monkeypatch):
    """Cosmos asks twice a step. The states it goes through, by hand."""
    if name not in TINY:
        pytest.skip("not in the register of tiny pipelines")
    pipe, schedule, told = build(name), NoiseSchedule.vp_edm(), []
    tableau = solver(schedule)
    unit = pipe.scheduler.config.sigma_data
    gas = GASScheduler.for_pipeline(pipe, tableau, schedule, "v_prediction")
    assert isinstance(gas, type(pipe.scheduler))
    pipe.scheduler, made = gas, type(gas).step

    def step(scheduler, output, t, sample, **options):
        answer = made(scheduler, output, t, sample, **options | dict(return_dict=False))
        if answer[0] is not sample:
            told.append((sample, *answer))
        plain = options.get("return_dict", True) is False
        return answer if plain else DDIMSchedulerOutput(*answer)

    monkeypatch.setattr(type(gas), "step", step)
    pipe(**TINY[name].call() | dict(num_inference_steps=4))
    assert gas.step_index == 4 and len(told) == 4
    assert (gas.prediction == "sample") == name.startswith("Cosmos")
    scale = torch.tensor(gas._numbers[4].scale, dtype=torch.float64)
    ys = [y.double() for y, _, _ in told] + [told[-1][1].double()]
    for k in range(4):
        row = sum(
            tableau.A[k, j] * ys[j] / scale[j] + tableau.C[k, j] * told[j][2].double() / unit
            for j in range(k + 1)
        )
        assert relative_error(ys[k + 1], row * scale[k + 1]) < 1e-4


def test_a_flow_whose_levels_go_up_to_80_is_edm_under_another_name():
    """Cosmos 2: the state is x0 + s eps, and the scheduler gets (y - D) / s."""
    schedule = NoiseSchedule.vp_edm()
    tableau = solver(schedule)
    original = FlowMatchEulerDiscreteScheduler(use_karras_sigmas=True)
    original.register_to_config(sigma_max=80.0, sigma_min=0.002, sigma_data=1.0)
    gas = GASScheduler.for_pipeline(original, tableau, schedule, "epsilon")
    gas.set_timesteps(sigmas=[0.0, 0.3, 0.6, 1.0])
    x_T = torch.randn(2, 3, generator=torch.Generator().manual_seed(0))
    y = x_T * gas.init_noise_sigma
    for t, s in zip(gas.timesteps, gas.sigmas):
        noise = net(y / (1 + s**2).sqrt(), t * 1000)
        y = gas.step(noise, t, y, return_dict=False)[0]
    denoiser = Denoiser(lambda x, t: net(x, t * 1000), schedule)
    assert relative_error(y, sample(denoiser, x_T, tableau)) < 1e-5
    assert gas.sigmas[0] > 70 and gas.config.sigma_max == 80
    assert not GASScheduler.for_pipeline(original, solver(FLOW), FLOW).config.drop_in.get(
        "data_scale"
    )


# --- late starts


@pytest.mark.parametrize("fitted", [True, False], ids=["fitted rows", "DDIM"])
@pytest.mark.parametrize("strength", [0.3, 0.5, 0.8])
def test_strength_starts_late(fitted, strength):
    made = pipelines.stable_diffusion()
    pipe = StableDiffusionImg2ImgPipeline(**made.components, requires_safety_checker=False)
    pipe = pipelines.quiet(pipe)
    schedule, tableau = schedule_from_scheduler(pipe.scheduler)[0], solver(SD, 5)
    if fitted:
        rows = {b: solver(SD, 5 - b) for b in range(1, 5)}
        tableau = replace(tableau, late={b: (one.A, one.C) for b, one in rows.items()})
    pipe.scheduler = GASScheduler.for_pipeline(pipe, tableau)
    first = 5 - int(5 * strength)
    late = start_at(tableau, schedule, first)
    seen = []
    pipe.scheduler.set_timesteps(5)
    timesteps = pipe.scheduler.timesteps.tolist()
    hook = pipe.unet.register_forward_pre_hook(lambda _, args: seen.append(float(args[1])))
    image = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(2))
    options = dict(strength=strength, num_inference_steps=5, guidance_scale=1.0)
    pipe("a shoe", image, **options, generator=torch.Generator().manual_seed(3))
    hook.remove()
    assert seen == pytest.approx(timesteps[first:])
    gas = pipe.scheduler
    gas.set_timesteps(5)
    gas.set_begin_index(first)
    x = y = torch.randn(2, 3, generator=torch.Generator().manual_seed(0))
    for t in gas.timesteps[first:]:
        x = gas.step(net(x, t.expand(2)), t, x).prev_sample
    assert relative_error(x, sample(Denoiser(net, schedule), y, late)) < 1e-5


@pytest.mark.parametrize("shared", [False, True])
def test_sdxl_hands_over_from_base_to_refiner(shared, monkeypatch):
    """One scheduler for both: the run goes on. One each: the second begins late."""
    base = pipelines.stable_diffusion_xl()
    refiner = StableDiffusionXLImg2ImgPipeline(**base.components, add_watermarker=False)
    refiner = pipelines.quiet(refiner)
    tableau = solver(SD, 6)
    base.scheduler = GASScheduler.for_pipeline(base, tableau)
    refiner.scheduler = base.scheduler if shared else GASScheduler.for_pipeline(refiner, tableau)
    recorded = Recorded(monkeypatch, base.scheduler)
    options = dict(num_inference_steps=6, guidance_scale=1.0, output_type="latent")
    drawn = dict(generator=torch.Generator().manual_seed(0), height=16, width=16)
    half = base("a shoe", **options, **drawn, denoising_end=0.5).images
    refiner("a shoe", image=half, **options, denoising_start=0.5)
    assert sum(map(len, recorded.steps.values())) == 6
    if shared:
        (steps,) = recorded.steps.values()
        assert by_hand(steps, tableau, SD, "epsilon") < 1e-5
        return
    first, second = recorded.steps.values()
    late = start_at(tableau, SD, len(first))
    assert by_hand(first, tableau, SD, "epsilon") < 1e-5
    assert by_hand(second, late, SD, "epsilon") < 1e-5


def test_base_and_refiner_each_with_its_own_scheduler():
    """The second pipeline's run begins late, with the state that the first one left."""
    base, refiner = (
        GASScheduler.for_pipeline(DDIMScheduler(**pipelines.SD_BETAS), solver(SD, 5))
        for _ in range(2)
    )
    x = torch.randn(2, 3, generator=torch.Generator().manual_seed(0))
    base.set_timesteps(5)
    refiner.set_timesteps(5)
    for t in base.timesteps[:3]:
        x = base.step(net(x, t.expand(2)), t, x).prev_sample
    refiner.set_begin_index(3)
    y = x
    for t in refiner.timesteps[3:]:
        y = refiner.step(net(y, t.expand(2)), t, y).prev_sample
    late = start_at(solver(SD, 5), SD, 3)
    assert relative_error(y, sample(Denoiser(net, SD), x, late)) < 1e-5


def test_noise_and_velocity_at_a_step_and_between():
    gas = GASScheduler.for_pipeline(DDIMScheduler(**pipelines.SD_BETAS), solver(SD))
    x, eps = (torch.randn(3, 1, 2, 2, generator=torch.Generator().manual_seed(k)) for k in (0, 1))
    t = torch.tensor([0, 500, 999])
    theirs = DDIMScheduler(**pipelines.SD_BETAS)
    assert relative_error(gas.add_noise(x, eps, t), theirs.add_noise(x, eps, t)) < 1e-5
    assert relative_error(gas.get_velocity(x, eps, t), theirs.get_velocity(x, eps, t)) < 1e-5
    flow = GASScheduler.for_pipeline(FlowMatchEulerDiscreteScheduler(), solver(FLOW))
    flow.set_timesteps(4)
    level = solver(FLOW).times[2]
    expected = (1 - level) * x + level * eps
    noised = flow.scale_noise(x, flow.timesteps[2:3], eps)
    assert relative_error(noised, expected.float()) < 1e-6
    assert torch.equal(flow.get_velocity(x, eps, t), eps - x)


# --- tokens with times of their own


def test_tokens_at_another_time_take_an_euler_step():
    """As LTX steps: the velocity negated, a time for each token; given frames stay."""
    tableau = solver(FLOW)
    gas = GASScheduler.for_pipeline(FlowMatchEulerDiscreteScheduler(), tableau)
    gas.set_timesteps(4)
    x_T = x = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0))
    least = torch.tensor([1000.0, 1000.0, 1000.0, 0.0, 600.0]).expand(2, 5)
    for t in gas.timesteps:
        times = torch.minimum(least, t)
        x = gas.step(-net(x, t.expand(2)), t, x, per_token_timesteps=times)[0]
    alone = sample(Denoiser(net, FLOW, "flow_prediction"), x_T, tableau)
    assert relative_error(x[:, :3], alone[:, :3]) < 1e-5
    assert torch.equal(x[:, 3], x_T[:, 3])
    assert not torch.equal(x[:, 4], x_T[:, 4]) and x.isfinite().all()


# --- pipelines as files


def images(pipe):
    options = dict(num_inference_steps=4, output_type="np")
    return pipe(**options, generator=torch.Generator().manual_seed(0)).images


def stand_in_pipeline():
    pipe = pipelines.ddpm()
    schedule = schedule_from_scheduler(pipe.scheduler)[0]
    pipe.scheduler = GASScheduler.for_pipeline(pipe, solver(schedule))
    return pipe


def test_a_pipeline_is_saved_and_read_with_its_stand_in(tmp_path):
    pipe = stand_in_pipeline()
    pipe.save_pretrained(tmp_path)
    written = json.loads((tmp_path / "model_index.json").read_text())["scheduler"]
    assert written == ["gas_nb.interop", "GASScheduler"]
    again = pipelines.quiet(DiffusionPipeline.from_pretrained(tmp_path))
    assert isinstance(again.scheduler, DDIMScheduler)
    assert isinstance(again.scheduler, GASScheduler)
    assert abs(images(again) - images(pipe)).max() == 0


def test_a_pipeline_that_changes_its_schedulers_config_keeps_the_stand_in(tmp_path):
    """Stable Diffusion sets steps_offset and clip_sample when it is made."""
    made = pipelines.stable_diffusion()
    schedule, prediction = schedule_from_scheduler(made.scheduler)
    old = DDIMScheduler(**pipelines.SD_BETAS, clip_sample=True, steps_offset=0)
    gas = GASScheduler.for_pipeline(old, solver(SD), schedule, prediction)
    end = loop(gas, torch.ones(2, 3))
    components = dict(made.components, scheduler=gas)
    pipe = type(made)(**components, requires_safety_checker=False)
    assert pipe.scheduler is gas and torch.equal(loop(gas, torch.ones(2, 3)), end)
    pipe.save_pretrained(tmp_path)
    again = type(made).from_pretrained(tmp_path, safety_checker=None).scheduler
    assert isinstance(again, DDIMScheduler)
    assert torch.equal(loop(again, torch.ones(2, 3)), end)


def test_a_combined_config_makes_other_schedulers(tmp_path):
    gas = GASScheduler.for_pipeline(DDIMScheduler(**pipelines.SD_BETAS, steps_offset=7), solver(SD))
    other = DDIMScheduler.from_config(gas.config)
    assert (other.config.steps_offset, other.config.beta_end) == (7, 0.012)
    back = GASScheduler.from_config(other.config)
    assert isinstance(back, DDIMScheduler) and back.tableaus == gas.tableaus


ALONE = """
import sys
import gas_nb.runtime.device  # what a broken pair of torch and torchvision needs; then no more

for name in [name for name in sys.modules if name.split(".")[0] == "gas_nb"]:
    del sys.modules[name]

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "gas_nb":
            raise ImportError(f"{name} is not here")

sys.meta_path.insert(0, Blocked())
import copy, numpy, torch
from diffusers import DDIMScheduler, DiffusionPipeline
pipe = DiffusionPipeline.from_pretrained(sys.argv[1], trust_remote_code=True)
pipe.set_progress_bar_config(disable=True)
assert isinstance(pipe.scheduler, DDIMScheduler), type(pipe.scheduler).__mro__
copy.deepcopy(pipe.scheduler)
options = dict(num_inference_steps=4, output_type="np")
made = pipe(**options, generator=torch.Generator().manual_seed(0)).images
pipe.save_pretrained(sys.argv[1] + "/again")
twice = DiffusionPipeline.from_pretrained(sys.argv[1] + "/again", trust_remote_code=True)
twice.set_progress_bar_config(disable=True)
same = twice(**options, generator=torch.Generator().manual_seed(0)).images
numpy.save(sys.argv[1] + "/made.npy", numpy.stack([made, same]))
assert "gas_nb" not in sys.modules
"""


def test_a_pipeline_runs_where_gas_nb_is_not_installed(tmp_path, monkeypatch):
    import numpy as np

    pipe, folder = stand_in_pipeline(), tmp_path / "saved"
    save_pipeline(pipe, folder)
    index = json.loads((folder / "model_index.json").read_text())
    assert index["scheduler"] == ["gas_scheduler", "GASScheduler"]
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    command = [sys.executable, "-c", ALONE, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    for made in np.load(folder / "made.npy"):
        assert abs(made - images(pipe)).max() < 1e-5


def test_the_file_that_stands_alone_imports_torch_and_diffusers_only(tmp_path):
    import ast

    GASScheduler.from_tableau(solver(SD), SD).save_pretrained(tmp_path)
    text = (tmp_path / "gas_scheduler.py").read_text()
    nodes = [n for n in ast.walk(ast.parse(text)) if isinstance(n, (ast.Import, ast.ImportFrom))]
    names = {n.module if isinstance(n, ast.ImportFrom) else n.names[0].name for n in nodes}
    others = {name.split(".")[0] for name in names} - set(sys.stdlib_module_names)
    assert others == {"torch", "diffusers"}
    assert not [line for line in text.splitlines() if line.startswith(("# %%", "# AUTO"))]
    assert not any(isinstance(n, ast.ImportFrom) and n.level for n in nodes)


def test_portable_needs_the_folder_of_a_pipeline_with_a_gas_scheduler(tmp_path):
    with pytest.raises(ValueError, match="model_index.json cannot be read"):
        make_portable(tmp_path)
    pipelines.ddpm().save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match="has no GASScheduler"):
        make_portable(tmp_path / "other")
    for wrong in (None, 3, ""):
        with pytest.raises(ValueError, match="give a path"):
            make_portable(wrong)
    with pytest.raises(ValueError, match="give a pipeline"):
        save_pipeline(3, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_configs_of_before_still_load_and_become_portable(tmp_path):
    """Without the new words, and without numbers."""
    gas = GASScheduler.from_tableau(solver(SD), SD)
    new = ("drop_in", "nearest", "integer_timesteps")
    old = {name: value for name, value in gas.config.items() if name not in new}
    again = GASScheduler.from_config(old)
    again.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "scheduler_config.json").read_text())
    assert len(config["solvers"]["4"]["numbers"]["p"]) == 4
    x = torch.randn(2, 3, generator=torch.Generator().manual_seed(0))
    assert torch.equal(loop(again, x), loop(gas, x))
    assert isinstance(again.tableaus[4], Tableau)
