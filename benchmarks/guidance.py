"""What one solver for every guidance loses against a fit at each.

    python benchmarks/guidance.py [--teacher fmnist] [--nfes 4 8] [--fitted 1 2 4 8]
        [--between 1.5 3 6] [--budget 400] [--seeds 0 1] [--judged 200] [--out runs/guidance]
        [--report]

A family is fitted at the values of `--fitted`, and a solver of its own at each value of both lists,
with the same budget for each (`--budget` evaluations for each of a solver's own). All are judged,
by mean L1 on the same evaluation noises, against the teacher's samples at the value. `unmoved` is
the solver that was fitted at the first value, `free` the best training-free solver of the fit at
the value.

Every seed is a JSON file; those that are there are not run again.
"""

import argparse
import json
import sys
from pathlib import Path

import torch

from gas_nb.classic import classic_tableau
from gas_nb.data import eval_seeds, generate_pairs
from gas_nb.front import distil_solver
from gas_nb.metrics.distances import l1
from gas_nb.metrics.samples import sample_pairs
from gas_nb.runtime.files import write_json_atomic
from gas_nb.teacher import load_teacher


def free_of(teacher, nfe: int, name: str):
    """The training-free solver that a row of figures names: unipc of order 2 on time_uniform."""
    solver, _, _, order, _, grid = name.split()
    facts = dict(spacing=grid, order=int(order), t_eps=teacher.t_eps)
    return classic_tableau(solver, teacher.schedule, nfe, **facts)


def compared(teacher, nfe: int, value: float, found: dict, place: Path, judged: int) -> dict:
    """L1 of each solver in `found` at a guidance, and standard errors of their differences to the
    one that was fitted there."""
    pairs = generate_pairs(teacher, eval_seeds(judged), place, "random").tensors()
    off = {}
    for name, table in found.items():
        off[name] = l1(sample_pairs(teacher, table, pairs, teacher.batch_size), pairs.x_0)
    row = dict(nfe=nfe, guidance=value)
    for name, one in off.items():
        apart = one - off["own"]
        row[name] = one.mean().item()
        row[f"{name}_error"] = (apart if name != "own" else one).std().item() / judged**0.5
    return row


def run_seed(key: dict, folder: Path, a: argparse.Namespace) -> None:
    name = "{teacher}-nfe{nfe}-{seed}".format(**key)
    file = folder / f"{name}.json"
    if file.exists():
        return
    base, nfe, seed = load_teacher(key["teacher"], "cpu"), key["nfe"], key["seed"]
    budget, rows = a.budget * nfe, []
    facts = dict(nfe=nfe, seed=seed, progress=None)
    family = distil_solver(base, budget=budget * len(a.fitted), guidance=a.fitted, **facts)
    table = family.tableaus[nfe]
    for value in sorted({*a.fitted, *a.between}):
        teacher = base.with_guidance(value)
        own = distil_solver(teacher, budget=budget, **facts)
        free = free_of(teacher, nfe, own.figures[0]["training_free"])
        unmoved = table.at(a.fitted[0])
        found = dict(own=own.tableaus[nfe], family=table.at(value), unmoved=unmoved, free=free)
        place = folder / "judge" / f"{key['teacher']}-{value:g}"
        rows.append(compared(teacher, nfe, value, found, place, a.judged))
        print(name, {n: round(v, 4) for n, v in rows[-1].items()}, flush=True)
    said = dict(key, fitted=a.fitted, budget=budget, judged=a.judged)
    write_json_atomic(file, said | dict(evaluations=family.card["evaluations"], rows=rows))


def report(folder: Path) -> None:
    """A line for each solver and guidance: the mean over the seeds."""
    cells = [json.loads(p.read_text()) for p in sorted(folder.glob("*-nfe*.json"))]
    write_json_atomic(folder / "results.json", dict(cells=cells))
    print("| teacher, NFE | guidance | own fit | family | fitted at the first | training-free |")
    print("|" + " --- |" * 6)
    for teacher, nfe in sorted({(c["teacher"], c["nfe"]) for c in cells}):
        mine = [c for c in cells if (c["teacher"], c["nfe"]) == (teacher, nfe)]
        for rows in zip(*[c["rows"] for c in mine]):
            value, fitted = rows[0]["guidance"], rows[0]["guidance"] in mine[0]["fitted"]
            names = ("own", "family", "unmoved", "free")
            means = [f"{sum(r[name] for r in rows) / len(rows):.4f}" for name in names]
            mark = "" if fitted else " (between)"
            print(f"| {teacher} {nfe} | {value:g}{mark} | {' | '.join(means)} |")


def arguments(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--teacher", nargs="+", default=["fmnist"])
    parser.add_argument("--nfes", nargs="+", type=int, default=[4, 8])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--fitted", nargs="+", type=float, default=[1.0, 2.0, 4.0, 8.0])
    parser.add_argument("--between", nargs="+", type=float, default=[1.5, 3.0, 6.0])
    parser.add_argument("--budget", type=int, default=400)
    parser.add_argument("--judged", type=int, default=200, help="evaluation samples")
    parser.add_argument("--out", type=Path, default=Path("runs/guidance"))
    parser.add_argument("--report", action="store_true", help="only the table")
    return parser.parse_args(argv)


def main(argv=None) -> None:
    a = arguments(argv)
    torch.set_num_threads(1)
    a.out.mkdir(parents=True, exist_ok=True)
    for teacher in a.teacher if not a.report else []:
        for nfe in a.nfes:
            for seed in a.seeds:
                run_seed(dict(teacher=teacher, nfe=nfe, seed=seed), a.out, a)
    report(a.out)


if __name__ == "__main__":
    sys.exit(main())
