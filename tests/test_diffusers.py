"""Teachers from diffusers: read from the real format, and equal to what the pipelines make with diffusers' own schedulers."""
import json
import shutil

import gas_nb.compat  # noqa: F401  (before diffusers)

import pipelines
import pytest
import torch
from diffusers import DDIMScheduler, EDMEulerScheduler

from gas_nb.classic import ddim
from gas_nb.schedule import NoiseSchedule
from gas_nb.teacher import PAPER_SETTINGS, load_teacher
from gas_nb.teachers.diffusers import DiffusersTeacher, load_diffusers_teacher, schedule_from_scheduler
from gas_nb.teachers.edm import EDMPrecond, save_edm
from gas_nb.teachers.presets import SETTINGS
from gas_nb.training import TrainConfig, train

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
            if name == "dit":  # the published file has the names; save_pretrained drops them
                index = root / key / "model_index.json"
                index.write_text(json.dumps(json.loads(index.read_text()) | {"id2label": {"0": "tench, Tinca", "1": "goldfish"}}))
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
    assert teacher.shape == (1, 8, 8) and teacher.n_classes == 0
    pipe, x_T = teacher.pipeline, torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(5))
    theirs = pipe(batch_size=2, num_inference_steps=50, generator=torch.Generator().manual_seed(5), output_type="np").images
    ours = teacher.sample(x_T, tableau=ddim(teacher.schedule, diffusers_grid(pipe, False)))
    ours = (ours / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy()
    assert abs(ours - theirs).max() < 1e-4 and theirs.std() > 0.01


def test_unconditional_latents(folder):
    teacher = load_diffusers_teacher(folder("latent_diffusion"), "cpu")
    assert teacher.shape == (3, 8, 8) and teacher.n_classes == 0
    pipe, x_T = teacher.pipeline, torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(5))
    theirs = pipe(batch_size=2, num_inference_steps=50, generator=torch.Generator().manual_seed(5), output_type="np").images
    latents = teacher.sample(x_T, tableau=ddim(teacher.schedule, diffusers_grid(pipe, False)))
    ours = (teacher.decode(latents) / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy()
    assert (abs(ours - theirs).max(axis=-1) > 1e-3).mean() < 0.02, "more than a few pixels on the edge between two code words"
    assert theirs.std() > 0.01


def test_dit(folder):
    teacher = load_diffusers_teacher(folder("dit"), "cpu", guidance_scale=2.0)
    assert teacher.n_classes == 1000 and teacher.class_names[1] == "goldfish" and teacher.shape == (4, 8, 8)
    pipe, x_T = teacher.pipeline, torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(5))
    theirs = pipe([1, 7], guidance_scale=2.0, num_inference_steps=20, generator=torch.Generator().manual_seed(5), output_type="np").images
    latents = teacher.sample(x_T, ["goldfish", "7"], ddim(teacher.schedule, diffusers_grid(pipe, False)))
    ours = (teacher.decode(latents) / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy()
    assert abs(ours - theirs).max() < 1e-4 and theirs.std() > 0.01
    assert teacher.generate([0, 1]).isfinite().all()


@pytest.mark.parametrize("name", ["stable_diffusion", "stable_diffusion_v", "stable_diffusion_xl", "stable_diffusion_3", "flux"])
def test_text_pipelines(folder, name):
    v = {"prediction_type": "v_prediction"} if name == "stable_diffusion_v" else {}
    flow = name in ("stable_diffusion_3", "flux")
    teacher = load_diffusers_teacher(folder(name.removesuffix("_v"), **v), "cpu", prompts=PROMPTS, guidance_scale=2.0, size=16)
    assert teacher.denoiser.prediction == ("flow_prediction" if flow else "v_prediction" if v else "epsilon")
    pipe, x_T = teacher.pipeline, torch.randn(2, *teacher.shape, generator=torch.Generator().manual_seed(5))
    options = dict(prompt=PROMPTS[::-1], num_inference_steps=10, output_type="latent", height=16, width=16)
    if name == "flux":
        packed = pipe._pack_latents(x_T, 2, *x_T.shape[1:])
        options |= dict(latents=packed, true_cfg_scale=2.0, negative_prompt=["", ""])
    else:
        options |= dict(latents=x_T, guidance_scale=2.0)
    theirs = pipe(**options).images
    if name == "flux":
        theirs = pipe._unpack_latents(theirs, 16, 16, 2)
    ours = teacher.sample(x_T, PROMPTS[::-1], ddim(teacher.schedule, diffusers_grid(pipe, flow)))
    assert relative(ours, theirs) < 2e-4
    other = teacher.sample(x_T, PROMPTS, ddim(teacher.schedule, diffusers_grid(pipe, flow)))
    assert relative(other, theirs) > 2e-3, "the prompt has no effect"
    assert teacher.decode(ours).shape == (2, 3, 16, 16)
    images = pipe(**(options | {"output_type": "np"})).images
    assert abs((teacher.decode(ours) / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy() - images).max() < 2e-4


def test_the_many_step_recipe_arrives_where_diffusers_arrives(folder):
    """UniPC with 20 steps and DDIM with 200 solve the same equation."""
    teacher = load_diffusers_teacher(folder("stable_diffusion"), "cpu", prompts=PROMPTS, guidance_scale=1.0)
    x_T = torch.randn(2, *teacher.shape, generator=torch.Generator().manual_seed(5))
    fine = teacher.pipeline(PROMPTS, num_inference_steps=200, latents=x_T, guidance_scale=1.0, output_type="latent", height=16, width=16).images
    assert relative(teacher.sample(x_T, PROMPTS), fine) < 0.02


def test_schedules():
    ours, prediction = schedule_from_scheduler(DDIMScheduler(rescale_betas_zero_snr=True, prediction_type="v_prediction"))
    assert prediction == "v_prediction" and 0 < ours.alpha(1.0) < ours.alpha(0.999) < 1e-4
    assert schedule_from_scheduler(DDIMScheduler(trained_betas=[0.1, 0.2, 0.3], num_train_timesteps=3))[0] == NoiseSchedule.discrete(betas=[0.1, 0.2, 0.3])
    with pytest.raises(ValueError, match="says nothing about the image"):
        schedule_from_scheduler(DDIMScheduler(rescale_betas_zero_snr=True))
    with pytest.raises(ValueError, match="EDM's scaling"):
        schedule_from_scheduler(EDMEulerScheduler())


def test_text_teachers_have_prompts_as_classes(folder):
    teacher = load_diffusers_teacher(folder("stable_diffusion"), "cpu", prompts=PROMPTS, size=16)
    assert teacher.n_classes == 2 and teacher.random_conditions([0, 1, 2]).shape == (3,)
    other = teacher.with_prompts(["a cat"]).with_guidance(3.0)
    assert other.class_names == ["a cat"] and other.denoiser.guidance_scale == 3.0 and other.size == 16
    assert other.config != teacher.config and json.loads(json.dumps(teacher.config)) == teacher.config
    with pytest.raises(ValueError, match="with_prompts"):
        teacher.generate(0, "a house")


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
    edm = pipelines.ddpm(scheduler=EDMEulerScheduler())
    with pytest.raises(ValueError, match="EDMEulerScheduler is not supported"):
        DiffusersTeacher(edm)
    with pytest.raises(ValueError, match="no text encoder"):
        DiffusersTeacher(pipelines.ddpm(), prompts=["a cat"])
    pipe = pipelines.ddpm()
    pipe.unet = torch.nn.Linear(1, 1)
    with pytest.raises(ValueError, match="network Linear is not supported"):
        DiffusersTeacher(pipe)


def test_load_teacher_finds_the_right_loader(folder, tmp_path):
    teacher = load_teacher(folder("ddpm"), "cpu", batch_size=3)
    assert isinstance(teacher, DiffusersTeacher) and teacher.batch_size == 3
    assert load_teacher(str(folder("stable_diffusion")), "cpu", prompts=PROMPTS).class_names == PROMPTS
    save_edm(EDMPrecond(img_resolution=8, model_channels=8, channel_mult=(1, 2), num_blocks=1, attn_resolutions=(4,)), tmp_path / "net.safetensors")
    assert load_teacher(tmp_path / "net.safetensors", "cpu").shape == (3, 8, 8)
    assert load_teacher("cifar10", "cpu", weights=tmp_path / "net.safetensors").tableau.nfe == 20
    assert tuple(SETTINGS) == PAPER_SETTINGS
    with pytest.raises(ValueError, match="cifar10 needs weights"):
        load_teacher("cifar10", "cpu")
    with pytest.raises(ValueError, match="offline"):
        load_teacher("nobody/no-such-pipeline", "cpu")
    with pytest.raises(ValueError, match="is not a file"):
        load_teacher(tmp_path / "none.pkl", "cpu")


def test_a_distilled_pipeline(folder):
    """Text-conditional, guided: the training loop takes the teacher as it takes the embedded ones."""
    teacher = load_diffusers_teacher(folder("stable_diffusion"), "cpu", prompts=PROMPTS, guidance_scale=2.0, size=16)
    config = TrainConfig(teacher="sd", nfe=3, adversarial_weight=0.0, n_pairs=16, n_val=8, fit_pairs=8, fit_steps=2, device="cpu")
    records = list(train(config, teacher))
    assert records[-1].val_loss <= records[0].val_loss and records[-1].tableau.nfe == 3


def test_half_precision_networks(folder):
    teacher = load_diffusers_teacher(folder("stable_diffusion"), "cpu", dtype=torch.bfloat16, prompts=PROMPTS, size=16)
    out = teacher.generate([0, 1], "a bag")
    assert out.dtype == torch.float32 and out.isfinite().all() and teacher.decode(out).dtype == torch.float32
