"""Training-free solvers on every schedule: from pure noise, on any grid, and what they refuse."""

import math

import pytest
import torch

from gas_nb.classic import CLASSIC_SOLVERS, classic_tableau, ddim, deis, dpm_solver_pp, ipndm, unipc
from gas_nb.data import make_pairs
from gas_nb.denoiser import Denoiser
from gas_nb.evaluation import best_classic
from gas_nb.schedule import SPACINGS, NoiseSchedule, spacing
from gas_nb.tableau import sample
from gas_nb.teacher import Teacher, load_teacher
from gas_nb.teachers.diffusers import FLOW_RECIPE

FLOW, VP = NoiseSchedule.flow(), NoiseSchedule.vp_linear()


def flow_denoiser():
    """The digits mixture as an exact flow model."""
    net = load_teacher("digits", "cpu").denoiser.net

    def velocity(x, t, label=None):
        alpha, sigma = (f(t.double())[:, None].to(x.dtype) for f in (FLOW.alpha, FLOW.sigma))
        flat, m, v = x.flatten(1), net.centres.to(x.dtype), alpha**2 * net.s**2 + sigma**2
        mean = (alpha / v * (flat @ m.T) - alpha**2 / (2 * v) * m.square().sum(1)).softmax(1) @ m
        epsilon, clean = (
            sigma / v * (flat - alpha * mean),
            mean + alpha * net.s**2 / v * (flat - alpha * mean),
        )
        return (epsilon - clean).reshape(x.shape)

    return Denoiser(velocity, FLOW, "flow_prediction")


@pytest.fixture(scope="module")
def flow():
    return Teacher("flow", flow_denoiser(), (1, 8, 8), FLOW_RECIPE)


@pytest.fixture(scope="module")
def exact(flow):
    x = torch.randn(60, 1, 8, 8, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    return x, sample(flow.denoiser, x, unipc(FLOW, spacing(FLOW, 300, "time_quadratic"), 3))


@pytest.mark.parametrize("solver", CLASSIC_SOLVERS)
@pytest.mark.parametrize("kind", SPACINGS)
def test_every_solver_walks_every_grid_from_pure_noise(flow, exact, solver, kind):
    x, goal = exact
    off = [
        (sample(flow.denoiser, x, classic_tableau(solver, FLOW, n, kind)) - goal)
        .abs()
        .mean()
        .item()
        for n in (8, 40)
    ]
    first = classic_tableau(solver, FLOW, 8, kind)
    assert first.times[0] == 1 and torch.allclose(first.C[0, 0], FLOW.alpha(first.times[1]))
    assert off[0] < 1.5 and off[1] < 0.05 and off[1] < 0.5 * off[0]


@pytest.mark.parametrize(
    "solver, order",
    [
        ("ddim", 1),
        ("dpm_solver_pp", 2),
        ("unipc", 2),
        ("unipc", 3),
        ("ipndm", 2),
        ("deis", 2),
        ("deis", 3),
    ],
)
def test_convergence_on_an_exact_flow(solver, order):
    """Gaussian data, whose flow has a closed solution; steps of equal time are never small in
    lambda next to t = 1, so order 2 is the most."""
    s = 0.4

    def scale(t):
        return ((1 - t) ** 2 * s**2 + t**2) ** 0.5

    def predict(x, t, offset=0.0, condition=None):
        return (1 - t) * s**2 / scale(t) ** 2 * x

    options = {} if solver == "ddim" else dict(order=order)
    errors = []
    for n in (80, 160, 320):
        table = classic_tableau(solver, FLOW, n, "time_uniform", 0.05, **options)
        errors.append((sample(predict, torch.ones(1).double(), table) - scale(0.05)).abs().item())
    rate = math.log2(errors[1] / errors[2])
    assert rate > min(order, 2) - 0.25, (rate, errors)


def test_the_default_flow_recipe_is_the_flow(flow, exact):
    x, goal = exact
    off = (sample(flow.denoiser, x, flow.tableau) - goal).abs().mean().item()
    old = classic_tableau("dpm_solver_pp", FLOW, 40, "time_uniform", order=2)
    assert off < 0.002 < 0.005 < (sample(flow.denoiser, x, old) - goal).abs().mean().item()


@pytest.mark.parametrize("solver", CLASSIC_SOLVERS)
def test_the_best_solver_is_found_for_a_flow_too(flow, solver):
    table = best_classic(flow, solver, 4, make_pairs(flow, range(8)))
    assert table.meta["recipe"]["solver"] == solver and table.nfe == 4


def test_recipes_say_power_rho_and_shift(flow):
    for grid in (
        dict(spacing="power", power=1.5),
        dict(spacing="time_uniform", shift=3.0),
        dict(spacing="edm", rho=5.0),
    ):
        recipe = dict(solver="unipc", nfe=6, order=2, **grid)
        teacher = Teacher("flow", flow.denoiser, (1, 8, 8), recipe)
        kind, rest = grid["spacing"], {k: v for k, v in grid.items() if k != "spacing"}
        assert torch.equal(teacher.tableau.times, spacing(FLOW, 6, kind, **rest))
        assert teacher.tableau.meta["recipe"] == recipe | dict(t_eps=1e-3)


@pytest.mark.parametrize("make", [ddim, dpm_solver_pp, unipc, ipndm, deis])
@pytest.mark.parametrize(
    "times",
    ["uniform", None, [1.0], [0.5, 0.8], [1.0, 0.5, -0.1], [1.0, 0.5, float("nan")], [[1.0, 0.5]]],
)
def test_times_that_are_none(make, times):
    with pytest.raises(ValueError, match="times"):
        make(VP, times)


@pytest.mark.parametrize("schedule", [FLOW, VP], ids=repr)
def test_only_the_first_order_ends_without_noise(schedule):
    times = [1.0, 0.8, 0.5, 0.2, 0.0]
    end = ddim(schedule, times)
    assert end.A[-1, -1] == 0 and end.C[-1, -1] == 1
    assert unipc(schedule, times).C.isfinite().all()  # falls to order 1 by itself
    with pytest.raises(ValueError, match="only a first-order step can end at 0"):
        dpm_solver_pp(schedule, times)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(solver=None), "solver None"),
        (dict(solver=["unipc"]), "solver"),
        (dict(nfe="4"), "nfe='4'"),
        (dict(nfe=4.0), "nfe=4.0"),
        (dict(t_eps="small"), "t_eps='small'"),
        (dict(t_eps=None), "t_eps=None"),
        (dict(t_eps=float("nan")), "t_eps=nan"),
        (dict(spacing=None), "spacing None"),
        (dict(spacing=["edm"]), "spacing"),
        (dict(spacing="power"), "power=None"),
        (dict(spacing="power", power="2"), "power='2'"),
        (dict(spacing="edm", rho=0), "rho=0"),
        (dict(shift=-1.0), "shift=-1.0"),
        (dict(order="3"), "order='3'"),
        (dict(order=2.0), "order=2.0"),
        (dict(order=True), "order=True"),
        (dict(variants="bh1"), "variants: unipc takes no such option"),
        (dict(schedule=None), "schedule=None"),
        (dict(schedule=dict(kind="flow")), "schedule="),
    ],
    ids=str,
)
def test_a_recipe_that_is_none(arguments, message):
    given = dict(solver="unipc", schedule=VP, nfe=4) | arguments
    with pytest.raises(ValueError, match=message):
        classic_tableau(**given)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (dict(solver="heun"), "'heun'"),
        (dict(spacings=()), "at least one"),
        (dict(orders=()), "at least one"),
        (dict(orders=(9,)), "order"),
    ],
    ids=str,
)
def test_nothing_to_choose_from(flow, arguments, message):
    with pytest.raises(ValueError, match=message):
        best_classic(
            **dict(teacher=flow, solver="unipc", nfe=4, pairs=make_pairs(flow, range(2)))
            | arguments
        )
