"""What each choice of the fmnist teacher's training buys, one change at a time.

    python benchmarks/teacher_ablation.py --steps 450 --out runs/ablation

Every variant is trained from scratch; its figures go to OUT/<variant>.json the moment they are
measured, and a variant whose file is there is read. Measured on the average of the weights: the
plain noise error on draws of the test images (all times, and by thirds of t), and 600 samples
(10 evaluations of UniPC, no guidance): share of the class asked for, Frechet distance."""

from __future__ import annotations

import argparse
import json
import time
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from unittest import mock

import torch

import gas_nb.runtime.device  # noqa: F401  before torchvision
from gas_nb.classic import classic_tableau
from gas_nb.data import eval_seeds, noise, random_labels
from gas_nb.evaluation import frechet_distance
from gas_nb.runtime.files import write_json_atomic
from gas_nb.teacher import LabelledUNet, load_teacher
from gas_nb.teachers import fmnist
from gas_nb.teachers.fmnist_classifier import (
    accuracy,
    extract_features,
    feature_statistics,
    load_classifier,
    reference_statistics,
)
from gas_nb.teachers.fmnist_data import load_fashion_mnist

# name: (changes of the configuration, sides in pixels at which the network attends)
VARIANTS = {
    "base": ({}, (8,)),
    "base, seed 1": ({"seed": 1}, (8,)),
    "attention at 16x16": ({}, (16,)),
    "attention at 16x16 and 8x8": ({}, (16, 8)),
    "no attention": ({}, ()),
    "min-SNR gamma 5": ({"min_snr_gamma": 5.0}, (8,)),
    "min-SNR off": ({"min_snr_gamma": 0.0}, (8,)),
}
# The average keeps (1 + n) / (c + n) of itself after step
# n: it reaches over about the last 1 / c of the run.
AVERAGES = {"no average": 1.0, "last third": 3.0, "last 1/30": 30.0}


def attending(sides: tuple[int, ...]):
    "`make_network` with attention at all of `sides`."
    build = fmnist.make_network

    def make(config):
        plain = build(config)
        attends = [config.size // 2**level in sides for level in range(len(config.widths))]
        kinds = {
            "down_block_types": ["AttnDownBlock2D" if a else "DownBlock2D" for a in attends],
            "up_block_types": ["AttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attends)],
        }
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            return type(plain).from_config({**plain.config, **kinds})

    return mock.patch.object(fmnist, "make_network", make)


def train(config, images, labels, others: dict[str, float]):
    "The trained state, the other averages by name, and images per second."
    state = fmnist.TrainingState(config, torch.device("cpu"))
    weights = fmnist.loss_weights(config.min_snr_gamma).float()
    kept = {name: deepcopy(state.average) for name in others}
    began = time.perf_counter()
    for step in range(config.steps):
        fmnist.update(state, images, labels, weights)
        for name, c in others.items():
            fmnist.update_ema(kept[name], state.network, (1 + step) / (c + step) if c > 1 else 0.0)
        if step % 50 == 49:
            print(
                f"  step {step + 1}: error {state.smoothed[1]:.4f}, "
                f"{time.perf_counter() - began:.0f} s",
                flush=True,
            )
    return state, kept, config.steps * config.batch_size / (time.perf_counter() - began)


@torch.no_grad()
def held_out(network, images, labels, precision: str, rounds: int = 20) -> dict:
    "Plain noise error on the test images, in all and by thirds of the time."
    config = fmnist.TeacherConfig(batch_size=500, seed=7, label_dropout=0.0, precision=precision)
    errors, times = [], []
    with fmnist.numerics(config, torch.device("cpu")):
        for step in range(rounds):
            draws = fmnist.draw_step(config, step, len(images))
            errors.append(fmnist.noise_errors(network, images, labels, draws))
            times.append(draws.timesteps)
    errors, thirds = torch.cat(errors), torch.cat(times) * 3 // 1000
    return {
        "noise_error": errors.mean().item(),
        "by_thirds": [errors[thirds == k].mean().item() for k in range(3)],
    }


@torch.no_grad()
def samples(network, teacher, classifier, precision: str, n: int = 600, nfe: int = 10) -> dict:
    "Share of the class asked for and Frechet distance to the test images of `n` samples."
    seeds = eval_seeds(n)
    labels = random_labels(seeds, 10)
    own = replace(teacher, denoiser=replace(teacher.denoiser, net=LabelledUNet(network)))
    tableau = classic_tableau(
        solver="unipc",
        spacing="logSNR",
        order=3,
        nfe=nfe,
        schedule=teacher.schedule,
        t_eps=teacher.t_eps,
    )
    config = fmnist.TeacherConfig(precision=precision)
    with fmnist.numerics(config, torch.device("cpu")):
        x = own.sample(noise(seeds, teacher.shape), labels, tableau).float()
    frechet = frechet_distance(
        *feature_statistics(extract_features(classifier, x))[:2], *reference_statistics("test")[:2]
    )
    return {"share": accuracy(classifier, x, labels), "frechet": frechet}


@torch.no_grad()
def call_ms(network, batch: int = 64, repeats: int = 7) -> float:
    "Median milliseconds per image of one call in float32."
    x, label, times = torch.randn(batch, 1, 32, 32), torch.arange(batch) % 10, []
    for _ in range(repeats + 1):
        began = time.perf_counter()
        network(x, 500, class_labels=label)
        times.append(1000 * (time.perf_counter() - began) / batch)
    return sorted(times[1:])[repeats // 2]


def table(results: dict[str, dict]) -> str:
    lines = [
        "| variant | parameters | training, images/s | call, ms per image | noise error, held out "
        "| low, middle, high t | of the class asked for | Frechet distance, 600 |",
        "|" + " --- |" * 8,
    ]
    for name, r in results.items():
        lines.append(
            f"| {name} | {r['parameters'] / 1e6:.2f}M | {r['images_per_second']:.0f} | "
            f"{r['call_ms']:.2f} | {r['noise_error']:.4f} | "
            f"{', '.join(f'{e:.4f}' for e in r['by_thirds'])} | "
            f"{100 * r['share']:.1f} % | {r['frechet']:.2f} |"
        )
    return "\n".join(lines)


def main(argv=None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=VARIANTS)
    parser.add_argument(
        "--steps", type=int, default=450, help="steps of 64 images; the rate falls in the last half"
    )
    parser.add_argument("--precision", default="bfloat16", choices=("float32", "bfloat16"))
    parser.add_argument("--out", type=Path, default=Path("runs/ablation"))
    a = parser.parse_args(argv)
    images, labels = load_fashion_mnist("train", dtype=torch.uint8)
    unseen, their_labels = load_fashion_mnist("test", dtype=torch.uint8)
    teacher, classifier, results = load_teacher("fmnist", "cpu"), load_classifier("cpu"), {}
    for name in a.variants:
        path = a.out / f"{name.replace(' ', '_').replace(',', '')}.json"
        if not path.is_file():
            print(name, flush=True)
            changes, sides = VARIANTS[name]
            config = fmnist.TeacherConfig(
                steps=a.steps,
                decay_steps=a.steps // 2,
                warmup_steps=50,
                precision=a.precision,
                **changes,
            )
            with attending(sides):
                state, others, rate = train(
                    config, images, labels, AVERAGES if name == "base" else {}
                )
            for variant, network in {name: state.average, **others}.items():
                row = {
                    "parameters": sum(p.numel() for p in network.parameters()),
                    "images_per_second": rate,
                    "call_ms": call_ms(network),
                    **held_out(network, unseen, their_labels, a.precision),
                    **samples(network, teacher, classifier, a.precision),
                    "steps": a.steps,
                    "precision": a.precision,
                }
                results[variant] = row
                print(variant, json.dumps(row), flush=True)
            write_json_atomic(path, {v: results[v] for v in (name, *others)})
        results |= json.loads(path.read_text())
    (a.out / "table.md").write_text(table(results) + "\n")
    print(table(results))


if __name__ == "__main__":
    main()
