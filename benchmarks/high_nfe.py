"""Does learning still pay at NFE 4 to 20? GS against the best training-free solver.

    python benchmarks/high_nfe.py [--teacher digits] [--nfes 4 6 8 10 12 15 20] [--judged 1000]
        [--searched 256] [--fit-steps N] [--fit-pairs N] [--out runs/high_nfe]

For each NFE the fit runs with its default settings (or --fit-steps, --fit-pairs and
--pairs), every training-free solver gets the order and spacing that suit the teacher
best on --searched held-out pairs, and all are judged on the same evaluation noises,
which none has seen: L1 to the teacher and the Frechet distance to its reference. With
as many evaluations as the teacher has, one training-free solver is the teacher. An NFE
is one JSON file; finished ones are not done again, whatever the settings: take another
--out for others. results.json and the table are made from all that were asked for.
"""

import argparse
import json
import platform
import sys
import time
from pathlib import Path

import torch

from gas_nb.data import eval_seeds, make_pairs
from gas_nb.distil import training_free
from gas_nb.evaluation import measure
from gas_nb.runtime.files import write_json_atomic
from gas_nb.teacher import load_teacher
from gas_nb.training import TrainConfig, train


def compare(teacher, config: TrainConfig, searched: int, judged: int) -> dict:
    """Rows of `measure` for GS and every training-free solver,
    best L1 first among these, and the CPU seconds of the fit."""
    training, held_out = make_pairs(teacher, range(config.n_pairs + config.n_val)).split(
        config.n_val
    )
    start, tableau = time.process_time(), None
    for record in train(config, teacher, pairs=(training, held_out)):
        tableau = record.tableau
    seconds = time.process_time() - start
    judges, reference = make_pairs(teacher, eval_seeds(judged)), teacher.reference()
    rows = [
        measure(teacher, tab, judges, reference)[0]
        for tab in training_free(teacher, config.nfe, held_out[:searched]).values()
    ]
    return dict(
        gs=measure(teacher, tableau, judges, reference)[0],
        training_free=sorted(rows, key=lambda r: r["l1"]),
        teacher=measure(teacher, teacher.tableau, judges, reference)[0],
        fit_cpu=seconds,
        steps=record.step,
    )


def table(results: dict[int, dict]) -> str:
    lines = [
        "| NFE | GS: L1 | Frechet | best training-free by L1: L1 | Frechet | lowest Frechet "
        "of them | teacher's Frechet | fit, CPU s |",
        "|" + " --- |" * 8,
    ]
    for nfe, r in sorted(results.items()):
        gs, best = r["gs"], r["training_free"][0]
        lowest = min(r["training_free"], key=lambda row: row["frechet"])
        lines.append(
            f"| {nfe} | {gs['l1']:.5f} | {gs['frechet']:.4f} | {best['solver']}, "
            f"{best['spacing']}: {best['l1']:.5f} | {best['frechet']:.4f} | "
            f"{lowest['solver']}: {lowest['frechet']:.4f} | "
            f"{r['teacher']['frechet']:.4f} | {r['fit_cpu']:.0f} |"
        )
    return "\n".join(lines)


def main(argv=None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--teacher", default="digits", help="as load_teacher names it")
    parser.add_argument("--nfes", nargs="+", type=int, default=[4, 6, 8, 10, 12, 15, 20])
    parser.add_argument("--judged", type=int, default=1000, help="evaluation noises")
    parser.add_argument(
        "--searched",
        type=int,
        default=256,
        help="held-out pairs on which order and spacing are chosen",
    )
    parser.add_argument(
        "--fit-steps", type=int, help="Gauss-Newton steps at most (default: TrainConfig's)"
    )
    parser.add_argument(
        "--fit-pairs",
        type=int,
        help="pairs of the first Gauss-Newton steps (default: TrainConfig's)",
    )
    parser.add_argument("--pairs", type=int, help="training pairs (default: TrainConfig's)")
    parser.add_argument("--out", type=Path, default=Path("runs/high_nfe"))
    a = parser.parse_args(argv)
    torch.set_num_threads(1)
    settings = {
        k: v
        for k, v in dict(fit_steps=a.fit_steps, fit_pairs=a.fit_pairs, n_pairs=a.pairs).items()
        if v is not None
    }
    results = {}
    for nfe in a.nfes:
        path = a.out / f"{a.teacher}-{nfe}.json"
        if not path.exists():
            teacher = load_teacher(a.teacher, "cpu")
            config = TrainConfig(
                teacher=a.teacher,
                device="cpu",
                nfe=nfe,
                adversarial_weight=0.0,
                condition="none" if a.teacher == "digits" else "random",
                **settings,
            )
            a.out.mkdir(parents=True, exist_ok=True)
            write_json_atomic(path, compare(teacher, config, a.searched, a.judged))
        results[nfe] = json.loads(path.read_text())
        print(
            f"NFE {nfe}: GS {results[nfe]['gs']['l1']:.5f}, best training-free "
            f"{results[nfe]['training_free'][0]['l1']:.5f}",
            flush=True,
        )
    made = dict(
        teacher=a.teacher,
        judged=a.judged,
        settings=settings,
        machine=f"{platform.machine()}, one thread, torch {torch.__version__}",
    )
    write_json_atomic(a.out / "results.json", made | dict(results=results))
    print(table(results))


if __name__ == "__main__":
    sys.exit(main())
