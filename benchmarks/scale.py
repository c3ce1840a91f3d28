"""What a solver costs for the models that people run: Stable Diffusion 1.5, SDXL, SD3 medium,
FLUX.1-dev and Wan 2.1, in bfloat16 on one GPU.

    python benchmarks/scale.py [--models sd15 sdxl sd3 flux wan] [--nfes 4 8] [--budgets 500 1500]
        [--minutes 3] [--total 9] [--out runs/scale] [--report] [--dry]

The networks have the published configurations and random weights, so that nothing is downloaded:
time and memory are those of the real models, quality is not. Text encoders and decoders are left
out; the one call passes embeddings of the right shapes. An evaluation is one answer of the
pipeline, guidance included, which asks some networks twice. On a GPU the time in the network is
that between two marks on its stream.

`distil` cells are `distil_solver(pipe, nfe=..., budget=...)` as a user calls it, its first checks
of the pipeline included; `sampling` cells are the pipeline itself. `recipe` cells are steps of the
published recipe, Adam through the whole sampler, with ever larger batches until memory runs out.

Every cell is a JSON file; those that are there are not run again. What does not fit into the
minutes of a model, or of all, is left out and said to be; its time is extrapolated from a smaller
cell of the same model. results.json and the table are made from all cells. `--dry` is the same with
tiny networks on the CPU.
"""

import argparse
import gc
import inspect
import json
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any

import gas_nb.runtime.device  # noqa: F401  (before diffusers)

import diffusers
import torch
from scale_models import MODELS, Model, build_network, build_pipeline, call_of

from gas_nb import distil_solver
from gas_nb.data import Pairs
from gas_nb.fitting.plan import FitPlan, plan_fit
from gas_nb.runtime.files import write_json_atomic
from gas_nb.teachers.base import RECIPE
from gas_nb.teachers.diffusers import FLOW_RECIPE, PipelineTeacher
from gas_nb.training import TrainConfig, train

CHECKS = 45  # evaluations that checking a pipeline takes at most
STEPS = 10  # of plain sampling
GIB = 2**30


# Measuring ------------------------------------------------------------------------------------


class Watch:
    """Counts the calls and rows of a network, and the seconds that it takes on its device."""

    def __init__(self, net: torch.nn.Module):
        self.device = next(net.parameters()).device
        net.register_forward_pre_hook(self._before, with_kwargs=True)
        net.register_forward_hook(self._after)
        self.reset()

    def reset(self) -> None:
        self.sizes: Counter[int] = Counter()  # rows of a call
        self._marks: list[tuple[Any, Any]] = []
        self._begun: Any = None

    def _mark(self) -> Any:
        if self.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _before(self, module, args, given) -> None:
        x = args[0] if args else given.get("hidden_states", given.get("sample"))
        self.sizes[len(x)] += 1
        self._begun = self._mark()

    def _after(self, module, args, answer) -> None:
        self._marks.append((self._begun, self._mark()))

    @property
    def rows(self) -> int:
        """All that were asked about since `reset`."""
        return sum(size * times for size, times in self.sizes.items())

    def seconds(self) -> float:
        """In the network since `reset`."""
        if self.device.type != "cuda":
            return sum(end - begin for begin, end in self._marks)
        torch.cuda.synchronize(self.device)
        return sum(begin.elapsed_time(end) for begin, end in self._marks) / 1000


def release(device: torch.device) -> None:
    """Give back what nobody holds any more."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def peak(device: torch.device) -> float | None:
    """Most memory that was allocated since `timed` began, in GiB; None where nobody counts it."""
    if device.type != "cuda":
        return None
    return torch.cuda.max_memory_allocated(device) / GIB


def timed(device: torch.device, work: Callable[[], Any]) -> tuple[Any, dict[str, Any]]:
    """What `work` returns, its seconds and its peak memory. torch keeps the memory that it holds
    ready: asking the driver again would take time that is not the work's."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
    begun = time.perf_counter()
    found = work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return found, dict(seconds=time.perf_counter() - begun, peak_gib=peak(device))


@dataclass
class Bench:
    """A model that is built, and what it is called with."""

    model: Model
    device: torch.device
    pipe: Any
    call: dict[str, Any]
    watch: Watch
    build_seconds: float

    def watched(self, work: Callable[[], Any]) -> tuple[Any, dict[str, Any]]:
        """`timed`, and what was asked of the network meanwhile."""
        self.watch.reset()
        found, row = timed(self.device, work)
        inside = self.watch.seconds()
        evaluations = self.watch.rows / self.model.asked
        (usual, _), *_ = self.watch.sizes.most_common(1)
        row |= dict(
            evaluations=round(evaluations),
            network_calls=self.watch.sizes.total(),
            network_seconds=inside,
            seconds_per_evaluation=inside / evaluations,
            outside=max(0.0, 1 - inside / row["seconds"]),
            batch=usual // self.model.at_once,
            largest_batch=max(self.watch.sizes) // self.model.at_once,
        )
        return found, row


def build(name: str, dry: bool, device: torch.device, dtype: torch.dtype) -> Bench:
    """Build a model."""
    model = MODELS[name]

    def make():
        return build_pipeline(model, build_network(model, dry, device, dtype))

    pipe, row = timed(device, make)
    net = getattr(pipe, model.part)
    call = call_of(model, dry, device, dtype)
    return Bench(model, device, pipe, call, Watch(net), row["seconds"])


# The cells ------------------------------------------------------------------------------------


def sampling(bench: Bench, batch: int) -> dict[str, Any]:
    """The pipeline by itself, with its own scheduler."""
    taken = inspect.signature(type(bench.pipe).__call__).parameters
    several = next(n for n in taken if n in ("num_images_per_prompt", "num_videos_per_prompt"))

    def run(steps: int) -> torch.Tensor:
        given = bench.call | {several: batch, "output_type": "latent", "return_dict": False}
        return bench.pipe(**given, num_inference_steps=steps, generator=torch.Generator())[0]

    run(2)  # what a first call sets up is not counted
    found, row = bench.watched(lambda: run(STEPS))
    if not torch.isfinite(found).all():
        raise ValueError(
            f"{bench.model.title} makes samples that are not finite: shrink its weights"
        )
    parameters = sum(p.numel() for p in getattr(bench.pipe, bench.model.part).parameters())
    return row | dict(parameters=parameters, build_seconds=bench.build_seconds)


def plan_of(model: Model, nfe: int, budget: int) -> FitPlan:
    """What a budget is spent on; ValueError for one that is too small."""
    recipe = FLOW_RECIPE if model.flow else RECIPE
    return plan_fit(budget, nfe, recipe["nfe"])


def distil(bench: Bench, nfe: int, budget: int) -> dict[str, Any]:
    """A solver, as a user asks for one."""

    def run():
        told = dict(nfe=nfe, budget=budget, calls=[bench.call], batch_size=bench.model.batch)
        return distil_solver(bench.pipe, **told, progress=lambda text: print(f"  {text}"))

    solver, row = bench.watched(run)
    (figures,) = solver.figures
    spent, plan = solver.card["evaluations"], plan_of(bench.model, nfe, budget)
    row |= dict(budgeted=spent, checks=row["evaluations"] - spent)
    row |= dict(schedule=solver.schedule.config["kind"], planned=plan.cost)
    row |= dict(pairs=plan.pairs, differentiated=plan.pairs > 0 and plan.differentiated)
    kept = ("l1", "training_free", "training_free_l1", "difference_steps")
    return row | {name: figures[name] for name in kept}


def recipe_step(bench: Bench, nfe: int, batch: int, steps: int = 2) -> dict[str, Any]:
    """One step of the published recipe: seconds, the mean of `steps` after a first, and memory."""
    teacher = PipelineTeacher(bench.pipe, calls=[bench.call], batch_size=batch)
    try:
        config = TrainConfig(
            teacher=teacher.name,
            nfe=nfe,
            method="adam",
            iterations=1000,
            n_pairs=max(batch, 8),
            n_val=1,
            batch_size=batch,
            adversarial_weight=0.0,
            val_every=10**9,
            checkpoint_every=10**9,
            device=str(bench.device),
        )
        records = train(config, teacher, pairs=_any_pairs(teacher, config.n_pairs))
        next(records)
        _, row = timed(bench.device, lambda: [next(records) for _ in range(steps)])
        records.close()
    finally:
        teacher.close()
    return row | dict(batch=batch, seconds=row["seconds"] / steps)


def _any_pairs(teacher: PipelineTeacher, n: int) -> tuple[Pairs, Pairs]:
    """Pairs of noise and noise: what a step costs is the same for any."""
    x_T, x_0 = (torch.randn(n + 1, *teacher.shape) for _ in range(2))
    labels = torch.zeros(n + 1, dtype=torch.long)
    return Pairs(torch.arange(n + 1), x_T, x_0, labels).split(1)


def recipe(
    bench: Bench, nfe: int, checkpointing: bool, batches: list[int], left: Callable[[], float]
) -> dict[str, Any]:
    """Steps of the published recipe with ever larger batches, while they fit."""
    net, rows = getattr(bench.pipe, bench.model.part), []
    if checkpointing:
        net.enable_gradient_checkpointing()
    try:
        for batch in batches:
            if rows and 8 * rows[-1]["seconds"] > left():
                rows.append(dict(batch=batch, remark="no time left"))
                break
            rows.append(_if_it_fits(bench, nfe, batch))
            if "seconds" not in rows[-1]:
                break
    finally:
        net.disable_gradient_checkpointing()
    return dict(rows=rows)


def is_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, by torch's own class or by a library of CUDA's."""
    return isinstance(error, torch.OutOfMemoryError) or "ALLOC_FAILED" in str(error)


def _if_it_fits(bench: Bench, nfe: int, batch: int) -> dict[str, Any]:
    row = None
    try:
        row = recipe_step(bench, nfe, batch)
    except RuntimeError as error:  # which holds the tensors: it has to go first
        if not is_memory(error):
            raise
    release(bench.device)
    return row or dict(batch=batch, remark="out of memory")


# Which cells, and when ------------------------------------------------------------------------


@dataclass(frozen=True)
class Cell:
    """A cell's key, its work, and the evaluations whose time it is expected to take."""

    key: dict[str, Any]
    work: Callable[[Bench], dict[str, Any]]
    evaluations: float

    @property
    def name(self) -> str:
        """That of its file."""
        model, kind, *rest = self.key
        numbers = [f"{name}{self.key[name]}" for name in rest]
        return "-".join([self.key[model], self.key[kind], *numbers])


def sampling_cells(name: str) -> list[Cell]:
    """Plain sampling with one sample, and with as many as a distillation asks for at once."""
    found = []
    for batch in (1, 2, 4):
        if batch <= MODELS[name].batch:
            key = dict(model=name, kind="sampling", batch=batch)
            found.append(Cell(key, partial(sampling, batch=batch), batch * (STEPS + 2)))
    return found


def distil_cells(name: str, nfes: list[int], budget: int) -> list[Cell]:
    """Distillations within one budget."""
    found = []
    for nfe in nfes:
        key = dict(model=name, kind="distil", nfe=nfe, budget=budget)
        work = partial(distil, nfe=nfe, budget=budget)
        expected = plan_of(MODELS[name], nfe, budget).cost + CHECKS
        found.append(Cell(key, work, 1.2 * expected))
    return found


def recipe_cells(name: str, a: argparse.Namespace, left: Callable[[], float]) -> list[Cell]:
    """The published recipe, with and without gradient checkpointing."""
    found = []
    for nfe in a.nfes:
        for checkpointing in (False, True):
            kind = "recipe-checkpointed" if checkpointing else "recipe"
            key = dict(model=name, kind=kind, nfe=nfe)
            facts = dict(nfe=nfe, checkpointing=checkpointing, batches=a.batches, left=left)
            found.append(Cell(key, partial(recipe, **facts), 12 * nfe))
    return found


def cells_of(name: str, a: argparse.Namespace, left: Callable[[], float]) -> list[Cell]:
    """All cells of a model, in their order: what is needed most comes first."""
    first, *others = [distil_cells(name, a.nfes, b) for b in a.budgets or MODELS[name].budgets]
    between = recipe_cells(name, a, left) if name == "sd15" else []
    return [*sampling_cells(name), *first, *between, *sum(others, [])]


def build_seconds(model: Model, dry: bool) -> float:
    """What building is expected to take."""
    return 1.0 if dry else 10 + 3 * model.parameters


def where(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"


def run_model(name: str, a: argparse.Namespace, end: float) -> None:
    """Run the cells of a model that are not there yet, as far as its minutes go."""
    until = min(time.monotonic() + 60 * a.minutes, end)

    def left() -> float:
        return until - time.monotonic()

    todo = [c for c in cells_of(name, a, left) if not (a.out / f"{c.name}.json").exists()]
    if not todo:
        return
    bench = build_in_time(name, a, todo, left)
    for cell in todo if bench else []:
        run_cell(cell, bench, a, left)
    del bench
    release(a.device)


def build_in_time(
    name: str, a: argparse.Namespace, todo: list[Cell], left: Callable[[], float]
) -> Bench | None:
    """The model, if there is time and memory to build it; else None, and all cells are left out."""
    expected, bench, why = build_seconds(MODELS[name], a.dry), None, None
    if expected > left():
        why = f"building takes about {expected:.0f} s, {max(left(), 0):.0f} s were left"
    try:
        bench = None if why else build(name, a.dry, a.device, a.dtype)
    except Exception as error:  # one model's failure is not the others'
        why = "out of memory" if is_memory(error) else f"{type(error).__name__}: {error}"
        why += ", while it was built"
    if bench is not None:
        print(f"{bench.model.title}: built in {bench.build_seconds:.0f} s", flush=True)
    for cell in todo if why else []:
        leave_out(cell, a, why)
    return bench


def leave_out(cell: Cell, a: argparse.Namespace, why: str) -> None:
    """Say why a cell is not there; another run tries it again."""
    said = cell.key | dict(skipped=why, device=where(a.device), dry=a.dry)
    write_json_atomic(a.out / "left_out" / f"{cell.name}.json", said)
    print(f"{cell.name}: skipped, {why}", flush=True)


def run_cell(cell: Cell, bench: Bench, a: argparse.Namespace, left: Callable[[], float]) -> None:
    """Run a cell if it fits, and write it down."""
    expected = cell.evaluations * pace(cell.key["model"], a.out)
    if expected > left():
        leave_out(cell, a, f"takes about {expected:.0f} s, {max(left(), 0):.0f} s were left")
        return
    why = None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            row = cell.work(bench)
    except Exception as error:  # one cell's failure is not the others'
        why = "out of memory" if is_memory(error) else f"{type(error).__name__}: {error}"
    if why is not None:
        release(a.device)
        leave_out(cell, a, why)
        return
    about = dict(
        device=where(a.device),
        precision=str(a.dtype).removeprefix("torch."),
        date=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        torch=torch.__version__,
        diffusers=diffusers.__version__,
        dry=a.dry,
    )
    write_json_atomic(a.out / f"{cell.name}.json", cell.key | row | about)
    (a.out / "left_out" / f"{cell.name}.json").unlink(missing_ok=True)
    took = f", {row['seconds']:.1f} s" if "seconds" in row else ""
    print(f"{cell.name}: done{took}; {left():.0f} s left", flush=True)


def pace(name: str, folder: Path) -> float:
    """Seconds an evaluation as the plain pipeline took them; 0 before it was run."""
    paces = [json.loads(p.read_text()) for p in folder.glob(f"{name}-sampling-*.json")]
    return max((row["seconds"] / row["evaluations"] for row in paces), default=0.0)


# The table ------------------------------------------------------------------------------------

COLUMNS = (
    "model",
    "what",
    "batch",
    "s/evaluation",
    "seconds in all",
    "outside the network",
    "peak memory, GiB",
    "plain sampling, GiB",
    "difference steps",
    "evaluations",
    "remark",
)


def number(value: float | None, digits: str = ".1f") -> str:
    return "-" if value is None else format(value, digits)


def memory(row: dict[str, Any]) -> str:
    """Peak memory as it was measured, which is on a GPU."""
    value = row.get("peak_gib")
    return "not measured" if value is None and row["device"] == "CPU" else number(value)


def steps_in_words(row: dict[str, Any]) -> str:
    steps = row.get("difference_steps")
    if steps is None:
        return "-"
    return f"{min(steps):.1e} to {max(steps):.1e}" if steps else "none measured"


def what(cell: dict[str, Any]) -> str:
    """A cell in words."""
    if cell["kind"] == "sampling":
        return f"plain sampling, {STEPS} steps"
    if cell["kind"] == "distil":
        return f"distilled, NFE {cell['nfe']}, budget {cell['budget']:,}"
    stored = " with gradient checkpointing" if cell["kind"].endswith("checkpointed") else ""
    return f"published recipe{stored}, NFE {cell['nfe']}, a step"


def remark(row: dict[str, Any]) -> str:
    if "checks" not in row:
        return row.get("remark", "")
    fit = f"{row['pairs']} pairs, " + ("derivatives" if row["differentiated"] else "rows alone")
    fit = fit if row["pairs"] else "no fit, training-free solvers alone"
    return f"{fit}; {row['checks']} of the evaluations check the pipeline"


def line(**entries: str) -> str:
    """A row of the table, by the names of its columns."""
    return "| " + " | ".join(entries.get(column, "-") for column in COLUMNS) + " |"


def flattened(cells: list[dict]) -> list[dict]:
    """The cells, each step of a recipe as one of its own."""
    found = []
    for cell in cells:
        for step in cell.get("rows", []):
            evaluations = cell["nfe"] * step["batch"]
            each = step["seconds"] / evaluations if "seconds" in step else None
            found.append(cell | step | dict(evaluations=evaluations, seconds_per_evaluation=each))
        found += [] if "rows" in cell else [cell]
    return found


def line_of(row: dict[str, Any], plain: dict[tuple, str], several: bool) -> str:
    """A cell as a row of the table; `plain` holds the memory of plain sampling."""
    title = MODELS[row["model"]].title + (f", {row['device']}" if several else "")
    if "skipped" in row:
        return line(model=title, what=what(row), remark=f"skipped: {row['skipped']}")
    largest = row.get("largest_batch", row["batch"])
    entries = {
        "model": title,
        "what": what(row),
        "batch": str(row["batch"])
        if largest == row["batch"]
        else f"{row['batch']}, once {largest}",
        "s/evaluation": number(row.get("seconds_per_evaluation"), ".4f"),
        "seconds in all": number(row.get("seconds"), ".2f"),
        "outside the network": number(row.get("outside"), ".0%"),
        "peak memory, GiB": memory(row),
        "plain sampling, GiB": plain.get((row["model"], row["device"], largest), "-"),
        "difference steps": steps_in_words(row),
        "evaluations": number(row.get("evaluations"), ","),
        "remark": remark(row),
    }
    return line(**entries)


def place(row: dict[str, Any]) -> tuple:
    """By model, then plain sampling, distillation by budget, and the recipe."""
    kinds = ("sampling", "distil", "recipe", "recipe-checkpointed")
    numbers = (row.get(name, 0) for name in ("budget", "nfe", "batch"))
    return list(MODELS).index(row["model"]), kinds.index(row["kind"]), *numbers


def budget_key(row: dict[str, Any]) -> tuple:
    return row["model"], row.get("nfe"), row.get("budget")


def extrapolated(cells: list[dict], left_out: list[dict]) -> list[dict]:
    """Distillations within the usual budgets that were not run, by the largest that was."""
    ran = [c for c in cells if c["kind"] == "distil"]
    there = set(map(budget_key, ran))
    reasons = {budget_key(row): row["skipped"] for row in left_out if row["kind"] == "distil"}
    wanted = {(model, nfe, budget) for model, nfe, _ in there for budget in (500, 1500)}
    found = []
    for model, nfe, budget in sorted(wanted - there):
        like = [c for c in ran if (c["model"], c["nfe"]) == (model, nfe)]
        largest = max(like, key=lambda c: c["budget"])
        evaluations = plan_of(MODELS[model], nfe, budget).cost + largest["checks"]
        said = f"EXTRAPOLATED from the budget of {largest['budget']:,}"
        why = reasons.get((model, nfe, budget))
        kept = ("model", "kind", "nfe", "device", "batch", "seconds_per_evaluation")
        row = {name: largest[name] for name in kept} | dict(budget=budget, evaluations=evaluations)
        row["seconds"] = largest["seconds"] / largest["evaluations"] * evaluations
        found.append(row | dict(remark=said + (f"; not run: {why}" if why else "")))
    return found


def read_cells(folder: Path) -> list[dict]:
    files = sorted(p for p in folder.glob("*.json") if p.name != "results.json")
    return [json.loads(p.read_text(encoding="utf-8")) for p in files]


def table(cells: list[dict], left_out: list[dict]) -> str:
    """Everything that was measured, left out or extrapolated, as Markdown."""
    guessed = extrapolated(cells, left_out)
    told = set(map(budget_key, guessed))
    skipped = [r for r in left_out if r["kind"] != "distil" or budget_key(r) not in told]
    sampled = [c for c in cells if c["kind"] == "sampling"]
    plain = {(c["model"], c["device"], c["batch"]): memory(c) for c in sampled}
    several = len({row["device"] for row in cells}) > 1
    lines = [line(**{column: column for column in COLUMNS}), "|" + " --- |" * len(COLUMNS)]
    rows = sorted([*flattened(cells), *guessed, *skipped], key=place)
    return "\n".join([*lines, *(line_of(row, plain, several) for row in rows)])


def report(folder: Path) -> str:
    """Write results.json and return the table under its heading."""
    cells, left_out = read_cells(folder), read_cells(folder / "left_out")
    if not cells and not left_out:
        raise ValueError(f"{folder} holds no cells: run the benchmark first")
    devices = sorted({row["device"] for row in [*cells, *left_out]})
    dates = sorted(row["date"][:10] for row in cells) or ["-"]
    days = " to ".join(dict.fromkeys((dates[0], dates[-1])))
    dry = any(row["dry"] for row in [*cells, *left_out])
    heading = f"{days}, {', '.join(devices)}, bfloat16, random weights"
    heading += "; tiny networks, which say nothing about the real ones" if dry else ""
    facts = dict(date=dates[-1], device=devices, dry=dry)
    found = table(cells, left_out)
    rows = dict(cells=cells, left_out=left_out, heading=heading, table=found)
    guessed = dict(extrapolated=extrapolated(cells, left_out))
    write_json_atomic(folder / "results.json", facts | rows | guessed)
    return f"{heading}\n\n{found}"


# The command ----------------------------------------------------------------------------------


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=" ".join(__doc__.split("\n\n")[0].split()))
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--nfes", nargs="+", type=int, default=[4, 8])
    parser.add_argument("--budgets", nargs="+", type=int, help="default: 500 1500, FLUX 320")
    parser.add_argument("--batches", nargs="+", type=int, help="of the published recipe")
    parser.add_argument("--minutes", type=float, default=3.0, help="for each model")
    parser.add_argument("--total", type=float, default=9.0, help="minutes for all of them")
    parser.add_argument("--out", type=Path, help="default: runs/scale, runs/scale-dry")
    parser.add_argument("--report", action="store_true", help="only the table")
    parser.add_argument("--dry", action="store_true", help="tiny networks on the CPU")
    a = parser.parse_args(argv)
    a.device = torch.device("cpu" if a.dry else "cuda")
    a.dtype = torch.bfloat16
    a.out = a.out or Path("runs/scale-dry" if a.dry else "runs/scale")
    a.batches = a.batches or ([1, 2] if a.dry else [1, 2, 4, 8, 16, 32])
    if a.dry:
        a.budgets = a.budgets or [150, 500]
    return a


def main(argv: list[str] | None = None) -> None:
    a = arguments(argv)
    if not (a.dry or a.report or torch.cuda.is_available()):
        raise ValueError("no CUDA GPU: run on one, or pass --dry for tiny networks on the CPU")
    for name in a.models:
        cells_of(name, a, time.monotonic)  # ValueError for a budget that is too small for any
    end = time.monotonic() + 60 * a.total
    a.out.mkdir(parents=True, exist_ok=True)
    if any(row["dry"] != a.dry for row in read_cells(a.out)) and not a.report:
        raise ValueError(f"{a.out} holds cells {'without' if a.dry else 'of'} --dry: give another")
    for name in [] if a.report else a.models:
        run_model(name, a, end)
    print(report(a.out))


if __name__ == "__main__":
    sys.exit(main())
