"""Teachers: values with checked fields, recognised by what
they answer, and loaders that swallow nothing."""

import copy
import json
import os
import pickle
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import gas_nb.runtime.device  # noqa: F401  (before diffusers)

import numpy as np
import pipelines
import pytest
import torch
from torch import nn

from gas_nb.classic import dpm_solver_pp
from gas_nb.data import PairDataset, generate_pairs, make_pairs, pairs_folder, teacher_differences
from gas_nb.denoiser import Denoiser
from gas_nb.runtime.files import write_json_atomic
from gas_nb.schedule import NoiseSchedule, spacing
from gas_nb.sweep import Sweep, SweepConfig, exact_teacher
from gas_nb.tableau import Tableau
from gas_nb.teacher import RECIPE, Teacher, load_teacher, teacher_kind
from gas_nb.teachers.diffusers import PipelineTeacher, load_diffusers_teacher
from gas_nb.teachers.edm import EDMPrecond, save_edm
from gas_nb.teachers.presets import load_paper_teacher
from gas_nb.training import TrainConfig, make_training_pairs, resolve, train

VP = NoiseSchedule.ddpm()
R = dict(solver="unipc", nfe=20)
ROOT = Path(__file__).resolve().parent.parent
PROMPTS = ["a red shoe", "a bag"]


def scaled(c, schedule=VP, **options):
    return Teacher("mine", Denoiser(lambda x, t: c * x, schedule), (2,), R, **options)


def halve(x, time):
    return x / 2


@pytest.fixture(scope="module")
def digits():
    return load_teacher("digits", "cpu")


# --- identity


def test_teachers_of_one_name_are_told_apart_by_their_answers(tmp_path):
    small, large = scaled(0.2), scaled(0.9)
    assert teacher_differences(small.config, large.config) and not teacher_differences(
        large.config, scaled(0.9).config
    )
    config = TrainConfig(
        teacher="mine",
        nfe=3,
        adversarial_weight=0.0,
        n_pairs=16,
        n_val=8,
        fit_pairs=8,
        fit_steps=1,
        device="cpu",
        condition="none",
    )
    folder = tmp_path / "a"
    folder.mkdir()
    pairs = [make_training_pairs(config, t, folder)[0] for t in (large, small, large)]
    assert not torch.equal(pairs[0].x_0, pairs[1].x_0) and torch.equal(pairs[0].x_0, pairs[2].x_0)
    assert torch.equal(pairs[1].x_0, make_training_pairs(config, small)[0].x_0)
    assert len(list((tmp_path / "pairs").iterdir())) == 2
    assert list(train(config, large, folder))
    assert not list(train(config, large, folder))  # done
    with pytest.raises(
        ValueError,
        match="made with another teacher.*answers equal questions otherwise.*"
        "another output directory",
    ):
        list(train(config, small, folder))


@pytest.mark.parametrize(
    "change",
    [
        dict(denoiser=Denoiser(halve, NoiseSchedule.ddpm(1e-4, 0.03))),
        dict(denoiser=Denoiser(halve, NoiseSchedule.vp_linear())),
        dict(denoiser=Denoiser(halve, VP, "v_prediction")),
        dict(denoiser=Denoiser(lambda x, t: x * 0.51, VP)),
        dict(denoiser=Denoiser(lambda x, t: x / 2 + 1e-5 * t[:, None], VP)),
        dict(recipe=dict(solver="ddim", nfe=20)),
        dict(weights_hash="b"),
    ],
)
def test_schedule_prediction_answers_and_what_was_told_belong_to_the_identity(change, tmp_path):
    teacher = Teacher("mine", Denoiser(halve, VP), (2,), R, weights_hash="a")
    other = replace(teacher, **change)
    assert teacher_differences(teacher.config, other.config) and teacher_differences(
        other.config, teacher.config
    )
    assert json.loads(json.dumps(other.config)) == other.config
    generate_pairs(teacher, range(4), tmp_path / "d")
    with pytest.raises(ValueError, match="holds other pairs: teacher"):
        generate_pairs(other, range(4), tmp_path / "d")


def test_a_module_is_recognised_again_after_its_weights_change():
    torch.manual_seed(0)
    net = nn.Conv2d(1, 1, 3, padding=1).requires_grad_(False)
    teacher = Teacher("net", Denoiser(lambda x, t: net(x), VP), (1, 8, 8), R)
    known = replace(teacher, denoiser=replace(teacher.denoiser, net=Asked(net)))
    before = known.config
    with torch.no_grad():
        net.weight[0, 0, 0, 0] += 1e-4  # less than any measured tolerance
    assert teacher_differences(before, known.config)


class Asked(nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x, time):
        return self.net(x)


def test_the_last_digits_make_no_other_teacher(digits, tmp_path):
    generate_pairs(digits, range(10), tmp_path / "d")
    program = f"""
import json, sys, torch
torch.set_num_threads(2)
from pathlib import Path
from dataclasses import replace
from gas_nb.data import generate_pairs, pairs_folder
from gas_nb.teacher import load_teacher
teacher = replace(load_teacher("digits", "cpu"), batch_size=3)
generate_pairs(teacher, range(10), Path({str(tmp_path / "d")!r}))
print(pairs_folder("x", teacher, range(10)))
"""
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "2"}
    done = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(pairs_folder("x", digits, range(10)))
    stored = copy.deepcopy(digits.config)
    stored["answers"]["none"] = [[v * (1 + 1e-4) for v in row] for row in stored["answers"]["none"]]
    assert not teacher_differences(stored, digits.config)


def test_folders_of_before_are_taken_up_where_a_hash_vouches_for_them(digits, tmp_path):
    old = ("name", "shape", "recipe", "prediction", "guidance_scale", "weights")
    for teacher, vouched in ((digits, True), (scaled(0.5), False)):
        folder = pairs_folder(tmp_path, teacher, range(10))
        made = generate_pairs(teacher, range(10), folder)
        write_json_atomic(
            folder / "manifest.json",
            made.manifest | dict(teacher={k: made.teacher[k] for k in old}),
        )
        assert PairDataset(folder).verify()
        assert (pairs_folder(tmp_path, teacher, range(10)) == folder) == vouched
    assert not teacher_differences(
        {k: digits.config[k] for k in old} | dict(name="/somewhere/digits"), digits.config
    )


def test_what_a_manifest_says_about_answers_is_never_trusted(digits):
    for broken in (
        None,
        3,
        {},
        dict(tolerance="x"),
        dict(tolerance=1, none="ab"),
        dict(tolerance=0.1, none=[[1.0]]),
    ):
        assert teacher_differences(digits.config | dict(answers=broken), digits.config)
    assert teacher_differences(None, digits.config)


def test_a_pipelines_betas_weights_and_text_encoders_belong_to_its_identity():
    def teacher(change=None, **scheduler):
        pipe = pipelines.stable_diffusion(**scheduler)
        if change:
            change(pipe)
        return PipelineTeacher(pipe, prompts=PROMPTS, guidance_scale=2.0, size=16)

    def scale(module):
        with torch.no_grad():
            next(module.parameters()).mul_(1.001)

    plain = teacher().config
    assert not teacher_differences(plain, teacher().config)
    for other in (
        teacher(lambda p: scale(p.text_encoder)),
        teacher(lambda p: scale(p.unet)),
        teacher(
            lambda p: p.register_modules(
                scheduler=type(p.scheduler).from_config(p.scheduler.config, beta_end=0.02)
            )
        ),
    ):
        assert teacher_differences(plain, other.config)
    mine = teacher()
    before = mine.config
    scale(mine.pipeline.text_encoder)  # as a LoRA that is loaded later
    assert teacher_differences(before, mine.config)


def test_sweeps_exact_teacher_keeps_everything_but_the_recipe(tmp_path):
    sweep = Sweep(SweepConfig("digits", exact_steps=30, device="cpu"), tmp_path)
    sweep.teacher = PipelineTeacher(
        pipelines.stable_diffusion(), "sd", PROMPTS, 2.0, size=16, batch_size=7
    )
    exact = exact_teacher(sweep)
    assert (
        exact.tableau.nfe == 30
        and exact.prompts == PROMPTS
        and exact.batch_size == 7
        and isinstance(exact, PipelineTeacher)
    )
    assert (
        exact.config["calls"]
        == sweep.teacher.config["calls"]
        != sweep.teacher.with_prompts(["a cat"]).config["calls"]
    )


# --- copies


def test_pipeline_teachers_are_copied_whole():
    grid = spacing(VP, 5, "time_uniform")
    teacher = PipelineTeacher(
        pipelines.stable_diffusion(),
        "sd",
        PROMPTS,
        2.0,
        size=16,
        batch_size=5,
        recipe=dict(solver="mine"),
        tableau=lambda schedule: dpm_solver_pp(schedule, grid),
    )
    copies = (
        teacher.remembering(),
        teacher.with_guidance(2.0),
        replace(teacher, name="sd"),
        teacher.with_prompts(PROMPTS),
        teacher.remembering().with_prompts(PROMPTS),
    )
    x = teacher.generate([0, 1], "a bag")
    for other in copies:
        assert isinstance(other, PipelineTeacher) and (
            other.batch_size,
            other.calls,
            other.recipe,
        ) == (5, teacher.calls, dict(solver="mine"))
        assert other.tableau == teacher.tableau and torch.equal(other.generate([0, 1], "a bag"), x)
    changed = replace(teacher, name="other", recipe=R, make_tableau=None)
    assert changed.tableau.nfe == 20 and changed.name == "other" and teacher.name == "sd"
    with pytest.raises(ValueError, match="with_prompts"):
        replace(teacher, class_names=["a cat"])


def test_teachers_can_be_pickled(digits):
    assert torch.equal(pickle.loads(pickle.dumps(digits)).generate(0), digits.generate(0))
    own = Teacher("own", Denoiser(halve, VP), (2,), R)
    other = pickle.loads(pickle.dumps(own))
    assert torch.equal(
        other.features(torch.ones(2, 2)), torch.ones(2, 2)
    ) and not teacher_differences(own.config, other.config)
    pipe = PipelineTeacher(pipelines.ddpm(), "ddpm")
    again = pickle.loads(pickle.dumps(pipe))
    assert torch.equal(again.generate(0), pipe.generate(0)) and not teacher_differences(
        pipe.config, again.config
    )


def test_changed_fields_raise_and_copies_recompute(digits):
    for name, value in dict(name="x", recipe=R, batch_size=3, device="cpu").items():
        with pytest.raises(AttributeError):
            setattr(digits, name, value)
    assert replace(digits, recipe=R | dict(nfe=7)).tableau.nfe == 7 and digits.tableau.nfe == 20


def test_a_teachers_name_holds_no_folders(tmp_path):
    pipelines.ddpm().save_pretrained(tmp_path / "runs" / "my-ddpm")
    for path in (
        tmp_path / "runs" / "my-ddpm",
        f"{tmp_path}/runs/my-ddpm/",
        f"{tmp_path}/runs/../runs/my-ddpm",
    ):
        teacher = load_teacher(path, "cpu")
        assert teacher.name == "my-ddpm" and str(tmp_path) not in json.dumps(teacher.config)
    config = TrainConfig(
        teacher="p",
        nfe=3,
        adversarial_weight=0.0,
        n_pairs=8,
        n_val=4,
        fit_pairs=8,
        fit_steps=1,
        device="cpu",
    )
    tableau = list(train(config, teacher))[-1].tableau
    assert tableau.meta["teacher"] == "my-ddpm" and str(tmp_path) not in tableau.to_json()


# --- the network


@pytest.mark.parametrize(
    ("net", "prediction", "message"),
    [
        (lambda x, t, c=None: x[:, :1, :1], "epsilon", "they must agree"),
        (lambda x, t, c=None: x.mul_(0.5), "epsilon", "in place"),
        (lambda x, t, c=None: torch.nn.functional.dropout(x, 0.1), "epsilon", r"net.eval\(\)"),
        (lambda x, t, c=None: x / 0, "epsilon", "not finite"),
        (
            lambda x, t, c=None: load_teacher("digits", "cpu").denoiser.net(x, t),
            "sample",
            "predicts epsilon",
        ),
    ],
)
def test_a_network_is_looked_at_before_pairs_are_made(net, prediction, message, tmp_path):
    teacher = Teacher("mine", Denoiser(net, VP, prediction), (1, 8, 8), R)
    with pytest.raises(ValueError, match=message):
        make_pairs(teacher, range(4))
    with pytest.raises(ValueError, match=message):
        generate_pairs(teacher, range(4), tmp_path / "d")
    assert not list(tmp_path.rglob("*.safetensors"))


def test_samples_much_larger_than_noise_are_warned_of(digits):
    with pytest.warns(UserWarning, match="prediction type"):
        make_pairs(Teacher("mine", Denoiser(lambda x, t: -x, VP), (2,), R), range(4))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make_pairs(digits, range(4))


# --- options


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("digits", dict(bandwith=0.5), "no option bandwith: there are bandwidth, guidance_scale"),
        ("fmnist", dict(prompts=["a"]), "no option prompts"),
        ("digits", dict(weights="nowhere"), "leave weights empty"),
        ("digits", dict(bandwidth=0), "bandwidth=0"),
        ("digits", dict(bandwidth="wide"), "bandwidth='wide'"),
        ("digits", dict(guidance_scale=None), "guidance_scale=None"),
        ("cifar10", dict(guidance=3), "no option guidance"),
        ("owner/name", dict(denoiser=1), "no option denoiser"),
        (None, {}, "teacher None"),
        (3, {}, "teacher 3"),
        (["digits"], {}, "teacher"),
    ],
)
def test_loaders_swallow_nothing(name, options, message):
    with pytest.raises(ValueError, match=message):
        load_teacher(name, "cpu", **options)


def test_options_that_exist_take_effect(tmp_path):
    assert load_teacher("digits", "cpu", bandwidth=0.5).denoiser.net.s == 0.5
    guided = load_teacher("fmnist", "cpu", guidance_scale=3)
    assert guided.denoiser.guidance_scale == 3.0
    save_edm(
        EDMPrecond(
            img_resolution=8, model_channels=8, channel_mult=(1, 2), num_blocks=1, label_dim=3
        ),
        tmp_path / "net.safetensors",
    )
    assert (
        load_teacher(tmp_path / "net.safetensors", "cpu", guidance_scale=2).denoiser.guidance_scale
        == 2.0
    )
    with pytest.raises(ValueError, match="no option prompts"):
        load_teacher(tmp_path / "net.safetensors", "cpu", prompts="a cat")
    with pytest.raises(ValueError, match="no text model"):
        load_paper_teacher("cifar10", tmp_path / "net.safetensors", "cpu", prompts=["a cat"])
    with pytest.raises(ValueError, match="DDPMPipeline takes no guidance_scale"):
        PipelineTeacher(pipelines.ddpm(), guidance_scale=3)


def test_weights_that_nobody_reads_stop_the_command_at_once(tmp_path):
    names = dict(
        nfe=4,
        teacher="digits",
        weights="nowhere",
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
    with pytest.raises(ValueError, match="weights='nowhere'"):
        resolve(names)
    assert not (tmp_path / "runs").exists()


def test_one_text_is_one_prompt(tmp_path):
    pipe = pipelines.stable_diffusion()
    assert PipelineTeacher(pipe, prompts="a cat", size=16).prompts == ["a cat"]
    teacher = PipelineTeacher(pipe, prompts=iter(PROMPTS), size=16)
    assert teacher.prompts == PROMPTS and teacher.with_prompts("a dog").class_names == ["a dog"]
    (tmp_path / "captions.txt").write_text("a cat\n\na dog\n")
    assert teacher.with_prompts(tmp_path / "captions.txt").prompts == ["a cat", "a dog"]
    for prompts in (
        ["a cat", ""],
        [" "],
        [3],
        [None],
        3,
        b"a cat",
        "",
        str(tmp_path / "captions.txt"),
        tmp_path / "none.txt",
    ):
        with pytest.raises(ValueError, match="prompts"):
            teacher.with_prompts(prompts)
    pipe.save_pretrained(tmp_path / "sd")
    assert load_diffusers_teacher(tmp_path / "sd", "cpu", prompts="a cat").prompts == ["a cat"]
    for size in (0, "big", 2.5, True, []):
        with pytest.raises(ValueError, match="size="):
            PipelineTeacher(pipe, size=size)


# --- fields, seeds, conditions


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(recipe=dict(nfe=20)), "solver None"),
        (dict(recipe=None), "recipe=None"),
        (dict(recipe=R | dict(steps=3)), "unknown options steps"),
        (dict(recipe=R | dict(nfe="20")), "nfe='20'"),
        (dict(recipe=R | dict(nfe=2.5)), "nfe=2.5"),
        (dict(recipe=dict(solver=3, nfe=3)), "solver 3"),
        (dict(name=None), "name=None"),
        (dict(name=3), "name=3"),
        (dict(shape=(2, 0)), r"shape=\(2, 0\)"),
        (dict(shape=(-1,)), "shape="),
        (dict(shape=()), "shape="),
        (dict(shape=2), "shape=2"),
        (dict(shape=None), "shape=None"),
        (dict(shape=(2.0,)), "shape="),
        (dict(class_names="abc"), "class_names='abc'"),
        (dict(class_names=[1, 2]), "class_names holds 1"),
        (dict(class_names=3), "class_names=3"),
        (dict(batch_size=0), "batch_size=0"),
        (dict(batch_size=2.0), "batch_size=2.0"),
        (dict(batch_size=None), "batch_size=None"),
        (dict(device="gpu9"), "device='gpu9'"),
        (dict(device=None), "device=None"),
        (dict(denoiser=halve), "give Denoiser"),
        (dict(features=3), "functions"),
    ],
)
def test_fields_that_do_not_fit_are_refused(change, message):
    fields = dict(name="a", denoiser=Denoiser(halve, VP), shape=(2,), recipe=R)
    assert Teacher(**fields, class_names=None).n_classes == 0
    with pytest.raises(ValueError, match=message):
        Teacher(**(fields | change))


@pytest.mark.parametrize(
    "seeds",
    [-1, 1.5, 2**31, None, "12", True, [], [0.5], [[1]], torch.tensor([0.5]), torch.tensor([[1]])],
)
def test_seeds_that_are_none_are_refused(digits, seeds):
    with pytest.raises(ValueError, match="seed"):
        digits.generate(seeds)


def test_seeds_of_numpy_and_torch_are_seeds(digits):
    for seed in (np.int64(3), torch.tensor(3), torch.tensor([3]), np.array([3])):
        assert torch.equal(digits.generate(seed), digits.generate(3))


@pytest.mark.parametrize(
    "condition",
    ["nine", [1, "2"], [None, 1], 0.5, True, -1, 10, object(), {}, [[1, 2]], [], [1, 2, 3], 1j],
)
def test_conditions_that_a_teacher_does_not_have_are_refused(digits, condition):
    with pytest.raises(ValueError, match="condition|labels"):
        digits.generate([0, 1], condition)


def test_class_names_are_conditions_of_every_teacher(digits):
    assert torch.equal(digits.generate([0, 1], "7"), digits.generate([0, 1], 7))
    assert torch.equal(digits.generate([0, 1], ["7", "3"]), digits.generate([0, 1], [7, 3]))


def test_what_is_no_noise_or_no_tableau_is_refused(digits):
    x = torch.zeros(2, 1, 8, 8)
    for wrong in (x.long(), x[:0], x[:, 0], None, 3):
        with pytest.raises(ValueError, match="x_T"):
            digits.sample(wrong)
    with pytest.raises(ValueError, match="tableau='ddim'"):
        digits.sample(x, tableau="ddim")
    for options in (dict(chunk=0), dict(chunk="5"), dict(chunk=2.5), dict(chunk=None)):
        with pytest.raises(ValueError, match="chunk="):
            make_pairs(digits, range(4), **options)


def test_a_name_of_no_kind_is_refused_in_words():
    for name in (None, 3, True, b"digits", ""):
        with pytest.raises(ValueError, match="teacher"):
            teacher_kind(name)
    assert teacher_kind("digits") == "embedded" and isinstance(
        Tableau.from_json(load_teacher("digits", "cpu").tableau.to_json()), Tableau
    )
    assert RECIPE["solver"] == "unipc"
