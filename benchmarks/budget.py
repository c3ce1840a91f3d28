"""How close a solver comes for so many network evaluations, and in which precision.

    python benchmarks/budget.py [--teacher fmnist digits] [--nfes 4 8] [--seeds 0 1 2]
        [--methods budget olss adam] [--precisions float32] [--budgets 500 1500 4000]
        [--judged 1000] [--out runs/budget] [--report]

Everything is counted that a method asks the network, the teacher's samples of its pairs included;
a forward pass that is differentiated counts as three. Every seed has pairs of its own, and all are
judged (mean L1) on the same evaluation seeds, against the samples of a teacher of their own
precision. `budget` is the fit as it ships, once for each budget; `olss` is optimal linear subspace
search (arXiv 2305.14677) on the teacher's recorded outputs, once for each number of pairs; `adam`
is the published recipe on 64 pairs.

Every cell is a JSON file; those that are there are not run again. results.json, budget.html and
the tables are made from all of them.
"""

import argparse
import copy
import json
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import torch

from gas_nb.data import even_chunk, eval_seeds, generate_pairs, make_pairs
from gas_nb.fitting.chart import to_tableau
from gas_nb.fitting.differences import differences_in_words
from gas_nb.fitting.rows import least_squares
from gas_nb.metrics.distances import l1
from gas_nb.metrics.samples import sample_pairs
from gas_nb.runtime.files import write_json_atomic, write_text_atomic
from gas_nb.tableau import Tableau, sample
from gas_nb.teacher import load_teacher
from gas_nb.training import TrainConfig, planned, train
from gas_nb.training.pairs import split_pairs

PRECISIONS = (
    "float32",
    "bfloat16",
    "float16",
    "bfloat16-autocast",
    "float16-autocast",
    "int8",
    "onnx",
    "onnx-int8",
)


class Cast(torch.nn.Module):
    """A network in another type, which is asked and answers in float32."""

    def __init__(self, net, dtype):
        super().__init__()
        self.net, self.dtype = copy.deepcopy(net).to(dtype), dtype

    def forward(self, x, t, *given):
        return self.net(x.to(self.dtype), t, *given).float()


def onnx_session(net, shape, int8: bool):
    """The network as a function that asks an ONNX Runtime session."""
    import onnxruntime

    file = Path(tempfile.mkdtemp()) / "net.onnx"
    example = torch.randn(3, *shape), torch.full((3,), 500.0), torch.zeros(3, dtype=torch.long)
    names = ["x", "t", "label"]
    axes = {name: {0: "rows"} for name in names}
    torch.onnx.export(net, example, file, input_names=names, dynamic_axes=axes, dynamo=False)
    if int8:
        from onnxruntime.quantization import QuantType, quantize_dynamic

        quantised = file.with_name("int8.onnx")
        quantize_dynamic(file, quantised, weight_type=QuantType.QUInt8)
        file = quantised
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])

    def ask(x, t, label):
        given = dict(x=x.float().numpy(), t=t.float().numpy(), label=label.numpy())
        return torch.from_numpy(session.run(None, given)[0])

    return ask


def in_precision(teacher, precision: str):
    """The teacher with its network in another precision."""
    denoiser, net = teacher.denoiser, teacher.denoiser.net
    kind, _, how = precision.partition("-")
    if precision == "float32":
        return teacher
    if how == "autocast":
        return replace(teacher, denoiser=replace(denoiser, autocast=getattr(torch, kind)))
    if kind == "onnx":
        other = onnx_session(net, teacher.shape, how == "int8")
    elif kind == "int8":
        linear = {torch.nn.Linear}
        other = torch.ao.quantization.quantize_dynamic(copy.deepcopy(net), linear, torch.qint8)
    else:
        other = Cast(net, getattr(torch, kind))
    return replace(teacher, denoiser=replace(denoiser, net=other))


def judged(teacher, table: Tableau, pairs) -> dict:
    """Mean L1 on `pairs`, its standard error and the median."""
    off = l1(sample_pairs(teacher, table, pairs, teacher.batch_size), pairs.x_0)
    error = off.std().item() / len(off) ** 0.5
    return dict(l1=off.mean().item(), error=error, median=off.median().item())


def pairs_of(teacher, seed: int, n: int):
    """Pairs of a seed's own."""
    seeds = range(10_000 * seed, 10_000 * seed + n)
    return make_pairs(teacher, seeds, "random", chunk=even_chunk(n))


def within_budgets(teacher, nfe: int, seed: int, judge, budgets: list[int]):
    """The fit as it ships, once for each budget."""
    rivals: dict[str, float] = {}  # many budgets come to the same one
    for budget in budgets:
        asked = TrainConfig(teacher=teacher.name, nfe=nfe, budget=budget, adversarial_weight=0.0)
        config = planned(replace(asked, device="cpu", seed=seed), teacher)
        pairs = pairs_of(teacher, seed, config.n_pairs + config.n_val)
        split = split_pairs(config, pairs)
        *_, record = train(config, teacher, pairs=split)
        fit = record.state.fit
        if fit.free_name not in rivals:
            free = to_tableau(fit.free, teacher.schedule, teacher.t_eps)
            rivals[fit.free_name] = judged(teacher, free, judge)["l1"]
        yield dict(
            budget=budget,
            evaluations=record.state.spent,
            pairs=fit.seen,
            outcome=fit.outcome,
            differences=differences_in_words(fit.differences),
            free=fit.free_name,
            free_l1=rivals[fit.free_name],
            **judged(teacher, record.tableau, judge),
        )


def olss(teacher, nfe: int, seed: int, judge, sizes=(4, 8, 16, 32, 64)):
    """Rows of x_T and all predictions so far, by least squares on what the teacher recorded."""
    for n in sizes:
        pairs = pairs_of(teacher, seed, n)
        with torch.no_grad():
            facts = teacher.denoiser, pairs.x_T, teacher.tableau, pairs.condition
            _, path = sample(*facts, return_trajectory=True)
        steps = olss_path(path, nfe)
        table = olss_tableau(teacher, path, steps)
        evaluations = n * teacher.tableau.nfe
        yield dict(evaluations=evaluations, pairs=n, **judged(teacher, table, judge))


def projection(path, steps: list[int], to: int):
    """(weights, relative error) of the state `to` in the span of x_T and the predictions."""
    columns = [path.states[0], *[path.predictions[k] for k in steps]]
    weights = least_squares(columns, path.states[to], ridge=1e-9)
    found = sum(w * c for w, c in zip(weights.tolist(), columns))
    off = (found - path.states[to]).norm() / path.states[to].norm()
    return weights, off.item()


def olss_path(path, nfe: int) -> list[int]:
    """The teacher's steps that are kept: the largest error of a projection is the least."""
    last = len(path.predictions)

    def walk(allowed: float) -> list[int]:
        steps, here = [], 0
        while here < last:
            steps.append(here)
            fits = [k for k in range(here + 1, last + 1) if projection(path, steps, k)[1] < allowed]
            here = max(fits, default=here + 1)
        return steps

    low, high = 0.0, 2.0
    for _ in range(16):
        middle = (low + high) / 2
        low, high = (middle, high) if len(walk(middle)) > nfe else (low, middle)
    steps = walk(high)
    others = [k for k in range(1, last) if k not in steps]
    while len(steps) < nfe:  # the errors' steps may jump over a number
        steps.append(others.pop())
    return sorted(steps)


def olss_tableau(teacher, path, steps: list[int]) -> Tableau:
    """The kept steps as a solver."""
    n, ends = len(steps), [*steps[1:], len(path.predictions)]
    A, C = torch.zeros(n, n), torch.zeros(n, n)
    for k, end in enumerate(ends):
        weights, _ = projection(path, steps[: k + 1], end)
        A[k, 0], C[k, : k + 1] = weights[0], weights[1:]
    times = path.times[[*steps, len(path.predictions)]]
    facts = dict(name="olss", schedule=teacher.schedule.config)
    return Tableau(times, torch.zeros(n), A, C, facts)


def adam(teacher, nfe: int, seed: int, judge, n_pairs: int = 64, most: int = 40_000):
    """The published recipe, judged whenever it has asked a half more than before."""
    counts = dict(plain=0, differentiated=0)
    net = teacher.denoiser.net

    def counted(*given):
        which = "differentiated" if torch.is_grad_enabled() else "plain"
        counts[which] += len(given[0])
        return net(*given)

    watched = replace(teacher, denoiser=replace(teacher.denoiser, net=counted))
    pairs = pairs_of(teacher, seed, n_pairs + 8)
    config = TrainConfig(
        teacher=teacher.name,
        nfe=nfe,
        method="adam",
        iterations=100_000,
        n_pairs=n_pairs,
        n_val=8,
        batch_size=16,
        adversarial_weight=0.0,
        val_every=10**9,
        checkpoint_every=10**9,
        ema=0.99,
        device="cpu",
    )
    made, mark = n_pairs * teacher.tableau.nfe, 1500.0
    for record in train(config, watched, pairs=pairs.split(8)):
        evaluations = made + counts["plain"] + 3 * counts["differentiated"]
        if evaluations < mark:
            continue
        mark = 1.5 * evaluations
        yield dict(evaluations=evaluations, **judged(teacher, record.tableau, judge))
        if evaluations > most:
            return


METHODS = dict(budget=within_budgets, olss=olss, adam=adam)


def run_cell(key: dict, folder: Path, a: argparse.Namespace) -> None:
    name = "{teacher}-{precision}-nfe{nfe}-{method}-{seed}".format(**key)
    file = folder / f"{name}.json"
    if file.exists() and json.loads(file.read_text())["finished"]:
        return
    teacher = in_precision(load_teacher(key["teacher"], "cpu"), key["precision"])
    place = folder / "judge" / f"{key['teacher']}-{key['precision']}"
    judge = generate_pairs(teacher, eval_seeds(a.judged), place, "random").tensors()
    extra = {}
    if key["method"] == "budget":
        own = {4: [1500], 8: [4000]}.get(key["nfe"], [400 * key["nfe"]])
        extra = dict(budgets=a.budgets if key["precision"] == "float32" else own)
    rows = []
    for row in METHODS[key["method"]](teacher, key["nfe"], key["seed"], judge, **extra):
        rows.append(row)
        print(f"{name}: {row['evaluations']} evaluations, L1 {row['l1']:.5f}", flush=True)
    write_json_atomic(file, dict(key, judged=a.judged, finished=True, rows=rows))


def table(cells: list[dict]) -> str:
    lines = ["| teacher, NFE | precision | method | seed | evaluations | L1 | training-free |"]
    lines.append("|" + " --- |" * 7)
    for c in cells:
        for r in c["rows"]:
            free = f"{r['free_l1']:.4f}" if "free_l1" in r else ""
            lines.append(
                f"| {c['teacher']} {c['nfe']} | {c['precision']} | {c['method']} | {c['seed']} "
                f"| {r['evaluations']:,} | {r['l1']:.4f} ± {r['error']:.4f} | {free} |"
            )
    return "\n".join(lines)


def figure(cells: list[dict]):
    """L1 against evaluations; a panel per teacher and NFE."""
    from plotly.subplots import make_subplots

    panels = sorted({(c["teacher"], c["nfe"]) for c in cells})
    titles = [f"{teacher}, NFE {nfe}" for teacher, nfe in panels]
    fig = make_subplots(1, len(panels), subplot_titles=titles)
    colors = dict(budget="#0072b2", olss="#e69f00", adam="#009e73")
    for c in cells:
        if c["precision"] != "float32":
            continue
        shown = not any(trace.name == c["method"] for trace in fig.data)
        fig.add_scatter(
            x=[r["evaluations"] for r in c["rows"]],
            y=[r["l1"] for r in c["rows"]],
            mode="lines+markers",
            name=c["method"],
            legendgroup=c["method"],
            showlegend=shown,
            line=dict(color=colors[c["method"]]),
            row=1,
            col=1 + panels.index((c["teacher"], c["nfe"])),
        )
    fig.update_xaxes(type="log", title_text="network evaluations")
    fig.update_yaxes(type="log", title_text="L1 to the teacher")
    return fig.update_layout(template="none", height=420, width=60 + 420 * len(panels))


def report(folder: Path) -> None:
    files = [p for p in sorted(folder.glob("*.json")) if p.name != "results.json"]
    cells = [json.loads(p.read_text()) for p in files]
    write_json_atomic(folder / "results.json", dict(cells=cells))
    if cells:
        html = figure(cells).to_html(include_plotlyjs=True)
        write_text_atomic(folder / "budget.html", html)
        print(table(cells))


def arguments(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--teacher", nargs="+", default=["fmnist", "digits"])
    parser.add_argument("--nfes", nargs="+", type=int, default=[4, 8])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=["budget", "olss"])
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=["float32"])
    parser.add_argument("--budgets", nargs="+", type=int, default=[200, 500, 1500, 4000])
    parser.add_argument("--judged", type=int, default=1000, help="evaluation samples")
    parser.add_argument("--out", type=Path, default=Path("runs/budget"))
    parser.add_argument("--report", action="store_true", help="only tables and figure")
    return parser.parse_args(argv)


def main(argv=None) -> None:
    a = arguments(argv)
    torch.set_num_threads(1)
    a.out.mkdir(parents=True, exist_ok=True)
    for teacher in a.teacher if not a.report else []:
        for precision in a.precisions:
            for nfe in a.nfes:
                for method in a.methods:
                    for seed in a.seeds:
                        key = dict(teacher=teacher, precision=precision, nfe=nfe)
                        run_cell(key | dict(method=method, seed=seed), a.out, a)
    report(a.out)


if __name__ == "__main__":
    sys.exit(main())
