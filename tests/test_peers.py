"""The classic solvers against diffusers' schedulers, written from the same papers.

Their tables of sigmas are float32, which limits the agreement of samples to about 1e-6 (UniPC,
which solves linear systems in them: 6e-6, measured). With their sigmas replaced by float64 ones the
formulas themselves are compared: 1e-12. DPMSolverMultistepScheduler rounds each sample to float32
in every step, whatever comes in, so it stays at 1e-6.
"""

import numpy as np
import pytest
import scipy.integrate
import torch

from gas_nb.classic import ddim, deis, dpm_solver_pp, unipc
from gas_nb.runtime.device import import_torchvision
from gas_nb.denoiser import Denoiser
from gas_nb.schedule import NoiseSchedule, spacing
from gas_nb.tableau import sample

import_torchvision()
from diffusers import (  # noqa: E402
    DDIMScheduler,
    DEISMultistepScheduler,
    DPMSolverMultistepScheduler,
    UniPCMultistepScheduler,
)

# diffusers calls NumPy in ways that NumPy 2 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

BETAS = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
SCHEDULE = NoiseSchedule.discrete(betas=BETAS)
FLOAT32, FLOAT64 = 1e-5, 1e-12


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


W1, B, W2 = (0.4 * random(*shape, seed=i) for i, shape in enumerate(((6, 8), (8,), (8, 6))))


def net(x, t):
    return (torch.tanh(x.flatten(1) @ W1 + (t / 1000)[:, None] * B) @ W2).reshape(x.shape)


DENOISER, X_T = Denoiser(net, SCHEDULE), random(3, 1, 2, 3, seed=9)


def scheduler(kind, nfe, float64, **config):
    """One of diffusers' schedulers at `nfe` steps, its tables in float64 if asked for."""
    s = kind(trained_betas=BETAS.numpy(), **config)
    s.set_timesteps(nfe)
    if float64:
        cumulative = (1 - BETAS).cumprod(0)
        s.alphas_cumprod, s.final_alpha_cumprod = cumulative, cumulative[0]
        sigmas = ((1 - cumulative) / cumulative).sqrt()
        s.sigmas = torch.cat([sigmas[s.timesteps], sigmas[:1]])
    return s


def theirs(scheduler, x=X_T):
    for n in scheduler.timesteps:
        x = scheduler.step(net(x, n.double().expand(len(x))), n, x).prev_sample
    return x


def times(scheduler):
    """Their timestep n is our t = (n + 1)/1000; the last
    step leads to n = 0, whose sigma is their sigma_min."""
    t = (torch.cat([scheduler.timesteps, torch.zeros(1, dtype=torch.int64)]).double() + 1) / 1000
    return (
        t[:-1] if t[-1] == t[-2] else t
    )  # "leading" ends with a step from n = 0 to n = 0, which moves nothing


def relative_error(got, expected):
    return ((got - expected).abs().max() / expected.abs().max()).item()


@pytest.mark.parametrize("nfe", [4, 8, 20])
@pytest.mark.parametrize("spacing_kind", ["leading", "trailing"])
@pytest.mark.parametrize("float64", [False, True])
def test_ddim(nfe, spacing_kind, float64):
    s = scheduler(
        DDIMScheduler,
        nfe,
        float64,
        clip_sample=False,
        set_alpha_to_one=False,
        timestep_spacing=spacing_kind,
    )
    got = sample(DENOISER, X_T, ddim(SCHEDULE, times(s)))
    assert relative_error(got, theirs(s)) < (FLOAT64 if float64 else FLOAT32)


@pytest.mark.parametrize("nfe", [4, 8, 14])
@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("lower_order_final", [False, True])
@pytest.mark.parametrize("spacing_kind", ["linspace", "trailing"])
def test_dpm_solver_pp(nfe, order, lower_order_final, spacing_kind):
    s = scheduler(
        DPMSolverMultistepScheduler,
        nfe,
        False,
        algorithm_type="dpmsolver++",
        solver_order=order,
        solver_type="midpoint",
        lower_order_final=lower_order_final,
        euler_at_final=False,
        final_sigmas_type="sigma_min",
        timestep_spacing=spacing_kind,
    )
    got = sample(DENOISER, X_T, dpm_solver_pp(SCHEDULE, times(s), order, lower_order_final))
    assert relative_error(got, theirs(s)) < FLOAT32


@pytest.mark.parametrize("nfe", [4, 8, 20])
@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("variant", ["bh1", "bh2"])
@pytest.mark.parametrize("lower_order_final", [False, True])
@pytest.mark.parametrize("float64", [False, True])
def test_unipc(nfe, order, variant, lower_order_final, float64):
    s = scheduler(
        UniPCMultistepScheduler,
        nfe,
        float64,
        solver_order=order,
        solver_type=variant,
        lower_order_final=lower_order_final,
        final_sigmas_type="sigma_min",
    )
    got = sample(DENOISER, X_T, unipc(SCHEDULE, times(s), order, variant, lower_order_final))
    assert relative_error(got, theirs(s)) < (FLOAT64 if float64 else FLOAT32)


def test_unipc_without_corrector():
    s = scheduler(
        UniPCMultistepScheduler,
        8,
        True,
        solver_order=3,
        solver_type="bh2",
        disable_corrector=list(range(8)),
        final_sigmas_type="sigma_min",
    )
    got = sample(DENOISER, X_T, unipc(SCHEDULE, times(s), 3, "bh2", corrector=False))
    assert relative_error(got, theirs(s)) < FLOAT64


def test_deis_of_diffusers_interpolates_in_another_variable():
    """Order 1 is the same solver. From order 2 on diffusers takes
    polynomials in log(rho), `deis` in rho = sigma/alpha (rho-AB of
    the paper): different samples at few steps, and the same limit."""

    def gap(nfe, order):
        s = scheduler(
            DEISMultistepScheduler, nfe, True, solver_order=order, lower_order_final=False
        )
        return relative_error(sample(DENOISER, X_T, deis(SCHEDULE, times(s), order)), theirs(s))

    assert gap(8, 1) < FLOAT64
    for order in (2, 3):
        assert 1e-3 < gap(8, order) < 0.05
        assert gap(200, order) < gap(20, order) / 4


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_deis_weights_are_the_integrals_that_they_claim_to_be(order):
    """An independent check of `deis`: numerical quadrature of the Lagrange polynomials in rho."""
    grid = spacing(SCHEDULE, 6, "time_uniform", 0.05)
    tableau = deis(SCHEDULE, grid, order)
    alpha, rho = SCHEDULE.alpha(grid).numpy(), (-SCHEDULE.lambda_(grid)).exp().numpy()
    for k in range(6):
        nodes = [k - i for i in range(min(order, k + 1))]
        for j in range(6):
            expected = 0.0
            if j in nodes:
                others = [m for m in nodes if m != j]

                def polynomial(r, j=j, others=others):
                    return np.prod([(r - rho[m]) / (rho[j] - rho[m]) for m in others])

                expected = scipy.integrate.quad(polynomial, rho[k], rho[k + 1], epsabs=1e-13)[0]
            # epsilon_j = x_j / sigma_j - D_j / rho_j, so the
            # weight of D_j is -alpha' * integral / rho_j
            assert tableau.C[k, j].item() == pytest.approx(
                -alpha[k + 1] * expected / rho[j], rel=1e-9, abs=1e-11
            )


SOLVERS = {"ddim": ddim, "dpm_solver_pp": dpm_solver_pp, "unipc": unipc, "deis": deis}


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize(
    "shape",
    [(3, 8, 8), (4, 4, 4), (50,), (2, 30), (3, 4, 6, 6)],
    ids=["image", "latent", "vector", "audio", "video"],
)
def test_a_batch_of_any_shape_is_a_loop_over_its_samples(name, shape):
    """The network mixes the values of one sample, as a real one does, and never two samples."""

    def mixing(x, t):
        time = (t / 1000).reshape(-1, *[1] * (x.ndim - 1))
        return torch.tanh(x + x.flatten(1).mean(1).reshape(time.shape) + x.roll(1, -1) * time)

    x_T, tableau = random(5, *shape), SOLVERS[name](SCHEDULE, spacing(SCHEDULE, 5))
    together = sample(Denoiser(mixing, SCHEDULE), x_T, tableau)
    loop = torch.cat([sample(Denoiser(mixing, SCHEDULE), x[None], tableau) for x in x_T])
    assert together.shape == x_T.shape and together.dtype == x_T.dtype
    torch.testing.assert_close(together, loop, rtol=1e-12, atol=1e-12)
