"""Measure distillation on one GPU: GS and GAS in float32 and bfloat16, then a sweep.

`python tools/measure_gpu.py WORK --seconds 190` distils the embedded fmnist teacher for 3, 4, 6 and
8 evaluations (preset cpu) and writes seconds, evaluations and peak memory to WORK/distillation.json
after every run; then WORK/runs/sweep-fmnist, its solvers trained, all numbers of evaluations at
once. `--dry`: the least that passes through everything.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tarfile
import time
import traceback
from dataclasses import replace
from pathlib import Path

import torch

import gas_nb.runtime.device  # noqa: F401  before diffusers
from gas_nb.runtime.files import write_json_atomic
from gas_nb.sweep import Sweep, SweepConfig, load_sweep, provenance
from gas_nb.teacher import Teacher, load_teacher
from gas_nb.training import make_training_pairs, preset_config, train


class Counting(torch.nn.Module):
    """A network that counts its calls and the samples in
    them; calls inside a transform count once."""

    def __init__(self, net: torch.nn.Module):
        super().__init__()
        self.net, self.calls, self.samples = net, 0, 0

    def forward(self, x, net_time, label=None):
        self.calls += 1
        self.samples += len(x)
        return self.net(x, net_time, label)


def counted(teacher: Teacher, dtype: torch.dtype | None) -> tuple[Teacher, Counting]:
    """The teacher with its calls counted, under autocast to `dtype` if one is given."""
    d = teacher.denoiser
    net = Counting(d.net)
    return replace(teacher, denoiser=replace(d, net=net, autocast=dtype)), net


def distil_once(teacher: Teacher, nfe: int, dtype: torch.dtype | None, preset: str) -> dict:
    """Distil GS, then GAS; seconds, evaluations, peak memory and held-out L1 of both."""
    cuda = teacher.device.type == "cuda"
    mine, net = counted(teacher, dtype)
    config = preset_config(preset, teacher="fmnist", nfe=nfe, device=str(teacher.device))
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    pairs = make_training_pairs(config, mine)
    row = dict(
        nfe=nfe,
        precision="bfloat16" if dtype else "float32",
        pairs_seconds=time.perf_counter() - start,
        pairs_samples=net.samples,
        preset=preset,
    )
    for record in train(config, mine, pairs=pairs):
        if record.val_loss is not None:
            row[record.phase] = dict(
                seconds=record.seconds,
                steps=record.step,
                held_out=record.val_loss,
                calls=net.calls,
                samples=net.samples,
            )
    if cuda:
        torch.cuda.synchronize()
        row["peak_memory_mb"] = torch.cuda.max_memory_allocated() / 2**20
    return row | dict(total_seconds=time.perf_counter() - start)


def distillation(work: Path, teacher: Teacher, until: float, dry: bool) -> None:
    """Every NFE and precision, the most wanted first, until the clock says `until`."""
    rows, took = [], 0.0
    plan = [(n, dtype) for n in ((3,) if dry else (4, 8, 6, 3)) for dtype in (None, torch.bfloat16)]
    for nfe, dtype in plan:
        if time.time() + took > until and rows:
            break
        start = time.time()
        try:
            rows.append(distil_once(teacher, nfe, dtype, "quick" if dry else "cpu"))
        except Exception as error:
            traceback.print_exc()
            rows.append(
                dict(nfe=nfe, precision="bfloat16" if dtype else "float32", error=str(error))
            )
        took = time.time() - start
        print(rows[-1], flush=True)
        write_json_atomic(
            work / "distillation.json",
            dict(weights=teacher.weights_hash, provenance=provenance(teacher.device), rows=rows),
        )


def pack(runs: Path, to: Path) -> None:
    """The runs without their pairs, as one file."""
    with tarfile.open(to, "w:gz") as tar:
        tar.add(runs, "runs", filter=lambda info: None if Path(info.name).name == "pairs" else info)


def sweep_to_end(config: SweepConfig, runs: Path, processes: int) -> None:
    """Run a sweep and write its results."""
    sweep = Sweep(config, runs)
    failed = sweep.run(processes, lambda line: print(line, flush=True))
    sweep.write_results(failed)


def sweep_config(device: str, dry: bool) -> SweepConfig:
    tiny = (
        dict(
            nfes=(2, 3), solvers=("ddim", "gs"), n_samples=8, repeats=2, n_search=4, preset="quick"
        )
        if dry
        else dict(preset="cpu")
    )
    return SweepConfig(teacher="fmnist", train=True, device=device, **tiny)


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("work", type=Path)
    parser.add_argument("--seconds", type=float, default=190)
    parser.add_argument(
        "--distil-seconds", type=float, default=75, help="of these, for the runs one by one"
    )
    parser.add_argument("--processes", type=int, default=6)
    parser.add_argument("--dry", action="store_true")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--sweep", action="store_true", help="only the sweep: what this program starts for itself"
    )
    args = parser.parse_args(argv)
    began, runs = time.time(), args.work.resolve() / "runs"
    runs.mkdir(parents=True, exist_ok=True)
    if args.sweep:
        sweep_to_end(sweep_config(args.device, args.dry), runs, args.processes)
        return 0
    distillation(
        args.work, load_teacher("fmnist", args.device), began + args.distil_seconds, args.dry
    )
    command = [
        sys.executable,
        __file__,
        str(args.work),
        "--sweep",
        "--device",
        args.device,
        "--processes",
        str(args.processes),
    ]
    left = began + args.seconds - time.time() - 5
    process = subprocess.Popen(command + ["--dry"] * args.dry, start_new_session=True)
    try:
        process.wait(left)
    except subprocess.TimeoutExpired:
        print("no more time for the sweep", flush=True)
        os.killpg(process.pid, 15)
        process.wait(5)
        if (runs / "sweep-fmnist" / "config.json").is_file():
            load_sweep(runs / "sweep-fmnist").write_results(["cut off by the clock"])
    pack(runs, args.work / "runs.tar.gz")
    print(f"{time.time() - began:.0f} seconds", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
