"""A fit within a budget of network evaluations: what it spends, what it finds, what survives."""

import math
from dataclasses import replace

import pytest
import torch

from gas_nb import distil_solver
from gas_nb.data import make_pairs
from gas_nb.fitting import FitOptions
from gas_nb.fitting.chart import Chart, to_chart
from gas_nb.fitting.differences import differences_in_words, measure_differences, too_coarse
from gas_nb.fitting.distance import Distance, evaluate
from gas_nb.fitting.first_pass import corrected, differentiate, first_pass_step
from gas_nb.fitting.plan import RIVALS, FitPlan, plan_fit, plan_fits, recipes_of, total_cost
from gas_nb.fitting.sensitivities import evaluations_of, sensitivities
from gas_nb.fitting.start import Memory, Outcome, times_like
from gas_nb.metrics.distances import l1
from gas_nb.schedule import NoiseSchedule
from gas_nb.teacher import load_teacher
from gas_nb.tableau import sample
from gas_nb.classic import classic_tableau
from gas_nb.training import TrainConfig, planned, preset_config, resolve, train
from gas_nb.distil import PARAMETERS


@pytest.fixture(scope="module")
def digits():
    return load_teacher("digits", "cpu")


def config(**changes):
    settings = dict(teacher="digits", nfe=4, budget=600, adversarial_weight=0.0, device="cpu")
    return TrainConfig(**settings | changes)


def spent_by(config, teacher):
    """The last record of a run, and the evaluations that were counted from outside."""
    teacher.check()
    before = teacher.denoiser.evaluations
    *_, record = train(config, teacher)
    return record, teacher.denoiser.evaluations - before


@pytest.mark.parametrize("nfe", [2, 3, 4, 6, 8, 10, 15, 20])
@pytest.mark.parametrize("budget", [50, 200, 500, 1500, 4000])
def test_a_plan_holds_its_budget(nfe, budget):
    plan = plan_fit(budget, nfe, 20)
    assert 0 < plan.cost <= budget and plan.held_out >= 1 and plan.rivals >= 1
    assert plan.steps == 0 or plan.pairs >= 3
    larger = plan_fit(2 * budget, nfe, 20)
    assert larger.pairs >= plan.pairs or larger.differentiated > plan.differentiated


@pytest.mark.parametrize("nfe", [2, 4, 8])
def test_a_large_budget_differentiates_its_pairs_again(nfe):
    plans = [plan_fit(budget, nfe, 20) for budget in range(1_000, 40_000, 500)]
    once = [plan for plan in plans if plan.pairs <= 40]
    again = [plan for plan in plans if plan.pairs > 40]
    assert once and again and min(plan.passes for plan in again) >= 2
    assert once[0].passes == 0 < once[-1].passes  # forty pairs, and not yet money for more
    for plan, budget in zip(plans, range(1_000, 40_000, 500)):
        assert plan.cost <= budget
    few, more = (replace(again[0], passes=n) for n in (2, 3))
    assert (more.cost - few.cost, more.steps - few.steps) == (few.pass_cost, 1)


def test_all_pairs_are_differentiated_again_and_what_was_remembered_is_forgotten(digits):
    pairs = make_pairs(digits, range(12))
    record, _ = spent_by(config(budget=900), digits)
    old = differentiate(digits.denoiser, chart_of(digits, 4), pairs, Distance())
    begun = record.state.fit._replace(
        chart=chart_of(digits, 4), seen=12, memory=Memory(0 * old.J, old.r), step=3
    )

    def step(left):
        before = digits.denoiser.evaluations
        found = first_pass_step(digits.denoiser, begun, pairs, Distance(), left=lambda: left)
        return found, digits.denoiser.evaluations - before

    each = evaluations_of(4) + 4
    passed, asked = step(12 * each)
    assert passed.accepted and passed.seen == 12 and asked > 12 * 4
    remembered, asked = step(12 * each - 1)  # a pass cannot be paid for
    assert not remembered.accepted and asked <= 3 * 12 * 4


def test_plans_of_several_solvers_share_their_pairs():
    plans = plan_fits(5000, [4, 8], 20)
    assert len({plan.pairs for plan in plans}) == 1
    assert total_cost(plans) <= 5000 < sum(plan.cost for plan in plans) + plans[0].made


def test_a_budget_that_holds_nothing_is_refused_with_the_smallest_that_does():
    with pytest.raises(ValueError, match=r"budget=20.*take 24 evaluations; give more"):
        plan_fit(20, 4, 20)
    assert plan_fit(24, 4, 20).cost == 24
    for wrong in (0, -1, 1.5, "1500"):
        with pytest.raises(ValueError):
            plan_fit(wrong, 4, 20)


def off(teacher, table, pairs):
    """How far the samples of a solver are from the teacher's, per pair."""
    found = teacher.sample(pairs.x_T, tableau=table, condition=pairs.condition)
    return l1(found, pairs.x_0)


def free_losses(teacher, nfe, pairs):
    """Per pair, the losses of the training-free solvers that any plan tries."""
    found = []
    for recipe in recipes_of(FitPlan(nfe, 20, 0, 1, len(RIVALS))):
        table = classic_tableau(schedule=teacher.schedule, nfe=nfe, t_eps=teacher.t_eps, **recipe)
        found.append(off(teacher, table, pairs))
    return found


@pytest.mark.parametrize("nfe", [2, 3, 5, 8, 12, 16, 20])
def test_whatever_the_budget_new_samples_are_no_worse_than_training_free_ones(digits, nfe):
    pairs = make_pairs(digits, range(50_000, 50_200), "random")
    best = min(free_losses(digits, nfe, pairs), key=torch.mean)
    for budget in (50, 200, 500):
        record, _ = spent_by(config(nfe=nfe, budget=budget), digits)
        apart = off(digits, record.tableau, pairs) - best
        assert apart.mean() <= 2 * apart.std() / len(apart) ** 0.5 + 1e-6


@pytest.mark.parametrize("nfe", [2, 4, 8])
@pytest.mark.parametrize("budget", [60, 200, 500, 1500])
def test_a_run_never_spends_more_and_is_never_worse_than_a_training_free_solver(
    digits, nfe, budget
):
    record, counted = spent_by(config(nfe=nfe, budget=budget), digits)
    fit = record.state.fit
    assert record.extras["evaluations"] == record.state.spent == counted <= budget
    assert fit.val_loss <= fit.free_loss
    rows_only = planned(config(nfe=nfe, budget=budget), digits).fit_steps == 1
    assert fit.seen == 0 or not rows_only or fit.outcome is not Outcome.ROWS
    if fit.outcome is Outcome.FREE:
        torch.testing.assert_close(fit.chart.vector(), fit.free.vector())


def test_a_fit_within_1500_evaluations_is_far_ahead_of_every_training_free_solver(digits):
    record, _ = spent_by(config(budget=1500), digits)
    judge = make_pairs(digits, range(50_000, 50_400), "random")

    def loss(chart):
        return evaluate(digits.denoiser, chart, judge, Distance())

    fit = record.state.fit
    assert loss(fit.chart) < 0.5 * loss(fit.free)


@pytest.mark.parametrize("budget, steps", [(900, 3), (4000, 6)])
def test_a_killed_fit_within_a_budget_ends_with_the_same_bits(tmp_path, digits, budget, steps):
    asked = config(budget=budget)
    *_, whole = train(asked, digits)
    assert whole.state.spent <= budget
    run = train(asked, digits, tmp_path)
    for _ in range(steps):
        next(run)
    run.close()
    *_, again = train(asked, digits, tmp_path)
    assert torch.equal(whole.tableau.C, again.tableau.C)
    assert torch.equal(whole.tableau.times, again.tableau.times)
    assert again.state.spent == whole.state.spent


def test_a_budget_and_a_number_of_pairs_are_not_given_together():
    settings = {name: default for name, (default, _) in PARAMETERS.items()}
    with pytest.raises(ValueError, match="give one of the two"):
        resolve(settings | dict(teacher="digits", budget=1500, n_pairs=20))
    assert resolve(settings | dict(teacher="digits", budget=1500)).budget == 1500
    assert preset_config("cpu", teacher="fmnist", nfe=6).budget == 2400
    assert preset_config("cpu", teacher="fmnist", n_pairs=50).budget == 0
    assert preset_config("cpu", teacher="fmnist", method="adam").budget == 0


def chart_of(digits, nfe):
    table = classic_tableau("unipc", digits.schedule, nfe, "time_quadratic", 1e-3, order=2)
    return to_chart(table, digits.schedule)


@pytest.mark.parametrize("nfe", [1, 2, 4, 8])
def test_what_derivatives_cost_is_counted_right(digits, nfe):
    pairs = make_pairs(digits, range(3))
    before = digits.denoiser.evaluations
    sensitivities(digits.denoiser, chart_of(digits, nfe), pairs.x_T)
    assert digits.denoiser.evaluations - before == 3 * evaluations_of(nfe)


def test_shared_directions_ask_less_and_answer_nearly_the_same(digits):
    pairs, chart = make_pairs(digits, range(4)), chart_of(digits, 6)
    counts, found = [], []
    for left_out in (0.0, 0.1):
        before = digits.denoiser.evaluations
        options = FitOptions(left_out=left_out)
        found.append(sensitivities(digits.denoiser, chart, pairs.x_T, options=options)[1])
        counts.append(digits.denoiser.evaluations - before)
    exact, shared = found
    assert counts[1] < 0.6 * counts[0]
    off = (shared - exact).flatten(1).norm(dim=1) / exact.flatten(1).norm(dim=1)
    assert off.median() < 0.1


def test_a_correction_says_the_right_thing_about_the_step_and_nothing_about_others():
    torch.manual_seed(0)
    memory = Memory(torch.randn(5, 3, 20), torch.randn(3, 20))
    move, r = torch.randn(5).double(), torch.randn(3, 20)
    new = corrected(memory, move, r)
    said = memory.r + torch.einsum("p,pnd->nd", move.float(), new.J)
    torch.testing.assert_close(said, r, rtol=1e-4, atol=1e-4)
    metric = memory.J.square().sum((1, 2)).double()
    other = torch.randn(5).double()
    other -= move * ((move * metric) @ other) / ((move * metric) @ move)
    before, after = (torch.einsum("p,pnd->nd", other.float(), J) for J in (memory.J, new.J))
    torch.testing.assert_close(before, after, rtol=1e-3, atol=1e-3)


def rounded(net, bits):
    def answer(x, t, *given):
        out = net(x, t, *given)
        unit = 2.0 ** (out.abs().clamp_min(1e-20).log2().floor() - bits)
        return (out / unit).round() * unit

    return answer


def test_coarser_networks_get_longer_steps_and_are_told_apart(digits):
    pairs = make_pairs(digits, range(2))
    chart, steps = chart_of(digits, 4), {}
    for bits in (23, 11, 7):
        denoiser = replace(digits.denoiser, net=rounded(digits.denoiser.net, bits))
        found = measure_differences(denoiser, chart, pairs)
        steps[bits] = sum(d.by_input for d in found)
        assert "rounding" in differences_in_words(found)
    assert steps[23] < steps[11] < steps[7]

    def noise(x, t, *given):
        return digits.denoiser.net(x, t, *given) + 0.5 * torch.sin(1e5 * x)

    assert too_coarse(measure_differences(replace(digits.denoiser, net=noise), chart, pairs))
    assert not too_coarse(())


@pytest.mark.parametrize("bits", [11, 9])
def test_a_network_of_few_bits_is_fitted_to_its_own_teacher(digits, bits):
    denoiser = replace(digits.denoiser, net=rounded(digits.denoiser.net, bits))
    coarse = replace(digits, denoiser=denoiser)
    record, _ = spent_by(config(budget=1500), coarse)
    fit = record.state.fit
    assert fit.outcome is not Outcome.FREE and fit.val_loss < 0.7 * fit.free_loss


def test_a_step_that_the_budget_does_not_hold_is_not_begun(digits):
    pairs = make_pairs(digits, range(8))
    chart = chart_of(digits, 4)
    record, _ = spent_by(config(budget=900), digits)
    begun = record.state.fit._replace(chart=chart, seen=0, memory=None, step=1)
    before = digits.denoiser.evaluations
    step = first_pass_step(digits.denoiser, begun, pairs, Distance(), left=lambda: 10.0)
    assert step.outcome is Outcome.SPENT and digits.denoiser.evaluations == before
    assert isinstance(step.chart, Chart)


def test_a_step_without_a_budget_takes_new_pairs_as_they_come(digits):
    pairs = make_pairs(digits, range(14))
    record, _ = spent_by(config(budget=900), digits)
    begun = record.state.fit._replace(chart=chart_of(digits, 4), seen=0, memory=None, step=1)
    options, seen = FitOptions(pass_pairs=6), []
    for _ in range(3):
        begun = first_pass_step(digits.denoiser, begun, pairs, Distance(), options=options)
        seen.append(begun.seen)
    assert seen == [6, 12, 14]


def test_features_are_remembered_too(digits):
    pairs = make_pairs(digits, range(4))
    distance = Distance("l2", lambda x: x.flatten(1)[:, ::2])
    memory = differentiate(digits.denoiser, chart_of(digits, 3), pairs, distance)
    assert memory.r.shape == (4, 32) and memory.J.shape == (12, 4, 32)
    assert math.isfinite(memory.J.abs().sum())


def test_the_front_door_keeps_its_budget_and_says_so(digits):
    told = []
    solver = distil_solver(digits, nfe=[3, 4], budget=2000, progress=told.append)
    assert solver.card["evaluations"] <= solver.card["budget"] == 2000
    assert all(row["l1"] <= row["training_free_l1"] for row in solver.figures)
    assert any("difference steps" in line for line in told)
    x_T = digits.noise(range(4))
    assert sample(digits.denoiser, x_T, solver.tableaus[4]).isfinite().all()


@pytest.mark.parametrize("nfe", [3, 4])
def test_a_fit_begins_with_a_neighbours_solver(digits, nfe):
    record, _ = spent_by(config(budget=1500), digits)
    init = record.tableau
    begun = next(train(config(nfe=nfe, budget=900, init=init.to_json()), digits)).state.fit
    if nfe == init.nfe:  # taken as it is
        torch.testing.assert_close(begun.chart.s, to_chart(init, digits.schedule).s)
    record, _ = spent_by(config(nfe=nfe, budget=900, init=init.to_json()), digits)
    assert record.state.spent <= 900 and record.state.fit.val_loss < record.state.fit.free_loss


def test_times_of_a_neighbour_keep_their_places(digits):
    table = classic_tableau("unipc", digits.schedule, 4, "time_quadratic", 1e-3, order=2)
    torch.testing.assert_close(times_like(table, digits.schedule, 4, 1e-3), table.times)
    denser = times_like(table, digits.schedule, 8, 1e-3)
    torch.testing.assert_close(denser[::2], table.times)
    flow = times_like(table, NoiseSchedule.flow(), 4, 1e-3)
    assert (flow.diff() < 0).all() and 0.9 < flow[0] <= 1


def test_what_cannot_be_begun_with_is_refused(digits):
    with pytest.raises(ValueError, match="init"):
        config(init="{}")
    table = classic_tableau("ddim", digits.schedule, 4, "logSNR", 1e-3)
    with pytest.raises(ValueError, match="give a budget"):
        config(budget=0, init=table.to_json())
    with pytest.raises(ValueError, match="give a Tableau"):
        distil_solver(digits, nfe=4, init=3, progress=None)
    again = distil_solver(digits, nfe=4, budget=800, init=table, progress=None)
    assert again.card["evaluations"] <= 800


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_pipeline_in_its_own_precision(dtype):
    from diffusers import DDIMPipeline, DDIMScheduler, UNet2DModel

    torch.manual_seed(0)
    unet = UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        layers_per_block=1,
        block_out_channels=(8, 16),
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
    )
    scheduler = DDIMScheduler(prediction_type="v_prediction", clip_sample=False)
    pipe = DDIMPipeline(unet.eval().to(dtype), scheduler)
    pipe.set_progress_bar_config(disable=True)
    solver = distil_solver(pipe, nfe=4, budget=1500, progress=None, batch_size=16)
    (row,) = solver.figures
    assert solver.card["evaluations"] <= 1500 and row["l1"] < 0.2 * row["training_free_l1"]
    coarse = max(row["difference_steps"]) > 0.01
    assert coarse == (dtype is torch.bfloat16)
