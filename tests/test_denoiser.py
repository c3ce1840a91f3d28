"""Denoisers: values that cannot go stale, and what is looked at in a network's answers."""

import copy
import math
import pickle
from dataclasses import FrozenInstanceError, replace

import pytest
import torch
from torch import nn

from gas_nb.denoiser import PREDICTIONS, Denoiser, Remembering, measured_answers, other_prediction
from gas_nb.schedule import NoiseSchedule
from gas_nb.teacher import load_teacher

VP = NoiseSchedule.ddpm()


def halve(x, time, condition=None):
    return x / 2


def converted(net, to):
    """The epsilon network `net` as one that predicts `to`."""

    def answer(x, time):
        t = time.double() / 1000 + 1 / 1000
        shape = (-1, *[1] * (x.ndim - 1))
        alpha, sigma = (
            VP.alpha(t).reshape(shape).to(x.dtype),
            VP.sigma(t).reshape(shape).to(x.dtype),
        )
        noise = net(x, time)
        image = (x - sigma * noise) / alpha
        velocity, flow = alpha * noise - sigma * image, noise - image
        return dict(
            epsilon=noise,
            sample=image,
            v_prediction=velocity,
            flow_prediction=flow,
            minus_v_prediction=-velocity,
            minus_flow_prediction=-flow,
        )[to]

    return answer


def test_no_field_changes_behind_the_memory_of_weights():
    x, d = torch.randn(3, 2, generator=torch.Generator().manual_seed(0)), Denoiser(halve, VP)
    before = d(x, 0.5)
    for wrapped in (d, Remembering(d)):
        with pytest.raises(FrozenInstanceError):
            wrapped.prediction = "v_prediction"
    other = replace(d, prediction="v_prediction")
    assert not torch.allclose(other(x, 0.5), before)
    assert torch.equal(other(x, 0.5), Denoiser(halve, VP, "v_prediction")(x, 0.5)) and torch.equal(
        d(x, 0.5), before
    )


def test_copies_are_independent_and_pickles_work():
    x = torch.ones(2, 2)
    for made in (Denoiser(halve, VP), Remembering(Denoiser(halve, VP))):
        made(x, 0.5)
        for other in (copy.deepcopy(made), copy.copy(made), pickle.loads(pickle.dumps(made))):
            assert torch.equal(other(x, 0.5), made(x, 0.5)) and other.prediction == "epsilon"
    d = Denoiser(halve, VP)
    d(x, 0.5)
    deep = copy.deepcopy(d)
    deep(x, 0.25)
    assert len(d._known) == 1 and len(deep._known) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(prediction="noise"), "'noise'"),
        (dict(prediction=None), "None"),
        (dict(guidance_scale=3.0), "no null condition"),
        (dict(guidance_scale="3"), "guidance_scale='3'"),
        (dict(guidance_scale=math.nan), "guidance_scale=nan"),
        (dict(net=None), "net=None"),
        (dict(schedule="ddpm"), "schedule='ddpm'"),
    ],
)
def test_fields_that_do_not_fit_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Denoiser(**(dict(net=halve, schedule=VP) | options))


class Output:
    sample = torch.zeros(4, 2)


@pytest.mark.parametrize(
    ("net", "message"),
    [
        (lambda x, t: x[:, :1], r"shape \(4, 2\) with shape \(4, 1\)"),
        (lambda x, t: x.mean(), r"with shape \(\)"),
        (lambda x, t: torch.cat([x, x], 1), "predicts its variance too"),
        (lambda x, t: x.numpy(), "answers with a ndarray"),
        (lambda x, t: None, "answers with a NoneType"),
        (lambda x, t: Output(), "out.sample"),
        (lambda x, t: x.mul_(0.5), "in place"),
    ],
)
def test_answers_of_another_shape_and_changed_inputs_are_refused(net, message):
    with pytest.raises(ValueError, match=message):
        Denoiser(net, VP)(torch.ones(4, 2), 0.5)


def test_a_changed_condition_is_refused_and_guidance_needs_no_copy():
    d = Denoiser(lambda x, t, c: x * 0.5 * c.add_(1)[:, None], VP, null_condition=torch.tensor(0))
    with pytest.raises(ValueError, match="in place"):
        d(torch.ones(4, 2), 0.5, condition=torch.ones(4))
    assert (
        d.with_guidance(2.0)(torch.ones(4, 2), 0.5, condition=torch.ones(4)).isfinite().all()
    )  # it works on copies


def test_a_network_in_training_mode_is_found():
    torch.manual_seed(0)
    drop = nn.Sequential(nn.Linear(6, 6), nn.Dropout(0.1))
    norm = nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6))
    for body in (drop, norm):
        d = Denoiser(lambda x, t: body(x), VP)
        with pytest.raises(ValueError, match=r"net.eval\(\)"):
            measured_answers(d, (6,))
        body.eval()
        assert measured_answers(d, (6,)) == measured_answers(d, (6,))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_answers_that_are_not_finite_are_refused(value):
    with pytest.raises(ValueError, match="not finite"):
        measured_answers(Denoiser(lambda x, t: x * value, VP), (3,))


def test_a_change_that_torch_does_not_count_is_found():
    def net(x, t):
        x.numpy()[:] /= 2
        return x.clone()

    with pytest.raises(ValueError, match="in place"):
        measured_answers(Denoiser(net, VP), (3,))


@pytest.mark.parametrize("true", PREDICTIONS)
def test_a_wrong_prediction_type_is_found_and_the_right_one_named(true):
    net = converted(load_teacher("digits", "cpu").denoiser.net, true)
    for stated in PREDICTIONS:
        found = other_prediction(Denoiser(net, VP, stated), (1, 8, 8), batch_size=64)
        assert found == (None if stated == true else true), stated


def test_nothing_is_said_against_what_is_no_trained_network():
    torch.manual_seed(0)
    random = nn.Conv2d(1, 1, 3, padding=1).requires_grad_(False)
    nets = {
        (2,): lambda x, t: 0.9 * x,
        (5,): lambda x, t: torch.tanh(0.7 * x + t[:, None] / 1000),
        (1, 8, 8): lambda x, t: random(x),
        (3,): lambda x, t: 0 * x,
    }
    for shape, net in nets.items():
        assert all(other_prediction(Denoiser(net, VP, p), shape) is None for p in PREDICTIONS), (
            shape
        )
