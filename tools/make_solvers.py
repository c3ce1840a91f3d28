"""Distil the solvers that ship with the package. Run by `make solvers`.

Writes gas_nb/solvers/<teacher>-gs-<nfe>.json for each number of evaluations, and
gas_nb/solvers/<teacher>/, one diffusers scheduler with all of them. `--from-sweep` distils nothing
and takes the GS solvers, and their figures, of the finished `make sweep` in `--runs`.
`--bundle-only` writes only the scheduler, from the files that are there.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path

from gas_nb.distil import training_free
from gas_nb.evaluation import measure
from gas_nb.interop import GASScheduler
from gas_nb.sweep import CLASSIC, load_sweep
from gas_nb.tableau import Tableau
from gas_nb.teacher import Teacher, load_teacher
from gas_nb.training import make_eval_pairs, make_training_pairs, preset_config, train

ROOT = Path(__file__).resolve().parent.parent


def bundle(out: Path, teacher: str) -> GASScheduler:
    """Write `out`/`teacher`/, one scheduler of every solver
    file for `teacher` in `out`; returns it."""
    files = sorted(out.glob(f"{teacher}-gs-*.json"), key=lambda p: int(p.stem.rpartition("-")[2]))
    scheduler = GASScheduler.from_files(files, license="apache-2.0")
    scheduler.save_pretrained(out / teacher)
    return scheduler


def keep(out: Path, teacher: Teacher, tableau: Tableau, condition: str, figures: dict) -> None:
    """Write a solver with what was measured of it."""
    meta = dict(tableau.meta, weights=teacher.weights_hash, condition=condition, figures=figures)
    replace(tableau, meta=meta).save(out / f"{teacher.name}-gs-{tableau.nfe}.json")


def from_sweep(runs: Path, name: str, nfes: list[int], out: Path) -> None:
    """Keep the GS solvers of the finished sweep over `name`
    in `runs`; ValueError if it lacks one of `nfes`."""
    sweep = load_sweep(runs / f"sweep-{name}")
    summary = json.loads((sweep.folder / "results.json").read_text(encoding="utf-8"))["summary"]
    rows = {n: [r for r in summary if r["nfe"] == n] for n in nfes}
    if lacking := [n for n in nfes if not any(r["solver"] == "gs" for r in rows[n])]:
        raise ValueError(
            f"the sweep in {sweep.folder} has no GS for "
            f"{lacking} evaluations; it has {sweep.config.nfes}"
        )
    for n in nfes:
        gs = next(r for r in rows[n] if r["solver"] == "gs")
        classic = min(
            (r for r in rows[n] if r["choice"] in ("best", "default")), key=lambda r: r["l1"]
        )
        rival = dict(solver=CLASSIC[classic["solver"]][0])
        rival |= {name: classic[name] for name in ("spacing", "l1", "frechet")}
        figures = {name: gs[name] for name in ("l1", "l2", "frechet")}
        figures |= dict(n_eval=gs["n"], repeats=gs["repeats"], best_training_free=rival)
        keep(out, sweep.teacher, sweep.trained("gs", n), sweep.config.condition, figures)
        print(f"NFE {n}: L1 {gs['l1']:.4f}, {classic['solver']} {classic['l1']:.4f}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--teacher", default="fmnist")
    parser.add_argument("--nfe", type=int, nargs="+", default=[4, 5, 6, 8, 10])
    parser.add_argument("--preset", default="auto")
    parser.add_argument("--fit-steps", type=int, help="Gauss-Newton steps (default: the preset's)")
    parser.add_argument(
        "--runs", type=Path, default=ROOT / "runs", help="where the pairs are kept (default: runs)"
    )
    parser.add_argument("--out", type=Path, default=ROOT / "gas_nb" / "solvers")
    parser.add_argument(
        "--from-sweep", action="store_true", help="take the solvers of the finished sweep in --runs"
    )
    parser.add_argument(
        "--bundle-only",
        action="store_true",
        help="write the scheduler from the solvers that are there",
    )
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    if args.bundle_only:
        print(
            f"{args.out / args.teacher}: solvers for "
            f"{bundle(args.out, args.teacher).nfes} evaluations"
        )
        return
    if args.from_sweep:
        from_sweep(args.runs, args.teacher, args.nfe, args.out)
        print(
            f"{args.out / args.teacher}: solvers for "
            f"{bundle(args.out, args.teacher).nfes} evaluations"
        )
        return
    teacher = load_teacher(args.teacher)
    for nfe in args.nfe:
        config = preset_config(
            args.preset,
            teacher=args.teacher,
            nfe=nfe,
            adversarial_weight=0.0,
            fit_steps=args.fit_steps,
        )
        pairs = make_training_pairs(config, teacher, args.runs / "shipped")
        judged = make_eval_pairs(config, teacher, args.runs / "shipped")
        for record in train(config, teacher, pairs=pairs):
            print(
                f"nfe {nfe}, {record.phase} {record.step}/{record.steps}: "
                f"held-out {record.val_loss:.4f}",
                flush=True,
            )
        gs, _ = measure(teacher, record.tableau, judged, teacher.reference())
        tables = training_free(teacher, nfe, pairs[1][:32]).values()
        rows = [measure(teacher, table, judged, teacher.reference())[0] for table in tables]
        classic = min(rows, key=lambda row: row["l1"])
        print(json.dumps(dict(gs=gs, classic=classic)), flush=True)
        rival = {name: classic[name] for name in ("solver", "spacing", "l1", "frechet")}
        figures = {name: gs[name] for name in ("l1", "l2", "frechet")}
        figures |= dict(n_eval=len(judged), seconds=record.seconds, best_training_free=rival)
        keep(args.out, teacher, record.tableau, config.condition, figures)
    bundle(args.out, args.teacher)


if __name__ == "__main__":
    main()
