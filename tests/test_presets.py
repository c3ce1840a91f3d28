"""The paper's six settings: their values, and that they load and train where weights of the right kind are."""
import gas_nb.compat  # noqa: F401  (before diffusers)

import json

import pipelines
import pytest
import torch
from golden import GOLDEN

from gas_nb.schedule import NoiseSchedule
from gas_nb.teachers.edm import EDMPrecond, save_edm
from gas_nb.teachers.presets import GITS_SIGMAS, SETTINGS, gits_tableau, load_paper_teacher, train_options
from gas_nb.training import TrainConfig, train

PUBLISHED = {  # teacher: steps, spacing, t_eps, variant, guidance; student: t_eps, loss, adversarial weight, iterations, batch size
    "cifar10": (20, "logSNR", 1e-4, "bh1", None, 1e-3, "lpips", 0.1, 10_000, 24),
    "ffhq": (20, "logSNR", 1e-4, "bh1", None, 1e-4, "lpips", 1.0, 10_000, 24),
    "afhqv2": (20, "logSNR", 1e-4, "bh1", None, 1e-4, "lpips", 1.0, 10_000, 24),
    "lsun_bedroom": (20, "time_uniform", 1e-3, "bh2", None, 1e-3, "l1", 1.0, 30_000, 8),
    "imagenet": (10, "time_quadratic", 1e-3, "bh2", 2.0, 1e-3, "l1", 1.0, 30_000, 8),
    "coco": (None, None, None, None, 7.5, 1e-3, "l1", 1.0, 2_000, 4),
}


def test_values():
    assert set(SETTINGS) == set(PUBLISHED)
    for name, (nfe, spacing, t_eps, variant, guidance, student_t_eps, loss, weight, iterations, batch) in PUBLISHED.items():
        s, t = SETTINGS[name], SETTINGS[name].train
        if s.recipe:
            assert (s.recipe["nfe"], s.recipe["spacing"], s.recipe["t_eps"], s.recipe["variant"], s.recipe["order"]) == (nfe, spacing, t_eps, variant, 3)
        assert (s.guidance_scale, t["t_eps"], t["loss"], t["adversarial_weight"], t["iterations"], t["batch_size"]) == (
            guidance, student_t_eps, loss, weight, iterations, batch)
        assert (t["lr"], t["ema"], t["discriminator_lr"]) == (1e-3, 0.999, 1e-5)
        for student in (4, 6, 8, 10):
            assert TrainConfig(**train_options(name, nfe=student)).teacher == name


def test_gits_grids_are_the_published_ones():
    cases = json.loads((GOLDEN / "classic_solvers.json").read_text())
    published = {len(c["sigmas"]) - 1: tuple(c["sigmas"]) for c in cases if c["solver"] == "ipndm"}
    assert GITS_SIGMAS == published
    with pytest.raises(ValueError, match="students have nfe 4 to 7"):
        gits_tableau(NoiseSchedule.vp_linear(), 4)


def tiny_edm(path):
    torch.manual_seed(0)
    save_edm(EDMPrecond(img_resolution=8, model_channels=8, channel_mult=(1, 2), num_blocks=1, attn_resolutions=(4,)), path)
    return path


def test_edm_settings_load_and_train(tmp_path):
    teacher = load_paper_teacher("cifar10", tiny_edm(tmp_path / "net.safetensors"), "cpu")
    assert teacher.name == "cifar10" and teacher.tableau.nfe == 20 and teacher.t_eps == 1e-4
    small = dict(loss="l1", iterations=2, adversarial_iterations=1, n_pairs=8, n_val=2, batch_size=4, discriminator_width=8, device="cpu")
    config = TrainConfig(**train_options("cifar10", nfe=3, **small))
    records = list(train(config, teacher))
    assert [r.phase for r in records] == ["gs", "gs", "gas"] and records[-1].tableau.times[-1] == 1e-3


def test_latent_settings_load(tmp_path):
    pipelines.dit().save_pretrained(tmp_path / "dit")
    teacher = load_paper_teacher("imagenet", tmp_path / "dit", "cpu")
    assert teacher.n_classes == 1000 and teacher.denoiser.guidance_scale == 2.0 and teacher.tableau.nfe == 10
    assert teacher.generate([0], 5).isfinite().all()


def test_coco(tmp_path):
    pipelines.stable_diffusion().save_pretrained(tmp_path / "sd")
    captions = tmp_path / "captions.txt"
    captions.write_text("a cat on a mat\n\na dog\n")
    teacher = load_paper_teacher("coco", tmp_path / "sd", "cpu", nfe=4, prompts=captions)
    assert teacher.class_names == ["a cat on a mat", "a dog"] and teacher.tableau.nfe == 5 and teacher.tableau.name == "ipndm"
    assert teacher.denoiser.guidance_scale == 7.5 and teacher.recipe["spacing"] == "gits"
    assert teacher.with_guidance(2.0).tableau == teacher.tableau and teacher.t_eps == 1e-3
    assert teacher.generate([0, 1], "a dog").isfinite().all()
    assert json.loads(json.dumps(teacher.config)) == teacher.config
    with pytest.raises(ValueError, match="needs captions"):
        load_paper_teacher("coco", tmp_path / "sd", "cpu")
    with pytest.raises(ValueError, match="none.txt cannot be read"):
        load_paper_teacher("coco", tmp_path / "sd", "cpu", prompts=tmp_path / "none.txt")


def test_missing_weights_say_which(tmp_path):
    with pytest.raises(ValueError, match="ffhq needs weights=.*edm-ffhq-64x64-uncond-vp.pkl"):
        load_paper_teacher("ffhq", None)
    with pytest.raises(ValueError, match="not there"):
        load_paper_teacher("cifar10", tmp_path / "none.pkl")
    with pytest.raises(ValueError, match="the paper's are"):
        train_options("mnist")
