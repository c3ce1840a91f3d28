"""Networks, pairs and states that break: refused in words before long work, or it works."""

import gas_nb.runtime.device  # noqa: F401  (before diffusers)

import json
import math
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from gas_nb.classic import classic_tableau
from gas_nb.data import Pairs, make_pairs
from gas_nb.drive import Finished, drive
from gas_nb.fitting.rows import kept_steps
from gas_nb.front import distil_solver
from gas_nb.runtime.programs import exit_status
from gas_nb.schedule import NoiseSchedule
from gas_nb.tableau import sample
from gas_nb.teacher import load_teacher
from gas_nb.teachers.diffusers import PipelineTeacher
from gas_nb.teachers.function import function_teacher
from gas_nb.training import NonFiniteLoss, preset_config, train

QUICK = preset_config("quick", teacher="digits", device="cpu")
FIT = replace(QUICK, adversarial_weight=0.0)
ADAM = replace(QUICK, method="adam", iterations=3, adversarial_iterations=1)


@pytest.fixture(scope="module")
def digits():
    return load_teacher("digits", "cpu")


@pytest.fixture(scope="module")
def pairs(digits):
    return make_pairs(digits, range(40), "random").split(16)


class Breaking(nn.Module):
    """A network whose answers are `made` otherwise at the calls that `when` names."""

    def __init__(self, net, made, when):
        super().__init__()
        self.net, self.made, self.when, self.calls = net, made, when, 0

    def forward(self, x, time, *condition):
        out = self.net(x, time, *condition)
        self.calls += 1
        return self.made(out) if self.when(self.calls) else out


def always(call):
    return True


def breaking(teacher, made, when=always):
    net = Breaking(teacher.denoiser.net, made, when)
    return replace(teacher, denoiser=replace(teacher.denoiser, net=net))


def first_row_nan(out):
    return torch.cat([out[:1] * torch.nan, out[1:]])


NOT_FINITE = dict(
    nan=lambda out: out * torch.nan,
    inf=lambda out: out / 0,
    one_row=first_row_nan,
    too_large=lambda out: out * 1e30,
)
NO_ANSWER = dict(
    shape=(lambda out: out[..., :-1], "with shape"),
    flat=(lambda out: out.flatten(1), "with shape"),
    one=(lambda out: out[:1].repeat(3, 1, 1, 1), "with shape"),
    whole=(lambda out: (10 * out).long(), "made of floats"),
    complex=(lambda out: out.to(torch.complex64), "made of floats"),
    nothing=(lambda out: None, "return the tensor"),
    meta=(lambda out: out.to("meta"), "device meta.*load its weights"),
)


# ---- the doors -----------------------------------------------------------------------------------


def by_distil(teacher, pairs, folder):
    found = distil_solver(teacher, nfe=3, budget=900, progress=None)
    assert math.isfinite(found.figures[0]["l1"])
    return found.tableaus[3]


def by_fit(teacher, pairs, folder):
    return list(train(FIT, teacher, pairs=pairs))[-1].tableau


def by_adam(teacher, pairs, folder):
    return list(train(ADAM, teacher, pairs=pairs))[-1].tableau


def by_pairs(teacher, pairs, folder):
    assert make_pairs(teacher, range(12), "random", chunk=4).x_0.isfinite().all()


def by_notebook(teacher, pairs, folder):
    """What the notebook, the command and the app do."""
    *_, last = drive(QUICK, output_dir=folder, teacher=teacher)
    assert isinstance(last, Finished)
    json.dumps(last.metrics, allow_nan=False)


def by_sample(teacher, pairs, folder):
    table = classic_tableau("unipc", teacher.schedule, 4, "logSNR", order=2)
    return sample(teacher.denoiser, pairs[0].x_T[:4], table)


DOORS = (by_distil, by_fit, by_adam, by_pairs, by_notebook)


def left_in(folder):
    """Names of files in an output folder, locks and pairs apart."""
    files = [path for path in folder.rglob("*") if path.is_file() and "pairs" not in path.parts]
    return [path.name for path in files if not path.name.startswith(".")]


# ---- a network that breaks -----------------------------------------------------------------------


@pytest.mark.parametrize("door", (*DOORS, by_sample))
@pytest.mark.parametrize("how", NO_ANSWER)
def test_what_is_no_answer_is_refused_at_once(digits, pairs, tmp_path, door, how):
    made, words = NO_ANSWER[how]
    teacher = breaking(digits, made)
    with pytest.raises(ValueError, match=words):
        door(teacher, pairs, tmp_path)
    assert teacher.denoiser.net.calls <= 2 and not left_in(tmp_path)


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("how", NOT_FINITE)
def test_answers_that_are_not_finite_end_it_before_long_work(digits, pairs, tmp_path, door, how):
    teacher = breaking(digits, NOT_FINITE[how])
    with pytest.raises((ValueError, NonFiniteLoss), match="check"):
        door(teacher, pairs, tmp_path)
    assert teacher.denoiser.net.calls <= 45 and not left_in(tmp_path)


@pytest.mark.parametrize("how", NOT_FINITE)
def test_sample_hides_nothing(digits, pairs, how):
    """It is the loop alone: who calls it looks at the end, as pairs, fits and the judge do."""
    teacher = breaking(digits, NOT_FINITE[how])
    assert not by_sample(teacher, pairs, None).isfinite().all()


@pytest.mark.parametrize("at", [40, 75])
@pytest.mark.parametrize("how", ["nan", "too_large"])
@pytest.mark.parametrize("door", [by_distil, by_fit])
@pytest.mark.parametrize("once", [True, False])
def test_a_network_that_breaks_on_the_way(digits, pairs, tmp_path, door, how, at, once):
    """Refused in words, or worked around; a solver that comes out is finite, as every one is."""

    def when(call):
        return call == at if once else call >= at

    teacher = breaking(digits, NOT_FINITE[how], when)
    try:
        table = door(teacher, pairs, tmp_path)
    except (ValueError, NonFiniteLoss) as error:
        assert "check" in str(error) or "diverges" in str(error)
        assert not list(tmp_path.rglob("metrics.json"))
    else:
        assert table is None or table.A.isfinite().all()


@pytest.mark.parametrize("value", [0.0, 0.3])
def test_a_network_that_says_the_same_to_everything(digits, pairs, value):
    teacher = breaking(digits, lambda out: torch.full_like(out, value))
    with pytest.warns(UserWarning, match="samples have size"):
        table = by_distil(teacher, pairs, None)
    assert table.A.isfinite().all()


def test_gradients_are_asked_for_before_pairs_are_made(digits, pairs, tmp_path):
    teacher = breaking(digits, lambda out: out.detach())
    with pytest.raises(ValueError, match="game='published' needs gradients"):
        list(drive(replace(QUICK, game="published"), output_dir=tmp_path, teacher=teacher))
    assert teacher.denoiser.net.calls <= 24
    assert not list(tmp_path.rglob("*.safetensors")) and not left_in(tmp_path)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_answers_of_another_precision_are_taken(digits, pairs, dtype):
    teacher = breaking(digits, lambda out: out.to(dtype))
    assert by_fit(teacher, pairs, None).A.isfinite().all()
    assert by_sample(teacher, pairs, None).dtype == torch.float32


@pytest.mark.cuda
def test_answers_from_another_device_are_brought_home(digits, pairs):
    teacher = breaking(digits, lambda out: out.cuda())
    assert by_sample(teacher, pairs, None).device.type == "cpu"


def test_a_loss_that_is_not_finite_is_an_exit_status_and_no_traceback():
    assert exit_status(NonFiniteLoss("loss is nan")) == 1


# ---- pairs ---------------------------------------------------------------------------------------


def changed(pairs, f):
    return tuple(Pairs(p.seeds, *f(p.x_T, p.x_0), p.condition) for p in pairs)


@pytest.mark.parametrize("config", [FIT, ADAM, QUICK], ids=["fit", "adam", "game"])
@pytest.mark.parametrize("what", ["x_0", "both", "same"])
def test_pairs_of_zero_variance(digits, pairs, config, what):
    flat = changed(
        pairs, lambda x_T, x_0: (x_T * 0 + 0.5 if what == "both" else x_T, x_0 * 0 + 0.1)
    )
    if what == "same":
        flat = tuple(part[[0] * len(part)] for part in pairs)
    last = list(train(config, digits, pairs=flat))[-1]
    assert math.isfinite(last.loss) and last.tableau.C.isfinite().all()


@pytest.mark.parametrize("config", [FIT, ADAM], ids=["fit", "adam"])
@pytest.mark.parametrize("part", [0, 1])
@pytest.mark.parametrize("column", ["x_T", "x_0"])
def test_a_pair_that_is_not_finite_is_named_before_any_work(digits, pairs, config, part, column):
    teacher, parts = breaking(digits, lambda out: out), list(pairs)
    value = getattr(parts[part], column).clone()
    value[1, 0, 0, 0] = torch.inf
    parts[part] = replace(parts[part], **{column: value})
    with pytest.raises(ValueError, match=f"pairs with {column} that is not finite: leave"):
        list(train(config, teacher, pairs=tuple(parts)))
    assert teacher.denoiser.net.calls <= 1


def test_pairs_of_whole_numbers_are_named(digits, pairs):
    whole = changed(pairs, lambda x_T, x_0: (x_T.long(), x_0.long()))
    with pytest.raises(ValueError, match="pairs with x_T of torch.int64: give floats"):
        list(train(FIT, digits, pairs=whole))


def test_a_prompt_twice_is_two_calls():
    pipelines = pytest.importorskip("pipelines")
    teacher = PipelineTeacher(pipelines.stable_diffusion(), prompts=["a cat", "a cat"])
    assert teacher.class_names == ["a cat (0)", "a cat (1)"]
    made = make_pairs(teacher, range(4), "random", chunk=2)
    assert set(made.condition.tolist()) == {0, 1} and made.x_0.isfinite().all()


@pytest.mark.slow
@pytest.mark.parametrize("calls", [dict(prompts=["a cat"] * 2), dict(calls=[dict(prompt="a")] * 3)])
def test_prompts_that_are_all_the_same_are_distilled(calls):
    pipe = pytest.importorskip("pipelines").stable_diffusion()
    found = distil_solver(pipe, nfe=2, budget=200, progress=None, **calls)
    assert found.figures[0]["l1"] < found.figures[0]["training_free_l1"]


# ---- the least and the most ----------------------------------------------------------------------


def test_one_evaluation_and_fifty(digits):
    for nfe, budget in ((1, 300), (50, 5_000)):
        found = distil_solver(digits, nfe=nfe, budget=budget, progress=None)
        row = found.figures[0]
        assert row["l1"] <= row["training_free_l1"] + 1e-6
    with pytest.raises(ValueError, match="nfe=51"):
        distil_solver(digits, nfe=51, budget=9_000, progress=None)
    with pytest.raises(ValueError, match="budget=1: .*give more"):
        distil_solver(digits, nfe=3, budget=1, progress=None)


@pytest.mark.parametrize("config", [ADAM, QUICK], ids=["adam", "game"])
def test_one_pair_a_batch(digits, pairs, config):
    last = list(train(replace(config, batch_size=1), digits, pairs=pairs))[-1]
    assert math.isfinite(last.loss)


def test_one_pair_in_all(digits):
    alone = make_pairs(digits, range(2), "random").split(1)
    assert math.isfinite(list(train(ADAM, digits, pairs=alone))[-1].loss)
    with pytest.raises(ValueError, match="1 held-out pairs: give 2 or more"):
        list(train(FIT, digits, pairs=alone))
    three = make_pairs(digits, range(3), "random").split(2)
    last = list(train(QUICK, digits, pairs=three))[-1]
    assert math.isfinite(last.loss) and last.tableau.C.isfinite().all()


def test_one_evaluation_by_the_notebook_and_by_adam(digits, pairs, tmp_path):
    *_, last = drive(replace(QUICK, nfe=1), output_dir=tmp_path, teacher=digits)
    assert {row["nfe"] for row in last.metrics["rows"] if row["solver"] == "gas"} == {1}
    assert math.isfinite(list(train(replace(ADAM, nfe=1), digits, pairs=pairs))[-1].loss)


@pytest.mark.slow
def test_fifty_evaluations_by_adam(digits, pairs):
    last = list(train(replace(ADAM, nfe=50), digits, pairs=pairs))[-1]
    assert math.isfinite(last.loss) and last.tableau.nfe == 50


SCHEDULES = (NoiseSchedule.vp_linear(), NoiseSchedule.flow(), NoiseSchedule.edm())


def normal(shape, schedule, spread=0.5, nfe=12):
    """The exact teacher of a normal distribution of this size."""

    def f(x, time):
        alpha, sigma = (level(at(time)).float() for level in (schedule.alpha, schedule.sigma))
        share = alpha * spread**2 / (alpha**2 * spread**2 + sigma**2)
        return x * share.reshape(-1, *[1] * (x.ndim - 1))

    grid = torch.linspace(0, 1, 2001, dtype=torch.float64)
    known = schedule.net_time(grid)

    def at(time):
        order = known.argsort()
        there = torch.searchsorted(known[order], time.double().contiguous()).clamp(0, 2000)
        return grid[order][there]

    recipe = dict(solver="unipc", nfe=nfe, spacing="time_uniform", t_eps=1e-2, order=2)
    return function_teacher(f, shape, schedule, "sample", device="cpu", recipe=recipe)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda one: one.config["kind"])
@pytest.mark.parametrize("shape", [(1,), (1, 1, 1)])
def test_states_of_one_element(schedule, shape):
    found = distil_solver(normal(shape, schedule), nfe=2, budget=400, progress=None)
    assert found.figures[0]["l1"] <= found.figures[0]["training_free_l1"] + 1e-6


def test_a_game_of_states_of_one_element():
    teacher = normal((1,), SCHEDULES[0])
    row = distil_solver(teacher, nfe=2, budget=400, progress=None, game=True).figures[0]
    assert row["solver"] == "gas" and math.isfinite(row["gas_gain"])
    assert row["l1"] <= row["training_free_l1"] + 1e-6


@pytest.mark.parametrize("size", [1_000_000, pytest.param(10_000_000, marks=pytest.mark.slow)])
def test_large_states_are_distilled(size):
    teacher = normal((size,), SCHEDULES[0], nfe=4)
    row = distil_solver(teacher, nfe=2, budget=100, progress=None).figures[0]
    assert row["l1"] <= row["training_free_l1"] + 1e-6


class Numbers(TorchDispatchMode):
    """Counts the numbers that operations on large tensors bring forth."""

    made = 0

    def __torch_dispatch__(self, f, types, arguments=(), named=None):
        out = f(*arguments, **named or {})
        if isinstance(out, torch.Tensor) and out.numel() > 10_000:
            self.made += out.numel()
        return out


def test_the_search_for_steps_reads_a_recorded_run_once():
    teacher = normal((30_000,), SCHEDULES[0])
    x_T = make_pairs(teacher, [0, 1], chunk=2).x_T
    _, path = sample(teacher.denoiser, x_T, teacher.tableau, return_trajectory=True)
    with Numbers() as numbers:
        assert len(kept_steps(path, 4)) == 4
    recorded = (2 * teacher.tableau.nfe + 1) * x_T.numel()
    assert recorded <= numbers.made <= 8 * recorded


def test_states_of_ten_million_elements():
    teacher = normal((10_000_000,), SCHEDULES[0], nfe=2)
    made = make_pairs(teacher, [0], chunk=1)
    table = classic_tableau("ddim", teacher.schedule, 1, "time_uniform")
    out = sample(teacher.denoiser, made.x_T, table)
    assert out.shape == (1, 10_000_000) and out.isfinite().all() and made.x_0.isfinite().all()
