"""Distil the solvers that ship with the package. Run by `make solvers`.

Writes gas_nb/solvers/<teacher>-gs-<nfe>.json for each number of evaluations, and
gas_nb/solvers/<teacher>/, one diffusers scheduler with all of them. `--from-sweep` distils nothing
and takes the GS solvers, and their figures, of the finished `make sweep` in `--runs`.
`--bundle-only` writes only the scheduler, from the files that are there.
"""

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path

from gas_nb.drive import Finished, Saved, console, drive
from gas_nb.interop import GASScheduler
from gas_nb.registry import variants
from gas_nb.sweep import load_sweep, trained
from gas_nb.tableau import Tableau
from gas_nb.teacher import Teacher, load_teacher
from gas_nb.training import TrainConfig, preset_config

ROOT = Path(__file__).resolve().parent.parent


def bundle(out: Path, teacher: str) -> GASScheduler:
    """Write `out`/`teacher`/, one scheduler of every solver
    file for `teacher` in `out`; returns it."""
    files = sorted(out.glob(f"{teacher}-gs-*.json"), key=lambda p: int(p.stem.rpartition("-")[2]))
    scheduler = GASScheduler.from_files(files, license="apache-2.0")
    scheduler.save_pretrained(out / teacher, portable=False)
    return scheduler


def keep(out: Path, teacher: Teacher, tableau: Tableau, condition: str, figures: dict) -> None:
    """Write a solver with what was measured of it."""
    meta = dict(tableau.meta, weights=teacher.weights_hash, condition=condition, figures=figures)
    replace(tableau, meta=meta).save(out / f"{teacher.name}-{tableau.name}-{tableau.nfe}.json")


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
        solver = variants(featured=False)[classic["solver"]][0].name
        figures = {name: gs[name] for name in ("l1", "l2", "frechet")}
        figures |= dict(n_eval=gs["n"], repeats=gs["repeats"])
        best = {name: classic[name] for name in ("spacing", "l1", "frechet")}
        figures["best_training_free"] = dict(solver=solver, **best)
        keep(out, sweep.teacher, trained(sweep, "gs", n), sweep.config.condition, figures)
        print(f"NFE {n}: L1 {gs['l1']:.4f}, {classic['solver']} {classic['l1']:.4f}")


def from_judged(folder: Path, results: Path, name: str, nfes: list[int], out: Path) -> None:
    """Keep the solvers in `folder` that benchmarks/gas.py has judged, GS and GAS, with its figures.

    ValueError if one of `nfes` is not among them."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    from gas import digest_of

    rows = {row["tableau"]: row for row in json.loads(results.read_text())["rows"]}
    tables = [Tableau.load(path) for path in sorted(folder.glob(f"{name}-*.json"))]
    judged = [table for table in tables if digest_of(table) in rows]
    if lacking := set(nfes) - {table.nfe for table in judged}:
        raise ValueError(
            f"{results} judges no solver in {folder} for {sorted(lacking)} evaluations"
        )
    teacher = load_teacher(name, "cpu")
    for table in judged:
        row = rows[digest_of(table)]
        figures = dict(l1=row["l1"], frechet=row["frechet"], n_eval=row["n"], repeats=1)
        if table.nfe in nfes:
            keep(out, teacher, table, "random", figures)
            print(
                f"{table.name}, NFE {table.nfe}: L1 {row['l1']:.4f}, Frechet {row['frechet']:.3f}"
            )


def distil(runs: Path, teacher: Teacher, config: TrainConfig, out: Path) -> None:
    """Drive a run in `runs` to its end, and keep its GS."""
    for event in console(drive(config, output_dir=runs, teacher=teacher)):
        if isinstance(event, Saved):
            saved = event
        if isinstance(event, Finished):
            metrics = event.metrics
    rows = {row["solver"]: row for row in metrics["rows"]}
    gs, rivals = rows["gs"], [row for name, row in rows.items() if name not in ("gs", "teacher")]
    classic = min(rivals, key=lambda row: row["l1"])
    figures = dict(
        l1=gs["l1"],
        l2=gs["l2"],
        frechet=gs["frechet"],
        n_eval=metrics["n_eval"],
        seconds=saved.seconds,
        best_training_free={k: classic[k] for k in ("solver", "spacing", "l1", "frechet")},
    )
    keep(out, teacher, saved.tables["gs"], config.condition, figures)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--teacher", default="fmnist")
    parser.add_argument("--nfe", type=int, nargs="+", default=[4, 5, 6, 8, 10])
    parser.add_argument("--preset", default="auto")
    parser.add_argument("--fit-steps", type=int, help="Gauss-Newton steps (default: the preset's)")
    runs = "where the runs and their pairs are kept (default: runs)"
    parser.add_argument("--runs", type=Path, default=ROOT / "runs", help=runs)
    parser.add_argument("--out", type=Path, default=ROOT / "gas_nb" / "solvers")
    finished = "take the solvers of the finished sweep in --runs"
    parser.add_argument("--from-sweep", action="store_true", help=finished)
    judged = "take the solvers in this folder that benchmarks/gas.py has judged, GAS as well"
    parser.add_argument("--judged", type=Path, metavar="FOLDER", help=judged)
    parser.add_argument(
        "--results", type=Path, default=ROOT / "benchmarks" / "results" / "gas.json"
    )
    only = "write the scheduler from the solvers that are there"
    parser.add_argument("--bundle-only", action="store_true", help=only)
    return parser.parse_args()


def main() -> None:
    args = arguments()
    args.out.mkdir(parents=True, exist_ok=True)
    if args.from_sweep:
        from_sweep(args.runs, args.teacher, args.nfe, args.out)
    elif args.judged:
        from_judged(args.judged, args.results, args.teacher, args.nfe, args.out)
    elif not args.bundle_only:
        teacher = load_teacher(args.teacher)
        for nfe in args.nfe:
            settings = dict(teacher=args.teacher, nfe=nfe, fit_steps=args.fit_steps)
            config = preset_config(args.preset, adversarial_weight=0.0, **settings)
            distil(args.runs, teacher, config, args.out)
    scheduler = bundle(args.out, args.teacher)
    print(f"{args.out / args.teacher}: solvers for {scheduler.nfes} evaluations")


if __name__ == "__main__":
    main()
