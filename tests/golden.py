"""Reading the golden data: numbers of the published implementation (see tests/golden/README.md)."""

import json
from pathlib import Path

import numpy as np
import torch

from gas_nb.denoiser import Denoiser
from gas_nb.schedule import NoiseSchedule

GOLDEN = Path(__file__).parent / "golden"


def load(name):
    """The cases (JSON) and the arrays (name -> float64 tensor) of one golden file."""
    cases = json.loads((GOLDEN / f"{name}.json").read_text())
    with np.load(GOLDEN / f"{name}.npz", allow_pickle=False) as z:
        return cases, {k: torch.from_numpy(z[k]) for k in z.files}


def make_schedule(config):
    if config["kind"] == "vp_linear":
        return NoiseSchedule.vp_linear(config["beta_0"], config["beta_1"])
    line = {
        "linspace(1e-4, 0.02, 1000)": torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64),
        "linspace(0.00085**0.5, 0.012**0.5, 1000)**2": torch.linspace(
            0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64
        )
        ** 2,
    }
    return NoiseSchedule.discrete(betas=line[config["betas"]])


def toy_denoiser(arrays, case, prefix="net."):
    """The toy network of the golden data behind a Denoiser."""
    W1, b, W2 = (arrays[prefix + n] for n in ("W1", "b", "W2"))

    def net(x, t):
        hidden = torch.tanh(x.flatten(1) @ W1 + (t / case["net_time_scale"])[:, None] * b)
        return (hidden @ W2).reshape(x.shape)

    return Denoiser(net, make_schedule(case["schedule"]), case["prediction"])


def relative_error(got, expected):
    return ((got - expected).abs().max() / expected.abs().max()).item()
