"""The two ways to distil a solver: the fit without backpropagation and the published recipe.

    python benchmarks/distillation.py [--teacher digits fmnist] [--nfes 4 6 8 10] [--seeds 0 1]
        [--methods gauss_newton adam] [--adam-steps 10000] [--minutes 60]
        [--out runs/distillation] [--report]

Both methods get the same training pairs, one thread and the same process, and are judged on the
same evaluation seeds, which neither has seen; the clock and the counter of network evaluations
stand still meanwhile. The loss is the mean L1; on digits a few samples in a hundred, which some
small change of the solver throws to another image, make up most of it, so its standard error and
the median are kept as well. What is counted: samples that go through the network. A forward pass
whose result is differentiated costs as many as the time of forward and backward together is longer
than that of a forward pass alone; that ratio is measured first, in the same process.

Every (teacher, NFE, method, seed) is one cell with one JSON file, written at
every judgement; a run that was cut off does its unfinished cells again and no
others. results.json, distillation.html and the table are made from all the cells.
"""

import argparse
import json
import math
import platform
import statistics
import sys
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch

from gas_nb.data import eval_seeds, make_pairs
from gas_nb.evaluation import l1
from gas_nb.runtime.files import write_json_atomic, write_text_atomic
from gas_nb.teacher import Teacher, load_teacher
from gas_nb.training import TrainConfig, train

METHODS = {"gauss_newton": "fit", "adam": "Adam"}
JUDGED = {"digits": 4000}  # evaluation samples per judgement; other teachers: 200
GROWTH = 1.15  # Adam is judged at seconds 1, 1.15, 1.15^2, ...


class Counted:
    """A network that counts the samples it is given: those
    only looked at, and those kept for a backward pass."""

    def __init__(self, net):
        self.net, self.plain, self.differentiated, self.on = net, 0, 0, True

    def __call__(self, x, *rest):
        if self.on and torch.is_grad_enabled():
            self.differentiated += len(x)
        elif self.on:
            self.plain += len(x)
        return self.net(x, *rest)


def backward_ratio(teacher: Teacher, batch_size: int = 24, repeats: int = 15) -> float:
    """CPU seconds of forward and backward (to image and
    time) over those of forward: medians of `repeats`."""
    x, t = torch.randn(batch_size, *teacher.shape), torch.full((batch_size,), 500.0)
    label = (
        torch.full((batch_size,), teacher.n_classes, dtype=torch.long)
        if teacher.n_classes
        else None
    )

    def call(x, t):
        return teacher.denoiser.net(*((x, t) if label is None else (x, t, label)))

    def forward():
        with torch.no_grad():
            call(x, t)

    def both():
        call(x.clone().requires_grad_(), t.clone().requires_grad_()).sum().backward()

    return timed(both, repeats) / timed(forward, repeats)


def timed(work, repeats: int) -> float:
    work()
    seconds = []
    for _ in range(repeats):
        start = time.process_time()
        for _ in range(5):
            work()
        seconds.append(time.process_time() - start)
    return statistics.median(seconds)


@dataclass
class Cell:
    """One method on one task. `curve`: rows of step, cpu and wall seconds, plain and
    differentiated samples, loss, its standard error, median."""

    teacher: str
    nfe: int
    method: str
    seed: int
    config: dict
    backward_ratio: float = 0.0
    pairs_seconds: float = 0.0
    threads: int = 1
    machine: str = f"{platform.machine()}, torch {torch.__version__}"
    finished: bool = False
    curve: list[dict] = field(default_factory=list)

    @property
    def name(self) -> str:
        return f"{self.teacher}-nfe{self.nfe}-{self.method}-{self.seed}.json"


def run_cell(
    cell: Cell, config: TrainConfig, folder: Path, minutes: float, judged: int, ratio: float
) -> None:
    teacher = load_teacher(cell.teacher, "cpu")
    first = cell.seed * (config.n_pairs + config.n_val)
    start = time.process_time()
    pairs = make_pairs(teacher, range(first, first + config.n_pairs + config.n_val)).split(
        config.n_val
    )
    judges = make_pairs(teacher, eval_seeds(judged))
    cell.pairs_seconds = (
        (time.process_time() - start)
        * len(pairs[0])
        / (len(pairs[0]) + len(pairs[1]) + len(judges))
    )
    cell.backward_ratio = ratio
    net = Counted(teacher.denoiser.net)
    teacher = replace(teacher, denoiser=replace(teacher.denoiser, net=net))
    run, cpu, wall, mark = train(config, teacher, pairs=pairs), 0.0, 0.0, 1.0
    while True:
        before = time.process_time(), time.perf_counter()
        record = next(run, None)
        cpu, wall = cpu + time.process_time() - before[0], wall + time.perf_counter() - before[1]
        if record is None:
            break
        over = cpu > 60 * minutes
        if record.phase == "fit" or cpu >= mark or record.step == record.steps or over:
            mark = max(mark, cpu) * GROWTH
            net.on = False
            losses = l1(teacher.sample(judges.x_T, tableau=record.tableau), judges.x_0)
            net.on, loss, median = True, losses.mean().item(), losses.median().item()
            row = dict(
                step=record.step,
                cpu=cpu,
                wall=wall,
                plain=net.plain,
                differentiated=net.differentiated,
                loss=loss,
                error=losses.std().item() / len(losses) ** 0.5,
                median=median,
            )
            cell.curve.append(row)
            write_json_atomic(folder / cell.name, asdict(cell))
            print(
                f"{cell.name[:-5]:28} step {record.step:5}: {loss:.5f}, median "
                f"{median:.5f} after {cpu:.1f} s (wall {wall:.1f})",
                flush=True,
            )
        if over:
            break
    cell.finished = True
    write_json_atomic(folder / cell.name, asdict(cell))


def evaluations(cell: dict, row: dict) -> float:
    """Network evaluations of a row, those with a backward pass at their price."""
    return row["plain"] + cell["backward_ratio"] * row["differentiated"]


def compare(cells: list[dict]) -> list[dict]:
    """One row per teacher, NFE and seed where both methods ran: when
    the fit is as good as Adam in the end, and how good both get."""
    rows, by_key = (
        [],
        {(c["teacher"], c["nfe"], c["seed"], c["method"]): c for c in cells if c["curve"]},
    )
    for teacher, nfe, seed, _ in sorted(k for k in by_key if k[3] == "adam"):
        adam, fit = (
            by_key.get((teacher, nfe, seed, method)) for method in ("adam", "gauss_newton")
        )
        if fit is None:
            continue
        end, best = adam["curve"][-1], fit["curve"][-1]
        row = dict(
            teacher=teacher,
            nfe=nfe,
            seed=seed,
            adam_steps=end["step"],
            adam_loss=end["loss"],
            adam_cpu=end["cpu"],
            adam_evaluations=evaluations(adam, end),
            adam_best=min(r["loss"] for r in adam["curve"]),
            fit_loss=best["loss"],
            fit_cpu=best["cpu"],
            fit_evaluations=evaluations(fit, best),
            backward_ratio=adam["backward_ratio"],
        )
        row |= {
            f"{who}_{what}": r[what]
            for who, r in (("adam", end), ("fit", best))
            for what in ("error", "median")
            if what in r
        }
        for what, prefix in (("loss", ""), ("median", "median_")):
            reached = next(
                (r for r in fit["curve"] if r.get(what, math.inf) <= end.get(what, -1)), None
            )
            if reached:
                row |= {
                    f"{prefix}reached_cpu": reached["cpu"],
                    f"{prefix}reached_evaluations": evaluations(fit, reached),
                    f"{prefix}seconds_ratio": end["cpu"] / reached["cpu"],
                    f"{prefix}evaluations_ratio": row["adam_evaluations"]
                    / evaluations(fit, reached),
                }
        rows.append(row)
    return rows


def table(rows: list[dict]) -> str:
    head = (
        "teacher nfe seed",
        "Adam: steps",
        "CPU s",
        "evals",
        "loss",
        "median",
        "fit there by loss: CPU s",
        "evals",
        "ratio s",
        "ratio evals",
        "by median: CPU s",
        "evals",
        "ratio s",
        "ratio evals",
        "fit ends: CPU s",
        "evals",
        "loss",
        "median",
    )
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]

    def quality(r, who):
        loss = f"{r[f'{who}_loss']:.5f}" + (
            f" ± {r[f'{who}_error']:.5f}" if f"{who}_error" in r else ""
        )
        return [loss, f"{r[f'{who}_median']:.5f}" if f"{who}_median" in r else ""]

    def reached(r, prefix):
        if f"{prefix}reached_cpu" not in r:
            return ["never" if not prefix or "adam_median" in r else ""] + [""] * 3
        formats = dict(
            reached_cpu=".1f",
            reached_evaluations=",.0f",
            seconds_ratio=".0f",
            evaluations_ratio=".0f",
        )
        return [format(r[prefix + name], how) for name, how in formats.items()]

    for r in rows:
        cells = [
            f"{r['teacher']} {r['nfe']} {r['seed']}",
            f"{r['adam_steps']:,}",
            f"{r['adam_cpu']:.0f}",
            f"{r['adam_evaluations']:,.0f}",
            *quality(r, "adam"),
        ]
        cells += [
            *reached(r, ""),
            *reached(r, "median_"),
            f"{r['fit_cpu']:.1f}",
            f"{r['fit_evaluations']:,.0f}",
            *quality(r, "fit"),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def figure(cells: list[dict]):
    """Validation loss against CPU seconds and against network
    evaluations; one row of panels per teacher, one colour per NFE."""
    from plotly.subplots import make_subplots

    cells = [c for c in cells if c["curve"]]
    teachers, nfes = sorted({c["teacher"] for c in cells}), sorted({c["nfe"] for c in cells})
    colors = dict(zip(nfes, ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#56b4e9")))
    titles = [
        f"{t}: {what}"
        for t in teachers
        for what in ("CPU seconds, one thread", "network evaluations")
    ]
    fig = make_subplots(len(teachers), 2, subplot_titles=titles, vertical_spacing=0.16)
    for c in sorted(cells, key=lambda c: (c["nfe"], c["method"])):
        for column, x in enumerate(
            ([r["cpu"] for r in c["curve"]], [evaluations(c, r) for r in c["curve"]]), 1
        ):
            name = f"{METHODS[c['method']]}, NFE {c['nfe']}"
            first = not any(t.name == name for t in fig.data)
            fig.add_scatter(
                x=x,
                y=[r["loss"] for r in c["curve"]],
                mode="lines+markers" if c["method"] == "gauss_newton" else "lines",
                line=dict(
                    color=colors.get(c["nfe"], "#555"),
                    dash="solid" if c["method"] == "gauss_newton" else "dot",
                ),
                marker=dict(size=5),
                name=name,
                legendgroup=name,
                showlegend=first,
                row=teachers.index(c["teacher"]) + 1,
                col=column,
            )
    fig.update_xaxes(type="log").update_yaxes(type="log", title_text="L1 to the teacher")
    return fig.update_layout(
        template="none",
        height=60 + 330 * len(teachers),
        width=980,
        margin=dict(l=70, r=20, t=40, b=50),
    )


def report(folder: Path) -> None:
    cells = [json.loads(p.read_text()) for p in sorted(folder.glob("*-nfe*-*.json"))]
    rows = compare(cells)
    write_json_atomic(folder / "results.json", dict(rows=rows, cells=cells))
    if cells:
        write_text_atomic(
            folder / "distillation.html", figure(cells).to_html(include_plotlyjs=True)
        )
    print(table(rows))


def arguments(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--teacher",
        nargs="+",
        default=["digits", "fmnist"],
        help="teachers, as load_teacher names them",
    )
    parser.add_argument("--nfes", nargs="+", type=int, default=[4, 6, 8, 10])
    parser.add_argument(
        "--seeds", nargs="+", type=int, default=[0, 1, 2], help="each has pairs of its own"
    )
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--adam-steps", type=int, default=10_000)
    parser.add_argument("--fit-steps", type=int, help="Gauss-Newton steps (default: TrainConfig's)")
    parser.add_argument(
        "--fit-pairs", type=int, help="pairs per Gauss-Newton step (default: TrainConfig's)"
    )
    parser.add_argument(
        "--pairs", type=int, help="training pairs of both methods (default: TrainConfig's)"
    )
    parser.add_argument(
        "--val", type=int, help="held-out pairs of both methods (default: TrainConfig's)"
    )
    parser.add_argument(
        "--judged", type=int, help="evaluation samples (default: 4,000 on digits, else 200)"
    )
    parser.add_argument(
        "--minutes",
        type=float,
        default=60.0,
        help="a cell stops after so many CPU minutes of training",
    )
    parser.add_argument("--out", type=Path, default=Path("runs/distillation"))
    parser.add_argument(
        "--report", action="store_true", help="run nothing, only make table and figure"
    )
    return parser.parse_args(argv)


def main(argv=None) -> None:
    a = arguments(argv)
    torch.set_num_threads(1)
    a.out.mkdir(parents=True, exist_ok=True)
    asked = [(t, n, m, s) for m in a.methods for s in a.seeds for t in a.teacher for n in a.nfes]
    ratios = {}
    for teacher, nfe, method, seed in asked if not a.report else []:
        settings = {
            k: v
            for k, v in dict(
                fit_steps=a.fit_steps, fit_pairs=a.fit_pairs, n_pairs=a.pairs, n_val=a.val
            ).items()
            if v is not None
        }
        settings |= dict(
            method=method,
            nfe=nfe,
            seed=seed,
            iterations=a.adam_steps,
            condition="none",
            adversarial_weight=0.0,
            val_every=10**9,
        )
        config = TrainConfig(teacher=teacher, device="cpu", **settings)
        cell = Cell(teacher, nfe, method, seed, asdict(config))
        if (path := a.out / cell.name).exists() and json.loads(path.read_text())["finished"]:
            print(f"{cell.name[:-5]}: done before")
            continue
        if teacher not in ratios:
            ratios[teacher] = backward_ratio(load_teacher(teacher, "cpu"))
            print(
                f"{teacher}: forward and backward cost {ratios[teacher]:.2f} times a forward pass"
            )
        run_cell(
            cell, config, a.out, a.minutes, a.judged or JUDGED.get(teacher, 200), ratios[teacher]
        )
    report(a.out)


if __name__ == "__main__":
    sys.exit(main())
