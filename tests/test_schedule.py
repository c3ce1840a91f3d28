"""Times below the first step of a discrete schedule, and configurations that are none."""

import pytest
import torch

from gas_nb.denoiser import Denoiser
from gas_nb.schedule import SPACINGS, NoiseSchedule, spacing, times_of_sigmas
from gas_nb.teacher import Teacher


@pytest.mark.parametrize("steps", [2, 10, 100, 1000])
def test_below_the_first_step_the_noise_goes_to_nothing(steps):
    schedule = NoiseSchedule.ddpm(1e-4, 0.02, steps)
    t = torch.logspace(-6, 0, 200, dtype=torch.float64)
    assert (schedule.lambda_(t).diff() < 0).all() and torch.isfinite(schedule.lambda_(t)).all()
    torch.testing.assert_close(schedule.t_of_lambda(schedule.lambda_(t)), t, rtol=1e-6, atol=0)
    assert schedule.net_time(t).min() == 0 and schedule.net_time(1.0).item() == pytest.approx(
        steps - 1
    )
    moving = torch.tensor([0.2 / steps, 0.5557], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(schedule.lambda_, moving)


@pytest.mark.parametrize("kind", SPACINGS)
@pytest.mark.parametrize("steps", [10, 100, 1000])
@pytest.mark.parametrize("t_eps", [1e-3, 1e-4])
def test_a_teacher_may_end_below_the_first_step(kind, steps, t_eps):
    asked = []

    def net(x, t):
        asked.append(t.min().item())
        return torch.tanh(x)

    denoiser = Denoiser(net, NoiseSchedule.ddpm(1e-4, 0.02, steps))
    teacher = Teacher("a", denoiser, (2,), dict(solver="unipc", nfe=20, spacing=kind, t_eps=t_eps))
    assert torch.isfinite(teacher.generate(range(4))).all()
    assert min(asked) >= 0


@pytest.mark.parametrize(
    "config",
    [
        None,
        "flow",
        [],
        {},
        dict(kind=None),
        dict(kind=["flow"]),
        dict(kind="flow", speed=2),
        dict(kind="ddpm", steps="many"),
    ],
)
def test_a_configuration_that_is_none(config):
    with pytest.raises(ValueError):
        NoiseSchedule.from_config(config)


def test_grids_on_a_flow_begin_at_one_and_fall():
    flow = NoiseSchedule.flow()
    for kind in SPACINGS:
        for nfe in (1, 2, 40):
            for t_eps in (1e-3, 0.97):
                times = spacing(flow, nfe, kind, t_eps)
                assert times[0] == 1 and times[-1] == t_eps and (times.diff() < 0).all()
    for wrong in ("many", None, [1.0], [1.0, 2.0]):
        with pytest.raises(ValueError, match="sigmas"):
            times_of_sigmas(flow, wrong)
