"""The game in the tangent space: what critics see, where a turn leads, what it costs, that it goes
on after a kill, and that a network without gradients can play."""

import copy
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import gas_nb.runtime.device  # noqa: F401  (before diffusers)
import pytest
import torch
from diffusers import DDIMScheduler

from gas_nb.data import make_pairs
from gas_nb.front import distil_solver
from gas_nb.fitting.chart import Chart, to_chart
from gas_nb.fitting.distance import Distance
from gas_nb.game.critics import (
    FEATURE_MAKERS,
    CriticName,
    Frechet,
    Kernel,
    Lessons,
    R3GAN,
    RandomFeatures,
    make_critic,
    parse_critics,
    register_features,
)
from gas_nb.game.play import GameOptions, Judged, Table, judge, play, take_turn
from gas_nb.game.tangent import Tangent, tangent_at
from gas_nb.metrics import frechet_distance
from gas_nb.schedule import NoiseSchedule
from gas_nb.tableau import Tableau
from gas_nb.teacher import function_teacher, load_teacher
from gas_nb.training import TrainConfig, load_state, preset_config, train
from gas_nb.training.pairs import game_sizes

ROOT = Path(__file__).parent.parent
CONFIG = TrainConfig(
    teacher="digits",
    nfe=3,
    n_pairs=48,
    n_val=64,
    fit_pairs=32,
    fit_steps=2,
    critics="frechet",
    tangent=dict(pairs=48, judges=32, moves=20),
    device="cpu",
)


@pytest.fixture(scope="module")
def digits():
    return load_teacher("digits", "cpu")


@pytest.fixture(scope="module")
def pairs(digits):
    return make_pairs(digits, range(96), "random")


def drawn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# --- critics


def test_frechet_is_the_distance_that_tables_print():
    fake, real = drawn(300, 6).double() * 2 + 1, drawn(400, 6, seed=1).double()
    (m, S), (n, R) = ((x.mean(0), x.T.cov()) for x in (fake, real))
    torch.testing.assert_close(
        Frechet(real)(fake).item(), float(frechet_distance(m, S, n, R)), rtol=1e-6, atol=1e-8
    )


def test_kernel_has_no_bias_and_sees_a_shift():
    values = [
        Kernel(drawn(60, 4, seed=s).double())(drawn(60, 4, seed=s + 500).double())
        for s in range(60)
    ]
    values = torch.stack(values)
    assert values.mean().abs() < 3 * values.std() / 60**0.5
    assert Kernel(drawn(60, 4).double())(drawn(60, 4, seed=9).double() + 1) > 20 * values.std()


@pytest.mark.parametrize("shape", [(1, 8, 8), (4, 32, 32), (7, 50), (3, 5, 16, 16), (11,)])
@pytest.mark.parametrize("name", ["frechet", "kernel", "r3gan"])
def test_critics_take_any_shape_and_have_a_gradient(shape, name):
    real = drawn(24, *shape)
    fake = (0.5 * real).requires_grad_()
    if name == "r3gan":
        critic = R3GAN(real, lessons=Lessons(8, warm_up=1, batch=8))
        critic.learn(fake.detach())
    else:
        critic = make_critic(CriticName(name), real)
    critic(fake).backward()
    assert torch.isfinite(fake.grad).all() and fake.grad.abs().sum() > 0


def test_random_features_are_the_seed_s():
    x = drawn(2, 3, 8, 8)
    same, other = RandomFeatures((3, 8, 8), 5), RandomFeatures((3, 8, 8), 6)
    assert torch.equal(RandomFeatures((3, 8, 8), 5)(x), same(x))
    assert not torch.allclose(same(x), other(x))


def test_features_of_one_s_own_play_by_name():
    register_features("edges", lambda shape, seed: lambda x: x.diff(dim=-1).flatten(1))
    try:
        (name,) = parse_critics("kernel:edges*2")
        real = drawn(20, 1, 4, 4)
        assert make_critic(name, real)(real * 0.1) > make_critic(name, real)(real)
    finally:
        del FEATURE_MAKERS["edges"]
    with pytest.raises(ValueError, match="name='a b'"):
        register_features("a b", lambda shape, seed: None)


@pytest.mark.parametrize(
    "text", ["", " , ", "fid", "frechet:eyes", "kernel*-1", "kernel*x", "r3gan:eyes"]
)
def test_critics_that_do_not_exist_are_refused_in_words(text):
    with pytest.raises(ValueError, match="critics"):
        TrainConfig(critics=text)


def test_too_many_features_for_a_covariance_are_refused():
    with pytest.raises(ValueError, match="name kernel in its place"):
        make_critic(CriticName("frechet", "pixels"), torch.zeros(4, 3, 32, 32))


# --- the tangent space


def test_samples_move_as_the_network_moves_them(digits, pairs):
    chart = to_chart(Tableau.load(ROOT / "gas_nb/solvers/fmnist-gs-4.json"), digits.schedule)
    tangent = tangent_at(digits.denoiser, chart, pairs[:16])
    z = torch.zeros(tangent.W.shape[1], dtype=torch.float64)
    z[-1] = 1e-4
    moved = tangent.moved(z) - tangent.x
    assert moved.square().mean().sqrt().item() == pytest.approx(1e-4, rel=0.01)
    table = Table(digits.denoiser, pairs[:16], pairs[16:32], Distance(), parse_critics("frechet"))
    made = table.samples(tangent.chart_at(z), pairs[:16]) - tangent.x
    assert (made - moved).norm() < 0.1 * moved.norm()


def blurred(real, least=0.5):
    "Samples that have lost half of what they should be, and one direction that brings it back."
    x = real * least
    V = (real / real.square().mean().sqrt()).flatten(1)[None]
    chart = Chart(torch.ones(1), torch.ones(1), torch.ones(1, 1))
    return Tangent(chart, x, V, torch.eye(3, 1, dtype=torch.float64))


@pytest.mark.parametrize("name", ["frechet", "kernel", "r3gan"])
def test_a_game_brings_back_what_distance_has_lost(name):
    real = drawn(64, 1, 8, 8)
    tangent = blurred(real)
    critic = make_critic(CriticName(name), real)
    z = play(tangent, real, [(1.0, critic)], Distance(), 1e9, 0.4, 60)
    assert 0.2 < z.item() < 0.45  # half of the way to the reals, which are at 0.5


def test_a_game_keeps_the_distance_that_is_allowed_and_the_trust_region():
    real = drawn(64, 1, 8, 8)
    tangent, other = blurred(real), drawn(64, 1, 8, 8, seed=5) * 0.1
    begun = (tangent.x - other).abs().mean().item()
    critic = make_critic(CriticName("frechet"), real)
    z = play(tangent, other, [(1.0, critic)], Distance(), 1.1 * begun, 9.0, 80)
    assert (tangent.moved(z) - other).abs().mean().item() < 1.15 * begun
    z = play(tangent, real, [(1.0, critic)], Distance(), 1e9, 0.05, 80)
    assert z.norm() < 0.06


def test_the_judge_s_error_covers_what_other_noise_says():
    seen = []
    for seed in range(24):
        real = drawn(64, 1, 8, 8, seed=seed)
        seen.append(judge(0.8 * real, 0.85 * real, real, 0))
    gains = torch.tensor([s.gain for s in seen])
    errors = torch.tensor([s.error for s in seen])
    assert 0.5 < errors.mean() / gains.std() < 2


def test_the_judge_takes_no_texture_at_the_price_of_the_layout(digits):
    real = make_pairs(digits, range(128), "random").x_0
    faint = 0.5 * real
    moved_away = judge(faint, real.roll((3, 3), (2, 3)), real, 0)
    assert moved_away.certain > 3 and moved_away.layout < -3 and not moved_away.tells(3)
    right = judge(faint, 0.9 * real, real, 0)
    assert right.certain > 3 and right.layout > 3 and right.tells(3)


def test_a_corner_that_is_always_black_does_not_outweigh_a_picture():
    """In units of its own standard deviation a number that hardly moves would."""
    real = drawn(200, 1, 8, 8)
    real[..., 0, 0] = 1e-4 * drawn(200, 1, seed=1)
    corner, all_of_it = real.clone(), 0.5 * real
    corner[..., 0, 0] += 0.01
    for view in ("pixels", "layout"):
        critic = make_critic(CriticName("kernel", view), real)
        assert critic(corner) < 0.1 * critic(all_of_it)


# --- turns


def test_a_turn_that_loses_layout_is_refused(digits, pairs, monkeypatch):
    critics = parse_critics("frechet")
    options = GameOptions(moves=10, share=1e6)
    table = Table(digits.denoiser, pairs[:64], pairs[64:], Distance(), critics, options=options)
    chart = to_chart(Tableau.load(ROOT / "gas_nb/solvers/fmnist-gs-4.json"), digits.schedule)
    monkeypatch.setattr("gas_nb.game.play.judge", lambda *_: Judged(1.0, 0.1, -2.5))
    turn = take_turn(table, chart)
    assert turn.chart is chart and not turn.accepted
    assert "a worse layout, by 2.5 standard errors" in turn.told
    monkeypatch.setattr("gas_nb.game.play.judge", lambda *_: Judged(1.0, 0.1, -1.5))
    assert take_turn(table, chart).accepted


def test_a_turn_that_is_not_sure_leaves_the_solver_alone(digits, pairs):
    options = GameOptions(errors=1e6, moves=10)
    critics = parse_critics("frechet")
    table = Table(digits.denoiser, pairs[:64], pairs[64:], Distance(), critics, options=options)
    chart = to_chart(Tableau.load(ROOT / "gas_nb/solvers/fmnist-gs-4.json"), digits.schedule)
    turn = take_turn(table, chart)
    assert turn.chart is chart and not turn.accepted and turn.ratio == 1
    assert turn.told.startswith("not moved")


def test_gas_costs_no_more_distance_than_its_share(digits):
    changed = replace(CONFIG, nfe=2, n_pairs=200, n_val=256, tangent=dict(pairs=128, judges=128))
    *_, last = train(changed, digits)
    turn, state = last.state.turn, last.state
    assert turn.ratio <= 1.15
    assert (state.tableau("gs") == replace_name(last.tableau)) != turn.accepted
    assert last.extras["ratio"] == turn.ratio


def replace_name(table):
    return replace(table, meta=table.meta | dict(name="gs"))


@pytest.mark.parametrize("nfe", [1, 4])
def test_gas_ends_as_gs_where_nothing_is_gained(digits, nfe):
    options = dict(pairs=48, judges=32, moves=20, errors=50)
    *_, last = train(replace(CONFIG, nfe=nfe, tangent=options), digits)
    assert not last.state.turn.accepted and last.tableau.name == "gas"
    gs = last.state.tableau("gs")
    for name in ("times", "offsets", "A", "C"):
        assert torch.equal(getattr(gs, name), getattr(last.tableau, name))


def test_evaluations_of_a_game_are_counted_and_bounded(digits):
    teacher = copy.copy(digits)
    few = dict(n_pairs=8, n_val=8, fit=dict(late_pairs=0))
    config = replace(CONFIG, nfe=4, tangent=dict(evaluations=4000, judges=16), **few)
    played, judges = game_sizes(config, teacher)
    assert 16 <= played < 256 and judges == 16
    before, spent = teacher.denoiser.evaluations, 0
    for record in train(config, teacher):
        if record.phase == "fit":
            spent = record.state.spent
            fitted = teacher.denoiser.evaluations
    asked = teacher.denoiser.evaluations - fitted
    of_game = record.state.spent - spent
    assert 2000 <= of_game <= 4050 and before < fitted  # a batch of pairs is filled up
    assert of_game <= asked <= of_game + 100  # the held-out pairs that report


def test_samples_too_large_for_a_game_are_refused_before_work(digits):
    config = replace(CONFIG, tangent=dict(numbers=1000))
    with pytest.raises(ValueError, match="raise tangent.numbers to"):
        next(train(config, digits))


def test_teacher_features_are_asked_only_where_there_are_some(digits):
    flat = replace(digits, features_name="pixels")
    with pytest.raises(ValueError, match="has no feature network"):
        next(train(replace(CONFIG, critics="frechet:teacher"), flat))


def test_a_network_without_gradients_plays(digits):
    net = copy.deepcopy(digits.denoiser.net).eval()
    vp = NoiseSchedule.ddpm()
    mine = partial(function_teacher, shape=(1, 8, 8), schedule=vp, numpy=True)
    teacher = mine(lambda x, t: net(*map(torch.from_numpy, (x, t))))
    config = replace(CONFIG, teacher="function", condition="none", critics="kernel, r3gan")
    *_, last = train(config, teacher)
    assert last.phase == "gas" and last.tableau.name == "gas" and last.state.turn.told


@pytest.mark.parametrize("kind", ["teacher", "pipeline"])
def test_the_front_door_plays(digits, kind):
    told, given = [], {}
    asked = digits
    if kind == "pipeline":
        import pipelines

        asked, given = pipelines.ddpm(DDIMScheduler(clip_sample=False)), dict(batch_size=16)
    solver = distil_solver(asked, nfe=2, budget=600, game=True, progress=told.append, **given)
    (row,) = solver.figures
    assert row["solver"] == "gas" and row["gas_l1_ratio"] <= 1.15
    assert any(line.startswith("GAS: ") for line in told)


RUN = """
import sys
from gas_nb.training import preset_config, train
given = dict(teacher="digits", nfe=2, device="cpu", adversarial_weight=1.0)
config = preset_config("quick", tangent=dict(turns=3, errors=0, pairs=32, judges=32), **given)
for record in train(config, run_dir=sys.argv[1]):
    print(record.phase, record.step, flush=True)
    if (record.phase, str(record.step)) == ("gas", sys.argv[2]):
        import os
        os._exit(1)
"""


def test_a_killed_game_ends_with_the_same_bits(digits, tmp_path):
    command = [sys.executable, "-c", RUN]
    for name, *stops in (("whole", "0"), ("killed", "1", "0")):
        for stop in stops:
            done = subprocess.run([*command, str(tmp_path / name), stop], capture_output=True)
        assert done.returncode == 0, done.stderr
    given = dict(teacher="digits", nfe=2, device="cpu", adversarial_weight=1.0)
    tangent = dict(turns=3, errors=0, pairs=32, judges=32)
    config = preset_config("quick", tangent=tangent, **given)
    a, b = (load_state(config, digits, tmp_path / name) for name in ("whole", "killed"))
    for name, value in a.parameters().items():
        assert torch.equal(value, b.parameters()[name]), name
    assert a.tableau() == b.tableau() and a.tableau().name == "gas"
