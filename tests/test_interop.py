"""Published GAS files in, and solvers out into diffusers' pipelines."""
import gas_nb.compat  # noqa: F401  (before diffusers)

import io
import json
import os
import pickle
import re
import types
from pathlib import Path

import numpy as np
import nvidia_pickle
import pipelines
import pytest
import torch
from diffusers import DDIMPipeline, DDIMScheduler, DDPMPipeline, DDPMScheduler, DiffusionPipeline, StableDiffusionImg2ImgPipeline, UNet2DModel
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
    shipped_scheduler,
    start_at,
)
from gas_nb.pickles import Unreadable, read_pickle
from gas_nb.schedule import NoiseSchedule, spacing
from gas_nb.solver import GeneralizedSolver
from gas_nb.tableau import Tableau, sample
from gas_nb.teacher import load_teacher
from gas_nb.teachers.diffusers import DiffusersTeacher

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
    """The published code computed its coefficients in float32, ours are float64: on the second case that alone is 3e-5."""
    schedule = make_schedule(SCHEDULES[case["schedule"]])
    solver = load_published_checkpoint(GOLDEN / case["file"], schedule, t_eps=case["t_eps"], theory=case["theory"])
    assert (solver.nfe, solver.order) == (case["nfe"], case["order"])
    data = {k.split(".", 1)[1]: v for k, v in CHECKPOINT_DATA.items() if k.startswith(case["case"] + ".")}

    def net(x, t):
        hidden = torch.tanh(x.flatten(1) @ data["net.W1"] + (t / case["net_time_scale"])[:, None] * data["net.b"])
        return (hidden @ data["net.W2"]).reshape(x.shape)

    assert relative_error(solver.times.detach().float(), data["timesteps"]) < 1e-6
    with torch.no_grad():
        x_0 = solver.sample(Denoiser(net, schedule, case["prediction"]), data["x_T"])
    assert relative_error(x_0, data["x_0"]) < 1e-4


def test_the_ema_values_are_the_ones_taken():
    content = torch.load(GOLDEN / CHECKPOINTS[0]["file"], weights_only=True)
    solver = load_published_checkpoint(GOLDEN / CHECKPOINTS[0]["file"], make_schedule(SCHEDULES["sd"]))
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
        "has shape": {"ema": {"shadow_params": content["ema"]["shadow_params"][:-1] + [torch.zeros(5)]}},
        "not finite": {"ema": {"shadow_params": content["ema"]["shadow_params"][:-1] + [torch.full((4,), torch.nan)]}},
        "shadow_params\" under": [1, 2],
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
        assert getattr(data, name) is None if expected is None else np.array_equal(getattr(data, name).numpy(), expected)
    if kind == "pixel":
        pairs = data.pairs()
        assert data.condition is None and torch.equal(pairs.x_0, data.images) and pairs.condition is None
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

    hostile = {"mkdir": MakesFolder(ran), "mkdir ": Nested(), "getattr": ByAttribute(), "eval": None}
    for protocol in range(2, 6):
        for name, thing in hostile.items():
            text = pickle.dumps(dict(noise=torch.ones(2), images=[thing]), protocol) if thing else b"c__builtin__\neval\n(S'1'\ntR."
            (tmp_path / "h.pkl").write_bytes(text)
            with pytest.raises(Unreadable, match=name.strip()):
                load_published_dataset(tmp_path / "h.pkl")
    for n in (0, 1, 50, len(whole) // 2, len(whole) - 1):
        (tmp_path / "h.pkl").write_bytes(whole[:n])
        with pytest.raises(Unreadable, match="not a complete pickle"):
            load_published_dataset(tmp_path / "h.pkl")
    assert [p.name for p in tmp_path.iterdir()] == ["h.pkl"]


def test_tensors_stay_inside_their_storage(tmp_path):
    """Sizes and strides come from the file: they may not reach into memory that is not theirs, nor ask for terabytes."""
    storage = torch.arange(4.0)
    for offset, size, stride in ((0, (5,), (1,)), (2, (3,), (1,)), (0, (10**9,), (0,)), (-1, (2,), (1,)), (0, (2, 2), (3, 1))):
        class Wide:
            def __reduce__(self):
                return torch._utils._rebuild_tensor_v2, (storage.storage(), offset, size, stride, False, {})

        (tmp_path / "w.pkl").write_bytes(pickle.dumps(Wide()))
        with pytest.raises(Unreadable, match="tensor of shape"):
            read_pickle(tmp_path / "w.pkl")


def published_discriminator(case):
    _, arrays = load("r3gan_discriminator")
    prefix = case["case"] + "."
    data = {k[len(prefix):]: v for k, v in arrays.items() if k.startswith(prefix)}
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
    state = {"Model." + k: v for k, v in published_discriminator(load("r3gan_discriminator")[0][0])[0].items()}
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
    names = {"hostile.pt": "posix.mkdir", "hostile.pkl": "posix.mkdir", "cut.pt": "damaged", "empty.safetensors": "cannot be read", "none.pt": "does not exist",
             "text.pkl": "not a complete pickle", "noD.pkl": 'no entry "D"', "number.pkl": "not a module", "list.pt": "not a state dictionary", "less.pt": "lacks"}
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
        return {n: dpm_solver_pp(schedule, spacing(schedule, n, "time_uniform"), order=2) for n in (4, 5)}
    return {5: random_solver(schedule, 5), 4: classic_tableau("unipc", schedule, 4)}


def to_images(x):
    return (x / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy()


@pytest.mark.parametrize("kind", [DDPMPipeline, DDIMPipeline])
def test_pixel_pipelines(kind):
    made = pipelines.ddpm()
    teacher = DiffusersTeacher(made)
    pipe = pipelines.quiet(kind(unet=made.unet, scheduler=made.scheduler))
    pipe.scheduler = GASScheduler.from_tableau(solvers(teacher.schedule), teacher.schedule)
    for nfe, tableau in solvers(teacher.schedule).items():
        theirs = pipe(batch_size=3, num_inference_steps=nfe, generator=torch.Generator().manual_seed(1), output_type="np").images
        x_T = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(1))
        assert abs(theirs - to_images(teacher.sample(x_T, tableau=tableau))).max() <= 1e-5
        assert theirs.std() > 0.01


def test_class_conditional_latents_with_guidance():
    pipe = pipelines.dit()
    teacher = DiffusersTeacher(pipe, guidance_scale=2.0)
    table = solvers(teacher.schedule)
    pipe.scheduler = GASScheduler.from_tableau(table, teacher.schedule)
    x_T = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    for nfe, tableau in table.items():
        theirs = pipe([3, 900], guidance_scale=2.0, num_inference_steps=nfe, generator=torch.Generator().manual_seed(1), output_type="np").images
        assert abs(theirs - to_images(teacher.decode(teacher.sample(x_T, [3, 900], tableau)))).max() <= 1e-5


@pytest.mark.parametrize("name", ["stable_diffusion", "stable_diffusion_v", "stable_diffusion_xl", "stable_diffusion_3", "flux"])
def test_text_pipelines(name):
    v = dict(prediction_type="v_prediction") if name.endswith("_v") else {}
    pipe = getattr(pipelines, name.removesuffix("_v"))(**v)
    teacher = DiffusersTeacher(pipe, prompts=["a shoe", "a bag"], guidance_scale=2.0, size=16)
    table = solvers(teacher.schedule)
    pipe.scheduler = GASScheduler.from_tableau(table, teacher.schedule, teacher.denoiser.prediction)
    x_T = torch.randn(2, *teacher.shape, generator=torch.Generator().manual_seed(1))
    for nfe, tableau in table.items():
        options = dict(prompt=["a shoe", "a bag"], num_inference_steps=nfe, height=16, width=16, output_type="np")
        if name == "flux":
            options |= dict(latents=pipe._pack_latents(x_T, 2, *x_T.shape[1:]), true_cfg_scale=2.0, negative_prompt=["", ""])
        else:
            options |= dict(latents=x_T, guidance_scale=2.0)
        theirs = pipe(**options).images
        assert abs(theirs - to_images(teacher.decode(teacher.sample(x_T, ["a shoe", "a bag"], tableau)))).max() <= 1e-5
        assert theirs.std() > 0.01


@pytest.mark.parametrize("strength", [0.5, 0.8, 1.0])
def test_image_to_image(strength):
    made = pipelines.stable_diffusion()
    pipe = pipelines.quiet(StableDiffusionImg2ImgPipeline(**made.components, requires_safety_checker=False))
    teacher = DiffusersTeacher(made, prompts=["a shoe"], guidance_scale=2.0, size=16)
    tableau = random_solver(teacher.schedule, 5)
    pipe.scheduler = GASScheduler.from_tableau(tableau, teacher.schedule)
    image = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(2))
    theirs = pipe("a shoe", image, strength=strength, num_inference_steps=5, guidance_scale=2.0, generator=torch.Generator().manual_seed(3),
                  output_type="np").images
    b = 5 - int(5 * strength)
    generator = torch.Generator().manual_seed(3)
    clean = made.vae.encode(2 * image - 1).latent_dist.sample(generator) * made.vae.config.scaling_factor
    t = tableau.times[b]
    x_b = teacher.schedule.alpha(t).float() * clean + teacher.schedule.sigma(t).float() * torch.randn(clean.shape, generator=generator)
    ours = teacher.sample(x_b, "a shoe", start_at(tableau, teacher.schedule, b))
    assert abs(theirs - to_images(teacher.decode(ours))).max() <= 1e-5


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_every_prediction_type(prediction):
    """A network that predicts anything, in the loop that pipelines run."""
    schedule = NoiseSchedule.vp_linear(net_time_scale=1000.0)
    denoiser = Denoiser(lambda x, t: torch.tanh(x * 0.7 + t[:, None] / 1000), schedule, prediction)
    tableau, x_T = random_solver(schedule, 6), torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
    scheduler = GASScheduler.from_tableau(tableau, schedule, prediction)
    scheduler.set_timesteps(6)
    x = x_T * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        x = scheduler.step(denoiser.net(scheduler.scale_model_input(x, t), t.expand(3)), t, x, return_dict=False)[0]
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
    assert torch.equal(run(scheduler, x, steps=slice(2, None)), late) and torch.equal(run(scheduler, x), first)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions(dtype):
    schedule = NoiseSchedule.vp_linear(net_time_scale=1000.0)
    scheduler = GASScheduler.from_tableau(classic_tableau("unipc", schedule, 5), schedule)
    scheduler.set_timesteps(5)
    x = torch.randn(2, 3, generator=torch.Generator().manual_seed(0))
    out = run(scheduler, x.to(dtype))
    assert out.dtype == dtype and relative_error(out.float(), run(scheduler, x)) < {torch.float64: 1e-5}.get(dtype, 0.05)


@pytest.mark.cuda
def test_on_a_gpu():
    made = pipelines.ddpm()
    teacher = DiffusersTeacher(made.to("cuda"))
    made.scheduler = GASScheduler.from_tableau(solvers(teacher.schedule), teacher.schedule)
    theirs = made(batch_size=2, num_inference_steps=5, generator=torch.Generator().manual_seed(1), output_type="np").images
    x_T = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    assert abs(theirs - to_images(teacher.sample(x_T, tableau=solvers(teacher.schedule)[5]).cpu())).max() <= 1e-5


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
    assert torch.allclose(tail.A, table.A[2:, 2:]) and torch.allclose(tail.C, table.C[2:, 2:]) and torch.equal(tail.times, table.times[2:])
    assert start_at(table, schedule, 0) == table


def test_save_and_load(tmp_path):
    schedule = NoiseSchedule.discrete(betas=torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64))
    tables = [random_solver(schedule, n) for n in (4, 5, 6, 8, 10)]
    card = dict(teacher="fmnist", license="apache-2.0", figures=[dict(solver="gas", nfe=4, l1=0.03125)])
    scheduler = GASScheduler.from_tableau(tables, schedule, card=card)
    scheduler.save_pretrained(tmp_path / "solvers")
    assert sorted(p.name for p in (tmp_path / "solvers").iterdir()) == ["README.md", "scheduler_config.json"]
    assert (tmp_path / "solvers" / "scheduler_config.json").stat().st_size < 12_000
    again = GASScheduler.from_pretrained(tmp_path / "solvers")
    assert again.nfes == [4, 5, 6, 8, 10] and all(again.tableaus[t.nfe] == t for t in tables)
    assert again.config.card == card and again.config.prediction_type == "epsilon" and len(again) == 1000
    readme = (tmp_path / "solvers" / "README.md").read_text()
    for text in ("fmnist", "4, 5, 6, 8, 10", "| gas | 4 | 0.03125 |", "GASScheduler.from_pretrained('solvers')", "library_name: diffusers", 'license: "apache-2.0"'):
        assert text in readme
    assert readme.startswith("---\n") and model_card(again, "solvers") == readme


def test_a_pipeline_keeps_the_scheduler_when_it_is_saved(tmp_path):
    pipe = pipelines.ddpm()
    teacher = DiffusersTeacher(pipe)
    pipe.scheduler = GASScheduler.from_tableau(random_solver(teacher.schedule, 4), teacher.schedule)
    pipe.save_pretrained(tmp_path)
    again = pipelines.quiet(DiffusionPipeline.from_pretrained(tmp_path))
    assert isinstance(again.scheduler, GASScheduler)
    options = dict(num_inference_steps=4, output_type="np")
    a, b = (p(generator=torch.Generator().manual_seed(0), **options).images for p in (pipe, again))
    assert np.array_equal(a, b)


def test_schedules_are_written_in_few_words():
    sd = make_schedule(SCHEDULES["sd"])
    assert compact_schedule(sd) == dict(kind="discrete", beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, n=1000)
    odd = NoiseSchedule.discrete(betas=torch.linspace(0.01, 0.3, 7).sqrt())
    for schedule in (sd, odd, NoiseSchedule.vp_edm(), NoiseSchedule.flow(1000.0)):
        back = expand_schedule(json.loads(json.dumps(compact_schedule(schedule))))
        t = torch.linspace(0.15, 0.999, 50, dtype=torch.float64)
        assert relative_error(back.lambda_(t), schedule.lambda_(t)) < 1e-9
    with pytest.raises(ValueError, match="beta_schedule"):
        expand_schedule(dict(kind="discrete", beta_schedule="sigmoid", beta_start=0.1, beta_end=0.2, n=10))
    with pytest.raises(ValueError, match="schedule"):
        expand_schedule(dict(kind="discrete", beta_schedule="linear"))


def test_clear_errors():
    schedule = NoiseSchedule.vp_linear()
    scheduler = GASScheduler.from_tableau(random_solver(schedule, 4), schedule)
    x = torch.zeros(1, 2)
    with pytest.raises(ValueError, match="set_timesteps first"):
        scheduler.step(x, 1.0, x)
    with pytest.raises(ValueError, match="num_inference_steps=50: this scheduler has solvers for 4 steps"):
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
    for damage in ({"four": {}}, {"4": 1}, {"4": {"times": [1, 0.5], "offsets": [0], "A": [[1]], "C": [["x"]]}}, {}):
        with pytest.raises(ValueError, match="solvers"):
            GASScheduler.from_config(dict(scheduler.config, solvers=damage))


def test_scheduler_from_runs(tmp_path):
    schedule = NoiseSchedule.vp_linear()
    for n in (4, 6):
        table = random_solver(schedule, n)
        table = Tableau(table.times, table.offsets, table.A, table.C, dict(table.meta, teacher="digits"))
        (tmp_path / str(n)).mkdir()
        table.save(tmp_path / str(n) / "solver.json")
        (tmp_path / str(n) / "metrics.json").write_text(json.dumps(dict(nfe=n, rows=[dict(solver="gas", nfe=n, l1=0.5)])))
    scheduler = GASScheduler.from_runs([tmp_path / "4", tmp_path / "6"], license="mit")
    assert scheduler.nfes == [4, 6] and scheduler.config.card["teacher"] == "digits" and len(scheduler.config.card["figures"]) == 2
    with pytest.raises(ValueError, match="no solver.json"):
        GASScheduler.from_runs(tmp_path)


def test_runs_that_do_not_fit(tmp_path):
    run, other = tmp_path / "a", tmp_path / "b"
    for folder, schedule, n in ((run, NoiseSchedule.vp_linear(), 4), (other, NoiseSchedule.vp_edm(), 5)):
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
    """Empty, cut off, something else, hostile, or not there at all: one kind of error, with the place and what to do."""
    schedule = NoiseSchedule.vp_linear()
    GASScheduler.from_tableau(random_solver(schedule, 4), schedule).save_pretrained(tmp_path / "good")
    whole = (tmp_path / "good" / "scheduler_config.json").read_text()
    config, folder = json.loads(whole), tmp_path / "bad"
    folder.mkdir()
    with pytest.raises(ValueError, match="bad.scheduler_config.json does not exist"):
        GASScheduler.from_pretrained(folder)

    class Hostile:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    not_json = [b"", b"[" * 100_000, b"\x89PNG", pickle.dumps(Hostile()), *(whole[:n].encode() for n in (1, 100, len(whole) // 2, len(whole) - 3))]
    wrong = [dict(solvers={}), dict(solvers={"5": config["solvers"]["4"]}), dict(solvers={"\u00b2": {}}), dict(prediction_type="score"),
             dict(schedule=None), dict(schedule={"kind": "x"}), dict(num_train_timesteps="x"), dict(card="x"),
             dict(schedule=dict(kind="discrete", beta_schedule="linear", beta_start=0.1, beta_end=0.2, n=-4))]
    cases = [(data, "not JSON, or cut off") for data in not_json]
    cases += [(json.dumps(d).encode(), "describes no GASScheduler") for d in ({"a": 1}, [1], DDIMScheduler().config)]
    cases += [(json.dumps(config | change).encode(), next(iter(change)).rstrip("s")) for change in wrong]
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
    monkeypatch.setattr(huggingface_hub, "create_repo", lambda repo_id, **_: types.SimpleNamespace(repo_id="me/" + repo_id))

    def upload_folder(repo_id, folder_path, **options):
        seen.update(repo_id=repo_id, files=sorted(os.listdir(folder_path)), card=open(os.path.join(folder_path, "README.md")).read())
        return "commit"

    monkeypatch.setattr(huggingface_hub, "upload_folder", upload_folder)
    assert scheduler.push_to_hub("solvers", private=True) == "commit"
    assert seen["files"] == ["README.md", "scheduler_config.json"] and seen["repo_id"] == "me/solvers"
    assert "GASScheduler.from_pretrained('me/solvers')" in seen["card"]
    seen.clear()
    scheduler.save_pretrained(tmp_path / "here", push_to_hub=True, repo_id="others", token="t")
    assert seen["repo_id"] == "me/others" and sorted(p.name for p in (tmp_path / "here").iterdir()) == ["README.md", "scheduler_config.json"]

    def dropped(**_):
        raise OSError("connection dropped")

    monkeypatch.setattr(huggingface_hub, "upload_folder", dropped)
    with pytest.raises(ConnectionError, match="me/solvers was not uploaded.*connection dropped.*save_pretrained"):
        scheduler.push_to_hub("solvers")


def test_model_card_says_all_there_is_to_know():
    card = dict(teacher="a pipeline", base_model="me/pipe", figures=[dict(solver="gas", nfe=4, l1=0.5, spacing=None), dict(solver="unipc", nfe=4, l1=0.75)])
    flow = NoiseSchedule.flow(1000.0)
    text = model_card(GASScheduler.from_tableau(list(solvers(flow).values()), flow, "flow_prediction", card), "me/solver")
    for part in ("# Few-step solvers for a pipeline", "4, 5 network evaluations", "`flow_prediction`", "schedule is `flow`", 'base_model: "me/pipe"',
                 "| gas | 4 |  | 0.5 |", "| unipc | 4 |  | 0.75 |", "DiffusionPipeline.from_pretrained('me/pipe')",
                 "GASScheduler.from_pretrained('me/solver')", "num_inference_steps=4", "one of 4, 5", "arXiv 2510.17699"):
        assert part in text, part
    bare = model_card(GASScheduler.from_tableau(random_solver(NoiseSchedule.vp_linear(), 4)))
    assert "Figures" not in bare and "a diffusion model" in bare


def test_push_to_hub_offline(monkeypatch):
    import huggingface_hub

    def unreachable(*_, **__):
        raise OSError("no route")

    monkeypatch.setattr(huggingface_hub, "create_repo", unreachable)
    with pytest.raises(ConnectionError, match="save_pretrained"):
        GASScheduler.from_tableau(random_solver(NoiseSchedule.vp_linear(), 4)).push_to_hub("solvers")


# --- what comes with the package


def fmnist_pipeline(label):
    """The shipped network for one class as a plain pipeline: the class embedding moves into a bias."""
    unet = load_teacher("fmnist", "cpu").denoiser.net.unet
    plain, state = UNet2DModel.from_config(dict(unet.config, num_class_embeds=None)), dict(unet.state_dict())
    embedding = state.pop("class_embedding.weight")[label]
    state["time_embedding.linear_2.bias"] = state["time_embedding.linear_2.bias"] + embedding
    plain.load_state_dict(state)
    betas = dict(beta_start=1e-4, beta_end=0.02, beta_schedule="linear")
    return pipelines.quiet(DDPMPipeline(plain, DDIMScheduler(**betas, clip_sample=False)))


def test_shipped_scheduler_in_a_pipeline():
    """One config with five solvers: what the pipeline makes with each is what `sample` makes, at the class that was asked for.
    The embedded teacher adds the class embedding in another order, and its network makes rounding a little larger."""
    scheduler, embedded = shipped_scheduler("fmnist"), load_teacher("fmnist", "cpu")
    assert scheduler.nfes == [4, 5, 6, 8, 10] and scheduler.schedule == embedded.schedule
    pipe = fmnist_pipeline(label=7)
    teacher = DiffusersTeacher(pipe)
    pipe.scheduler = scheduler
    x_T = torch.randn(1, 1, 32, 32, generator=torch.Generator().manual_seed(1))
    for nfe in scheduler.nfes:
        theirs = pipe(batch_size=1, num_inference_steps=nfe, generator=torch.Generator().manual_seed(1), output_type="np").images
        assert abs(theirs - to_images(teacher.sample(x_T, tableau=scheduler.tableaus[nfe]))).max() <= 1e-5
        assert abs(theirs - to_images(embedded.sample(x_T, 7, scheduler.tableaus[nfe]))).max() <= 1e-3 and theirs.std() > 0.1


def test_shipped_scheduler_is_in_step_with_the_solver_files(tmp_path):
    """What `make solvers` writes beside the solver files is what lies there, and it is small."""
    import make_solvers

    solvers = Path(make_solvers.ROOT) / "gas_nb" / "solvers"
    for file in solvers.glob("fmnist-gs-*.json"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    made = make_solvers.bundle(tmp_path, "fmnist")
    assert all(made.tableaus[n] == Tableau.load(solvers / f"fmnist-gs-{n}.json") for n in (4, 5, 6, 8, 10))
    for name in ("scheduler_config.json", "README.md"):
        without_version = [re.sub(r'"_diffusers_version": "[^"]*"', "", (d / "fmnist" / name).read_text()) for d in (tmp_path, solvers)]
        assert without_version[0] == without_version[1], f"{name}: run `make solvers` or tools/make_solvers.py --bundle-only"
    assert (solvers / "fmnist" / "scheduler_config.json").stat().st_size < 10_000
    card = (solvers / "fmnist" / "README.md").read_text()
    for text in ("Few-step solvers for fmnist", "| gs | 4 |", "| gs | 10 |", "n_eval", "num_inference_steps=4", "license: \"apache-2.0\""):
        assert text in card
    with pytest.raises(ValueError, match="no solvers for 'digits' in the package: there are fmnist"):
        shipped_scheduler("digits")


def test_the_numpy_runner_of_the_docs():
    """The reference runner as the tableau chapter prints it runs a shipped file and agrees with `sample`."""
    chapter = json.loads((Path(__file__).resolve().parent.parent / "nbs" / "foundations" / "tableau.ipynb").read_text())
    code = next("".join(c["source"]) for c in chapter["cells"] if "def run_json" in "".join(c["source"]))
    function = code[code.index("def run_json"):].split("\n\n")[0]
    assert len(function.splitlines()) <= 20 and "torch" not in function and "gas_nb" not in function
    scope = {"np": np}
    exec(function, scope)
    schedule = shipped_scheduler().schedule
    tables = [*shipped_scheduler().tableaus.values(), random_solver(schedule, 5)]
    x_T = torch.randn(2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for table in tables:
        ours = sample(Denoiser(lambda x, t: torch.tanh(x + t[:, None] / 1000), schedule), x_T, table)
        predict = lambda x, t: np.tanh(x + float(schedule.net_time(t)) / 1000)
        theirs = scope["run_json"](table.to_json(), predict, lambda t: float(schedule.alpha(t)), lambda t: float(schedule.sigma(t)), x_T.numpy())
        assert np.abs(ours.numpy() - theirs).max() < 1e-9 * np.abs(theirs).max()


def test_discriminator_class_is_ours(tmp_path):
    state, _ = published_discriminator(load("r3gan_discriminator")[0][0])
    torch.save(state, tmp_path / "d.pt")
    assert isinstance(load_published_discriminator(tmp_path / "d.pt"), Discriminator)
