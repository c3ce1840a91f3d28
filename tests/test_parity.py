"""Parity with the published implementation, float64, relative error at most 1e-9."""

import json

import pytest
import torch
from golden import GOLDEN, load, make_schedule, relative_error, toy_denoiser

from gas_nb.classic import ipndm, unipc
from gas_nb.schedule import spacing, times_of_sigmas
from gas_nb.solver import GeneralizedSolver
from gas_nb.tableau import Tableau, sample

TOLERANCE = 1e-9
SCHEDULES, SCHEDULE_DATA = load("schedules")
CLASSIC, CLASSIC_DATA = load("classic_solvers")
GS, GS_DATA = load("generalized_solver")


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedule(name):
    schedule, data = (
        make_schedule(SCHEDULES[name]),
        {k.split(".")[1]: v for k, v in SCHEDULE_DATA.items() if k.startswith(name + ".")},
    )
    assert relative_error(schedule.log_alpha(data["t"]), data["log_alpha"]) < TOLERANCE
    assert relative_error(schedule.sigma(data["t"]), data["sigma"]) < TOLERANCE
    assert relative_error(schedule.lambda_(data["t"]), data["lambda"]) < TOLERANCE
    assert relative_error(schedule.t_of_lambda(data["lambda"]), data["t_of_lambda"]) < TOLERANCE


@pytest.mark.parametrize(
    "case", CLASSIC, ids=lambda c: "-".join(str(c[k]) for k in ("case", "solver", "order"))
)
def test_classic_solver(case):
    denoiser = toy_denoiser(CLASSIC_DATA, case)
    data = {k: CLASSIC_DATA[f"{case['case']}.{k}"] for k in ("x_T", "x_0", "timesteps")}
    if case["solver"] == "unipc":
        times = spacing(denoiser.schedule, case["nfe"], case["spacing"], case["t_eps"])
        tableau = unipc(denoiser.schedule, times, case["order"], case["variant"])
    else:
        times = times_of_sigmas(denoiser.schedule, case["sigmas"])
        tableau = ipndm(denoiser.schedule, times, case["order"])
    assert relative_error(times, data["timesteps"]) < TOLERANCE
    assert relative_error(sample(denoiser, data["x_T"], tableau), data["x_0"]) < TOLERANCE


@pytest.mark.parametrize(
    "case", GS, ids=lambda c: f"{c['case']}-nfe{c['nfe']}-order{c['order']}-theory{c['theory']}"
)
def test_generalized_solver(case):
    denoiser, prefix = toy_denoiser(GS_DATA, case), case["case"] + "."
    data = {k[len(prefix) :]: v for k, v in GS_DATA.items() if k.startswith(prefix)}
    solver = GeneralizedSolver(
        denoiser.schedule, case["nfe"], case["order"], case["t_eps"], case["theory"]
    )
    fresh = {k: v.clone() for k, v in solver.state_dict().items()}
    solver.load_published_parameters({k[5:]: v for k, v in data.items() if k.startswith("init.")})
    for name, mask in solver.used.items():
        torch.testing.assert_close(
            solver.state_dict()[name][mask], fresh[name][mask], rtol=1e-9, atol=1e-12
        )
    solver.load_published_parameters({k[6:]: v for k, v in data.items() if k.startswith("param.")})
    assert relative_error(solver.tableau().times.detach(), data["timesteps"]) < TOLERANCE
    with torch.no_grad():
        assert relative_error(solver.sample(denoiser, data["x_T"]), data["x_0"]) < TOLERANCE
        round_trip = Tableau.from_json(solver.tableau().to_json())
        assert torch.equal(
            sample(denoiser, data["x_T"], round_trip), solver.sample(denoiser, data["x_T"])
        )


def test_the_golden_data_is_whole():
    """Every case of the files is read: a filter that
    silently matches nothing would pass everything."""
    assert len(CLASSIC) == 84 and len(GS) == 40 and len(SCHEDULES) == 4
    assert {c["solver"] for c in CLASSIC} == {"unipc", "ipndm"} and {c["theory"] for c in GS} == {
        True,
        False,
    }
    assert json.loads((GOLDEN / "schedules.json").read_text())
