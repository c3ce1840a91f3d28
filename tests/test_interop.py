"""Published GAS files in, and solvers out into diffusers' pipelines."""

import gas_nb.runtime.device  # noqa: F401  (before diffusers)

import ast
import copy
import io
import json
import os
import pickle
import re
import threading
import types
from pathlib import Path

import numpy as np
import nvidia_pickle
import pipelines
import pytest
import torch
from diffusers import (
    DDIMPipeline,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    StableDiffusionImg2ImgPipeline,
    UNet2DModel,
    UniPCMultistepScheduler,
    configuration_utils,
)
from golden import GOLDEN, load, make_schedule, relative_error

from gas_nb.classic import classic_tableau, ddim, dpm_solver_pp
from gas_nb.denoiser import PREDICTIONS, Denoiser
from gas_nb.discriminator import Discriminator
from gas_nb.interop import (
    GASScheduler,
    compact_schedule,
    expand_schedule,
    load_published_checkpoint,
    load_published_dataset,
    load_published_discriminator,
    model_card,
    plain_card,
    shipped_scheduler,
    start_at,
)
from gas_nb.runtime.pickles import Unreadable, read_checkpoint, read_pickle
from gas_nb.schedule import NoiseSchedule, spacing
from gas_nb.solver import GeneralizedSolver
from gas_nb.tableau import Tableau, same_schedule, sample
from gas_nb.teacher import Teacher, load_teacher
from gas_nb.teachers.diffusers import PipelineTeacher
from gas_nb.teachers.reading import schedule_from_scheduler
from gas_nb.training import TrainConfig, TrainState

CHECKPOINTS = json.loads((GOLDEN / "official_checkpoints.json").read_text())
with np.load(GOLDEN / "official_checkpoints.npz") as z:
    CHECKPOINT_DATA = {k: torch.from_numpy(z[k]) for k in z.files}
with np.load(GOLDEN / "official_datasets.npz") as z:
    DATASETS = {k: z[k] for k in z.files}
SCHEDULES = {
    "sd": dict(kind="discrete", betas="linspace(0.00085**0.5, 0.012**0.5, 1000)**2"),
    "vp_linear": dict(kind="vp_linear", beta_0=0.1, beta_1=20.0),
}


class MakesFolder:
    """What a hostile file does when it is unpickled: the folder shows that it ran."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


# --- published files in


@pytest.mark.parametrize("case", CHECKPOINTS, ids=lambda c: c["case"])
def test_published_checkpoint(case):
    """The published code computed its coefficients in float32,
    ours are float64: on the second case that alone is 3e-5."""
    schedule = make_schedule(SCHEDULES[case["schedule"]])
    solver = load_published_checkpoint(
        GOLDEN / case["file"], schedule, t_eps=case["t_eps"], theory=case["theory"]
    )
    assert (solver.nfe, solver.order) == (case["nfe"], case["order"])
    data = {
        k.split(".", 1)[1]: v
        for k, v in CHECKPOINT_DATA.items()
        if k.startswith(case["case"] + ".")
    }

    def net(x, t):
        hidden = torch.tanh(
            x.flatten(1) @ data["net.W1"] + (t / case["net_time_scale"])[:, None] * data["net.b"]
        )
        return (hidden @ data["net.W2"]).reshape(x.shape)

    assert relative_error(solver.times.detach().float(), data["timesteps"]) < 1e-6
    with torch.no_grad():
        x_0 = solver.sample(Denoiser(net, schedule, case["prediction"]), data["x_T"])
    assert relative_error(x_0, data["x_0"]) < 1e-4


def test_the_ema_values_are_the_ones_taken():
    content = torch.load(GOLDEN / CHECKPOINTS[0]["file"], weights_only=True)
    solver = load_published_checkpoint(
        GOLDEN / CHECKPOINTS[0]["file"], make_schedule(SCHEDULES["sd"])
    )
    assert torch.equal(solver.time_logits.detach(), content["ema"]["shadow_params"][0].double())
    assert not torch.equal(solver.time_logits.detach(), content["model"][0].detach().double())


def test_checkpoints_that_do_not_fit(tmp_path):
    schedule, path = make_schedule(SCHEDULES["sd"]), GOLDEN / CHECKPOINTS[0]["file"]
    with pytest.raises(ValueError, match="nfe=4, you asked for nfe=5"):
        load_published_checkpoint(path, schedule, nfe=5)
    with pytest.raises(ValueError, match="order=4, you asked for order=2"):
        load_published_checkpoint(path, schedule, order=2)
    with pytest.raises(ValueError, match="does not exist"):
        load_published_checkpoint(tmp_path / "none.pt", schedule)
    content = torch.load(path, weights_only=True)
    bad = {
        "shadow_params": {"ema": {}},
        "13 entries": {"ema": {"shadow_params": [torch.zeros(3)] * 13}},
        "has shape": {
            "ema": {"shadow_params": content["ema"]["shadow_params"][:-1] + [torch.zeros(5)]}
        },
        "not finite": {
            "ema": {
                "shadow_params": content["ema"]["shadow_params"][:-1]
                + [torch.full((4,), torch.nan)]
            }
        },
        'shadow_params" under': [1, 2],
    }
    for message, data in bad.items():
        torch.save(data, tmp_path / "bad.pt")
        with pytest.raises(ValueError, match=message):
            load_published_checkpoint(tmp_path / "bad.pt", schedule)


def test_hostile_and_damaged_checkpoints(tmp_path):
    schedule, whole = make_schedule(SCHEDULES["sd"]), (GOLDEN / CHECKPOINTS[0]["file"]).read_bytes()
    torch.save({"ema": {"shadow_params": MakesFolder(tmp_path / "ran")}}, tmp_path / "hostile.pt")
    with pytest.raises(Unreadable, match=r"hostile\.pt is refused: it asks for posix\.mkdir"):
        load_published_checkpoint(tmp_path / "hostile.pt", schedule)
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(MakesFolder(tmp_path / "ran")))
    with pytest.raises(Unreadable, match="plain.pt"):
        load_published_checkpoint(tmp_path / "plain.pt", schedule)
    for n in (0, 1, 100, len(whole) // 2, len(whole) - 1):
        (tmp_path / "cut.pt").write_bytes(whole[:n])
        with pytest.raises(Unreadable, match="damaged"):
            load_published_checkpoint(tmp_path / "cut.pt", schedule)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cut.pt", "hostile.pt", "plain.pt"]


@pytest.mark.parametrize("kind", ["pixel", "text"])
def test_published_dataset(kind):
    data = load_published_dataset(GOLDEN / f"official_dataset_{kind}.pkl")
    for name in ("noise", "images", "latents"):
        expected = DATASETS.get(f"{kind}.{name}")
        assert (
            getattr(data, name) is None
            if expected is None
            else np.array_equal(getattr(data, name).numpy(), expected)
        )
    if kind == "pixel":
        pairs = data.pairs()
        assert (
            data.condition is None
            and torch.equal(pairs.x_0, data.images)
            and pairs.condition is None
        )
    else:
        assert data.condition == DATASETS["text.condition"].tolist()
        pairs = data.pairs(lambda captions: {"states": torch.ones(len(captions), 2)})
        assert torch.equal(pairs.x_0, data.latents) and pairs.condition["states"].shape == (6, 2)
        with pytest.raises(ValueError, match="give encode"):
            data.pairs()


def test_datasets_with_classes(tmp_path):
    noise, labels = torch.randn(3, 4, 2, 2), [torch.tensor(7), torch.tensor(1), torch.tensor(0)]
    for condition in (labels, [7, 1, 0], torch.stack(labels)):
        content = dict(noise=noise, latents=noise * 2, images=[None] * 3, condition=condition)
        (tmp_path / "d.pkl").write_bytes(pickle.dumps(content))
        data = load_published_dataset(tmp_path / "d.pkl")
        assert data.pairs().condition.tolist() == [7, 1, 0] and data.images is None


def test_datasets_that_do_not_fit(tmp_path):
    noise = torch.randn(3, 2)
    bad = {
        "neither": dict(noise=noise),
        'no "noise"': dict(images=noise),
        "its samples": dict(noise=noise, images=torch.ones(3, 4)),
        "different lengths": dict(noise=noise, images=noise, condition=[1, 2]),
        "not finite": dict(noise=noise, images=noise / 0 * 0),
        "mixes": dict(noise=noise, images=noise, condition=[1, "a", None]),
        "holds list": [noise],
        "no floats": dict(noise=noise, images=["a", "b", "c"]),
    }
    for message, content in bad.items():
        (tmp_path / "bad.pkl").write_bytes(pickle.dumps(content))
        with pytest.raises(ValueError, match=message):
            load_published_dataset(tmp_path / "bad.pkl")


def test_hostile_and_damaged_datasets(tmp_path):
    ran, whole = tmp_path / "ran", (GOLDEN / "official_dataset_pixel.pkl").read_bytes()
    inner = io.BytesIO()
    torch.save(MakesFolder(ran), inner, _use_new_zipfile_serialization=False)

    class Nested:
        def __reduce__(self):
            return torch.storage._load_from_bytes, (inner.getvalue(),)

    class ByAttribute:
        def __reduce__(self):
            return getattr, ("text", "upper")

    hostile = {
        "mkdir": MakesFolder(ran),
        "mkdir ": Nested(),
        "getattr": ByAttribute(),
        "eval": None,
    }
    for protocol in range(2, 6):
        for name, thing in hostile.items():
            text = (
                pickle.dumps(dict(noise=torch.ones(2), images=[thing]), protocol)
                if thing
                else b"c__builtin__\neval\n(S'1'\ntR."
            )
            (tmp_path / "h.pkl").write_bytes(text)
            with pytest.raises(Unreadable, match=name.strip()):
                load_published_dataset(tmp_path / "h.pkl")
    for n in (0, 1, 50, len(whole) // 2, len(whole) - 1):
        (tmp_path / "h.pkl").write_bytes(whole[:n])
        with pytest.raises(Unreadable, match="not a complete pickle"):
            load_published_dataset(tmp_path / "h.pkl")
    assert [p.name for p in tmp_path.iterdir()] == ["h.pkl"]


def test_tensors_stay_inside_their_storage(tmp_path):
    """Sizes and strides come from the file: they may not reach
    into memory that is not theirs, nor ask for terabytes."""
    storage = torch.arange(4.0)
    for offset, size, stride in (
        (0, (5,), (1,)),
        (2, (3,), (1,)),
        (0, (10**9,), (0,)),
        (-1, (2,), (1,)),
        (0, (2, 2), (3, 1)),
    ):

        class Wide:
            def __reduce__(self):
                return torch._utils._rebuild_tensor_v2, (
                    storage.storage(),
                    offset,
                    size,
                    stride,
                    False,
                    {},
                )

        (tmp_path / "w.pkl").write_bytes(pickle.dumps(Wide()))
        with pytest.raises(Unreadable, match="tensor of shape"):
            read_pickle(tmp_path / "w.pkl")


def published_discriminator(case):
    _, arrays = load("r3gan_discriminator")
    prefix = case["case"] + "."
    data = {k[len(prefix) :]: v for k, v in arrays.items() if k.startswith(prefix)}
    return {k[6:]: v for k, v in data.items() if k.startswith("state.")}, data


def test_published_discriminator(tmp_path):
    cases, _ = load("r3gan_discriminator")
    for case in cases:
        state, data = published_discriminator(case)
        torch.save({"Model." + k: v for k, v in state.items()}, tmp_path / "d.pt")
        net = load_published_discriminator(tmp_path / "d.pt")
        with torch.no_grad():
            assert relative_error(net(data["real"]), data["real_logits"]) < 1e-9
    torch.save({"a": torch.ones(1)}, tmp_path / "d.pt")
    with pytest.raises(ValueError, match="R3GAN"):
        load_published_discriminator(tmp_path / "d.pt")


def test_published_discriminator_in_a_snapshot(tmp_path):
    state, data = published_discriminator(load("r3gan_discriminator")[0][0])
    nvidia_pickle.dump(tmp_path / "snapshot.pkl", "D", nvidia_pickle.tree(state), "Discriminator")
    net = load_published_discriminator(tmp_path / "snapshot.pkl")
    with torch.no_grad():
        assert relative_error(net(data["real"]), data["real_logits"]) < 1e-9


def test_hostile_and_damaged_discriminators(tmp_path):
    ran = tmp_path / "ran"
    state = {
        "Model." + k: v
        for k, v in published_discriminator(load("r3gan_discriminator")[0][0])[0].items()
    }
    torch.save(state, tmp_path / "good.pt")
    torch.save(state | {"x": MakesFolder(ran)}, tmp_path / "hostile.pt")
    (tmp_path / "hostile.pkl").write_bytes(pickle.dumps({"D": MakesFolder(ran)}))
    (tmp_path / "cut.pt").write_bytes((tmp_path / "good.pt").read_bytes()[:2000])
    (tmp_path / "empty.safetensors").write_bytes(b"")
    (tmp_path / "text.pkl").write_bytes(b"hello")
    (tmp_path / "noD.pkl").write_bytes(pickle.dumps({"G": 1}))
    (tmp_path / "number.pkl").write_bytes(pickle.dumps({"D": 1}))
    torch.save([1, 2], tmp_path / "list.pt")
    torch.save(dict(list(state.items())[:-3]), tmp_path / "less.pt")
    before = sorted(tmp_path.iterdir())
    names = {
        "hostile.pt": "posix.mkdir",
        "hostile.pkl": "posix.mkdir",
        "cut.pt": "damaged",
        "empty.safetensors": "cannot be read",
        "none.pt": "does not exist",
        "text.pkl": "not a complete pickle",
        "noD.pkl": 'no entry "D"',
        "number.pkl": "not a module",
        "list.pt": "holds list: give a state dictionary",
        "less.pt": "lacks",
    }
    for name, message in names.items():
        with pytest.raises(ValueError, match=f"(?s){name}.*{message}"):
            load_published_discriminator(tmp_path / name)
    assert sorted(tmp_path.iterdir()) == before


# --- solvers out


def random_solver(schedule, nfe, scale=0.02):
    solver = GeneralizedSolver(schedule, nfe)
    generator = torch.Generator().manual_seed(nfe)
    with torch.no_grad():
        for p in solver.parameters():
            p += scale * torch.randn(p.shape, dtype=p.dtype, generator=generator)
        return solver.tableau()


def solvers(schedule):
    """Two tableaus: a learned one with offsets, and UniPC."""
    if schedule.config["kind"] == "flow":
        return {
            n: dpm_solver_pp(schedule, spacing(schedule, n, "time_uniform"), order=2)
            for n in (4, 5)
        }
    return {5: random_solver(schedule, 5), 4: classic_tableau("unipc", schedule, 4)}


def to_images(x):
    return (x / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy()


@pytest.mark.parametrize("kind", [DDPMPipeline, DDIMPipeline])
def test_pixel_pipelines(kind):
    made = pipelines.ddpm()
    teacher = PipelineTeacher(made)
    pipe = pipelines.quiet(kind(unet=made.unet, scheduler=made.scheduler))
    pipe.scheduler = GASScheduler.from_tableau(solvers(teacher.schedule), teacher.schedule)
    for nfe, tableau in solvers(teacher.schedule).items():
        theirs = pipe(
            batch_size=3,
            num_inference_steps=nfe,
            generator=torch.Generator().manual_seed(1),
            output_type="np",
        ).images
        x_T = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(1))
        assert abs(theirs - to_images(teacher.sample(x_T, tableau=tableau))).max() <= 1e-5
        assert theirs.std() > 0.01


def test_class_conditional_latents_with_guidance():
    pipe = pipelines.dit()
    teacher = PipelineTeacher(pipe, guidance_scale=2.0)
    table = solvers(teacher.schedule)
    pipe.scheduler = GASScheduler.from_tableau(table, teacher.schedule)
    for nfe, tableau in table.items():
        theirs = [
            pipe(
                [label],
                guidance_scale=2.0,
                num_inference_steps=nfe,
                generator=torch.Generator().manual_seed(1),
                output_type="np",
            ).images
            for label in (3, 900)
        ]
        ours = to_images(teacher.decode(teacher.generate([1, 1], [3, 900], tableau)))
        assert abs(np.concatenate(theirs) - ours).max() <= 1e-5


@pytest.mark.parametrize(
    "name",
    ["stable_diffusion", "stable_diffusion_v", "stable_diffusion_xl", "stable_diffusion_3", "flux"],
)
def test_text_pipelines(name):
    v = dict(prediction_type="v_prediction") if name.endswith("_v") else {}
    pipe = getattr(pipelines, name.removesuffix("_v"))(**v)
    teacher = PipelineTeacher(pipe, prompts=["a shoe", "a bag"], guidance_scale=2.0, size=16)
    table = solvers(teacher.schedule)
    pipe.scheduler = GASScheduler.from_tableau(table, teacher.schedule, teacher.denoiser.prediction)
    for nfe, tableau in table.items():
        theirs = pipe(
            prompt=["a shoe", "a bag"],
            num_inference_steps=nfe,
            height=16,
            width=16,
            guidance_scale=2.0,
            generator=[torch.Generator().manual_seed(seed) for seed in (1, 2)],
            output_type="np",
        ).images
        ours = teacher.generate([1, 2], ["a shoe", "a bag"], tableau)
        assert abs(theirs - to_images(teacher.decode(ours))).max() <= 1e-5
        assert theirs.std() > 0.01


@pytest.mark.parametrize("strength", [0.5, 0.8, 1.0])
def test_image_to_image(strength):
    made = pipelines.stable_diffusion()
    pipe = pipelines.quiet(
        StableDiffusionImg2ImgPipeline(**made.components, requires_safety_checker=False)
    )
    teacher = PipelineTeacher(made, prompts=["a shoe"], guidance_scale=2.0, size=16)
    tableau = random_solver(teacher.schedule, 5)
    pipe.scheduler = GASScheduler.from_tableau(tableau, teacher.schedule)
    image = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(2))
    theirs = pipe(
        "a shoe",
        image,
        strength=strength,
        num_inference_steps=5,
        guidance_scale=2.0,
        generator=torch.Generator().manual_seed(3),
        output_type="np",
    ).images
    b = 5 - int(5 * strength)
    generator = torch.Generator().manual_seed(3)
    clean = (
        made.vae.encode(2 * image - 1).latent_dist.sample(generator)
        * made.vae.config.scaling_factor
    )
    t = tableau.times[b]
    x_b = teacher.schedule.alpha(t).float() * clean + teacher.schedule.sigma(
        t
    ).float() * torch.randn(clean.shape, generator=generator)
    ours = teacher.sample(x_b, "a shoe", start_at(tableau, teacher.schedule, b))
    assert abs(theirs - to_images(teacher.decode(ours))).max() <= 1e-5


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_every_prediction_type(prediction):
    """A network that predicts anything, in the loop that pipelines run."""
    schedule = NoiseSchedule.vp_linear(net_time_scale=1000.0)
    denoiser = Denoiser(lambda x, t: torch.tanh(x * 0.7 + t[:, None] / 1000), schedule, prediction)
    tableau, x_T = (
        random_solver(schedule, 6),
        torch.randn(3, 5, generator=torch.Generator().manual_seed(0)),
    )
    scheduler = GASScheduler.from_tableau(tableau, schedule, prediction)
    scheduler.set_timesteps(6)
    x = x_T * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        x = scheduler.step(
            denoiser.net(scheduler.scale_model_input(x, t), t.expand(3)), t, x, return_dict=False
        )[0]
    assert relative_error(x, sample(denoiser, x_T, tableau)) < 1e-5


def run(scheduler, x, dtype=torch.float32, steps=None):
    for t in scheduler.timesteps if steps is None else scheduler.timesteps[steps]:
        x = scheduler.step(torch.tanh(x + t.to(x.dtype) / 1000), t, x).prev_sample
    return x


def test_calls_do_not_leak_into_each_other():
    schedule = NoiseSchedule.vp_linear(net_time_scale=1000.0)
    scheduler = GASScheduler.from_tableau(random_solver(schedule, 5), schedule)
    scheduler.set_timesteps(5)
    x = torch.randn(2, 3, generator=torch.Generator().manual_seed(0))
    first = run(scheduler, x)
    assert torch.equal(run(scheduler, x), first), "a second run without set_timesteps"
    run(scheduler, x, steps=slice(0, 3))
    assert torch.equal(run(scheduler, x), first), "after a run that was left in the middle"
    late = run(scheduler, x, steps=slice(2, None))
    assert torch.equal(run(scheduler, x, steps=slice(2, None)), late) and torch.equal(
        run(scheduler, x), first
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions(dtype):
    schedule = NoiseSchedule.vp_linear(net_time_scale=1000.0)
    scheduler = GASScheduler.from_tableau(classic_tableau("unipc", schedule, 5), schedule)
    scheduler.set_timesteps(5)
    x = torch.randn(2, 3, generator=torch.Generator().manual_seed(0))
    out = run(scheduler, x.to(dtype))
    assert out.dtype == dtype and relative_error(out.float(), run(scheduler, x)) < {
        torch.float64: 1e-5
    }.get(dtype, 0.05)


@pytest.mark.cuda
def test_on_a_gpu():
    made = pipelines.ddpm()
    teacher = PipelineTeacher(made.to("cuda"))
    made.scheduler = GASScheduler.from_tableau(solvers(teacher.schedule), teacher.schedule)
    theirs = made(
        batch_size=2,
        num_inference_steps=5,
        generator=torch.Generator().manual_seed(1),
        output_type="np",
    ).images
    x_T = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    assert (
        abs(
            theirs - to_images(teacher.sample(x_T, tableau=solvers(teacher.schedule)[5]).cpu())
        ).max()
        <= 1e-5
    )


def test_add_noise_uses_the_time_of_the_state():
    schedule = NoiseSchedule.discrete(betas=torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64))
    tableau, x, eps = random_solver(schedule, 5), torch.randn(3, 1, 2, 2), torch.randn(3, 1, 2, 2)
    scheduler = GASScheduler.from_tableau(tableau, schedule)
    theirs = DDPMScheduler().add_noise(x, eps, torch.tensor([0, 500, 999]))
    assert relative_error(scheduler.add_noise(x, eps, torch.tensor([0, 500, 999])), theirs) < 1e-5
    scheduler.set_timesteps(5)
    ours = scheduler.add_noise(x, eps, scheduler.timesteps[2:3].expand(3))
    t = tableau.times[2].item()
    assert relative_error(ours, (schedule.alpha(t) * x + schedule.sigma(t) * eps).float()) < 1e-6
    assert torch.equal(scheduler.scale_noise(x, scheduler.timesteps[2:3], eps), ours)


def test_starting_in_the_middle_of_a_first_order_solver_is_its_tail():
    schedule = NoiseSchedule.vp_linear()
    table = ddim(schedule, spacing(schedule, 5))
    tail = start_at(table, schedule, 2)
    assert (
        torch.allclose(tail.A, table.A[2:, 2:])
        and torch.allclose(tail.C, table.C[2:, 2:])
        and torch.equal(tail.times, table.times[2:])
    )
    assert start_at(table, schedule, 0) == table


def test_save_and_load(tmp_path):
    schedule = NoiseSchedule.discrete(betas=torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64))
    tables = [random_solver(schedule, n) for n in (4, 5, 6, 8, 10)]
    card = dict(
        teacher="fmnist", license="apache-2.0", figures=[dict(solver="gas", nfe=4, l1=0.03125)]
    )
    scheduler = GASScheduler.from_tableau(tables, schedule, card=card)
    scheduler.save_pretrained(tmp_path / "solvers")
    assert sorted(p.name for p in (tmp_path / "solvers").iterdir()) == [
        "README.md",
        "gas_scheduler.py",
        "scheduler_config.json",
    ]
    assert (tmp_path / "solvers" / "scheduler_config.json").stat().st_size < 16_000
    again = GASScheduler.from_pretrained(tmp_path / "solvers")
    assert again.nfes == [4, 5, 6, 8, 10] and all(again.tableaus[t.nfe] == t for t in tables)
    assert (
        again.config.card == card
        and again.config.prediction_type == "epsilon"
        and len(again) == 1000
    )
    readme = (tmp_path / "solvers" / "README.md").read_text()
    for text in (
        "fmnist",
        "4, 5, 6, 8, 10",
        "| gas | 4 | 0.03125 |",
        "GASScheduler.from_pretrained('solvers')",
        "library_name: diffusers",
        'license: "apache-2.0"',
    ):
        assert text in readme
    assert readme.startswith("---\n") and model_card(again, "solvers") == readme


def test_a_pipeline_keeps_the_scheduler_when_it_is_saved(tmp_path):
    pipe = pipelines.ddpm()
    teacher = PipelineTeacher(pipe)
    pipe.scheduler = GASScheduler.from_tableau(random_solver(teacher.schedule, 4), teacher.schedule)
    pipe.save_pretrained(tmp_path)
    again = pipelines.quiet(DiffusionPipeline.from_pretrained(tmp_path))
    assert isinstance(again.scheduler, GASScheduler)
    written = json.loads((tmp_path / "model_index.json").read_text())["scheduler"]
    assert written == ["gas_nb.interop", "GASScheduler"]
    options = dict(num_inference_steps=4, output_type="np")
    a, b = (p(generator=torch.Generator().manual_seed(0), **options).images for p in (pipe, again))
    assert np.array_equal(a, b)


def test_schedules_are_written_in_few_words():
    sd = make_schedule(SCHEDULES["sd"])
    assert compact_schedule(sd) == dict(
        kind="discrete", beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, n=1000
    )
    odd = NoiseSchedule.discrete(betas=torch.linspace(0.01, 0.3, 7).sqrt())
    for schedule in (sd, odd, NoiseSchedule.vp_edm(), NoiseSchedule.flow(1000.0)):
        back = expand_schedule(json.loads(json.dumps(compact_schedule(schedule))))
        t = torch.linspace(0.15, 0.999, 50, dtype=torch.float64)
        assert relative_error(back.lambda_(t), schedule.lambda_(t)) < 1e-9
    with pytest.raises(ValueError, match="beta_schedule"):
        expand_schedule(
            dict(kind="discrete", beta_schedule="sigmoid", beta_start=0.1, beta_end=0.2, n=10)
        )
    with pytest.raises(ValueError, match="schedule"):
        expand_schedule(dict(kind="discrete", beta_schedule="linear"))


def test_clear_errors():
    schedule = NoiseSchedule.vp_linear()
    scheduler = GASScheduler.from_tableau(random_solver(schedule, 4), schedule)
    x = torch.zeros(1, 2)
    with pytest.raises(ValueError, match="set_timesteps first"):
        scheduler.step(x, 1.0, x)
    with pytest.raises(
        ValueError, match="num_inference_steps=50: this scheduler has solvers for 4 steps"
    ):
        scheduler.set_timesteps(50)
    scheduler.set_timesteps(4)
    with pytest.raises(ValueError, match="none of"):
        scheduler.step(x, 0.777, x)
    with pytest.raises(ValueError, match="eta=1.0"):
        scheduler.step(x, scheduler.timesteps[0], x, eta=1.0)
    with pytest.raises(ValueError, match="from_pretrained"):
        GASScheduler.from_config(DDPMScheduler().config)
    with pytest.raises(ValueError, match="prediction_type 'score'"):
        GASScheduler.from_tableau(random_solver(schedule, 4), schedule, "score")
    with pytest.raises(ValueError, match="does not say its schedule"):
        GASScheduler.from_tableau(Tableau([1.0, 0.1], [0.0], [[1.0]], [[0.0]]))
    with pytest.raises(ValueError, match="several tableaus"):
        GASScheduler.from_tableau([random_solver(schedule, 4)] * 2)
    for damage in (
        {"four": {}},
        {"4": 1},
        {"4": {"times": [1, 0.5], "offsets": [0], "A": [[1]], "C": [["x"]]}},
        {},
    ):
        with pytest.raises(ValueError, match="solvers"):
            GASScheduler.from_config(dict(scheduler.config, solvers=damage))


def test_scheduler_from_runs(tmp_path):
    schedule = NoiseSchedule.vp_linear()
    for n in (4, 6):
        table = random_solver(schedule, n)
        table = Tableau(
            table.times, table.offsets, table.A, table.C, dict(table.meta, teacher="digits")
        )
        (tmp_path / str(n)).mkdir()
        table.save(tmp_path / str(n) / "solver.json")
        (tmp_path / str(n) / "metrics.json").write_text(
            json.dumps(dict(nfe=n, rows=[dict(solver="gas", nfe=n, l1=0.5)]))
        )
    scheduler = GASScheduler.from_runs([tmp_path / "4", tmp_path / "6"], license="mit")
    assert (
        scheduler.nfes == [4, 6]
        and scheduler.config.card["teacher"] == "digits"
        and len(scheduler.config.card["figures"]) == 2
    )
    with pytest.raises(ValueError, match="no solver.json"):
        GASScheduler.from_runs(tmp_path)


def test_runs_that_do_not_fit(tmp_path):
    run, other = tmp_path / "a", tmp_path / "b"
    for folder, schedule, n in (
        (run, NoiseSchedule.vp_linear(), 4),
        (other, NoiseSchedule.vp_edm(), 5),
    ):
        folder.mkdir()
        random_solver(schedule, n).save(folder / "solver.json")
    with pytest.raises(ValueError, match="different noise schedules"):
        GASScheduler.from_runs([run, other])
    for text in ("", "[]", "{}", '{"rows": 3}', "\x80"):
        (run / "metrics.json").write_bytes(text.encode("latin1"))
        with pytest.raises(ValueError, match="metrics.json"):
            GASScheduler.from_runs(run)
    with pytest.raises(ValueError, match="no files"):
        GASScheduler.from_files([])
    with pytest.raises(ValueError, match="none.json cannot be read"):
        GASScheduler.from_files(tmp_path / "none.json")


def test_folders_that_hold_no_scheduler(tmp_path):
    """Empty, cut off, something else, hostile, or not there
    at all: one kind of error, with the place and what to do."""
    schedule = NoiseSchedule.vp_linear()
    GASScheduler.from_tableau(random_solver(schedule, 4), schedule).save_pretrained(
        tmp_path / "good"
    )
    whole = (tmp_path / "good" / "scheduler_config.json").read_text()
    config, folder = json.loads(whole), tmp_path / "bad"
    folder.mkdir()
    with pytest.raises(ValueError, match="bad.scheduler_config.json does not exist"):
        GASScheduler.from_pretrained(folder)

    class Hostile:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    not_json = [
        b"",
        b"[" * 100_000,
        b"\x89PNG",
        pickle.dumps(Hostile()),
        *(whole[:n].encode() for n in (1, 100, len(whole) // 2, len(whole) - 3)),
    ]
    wrong = [
        dict(solvers={}),
        dict(solvers={"5": config["solvers"]["4"]}),
        dict(solvers={"\u00b2": {}}),
        dict(prediction_type="score"),
        dict(schedule=None),
        dict(schedule={"kind": "x"}),
        dict(num_train_timesteps="x"),
        dict(card="x"),
        dict(
            schedule=dict(
                kind="discrete", beta_schedule="linear", beta_start=0.1, beta_end=0.2, n=-4
            )
        ),
    ]
    cases = [(data, "not JSON, or cut off") for data in not_json]
    cases += [
        (json.dumps(d).encode(), "describes no GASScheduler")
        for d in ({"a": 1}, [1], DDIMScheduler().config)
    ]
    cases += [
        (json.dumps(config | change).encode(), next(iter(change)).rstrip("s")) for change in wrong
    ]
    for data, message in cases:
        (folder / "scheduler_config.json").write_bytes(data)
        with pytest.raises(ValueError, match=f"(?s)bad.*{message}"):
            GASScheduler.from_pretrained(folder)
    with pytest.raises(ValueError, match="is a file"):
        GASScheduler.from_pretrained(folder / "scheduler_config.json")
    with pytest.raises(ValueError, match="path=None"):
        GASScheduler.from_pretrained()
    with pytest.raises(ValueError, match="offline"):
        GASScheduler.from_pretrained("nobody/no-such-solver")
    assert not (tmp_path / "ran").exists()


def test_push_to_hub(monkeypatch, tmp_path):
    """Against stand-ins for the two calls that reach the hub."""
    import huggingface_hub

    scheduler, seen = GASScheduler.from_tableau(random_solver(NoiseSchedule.vp_linear(), 4)), {}
    monkeypatch.setattr(
        huggingface_hub,
        "create_repo",
        lambda repo_id, **_: types.SimpleNamespace(repo_id="me/" + repo_id),
    )

    def upload_folder(repo_id, folder_path, **options):
        seen.update(
            repo_id=repo_id,
            files=sorted(os.listdir(folder_path)),
            card=open(os.path.join(folder_path, "README.md")).read(),
        )
        return "commit"

    monkeypatch.setattr(huggingface_hub, "upload_folder", upload_folder)
    assert scheduler.push_to_hub("solvers", private=True) == "commit"
    assert (
        seen["files"]
        == ["README.md", "model_index.json", "pipeline.py", "scheduler", "scheduler_config.json"]
        and seen["repo_id"] == "me/solvers"
    )
    assert "GASScheduler.from_pretrained('me/solvers')" in seen["card"]
    seen.clear()
    scheduler.save_pretrained(tmp_path / "here", push_to_hub=True, repo_id="others", token="t")
    assert seen["repo_id"] == "me/others" and sorted(
        p.name for p in (tmp_path / "here").iterdir()
    ) == ["README.md", "gas_scheduler.py", "scheduler_config.json"]

    def dropped(**_):
        raise OSError("connection dropped")

    monkeypatch.setattr(huggingface_hub, "upload_folder", dropped)
    with pytest.raises(
        ConnectionError, match="me/solvers was not uploaded.*connection dropped.*save_pretrained"
    ):
        scheduler.push_to_hub("solvers")


def test_model_card_says_all_there_is_to_know():
    card = dict(
        teacher="a pipeline",
        base_model="me/pipe",
        figures=[
            dict(solver="gas", nfe=4, l1=0.5, spacing=None),
            dict(solver="unipc", nfe=4, l1=0.75),
        ],
    )
    flow = NoiseSchedule.flow(1000.0)
    text = model_card(
        GASScheduler.from_tableau(list(solvers(flow).values()), flow, "flow_prediction", card),
        "me/solver",
    )
    for part in (
        "# Few-step solvers for a pipeline",
        "4, 5 network evaluations",
        "`flow_prediction`",
        "schedule is `flow`",
        'base_model: "me/pipe"',
        "| gas | 4 |  | 0.5 |",
        "| unipc | 4 |  | 0.75 |",
        "DiffusionPipeline.from_pretrained('me/pipe')",
        "GASScheduler.from_pretrained('me/solver')",
        "num_inference_steps=4",
        "one of 4, 5",
        "arXiv 2510.17699",
    ):
        assert part in text, part
    bare = model_card(GASScheduler.from_tableau(random_solver(NoiseSchedule.vp_linear(), 4)))
    assert "Figures" not in bare and "a diffusion model" in bare


def test_push_to_hub_offline(monkeypatch):
    import huggingface_hub

    def unreachable(*_, **__):
        raise OSError("no route")

    monkeypatch.setattr(huggingface_hub, "create_repo", unreachable)
    with pytest.raises(ConnectionError, match="save_pretrained"):
        GASScheduler.from_tableau(random_solver(NoiseSchedule.vp_linear(), 4)).push_to_hub(
            "solvers"
        )


# --- what comes with the package


def fmnist_pipeline(label):
    """The shipped network for one class as a plain
    pipeline: the class embedding moves into a bias."""
    unet = load_teacher("fmnist", "cpu").denoiser.net.unet
    plain, state = (
        UNet2DModel.from_config(dict(unet.config, num_class_embeds=None)),
        dict(unet.state_dict()),
    )
    embedding = state.pop("class_embedding.weight")[label]
    state["time_embedding.linear_2.bias"] = state["time_embedding.linear_2.bias"] + embedding
    plain.load_state_dict(state)
    betas = dict(beta_start=1e-4, beta_end=0.02, beta_schedule="linear")
    return pipelines.quiet(DDPMPipeline(plain, DDIMScheduler(**betas, clip_sample=False)))


def test_shipped_scheduler_in_a_pipeline():
    """One config with seven solvers: what the pipeline makes with each is what `sample` makes, at
    the class that was asked for. The embedded teacher adds the class embedding in another order,
    and its network makes rounding a little larger."""
    scheduler, embedded = shipped_scheduler("fmnist"), load_teacher("fmnist", "cpu")
    assert scheduler.nfes == [2, 3, 4, 5, 6, 8, 10] and scheduler.schedule == embedded.schedule
    pipe = fmnist_pipeline(label=7)
    teacher = PipelineTeacher(pipe)
    pipe.scheduler = scheduler
    x_T = torch.randn(1, 1, 32, 32, generator=torch.Generator().manual_seed(1))
    for nfe in scheduler.nfes:
        theirs = pipe(
            batch_size=1,
            num_inference_steps=nfe,
            generator=torch.Generator().manual_seed(1),
            output_type="np",
        ).images
        assert (
            abs(theirs - to_images(teacher.sample(x_T, tableau=scheduler.tableaus[nfe]))).max()
            <= 1e-5
        )
        assert (
            abs(theirs - to_images(embedded.sample(x_T, 7, scheduler.tableaus[nfe]))).max() <= 1e-3
            and theirs.std() > 0.1
        )


def test_shipped_scheduler_is_in_step_with_the_solver_files(tmp_path):
    """What `make solvers` writes beside the solver files is what lies there, and it is small."""
    import make_solvers

    solvers = Path(make_solvers.ROOT) / "gas_nb" / "solvers"
    for file in solvers.glob("fmnist-gs-*.json"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    made = make_solvers.bundle(tmp_path, "fmnist")
    assert all(made.tableaus[n] == Tableau.load(solvers / f"fmnist-gs-{n}.json") for n in made.nfes)
    for name in ("scheduler_config.json", "README.md"):
        without_version = [
            re.sub(r'"_diffusers_version": "[^"]*"', "", (d / "fmnist" / name).read_text())
            for d in (tmp_path, solvers)
        ]
        assert without_version[0] == without_version[1], (
            f"{name}: run `make solvers` or tools/make_solvers.py --bundle-only"
        )
    assert (solvers / "fmnist" / "scheduler_config.json").stat().st_size < 10_000
    card = (solvers / "fmnist" / "README.md").read_text()
    for text in (
        "Few-step solvers for fmnist",
        "| gs | 2 |",
        "| gs | 10 |",
        "n_eval",
        "num_inference_steps=2",
        'license: "apache-2.0"',
    ):
        assert text in card
    with pytest.raises(
        ValueError, match="no solvers for 'digits' in the package: there are fmnist"
    ):
        shipped_scheduler("digits")


def test_the_numpy_runner_of_the_docs():
    """The reference runner as the tableau chapter prints it
    runs a shipped file and agrees with `sample`."""
    chapter = json.loads(
        (
            Path(__file__).resolve().parent.parent / "nbs" / "foundations" / "tableau.ipynb"
        ).read_text()
    )
    code = next(
        "".join(c["source"]) for c in chapter["cells"] if "def run_json" in "".join(c["source"])
    )
    definitions = [node for node in ast.parse(code).body if isinstance(node, ast.FunctionDef)]
    runner = next(node for node in definitions if node.name == "run_json")
    function = ast.get_source_segment(code, runner)
    assert len(function.splitlines()) <= 20 and "torch" not in function and "gas_nb" not in function
    scope = {"np": np}
    exec(function, scope)
    schedule = shipped_scheduler().schedule
    tables = [*shipped_scheduler().tableaus.values(), random_solver(schedule, 5)]
    x_T = torch.randn(2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for table in tables:
        ours = sample(
            Denoiser(lambda x, t: torch.tanh(x + t[:, None] / 1000), schedule), x_T, table
        )

        def predict(x, t):
            return np.tanh(x + float(schedule.net_time(t)) / 1000)

        theirs = scope["run_json"](
            table.to_json(),
            predict,
            lambda t: float(schedule.alpha(t)),
            lambda t: float(schedule.sigma(t)),
            x_T.numpy(),
        )
        assert np.abs(ours.numpy() - theirs).max() < 1e-9 * np.abs(theirs).max()


def test_discriminator_class_is_ours(tmp_path):
    state, _ = published_discriminator(load("r3gan_discriminator")[0][0])
    torch.save(state, tmp_path / "d.pt")
    assert isinstance(load_published_discriminator(tmp_path / "d.pt"), Discriminator)


# --- a tableau says what it was made for


def meta_of(tableau, **meta):
    return Tableau(tableau.times, tableau.offsets, tableau.A, tableau.C, tableau.meta | meta)


def small_net(x, t):
    return torch.tanh(x * 0.7 + t.reshape(-1, *[1] * (x.ndim - 1)) / 1000)


def loop(scheduler, net, x, nfe):
    scheduler.set_timesteps(nfe)
    for t in scheduler.timesteps:
        x = scheduler.step(net(x, t.expand(len(x))), t, x).prev_sample
    return x


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_a_trained_tableau_says_the_prediction_and_the_scheduler_believes_it(prediction, tmp_path):
    flow = prediction == "flow_prediction"
    schedule = NoiseSchedule.flow(1000.0) if flow else NoiseSchedule.ddpm()
    recipe = dict(solver="dpm_solver_pp", nfe=8, order=2, spacing="time_uniform")
    teacher = Teacher("t", Denoiser(small_net, schedule, prediction), (3,), recipe)
    tableau = TrainState(
        TrainConfig(teacher="t", nfe=3, adversarial_weight=0.0, device="cpu"), teacher
    ).tableau()
    assert tableau.meta["prediction"] == prediction
    tableau.save(tmp_path / "solver.json")
    x_T = torch.randn(2, 3, generator=torch.Generator().manual_seed(0))
    for scheduler in (
        GASScheduler.from_tableau(tableau),
        GASScheduler.from_files(tmp_path / "solver.json"),
        GASScheduler.from_runs(tmp_path),
    ):
        assert (
            scheduler.config.prediction_type == prediction
            and scheduler.config.use_flow_sigmas == flow
        )
        assert (
            relative_error(
                loop(scheduler, small_net, x_T, 3), sample(teacher.denoiser, x_T, tableau)
            )
            < 1e-5
        )
        assert GASScheduler.from_tableau(scheduler.tableaus).config.prediction_type == prediction
    other = "sample" if prediction != "sample" else "v_prediction"
    for make in (
        lambda: GASScheduler.from_tableau(tableau, prediction=other),
        lambda: GASScheduler.from_files(tmp_path / "solver.json", other),
    ):
        with pytest.raises(
            ValueError, match=f"made for prediction {prediction}, but {other} is asked for"
        ):
            make()


def test_a_tableau_that_does_not_say_its_prediction():
    flow = NoiseSchedule.flow(1000.0)
    assert GASScheduler.from_tableau(solvers(flow)).config.prediction_type == "flow_prediction"
    assert (
        GASScheduler.from_tableau(random_solver(NoiseSchedule.ddpm(), 4)).config.prediction_type
        == "epsilon"
    )
    with pytest.raises(
        ValueError, match="prediction_type 'epsilon' on .*flow.*says nothing about the image"
    ):
        GASScheduler.from_tableau(solvers(flow), prediction="epsilon")
    with pytest.raises(
        ValueError, match="tableaus of different predictions, sample and v_prediction"
    ):
        GASScheduler.from_tableau(
            [
                meta_of(random_solver(NoiseSchedule.ddpm(), n), prediction=p)
                for n, p in ((3, "sample"), (4, "v_prediction"))
            ]
        )


def test_a_tableau_under_another_schedule_is_refused(tmp_path):
    made_for, other = NoiseSchedule.ddpm(0.00085, 0.012, 1000, scaled=True), NoiseSchedule.ddpm()
    tableau, x_T = random_solver(made_for, 3), torch.zeros(2, 3)
    tableau.save(tmp_path / "s.json")
    both = r"made for .*0\.00085.*0\.0001"
    with pytest.raises(ValueError, match=both):
        GASScheduler.from_tableau(tableau, other)
    with pytest.raises(ValueError, match=both):
        GASScheduler.from_files(tmp_path / "s.json", schedule=other)
    with pytest.raises(ValueError, match=both):
        sample(Denoiser(small_net, other), x_T, tableau)
    teacher = Teacher("t", Denoiser(small_net, other), (3,), dict(solver="unipc", nfe=8))
    with pytest.raises(ValueError, match=both):
        teacher.generate([0], tableau=tableau)
    with pytest.raises(ValueError, match="made for .*ddpm"):
        sample(Denoiser(small_net, NoiseSchedule.flow(), "flow_prediction"), x_T, tableau)
    with pytest.raises(ValueError, match="different schedules"):
        GASScheduler.from_tableau([tableau, random_solver(other, 4)])


def test_one_schedule_described_in_two_ways_is_one():
    ddpm = NoiseSchedule.ddpm(0.00085, 0.012, 1000, scaled=True)
    table = NoiseSchedule.discrete(
        alphas_cumprod=DDIMScheduler(**pipelines.SD_BETAS).alphas_cumprod
    )  # float32
    edm = NoiseSchedule.vp_linear(
        *(NoiseSchedule.vp_edm().config[k] for k in ("beta_0", "beta_1")), net_time_scale=1000.0
    )
    assert (
        same_schedule(ddpm, table)
        and same_schedule(table, ddpm)
        and same_schedule(edm, NoiseSchedule.vp_edm())
    )
    assert not same_schedule(
        ddpm, NoiseSchedule.ddpm(0.0015, 0.0195, 1000, scaled=True)
    ) and not same_schedule(ddpm, NoiseSchedule.flow())
    tableau = random_solver(ddpm, 3)
    assert GASScheduler.from_tableau(tableau, table).nfes == [3]
    silent = [meta_of(tableau, schedule=v) for v in (None, {"kind": "unheard"}, 3)] + [
        Tableau(tableau.times, tableau.offsets, tableau.A, tableau.C)
    ]
    for t in [tableau, *silent]:
        assert sample(Denoiser(small_net, table), torch.zeros(2, 3), t).isfinite().all()


# --- in the words of diffusers


WORDS = {
    "scaled_linear": NoiseSchedule.ddpm(0.00085, 0.012, 1000, scaled=True),
    "linear": NoiseSchedule.ddpm(1e-4, 0.015, 500),
    "table": NoiseSchedule.discrete(betas=torch.linspace(0.005, 0.02, 60).sqrt()),
    "cosine": schedule_from_scheduler(
        DDIMScheduler(beta_schedule="squaredcos_cap_v2", clip_sample=False)
    )[0],
}


@pytest.mark.parametrize("name", list(WORDS))
def test_a_scheduler_made_from_our_config_has_the_models_betas(name, tmp_path):
    schedule = WORDS[name]
    made = GASScheduler.from_tableau(random_solver(schedule, 4), prediction="v_prediction")
    made.save_pretrained(tmp_path)
    for gas in (
        made,
        GASScheduler.from_pretrained(tmp_path),
        GASScheduler.from_config(made.config),
    ):
        for kind in (
            UniPCMultistepScheduler,
            DDIMScheduler,
            EulerDiscreteScheduler,
            DPMSolverMultistepScheduler,
        ):
            other = kind.from_config(gas.config)
            t = torch.arange(1, schedule.n + 1, dtype=torch.float64) / schedule.n
            assert (other.alphas_cumprod.double() - schedule.alpha(t) ** 2).abs().max() < 2e-5
            assert other.config.prediction_type == "v_prediction" and not other.config.get(
                "clip_sample"
            )
            assert same_schedule(
                schedule_from_scheduler(other)[0], schedule
            ) and schedule_from_scheduler(gas) == (gas.schedule, "v_prediction")
            again = GASScheduler.from_config(other.config)
            assert again.tableaus == gas.tableaus and again.schedule == gas.schedule
    assert same_schedule(
        schedule_from_scheduler(UniPCMultistepScheduler.from_pretrained(tmp_path))[0], schedule
    )


def test_configs_written_before_the_betas_were_there_have_them_too():
    config = json.loads((make_solvers_root() / "fmnist" / "scheduler_config.json").read_text())
    new = ("beta_start", "beta_end", "beta_schedule", "trained_betas", "clip_sample")
    assert set(new) <= set(config)
    old = GASScheduler.from_config({k: v for k, v in config.items() if k not in new})
    assert (
        UniPCMultistepScheduler.from_config(old.config).config.beta_end == 0.02
        and old.tableaus == shipped_scheduler().tableaus
    )


def make_solvers_root():
    import make_solvers

    return Path(make_solvers.ROOT) / "gas_nb" / "solvers"


def test_flows_and_continuous_schedules_in_other_schedulers():
    flow = GASScheduler.from_tableau(solvers(NoiseSchedule.flow(1000.0)))
    other = UniPCMultistepScheduler.from_config(flow.config)
    assert schedule_from_scheduler(other) == (NoiseSchedule.flow(1000.0), "flow_prediction")
    for schedule in (NoiseSchedule.vp_linear(), NoiseSchedule.vp_edm(), NoiseSchedule.flow()):
        tableau = random_solver(schedule, 4) if schedule.alpha(1.0) > 0 else solvers(schedule)[4]
        with pytest.raises(
            NotImplementedError,
            match="continuous schedule .* of a GASScheduler, for which diffusers has no betas",
        ):
            UniPCMultistepScheduler.from_config(GASScheduler.from_tableau(tableau).config)


def test_betas_that_contradict_the_schedule_are_refused():
    gas = GASScheduler.from_tableau(random_solver(NoiseSchedule.ddpm(), 4))
    for change, message in (
        (dict(beta_end=0.5), "beta_end=0.5: the schedule says 0.02"),
        (dict(beta_schedule="scaled_linear"), "beta_schedule='scaled"),
        (dict(num_train_timesteps=500), "num_train_timesteps=500: the schedule has 1000"),
    ):
        with pytest.raises(ValueError, match=message):
            GASScheduler.from_config(gas.config, **change)


def test_a_pipeline_that_converts_its_scheduler_says_so_and_keeps_the_betas(monkeypatch):
    """DDIMPipeline makes a DDIMScheduler of what it is given; the way back is in the warning."""
    said = []
    monkeypatch.setattr(
        configuration_utils.logger, "warning", lambda text, *_: said.append(str(text))
    )
    unet, schedule = pipelines.ddpm().unet, NoiseSchedule.ddpm(0.00085, 0.012, 1000, scaled=True)
    gas = GASScheduler.from_tableau({n: random_solver(schedule, n) for n in (4, 5)})
    assert not said
    pipe = pipelines.quiet(DDIMPipeline(unet, gas))
    assert (
        isinstance(pipe.scheduler, DDIMScheduler)
        and pipe.scheduler.config.beta_end == 0.012
        and not pipe.scheduler.config.clip_sample
    )
    assert len(said) == 1 and len(said[0]) < 1000
    for words in (
        "learned solvers for 4, 5 evaluations, which this scheduler cannot run",
        "GASScheduler.from_config(pipe.scheduler.config)",
    ):
        assert words in said[0]
    pipe.scheduler = GASScheduler.from_config(pipe.scheduler.config)
    assert pipe.scheduler.tableaus == gas.tableaus and len(said) == 1
    assert (
        pipe(
            num_inference_steps=4, output_type="np", generator=torch.Generator().manual_seed(0)
        ).images.std()
        > 0.01
    )


# --- a history belongs to a run


@pytest.fixture
def busy():
    """A scheduler with solvers of 4 and 6 evaluations that
    use all their past, and what each makes alone."""
    schedule = NoiseSchedule.vp_linear(net_time_scale=1000.0)
    tables = {n: random_solver(schedule, n) for n in (4, 6)}
    starts = torch.randn(4, 2, 3, generator=torch.Generator().manual_seed(0))
    fresh = lambda: GASScheduler.from_tableau(tables)  # noqa: E731
    return fresh(), starts, {n: [loop(fresh(), small_net, x, n) for x in starts] for n in tables}


def one(scheduler, t, x):
    return scheduler.step(small_net(x, t.expand(len(x))), t, x).prev_sample


def test_requests_in_turns_on_one_scheduler(busy):
    scheduler, starts, alone = busy
    scheduler.set_timesteps(6)
    states = list(starts)
    for t in scheduler.timesteps:
        states = [one(scheduler, t, x) for x in states]
    assert all(torch.equal(x, y) for x, y in zip(states, alone[6]))


def test_requests_in_turns_with_their_own_numbers_of_steps(busy):
    scheduler, starts, alone = busy

    def request(x, nfe):
        scheduler.set_timesteps(nfe)
        for t in scheduler.timesteps:
            x = one(scheduler, t, x)
            yield x

    a, b, last = request(starts[0], 6), request(starts[1], 4), {}
    for turn in (a, b, a, b, b, a, a, b, a, a):
        last[turn] = next(turn)
    assert torch.equal(last[a], alone[6][0]) and torch.equal(last[b], alone[4][1])


def test_threads_on_one_scheduler(busy):
    scheduler, starts, alone = busy
    barrier, out = threading.Barrier(4, timeout=20), {}

    def work(i):
        nfe = (4, 6)[i % 2]
        for n in range(5):
            barrier.wait()
            scheduler.set_timesteps(nfe)
            x = starts[i]
            for k, t in enumerate(scheduler.timesteps):
                if k < 4:
                    barrier.wait()  # all are at the same step
                x = one(scheduler, t, x) + 0.0  # a tensor that step did not return
            out[i, n] = torch.equal(x, alone[nfe][i])

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    [t.start() for t in threads]
    [t.join(60) for t in threads]
    assert len(out) == 20 and all(out.values())


def test_a_thread_may_run_what_another_has_chosen(busy):
    scheduler, starts, alone = busy
    scheduler.set_timesteps(4)
    out = {}

    def work(i):
        x = starts[i]
        for t in scheduler.timesteps:
            x = one(scheduler, t, x).clone()
        out[i] = x

    threads = [threading.Thread(target=work, args=(i,)) for i in range(3)]
    [t.start() for t in threads]
    [t.join(60) for t in threads]
    assert all(torch.equal(out[i], alone[4][i]) for i in range(3))


def test_a_state_that_the_pipeline_changes_between_steps(busy):
    scheduler, starts, alone = busy
    mask = torch.tensor([1.0, 0.0, 1.0])
    for _ in range(2):
        scheduler.set_timesteps(6)
        x = starts[0]
        for t in scheduler.timesteps:
            x = one(scheduler, t, x) * 1.0  # as a callback would, or another precision
        assert torch.equal(x, alone[6][0])
    scheduler.set_timesteps(6)
    x = y = starts[0]
    tab, schedule, xs, Ds = scheduler.tableaus[6], scheduler.schedule, {}, {}
    denoiser = Denoiser(small_net, schedule)
    for k, t in enumerate(scheduler.timesteps):
        x = one(scheduler, t, x) * mask
        xs[k], Ds[k] = y, denoiser(y, tab.times[k].item(), tab.offsets[k].item())
        y = (
            sum(tab.A[k, j].float() * xs[j] + tab.C[k, j].float() * Ds[j] for j in range(k + 1))
            * mask
        )
    assert relative_error(x, y) < 1e-5


def test_one_buffer_for_all_steps(busy):
    """The caller writes every state into the tensor it gave
    at the first step, as a CUDA graph does."""
    scheduler, starts, alone = busy
    for _ in range(2):
        scheduler.set_timesteps(6)
        buffer = starts[0].clone()
        for t in scheduler.timesteps:
            buffer.copy_(one(scheduler, t, buffer))
        assert torch.equal(buffer, alone[6][0])


def test_changed_states_of_several_runs_are_an_error_and_not_a_guess(busy):
    scheduler, starts, alone = busy
    scheduler.set_timesteps(4)
    t = scheduler.timesteps
    a, b = (one(scheduler, t[0], x) for x in starts[:2])
    with pytest.raises(
        ValueError, match="step 1: 2 runs are under way.*begin anew with set_timesteps"
    ):
        one(scheduler, t[1], a * 1.0)
    for k in (1, 2, 3):
        a, b = one(scheduler, t[k], a), one(scheduler, t[k], b)
    assert torch.equal(a, alone[4][0]) and torch.equal(b, alone[4][1]), "the error harmed the runs"


def test_steps_out_of_order(busy):
    scheduler, starts, alone = busy
    with pytest.raises(ValueError, match="call set_timesteps first"):
        scheduler.set_begin_index(1)
    scheduler.set_timesteps(6)
    t, x = scheduler.timesteps, starts[0]
    first = one(scheduler, t[0], x)
    for wrong, message in (
        (2, "step 2 .*out of order: this run has come to step 1"),
        (0, "step 0 .*out of order"),
    ):
        with pytest.raises(ValueError, match=message):
            one(scheduler, t[wrong], first)
    with pytest.raises(ValueError, match="step 3 .*out of order"):
        one(scheduler, t[3], first * 1.0)
    second = one(scheduler, t[1], first)
    with pytest.raises(ValueError, match="step 1 .*out of order: this run has come to step 2"):
        one(scheduler, t[1], first)
    for k in (2, 3, 4):
        second = one(scheduler, t[k], second)
    last = one(scheduler, t[5], second)
    assert torch.equal(last, alone[6][0])
    with pytest.raises(ValueError, match="step 5 .*has been done with this sample"):
        one(scheduler, t[5], second)
    assert torch.equal(loop(scheduler, small_net, x, 6), last)


def test_a_run_goes_on_where_another_pipeline_left_it(busy):
    """Base and refiner share a scheduler: the second call
    begins where the first one stopped, with its history."""
    scheduler, starts, alone = busy
    scheduler.set_timesteps(6)
    x = starts[0]
    for t in scheduler.timesteps[:4]:
        x = one(scheduler, t, x)
    scheduler.set_timesteps(6)
    for t in scheduler.timesteps[4:]:
        x = one(scheduler, t, x)
    assert torch.equal(x, alone[6][0])


def test_copies_have_their_own_runs(busy):
    scheduler, starts, alone = busy
    scheduler.set_timesteps(4)
    x = one(scheduler, scheduler.timesteps[0], starts[0])
    twin, read_back = copy.deepcopy(scheduler), pickle.loads(pickle.dumps(scheduler))
    assert (
        torch.equal(twin.timesteps, scheduler.timesteps)
        and twin.config == scheduler.config == read_back.config
    )
    with pytest.raises(ValueError, match="call set_timesteps first"):
        one(read_back, scheduler.timesteps[1], x)
    twin.set_timesteps(6)
    for k in (1, 2, 3):
        x = one(scheduler, scheduler.timesteps[k], x)
    assert (
        scheduler.num_inference_steps == 4
        and twin.num_inference_steps == 6
        and torch.equal(x, alone[4][0])
    )
    for other in (twin, read_back):
        assert torch.equal(loop(other, small_net, starts[1], 6), alone[6][1])
    scheduler.set_timesteps(4)
    y = one(scheduler, scheduler.timesteps[0], starts[2])
    middle = copy.deepcopy(scheduler)
    for k in (1, 2, 3):
        y = one(middle, middle.timesteps[k], y)
    assert torch.equal(y, alone[4][2]), "a copy in the middle of a run"


def test_abandoned_runs_are_forgotten(busy):
    scheduler, starts, _ = busy
    for _ in range(300):
        one(scheduler, (scheduler.set_timesteps(6), scheduler.timesteps[0])[1], starts[0])
    assert len(scheduler._book.runs) <= 1
    kept = [one(scheduler, scheduler.timesteps[0], starts[0]) for _ in range(200)]
    assert len(scheduler._book.runs) <= 65 and len(kept) == 200
    for _ in range(3):
        thread = threading.Thread(target=lambda: one(scheduler, scheduler.timesteps[0], starts[0]))
        thread.start()
        thread.join()
    del kept
    loop(scheduler, small_net, starts[0], 6)
    assert len(scheduler._book.runs) <= 1


# --- what is given to a scheduler


def test_what_does_not_fit_a_step(busy):
    scheduler, starts, _ = busy
    scheduler.set_timesteps(4)
    t, x = scheduler.timesteps, starts[0]
    wrong = [
        (
            (torch.cat([x, x], 1), t[0], x),
            "model_output has shape \\(2, 6\\), sample \\(2, 3\\).*predicts a variance",
        ),
        ((x[:1], t[0], x), "have to be equal"),
        ((x.long(), t[0], x), "model_output is torch.int64"),
        ((x, t[0], x.long()), "sample is torch.int64"),
        ((None, t[0], x), "model_output is NoneType"),
        ((x, t[0], x.numpy()), "sample is ndarray"),
        ((x, None, x), "timestep None"),
        ((x, t[:2], x), "need one of scheduler.timesteps"),
        ((x, float("nan"), x), "timestep"),
        ((x, "a", x), "timestep a"),
        ((x.to("meta"), t[0], x), "model_output is on meta"),
    ]
    for args, message in wrong:
        with pytest.raises(ValueError, match=message):
            scheduler.step(*args)
    x = scheduler.step(x, t[0].expand(2), x).prev_sample
    with pytest.raises(ValueError, match="this run began with \\(2, 3\\)"):
        one(scheduler, t[1], torch.cat([x, x]))
    for begin in (7, -1, "1", True, 1.5):
        with pytest.raises(ValueError, match="begin_index="):
            scheduler.set_begin_index(begin)
    for nfe in (None, "4", [4], 4.5, float("nan")):
        with pytest.raises(ValueError, match="solvers for 4, 6 steps"):
            scheduler.set_timesteps(nfe)


def test_answers_that_are_not_finite_are_told(busy):
    scheduler, starts, _ = busy
    with pytest.raises(ValueError, match="not finite.*takes them as epsilon"):
        loop(scheduler, lambda x, t: x * float("nan"), starts[0], 4)
    with pytest.raises(ValueError, match="too large for torch.float16"):
        loop(scheduler, lambda x, t: x + 60000, starts[0].half(), 4)
    assert loop(scheduler, small_net, starts[0], 4).isfinite().all()


def test_cards_become_plain_json(tmp_path):
    folder = tmp_path / "models" / "my-pipeline"
    folder.mkdir(parents=True)
    rows = [
        dict(
            solver="gs",
            nfe=np.int64(4),
            l1=np.float32(0.5),
            l2=torch.tensor(0.25),
            n_eval=None,
            ok=np.bool_(True),
        )
    ]
    card = dict(
        teacher=folder,
        base_model=str(folder),
        figures=rows,
        shape=(1, 8, 8),
        grid=np.arange(3),
        note=f"made from {folder} by hand",
        link="see https://example.org/a/b and/or c",
        license="mit",
    )
    tableau = meta_of(
        random_solver(NoiseSchedule.ddpm(), 4), teacher=str(folder), figures=dict(l1=0.5, n_eval=3)
    )
    gas = GASScheduler.from_tableau(tableau, card=card)
    plain = gas.config.card
    assert (
        plain["teacher"] == plain["base_model"] == "my-pipeline"
        and plain["note"] == "made from my-pipeline by hand"
    )
    assert plain["figures"] == [
        dict(solver="gs", nfe=4, l1=0.5, l2=0.25, n_eval=None, ok=True)
    ] and plain["grid"] == [0, 1, 2]
    assert plain["link"] == card["link"] and json.loads(json.dumps(plain)) == plain
    tableau.save(tmp_path / "solver.json")
    for made in (
        gas,
        GASScheduler.from_files(tmp_path / "solver.json"),
        GASScheduler.from_runs(tmp_path),
    ):
        made.save_pretrained(tmp_path / "out")
        for file in (tmp_path / "out" / name for name in ("README.md", "scheduler_config.json")):
            assert (
                str(tmp_path) not in file.read_text()
                and "models" not in file.read_text()
                and "my-pipeline" in file.read_text()
            )
    old = json.loads((tmp_path / "out" / "scheduler_config.json").read_text())
    old["card"]["teacher"] = str(folder)  # as configs were written before
    assert str(tmp_path) not in model_card(GASScheduler.from_config(old))


@pytest.mark.parametrize(
    "name", ["owner/name", "stabilityai/sd-turbo", "digits", "a pipeline", "v1.5"]
)
def test_names_that_are_no_paths_stay(name):
    assert plain_card(dict(teacher=name, base_model=name)) == dict(teacher=name, base_model=name)


@pytest.mark.parametrize(
    "path",
    [
        "/srv/models/sd",
        "~/models/sd",
        "C:\\models\\sd",
        "./sd",
        "../models/sd",
        "runs/models/sd",
        "/srv/models/sd/",
        "models\\old\\sd",
    ],
)
def test_paths_as_names_are_reduced(path):
    assert plain_card(dict(teacher=path))["teacher"].strip("/") == "sd"


def test_cards_that_json_cannot_hold_are_refused_before_anything_is_written(monkeypatch, tmp_path):
    import huggingface_hub

    monkeypatch.setattr(
        huggingface_hub, "create_repo", lambda *_, **__: pytest.fail("reached the hub")
    )
    tableau = random_solver(NoiseSchedule.ddpm(), 4)
    loop_ = {}
    loop_["self"] = loop_
    bad = [
        (dict(x=object()), r"card\['x'\] is object"),
        (dict(figures=[dict(l1=float("nan"))]), r"card\['figures'\]\[0\]\['l1'\] is nan"),
        (dict(figures="good"), "a row each"),
        (dict(figures=[1]), "a row each"),
        (dict(teacher=3), "give a name"),
        (dict(x={1, 2}), "is set"),
        ({"x": {4: 1}}, "has a key 4"),
        (loop_, "nested too deeply"),
        ([1], "give a dictionary"),
        (dict(license=5), "license"),
        (dict(x=b"a"), "is bytes"),
        (dict(x=1j), "is complex"),
    ]
    for card, message in bad:
        with pytest.raises(ValueError, match=message):
            GASScheduler.from_tableau(tableau, card=card)
    gas = GASScheduler.from_tableau(tableau)
    for wrong in (None, 3, "", b"x"):
        with pytest.raises(ValueError, match="save_directory="):
            gas.save_pretrained(wrong)
    for wrong in (None, 3, "", "a/b/c", "/srv/x", "a b"):
        with pytest.raises(ValueError, match="repo_id="):
            gas.push_to_hub(wrong)
    with pytest.raises(ValueError, match="repo_id="):
        gas.save_pretrained(tmp_path / "there", push_to_hub=True, repo_id=4)
    assert not any(tmp_path.iterdir())


def test_what_is_no_name_no_tableau_and_no_file(tmp_path):
    schedule = NoiseSchedule.ddpm()
    tableau = random_solver(schedule, 4)
    for wrong in (None, 3, "solver.json", [tableau, None], {4: None}, tmp_path):
        with pytest.raises(ValueError, match="is no tableau"):
            GASScheduler.from_tableau(wrong)
    for wrong in ({"four": tableau}, {None: tableau}, {5: tableau}):
        with pytest.raises(ValueError, match="has nfe=4"):
            GASScheduler.from_tableau(wrong)
    with pytest.raises(ValueError, match="no solvers|no tableaus"):
        GASScheduler.from_tableau([])
    for wrong in (DDIMScheduler(), schedule.config, "ddpm", 3):
        with pytest.raises(ValueError, match="give a NoiseSchedule"):
            GASScheduler.from_tableau(tableau, wrong)
    for wrong in (3, "score", ["epsilon"]):
        with pytest.raises(ValueError, match="prediction_type"):
            GASScheduler.from_tableau(tableau, prediction=wrong)
    for wrong in (None, 3, [None], [3], "", [""]):
        for make in (GASScheduler.from_files, GASScheduler.from_runs):
            with pytest.raises(ValueError, match="give a path"):
                make(wrong)
    for wrong in (None, 3, "", [], b"x"):
        with pytest.raises(ValueError, match="give the folder"):
            GASScheduler.from_pretrained(wrong)
    with pytest.raises(ValueError, match="subfolder=3"):
        GASScheduler.from_pretrained(tmp_path, subfolder=3)
    with pytest.raises(ValueError, match="cannot be read"):
        GASScheduler.from_files(tmp_path)
    for wrong in (None, 3, [], ""):
        with pytest.raises(ValueError, match="no solvers for"):
            shipped_scheduler(wrong)
        with pytest.raises(ValueError, match="schedule"):
            expand_schedule(wrong)
    with pytest.raises(ValueError, match="is no NoiseSchedule"):
        compact_schedule(schedule.config)


@pytest.mark.parametrize("wrong", [None, 0, 3, 1.5, "", b"x", []], ids=repr)
def test_readers_of_published_files_want_a_path(wrong):
    """A number would be the number of an open file: 0 is what is typed."""
    schedule = NoiseSchedule.ddpm()
    for read in (
        read_pickle,
        read_checkpoint,
        load_published_dataset,
        load_published_discriminator,
        lambda p: load_published_checkpoint(p, schedule),
    ):
        with pytest.raises(ValueError, match="give the path of a file"):
            read(wrong)


def test_readers_of_published_files_refuse_folders_and_schedules_that_are_none(tmp_path):
    for read in (
        read_pickle,
        read_checkpoint,
        load_published_dataset,
        load_published_discriminator,
    ):
        with pytest.raises(ValueError, match="is a folder"):
            read(tmp_path)
    for wrong in (None, {}, DDIMScheduler()):
        with pytest.raises(ValueError, match="give the NoiseSchedule"):
            load_published_checkpoint(GOLDEN / CHECKPOINTS[0]["file"], wrong)


def test_any_folder_takes_a_scheduler(tmp_path, monkeypatch):
    gas = GASScheduler.from_tableau(random_solver(NoiseSchedule.ddpm(), 4))
    (tmp_path / "my solvers (4)").mkdir()
    monkeypatch.chdir(tmp_path / "my solvers (4)")
    for folder in (".", "../my solvers (4)", Path("deep") / "er"):
        gas.save_pretrained(folder)
        assert GASScheduler.from_pretrained(folder).tableaus == gas.tableaus
    assert "from_pretrained('my solvers (4)')" in Path("README.md").read_text()
    with pytest.raises(ValueError, match="repo_id='my solvers"):
        gas.save_pretrained(".", push_to_hub=True)


def test_noise_that_does_not_fit():
    gas, x = GASScheduler.from_tableau(random_solver(NoiseSchedule.ddpm(), 4)), torch.zeros(3, 2)
    for noise, timesteps, message in (
        (x[:2], torch.tensor([1]), "have to be equal"),
        (x, torch.tensor([1, 2]), "one for each sample"),
        (x, None, "need one"),
    ):
        with pytest.raises(ValueError, match=message):
            gas.add_noise(x, noise, timesteps)
