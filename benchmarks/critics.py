#!/usr/bin/env python3
"""What each critic of the game gains, from one GS, in features that no critic sees.

`python benchmarks/critics.py` fits one GS on `digits`, plays a turn against each of the critics
named in CRITICS for several seeds (each with pairs of its own), and judges on fresh noises: L1 to
the teacher's samples, the Frechet distance to them in the features of a classifier that is trained
on the digits here, and in random features of another seed; to the digits themselves in the first.
All are printed as shares of those of GS, the mean over the seeds with its standard error."""

import argparse
import math
import statistics
import time
from dataclasses import replace

import torch
from torch import Tensor, nn

from gas_nb.data import eval_seeds, make_pairs
from gas_nb.fitting.chart import Chart, to_chart
from gas_nb.fitting.distance import Distance
from gas_nb.game.critics import RandomFeatures, Standardised, parse_critics
from gas_nb.game.play import GameOptions, Table, take_turn
from gas_nb.metrics import frechet_distance
from gas_nb.tableau import Tableau
from gas_nb.teacher import Teacher, load_teacher
from gas_nb.teachers.digits import digits_images, digits_labels
from gas_nb.training import preset_config, train
from gas_nb.training.pairs import make_game_pairs
from gas_nb.training.reals import load_reals

CRITICS = (
    "frechet",
    "frechet:pixels",
    "kernel",
    "kernel:pixels",
    "kernel:classes",
    "r3gan",
    "r3gan:classes",
    "r3gan:random",
    "r3gan:random:classes",
    "r3gan:pixels",
    "r3gan:patches",
    "r3gan:patches:classes",
    "frechet, r3gan",
)


def classifier() -> nn.Module:
    """The features of a small classifier of digits, before its last layer."""
    x, labels = digits_images(), digits_labels()
    torch.manual_seed(12345)
    layers = [nn.Conv2d(1, 16, 3, padding=1), nn.ReLU()]
    for channels in (16, 32):
        layers += [nn.Conv2d(channels, 32, 3, padding=1, stride=2), nn.ReLU()]
    hidden = nn.Sequential(*layers, nn.Flatten(), nn.Linear(128, 64), nn.Tanh())
    whole = nn.Sequential(hidden, nn.Linear(64, 10))
    adam = torch.optim.Adam(whole.parameters(), 3e-3)
    for _ in range(200):
        seen = x + 0.15 * torch.randn_like(x)  # as blurred as the teacher's
        loss = nn.functional.cross_entropy(whole(seen), labels)
        adam.zero_grad()
        loss.backward()
        adam.step()
    told = (whole(x).argmax(1) == labels).float().mean().item()
    print(f"classifier: {told:.1%} of its own {len(x)} images")
    return hidden.requires_grad_(False)


def moments(features: Tensor) -> tuple[Tensor, Tensor]:
    features = features.double()
    return features.mean(0), features.T.cov()


def distilled(teacher: Teacher, nfe: int) -> Tableau:
    config = preset_config("cpu", teacher="digits", nfe=nfe, device="cpu", adversarial_weight=0)
    *_, last = train(config, teacher)
    return last.tableau


def error(values: list[float]) -> float:
    return statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nfe", type=int, default=2)
    parser.add_argument("--pairs", type=int, default=300, help="that a turn is played on")
    parser.add_argument("--judges", type=int, default=256, help="that choose the part of the way")
    parser.add_argument("--seeds", type=int, default=3, help="trainings of each critic")
    parser.add_argument("--n", type=int, default=5000, help="fresh noises that judge")
    parser.add_argument("--reals", default="teacher,dataset", help="what critics compare with")
    parser.add_argument("--critics", action="append", help="instead of those in CRITICS")
    options = parser.parse_args()
    torch.set_num_threads(1)

    teacher, distance = load_teacher("digits", "cpu"), Distance()
    fresh = make_pairs(teacher, eval_seeds(options.n), "random")
    data = digits_images()
    seen = Standardised(classifier(), data)
    other = Standardised(RandomFeatures((1, 8, 8), 987_654), fresh.x_0)
    spaces = [(seen, fresh.x_0), (other, fresh.x_0), (seen, data)]
    goals = [moments(features(x)) for features, x in spaces]
    numbers = GameOptions(pairs=options.pairs, judges=options.judges, errors=0.0, evaluations=10**6)
    chart = to_chart(distilled(teacher, options.nfe), teacher.schedule)

    def judged(table: Table, chart: Chart) -> list[float]:
        x = table.samples(chart, fresh)
        with torch.no_grad():
            found = [moments(features(x)) for features, _ in spaces]
        apart = [float(frechet_distance(*a, *b)) for a, b in zip(found, goals)]
        return [table.loss(x, fresh), *apart]

    def table_for(critics: str, seed: int, reals: str) -> Table:
        config = preset_config("cpu", teacher="digits", nfe=options.nfe, device="cpu", seed=seed)
        config = replace(config, tangent=numbers, reals=reals, adversarial_weight=1.0)
        pairs = make_game_pairs(config, teacher, options.pairs, options.judges)
        found = load_reals(config, teacher, options.judges) or (None, None)
        facts = teacher.denoiser, *pairs, distance, parse_critics(critics), seed
        return Table(*facts, options=numbers, reals=found[0], unseen=found[1])

    gs = judged(table_for("frechet", 0, "teacher"), chart)
    said = "GS: L1 {:.4f}, Frechet to the teacher {:.4f}, in random features {:.3f}, to data {:.4f}"
    print(said.format(*gs), f"(teacher {float(frechet_distance(*goals[0], *goals[2])):.4f})")
    print("| critics | reals | moved | L1 | Frechet | in random features | to data | seconds |")
    for reals in options.reals.split(","):
        for critics in options.critics or CRITICS:
            rows, moved, begun = [], 0, time.perf_counter()
            for seed in range(options.seeds):
                table = table_for(critics, seed, reals)
                turn = take_turn(table, chart)
                moved += turn.accepted
                rows.append(judged(table, turn.chart))
            spent = (time.perf_counter() - begun) / options.seeds
            shares = [[x / y for x in column] for column, y in zip(zip(*rows), gs)]
            said = [f"{statistics.mean(v):.2f} ± {error(v):.2f}" for v in shares]
            of = f"{moved} of {options.seeds}"
            print(f"| {critics} | {reals} | {of} | {' | '.join(said)} | {spent:.1f} |", flush=True)


if __name__ == "__main__":
    main()
