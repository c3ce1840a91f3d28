"""The learned solver: what it starts as, what reaches its
parameters, how it is copied and kept; and the fit behind it."""

import copy
import math

import pytest
import torch
from golden import GOLDEN  # noqa: F401  (puts the helper on the path in the same way as the parity tests)

from gas_nb.classic import CLASSIC_SOLVERS, classic_tableau, dpm_solver_pp
from gas_nb.data import Pairs, make_pairs
from gas_nb.denoiser import Denoiser
from gas_nb.fitting import FitOptions, Outcome
from gas_nb.fitting import sensitivities as derivatives
from gas_nb.fitting import start as start_module
from gas_nb.fitting import step as step_module
from gas_nb.fitting.chart import Chart, to_chart, to_tableau
from gas_nb.fitting.coordinates import coordinates
from gas_nb.fitting.distance import (
    Distance,
    evaluate,
    leverage_weights,
    robust_summary,
    sample_losses,
)
from gas_nb.fitting.rows import fit_rows, least_squares, refit_last_row
from gas_nb.fitting.sensitivities import normal_equations, sensitivities
from gas_nb.fitting.start import (
    FitStep,
    GridTrial,
    choose_grid,
    comparable,
    search_grid,
    start_fit,
)
from gas_nb.fitting.step import Trial, gauss_newton_step, search_damping
from gas_nb.schedule import SPACINGS, NoiseSchedule, spacing
from gas_nb.solver import GeneralizedSolver, stick_breaking, stick_breaking_inverse
from gas_nb.tableau import Tableau, sample
from gas_nb.teacher import load_teacher

VP = NoiseSchedule.vp_linear()
SHAPES = [(3, 1, 8, 8), (2, 4, 16, 16), (4, 33), (2, 3, 4, 8, 8), (5,)]


def wavy(x, t, condition=None):
    return torch.tanh(x * (1 + t.reshape(-1, *[1] * (x.ndim - 1))))


@pytest.fixture(scope="module")
def digits():
    return load_teacher("digits", "cpu")


@pytest.mark.parametrize(
    "schedule",
    [VP, NoiseSchedule.vp_edm(), NoiseSchedule.discrete(betas=torch.linspace(1e-4, 0.02, 1000))],
    ids=repr,
)
@pytest.mark.parametrize("nfe", [1, 2, 3, 5, 10])
def test_zero_offsets_are_dpm_solver_pp_3m(schedule, nfe):
    mine = GeneralizedSolver(schedule, nfe, order=3).tableau()
    theirs = dpm_solver_pp(schedule, spacing(schedule, nfe, "time_uniform"), order=3)
    x = torch.randn(4, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    denoiser = Denoiser(wavy, schedule)
    torch.testing.assert_close(
        sample(denoiser, x, mine), sample(denoiser, x, theirs), rtol=1e-9, atol=1e-9
    )


@pytest.mark.parametrize("nfe", [2, 4, 7])
@pytest.mark.parametrize("order", [1, 2, 3, None])
def test_every_used_parameter_gets_a_gradient_and_no_other(nfe, order):
    gs = GeneralizedSolver(VP, nfe, order)
    gs.sample(Denoiser(wavy, VP), torch.randn(16, 9, dtype=torch.float64)).square().sum().backward()
    for name, used in gs.used.items():
        gradient = getattr(gs, name).grad
        assert torch.isfinite(gradient).all() and torch.equal(gradient != 0, used), name


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_any_shape_and_precision(shape):
    gs, denoiser = GeneralizedSolver(VP, 4), Denoiser(wavy, VP)
    x = torch.randn(shape)
    with torch.no_grad():
        out = gs.sample(denoiser, x)
        each = torch.cat([gs.sample(denoiser, x[i : i + 1]) for i in range(len(x))])
    assert out.shape == x.shape and out.dtype == torch.float32
    torch.testing.assert_close(out, each)
    assert gs.sample(denoiser, x.double()).dtype == torch.float64


def test_deepcopy_state_dict_and_json_are_independent_copies():
    gs = GeneralizedSolver(VP, 5)
    with torch.no_grad():
        for p in gs.parameters():
            p.add_(0.01 * torch.randn_like(p))
    copied, loaded = copy.deepcopy(gs), GeneralizedSolver.from_config(gs.config)
    loaded.load_state_dict(gs.state_dict())
    before = gs.tableau()
    with torch.no_grad():
        gs.time_logits.add_(0.5)
    assert copied.tableau() == before and loaded.tableau() == before and gs.tableau() != before
    assert Tableau.from_json(before.to_json()) == before


@pytest.mark.parametrize("solver", CLASSIC_SOLVERS)
@pytest.mark.parametrize("kind", SPACINGS)
def test_every_classic_solver_is_some_setting_of_the_parameters(solver, kind):
    table = classic_tableau(solver, VP, 6, kind)
    back = GeneralizedSolver(VP, 6).load_tableau(table).tableau()
    x, denoiser = torch.randn(3, 5, dtype=torch.float64), Denoiser(wavy, VP)
    torch.testing.assert_close(
        sample(denoiser, x, back), sample(denoiser, x, table), rtol=1e-9, atol=1e-9
    )


def test_stick_breaking_is_one_to_one():
    g = torch.Generator().manual_seed(0)
    for n in (2, 5, 12):
        logits = torch.randn(n - 1, generator=g, dtype=torch.float64) * 2
        times = stick_breaking(logits, 1e-3)
        assert (times.diff() < 0).all() and times[0] == 1 and times[-1] == 1e-3
        torch.testing.assert_close(stick_breaking_inverse(times), logits, rtol=1e-8, atol=1e-8)


# ---- the fit -------------------------------------------------------------------------------------


def random_chart(n, seed=0):
    g = torch.Generator().manual_seed(seed)
    s = torch.linspace(1, 0.2, n, dtype=torch.float64) + 0.02 * torch.rand(
        n, generator=g, dtype=torch.float64
    )
    return Chart(
        s,
        torch.rand(n, generator=g, dtype=torch.float64),
        torch.randn(n, n, generator=g, dtype=torch.float64).tril() * 0.3,
    )


@pytest.mark.parametrize("nfe", [1, 2, 4])
def test_sensitivities_are_the_derivative(digits, nfe):
    chart = random_chart(nfe)
    x = torch.randn(2, 1, 8, 8, dtype=torch.float64)

    def run(v):
        c = Chart.from_vector(v, nfe)
        times = iter(c.s)
        return sample(lambda x, t, xi, cond: digits.denoiser(x, next(times)), x, c.internal())

    exact = torch.autograd.functional.jacobian(run, chart.vector()).movedim(-1, 0)
    out, J = sensitivities(digits.denoiser, chart, x, options=FitOptions(difference=1e-6))
    torch.testing.assert_close(out, run(chart.vector()))
    assert J.shape[0] == 2 * nfe + nfe * (nfe + 1) // 2
    for mine, theirs in zip(J, exact):
        assert (mine - theirs).norm() < 1e-3 * theirs.norm() + 1e-9


def test_normal_equations_do_not_depend_on_the_chunks(digits):
    pairs = make_pairs(digits, range(30), "random")
    chart = random_chart(3)
    G, g, loss = normal_equations(
        digits.denoiser, chart, pairs, Distance("l2"), 0.1, max_batch=1000
    )
    for size in (7, 40):
        other = normal_equations(digits.denoiser, chart, pairs, Distance("l2"), 0.1, max_batch=size)
        torch.testing.assert_close(other[0], G, rtol=2e-2, atol=2e-2 * G.abs().max().item())
        assert other[2] == pytest.approx(loss, rel=1e-4)


def test_the_table_of_a_chart_is_the_chart(digits):
    for s in ([1.1, 0.5, 0.6, 0.1], [0.6, 0.5, 0.3, 0.0005], [1.0, 0.9, 0.8, 0.7]):
        chart = Chart(torch.tensor(s, dtype=torch.float64), random_chart(4).a, random_chart(4).C)
        table = to_tableau(chart, digits.schedule, 1e-3)
        assert (
            table.times[0] == 1
            and table.times[-1] == 1e-3
            and torch.allclose(table.times[:-1] + table.offsets, chart.s)
        )
        x, steps = torch.randn(3, 1, 8, 8, dtype=torch.float64), iter(s)
        direct = sample(lambda x, t, xi, c: digits.denoiser(x, next(steps)), x, chart.internal())
        torch.testing.assert_close(sample(digits.denoiser, x, table), direct, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("solver", ["dpm_solver_pp", "unipc", "ipndm"])
def test_every_tableau_has_a_chart(digits, solver):
    """Also with offsets, and with rows that read old states."""
    tab = classic_tableau(solver, digits.schedule, 5, "logSNR", 1e-3, order=3)
    A = (
        tab.A
        + 0.1
        * torch.rand(5, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64).tril()
    )
    tab = Tableau(
        tab.times, torch.tensor([0.05, -0.02, 0.0, 0.01, 0.02], dtype=torch.float64), A, tab.C
    )
    x = torch.randn(3, 1, 8, 8, dtype=torch.float64)
    same = to_tableau(to_chart(tab, digits.schedule), digits.schedule, 1e-3)
    torch.testing.assert_close(
        sample(digits.denoiser, x, same), sample(digits.denoiser, x, tab), rtol=1e-7, atol=1e-7
    )


def test_the_start_with_the_teachers_nfe_is_the_teacher(digits):
    """At 20 evaluations one training-free solver hits the
    teacher exactly, and the fit has to see that and stay there."""
    pairs = make_pairs(digits, range(24))
    _, path = sample(digits.denoiser, pairs[:16].x_T, digits.tableau, return_trajectory=True)
    start = start_fit(digits.denoiser, 20, 1e-3, pairs[:16], pairs[16:], path, Distance())
    assert start.val_loss < 1e-4
    assert (
        evaluate(digits.denoiser, start.chart, make_pairs(digits, range(100, 110)), Distance())
        < 1e-4
    )


def test_the_damping_search_goes_where_the_loss_falls():
    asked = []

    def valley(damping):
        asked.append(damping)
        return Trial(abs(torch.tensor(damping).log10().item() + 4), damping, None)

    assert search_damping(valley, 1e-1, bar=9.0).damping == pytest.approx(1e-4, rel=1e-3)
    assert search_damping(valley, 1e-6, bar=9.0).damping == pytest.approx(1e-4, rel=1e-3)
    asked.clear()
    nowhere = search_damping(
        lambda damping: asked.append(damping) or Trial(float("nan"), damping, None), 1.0, bar=1.0
    )
    assert not nowhere.loss < 1.0 and len(asked) <= 6 + len(FitOptions().damping_ladder)

    def two_valleys(damping):
        where = torch.tensor(damping).log10().item()
        return Trial(min(9.0 + abs(where - 3), 5.0 + abs(where + 5)), damping, None)

    assert search_damping(two_valleys, 1e3, bar=9.05).damping == pytest.approx(
        1e-5, rel=1e-3
    )  # the near one gains too little


@pytest.mark.parametrize("nfe", [1, 4, 9])
def test_straight_coordinates_keep_a_method_on_other_times(nfe):
    """They lead back to the chart, their derivative is that
    of the map, and DDIM stays DDIM wherever the times go."""
    vp = NoiseSchedule.vp_linear()
    chart = random_chart(nfe)
    place = coordinates(chart, vp, 1e-3)
    torch.testing.assert_close(
        place.to_chart(place.origin).vector(), chart.vector(), rtol=1e-7, atol=1e-7
    )
    exact = torch.autograd.functional.jacobian(
        lambda v: place.to_chart(v).vector()[nfe:], place.origin
    )[:, nfe:]
    torch.testing.assert_close(place.jacobian()[nfe:, nfe:], exact, rtol=1e-7, atol=1e-7)
    step = torch.zeros_like(place.origin)
    step[0] = 1e-4
    change = (
        place.to_chart(place.origin + step).vector() - place.to_chart(place.origin - step).vector()
    ) / 2e-4
    torch.testing.assert_close(
        place.jacobian()[:, 0], change, rtol=1e-3, atol=1e-3 * change.abs().max().item()
    )

    ddim = to_chart(classic_tableau("ddim", vp, nfe, "logSNR", 1e-3), vp)
    place = coordinates(ddim, vp, 1e-3)
    s = (
        torch.linspace(1, 0.1, nfe, dtype=torch.float64)
        if nfe > 1
        else torch.tensor([0.9], dtype=torch.float64)
    )
    moved = place.to_chart(torch.cat([s, place.origin[nfe:]]))
    times = torch.cat([s, torch.tensor([1e-3], dtype=torch.float64)])
    lam, alpha = vp.lambda_(times), vp.alpha(times)
    torch.testing.assert_close(moved.a, vp.sigma(times)[1:] / vp.sigma(times)[:-1])
    torch.testing.assert_close(
        moved.C, torch.diag(-alpha[1:] * torch.expm1(-lam.diff())), rtol=1e-7, atol=1e-7
    )


def test_straight_coordinates_give_way_where_lambda_is_infinite_or_does_not_rise():
    flow, chart = NoiseSchedule.flow(), random_chart(3)
    from_pure_noise = Chart(torch.tensor([1.0, 0.6, 0.2], dtype=torch.float64), chart.a, chart.C)
    back_and_forth = Chart(torch.tensor([1.0, 0.4, 0.6], dtype=torch.float64), chart.a, chart.C)
    for c, schedule in ((from_pure_noise, flow), (back_and_forth, NoiseSchedule.vp_linear())):
        place = coordinates(c, schedule, 1e-3)
        assert torch.equal(place.origin, c.vector()) and torch.equal(
            place.to_chart(c.vector()).vector(), c.vector()
        )
        assert torch.equal(place.jacobian(), torch.eye(len(c.vector()), dtype=torch.float64))


def test_the_refitted_last_row_is_the_best_one(digits):
    pairs, chart = (
        make_pairs(digits, range(60)),
        to_chart(classic_tableau("ddim", digits.schedule, 4, "logSNR", 1e-3), digits.schedule),
    )
    best = refit_last_row(digits.denoiser, chart, pairs, Distance("l2"), 0.1)
    assert (
        torch.equal(best.s, chart.s)
        and torch.equal(best.C[:-1], chart.C[:-1])
        and torch.equal(best.a[:-1], chart.a[:-1])
    )
    loss = evaluate(digits.denoiser, best, pairs, Distance("l2"))
    assert loss < evaluate(digits.denoiser, chart, pairs, Distance("l2"))
    for i in range(4):  # no coefficient of it can move without loss
        C = best.C.clone()
        for by in (-0.02, 0.02):
            C[-1, i] = best.C[-1, i] + by
            assert evaluate(digits.denoiser, Chart(best.s, best.a, C), pairs, Distance("l2")) > loss
    l1, l1_refitted = (
        evaluate(digits.denoiser, c, pairs, Distance())
        for c in (best, refit_last_row(digits.denoiser, best, pairs, Distance(), 0.1))
    )
    assert l1_refitted < l1
    assert (
        refit_last_row(digits.denoiser, chart, pairs, Distance("l1", lambda v: v.flatten(1)), 0.1)
        is chart
    )


def test_a_flipped_sample_counts_as_eight_ordinary_errors():
    losses = torch.linspace(0.5, 1.5, 101, dtype=torch.float64)
    flipped = torch.cat([losses, torch.tensor([500.0], dtype=torch.float64)])
    assert robust_summary(losses) == (1.0, pytest.approx(1.0))
    assert robust_summary(flipped)[1] == pytest.approx(
        (losses.sum().item() + 8 * robust_summary(flipped)[0]) / 102
    )


def test_a_fit_takes_more_pairs_and_then_arrives(digits):
    """A step that cannot gain doubles the pairs; with all
    of them it says so and leaves the solver as it is."""
    pairs = make_pairs(digits, range(40))
    chart = random_chart(2)
    state = FitStep(
        0, 0.0, 1.0, 0.1, chart, True, 8, typical=1.0, capped=0.0
    )  # nothing is below a loss of 0
    seen = []
    for _ in range(4):
        state = gauss_newton_step(digits.denoiser, state, pairs[:20], pairs[20:], Distance())
        seen.append(state.pairs)
        assert not state.accepted and state.chart is chart
    assert seen == [16, 20, 20, 20] and state.damping == FitOptions().arrived
    assert state.outcome == Outcome.ARRIVED


def test_dampings_are_tried_on_few_held_out_pairs_and_the_step_is_judged_on_all(
    digits, monkeypatch
):
    train, val = make_pairs(digits, range(100)), make_pairs(digits, range(100, 300))
    rows = fit_rows(
        digits.denoiser,
        spacing(VP, 3, "power", power=1.75),
        train.x_T,
        train.x_0,
        sample(digits.denoiser, train.x_T, digits.tableau, return_trajectory=True)[1],
    )
    loss, judged = evaluate(digits.denoiser, rows, val, Distance()), []
    monkeypatch.setattr(
        step_module, "sample_losses", lambda *a: judged.append(len(a[2])) or sample_losses(*a)
    )
    state = gauss_newton_step(
        digits.denoiser,
        FitStep(0, loss, loss, 0.1, rows, True, 80, typical=loss, capped=loss),
        train,
        val,
        Distance(),
    )
    assert (
        judged[-1] == 200 and set(judged[:-1]) == {80} and len(judged) >= 4
    )  # the solver before, two dampings or more; the one taken
    assert (
        state.accepted
        and state.val_loss == evaluate(digits.denoiser, state.chart, val, Distance()) < loss
    )
    judged.clear()
    gauss_newton_step(digits.denoiser, state._replace(pairs=8), train, val, Distance())
    assert set(judged[:-1]) == {FitOptions().damping_pairs}
    judged.clear()
    gauss_newton_step(digits.denoiser, state, train, val[:80], Distance())
    assert set(judged) == {80}  # few are all: nothing is judged twice


class Watched:
    """A linear stand-in for a network that notes its batches."""

    def __init__(self, denoiser):
        self.schedule, self.batches = denoiser.schedule, []

    def __call__(self, x, t, offset=0.0, condition=None):
        self.batches.append(len(x))
        return 0.5 * x + (torch.as_tensor(t, dtype=x.dtype).view(-1, 1, 1, 1))


def test_memory_of_a_step_grows_neither_with_nfe_nor_with_pairs(digits, monkeypatch):
    """The largest network batch and the images that a chunk's
    Jacobian and its ingredients hold stay within the same bounds."""
    pairs, whole, held = make_pairs(digits, range(200)), derivatives.sensitivities, []

    def noted(denoiser, chart, x_T, *rest):
        held.append(
            len(x_T) * len(chart.vector()) * chart.nfe
        )  # columns, times one dD per earlier evaluation
        return whole(denoiser, chart, x_T, *rest)

    monkeypatch.setattr(derivatives, "sensitivities", noted)
    for nfe, n in ((4, 50), (4, 200), (10, 50), (10, 200)):
        watched, count = Watched(digits.denoiser), len(held)
        normal_equations(watched, random_chart(nfe), pairs[:n], Distance(), 0.1, max_batch=100)
        assert max(watched.batches) <= 100 and max(held[count:]) <= 3200


def test_the_grid_search_shares_the_first_call_and_sorts(digits):
    pairs = make_pairs(digits, range(60))
    calls = []

    class Counting:
        schedule = digits.schedule

        def __call__(self, x, t, offset=0.0, condition=None):
            calls.append(t)
            return digits.denoiser(x, t, offset, condition)

    _, path = sample(digits.denoiser, pairs[:40].x_T, digits.tableau, return_trajectory=True)
    trials = search_grid(
        Counting(),
        4,
        1e-3,
        pairs[:40],
        pairs[40:],
        path,
        Distance(),
        grids=tuple(dict(kind="power", power=p) for p in (1.0, 1.5, 2.0)),
    )
    assert [t.loss for t in trials] == sorted(t.loss for t in trials)
    assert calls.count(1.0) == 2  # one for the fitted pairs, one for the held-out ones


def test_a_fit_may_begin_with_its_first_evaluation_in_the_middle_of_its_step(digits):
    """Only the evaluation moves: the rows still lead to the states at the grid's times."""
    pairs = make_pairs(digits, range(60))
    _, path = sample(digits.denoiser, pairs[:40].x_T, digits.tableau, return_trajectory=True)
    grids = (dict(kind="power", power=1.5), dict(kind="power", power=1.5, middle=True))
    found = {
        trial.grid.get("middle", False): trial
        for trial in search_grid(
            digits.denoiser, 4, 1e-3, pairs[:40], pairs[40:], path, Distance(), grids=grids
        )
    }
    times = spacing(digits.schedule, 4, "power", power=1.5)
    assert found[False].chart.s.tolist() == pytest.approx(times[:-1].tolist())
    assert found[True].chart.s.tolist() == pytest.approx(
        [times[1].sqrt().item(), *times[1:-1].tolist()]
    )
    assert found[True].chart.a[0] != found[False].chart.a[0]
    assert evaluate(digits.denoiser, found[True].chart, pairs[40:], Distance()) == pytest.approx(
        found[True].loss
    )


def judged_grid(losses, **grid):
    losses = torch.tensor(losses, dtype=torch.float64)
    return GridTrial(grid, losses.mean().item(), None, losses)


def test_of_grids_that_will_do_the_one_near_power_is_chosen():
    """Worse rows are forgiven while the same noises leave it open whether they are worse;
    another kind of grid is taken only where no power grid is left."""
    best = judged_grid([0.10, 0.08, 0.12, 0.10], kind="power", power=1.25, middle=True)
    other = judged_grid([0.11, 0.09, 0.13, 0.09], kind="logSNR", middle=True)
    flipped = judged_grid(
        [0.10, 0.08, 0.12, 0.30], kind="power", power=1.75, middle=True
    )  # half as bad again, for one sample's sake
    worse = judged_grid(
        [0.11, 0.09, 0.13, 0.11], kind="power", power=1.75, middle=True
    )  # a tenth, on every sample
    assert choose_grid([best, other, flipped])["power"] == 1.75
    assert choose_grid([best, other, worse])["power"] == 1.25
    assert (
        choose_grid([best, other, judged_grid([0.1, 0.08, 0.12, 0.3], kind="power", power=2.5)])[
            "power"
        ]
        == 1.25
    )
    assert (
        choose_grid([judged_grid([0.07, 0.05, 0.09, 0.07], kind="edm"), best, worse])["kind"]
        == "edm"
    )
    broken = judged_grid([0.1, float("nan"), 0.1, 0.1], kind="power", power=1.75)
    assert choose_grid([best, broken])["power"] == 1.25 and not comparable(
        judged_grid([math.inf] * 4), best
    )
    assert comparable(judged_grid([0.1]), judged_grid([0.1])) and not comparable(
        judged_grid([0.11]), judged_grid([0.1])
    )


def test_a_hopeless_training_free_solver_is_not_judged_on_all_held_out_pairs(digits, monkeypatch):
    """With 4 evaluations rows are far ahead on 32 pairs; with 20
    a training-free solver is the teacher and gets its hearing."""
    pairs, seen = make_pairs(digits, range(140)), []
    train, val = pairs[:40], pairs[40:]
    _, path = sample(digits.denoiser, train.x_T, digits.tableau, return_trajectory=True)
    monkeypatch.setattr(
        start_module, "sample_losses", lambda *a: seen.append(len(a[2])) or sample_losses(*a)
    )
    start_fit(digits.denoiser, 4, 1e-3, train, val, path, Distance())
    assert seen.count(100) == 1 and set(seen) == {FitOptions().trial_pairs, 100}
    seen.clear()
    start = start_fit(digits.denoiser, 20, 1e-3, train, val, path, Distance())
    assert seen.count(100) == 2 and start.val_loss < 1e-6


def test_reweighted_squares_shrug_at_outliers():
    """A line through points of which a tenth is off by far:
    plain squares follow those, reweighted ones hardly."""
    x = torch.linspace(-1, 1, 200, dtype=torch.float64)
    y = 2 * x + 1
    y[::10] += 5.0
    columns = [x, torch.ones_like(x)]
    plain = least_squares(columns, y)
    weighed = least_squares(
        columns, y, weigh=lambda r: Distance("l1", delta=0.01).weights(r, 1.0), rounds=10
    )
    assert abs(plain[1] - 1) > 0.4
    assert weighed.tolist() == pytest.approx([2, 1], abs=0.02)


def test_the_last_row_of_a_start_is_fitted_as_it_is_judged(digits):
    pairs = make_pairs(digits, range(120))
    _, path = sample(digits.denoiser, pairs.x_T, digits.tableau, return_trajectory=True)
    times = spacing(digits.schedule, 4, "power", power=2.0)
    plain, l1 = (
        fit_rows(digits.denoiser, times, pairs.x_T, pairs.x_0, path, distance=d)
        for d in (None, Distance("l1"))
    )
    assert torch.equal(plain.C[:3], l1.C[:3]) and not torch.equal(plain.C[3], l1.C[3])
    assert evaluate(digits.denoiser, l1, pairs, Distance("l1")) < 0.95 * evaluate(
        digits.denoiser, plain, pairs, Distance("l1")
    )
    assert torch.equal(
        fit_rows(digits.denoiser, times, pairs.x_T, pairs.x_0, path, distance=Distance("l2")).C,
        plain.C,
    )


def test_distance_kinds():
    with pytest.raises(ValueError, match="'huber'"):
        Distance("huber")
    x, y = torch.randn(4, 6), torch.randn(4, 6)
    assert Distance("l1").loss(x - y).item() == pytest.approx((x - y).abs().mean().item())
    assert Distance("l1").losses(x - y).tolist() == pytest.approx((x - y).abs().mean(1).tolist())
    assert Distance("l1").weights(
        torch.tensor([[0.0, 0.97]]), 0.1
    ).flatten().tolist() == pytest.approx([1 / 0.03, 1.0])
    J = torch.ones(2, 5, 6)
    J[:, 3] = 100.0  # one sample of five is a hundred times as sensitive
    assert (
        leverage_weights(J).argmin() == 3
        and leverage_weights(J)[3] < 0.01
        and leverage_weights(J)[0] == pytest.approx(0.9)
    )
    assert (Distance("l1").weights(torch.ones(5, 6), 1.0, J)[3] < 0.01).all() and (
        Distance("l2").weights(torch.ones(5, 6), 1.0, J) == 1
    ).all()
    off = torch.full((5, 6), 0.1)
    off[1] = -0.9  # one sample has landed on another image
    plain, robust = (
        Distance("l1").weights(off, 0.1, J[:, [0, 1, 2, 4, 0]], *far) for far in ((), (0.3,))
    )
    assert (robust / plain)[:, 0].tolist() == pytest.approx(
        [1 / (1 + 1 / 9), 1 / (1 + 9), *[1 / (1 + 1 / 9)] * 3]
    )
    features = Distance("l2", lambda v: v[:, :2])
    assert features.residual(x, y).shape == (4, 2)


def test_guided_teacher_distils(digits):
    """Guidance doubles the network's batch, and the fit
    goes through it like through any denoiser."""
    guided = digits.with_guidance(2.0)
    pairs = make_pairs(guided, range(40), "random")
    assert isinstance(pairs, Pairs)
    _, path = sample(
        guided.denoiser, pairs.x_T, guided.tableau, pairs.condition, return_trajectory=True
    )
    trials = search_grid(
        guided.denoiser,
        4,
        1e-3,
        pairs[:30],
        pairs[30:],
        type(path)(path.times, [s[:30] for s in path.states], [d[:30] for d in path.predictions]),
        Distance(),
    )
    assert trials[0].loss < 0.2


@pytest.mark.parametrize("method", ["gauss_newton"])
def test_a_flow_model_distils(digits, method):
    """The digits mixture as a flow-matching model: alpha is 0 at t = 1, where lambda is -inf."""
    from gas_nb.evaluation import best_classic, measure
    from gas_nb.teacher import Teacher
    from gas_nb.training import TrainConfig, make_training_pairs, train

    flow, net = NoiseSchedule.flow(), digits.denoiser.net

    def velocity(x, t, label=None):
        alpha, sigma = (f(t.double())[:, None].to(x.dtype) for f in (flow.alpha, flow.sigma))
        flat, m, v = x.flatten(1), net.centres.to(x.dtype), alpha**2 * net.s**2 + sigma**2
        mean = (alpha / v * (flat @ m.T) - alpha**2 / (2 * v) * m.square().sum(1)).softmax(1) @ m
        epsilon = sigma / v * (flat - alpha * mean)
        clean = mean + alpha * net.s**2 / v * (flat - alpha * mean)
        return (epsilon - clean).reshape(x.shape)

    recipe = dict(solver="dpm_solver_pp", nfe=40, spacing="time_uniform", t_eps=1e-3, order=2)
    teacher = Teacher("flow-digits", Denoiser(velocity, flow, "flow_prediction"), (1, 8, 8), recipe)
    config = TrainConfig(
        teacher="flow-digits",
        method=method,
        condition="none",
        iterations=60,
        fit_steps=4,
        fit_pairs=150,
        n_pairs=200,
        n_val=100,
        adversarial_weight=0.0,
        device="cpu",
    )
    pairs = make_training_pairs(config, teacher)
    judged = make_pairs(teacher, range(50_000, 50_100))
    for record in train(config, teacher, pairs=pairs):
        assert torch.isfinite(torch.tensor(record.loss))
    learned = measure(teacher, record.tableau, judged)[0]["l1"]
    classic = measure(
        teacher,
        best_classic(teacher, "dpm_solver_pp", 4, pairs[1], ("time_uniform", "time_quadratic")),
        judged,
    )[0]["l1"]
    assert learned < (0.5 if method == "gauss_newton" else 1.0) * classic, (learned, classic)
    assert record.tableau.offsets[0] == 0
