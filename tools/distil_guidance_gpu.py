"""Go on with a trained teacher on one GPU, then distil its answers under guidance.

`python tools/distil_guidance_gpu.py WORK --base FOLDER --seconds 300` trains the base of
tools/train_teacher_gpu.py further, judges both under guidance at sampling, and fits a copy of the
better one to its own guided predictions: the target is n + s (c - n) of the frozen network, without
the noise of the data (arXiv 2210.03142, stage one). `--dry`: everything tiny.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
import traceback
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import gas_nb.runtime.device  # noqa: F401  before diffusers
from gas_nb.teacher import load_teacher
from gas_nb.teachers.fmnist import NO_LABEL, WEIGHTS, TeacherConfig, make_network
from gas_nb.teachers.fmnist_data import to_unit_range
from measure_gpu import distillation
from train_teacher_gpu import (
    Clock,
    Guidance,
    Judge,
    Run,
    data,
    judge_all,
    recipe,
    sampler,
    save,
    train_end,
)


class Distilled(Run):
    """A training towards the guided predictions of a frozen network."""

    def __init__(self, config: TeacherConfig, images: Tensor, labels: Tensor, source: nn.Module):
        super().__init__(config, images, labels, start=source)
        self.source = deepcopy(source).eval().requires_grad_(False)

    def loss(self) -> tuple[Tensor, Tensor]:
        """Weighted and plain squared distance to the guided prediction, on fresh draws."""
        d = self.draws()
        t, shown = d.timesteps, self.labels[d.indices].masked_fill(d.hidden, NO_LABEL)
        signal, sigma = (v[t].view(-1, 1, 1, 1) for v in (self.signal, self.noise))
        noisy = signal * to_unit_range(self.images[d.indices]) + sigma * d.noise
        with torch.no_grad():
            told = self.predict(self.source, noisy, t, shown)
            null = self.predict(self.source, noisy, t, torch.full_like(shown, NO_LABEL))
            target = null + self.scales[t].view(-1, 1, 1, 1) * (told - null)
        errors = (self.predict(self.forward, noisy, t, shown) - target).square().mean((1, 2, 3))
        return (errors * self.weights[t]).mean(), errors.detach().mean()


def load_base(
    folder: Path, config: TeacherConfig, device: torch.device
) -> tuple[nn.Module, dict, str]:
    """The network in `folder`, its training.json and the hash of its weights."""
    network = make_network(config)
    network.load_state_dict({k: v.float() for k, v in load_file(folder / WEIGHTS).items()})
    sha = hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest()
    return network.to(device), json.loads((folder / "training.json").read_text()), sha


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("work", type=Path)
    parser.add_argument(
        "--base", type=Path, required=True, help="folder with weights and training.json"
    )
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--began", type=float)
    parser.add_argument("--dry", action="store_true")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args(argv)
    device = torch.device(args.device)
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.benchmark = True
    clock = Clock(args.work, args.began or time.time(), args.seconds)
    until = {k: v * args.seconds for k, v in dict(longer=0.46, guided=0.55, distilled=0.78).items()}
    cpu_images, cpu_labels = data(args.dry, "train")
    images, labels = cpu_images.to(device), cpu_labels.to(device)
    config = replace(
        recipe(args.dry, device.type == "cuda"),
        lr=2.5e-3,
        vector_lr=1.25e-3,
        warmup_steps=50,
        seed=5,
    )
    base, training, sha = load_base(args.base, config, device)
    judge = Judge(cpu_images, device, 40 if args.dry else 10_000)
    run = Run(config, images, labels, start=base)
    run.plan(None, 0, config.ema_decay)
    run.capture()
    told = train_end(run, base, training, sha, Guidance(), clock, until["longer"] - clock.now())
    save(run.average, told, clock, "base-longer")
    clock.say(f"longer: {told['steps_done']} steps, error {told['noise_error']:.5f}")
    longer = deepcopy(run.average)
    tried = []
    for name, network, guidance in (
        ("longer", longer, Guidance(1.2)),
        ("base", base.eval(), Guidance(1.2)),
        ("longer", longer, Guidance(1.3, 100, 650)),
        ("longer", longer, Guidance(1.15)),
    ):
        if tried and clock.now() > until["guided"]:
            break
        d = judge(sampler(network, guidance, device, 2000))
        tried.append((name, network, guidance, d))
        clock.say(
            f"{name}, {guidance.name} at sampling: share {d['share']:.4f}, Frechet "
            f"{d['frechet']:.4f}, {d['ratio']:.2f} times"
        )
    clock.keep("guided", [dict(network=n, guidance=g.name, **d) for n, _, g, d in tried])
    best = min(tried, key=lambda row: (row[3]["share"] < 0.943, row[3]["frechet"]))
    settings = replace(
        config,
        lr=1.5e-3,
        vector_lr=7e-4,
        warmup_steps=20,
        precision="float32",
        guidance_scale=best[2].scale,
        seed=6,
    )
    student = Distilled(settings, images, labels, best[1])
    student.plan(None, 0, settings.ema_decay)
    student.capture()
    before = told if best[0] == "longer" else training
    ended = train_end(
        student, best[1], before, sha, best[2], clock, until["distilled"] - clock.now()
    )
    ended["distilled"] = (
        "the labelled and unlabelled predictions of the "
        "weights before, under guidance, as the target"
    )
    save(student.average, ended, clock, "distilled-" + best[2].name)
    clock.say(
        f"distilled {best[0]}, {best[2].name}: {ended['steps_done']} "
        f"steps, distance {ended['noise_error']:.6f}"
    )
    chosen = judge_all(
        ["distilled-" + best[2].name, "base-longer"], judge, clock, 0.84 * args.seconds
    )
    clock.say(f"chosen {chosen}")
    if not args.dry:
        teacher = replace(load_teacher(clock.work / "chosen", device), name="fmnist")
        try:
            distillation(args.work, teacher, clock.began + 0.97 * args.seconds, False)
        except Exception:
            traceback.print_exc()
    clock.say("done")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
