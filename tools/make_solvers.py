"""Distil the solvers that ship with the package. Run by `make solvers`.

Writes gas_nb/solvers/<teacher>-gs-<nfe>.json for each number of evaluations, and gas_nb/solvers/<teacher>/, one diffusers
scheduler with all of them. `--bundle-only` distils nothing and writes that folder from the files that are there.
"""

import argparse
import json
from pathlib import Path

from gas_nb.distil import training_free
from gas_nb.evaluation import measure
from gas_nb.interop import GASScheduler
from gas_nb.tableau import Tableau
from gas_nb.teacher import load_teacher
from gas_nb.training import make_eval_pairs, make_training_pairs, preset_config, train

ROOT = Path(__file__).resolve().parent.parent


def bundle(out: Path, teacher: str) -> GASScheduler:
    """Write `out`/`teacher`/, one scheduler of every solver file for `teacher` in `out`; returns it."""
    files = sorted(out.glob(f"{teacher}-gs-*.json"), key=lambda p: int(p.stem.rpartition("-")[2]))
    scheduler = GASScheduler.from_files(files, license="apache-2.0")
    scheduler.save_pretrained(out / teacher)
    return scheduler


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", default="fmnist")
    parser.add_argument("--nfe", type=int, nargs="+", default=[4, 5, 6, 8, 10])
    parser.add_argument("--preset", default="auto")
    parser.add_argument("--fit-steps", type=int, help="Gauss-Newton steps (default: the preset's)")
    parser.add_argument("--fit-starts", type=int, help="starts of the fit (default: the preset's)")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs", help="where the pairs are kept (default: runs)")
    parser.add_argument("--out", type=Path, default=ROOT / "gas_nb" / "solvers")
    parser.add_argument("--bundle-only", action="store_true", help="write the scheduler from the solvers that are there")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    if args.bundle_only:
        print(f"{args.out / args.teacher}: solvers for {bundle(args.out, args.teacher).nfes} evaluations")
        return
    teacher = load_teacher(args.teacher)
    for nfe in args.nfe:
        config = preset_config(args.preset, teacher=args.teacher, nfe=nfe, adversarial_weight=0.0, fit_steps=args.fit_steps, fit_starts=args.fit_starts)
        pairs = make_training_pairs(config, teacher, args.runs / "shipped")
        judged = make_eval_pairs(config, teacher, args.runs / "shipped")
        for record in train(config, teacher, pairs=pairs):
            print(f"nfe {nfe}, {record.phase} {record.step}/{record.steps}: held-out {record.val_loss:.4f}", flush=True)
        gs, _ = measure(teacher, record.tableau, judged, teacher.reference())
        tables = training_free(teacher, nfe, pairs[1][:50]).values()
        rows = [measure(teacher, table, judged, teacher.reference())[0] for table in tables]
        classic = min(rows, key=lambda row: row["l1"])
        print(json.dumps(dict(gs=gs, classic=classic)), flush=True)
        t = record.tableau
        figures = dict(l1=gs["l1"], l2=gs["l2"], frechet=gs["frechet"], n_eval=len(judged), seconds=record.seconds,
                       best_training_free={k: classic[k] for k in ("solver", "spacing", "l1", "frechet")})  # fmt: skip
        meta = dict(t.meta, weights=teacher.weights_hash, condition=config.condition, figures=figures)
        Tableau(t.times, t.offsets, t.A, t.C, meta).save(args.out / f"{args.teacher}-gs-{nfe}.json")
    bundle(args.out, args.teacher)


if __name__ == "__main__":
    main()
