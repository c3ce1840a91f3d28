#!/usr/bin/env python3
"""Put the results of finished sweeps into nbs/results/ and onto the front page.

`python tools/publish_results.py runs` takes every sweep in runs/ (see nbs/04_evaluate.ipynb), or
those named with `--teacher`; those of embedded teachers go into the package, too, for the app's
trade-off tab. A short table goes into nbs/index.ipynb between the comments `<!--
results: TEACHER -->` and `<!-- end -->`, if there are such; README.md is made from that notebook.
Then nbs/results.ipynb, which has every table in full, is run and keeps its outputs, so that it can
be read where nothing runs. Only what a sweep has measured is written. Run by `make results`.
`--scale runs/scale/results.json` publishes what benchmarks/scale.py has measured on a GPU.
"""

import argparse
import json
import re
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient

from gas_nb.runtime.files import write_json_atomic, write_text_atomic
from gas_nb.sweep import row_title, training_free_rows
from gas_nb.sweeps.tables import is_told, rows_of_means
from gas_nb.teachers import TEACHERS
from gas_nb.metrics import find_metric

ROOT = Path(__file__).resolve().parent.parent
LOCAL = ("weights", "inception", "device")  # where things lay on the machine of the run


def compact(results: dict) -> dict:
    """What of a sweep's results.json is kept: means, settings
    and provenance, without the paths of one machine."""
    config = {k: v for k, v in results["config"].items() if k not in LOCAL}
    for name in ("teacher", "reference"):
        config[name] = Path(config[name]).name
    keep = ("metrics", "features", "reference", "provenance", "failed", "summary")
    kept = {k: results[k] for k in keep} | dict(
        config=config, weights_hash=results["teacher"].get("weights")
    )
    if kept["reference"]:
        kept["reference"] = re.sub(r"\S*/(\S+)", r"\1", kept["reference"])
    return kept


def shipped(results: dict) -> dict:
    """What of published results the package has for the app: means, in the form of a run's."""
    config, made = results["config"], results["provenance"]
    return dict(
        teacher=config["teacher"],
        n=config["n_samples"],
        repeats=config["repeats"],
        date=made["date"][:10],
        rows=rows_of_means(results["summary"]),
    )


def entry(row: dict | None) -> str:
    """The L1 of a row of a sweep's summary, with its spread; bold if a learned solver is
    better than its rival by more than two standard errors of the difference."""
    if row is None or row.get("l1") is None:
        return "-"
    spread = row.get("l1_std")
    said = f"{row['l1']:.4f}" + ("" if spread is None else f" ± {spread:.4f}")
    is_learned = row["solver"] not in training_free_rows()
    return f"**{said}**" if is_learned and is_told(row, find_metric("l1")) else said


def front_table(results: dict) -> str:
    """L1 to the teacher by NFE: the best training-free solver
    of each column, GS and GAS; dated, with sample sizes."""
    rows = [
        row
        for row in results["summary"]
        if row["solver"] != "teacher" and row.get("l1") is not None
    ]
    nfes = sorted({row["nfe"] for row in rows})
    free, best = [row for row in rows if row["solver"] in training_free_rows()], {}
    for row in sorted(free, key=lambda row: row["l1"], reverse=True):
        best[row["nfe"]] = row
    learned = {
        (row["solver"], row["nfe"]): row
        for row in rows
        if row["solver"] not in training_free_rows()
    }
    named = {
        name: best.get(nfe) and row_title(best[nfe]["solver"])
        for name, nfe in (("few", nfes[0]), ("many", nfes[-1]))
    }
    lines = [
        "| solver | " + " | ".join(f"NFE {n}" for n in nfes) + " |",
        "| --- " * (len(nfes) + 1) + "|",
        "| best training-free | " + " | ".join(entry(best.get(n)) for n in nfes) + " |",
    ]
    for solver in dict.fromkeys(solver for solver, _ in learned):
        lines.append(
            f"| {row_title(solver)} | "
            + " | ".join(entry(learned.get((solver, n))) for n in nfes)
            + " |"
        )
    config, made = results["config"], results["provenance"]
    sets = (
        f", mean ± standard deviation over {config['repeats']} sets of seeds"
        if config["repeats"] > 1
        else ""
    )
    best_of = (
        f" Best training-free: {named['few']} with {nfes[0]}, {named['many']} with {nfes[-1]}."
        if all(named.values())
        else ""
    )
    lines += [
        "",
        f"`{config['teacher']}`, {made['date'][:10]}: {config['n_samples']:,} "
        f"samples{sets}; {made['device_name']}.{best_of}",
    ]
    return "\n".join(lines)


def place(text: str, teacher: str, table: str) -> str:
    """`text` with the block of `teacher` replaced by `table`."""
    pattern = re.compile(rf"(<!-- results: {re.escape(teacher)} -->\n).*?(<!-- end -->)", re.S)
    return pattern.sub(lambda m: f"{m[1]}\n{table.strip()}\n\n{m[2]}", text)


def publish(folder: Path, root: Path) -> str:
    """Publish the sweep in `folder`; returns its teacher's name."""
    results = compact(json.loads((folder / "results.json").read_text(encoding="utf-8")))
    teacher = results["config"]["teacher"]
    write_json_atomic(root / "nbs" / "results" / f"{teacher}.json", results)
    if teacher in TEACHERS and TEACHERS[teacher].kind == "embedded":
        write_json_atomic(root / "gas_nb" / "results" / f"{teacher}.json", shipped(results))
    notebook = root / "nbs" / "index.ipynb"
    if notebook.exists():
        nb = nbformat.read(notebook, as_version=4)
        for cell in nb.cells:
            if cell.cell_type == "markdown":
                cell.source = place(cell.source, teacher, front_table(results))
        write_text_atomic(notebook, nbformat.writes(nb) + "\n")
    return teacher


def publish_scale(file: Path, root: Path) -> None:
    """Publish the results of benchmarks/scale.py; ValueError for those of a dry run."""
    found = json.loads(file.read_text(encoding="utf-8"))
    if found["dry"]:
        raise ValueError(f"{file} comes from a dry run: give the results of a run on a GPU")
    write_json_atomic(root / "nbs" / "results" / "scale.json", found)


def execute(notebook: Path) -> None:
    """Run a notebook in its folder and store its outputs."""
    nb = nbformat.read(notebook, as_version=4)
    NotebookClient(
        nb, timeout=600, record_timing=False, resources={"metadata": {"path": str(notebook.parent)}}
    ).execute()
    nb.metadata = {"kernelspec": nb.metadata["kernelspec"]}
    for cell in nb.cells:
        if cell.cell_type == "code":
            cell.execution_count = None
            for output in cell.outputs:
                if "execution_count" in output:
                    output.execution_count = None
    write_text_atomic(notebook, nbformat.writes(nb) + "\n")


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", type=Path, nargs="?", default=ROOT / "runs")
    parser.add_argument(
        "--teacher", nargs="+", help="only these (default: every sweep that is there)"
    )
    parser.add_argument(
        "--root", type=Path, default=ROOT, help="root of the project (default: this one)"
    )
    parser.add_argument("--scale", type=Path, help="results.json of benchmarks/scale.py")
    args = parser.parse_args(argv)
    if args.scale:
        publish_scale(args.scale, args.root)
        print(f"scale: {args.scale}")
    folders = [p.parent for p in sorted(args.runs.glob("sweep-*/results.json"))]
    folders = [
        f for f in folders if not args.teacher or f.name.removeprefix("sweep-") in args.teacher
    ]
    for folder in folders:
        print(f"{publish(folder, args.root)}: {folder}")
    if not folders and not args.scale:
        print(f"no finished sweep in {args.runs}: run `make sweep` first", file=sys.stderr)
    elif (notebook := args.root / "nbs" / "results.ipynb").exists():
        execute(notebook)
    return 0 if folders or args.scale else 1


if __name__ == "__main__":
    raise SystemExit(main())
