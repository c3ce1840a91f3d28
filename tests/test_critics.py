"""Critics by name: what each sees, what it brings back, what is refused before a fit begins, and
images of the data as its reals."""

import copy
from dataclasses import replace

import gas_nb.runtime.device  # noqa: F401  (before diffusers)
import pytest
import torch
from diffusers import DDIMScheduler
from PIL import Image

from gas_nb.front import distil_solver
from gas_nb.fitting.chart import Chart
from gas_nb.fitting.distance import Distance
from gas_nb.game.critics import make_critic, parse_critics, register_features
from gas_nb.game.discriminators import (
    FeatureNetwork,
    Lessons,
    PatchNetwork,
    R3GAN,
    Reals,
    scales_of,
    whole_network,
)
from gas_nb.game.play import Table, faced, play
from gas_nb.game.tangent import Tangent
from gas_nb.schedule import NoiseSchedule
from gas_nb.teacher import function_teacher, load_teacher
from gas_nb.teachers.fmnist_data import find_fashion_mnist
from gas_nb.training import TrainConfig, train
from gas_nb.training.pairs import make_game_pairs
from gas_nb.training.phases import check_table
from gas_nb.training.reals import load_reals

EVERY = """frechet, frechet:pixels, frechet:teacher, kernel, kernel:pixels, kernel:classes,
kernel:layout, kernel:teacher:classes, r3gan, r3gan:classes, r3gan:random, r3gan:pixels,
r3gan:teacher, r3gan:random:classes, r3gan:patches, r3gan:patches:classes"""
CONFIG = TrainConfig(
    teacher="digits",
    nfe=2,
    n_pairs=48,
    n_val=64,
    fit_pairs=32,
    fit_steps=2,
    tangent=dict(pairs=48, judges=32, moves=10),
    device="cpu",
)


@pytest.fixture(scope="module")
def digits():
    return load_teacher("digits", "cpu")


def drawn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def blurred(real, least=0.5):
    "Samples that have lost half of what they should be, and one direction that brings it back."
    V = (real / real.square().mean().sqrt()).flatten(1)[None]
    chart = Chart(torch.ones(1), torch.ones(1), torch.ones(1, 1))
    return Tangent(chart, real * least, V, torch.eye(3, 1, dtype=torch.float64))


def rows_and_columns(x):
    "Stands for a teacher's feature network."
    return torch.cat([x.std(2).flatten(1), x.std(3).flatten(1)], 1)


# --- what they see


@pytest.mark.parametrize("paired", [True, False])
@pytest.mark.parametrize("name", parse_critics(EVERY), ids=str)
def test_a_game_brings_back_what_the_set_has_lost(name, paired):
    labels = torch.arange(64) % 3
    reals = Reals(drawn(64, 1, 8, 8), labels)
    if not paired:
        reals = Reals(drawn(96, 1, 8, 8, seed=1), torch.arange(96) % 3, labels, False)
    solver = blurred(drawn(64, 1, 8, 8))
    critic = make_critic(name, reals, 0, rows_and_columns)
    z = play(solver, drawn(64, 1, 8, 8), [(1.0, critic)], Distance(), 1e9, 0.4, 40)
    assert 0.2 < z.item() < 0.45  # half of the way to the reals, which are at 0.5
    fresh = make_critic(name, reals, 1, rows_and_columns)
    said = []
    for place in (z, 0 * z):
        fake = solver.moved(place).requires_grad_()
        if hasattr(fresh, "learn"):
            fresh.learn(solver.x)
        said.append(sum(fresh(fake) for _ in range(8)))
        said[-1].backward()
        assert torch.isfinite(fake.grad).all() and fake.grad.abs().sum() > 0
    assert said[0] < said[1]


@pytest.mark.parametrize("name", ["kernel", "r3gan", "r3gan:random", "r3gan:patches"])
def test_only_with_classes_it_is_seen_that_they_are_exchanged(name):
    labels = torch.arange(80) % 2
    pattern = torch.zeros(2, 1, 8, 8)
    pattern[0, :, ::2], pattern[1, :, :, ::2] = 1, 1
    real = pattern[labels] + 0.3 * drawn(80, 1, 8, 8)
    fake = pattern[1 - labels] + 0.3 * drawn(80, 1, 8, 8, seed=1)
    said = {}
    for written in (name, f"{name}:classes"):
        (critic,) = parse_critics(written)
        critic = make_critic(
            critic, Reals(real, labels, labels, False), lessons=Lessons(warm_up=60)
        )
        if hasattr(critic, "learn"):
            critic.learn(fake)
        said[written] = sum(critic(fake).item() for _ in range(8)) / 8
    without, within = said.values()
    assert within > without + 0.1


def test_reals_of_no_noise_are_drawn_within_the_class():
    labels, asked = torch.arange(50) % 5, torch.tensor([4, 0, 2, 2])
    data = Reals(drawn(50, 3), labels, asked, False)
    rows, draw = torch.arange(4), torch.Generator().manual_seed(0)
    found = [data.partners(rows, draw, alike=True) for _ in range(30)]
    assert all(torch.equal(labels[partners], asked) for partners in found)
    assert len(torch.stack(found)[:, 0].unique()) > 4  # any of its class
    anyone = torch.stack([data.partners(rows, draw) for _ in range(30)])
    assert len(labels[anyone].unique()) == 5
    assert torch.equal(replace(data, paired=True).partners(rows, draw, alike=True), rows)


def test_patches_are_seen_wherever_they_lie():
    network = PatchNetwork((1, 64, 64), 8).double()
    x = torch.zeros(2, 1, 64, 64).double()
    x[0, :, 24:28, 24:28], x[1, :, 32:36, 24:28] = 1, 1  # the same patch, eight rows lower
    one, other = network(x)
    torch.testing.assert_close(one, other)
    assert [scales_of(shape) for shape in ((3, 32, 32), (1, 8, 8), (4, 16, 64))] == [3, 2, 2]


@pytest.mark.parametrize("make", [whole_network, PatchNetwork])
def test_the_penalties_reach_second_derivatives(make):
    x = drawn(8, 1, 8, 8)
    critic = R3GAN(Reals(x, torch.arange(8) % 2), 0, Lessons(8, 1e-2, 5.0, 8, 3), make, classes=2)
    before = [p.clone() for p in critic.network.parameters()]
    critic.learn(x * 0.5)
    after = list(critic.network.parameters())
    assert all(torch.isfinite(p).all() for p in after)
    moved = [not torch.equal(a, b) for a, b in zip(before, after)]
    assert sum(moved) > len(moved) / 2


def test_a_discriminator_on_features_has_penalties_by_features():
    x = drawn(32, 1, 8, 8)
    (name,) = parse_critics("r3gan:random")
    critic = make_critic(name, x)
    assert isinstance(critic.network, FeatureNetwork)
    assert critic.real.shape == (32, 120)
    torch.testing.assert_close(critic.real.std(0).max(), torch.tensor(1.0), atol=0.05, rtol=0)


# --- refused before the fit


def functions(shape, **options):
    return function_teacher(
        lambda x, t: 0 * x, shape=shape, schedule=NoiseSchedule.ddpm(), **options
    )


@pytest.mark.parametrize(
    "shape, critics, said",
    [
        ((3, 32, 32), "frechet:pixels", "frechet on 3072 features"),
        ((7, 50), "r3gan:patches", "patches of samples of shape"),
        ((1, 4, 4), "r3gan:patches", "8 pixels a side"),
        ((1, 8, 8), "kernel:classes", "no class labels"),
        ((1, 8, 8), "r3gan:teacher", "no feature network"),
    ],
)
def test_a_critic_that_samples_cannot_have_is_refused_before_the_fit(shape, critics, said):
    teacher = functions(shape)
    config = replace(CONFIG, teacher="function", condition="none", critics=critics)
    with pytest.raises(ValueError, match=said):
        next(train(config, teacher))
    assert teacher.denoiser.evaluations == 0


def test_classes_need_pairs_that_have_them(digits):
    config = replace(CONFIG, critics="r3gan:classes")
    check_table(config, digits)
    for wrong, pairs in ((replace(config, condition="none"), ()), (config, None)):
        if pairs is None:
            pairs = make_game_pairs(replace(config, condition="none"), digits, 16, 16)
        with pytest.raises(ValueError, match="no class labels"):
            check_table(wrong, digits, pairs)


@pytest.mark.parametrize("text", ["frechet:classes", "kernel:patches", "r3gan:random:pixels"])
def test_views_that_do_not_exist_are_refused_in_words(text):
    with pytest.raises(ValueError, match="critics"):
        TrainConfig(critics=text)


@pytest.mark.parametrize("word", ["teacher", "patches", "classes"])
def test_words_with_a_meaning_name_no_features(word):
    with pytest.raises(ValueError, match=word):
        register_features(word, lambda shape, seed: None)


# --- images of the data


def images_in(folder, n, size=8):
    for i in range(n):
        pixels = drawn(size, size, seed=i).mul(40).add(128).clamp(0, 255).byte()
        Image.fromarray(pixels.numpy()).save(folder / f"{i:03d}.png")
    return str(folder)


def test_the_judge_s_images_are_none_of_the_critics(digits):
    config = replace(CONFIG, reals="dataset")
    reals, unseen = load_reals(config, digits, 300)
    same = torch.cdist(reals.x.flatten(1), unseen.flatten(1)) == 0
    assert len(unseen) == 300 and same.sum() < 5  # a few digits were drawn alike
    again, _ = load_reals(config, digits, 300)
    other, _ = load_reals(replace(config, seed=1), digits, 300)
    assert torch.equal(again.x, reals.x) and not torch.equal(other.x, reals.x)
    assert load_reals(CONFIG, digits, 300) is None


@pytest.mark.parametrize("critics", ["frechet, r3gan", "kernel:classes, r3gan:random:classes"])
def test_a_run_plays_against_the_data(digits, critics):
    config = replace(CONFIG, reals="dataset", critics=critics)
    *_, last = train(config, digits)
    assert last.phase == "gas" and last.state.turn.told and last.state.turn.ratio <= 1.15


def test_critics_face_the_data_with_the_classes_of_the_pairs(digits):
    config = replace(CONFIG, reals="dataset", critics="kernel:classes")
    pairs, judges = make_game_pairs(config, digits, 32, 32)
    reals, unseen = load_reals(config, digits, len(judges))
    facts = digits.denoiser, pairs, judges, Distance(), parse_critics(config.critics)
    table = Table(*facts, reals=reals, unseen=unseen)
    met = faced(table)
    assert torch.equal(met.asked, pairs.condition) and met.classes == 10 and not met.paired
    own = faced(replace(table, reals=None))
    assert own.x is pairs.x_0 and own.paired and torch.equal(own.ours, pairs.condition)


def test_a_folder_of_images_plays(digits, tmp_path):
    config = replace(CONFIG, reals=images_in(tmp_path, 60), critics="frechet")
    *_, last = train(config, digits)
    assert last.state.turn.told


@pytest.mark.parametrize(
    "case", ["none", "few", "size", "damaged", "classes", "latents", "nowhere", "tokens"]
)
def test_images_that_cannot_be_compared_are_refused_before_the_fit(digits, tmp_path, case):
    teacher = copy.copy(digits)
    config = replace(CONFIG, critics="kernel")
    folder = images_in(tmp_path, 20 if case == "few" else 60, 16 if case == "size" else 8)
    said = dict(
        none="comes without images",
        few="give 48 or more",
        size="bring them to that size",
        damaged="take it out",
        classes="0 of 10 classes",
        latents="would need an encoder",
        nowhere="no folder of images",
        tokens="would need an encoder",
    )[case]
    config = replace(config, reals=folder)
    if case == "none":
        config = replace(config, teacher="function", condition="none", reals="dataset")
        teacher = functions((1, 8, 8))
    if case == "damaged":
        (tmp_path / "000.png").write_bytes(b"no picture")
    if case == "classes":
        config = replace(config, critics="kernel:classes")
    if case == "latents":
        teacher = replace(digits, decode=lambda x: x.repeat(1, 3, 8, 8))
    if case == "nowhere":
        config = replace(config, reals=str(tmp_path / "elsewhere"))
    if case == "tokens":
        config, teacher = replace(config, condition="none"), functions((8, 8))
    before = teacher.denoiser.evaluations
    with pytest.raises(ValueError, match=said):
        next(train(config, teacher))
    assert teacher.denoiser.evaluations == before


def test_pipelines_of_pixels_face_images_and_those_of_latents_do_not(tmp_path):
    import pipelines
    from gas_nb.teachers.diffusers import PipelineTeacher

    config = replace(CONFIG, teacher="pipeline", reals=images_in(tmp_path, 60))
    scheduler = DDIMScheduler(clip_sample=False)
    pixels = PipelineTeacher(pipelines.ddpm(scheduler), batch_size=16)
    reals, unseen = load_reals(config, pixels, 32)
    assert reals.x.shape == (28, 1, 8, 8) and len(unseen) == 32
    latents = PipelineTeacher(pipelines.stable_diffusion(), prompts=["a", "b"], batch_size=4)
    with pytest.raises(ValueError, match="would need an encoder"):
        check_table(replace(config, critics="kernel"), latents)
    check_table(replace(config, reals="teacher", critics="r3gan:patches:classes"), latents)


def test_only_the_game_in_the_tangent_space_has_reals():
    for changes in (dict(game="published"), dict(method="adam"), dict(adversarial_weight=0.0)):
        with pytest.raises(ValueError, match="reals='dataset': only critics"):
            TrainConfig(reals="dataset", **changes)
    with pytest.raises(ValueError, match="set game=True"):
        distil_solver(None, reals="dataset")


def test_the_front_door_plays_against_the_data(digits):
    solver = distil_solver(digits, nfe=2, budget=600, game=True, reals="dataset", progress=None)
    (row,) = solver.figures
    assert row["solver"] == "gas" and row["gas_l1_ratio"] <= 1.15


def test_fashion_mnist_brings_images_and_classes():
    try:
        find_fashion_mnist("train", download=False)
    except FileNotFoundError:
        pytest.skip("no Fashion-MNIST on this machine")
    fmnist = load_teacher("fmnist", "cpu")
    config = TrainConfig(reals="dataset", critics="r3gan:classes", device="cpu")
    check_table(config, fmnist)
    reals, unseen = load_reals(config, fmnist, 64)
    assert reals.x.shape == (2048, 1, 32, 32) and unseen.shape == (64, 1, 32, 32)
    assert len(reals.labels.unique()) == 10 and reals.x.min() == -1
    assert fmnist.denoiser.evaluations == 0
