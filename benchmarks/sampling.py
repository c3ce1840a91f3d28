"""What a sampling loop costs beside its network: ours and diffusers' schedulers in one run.

    python benchmarks/sampling.py [--teacher fmnist] [--batch 64] [--nfe 8] [--repetitions 7]
        [--device cpu]

Every repetition times each contender once, in turning order, so that a change in the machine's load
meets all alike. Each is divided by the bare network evaluations of its own repetition; medians over
the repetitions are printed. On a CPU the clock is the process's CPU time, which other programs
disturb less than wall time; on a GPU it is wall time between synchronisations. Then the same with a
network that does next to nothing: what is left is the loop's own time per step.
"""

import argparse
import statistics
import time

import torch
from diffusers import DPMSolverMultistepScheduler, UniPCMultistepScheduler

from gas_nb.classic import classic_tableau
from gas_nb.data import noise
from gas_nb.denoiser import Denoiser
from gas_nb.tableau import sample
from gas_nb.teacher import load_teacher

SCHEDULE = dict(num_train_timesteps=1000, beta_start=1e-4, beta_end=0.02, beta_schedule="linear")
PEERS = {
    "diffusers DPMSolverMultistep (2M)": lambda: DPMSolverMultistepScheduler(
        **SCHEDULE, solver_order=2
    ),
    "diffusers UniPCMultistep (order 2)": lambda: UniPCMultistepScheduler(
        **SCHEDULE, solver_order=2
    ),
}
OURS = {"gas_nb DPM-Solver++ 2M": ("dpm_solver_pp", 2), "gas_nb UniPC, order 2": ("unipc", 2)}


def contenders(denoiser: Denoiser, x: torch.Tensor, label: torch.Tensor, nfe: int) -> dict:
    """Name to function; each makes samples from `x` with `nfe` evaluations of `denoiser.net`."""
    schedule, net = denoiser.schedule, denoiser.net
    tables = {
        name: classic_tableau(solver, schedule, nfe, "time_uniform", 1e-3, order=order)
        for name, (solver, order) in OURS.items()
    }
    net_times = [float(t) for t in schedule.net_time(next(iter(tables.values())).times[:-1])]

    def bare():
        for t in net_times:
            net(x, torch.full((len(x),), t, device=x.device), label)

    def diffusers(make):
        scheduler = make()
        scheduler.set_timesteps(nfe, device=x.device)
        state = x
        for t in scheduler.timesteps:
            state = scheduler.step(net(state, t.expand(len(x)), label), t, state).prev_sample
        return state

    runs = {"the bare evaluations": bare}
    runs |= {
        name: lambda table=table: sample(denoiser, x, table, label)
        for name, table in tables.items()
    }
    return runs | {name: lambda make=make: diffusers(make) for name, make in PEERS.items()}


def clock(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        return time.perf_counter()
    return time.process_time()


@torch.no_grad()
def interleaved(
    runs: dict, repetitions: int, device: torch.device, inner: int = 1
) -> dict[str, list[float]]:
    """Seconds of each contender in each repetition, `inner`
    calls at a time; one unmeasured round first."""
    names, seconds = list(runs), {name: [] for name in runs}
    for i in range(repetitions + 1):
        for name in names[i % len(names) :] + names[: i % len(names)]:
            start = clock(device)
            for _ in range(inner):
                runs[name]()
            if i:
                seconds[name].append((clock(device) - start) / inner)
    return seconds


def main() -> None:
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--teacher", default="fmnist", choices=["fmnist", "digits"])
    p.add_argument("--batch", type=int, default=64)
    p.add_argument("--nfe", type=int, default=8)
    p.add_argument("--repetitions", type=int, default=7)
    p.add_argument("--device", default="auto")
    a = p.parse_args()
    teacher = load_teacher(a.teacher, a.device)
    device = teacher.device
    x = noise(range(a.batch), teacher.shape).to(device)
    label = teacher.random_conditions(range(a.batch)).to(device)
    what = "wall" if device.type == "cuda" else "CPU"
    print(
        f"{a.teacher} on {device}, {torch.get_num_threads()} threads, batch {a.batch}, NFE "
        f"{a.nfe}, {a.repetitions} repetitions, {what} time"
    )
    seconds = interleaved(contenders(teacher.denoiser, x, label, a.nfe), a.repetitions, device)
    bare = seconds["the bare evaluations"]
    for name, values in seconds.items():
        ratios = [v / b for v, b in zip(values, bare)]
        print(
            f"  {name:36} {1000 * statistics.median(values) / a.batch:8.3f} ms per sample, "
            f"{statistics.median(ratios):.3f} times the bare "
            f"evaluations ({min(ratios):.3f} to {max(ratios):.3f})",
            flush=True,
        )

    idle = Denoiser(lambda x, t, label=None: x, teacher.schedule, "epsilon")
    for shape in ((a.batch, *teacher.shape), (1, *teacher.shape)):
        x = torch.randn(shape, device=device)
        seconds = interleaved(contenders(idle, x, None, a.nfe), 3 * a.repetitions, device, inner=20)
        print(
            f"a network that returns its input, shape {tuple(shape)}: "
            "microseconds per step beyond that network"
        )
        for name, values in list(seconds.items())[1:]:
            own = [1e6 * (v - b) / a.nfe for v, b in zip(values, seconds["the bare evaluations"])]
            print(
                f"  {name:36} {statistics.median(own):8.1f} ({min(own):.1f} to {max(own):.1f})",
                flush=True,
            )


if __name__ == "__main__":
    main()
