#!/usr/bin/env python3
"""How much of a learned solver's gain its times alone keep: L1 to the teacher, rule by rule.

`python benchmarks/times.py` fits times for every rule and number of evaluations on `fmnist`, and
the full solver on the same pairs; all are judged on noise that none of them has seen, beside the
usual grids of the same rule. Done cells are kept in benchmarks/results/times.json and not done
again; `--minutes` ends the run after the cell in which they pass. `--quick`: two rules on `digits`.
The table is printed at the end."""

import argparse
import json
import time
from functools import lru_cache
from pathlib import Path

import torch

from gas_nb.data import Pairs, eval_seeds, finish, train_seeds
from gas_nb.denoiser import Remembering
from gas_nb.fitting.chart import to_chart
from gas_nb.fitting.distance import Distance, sample_losses
from gas_nb.fitting.times import fit_times, usual_times
from gas_nb.rules import RULES
from gas_nb.runs import kept_pairs
from gas_nb.runtime.files import write_text_atomic
from gas_nb.tableau import Tableau
from gas_nb.teacher import Teacher, load_teacher
from gas_nb.training import TrainConfig, train

RESULTS = Path(__file__).parent / "results" / "times.json"
NFES = (4, 6, 8, 10)
ORDER = ("dpmpp_2m", "euler", "unipc_2", "res_2m", "unipc_3", "heun")
PER_STEP = 400  # evaluations for each of the full solver's own, those of its pairs included


def losses(teacher: Teacher, table: Tableau, pairs: Pairs) -> torch.Tensor:
    chart = to_chart(table, teacher.schedule)
    return sample_losses(remembering(teacher), chart, pairs, Distance(), teacher.batch_size)


@lru_cache(maxsize=1)
def remembering(teacher: Teacher) -> Remembering:
    """All solvers ask the noise of a pair once, at the same time."""
    return Remembering(teacher.denoiser)


def mean_and_error(values: torch.Tensor) -> dict[str, float]:
    return dict(mean=values.mean().item(), error=values.std().item() / len(values) ** 0.5)


def full_solver(teacher: Teacher, nfe: int, train_pairs: Pairs, val: Pairs) -> Tableau:
    settings = dict(teacher=teacher.name, nfe=nfe, adversarial_weight=0.0, device="cpu")
    config = TrainConfig(budget=PER_STEP * nfe, val_every=1, **settings)
    *_, last = train(config, teacher, pairs=(train_pairs, val))
    return last.tableau


def full_cell(teacher: Teacher, nfe: int, pairs: tuple[Pairs, Pairs], fresh: Pairs) -> dict:
    off = losses(teacher, full_solver(teacher, nfe, *pairs), fresh)
    return dict(nfe=nfe, rule="full", l1=mean_and_error(off), losses=off.tolist())


def rule_cell(
    teacher: Teacher, rule: str, nfe: int, pairs: tuple[Pairs, Pairs], fresh: Pairs, all_grids: bool
) -> dict:
    """The fit, and usual grids on fresh noise: all of them, or the two best on held-out pairs."""
    fit = fit_times(rule, teacher, nfe, *pairs)
    grids = usual_times(fit.rule, teacher.schedule, nfe, teacher.t_eps)
    ranked = sorted(fit.usual, key=fit.usual.__getitem__)
    found = {}
    for name in ranked if all_grids else ranked[:2]:
        found[name] = losses(teacher, fit.rule.tableau(teacher.schedule, grids[name]), fresh)
    best = min(found, key=lambda name: found[name].mean().item())
    ours = losses(teacher, fit.tableau, fresh)
    return dict(
        nfe=nfe,
        rule=rule,
        l1=mean_and_error(ours),
        usual={name: mean_and_error(off) for name, off in found.items()},
        best_usual=best,
        closer=mean_and_error(found[best] - ours),
        held_out=dict(fitted=fit.loss, usual=fit.usual),
        times=fit.times.tolist(),
        steps=fit.steps,
        evaluations=fit.evaluations,
    )


def cells(nfes: tuple[int, ...], rules: tuple[str, ...]) -> list[tuple[str, int]]:
    """The most wanted first. Heun takes odd numbers: its last step is Euler's, to 0."""
    asked = [("full", nfe) for nfe in nfes]
    for rule in rules:
        asked += [(rule, nfe + (rule == "heun")) for nfe in nfes]
    return asked


def named_cell(text: str) -> tuple[str, int]:
    """`res_2m:4`: a rule and its number of evaluations. SystemExit for anything else."""
    rule, _, nfe = text.partition(":")
    if rule not in (*ORDER, "full") or not nfe.isdigit():
        raise SystemExit(f"--cells {text!r}: give RULE:NFE, with one of full, {', '.join(ORDER)}")
    return rule, int(nfe)


def in_turn(asked: list[tuple[str, int]], first: tuple[int, ...]) -> list[tuple[str, int]]:
    return sorted(asked, key=lambda cell: (cell[1] not in first, ORDER_OF[cell[0]]))


ORDER_OF = {name: i for i, name in enumerate(("full", *ORDER))}


def table(rows: list[dict]) -> str:
    full = {row["nfe"]: row["l1"]["mean"] for row in rows if row["rule"] == "full"}
    lines = [
        "| rule | NFE | best usual grid | on it | fitted | closer by | full solver | kept |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        if row["rule"] == "full":
            continue
        usual, fitted = row["usual"][row["best_usual"]]["mean"], row["l1"]["mean"]
        goal = full.get(row["nfe"])
        share = "" if goal is None else f"{(usual - fitted) / (usual - goal):.0%}"
        closer = "{mean:.4f} ± {error:.4f}".format(**row["closer"])
        goal = "" if goal is None else f"{goal:.4f}"
        title = RULES[row["rule"]].title
        lines.append(
            f"| {title} | {row['nfe']} | {row['best_usual']} | {usual:.4f} | {fitted:.4f} | "
            f"{closer} | {goal} | {share} |"
        )
    return "\n".join(lines)


def run(options: argparse.Namespace) -> dict:
    teacher = load_teacher("digits" if options.quick else options.teacher, "cpu")
    file, begun = options.output, time.monotonic()
    facts = dict(teacher=teacher.name, train=options.pairs, held_out=options.pairs, fresh=options.n)
    done = json.loads(file.read_text()) if file.exists() else dict(facts, rows=[])
    if {name: done[name] for name in facts} != facts:
        raise SystemExit(f"{file} was measured otherwise ({done}): name another --output")
    have = {(row["rule"], row["nfe"]) for row in done["rows"]}
    nfes, rules = ((4,), ("dpmpp_2m", "euler")) if options.quick else (NFES, ORDER)
    asked = [named_cell(text) for text in options.cells] or in_turn(cells(nfes, rules), (4, 8))
    left = [cell for cell in asked if cell not in have]
    labels = "random" if teacher.n_classes else None
    if not left:
        return done

    def made(seeds: range) -> Pairs:
        return finish(kept_pairs(options.work, teacher, seeds, labels))

    pairs = made(train_seeds(2 * options.pairs)).split(options.pairs)
    fresh = made(eval_seeds(options.n))
    for rule, nfe in left:
        if time.monotonic() - begun > 60 * options.minutes:
            print("time is up; the rest is left to the next run")
            break
        clock = time.process_time()
        if rule == "full":
            row = full_cell(teacher, nfe, pairs, fresh)
        else:
            row = rule_cell(teacher, rule, nfe, pairs, fresh, options.all_grids)
        row["cpu_seconds"] = time.process_time() - clock
        done["rows"].append(row)
        write_text_atomic(file, json.dumps(done, indent=1) + "\n")
        print(rule, nfe, row["l1"], row.get("closer"), f"{row['cpu_seconds']:.0f} s", flush=True)
    return done


def main(arguments: list[str] | None = None) -> dict:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--teacher", default="fmnist")
    parser.add_argument("--quick", action="store_true", help="a few cells on digits")
    parser.add_argument("--pairs", type=int, default=16, help="to fit on, and as many to choose by")
    parser.add_argument("--n", type=int, default=200, help="fresh noises that all are judged on")
    parser.add_argument("--minutes", type=float, default=1e9, help="no new cell after so many")
    parser.add_argument("--all-grids", action="store_true", help="every usual grid on fresh noise")
    only = "only these, as res_2m:4"
    parser.add_argument("--cells", nargs="*", default=[], metavar="RULE:NFE", help=only)
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--work", type=Path, default=Path("runs"), help="where pairs are kept")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    done = run(options)
    print(table(done["rows"]))
    return done


if __name__ == "__main__":
    main()
