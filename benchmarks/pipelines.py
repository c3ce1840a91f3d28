"""Every pipeline class of the installed diffusers that can be built small: is it read, can a solver
be distilled from it, and does the solver, put back, end where `sample` ends?

    python benchmarks/pipelines.py                        # all of them, about half an hour
    python benchmarks/pipelines.py WanPipeline --nfe 4    # some
    python benchmarks/pipelines.py --table                # the table of what is there

The pipelines are the tiny ones of tests/tiny, random weights of a fixed seed, float32, on the CPU.
Results go to benchmarks/results/pipelines.json, one class after the other; a class that is there
already is not run again.
"""

import argparse
import json
import signal
import sys
import time
import warnings
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import gas_nb.runtime.device  # noqa: E402, F401  (before diffusers)

import torch  # noqa: E402
from dropin_runs import call_of, drop_in_error, end_of  # noqa: E402
from tiny import TINY, build  # noqa: E402

from gas_nb.classic import unipc  # noqa: E402
from gas_nb.front import distil_solver  # noqa: E402
from gas_nb.interop import GASScheduler  # noqa: E402
from gas_nb.runtime.files import write_json_atomic  # noqa: E402
from gas_nb.schedule import spacing  # noqa: E402
from gas_nb.teachers.diffusers import PipelineTeacher  # noqa: E402
from gas_nb.teachers.reading import read_scheduler  # noqa: E402

LONGEST = 180  # seconds that one class may take


def too_long(*_):
    raise TimeoutError(f"took more than {LONGEST} s")


signal.signal(signal.SIGALRM, too_long)
RESULTS = ROOT / "benchmarks" / "results" / "pipelines.json"


def serve(pipe, name, nfe):
    """Whether a solver for this pipeline's scheduler runs in it, where it cannot be a teacher."""
    reading = read_scheduler(pipe.scheduler)
    tableau = unipc(reading.schedule, spacing(reading.schedule, nfe, "time_quadratic"), order=2)
    pipe.scheduler = GASScheduler.for_pipeline(pipe, tableau, reading.schedule, reading.prediction)
    return bool(torch.isfinite(end_of(pipe, TINY[name].call(), nfe)).all())


def measured(name, nfe):
    """The row of one class."""
    begun, tiny = time.perf_counter(), TINY[name]
    row = dict(name=name, family=tiny.family, begins=tiny.begins, built=False)
    pipe = build(name)
    scheduler = getattr(pipe, "scheduler", None)
    row |= dict(built=True, scheduler=type(scheduler).__name__)
    try:
        call = call_of(pipe)
        teacher = PipelineTeacher(pipe, calls=[call], batch_size=8)
        trial = teacher.trial
        row |= dict(shape=list(teacher.shape), prediction=teacher.denoiser.prediction)
        row |= dict(schedule=teacher.schedule.config["kind"], asked=trial.asked, steps=trial.steps)
        solver = distil_solver(teacher, nfe=nfe, budget=2000, progress=None)
        (figures,) = solver.figures
        row |= dict(l1=figures["l1"], training_free_l1=figures["training_free_l1"])
        row |= dict(evaluations=solver.card["evaluations"])
        row["drop_in"] = drop_in_error(pipe, teacher, solver, call, nfe)
    except ValueError as error:
        row["refused"] = str(error)
        try:
            row["serves"] = serve(pipe, name, nfe)
        except Exception as problem:  # what a pipeline does that no solver is meant for
            row["serves"] = f"{type(problem).__name__}: {problem}"[:200]
    except Exception as problem:
        row["failed"] = f"{type(problem).__name__}: {problem}"[:300]
    return row | dict(seconds=time.perf_counter() - begun)


def table(rows):
    """What is there, as Markdown."""
    lines = [
        "| class | read | L1, share of the best training-free | drop-in |",
        "|---|---|---|---|",
    ]
    for row in sorted(rows.values(), key=lambda row: (row["family"], row["name"])):
        said = row.get("refused") or row.get("failed")
        if said:
            serves = row.get("serves")
            served = "runs" if serves is True else "-"
            lines.append(f"| {row['name']} | {said[:90]} | - | {served} |")
            continue
        share = row["l1"] / row["training_free_l1"]
        lines.append(
            f"| {row['name']} | {row['prediction']}, {row['schedule']} | {share:.2f} | "
            f"{row['drop_in']:.0e} |"
        )
    return "\n".join(lines)


def summary(rows):
    """The counts that the table comes to."""
    done = [row for row in rows.values() if "drop_in" in row]
    equal = [row for row in done if row["drop_in"] <= 1e-5]
    families = {row["family"] for row in equal}
    shares = sorted(row["l1"] / row["training_free_l1"] for row in done)
    middle = shares[len(shares) // 2] if shares else float("nan")
    refused = [row for row in rows.values() if "refused" in row]
    failed = [row for row in rows.values() if "failed" in row]
    return (
        f"{len(rows)} classes built; {len(done)} read and distilled, the median share "
        f"{middle:.2f}; {len(equal)} classes of {len(families)} families end where sample ends, to "
        f"1e-5; {len(refused)} refused in words, {len(failed)} failed"
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="CLASS")
    parser.add_argument("--nfe", type=int, default=4)
    parser.add_argument("--table", action="store_true", help="print what is there, run nothing")
    given = parser.parse_args()
    rows = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    unknown = sorted(set(given.names) - set(TINY))
    if unknown:
        parser.error(f"{', '.join(unknown)}: there are {', '.join(TINY)}")
    for name in [] if given.table else given.names or TINY:
        if name in rows and not given.names:
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            signal.alarm(LONGEST)
            rows[name] = measured(name, given.nfe)
            signal.alarm(0)
        RESULTS.parent.mkdir(exist_ok=True)
        write_json_atomic(RESULTS, rows)
        print(json.dumps(rows[name])[:300], flush=True)
    if given.table:
        print(table(rows))
    print(summary(rows))


if __name__ == "__main__":
    main()
