"""Teachers from diffusers: read from the real format, and equal
to what the pipelines make with diffusers' own schedulers."""

import json
import shutil
import warnings

import gas_nb.runtime.device  # noqa: F401  (before diffusers)

import pipelines
import pytest
import torch
from diffusers import DDIMScheduler

from gas_nb.classic import ddim
from gas_nb.denoiser import Denoiser
from gas_nb.evaluation import measure
from gas_nb.schedule import NoiseSchedule, spacing
from gas_nb.solver import GeneralizedSolver
from gas_nb.teacher import PAPER_SETTINGS, Teacher, load_teacher
from gas_nb.teachers.diffusers import PipelineTeacher, load_diffusers_teacher
from gas_nb.teachers.edm import EDMPrecond, save_edm
from gas_nb.teachers.presets import SETTINGS
from gas_nb.teachers.reading import read_scheduler, schedule_from_scheduler
from gas_nb.training import TrainConfig, TrainState, make_training_pairs, train

PROMPTS = ["a red shoe", "a bag"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Saves a pipeline once and gives its folder."""
    root, made = tmp_path_factory.mktemp("pipelines"), {}

    def save(name, **options):
        key = name + "".join(f"-{v}" for v in options.values())
        if key not in made:
            getattr(pipelines, name)(**options).save_pretrained(root / key)
            made[key] = root / key
        return made[key]

    return save


def diffusers_grid(pipe, flow):
    """The times at which a pipeline's own scheduler evaluated, as ours."""
    if flow:
        return pipe.scheduler.sigmas.double()
    times = (pipe.scheduler.timesteps.double() + 1) / 1000
    return times if times[-1] == 1e-3 else torch.cat([times, times.new_tensor([1e-3])])


def relative(ours, theirs):
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


def test_pixel_pipeline(folder):
    path = folder("ddpm")
    teacher = load_diffusers_teacher(path, "cpu")
    assert teacher.shape == (1, 8, 8) and teacher.class_names == ["call 0"]
    pipe, x_T = (
        teacher.pipeline,
        torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(5)),
    )
    theirs = pipe(
        batch_size=2,
        num_inference_steps=50,
        generator=torch.Generator().manual_seed(5),
        output_type="np",
    ).images
    ours = teacher.sample(x_T, tableau=ddim(teacher.schedule, diffusers_grid(pipe, False)))
    ours = (ours / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy()
    assert abs(ours - theirs).max() < 1e-4 and theirs.std() > 0.01


def test_unconditional_latents(folder):
    teacher = load_diffusers_teacher(folder("latent_diffusion"), "cpu")
    assert teacher.shape == (3, 8, 8) and teacher.calls == [{}]
    pipe, x_T = (
        teacher.pipeline,
        torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(5)),
    )
    theirs = pipe(
        batch_size=2,
        num_inference_steps=50,
        generator=torch.Generator().manual_seed(5),
        output_type="np",
    ).images
    latents = teacher.sample(x_T, tableau=ddim(teacher.schedule, diffusers_grid(pipe, False)))
    ours = (teacher.decode(latents) / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy()
    assert (abs(ours - theirs).max(axis=-1) > 1e-3).mean() < 0.02, (
        "more than a few pixels on the edge between two code words"
    )
    assert theirs.std() > 0.01


def test_dit(folder):
    """A call for each class; the pipeline doubles its state, and so does the teacher."""
    teacher = load_diffusers_teacher(folder("dit"), "cpu", guidance_scale=2.0)
    assert teacher.n_classes == 1000 and teacher.class_names[7] == "class 7"
    assert teacher.calls[7] == dict(class_labels=[7], guidance_scale=2.0)
    seven = teacher.with_calls(teacher.calls[7:8])
    x_T = seven.noise([5])
    pipe, generator = teacher.pipeline, torch.Generator().manual_seed(5)
    theirs = pipe(
        [7], guidance_scale=2.0, num_inference_steps=20, generator=generator, output_type="np"
    ).images
    tableau = ddim(teacher.schedule, diffusers_grid(pipe, False))
    ours = seven.sample(x_T, tableau=tableau)
    assert torch.equal(ours, teacher.sample(x_T, "class 7", tableau))
    ours = (seven.decode(ours) / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy()
    assert abs(ours - theirs).max() < 1e-4 and theirs.std() > 0.01


@pytest.mark.parametrize(
    "name",
    ["stable_diffusion", "stable_diffusion_v", "stable_diffusion_xl", "stable_diffusion_3", "flux"],
)
def test_text_pipelines(folder, name):
    v = {"prediction_type": "v_prediction"} if name == "stable_diffusion_v" else {}
    flow = name in ("stable_diffusion_3", "flux")
    teacher = load_diffusers_teacher(
        folder(name.removesuffix("_v"), **v), "cpu", prompts=PROMPTS, guidance_scale=2.0, size=16
    )
    assert teacher.denoiser.prediction == (
        "flow_prediction" if flow else "v_prediction" if v else "epsilon"
    )
    pipe = teacher.pipeline
    options = dict(
        prompt=PROMPTS[::-1],
        num_inference_steps=10,
        output_type="latent",
        height=16,
        width=16,
        guidance_scale=2.0,
        generator=[torch.Generator().manual_seed(seed) for seed in (5, 6)],
    )
    theirs = pipe(**options).images
    grid = ddim(teacher.schedule, diffusers_grid(pipe, flow))
    ours = teacher.generate([5, 6], PROMPTS[::-1], grid)
    assert ours.shape == theirs.shape and relative(ours, theirs) < 2e-4
    other = teacher.generate([5, 6], PROMPTS, grid)
    assert relative(other, theirs) > 2e-3, "the prompt has no effect"
    images = pipe(**(options | {"output_type": "np", "latents": theirs * 0})).images
    assert teacher.decode(ours).shape == (2, 3, 16, 16) == (2, 3, *images.shape[1:3])


def test_the_many_step_recipe_arrives_where_diffusers_arrives(folder):
    """UniPC with 20 steps and DDIM with 200 solve the same equation."""
    teacher = load_diffusers_teacher(
        folder("stable_diffusion"), "cpu", prompts=PROMPTS, guidance_scale=1.0
    )
    x_T = torch.randn(2, *teacher.shape, generator=torch.Generator().manual_seed(5))
    fine = teacher.pipeline(
        PROMPTS,
        num_inference_steps=200,
        latents=x_T,
        guidance_scale=1.0,
        output_type="latent",
        height=16,
        width=16,
    ).images
    assert relative(teacher.sample(x_T, PROMPTS), fine) < 0.02


def test_schedules():
    ours, prediction = schedule_from_scheduler(
        DDIMScheduler(rescale_betas_zero_snr=True, prediction_type="v_prediction")
    )
    assert prediction == "v_prediction" and 0 < ours.alpha(1.0) < ours.alpha(0.999) < 1e-4
    assert schedule_from_scheduler(
        DDIMScheduler(trained_betas=[0.1, 0.2, 0.3], num_train_timesteps=3)
    )[0] == NoiseSchedule.discrete(betas=[0.1, 0.2, 0.3])
    with pytest.raises(ValueError, match="says nothing about the image"):
        schedule_from_scheduler(DDIMScheduler(rescale_betas_zero_snr=True))


def test_text_teachers_have_prompts_as_classes(folder):
    teacher = load_diffusers_teacher(folder("stable_diffusion"), "cpu", prompts=PROMPTS, size=16)
    assert teacher.n_classes == 2 and teacher.random_conditions([0, 1, 2]).shape == (3,)
    other = teacher.with_prompts(["a cat"]).with_guidance(3.0)
    asked = dict(prompt="a cat", guidance_scale=3.0, height=16, width=16)
    assert other.class_names == ["a cat"] and other.calls == [asked]
    assert (
        other.config != teacher.config and json.loads(json.dumps(teacher.config)) == teacher.config
    )
    with pytest.raises(ValueError, match="'a house' is not among the classes"):
        teacher.generate(0, "a house")
    with pytest.raises(ValueError, match="which call"):
        teacher.generate(0)
    assert torch.equal(other.generate(0), other.generate(0, "a cat"))


def test_refusals(folder, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="neither a folder nor a hub id"):
        load_diffusers_teacher("nowhere at all", "cpu")
    with pytest.raises(ValueError, match="offline"):
        load_diffusers_teacher("nobody/no-such-pipeline", "cpu")
    broken = shutil.copytree(folder("ddpm"), tmp_path / "broken")
    weights = broken / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ValueError, match="cannot be loaded"):
        load_diffusers_teacher(broken, "cpu")
    weights.unlink()
    torch.save({"w": torch.ones(1)}, weights.with_suffix(".bin"))
    with pytest.raises(ValueError, match="cannot be loaded"):
        load_diffusers_teacher(broken, "cpu")
    kind = SCHEDULERS["LCMScheduler"]
    with pytest.raises(ValueError, match="LCMScheduler is not supported"):
        PipelineTeacher(pipelines.ddpm(scheduler=kind()))
    with pytest.raises(ValueError, match="no text encoder"):
        PipelineTeacher(pipelines.ddpm(), prompts=["a cat"])
    with pytest.raises(ValueError, match="DDPMPipeline takes no guidance_scale"):
        PipelineTeacher(pipelines.ddpm(), guidance_scale=2.0)


def test_damaged_folders(folder, tmp_path):
    """Each file of a pipeline empty, cut, of another kind,
    or gone; an index that names code of its own."""
    hostile = f"__import__('os').mkdir({str(tmp_path / 'ran')!r})"
    broken = shutil.copytree(folder("ddpm"), tmp_path / "broken")
    index = json.loads((broken / "model_index.json").read_text())

    def refused(message):
        with pytest.raises(ValueError, match=f"(?s)broken.*{message}"):
            load_teacher(broken, "cpu")

    for name in (
        "model_index.json",
        "scheduler/scheduler_config.json",
        "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors",
    ):
        whole = (broken / name).read_bytes()
        for data in (b"", b"[1]", whole[: len(whole) // 2], hostile.encode()):
            (broken / name).write_bytes(data)
            refused("model_index.json|cannot be loaded")
        (broken / name).unlink()
        refused("no config.json" if name == "model_index.json" else "cannot be loaded")
        (broken / name).write_bytes(whole)
    (broken / "pipeline.py").write_text(hostile)
    (broken / "unet" / "my_unet.py").write_text(hostile)
    for change, message in (
        (dict(_class_name="Nope"), "names no pipeline"),
        (dict(_class_name=["pipeline", "P"]), "names no pipeline"),
        (dict(_class_name="AutoencoderKL"), "names no pipeline"),
        (dict(unet=["my_unet", "X"]), "cannot be loaded"),
        (dict(unet=["os", "system"]), "cannot be loaded"),
        (dict(unet=None), "has no unet"),
        (dict(scheduler=None), "has no scheduler"),
    ):
        (broken / "model_index.json").write_text(json.dumps(index | change))
        refused(message)
    (broken / "model_index.json").write_text(json.dumps(index))
    save_edm(
        EDMPrecond(img_resolution=8, model_channels=8, channel_mult=(1, 2), num_blocks=1),
        broken / "unet" / "diffusion_pytorch_model.safetensors",
    )
    refused("lack some of the network's tensors")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            dict(prediction_type="score"),
            "prediction_type 'score' is not supported: the network has to predict epsilon, sample",
        ),
        (dict(rescale_betas_zero_snr=True), "says nothing about the image"),
        (dict(trained_betas=[1, 2]), "alphas_cumprod"),
        (
            dict(_class_name="KarrasVeScheduler"),
            "KarrasVeScheduler is not supported: it describes a variance-exploding process",
        ),
        (
            dict(_class_name="LCMScheduler"),
            "LCMScheduler is not supported: it describes a consistency or distilled model",
        ),
    ],
)
def test_unsupported_schedulers_in_a_folder(folder, tmp_path, change, message):
    broken = shutil.copytree(folder("ddpm"), tmp_path / "broken")
    config, index = broken / "scheduler" / "scheduler_config.json", broken / "model_index.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | change))
    if "_class_name" in change:
        index.write_text(
            json.dumps(
                json.loads(index.read_text()) | {"scheduler": ["diffusers", change["_class_name"]]}
            )
        )
    with pytest.raises(ValueError, match=f"broken.*{message}"):
        load_teacher(broken, "cpu")


def test_zero_terminal_snr_runs_end_to_end():
    """A velocity network on a schedule without signal at
    t=1: the same samples as diffusers' own scheduler makes."""
    pipe = pipelines.stable_diffusion(
        prediction_type="v_prediction", rescale_betas_zero_snr=True, timestep_spacing="trailing"
    )
    teacher = PipelineTeacher(pipe, prompts=PROMPTS, guidance_scale=2.0, size=16)
    x_T = torch.randn(2, *teacher.shape, generator=torch.Generator().manual_seed(5))
    theirs = pipe(
        PROMPTS,
        num_inference_steps=10,
        latents=x_T,
        guidance_scale=2.0,
        output_type="latent",
        height=16,
        width=16,
    ).images
    ours = teacher.sample(x_T, PROMPTS, ddim(teacher.schedule, diffusers_grid(pipe, False)))
    assert relative(ours, theirs) < 2e-3 and theirs.std() > 0.01
    assert teacher.sample(x_T, PROMPTS).isfinite().all()


def test_load_teacher_finds_the_right_loader(folder, tmp_path):
    teacher = load_teacher(folder("ddpm"), "cpu", batch_size=3)
    assert isinstance(teacher, PipelineTeacher) and teacher.batch_size == 3
    assert (
        load_teacher(str(folder("stable_diffusion")), "cpu", prompts=PROMPTS).class_names == PROMPTS
    )
    save_edm(
        EDMPrecond(
            img_resolution=8,
            model_channels=8,
            channel_mult=(1, 2),
            num_blocks=1,
            attn_resolutions=(4,),
        ),
        tmp_path / "net.safetensors",
    )
    assert load_teacher(tmp_path / "net.safetensors", "cpu").shape == (3, 8, 8)
    assert load_teacher("cifar10", "cpu", weights=tmp_path / "net.safetensors").tableau.nfe == 20
    assert tuple(SETTINGS) == PAPER_SETTINGS
    with pytest.raises(ValueError, match="cifar10 needs weights"):
        load_teacher("cifar10", "cpu")
    with pytest.raises(ValueError, match="offline"):
        load_teacher("nobody/no-such-pipeline", "cpu")
    with pytest.raises(ValueError, match="is not a file"):
        load_teacher(tmp_path / "none.pkl", "cpu")
    with pytest.raises(ValueError, match="teacher ''"):
        load_teacher("", "cpu")


def test_a_distilled_pipeline(folder):
    """Text-conditional, guided: the training loop takes the
    teacher as it takes the embedded ones."""
    teacher = load_diffusers_teacher(
        folder("stable_diffusion"), "cpu", prompts=PROMPTS, guidance_scale=2.0, size=16
    )
    config = TrainConfig(
        teacher="sd",
        nfe=3,
        adversarial_weight=0.0,
        n_pairs=16,
        n_val=8,
        fit_pairs=8,
        fit_steps=2,
        device="cpu",
    )
    records = list(train(config, teacher))
    assert records[-1].val_loss <= records[0].val_loss and records[-1].tableau.nfe == 3


def test_half_precision_networks(folder):
    teacher = load_diffusers_teacher(
        folder("stable_diffusion"), "cpu", dtype=torch.bfloat16, prompts=PROMPTS, size=16
    )
    out = teacher.generate([0, 1], "a bag")
    assert (
        out.dtype == torch.float32
        and out.isfinite().all()
        and teacher.decode(out).dtype == torch.float32
    )


def test_adam_on_a_flow_model():
    """No trouble at t=1, where a flow model has no signal: it starts
    from DDIM, every parameter that is used moves, the loss falls."""
    schedule, centres = (
        NoiseSchedule.flow(1000.0),
        torch.tensor([[1.0, -1.0], [-1.0, 0.5], [0.3, 1.2]]),
    )

    def net(x, time):
        """Exact velocity of a mixture of Gaussians of width 0.2."""
        t = time[:, None] / 1000
        v = (1 - t) ** 2 * 0.04 + t**2
        near = (
            torch.softmax(-((x[:, None] - (1 - t)[:, None] * centres) ** 2).sum(-1) / (2 * v), 1)
            @ centres
        )
        return (t * (x - (1 - t) * near) - (1 - t) * 0.04 * x - t**2 * near) / v

    recipe = dict(solver="dpm_solver_pp", nfe=40, spacing="time_uniform", t_eps=1e-3, order=2)
    teacher = Teacher("flow", Denoiser(net, schedule, "flow_prediction"), (2,), recipe)
    config = TrainConfig(
        teacher="flow",
        nfe=4,
        method="adam",
        iterations=50,
        lr=1e-2,
        adversarial_weight=0.0,
        n_pairs=100,
        n_val=50,
        val_every=50,
        ema=0.9,
        device="cpu",
    )
    training, held_out = make_training_pairs(config, teacher)
    start, grid = TrainState(config, teacher).solver, spacing(schedule, 4, "time_uniform")
    torch.testing.assert_close(
        start.tableau().C.detach(), ddim(schedule, grid).C, rtol=1e-9, atol=1e-12
    )
    records = list(train(config, teacher, pairs=(training, held_out)))
    solver = records[-1].state.solver
    for name, used in solver.used.items():
        moved = dict(solver.named_parameters())[name] != dict(start.named_parameters())[name]
        assert torch.equal(moved, used), name
    plain = measure(teacher, ddim(schedule, grid), held_out)[0]["l1"]
    published = measure(teacher, GeneralizedSolver(schedule, 4).tableau(), held_out)[0]["l1"]
    assert records[-1].val_loss < 0.7 * plain < 0.7 * published


# --- every scheduler of diffusers is read right, or refused in words


def scheduler_classes():
    """Those that this environment can make with their defaults, by name."""
    import diffusers
    from diffusers.schedulers.scheduling_utils import SchedulerMixin

    made = {}
    for name in sorted(n for n in dir(diffusers) if n.endswith("Scheduler")):
        kind = getattr(diffusers, name)
        try:
            made[name] = kind if issubclass(kind, SchedulerMixin) and kind() is not None else None
        except (TypeError, ImportError):  # needs arguments, or a package that is not here
            continue
    return {name: kind for name, kind in made.items() if kind}


SCHEDULERS = scheduler_classes()
# Deterministic solvers of the equation: the rest add noise, invert, or repaint.
SOLVERS = (
    "CogVideoXDDIM",
    "DDIM",
    "DDIMParallel",
    "DEISMultistep",
    "DPMSolverMultistep",
    "DPMSolverSinglestep",
    "EulerDiscrete",
    "FlowMatchEulerDiscrete",
    "FlowMatchHeunDiscrete",
    "HeunDiscrete",
    "KDPM2Discrete",
    "LMSDiscrete",
    "PNDM",
    "UniPCMultistep",
    "EDMEuler",
    "EDMDPMSolverMultistep",
)

BY_ITS_STEPS = ("MiniMaxH3Scheduler",)  # whose config says nothing


def read(scheduler):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return schedule_from_scheduler(scheduler)


@pytest.mark.parametrize("name", list(SCHEDULERS))
def test_every_scheduler_is_read_right_or_refused_in_words(name):
    scheduler = SCHEDULERS[name]()
    try:
        schedule, prediction = read(scheduler)
    except ValueError as e:
        assert "is not supported" in str(e) and name in str(e)
        assert name.removesuffix("Scheduler") not in SOLVERS
        return
    if name in BY_ITS_STEPS:
        assert schedule == NoiseSchedule.flow(1.0, inverted=True)
        assert prediction == "minus_flow_prediction"
        return
    saved = {
        k: v for k, v in scheduler.config.items() if k in ("num_train_timesteps", "beta_schedule")
    }
    assert read(dict(saved, _class_name=name))[0] == schedule, (
        "the defaults of another class for a config that leaves them out"
    )
    if schedule.config["kind"] == "flow":
        assert schedule == NoiseSchedule.flow(1000.0) and prediction == "flow_prediction"
        return
    if schedule.config["kind"] == "edm":
        assert (schedule.sigma_data, prediction) == (0.5, "minus_v_prediction")
        return
    t = torch.arange(1, 1001, dtype=torch.float64) / 1000
    assert (schedule.alpha(t) ** 2 - scheduler.alphas_cumprod.double()).abs().max() < 2e-5
    assert (schedule.net_time(t) - torch.arange(1000)).abs().max() < 1e-9


def gaussian(reading, spread=0.5):
    """The exact network for data N(0, spread^2), asked at
    the network's time, and where x at that time lands."""

    def moments(net_time):
        t = torch.tensor(reading.time(float(net_time)), dtype=torch.float64)
        alpha, sigma = reading.schedule.alpha(t), reading.schedule.sigma(t)
        return alpha, sigma, alpha**2 * spread**2 + sigma**2

    def net(x, net_time):
        alpha, sigma, v = moments(net_time)
        epsilon, x_0 = sigma / v, alpha * spread**2 / v
        outputs = {
            "epsilon": epsilon,
            "sample": x_0,
            "v_prediction": alpha * epsilon - sigma * x_0,
            "flow_prediction": epsilon - x_0,
        }
        sign = -1 if reading.prediction.startswith("minus_") else 1
        return x * sign * outputs[reading.prediction.removeprefix("minus_")]

    return net, lambda x, net_time: x * (spread / moments(net_time)[2].sqrt())


CASES = [(name, {}) for name in SOLVERS] + [
    (
        "DDIM",
        dict(
            prediction_type="v_prediction", rescale_betas_zero_snr=True, timestep_spacing="trailing"
        ),
    ),
    ("CogVideoXDDIM", dict(snr_shift_scale=1.0, prediction_type="v_prediction")),
    (
        "EulerDiscrete",
        dict(
            beta_schedule="scaled_linear",
            beta_start=0.00085,
            beta_end=0.012,
            use_karras_sigmas=True,
        ),
    ),
    ("EulerDiscrete", dict(prediction_type="v_prediction")),
    ("UniPCMultistep", dict(beta_schedule="squaredcos_cap_v2", prediction_type="sample")),
    (
        "UniPCMultistep",
        dict(use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=3.0),
    ),
    ("DPMSolverMultistep", dict(use_flow_sigmas=True, prediction_type="flow_prediction")),
    ("DPMSolverMultistep", dict(use_lu_lambdas=True, final_sigmas_type="sigma_min")),
    ("FlowMatchEulerDiscrete", dict(shift=3.0, shift_terminal=0.02)),
    ("FlowMatchEulerDiscrete", dict(invert_sigmas=True)),
    ("EDMEuler", dict(sigma_data=1.0, sigma_max=20.0)),
    ("EDMEuler", dict(prediction_type="v_prediction")),
    (
        "EulerDiscrete",
        dict(timestep_type="continuous", prediction_type="v_prediction", sigma_max=80.0),
    ),
    ("MiniMaxH3", {}),
]


@pytest.mark.parametrize(
    ("name", "options"), CASES, ids=lambda v: v if isinstance(v, str) else "-".join(v)
)
def test_what_a_scheduler_does_with_the_exact_network_is_what_its_schedule_says(name, options):
    """A network that is exact for the schedule we read, in the
    scheduler's own many-step loop, lands where the equation lands."""
    kind = SCHEDULERS[name + "Scheduler"]
    clip = dict(clip_sample=False) if "clip_sample" in kind().config else {}
    scheduler = kind(**clip, **options)
    reading = read_scheduler(scheduler)
    net, landing = gaussian(reading)
    scheduler.set_timesteps(
        200 if "use_flow_sigmas" in options else 500
    )  # more, and its rounded timesteps repeat

    def seen(x, t):
        scale = getattr(scheduler, "scale_model_input", None)
        return x if scale is None else scale(x, t)

    x = torch.linspace(-1, 1, 5, dtype=torch.float64)[None, None]
    x = x * float(getattr(scheduler, "init_noise_sigma", 1.0))
    first = scheduler.timesteps[0]
    lands = reading.unit * landing(seen(x, first), first)
    for t in scheduler.timesteps:
        x = scheduler.step(net(seen(x, t), t), t, x, return_dict=False)[0]
    assert relative(x, lands) < 0.05


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (
            "EulerDiscrete",
            dict(timestep_type="continuous"),
            "a network asked at log sigma has to predict v_prediction",
        ),
        (
            "EulerDiscrete",
            dict(interpolation_type="log_linear"),
            "at times that its noise levels do not have",
        ),
        ("FlowMatchEulerDiscrete", dict(stochastic_sampling=True), "stochastic_sampling=True"),
        ("UniPCMultistep", dict(prediction_type="flow_prediction"), "without use_flow_sigmas"),
        (
            "UniPCMultistep",
            dict(use_flow_sigmas=True),
            "use_flow_sigmas with prediction_type 'epsilon'",
        ),
        (
            "UniPCMultistep",
            dict(use_flow_sigmas=True, prediction_type="v_prediction"),
            "use_flow_sigmas with prediction_type",
        ),
    ],
)
def test_what_changes_the_process_is_refused_by_name(name, options, message):
    with pytest.raises(ValueError, match=message):
        schedule_from_scheduler(SCHEDULERS[name + "Scheduler"](**options))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(warp_scale=2.0), "warp_scale=2.0: it may change what the network was trained with"),
        (dict(beta_start="a"), "beta_start='a': need a number between 0 and 1"),
        (dict(beta_end=None), "beta_end=None"),
        (dict(beta_end=float("nan")), "beta_end=nan"),
        (dict(num_train_timesteps=10**12), "1000000000000 training timesteps"),
        (dict(num_train_timesteps="1000"), "'1000' training timesteps"),
        (dict(trained_betas="abc"), "trained_betas='abc': need a list"),
        (dict(trained_betas=[0.1] * 5), "for 1000 training timesteps"),
        (dict(snr_shift_scale=-1), "snr_shift_scale=-1"),
        (dict(beta_schedule=["linear"]), "beta_schedule"),
        (
            dict(use_flow_sigmas=True, prediction_type="flow_prediction", num_train_timesteps=None),
            "num_train_timesteps=None",
        ),
    ],
)
def test_configs_that_cannot_be_read_name_the_key(change, message):
    config = dict(DDIMScheduler(clip_sample=False).config, _class_name="DDIMScheduler")
    with pytest.raises(ValueError, match=message):
        schedule_from_scheduler(config | change)


def test_what_is_no_scheduler_is_refused():
    for wrong in (None, 3, "folder", object(), []):
        with pytest.raises(ValueError, match="is no scheduler"):
            schedule_from_scheduler(wrong)
    with pytest.raises(ValueError, match="no num_train_timesteps"):
        schedule_from_scheduler({})


def test_keys_that_are_off_or_only_about_sampling_are_no_trouble():
    config = dict(DDIMScheduler(clip_sample=False).config, _class_name="DDIMScheduler")
    plain = schedule_from_scheduler(config)[0]
    harmless = dict(
        use_karras_sigmas=True,
        final_sigmas_type="zero",
        flow_shift=3.0,
        new_option=False,
        another=None,
    )
    assert schedule_from_scheduler(config | harmless)[0] == plain
    carried = schedule_from_scheduler(config | dict(snr_shift_scale=3.0))[
        0
    ]  # by another class's config, for the network's sake
    assert carried.alpha(0.5) < plain.alpha(0.5)


def test_a_table_that_is_not_its_configs_is_refused():
    scheduler = DDIMScheduler(clip_sample=False)
    scheduler.alphas_cumprod = scheduler.alphas_cumprod**2
    with pytest.raises(ValueError, match="alphas_cumprod is not what its config says"):
        schedule_from_scheduler(scheduler)


def test_clipping_is_told():
    with pytest.warns(UserWarning, match="clip_sample: DDIMScheduler clips every prediction"):
        schedule_from_scheduler(DDIMScheduler())
    with pytest.warns(UserWarning, match="thresholding"):
        schedule_from_scheduler(SCHEDULERS["UniPCMultistepScheduler"](thresholding=True))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        schedule_from_scheduler(DDIMScheduler(clip_sample=False))
