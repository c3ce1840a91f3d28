#!/usr/bin/env python3
"""How much of the Frechet gap between a solver and the teacher another one closes, with errors.

`python benchmarks/gas.py --solver gs='runs/gs-*.json' --solver gas='runs/gas-*.json'` measures the
solvers in the files (of any number of evaluations; several of one number are trainings with other
seeds) and training-free ones on the same fresh noises, and compares all with `--against gs`. Errors
are those of the paired noises (delete-a-block jackknife). Done cells are kept in
benchmarks/results/gas.json and not done again; `--minutes` ends the run after the cell in which
they pass. The teacher's samples may be read from a folder (`--pairs`). The table is printed."""

import argparse
import glob
import hashlib
import json
import math
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

import gas_nb.solver  # noqa: F401  (GS and GAS have their titles there)
from gas_nb.data import EVAL_SEED, MANIFEST, PairDataset, Pairs, concatenate, eval_seeds
from gas_nb.data import finish, train_seeds
from gas_nb.evaluation import Estimate, Judge, best_classic, combine, estimate_of
from gas_nb.evaluation import paired_difference, samples_needed
from gas_nb.registry import solver_title
from gas_nb.runs import kept_pairs
from gas_nb.runtime.files import write_text_atomic
from gas_nb.tableau import Tableau
from gas_nb.teacher import Teacher, load_teacher
from gas_nb.teachers.fmnist_classifier import reference_statistics

RESULTS = Path(__file__).parent / "results" / "gas.json"
FREE = "unipc dpm_solver_pp"
TEACHER = "teacher"
Key = tuple[str, int, str]  # name, evaluations, digest of the tableau ("best": searched for)


def digest_of(table: Tableau) -> str:
    numbers = json.loads(table.to_json()) | dict(meta=None, name=None)
    return hashlib.sha256(json.dumps(numbers, sort_keys=True).encode()).hexdigest()[:12]


def named_files(given: str) -> tuple[str, list[Path]]:
    """`gs=a.json,runs/*.json`: a name and its files. SystemExit where there are none."""
    name, _, patterns = given.partition("=")
    found = [Path(p) for pattern in patterns.split(",") for p in sorted(glob.glob(pattern))]
    if not name or not found:
        raise SystemExit(f"--solver {given!r}: give NAME=FILE, with several files NAME=A,B or a *")
    return name, found


def learned_cells(solvers: list[str]) -> dict[Key, Tableau]:
    cells = {}
    for given in solvers:
        name, files = named_files(given)
        for path in files:
            table = Tableau.load(path)
            cells[name, table.nfe, digest_of(table)] = table
    return cells


def shards_without_manifest(folder: Path) -> Pairs:
    """Shards of columns x_T, x_0 and, maybe, condition and seeds, in the order of their names."""
    parts = []
    first = EVAL_SEED
    for path in sorted(folder.glob("*.safetensors")):
        columns = load_file(path)
        n = len(columns["x_T"])
        seeds = columns.get("seeds", torch.arange(first, first + n))
        x_T, x_0 = (columns[name].float() for name in ("x_T", "x_0"))
        parts.append(Pairs(seeds, x_T, x_0, columns.get("condition")))
        first += n
    if not parts:
        raise SystemExit(f"--pairs {folder}: no shards (*.safetensors) there")
    return concatenate(parts)


def fresh_pairs(teacher: Teacher, options: argparse.Namespace) -> Pairs:
    labels = "random" if teacher.n_classes else None
    if options.pairs is None:
        return finish(kept_pairs(options.work, teacher, eval_seeds(options.n), labels))
    folder = options.pairs
    if (folder / MANIFEST).is_file():
        pairs = PairDataset(folder).tensors()
    else:
        pairs = shards_without_manifest(folder)
    if len(pairs) < options.n or tuple(pairs.x_0.shape[1:]) != teacher.shape:
        raise SystemExit(f"--pairs {folder}: {pairs}, need {options.n} of shape {teacher.shape}")
    if teacher.n_classes and pairs.condition is None:
        raise SystemExit(f"--pairs {folder}: {teacher.name} has classes and the pairs have none")
    return pairs[: options.n]


def digest_of_pairs(pairs: Pairs) -> str:
    found = hashlib.sha256(pairs.x_T.numpy().tobytes())
    found.update(pairs.x_0.numpy().tobytes())
    return found.hexdigest()[:12]


def judge_for(teacher: Teacher, reference: str, blocks: int) -> Judge:
    given = None if reference == "own" else reference_statistics(reference)[:2]
    return Judge(teacher, "l1 frechet", reference=given, blocks=blocks)


def measured(judge: Judge, table: Tableau | None, pairs: Pairs) -> dict[str, Any]:
    """The row of a solver; of the teacher's own samples for None."""
    started = time.perf_counter()
    if table is None:
        row = judge.compare(pairs.x_0, pairs.x_0, pairs.condition) | dict(n=len(pairs))
    else:
        row = judge(table, pairs)[0]
    kept = {name: row[name] for name in ("n", "l1", "frechet", "left_out")}
    return kept | dict(seconds=time.perf_counter() - started)


# --- the table


def mean(estimates: Iterable[Estimate]) -> Estimate:
    return combine(lambda *values: math.fsum(values) / len(values), *estimates)


def spread(estimates: list[Estimate]) -> float:
    """Standard deviation over trainings; 0 for one."""
    if len(estimates) < 2:
        return 0.0
    return torch.tensor([e.value for e in estimates], dtype=torch.float64).std().item()


def grouped(rows: list[dict]) -> dict[tuple[int, str], list[dict]]:
    groups: dict[tuple[int, str], list[dict]] = {}
    for row in sorted(rows, key=lambda row: row["nfe"]):
        if row["name"] != TEACHER:
            groups.setdefault((row["nfe"], row["name"]), []).append(row)
    return groups


def text(estimate: Estimate, digits: int) -> str:
    return f"{estimate.value:.{digits}f} ± {estimate.error:.{digits}f}"


def share_text(share: Estimate, gap: Estimate, shares: list[float]) -> str:
    """In brackets those of the single trainings."""
    if not gap.tells():
        return "gap within its error"
    each = ", ".join(f"{one:.0%}" for one in shares)
    return f"{share.value:.0%} ± {share.error:.0%}" + (f" ({each})" if len(shares) > 1 else "")


def compared(rows: list[dict], rival: list[dict], teacher: dict) -> dict[str, Any]:
    """Figures of a solver's trainings beside those of the one it is compared with."""
    l1, frechet = ([estimate_of(row, name) for row in rows] for name in ("l1", "frechet"))
    rival_l1, rival_frechet = (
        mean(estimate_of(row, name) for row in rival) for name in ("l1", "frechet")
    )
    own = estimate_of(teacher, "frechet")
    ours = mean(frechet)
    return dict(
        l1=mean(l1),
        frechet=ours,
        spread=spread(frechet),
        l1_ratio=combine(lambda a, b: a / b, mean(l1), rival_l1),
        difference=paired_difference(ours, rival_frechet),
        gap=paired_difference(rival_frechet, own),
        share=share_closed(rival_frechet, ours, own),
        shares=[share_closed(rival_frechet, one, own).value for one in frechet],
    )


def share_closed(rival: Estimate, ours: Estimate, teacher: Estimate) -> Estimate:
    return combine(lambda a, x, t: (a - x) / (a - t), rival, ours, teacher)


def line(nfe: int, name: str, rows: list[dict], found: dict[str, Any] | None) -> str:
    title = solver_title(name)
    trainings = len(rows) if rows[0]["tableau"] != "best" else ""
    if found is None:
        l1, frechet = (estimate_of(rows[0], figure) for figure in ("l1", "frechet"))
        return f"| {nfe} | {title} | {trainings} | {text(l1, 4)} | | {text(frechet, 3)} | | | |"
    difference = found["difference"]
    told = text(difference, 3)
    if difference.tells():
        told = f"**{told}**" if difference.value < 0 else told
    elif difference.value:
        n = samples_needed(difference.n, difference.error, difference.value)
        told += f" (told by {n:,})"
    over = f"{found['spread']:.3f}" if len(rows) > 1 else ""
    ratio = f"{found['l1_ratio'].value - 1:+.1%}"
    share = share_text(found["share"], found["gap"], found["shares"])
    return (
        f"| {nfe} | {title} | {trainings} | {text(found['l1'], 4)} | {ratio} | "
        f"{text(found['frechet'], 3)} | {over} | {told} | {share} |"
    )


def itself(nfe: int, name: str, rows: list[dict]) -> str:
    """The line of the solver that the others are compared with."""
    l1, frechet = ([estimate_of(row, figure) for row in rows] for figure in ("l1", "frechet"))
    over = f"{spread(frechet):.3f}" if len(rows) > 1 else ""
    figures = f"{text(mean(l1), 4)} | | {text(mean(frechet), 3)} | {over} | | |"
    return f"| {nfe} | {solver_title(name)} | {len(rows)} | {figures}"


def table(done: dict, against: str) -> str:
    groups = grouped(done["rows"])
    teacher = next(row for row in done["rows"] if row["name"] == TEACHER)
    own = estimate_of(teacher, "frechet")
    rival = solver_title(against)
    lines = [
        f"`{done['teacher']}`, {done['n']:,} fresh noises, Frechet distance ({done['features']}, "
        f"reference {done['reference']}); the teacher ({teacher['nfe']} evaluations): "
        f"{text(own, 3)}. ±: one standard error over the noises (jackknife, {done['blocks']} "
        "blocks), of a difference over the paired noises; bold: closer by more than two. "
        "In brackets: how many samples tell a difference of this size at two standard errors.",
        "",
        f"| NFE | solver | trainings | L1 | to {rival} | Frechet | sd over trainings | "
        f"Frechet - {rival} | share of the gap closed |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for (nfe, name), rows in groups.items():
        rivals = groups.get((nfe, against))
        if name == against:
            lines.append(itself(nfe, name, rows))
        else:
            lines.append(line(nfe, name, rows, rivals and compared(rows, rivals, teacher)))
    return "\n".join(lines)


# --- the run


def wanted(
    options: argparse.Namespace, learned: dict[Key, Tableau], have: set[Key]
) -> list[tuple[Key, Tableau | None]]:
    """Cells that are not done yet, the fewest evaluations first."""
    nfes = sorted(options.nfe or {nfe for _, nfe, _ in learned})
    asked = {key: table for key, table in learned.items() if key[1] in nfes}
    free: dict[Key, None] = {(name, nfe, "best"): None for nfe in nfes for name in options.free}
    both: dict[Key, Tableau | None] = {**asked, **free}
    left = [(key, table) for key, table in both.items() if key not in have]
    return sorted(left, key=lambda cell: cell[0][1])


def run(options: argparse.Namespace) -> dict:
    teacher = load_teacher(options.teacher, options.device)
    reference = options.reference or ("test" if teacher.name == "fmnist" else "own")
    judge = judge_for(teacher, reference, options.blocks)
    learned = learned_cells(options.solver)
    pairs = fresh_pairs(teacher, options)
    facts = dict(
        teacher=teacher.name,
        n=len(pairs),
        pairs=digest_of_pairs(pairs),
        features=judge.features_name,
        reference=reference,
        blocks=options.blocks,
    )
    file, begun = options.output, time.monotonic()
    done = json.loads(file.read_text()) if file.exists() else facts | dict(rows=[])
    if {name: done.get(name) for name in facts} != facts:
        raise SystemExit(f"{file} was measured otherwise: name another --output")

    def add(key: Key, table: Tableau | None, recipe: dict | None) -> None:
        name, nfe, digest = key
        row = dict(name=name, nfe=nfe, tableau=digest, recipe=recipe)
        same = [row for row in done["rows"] if recipe is None and row["tableau"] == digest]
        figures = same[0] if same else measured(judge, table, pairs)
        done["rows"].append(figures | row)
        write_text_atomic(file, json.dumps(done, indent=1) + "\n")
        last = done["rows"][-1]
        print(name, nfe, f"L1 {last['l1']:.4f}, Frechet {last['frechet']:.3f}", flush=True)

    # a solver under two names (GAS that ended as GS) is measured once
    have = {(row["name"], row["nfe"], row["tableau"]) for row in done["rows"]}
    if not any(name == TEACHER for name, _, _ in have):
        add((TEACHER, teacher.tableau.nfe, "own"), None, None)
    search = None
    for key, chosen in wanted(options, learned, have):
        if time.monotonic() - begun > 60 * options.minutes:
            print("time is up; the rest is left to the next run")
            break
        if chosen is None:
            if search is None:
                labels = "random" if teacher.n_classes else None
                seeds = train_seeds(options.search)
                search = finish(kept_pairs(options.work, teacher, seeds, labels))
            chosen = best_classic(teacher, key[0], key[1], search)
        add(key, chosen, chosen.meta.get("recipe"))
    return done


def main(arguments: list[str] | None = None) -> dict:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--teacher", default="fmnist")
    parser.add_argument("--solver", action="append", default=[], help="NAME=FILE[,FILE...] or *")
    parser.add_argument("--free", nargs="*", default=FREE.split(), help="training-free solvers")
    parser.add_argument("--nfe", nargs="*", type=int, help="only these; default: all of the files")
    parser.add_argument("--against", default="gs", help="the name that the others are compared to")
    parser.add_argument("--n", type=int, default=10_000, help="fresh noises")
    parser.add_argument("--pairs", type=Path, help="a folder with the teacher's samples of them")
    parser.add_argument("--reference", choices=("test", "train", "own"), help="real images")
    parser.add_argument("--search", type=int, default=64, help="pairs to choose a free solver by")
    parser.add_argument("--blocks", type=int, default=50, help="of the jackknife")
    parser.add_argument("--minutes", type=float, default=1e9, help="no new cell after so many")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--work", type=Path, default=Path("runs"), help="where pairs are kept")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    done = run(options)
    print(table(done, options.against))
    return done


if __name__ == "__main__":
    main()
