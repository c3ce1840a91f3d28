"""What a fit reports and refuses, its options, and the rows for runs that begin in the middle."""

import json
import math
import time

import pytest
import torch

from gas_nb.classic import classic_tableau, ddim, unipc
from gas_nb.data import Pairs, make_pairs
from gas_nb.denoiser import Denoiser
from gas_nb.fitting import late as late_starts
from gas_nb.fit import Chart, Distance, fit_late_starts, least_squares, start_fit, to_tableau
from gas_nb.fitting import FitOptions, gauss_newton_step
from gas_nb.fitting.distance import residual_weights
from gas_nb.fitting.late import fine_states
from gas_nb.fitting.start import usual_grids
from gas_nb.interop import GASScheduler, shipped_scheduler, start_at
from gas_nb.schedule import NoiseSchedule
from gas_nb.solver import GeneralizedSolver
from gas_nb.tableau import Tableau, sample
from gas_nb.teacher import Teacher, load_teacher
from gas_nb.training import TrainConfig, load_state, save_state, train


@pytest.fixture(scope="module")
def digits():
    return load_teacher("digits", "cpu")


def config(**changes):
    plain = dict(
        teacher="digits",
        condition="none",
        adversarial_weight=0,
        fit_steps=6,
        fit_pairs=64,
        n_pairs=300,
        n_val=200,
        device="cpu",
    )
    return TrainConfig(**plain | changes)


def last(records):
    for record in records:
        pass
    return record


@pytest.fixture(scope="module")
def trained(digits):
    """Solvers of 4 and 6 evaluations, as a run leaves them."""
    pairs = make_pairs(digits, range(500)).split(200)
    return {nfe: last(train(config(nfe=nfe), digits, pairs=pairs)) for nfe in (4, 6)}


# ---- the held-out loss ---------------------------------------------------------------------------


def test_the_printed_loss_is_that_of_fresh_noise(digits, trained):
    fresh = make_pairs(digits, range(60_000, 61_000))
    for record in trained.values():
        off = (
            (digits.sample(fresh.x_T, tableau=record.tableau) - fresh.x_0).abs().flatten(1).mean(1)
        )
        error = math.hypot(record.extras["val_error"], off.std().item() / len(off) ** 0.5)
        assert abs(record.val_loss - off.mean().item()) < 2 * error


def test_pairs_that_report_choose_nothing(digits):
    """Other reporting pairs: another printed loss, the same solver to the last bit."""
    training, held_out = make_pairs(digits, range(160)).split(60)
    spoiled = held_out.x_0.clone()
    spoiled[30:] += 0.5
    other = Pairs(held_out.seeds, held_out.x_T, spoiled, held_out.condition)
    a, b = (
        last(train(config(fit_steps=3), digits, pairs=(training, pairs)))
        for pairs in (held_out, other)
    )
    assert a.tableau == b.tableau and b.val_loss > a.val_loss + 0.3


def test_the_printed_loss_belongs_to_the_solver_and_a_kept_solver_keeps_it(digits):
    training, held_out = make_pairs(digits, range(160)).split(60)
    seen = {}
    for record in train(config(fit_steps=5), digits, pairs=(training, held_out)):
        chart = record.state.fit.chart
        assert seen.setdefault(tuple(chart.vector().tolist()), record.val_loss) == record.val_loss
        table = to_tableau(chart, digits.schedule, 1e-3)
        off = (
            (digits.sample(held_out.x_T[30:], tableau=table) - held_out.x_0[30:])
            .abs()
            .mean()
            .item()
        )
        assert record.val_loss == pytest.approx(off, rel=1e-3)


def test_a_checkpoint_from_before_the_split_goes_on(digits, tmp_path, monkeypatch):
    pairs = make_pairs(digits, range(160)).split(60)
    records = train(config(fit_steps=3), digits, tmp_path, pairs)
    next(records), next(records)
    state = load_state(config(fit_steps=3), digits, tmp_path)
    state.reported, state.late = None, {}
    save_state(state, tmp_path / "checkpoint.safetensors")
    record = last(train(config(fit_steps=3), digits, tmp_path, pairs))
    assert record.step == 4 and math.isfinite(record.val_loss)


def test_one_held_out_pair_is_too_few(digits):
    with pytest.raises(ValueError, match="n_val=1"):
        config(n_val=1)
    with pytest.raises(ValueError, match="1 held-out pairs"):
        next(train(config(), digits, pairs=make_pairs(digits, range(20)).split(1)))


# ---- runs that begin in the middle ---------------------------------------------------------------


def image_to_image(denoiser, tableau, b, images, seed=7):
    """(off, off of DDIM): distance to the ODE's solution
    from other images, noised to the b-th time."""
    t, schedule = tableau.times[b].item(), denoiser.schedule
    eps = torch.randn(images.shape, generator=torch.Generator().manual_seed(seed))
    x = schedule.alpha(t).float() * images + schedule.sigma(t).float() * eps
    fine = torch.linspace(t**0.5, tableau.times[-1].item() ** 0.5, 41, dtype=torch.float64) ** 2
    fine[0], fine[-1] = t, tableau.times[-1]
    goal = sample(denoiser, x, unipc(schedule, fine, 3))
    tables = start_at(tableau, schedule, b), ddim(schedule, tableau.times[b:])
    return [(sample(denoiser, x, table) - goal).abs().mean().item() for table in tables]


def test_no_late_start_is_worse_than_ddim(digits, trained):
    images = digits.generate(range(70_000, 70_200))
    for nfe, record in trained.items():
        scheduler = GASScheduler.from_tableau(record.tableau, digits.schedule)
        tableau = GASScheduler.from_config(json.loads(scheduler.to_json_string())).tableaus[nfe]
        assert sorted(tableau.late) == list(range(1, nfe)) and tableau == record.tableau
        ratios = []
        for b in range(1, nfe):
            off, plain = image_to_image(digits.denoiser, tableau, b, images)
            assert off <= 1.001 * plain, (nfe, b, off, plain)
            ratios.append(off / plain)
        assert min(ratios) < 0.7, ratios


@pytest.mark.parametrize("nfe", [4, 5, 6, 8, 10])
def test_without_late_rows_a_late_start_is_as_good_as_ddim(nfe):
    """Files from before there were any; the tables agree, so no network is asked."""
    scheduler = shipped_scheduler("fmnist")
    tableau = Tableau(
        *(getattr(scheduler.tableaus[nfe], name) for name in ("times", "offsets", "A", "C"))
    )
    for b in range(1, nfe):
        late, plain = (
            start_at(tableau, scheduler.schedule, b),
            ddim(scheduler.schedule, tableau.times[b:]),
        )
        assert (
            torch.equal(late.A, plain.A)
            and torch.equal(late.C, plain.C)
            and torch.equal(late.offsets, tableau.offsets[b:])
        )
    for b in (-1, nfe, 1.0, True, "1"):
        with pytest.raises(ValueError, match="can start at"):
            start_at(tableau, scheduler.schedule, b)


def test_late_rows_that_lose_make_room_for_a_training_free_solver(digits, monkeypatch):
    def wrong(denoiser, tableau, b, *rest):
        return (
            torch.eye(tableau.nfe - b).double(),
            torch.zeros(tableau.nfe - b, tableau.nfe - b).double(),
        )

    monkeypatch.setattr(late_starts, "late_rows", wrong)
    table = classic_tableau("unipc", digits.schedule, 4, "time_quadratic")
    pairs = make_pairs(digits, range(40))
    late = fit_late_starts(digits.denoiser, table, pairs[:30], pairs[30:])
    assert all(not torch.equal(A, torch.eye(4 - b).double()) for b, (A, _) in late.late.items())


def test_late_rows_survive_a_run_folder_and_a_file(digits, tmp_path, trained):
    pairs = make_pairs(digits, range(80)).split(20)
    small = config(fit_steps=1, fit_pairs=16, n_pairs=60, n_val=20)
    record = last(train(small, digits, tmp_path, pairs))
    assert load_state(small, digits, tmp_path).tableau() == record.tableau and record.tableau.late
    record.tableau.save(tmp_path / "solver.json")
    again = Tableau.load(tmp_path / "solver.json")
    assert again == record.tableau and again.late.keys() == record.tableau.late.keys()
    d = json.loads(again.to_json())
    del d["late"]
    assert Tableau.from_json(json.dumps(d)).late == {}
    for late in ([], {"0": d}, {"4": d}, {"x": d}, {"1": dict(A=[[1]], C=[[1]])}, {"1": 3}):
        with pytest.raises(ValueError):
            Tableau.from_json(json.dumps(d | dict(late=late)))


# ---- the numbers that decide a fit ---------------------------------------------------------------


def test_options_survive_json_and_missing_fields_have_their_defaults():
    options = FitOptions(max_stretch=1.25, grid_powers=(1.5, 2), classic_solvers=["ddim"])
    text = json.dumps(options.as_dict())
    assert FitOptions.from_dict(json.loads(text)) == options and hash(options)
    assert FitOptions.from_dict({}) == FitOptions()
    assert FitOptions.from_dict(dict(doubt=3)) == FitOptions(doubt=3)


@pytest.mark.parametrize(
    "wrong",
    [
        dict(trial_pairs=0),
        dict(trial_pairs=2.0),
        dict(doubt=-1),
        dict(enough=1.5),
        dict(softening=0),
        dict(difference=math.nan),
        dict(arrived=math.inf),
        dict(max_stretch=0.9),
        dict(max_stretch="far"),
        dict(damping_trials=1),
        dict(damping_pairs=True),
        dict(damping_ladder=()),
        dict(damping_ladder=(0.1, 1e10)),
        dict(damping_ladder=0.1),
        dict(time_range=(1.3, 0.1)),
        dict(time_range=(0.1, 0.5, 0.9)),
        dict(grid_powers=(-1.0,)),
        dict(grid_powers=(), grid_kinds=()),
        dict(grid_kinds=("cosine",)),
        dict(grid_kinds="edm"),
        dict(classic_solvers=("heun",)),
    ],
    ids=str,
)
def test_options_that_make_no_sense_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        FitOptions(**wrong)


def test_unknown_options_are_refused():
    with pytest.raises(ValueError, match="'stretch'.*choose among.*max_stretch"):
        FitOptions.from_dict(dict(stretch=2))
    with pytest.raises(ValueError, match="must be a dict"):
        FitOptions.from_dict([1])


def test_options_reach_the_fit(digits):
    pairs = make_pairs(digits, range(60))
    train, val = pairs[:40], pairs[40:]
    _, path = sample(digits.denoiser, train.x_T, digits.tableau, return_trajectory=True)

    def start(options):
        return start_fit(digits.denoiser, 3, 1e-3, train, val, path, Distance(), options=options)

    only = FitOptions(grid_powers=(2.0,), grid_kinds=(), classic_solvers=(), first_damping=0.5)
    assert usual_grids(only) == (dict(kind="power", power=2.0),)
    begun = start(only)
    assert begun.damping == 0.5 and not torch.equal(begun.chart.s, start(FitOptions()).chart.s)

    def step(options):
        return gauss_newton_step(digits.denoiser, begun, train, val, Distance(), options=options)

    still = step(FitOptions(max_stretch=1.0))
    assert torch.equal(still.chart.s, begun.chart.s) and still.accepted
    assert not torch.equal(step(FitOptions()).chart.s, begun.chart.s)
    assert step(FitOptions(enough=1e-12)).pairs == begun.pairs
    few = FitOptions(cutoff_medians=1.0)
    assert step(few).capped < step(FitOptions()).capped


def test_options_reach_the_weights_and_the_late_rows(digits):
    residual = torch.full((3, 4), 0.5)
    hard, soft = (
        residual_weights(Distance(), residual, 1.0, options=FitOptions(softening=softening))
        for softening in (0.01, 10.0)
    )
    assert (hard > soft).all()
    fixed = Distance(delta=0.1)
    assert torch.equal(fixed.weights(residual, 1.0), 1 / (residual + 0.1))
    pairs, asked = make_pairs(digits, range(4)), []

    class Counting:
        schedule = digits.schedule

        def __call__(self, x, t, offset=0.0, condition=None):
            asked.append(t)
            return digits.denoiser(x, t, offset, condition)

    times = classic_tableau("ddim", digits.schedule, 4).times
    fine_states(Counting(), times, pairs, options=FitOptions(late_fine_steps=20))
    assert len(asked) == 20


# ---- in words ------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [0.0, 0.5, -1.0])
@pytest.mark.parametrize("schedule", [NoiseSchedule.ddpm(), NoiseSchedule.flow()], ids=repr)
@pytest.mark.parametrize("nfe", [1, 3])
def test_a_network_that_always_says_the_same_is_solved(value, schedule, nfe):
    """Every prediction is one image: a singular fit with an exact answer."""
    teacher = Teacher(
        "constant",
        Denoiser(lambda x, t: torch.full_like(x, value), schedule, "sample"),
        (2,),
        dict(solver="unipc", nfe=10),
    )
    record = last(
        train(config(teacher="constant", nfe=nfe, fit_steps=3, n_pairs=40, n_val=20), teacher)
    )
    assert record.val_loss < 1e-4


def test_singular_and_broken_equations():
    zero, one = torch.zeros(5), torch.ones(5)
    assert least_squares([zero, one, one], 2 * one, ridge=0.0).tolist() == pytest.approx(
        [0.0, 1.0, 1.0], abs=1e-6
    )
    with pytest.raises(ValueError, match="NaN or infinity"):
        least_squares([one, one * math.nan], one)


def test_pairs_without_variance(digits):
    """One noise, many times: a fit of few equations, but a fit."""
    pairs = make_pairs(digits, [5])[[0] * 40]
    record = last(train(config(nfe=4, fit_steps=3), digits, pairs=pairs.split(10)))
    assert record.val_loss < 0.05


def test_no_pairs_at_all(digits):
    pairs = make_pairs(digits, range(4))
    _, path = sample(digits.denoiser, pairs.x_T, digits.tableau, return_trajectory=True)
    with pytest.raises(ValueError, match="0 to choose by"):
        start_fit(digits.denoiser, 3, 1e-3, pairs, pairs[:0], path, Distance())


# ---- the solver's parameters ---------------------------------------------------------------------


def test_many_evaluations_load_at_once():
    schedule = NoiseSchedule.ddpm()
    table = classic_tableau("unipc", schedule, 30, "time_quadratic")
    begun = time.perf_counter()
    back = GeneralizedSolver(schedule, 30).load_tableau(table).tableau()
    assert time.perf_counter() - begun < 2
    torch.testing.assert_close(back.C, table.C, rtol=0, atol=1e-12)


@pytest.mark.parametrize("t_eps", [1e-3, 1e-4])
def test_a_last_evaluation_close_to_the_end_can_be_loaded(t_eps):
    """A fit may ask its last question below the last time;
    the logits still reach the solver's grid."""
    schedule = NoiseSchedule.vp_linear()
    chart = Chart(
        torch.tensor([0.9, 0.4, t_eps / 2], dtype=torch.float64),
        torch.ones(3).double(),
        torch.eye(3).double(),
    )
    table = to_tableau(chart, schedule, t_eps)
    back = GeneralizedSolver(schedule, 3, t_eps=t_eps).load_tableau(table).tableau()
    torch.testing.assert_close(back.times, table.times, rtol=1e-9, atol=0)


@pytest.mark.parametrize(
    "wrong", [dict(order=0), dict(order=2.5), dict(t_eps="small"), dict(t_eps=True), dict(nfe=2.0)]
)
def test_wrong_settings_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        config(**wrong)
