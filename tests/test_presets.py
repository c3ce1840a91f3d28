"""The paper's six settings: their values, and that they load and train."""

import gas_nb.runtime.device  # noqa: F401  (before diffusers)

import json
import os
import subprocess
import sys
import urllib.error
from pathlib import Path

import nvidia_pickle
import pipelines
import pytest
import torch
from golden import GOLDEN

from gas_nb.game import GameOptions
from gas_nb.schedule import NoiseSchedule
from gas_nb.tableau import Tableau
from gas_nb.teachers.edm import EDMPrecond, save_edm
from gas_nb.teachers.presets import (
    GITS_SIGMAS,
    SETTINGS,
    gits_tableau,
    load_paper_teacher,
    read_prompts,
    train_options,
)
from gas_nb.training import PRESETS, TrainConfig, resolve, teacher_of, train

ROOT = Path(__file__).resolve().parent.parent

# Teacher: steps, spacing, t_eps, variant, guidance.
# Student: t_eps, loss, adversarial weight, iterations, batch size.
PUBLISHED = {
    "cifar10": (20, "logSNR", 1e-4, "bh1", None, 1e-3, "lpips", 0.1, 10_000, 24),
    "ffhq": (20, "logSNR", 1e-4, "bh1", None, 1e-4, "lpips", 1.0, 10_000, 24),
    "afhqv2": (20, "logSNR", 1e-4, "bh1", None, 1e-4, "lpips", 1.0, 10_000, 24),
    "lsun_bedroom": (20, "time_uniform", 1e-3, "bh2", None, 1e-3, "l1", 1.0, 30_000, 8),
    "imagenet": (10, "time_quadratic", 1e-3, "bh2", 2.0, 1e-3, "l1", 1.0, 30_000, 8),
    "coco": (None, None, None, None, 7.5, 1e-3, "l1", 1.0, 2_000, 4),
}


def test_values():
    assert set(SETTINGS) == set(PUBLISHED)
    for name, (
        nfe,
        spacing,
        t_eps,
        variant,
        guidance,
        student_t_eps,
        loss,
        weight,
        iterations,
        batch,
    ) in PUBLISHED.items():
        s, t = SETTINGS[name], SETTINGS[name].train
        if s.recipe:
            assert (
                s.recipe["nfe"],
                s.recipe["spacing"],
                s.recipe["t_eps"],
                s.recipe["variant"],
                s.recipe["order"],
            ) == (nfe, spacing, t_eps, variant, 3)
        assert (
            s.guidance_scale,
            t["t_eps"],
            t["loss"],
            t["adversarial_weight"],
            t["iterations"],
            t["batch_size"],
        ) == (guidance, student_t_eps, loss, weight, iterations, batch)
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
    save_edm(
        EDMPrecond(
            img_resolution=8,
            model_channels=8,
            channel_mult=(1, 2),
            num_blocks=1,
            attn_resolutions=(4,),
        ),
        path,
    )
    return path


def test_edm_settings_load_and_train(tmp_path):
    teacher = load_paper_teacher("cifar10", tiny_edm(tmp_path / "net.safetensors"), "cpu")
    assert teacher.name == "cifar10" and teacher.tableau.nfe == 20 and teacher.t_eps == 1e-4
    small = dict(
        loss="l1",
        iterations=2,
        adversarial_iterations=1,
        n_pairs=8,
        n_val=2,
        batch_size=4,
        discriminator_width=8,
        device="cpu",
    )
    config = TrainConfig(**train_options("cifar10", nfe=3, **small))
    records = list(train(config, teacher))
    assert [r.phase for r in records] == ["gs", "gs", "gas"] and records[-1].tableau.times[
        -1
    ] == 1e-3


def test_latent_settings_load(tmp_path):
    pipelines.dit().save_pretrained(tmp_path / "dit")
    teacher = load_paper_teacher("imagenet", tmp_path / "dit", "cpu")
    assert (
        teacher.n_classes == 1000
        and teacher.calls[5] == dict(class_labels=[5], guidance_scale=2.0)
        and teacher.tableau.nfe == 10
    )
    assert teacher.generate([0], 5).isfinite().all()
    pipelines.latent_diffusion().save_pretrained(tmp_path / "ldm")
    bedrooms = load_paper_teacher("lsun_bedroom", tmp_path / "ldm", "cpu")
    assert bedrooms.calls == [{}] and bedrooms.generate([0]).isfinite().all()


def test_coco(tmp_path):
    pipelines.stable_diffusion().save_pretrained(tmp_path / "sd")
    captions = tmp_path / "captions.txt"
    captions.write_text("a cat on a mat\n\na dog\n")
    teacher = load_paper_teacher("coco", tmp_path / "sd", "cpu", nfe=4, prompts=captions)
    assert (
        teacher.class_names == ["a cat on a mat", "a dog"]
        and teacher.tableau.nfe == 5
        and teacher.tableau.name == "ipndm"
    )
    assert teacher.calls[1] == dict(prompt="a dog", guidance_scale=7.5)
    assert teacher.recipe["spacing"] == "gits"
    assert teacher.with_guidance(2.0).tableau == teacher.tableau and teacher.t_eps == 1e-3
    assert teacher.generate([0, 1], "a dog").isfinite().all()
    assert json.loads(json.dumps(teacher.config)) == teacher.config
    with pytest.raises(ValueError, match="needs captions"):
        load_paper_teacher("coco", tmp_path / "sd", "cpu")
    with pytest.raises(ValueError, match="none.txt' cannot be read"):
        load_paper_teacher("coco", tmp_path / "sd", "cpu", prompts=tmp_path / "none.txt")


def test_missing_weights_say_which(tmp_path):
    with pytest.raises(ValueError, match="ffhq needs weights=.*edm-ffhq-64x64-uncond-vp.pkl"):
        load_paper_teacher("ffhq", None)
    with pytest.raises(ValueError, match="not there"):
        load_paper_teacher("cifar10", tmp_path / "none.pkl")
    with pytest.raises(ValueError, match="the paper's are"):
        train_options("mnist")


# --- the same by way of the training notebook


def edm_pickle(path):
    """A small network in the published format."""
    sizes = dict(
        img_resolution=8, model_channels=8, channel_mult=[1, 2], num_blocks=1, attn_resolutions=[4]
    )
    torch.manual_seed(0)
    state = EDMPrecond(**sizes).state_dict()
    published = dict(
        img_channels=3,
        label_dim=0,
        use_fp16=False,
        model_type="SongUNet",
        embedding_type="positional",
        encoder_type="standard",
        decoder_type="standard",
        channel_mult_noise=1,
        resample_filter=[1, 1],
    )
    nvidia_pickle.dump(path, "ema", nvidia_pickle.tree(state), "EDMPrecond", published | sizes)
    return path


def parameters(tmp_path, **changes):
    """The notebook's parameters as they stand in its cell, with `changes`."""
    names = dict(
        nfe=4,
        teacher="cifar10",
        weights="",
        prompts="",
        preset="auto",
        method="",
        loss="",
        condition="random",
        adversarial=-1.0,
        iterations=0,
        batch_size=0,
        n_pairs=0,
        n_eval=0,
        lr=0.0,
        seed=0,
        device="cpu",
        output_dir=str(tmp_path / "runs"),
    )
    assert set(changes) <= set(names)
    return names | changes


@pytest.fixture
def weights(tmp_path):
    """Places that look like weights from outside, by setting; and captions."""
    (tmp_path / "net.pkl").write_bytes(b"")
    (tmp_path / "pipe").mkdir()
    (tmp_path / "pipe" / "model_index.json").write_text("{}")
    (tmp_path / "captions.txt").write_text("a cat\n")
    return {
        name: str(tmp_path / ("net.pkl" if s.kind == "edm" else "pipe"))
        for name, s in SETTINGS.items()
    }


@pytest.fixture
def vgg(tmp_path, monkeypatch):
    """As if VGG's weights were there."""
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    (tmp_path / "hub" / "checkpoints" / "vgg16-397923af.pth").write_bytes(b"")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))


def test_a_setting_by_name_is_the_papers_run(tmp_path, weights, vgg):
    for name, (*_, t_eps, loss, weight, iterations, batch) in PUBLISHED.items():
        prompts = str(tmp_path / "captions.txt") if name == "coco" else ""
        for preset in ("auto", "paper"):
            config = resolve(
                parameters(
                    tmp_path, teacher=name, weights=weights[name], prompts=prompts, preset=preset
                )
            )
            assert (config.method, config.t_eps, config.loss, config.adversarial_weight) == (
                "adam",
                t_eps,
                loss,
                weight,
            )
            assert (config.iterations, config.adversarial_iterations, config.batch_size) == (
                iterations,
                iterations,
                batch,
            )
            assert (config.lr, config.ema, config.clip, config.gamma, config.discriminator_lr) == (
                1e-3,
                0.999,
                1.0,
                0.2,
                1e-5,
            )
            assert (config.n_pairs, config.n_val) == (
                SETTINGS[name].train["n_pairs"],
                SETTINGS[name].train["n_val"],
            )


def test_what_the_user_says_wins(tmp_path, weights):
    mine = dict(
        teacher="ffhq",
        weights=weights["ffhq"],
        loss="l2",
        adversarial=0.0,
        lr=0.01,
        iterations=7,
        n_pairs=20,
        n_eval=9,
        method="gauss_newton",
    )
    config = resolve(parameters(tmp_path, **mine))
    assert (
        config.loss,
        config.adversarial_weight,
        config.lr,
        config.iterations,
        config.n_pairs,
        config.n_val,
        config.n_eval,
        config.method,
    ) == ("l2", 0.0, 0.01, 7, 20, 20, 9, "gauss_newton")
    assert config.t_eps == 1e-4 and config.batch_size == 24


def test_another_budget_keeps_the_problem(tmp_path, weights, vgg):
    config = resolve(
        parameters(tmp_path, teacher="afhqv2", weights=weights["afhqv2"], preset="cpu")
    )
    assert (config.loss, config.t_eps) == ("lpips", 1e-4)
    expected = PRESETS["cpu"] | dict(budget=PRESETS["cpu"]["budget"] * config.nfe)
    tangent = GameOptions(**expected.pop("tangent"))
    assert config.tangent == tangent
    assert all(getattr(config, name) == value for name, value in expected.items())
    assert resolve(parameters(tmp_path, teacher="digits")).loss == "l1"


def test_lpips_without_weights_stops_at_once(tmp_path, weights, monkeypatch):
    def no_network(*_, **__):
        raise urllib.error.URLError("no route")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setattr("urllib.request.urlopen", no_network)
    settings = parameters(tmp_path, weights=weights["cifar10"])
    with pytest.raises(
        ValueError,
        match=r"VGG weights.*no route.*put vgg16-397923af\.pth from https.* into "
        r".*hub/checkpoints, or choose loss='l1'",
    ):
        resolve(settings)
    assert resolve(settings | dict(loss="l1")).loss == "l1"
    assert not (tmp_path / "hub").exists()


def test_wrong_settings_stop_before_any_work(tmp_path, weights):
    captions = str(tmp_path / "captions.txt")
    coco = dict(teacher="coco", weights=weights["coco"], prompts=captions)
    bad = [
        (
            dict(teacher="cifar10", loss="l1"),
            "cifar10 needs weights='...', not given: give edm-cifar10",
        ),
        (
            dict(teacher="cifar10", loss="l1", weights=str(tmp_path / "no.pkl")),
            "which is not there",
        ),
        (dict(teacher="imagenet", weights=weights["cifar10"]), "folder with model_index.json"),
        (coco | dict(prompts=""), "coco needs captions"),
        (coco | dict(prompts=str(tmp_path / "no.txt")), "no.txt' cannot be read"),
        (coco | dict(prompts=weights["cifar10"]), "is empty"),
        (coco | dict(nfe=8), "nfe is 4 to 7"),
        (dict(teacher="digits", prompts=captions), "is no text model"),
    ]
    for changes, message in bad:
        with pytest.raises(ValueError, match=message):
            resolve(parameters(tmp_path, **changes))
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9\n")
    with pytest.raises(ValueError, match="not UTF-8"):
        read_prompts(tmp_path / "latin.txt")
    assert not (tmp_path / "runs").exists()


def papermill(tmp_path, **settings):
    command = [
        sys.executable,
        "-m",
        "papermill",
        str(ROOT / "nbs" / "03_train_gas.ipynb"),
        str(tmp_path / "out.ipynb"),
        "--no-progress-bar",
    ]
    command += [word for name, value in settings.items() for word in ("-p", name, str(value))]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=280,
        cwd=tmp_path,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    run = next((tmp_path / "runs").glob("*-nfe*"))
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return (
        Tableau.load(run / "solver.json"),
        *(json.loads((run / f"{name}.json").read_text()) for name in ("config", "metrics")),
        lines,
    )


SMALL = dict(nfe=4, iterations=2, batch_size=4, n_pairs=8, n_eval=4, device="cpu")


def test_papermill_cifar10(tmp_path):
    """The published recipe from a file in the published format; only
    its size is changed, and LPIPS, whose weights tests do not have."""
    solver, config, metrics, lines = papermill(
        tmp_path, teacher="cifar10", weights=edm_pickle(tmp_path / "net.pkl"), loss="l1", **SMALL
    )
    assert (
        [line["phase"] for line in lines] == ["gs", "gs", "gas", "gas"]
        and solver.nfe == 4
        and solver.times[-1] == 1e-3
    )
    assert (config["method"], config["t_eps"], config["loss"], config["adversarial_weight"]) == (
        "adam",
        1e-3,
        "l1",
        0.1,
    )
    rows = {row["solver"]: row for row in metrics["rows"]}
    assert (
        rows["teacher"]["nfe"] == 20
        and rows["teacher"]["l1"] < 1e-4
        and set(rows) >= {"gs", "gas", "unipc"}
    )


@pytest.mark.slow
def test_papermill_coco(tmp_path):
    """Stable Diffusion under guidance 7.5, the teacher
    iPNDM on the GITS grid with one step more."""
    pipelines.stable_diffusion().save_pretrained(tmp_path / "sd")
    (tmp_path / "captions.txt").write_text("a cat\na red shoe\n")
    solver, config, metrics, lines = papermill(
        tmp_path,
        teacher="coco",
        weights=tmp_path / "sd",
        prompts="captions.txt",
        adversarial=0.0,
        **SMALL,
    )
    assert [line["phase"] for line in lines] == ["gs", "gs"] and solver.nfe == 4
    assert (config["loss"], config["t_eps"], config["prompts"]) == ("l1", 1e-3, "captions.txt")
    teacher = next(row for row in metrics["rows"] if row["solver"] == "teacher" or row["nfe"] == 5)
    assert teacher["nfe"] == 5 and teacher["l1"] < 1e-4


def test_coco_trains(tmp_path):
    """What the notebook does with these parameters, without the notebook."""
    pipelines.stable_diffusion().save_pretrained(tmp_path / "sd")
    (tmp_path / "captions.txt").write_text("a cat\na red shoe\n")
    small = {k: v for k, v in SMALL.items() if k != "device"}
    config = resolve(
        parameters(
            tmp_path,
            teacher="coco",
            weights=str(tmp_path / "sd"),
            prompts=str(tmp_path / "captions.txt"),
            **small,
        )
    )
    records = list(train(config, run_dir=tmp_path / "run"))
    assert [r.phase for r in records] == ["gs", "gs", "gas", "gas"] and records[-1].tableau.nfe == 4
    teacher = records[-1].state.teacher
    assert (teacher.tableau.nfe, teacher.tableau.name) == (5, "ipndm")
    assert all(call["guidance_scale"] == 7.5 for call in teacher.calls)
    assert teacher.class_names == ["a cat", "a red shoe"] and config.n_val == 8


def test_a_text_folder_takes_prompts(tmp_path):
    pipelines.stable_diffusion().save_pretrained(tmp_path / "sd")
    (tmp_path / "captions.txt").write_text("a cat\na red shoe\n")
    settings = parameters(
        tmp_path,
        teacher=str(tmp_path / "sd"),
        prompts=str(tmp_path / "captions.txt"),
        preset="quick",
    )
    assert teacher_of(resolve(settings)).class_names == ["a cat", "a red shoe"]
