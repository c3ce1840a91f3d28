"""Everything that gas_nb reads, as `benchmarks/fuzz.py` and the tests try it: how valid files or
values are made, which of them are broken and how, and the function that reads them."""

import contextlib
import gzip
import io
import json
import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch

import gas_nb.runtime.device  # noqa: F401  (before diffusers)
import diffusers
from safetensors.torch import save_file

from fuzz_mutants import broken_json, broken_lines, broken_pickle, broken_safetensors, broken_zip
from gas_nb.app.ask import make_ask
from gas_nb.app.catalog import run_solvers
from gas_nb.app.files import add_upload
from gas_nb.app.tradeoff import sweep_rows
from gas_nb.classic import classic_tableau
from gas_nb.data import PairDataset, generate_pairs
from gas_nb.data.manifest import make_plan, plan_differences
from gas_nb.distil import PARAMETERS as SAID
from gas_nb.drive import drive_each
from gas_nb.exchange.bundles import bundle_of_runs
from gas_nb.exchange.comfyui_node import read as read_comfyui
from gas_nb.exchange.comfyui_node import steps_of
from gas_nb.exchange.export import export
from gas_nb.exchange.files import GASScheduler, shipped_scheduler
from gas_nb.exchange.portable import GASScheduler as PortableScheduler
from gas_nb.exchange.published import (
    load_published_checkpoint,
    load_published_dataset,
    load_published_discriminator,
)
from gas_nb.exchange.source import source_of
from gas_nb.figures import learning_curves, tradeoff
from gas_nb.fitting.family import family_of, load_tableau
from gas_nb.front import load_solver
from gas_nb.metrics.reference import image_batches, read_fid_reference
from gas_nb.runs import Run, RunLog, distilled_from, runs_with
from gas_nb.runtime.files import folder_owner
from gas_nb.schedule import NoiseSchedule, spacing
from gas_nb.sweeps.config import SweepConfig
from gas_nb.sweeps.runner import load_sweep
from gas_nb.sweeps.store import settle_reference, solver_for, stored
from gas_nb.tableau import Tableau, check_schedule
from gas_nb.teacher import load_teacher
from gas_nb.teachers.calls import calls_from_file, checked_prompts
from gas_nb.teachers.edm import EDMPrecond, read_edm, save_edm
from gas_nb.teachers.fmnist import load_fmnist_teacher
from gas_nb.teachers.fmnist_classifier import load_classifier, reference_statistics
from gas_nb.teachers.fmnist_data import read_idx
from gas_nb.teachers.presets import read_prompts
from gas_nb.teachers.reading import schedule_from_scheduler
from gas_nb.training import TrainConfig, load_state, preset_config, train
from gas_nb.training.parameters import resolve
from gas_nb.training.phases import phases_left

ROOT = Path(__file__).resolve().parents[1]
GOLDEN = ROOT / "tests" / "golden"
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "examples")]

import nvidia_pickle  # noqa: E402
from fmnist_teacher.state import read_checkpoint_header  # noqa: E402

FOLDER = "read-here"
diffusers.utils.logging.disable_progress_bar()


@dataclass(frozen=True)
class Reader:
    """`prepare(folder)` writes valid files; `read(folder, given)` reads them: `given` is the name
    of the one that was broken, or a broken value. `bytes` and `structures`: which files are broken,
    and how; `values`: valid ones to break. `words`: what a message may name instead of a file.
    `may`: deeds that are its own (as of the audit hook). `errors`: further ones, in words of
    another program. `short`: inputs of a batch in the tests. `megabytes`: what its process may
    grow by."""

    what: str
    read: Callable[[Path, Any], Any]
    form: str = "file"
    prepare: Callable[[Path], Any] = lambda folder: None
    bytes: dict[str, Callable | None] = field(default_factory=dict)
    structures: dict[str, Callable] = field(default_factory=dict)
    values: tuple = ()
    words: tuple[str, ...] = ()
    may: tuple[str, ...] = ()
    errors: tuple[type, ...] = ()
    short: int = 50
    megabytes: int = 500

    def named(self, given: Any) -> list[str]:
        "One of these has to stand in a message."
        if self.values:
            return [*self.words, *_keys(given)]
        return [given, FOLDER, *self.words]


def _keys(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for key, inside in value.items():
            yield str(key)
            yield from _keys(inside)


READERS: dict[str, Reader] = {}


def reader(what: str, **facts: Any) -> Callable:
    "Register a function (folder, given) as the reader of `what`."

    def keep(read: Callable[[Path, Any], Any]) -> Callable[[Path, Any], Any]:
        READERS[what] = Reader(what, read, **facts)
        return read

    return keep


def jsons(*names: str) -> dict[str, Any]:
    return dict(bytes=dict.fromkeys(names), structures=dict.fromkeys(names, broken_json))


@lru_cache(maxsize=1)
def digits() -> Any:
    return load_teacher("digits", "cpu")


@lru_cache(maxsize=1)
def solver() -> Tableau:
    "A solver that says all that a file can say: late rows, its schedule, its figures."
    table = classic_tableau("unipc", digits().schedule, 3, "logSNR", order=2)
    late = {b: (table.A[b:, b:], table.C[b:, b:]) for b in (1, 2)}
    said = dict(schedule=digits().schedule.config, prediction="sample", teacher="digits")
    figures = dict(l1=0.1, n_eval=24, best_training_free=dict(solver="ddim", l1=0.2))
    return replace(table, meta=table.meta | said | dict(name="gs", figures=figures), late=late)


def use(table: Tableau) -> None:
    "What every program does with a solver that it has read."
    again = Tableau.from_json(Tableau.to_json(table))
    assert again.nfe == table.nfe and repr(table)
    check_schedule(table, digits().denoiser)


# ---- solvers -------------------------------------------------------------------------------------


def _solver_files(folder: Path) -> None:
    solver().save(folder / "solver.json")
    family = family_of(
        "guidance", {1.0: replace(solver(), late={}), 4.0: replace(solver(), late={})}
    )
    family.save(folder / "family.json")


@reader(
    "solver file",
    prepare=_solver_files,
    words=("was made for", "Family("),
    **jsons("solver.json", "family.json"),
)
def _(folder: Path, name: str) -> None:
    table = load_tableau(folder / name)
    use(table)
    if table.nfe == 3 and hasattr(table, "at"):
        table.at(2.0)


@reader(
    "solver for export",
    prepare=_solver_files,
    **jsons("solver.json", "family.json"),
)
def _(folder: Path, name: str) -> None:
    source = source_of(folder / name)
    assert source.lines() and source.name


def _saved_scheduler(folder: Path) -> None:
    GASScheduler.from_tableau(solver(), card=dict(teacher="digits")).save_pretrained(folder)


@reader("solver folder", prepare=_saved_scheduler, **jsons("scheduler_config.json"))
def _(folder: Path, name: str) -> None:
    found = load_solver(folder)
    assert repr(found.tableaus)
    scheduler = GASScheduler.from_pretrained(folder)
    scheduler.set_timesteps(scheduler.nfes[0])


def _stand_in(folder: Path) -> None:
    made = shipped_scheduler().in_place_of(diffusers.DDIMScheduler())
    made.save_pretrained(folder, portable=False)


@reader("scheduler in a pipeline", prepare=_stand_in, **jsons("scheduler_config.json"))
def _(folder: Path, name: str) -> None:
    scheduler = GASScheduler.from_pretrained(folder)
    scheduler.set_timesteps(scheduler.nfes[0])


@reader(
    "scheduler that stands alone",
    prepare=_saved_scheduler,
    errors=(OSError, RecursionError),  # it is diffusers that reads the file, and says this
    # of an integer with thousands of digits Python's reader says that it is too long
    # and of a file that is no object diffusers says that a config is missing
    words=("GASScheduler", "solvers[", "prediction_type", "drop_in", "_class_name", "4300 digits")
    + ("provide a config",),
    **jsons("scheduler_config.json"),
)
def _(folder: Path, name: str) -> None:
    scheduler = PortableScheduler.from_pretrained(folder)
    scheduler.set_timesteps(scheduler.nfes[0])
    assert len(scheduler.timesteps)


def _comfyui(folder: Path) -> None:
    export(solver(), "comfyui", folder, prediction="sample")
    found = next(folder.rglob("solvers/*.json"))
    (folder / "node.json").write_bytes(found.read_bytes())


@reader("solver for ComfyUI", prepare=_comfyui, **jsons("node.json"))
def _(folder: Path, name: str) -> None:
    solvers = read_comfyui(folder / name)
    for one in solvers.values():
        steps_of(one, one["sigmas"])


# ---- pairs and runs ------------------------------------------------------------------------------


def _pairs(folder: Path) -> None:
    generate_pairs(digits(), range(12), folder, "random", shard_size=8, chunk=4)


SHARD = "pairs-00001.safetensors"


@reader(
    "pairs",
    prepare=_pairs,
    bytes={"manifest.json": None, SHARD: None},
    structures={"manifest.json": broken_json, SHARD: broken_safetensors},
)
def _(folder: Path, name: str) -> None:
    data = PairDataset(folder)
    plan_differences(data.manifest, make_plan(digits(), range(12), "random", 8, 4))
    pairs = data.tensors()
    assert len(pairs) == len(data) and repr(data)


def _pairs_unchecked(folder: Path) -> None:
    from gas_nb.data.folder import _load_shard  # noqa: F401

    _pairs(folder)


@reader(
    "pairs whose manifest was made to fit",
    prepare=_pairs_unchecked,
    bytes={SHARD: None},
    structures={SHARD: broken_safetensors},
)
def _(folder: Path, name: str) -> None:
    from gas_nb.data.folder import _load_shard

    record = PairDataset.__new__(PairDataset), json.loads((folder / "manifest.json").read_text())
    shard = next(one for one in record[1]["shards"] if one["file"] == name)
    pairs = _load_shard(folder / name, shard, record[1]["shape"])
    assert torch.isfinite(pairs.x_0).all() and pairs.x_T.dtype == torch.float32


QUICK = preset_config("quick", teacher="digits", device="cpu")


def _run(folder: Path) -> None:
    log = RunLog(folder)
    for record in log.keep(train(QUICK, digits(), folder)):
        last = record
    run = Run(folder)
    run.save_solvers(dict(gs=last.tableau))
    run.file("config.json").write_text(json.dumps(asdict(QUICK)), encoding="utf-8")
    row = dict(solver="gs", nfe=4, l1=0.1, frechet=None, spacing=None)
    run.write_metrics(dict(nfe=4, teacher="digits", rows=[row, row | dict(solver="ddim")]))
    for lock in (*folder.rglob(".lock"), *folder.rglob(".owner.json")):
        lock.unlink()


@reader(
    "checkpoint",
    prepare=_run,
    bytes={"checkpoint.safetensors": None},
    structures={"checkpoint.safetensors": broken_safetensors},
    short=10,
)
def _(folder: Path, name: str) -> None:
    distilled_from(Run(folder))
    state = load_state(QUICK, digits(), folder)
    phases_left(state)
    for which in ("ema", "gs"):
        use(state.tableau(which))


@reader(
    "run folder",
    prepare=_run,
    **jsons("config.json", "metrics.json", "solver.json", "metrics.jsonl"),
    words=("was made for",),
    short=10,
)
def _(folder: Path, name: str) -> None:
    runs_with(folder.parent, QUICK)
    records = RunLog(folder).records
    if records and name == "metrics.jsonl":
        learning_curves(records)
    assert folder_owner(folder)
    for table in bundle_of_runs(folder).tableaus:
        use(table)


# The log has a line of JSON for each step.
READERS["run folder"].structures["metrics.jsonl"] = broken_lines


def _one_run_among_others(folder: Path) -> None:
    (folder / "run-1").mkdir()
    _run(folder / "run-1")


@reader(
    "runs in the app",
    prepare=_one_run_among_others,
    **jsons("run-1/config.json", "run-1/metrics.json", "run-1/gs.json"),
    short=10,
)
def _(folder: Path, name: str) -> None:
    for one in run_solvers(folder):
        use(one.tableau) if one.tableau.meta.get("schedule") is None else repr(one.tableau)
        assert one.title
    for teacher in ("digits", "fmnist"):
        rows = sweep_rows(folder, teacher)
        json.dumps(rows, allow_nan=False)
        if any(row["solver"] != "teacher" and row.get("l1") is not None for row in rows):
            tradeoff(rows).to_json()


@reader("upload in the app", prepare=_solver_files, **jsons("solver.json"), words=("was made for",))
def _(folder: Path, name: str) -> None:
    (one,) = add_upload(str(folder / name), digits(), [])
    use(one.tableau)
    assert one.title


# ---- settings ------------------------------------------------------------------------------------

PARAMETERS = {name: default for name, (default, _) in SAID.items()}
PARAMETERS |= dict(teacher="digits", preset="quick", device="cpu")
del PARAMETERS["output_dir"]


@reader(
    "notebook parameters",
    form="value",
    values=(PARAMETERS, PARAMETERS | dict(nfe=[4, 8], budget=900, preset="cpu")),
    words=("settings", "init", "unknown", "missing", "None", "parameters"),
    # Whether output_dir can be written is tried with a nameless file.
    may=("open to write", "os.mkdir"),
)
def _(folder: Path, given: Any) -> None:
    if not isinstance(given, dict) or not all(isinstance(name, str) for name in given):
        return
    drive_each(given | dict(output_dir=str(folder)))
    resolve(given | dict(output_dir=str(folder), nfe=4))


@reader("training settings", form="value", values=(json.loads(json.dumps(asdict(TrainConfig()))),))
def _(folder: Path, given: Any) -> None:
    if isinstance(given, dict) and all(isinstance(name, str) for name in given):
        known = {k: v for k, v in given.items() if k in TrainConfig.__dataclass_fields__}
        json.dumps(asdict(TrainConfig(**known)), allow_nan=False)


@reader(
    "sweep settings",
    form="value",
    values=(json.loads(json.dumps(asdict(SweepConfig(teacher="digits", device="cpu")))),),
)
def _(folder: Path, given: Any) -> None:
    known = given if isinstance(given, dict) else {}
    known = {k: v for k, v in known.items() if k in SweepConfig.__dataclass_fields__}
    json.dumps(asdict(SweepConfig(**known | dict(device="cpu"))), allow_nan=False)


QUESTION = dict(
    teacher="digits",
    condition="none",
    guidance=1.0,
    seed=0,
    n=4,
    nfes=[4, 6],
    solvers=["ddim", "gs"],
    spacing="best",
    prompt="",
)


@reader(
    "question to the app",
    form="value",
    values=(QUESTION, QUESTION | dict(condition="mixed", guidance=2)),
    words=("class", "samples", "evaluations", "time grid", "prompt", "guidance"),
)
def _(folder: Path, given: Any) -> None:
    asked = QUESTION | (given if isinstance(given, dict) else {})
    ask = make_ask(**{name: asked[name] for name in QUESTION})
    assert ask.evaluations > 0 and len(ask.seeds) == ask.n


COMMANDS = (
    ["distil", "--nfe", "4", "--teacher", "digits", "--preset", "quick", "--seed", "1"],
    ["distil", "--nfe", "4,8", "--budget", "900", "--teacher", "digits", "--lr", "0.1"],
    ["sweep", "--teacher", "digits", "--nfes", "4 6", "--solvers", "ddim gs", "--repeats", "1"],
    ["card", "solver.json"],
    ["export", "solver.json", "--to", "numpy", "--out", "out"],
)


@reader(
    "command line",
    form="value",
    values=COMMANDS,
    prepare=_solver_files,
    words=("gas-nb", "error:"),
    may=("open to write", "os.mkdir", "os.rename", "os.remove"),
)
def _(folder: Path, given: Any) -> None:
    words = [str(word) for word in given] if isinstance(given, list) else [str(given)]
    words = [word for word in words if not word.startswith(("/", ".."))]
    words = [word for word in words if "\0" not in word and word.isprintable()]  # a shell's
    if words[:1] == ["app"]:
        return
    _said_by(words)


def _said_by(words: list[str]) -> None:
    "Run a command up to where its work begins; what it says on the error stream is a ValueError."
    from gas_nb import command

    said = io.StringIO()
    checks_only = (
        mock.patch("gas_nb.distil.distil", lambda settings: drive_each(settings)),
        mock.patch("gas_nb.sweeps.runner.Sweep.run", lambda *_: []),
        mock.patch("gas_nb.sweeps.runner.Sweep.write_results", lambda *_: _Nothing()),
        mock.patch("gas_nb.exchange.export.export", lambda *_, **__: []),
        mock.patch("gas_nb.runtime.files.write_text_atomic"),
        mock.patch("gas_nb.sweeps.runner.results_folder", lambda folder: Path(folder)),
        mock.patch("gas_nb.training.parameters.results_folder", lambda folder: Path(folder)),
        mock.patch("gas_nb.sweeps.runner.write_json_atomic"),
    )
    with contextlib.ExitStack() as stack:
        for one in checks_only:
            stack.enter_context(one)
        stack.enter_context(contextlib.redirect_stderr(said))
        stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
        try:
            status = command.main(words)
        except SystemExit as end:
            status = end.code
    if status:
        raise ValueError(said.getvalue())


class _Nothing:
    empty = True


@reader(
    "noise schedule",
    form="value",
    values=(
        NoiseSchedule.ddpm().config,
        NoiseSchedule.flow(1000, shift=3.0).config,
        NoiseSchedule.edm().config,
        NoiseSchedule.vp_linear().config,
        NoiseSchedule.discrete(betas=[0.1, 0.2, 0.3]).config,
    ),
    words=("schedule", "spacing", "betas", "grid"),
)
def _(folder: Path, given: Any) -> None:
    schedule = NoiseSchedule.from_config(given)
    assert repr(schedule) and torch.isfinite(spacing(schedule, 4, "time_uniform")).all()
    json.dumps(schedule.config)


SCHEDULERS = (
    diffusers.DDIMScheduler(clip_sample=False, set_alpha_to_one=False),
    diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
    diffusers.EulerDiscreteScheduler(),
    diffusers.DPMSolverMultistepScheduler(),
)


def _configs() -> tuple:
    return tuple(
        dict(kind=type(one).__name__)
        | {k: v for k, v in json.loads(one.to_json_string()).items() if not k.startswith("_")}
        for one in SCHEDULERS
    )


@reader(
    "scheduler of a pipeline",
    form="value",
    values=_configs(),
    words=("schedule", "training timesteps", "cheduler", "beta", "sigma"),
)
def _(folder: Path, given: Any) -> None:
    "What somebody's scheduler_config.json says, once diffusers has made a scheduler of it."
    kind = getattr(diffusers, str(given.get("kind")), None) if isinstance(given, dict) else None
    if kind not in [type(one) for one in SCHEDULERS]:
        return
    scheduler = kind()
    names = [name for name in given if isinstance(name, str) and name.isidentifier()]
    scheduler.register_to_config(**{name: given[name] for name in names if name != "kind"})
    schedule, prediction = schedule_from_scheduler(scheduler)
    assert repr(schedule) and isinstance(prediction, str)


# ---- published files and networks ----------------------------------------------------------------


@lru_cache(maxsize=1)
def _edm_case() -> tuple[dict, dict]:
    case = json.loads((GOLDEN / "edm_network.json").read_text())[0]
    with np.load(GOLDEN / "edm_network.npz") as arrays:
        start = f"{case['case']}.state."
        names = [name for name in arrays.files if name.startswith(start)]
        state = {n.removeprefix(start): torch.from_numpy(arrays[n]).float() for n in names}
    return case["kwargs"], state


def _edm(folder: Path) -> None:
    kwargs, state = _edm_case()
    net = EDMPrecond(**kwargs)
    net.load_state_dict(state)
    save_edm(net.eval(), folder / "edm.safetensors")
    published = dict(
        img_channels=3,
        model_type="SongUNet",
        embedding_type="positional",
        encoder_type="standard",
        decoder_type="standard",
        channel_mult_noise=1,
        resample_filter=[1, 1],
    )
    tree = nvidia_pickle.tree(state)
    nvidia_pickle.dump(folder / "edm.pkl", "ema", tree, "EDMPrecond", published | kwargs, 2)
    nvidia_pickle.dump(folder / "edm-4.pkl", "ema", tree, "EDMPrecond", published | kwargs, 4)


@reader(
    "EDM file",
    prepare=_edm,
    bytes={"edm.pkl": broken_pickle, "edm-4.pkl": broken_pickle, "edm.safetensors": None},
    structures={"edm.safetensors": broken_safetensors},
)
def _(folder: Path, name: str) -> None:
    assert read_edm(folder / name).model.shape


def _copy(*names: str) -> Callable[[Path], None]:
    def prepare(folder: Path) -> None:
        for name in names:
            (folder / name).write_bytes((GOLDEN / name).read_bytes())

    return prepare


CHECKPOINTS = ("official_checkpoint_0.pt", "official_checkpoint_1.pt")


@reader(
    "published checkpoint",
    prepare=_copy(*CHECKPOINTS),
    bytes=dict.fromkeys(CHECKPOINTS, broken_zip),
)
def _(folder: Path, name: str) -> None:
    solver = load_published_checkpoint(folder / name, NoiseSchedule.vp_linear())
    solver.tableau("gs")


DATA = ("official_dataset_pixel.pkl", "official_dataset_text.pkl")


@reader("published data set", prepare=_copy(*DATA), bytes=dict.fromkeys(DATA, broken_pickle))
def _(folder: Path, name: str) -> None:
    data = load_published_dataset(folder / name)
    assert repr(data) and len(data.pairs(lambda texts: torch.zeros(len(texts)))) == len(data)


def _discriminator(folder: Path) -> None:
    with np.load(GOLDEN / "r3gan_discriminator.npz") as arrays:
        start = "case00.state."
        names = [name for name in arrays.files if name.startswith(start)]
        state = {n.removeprefix(start): torch.from_numpy(arrays[n]).float() for n in names}
    save_file(state, folder / "d.safetensors")
    torch.save(state, folder / "d.pt")
    tree = nvidia_pickle.tree(state)
    nvidia_pickle.dump(folder / "d.pkl", "D", tree, "Discriminator", {}, 4)


@reader(
    "published discriminator",
    prepare=_discriminator,
    bytes={"d.safetensors": None, "d.pt": broken_zip, "d.pkl": broken_pickle},
    structures={"d.safetensors": broken_safetensors},
)
def _(folder: Path, name: str) -> None:
    load_published_discriminator(folder / name)


def _tiny_unet(folder: Path) -> None:
    unet = diffusers.UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        layers_per_block=1,
        block_out_channels=(8, 8),
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        num_class_embeds=11,
    )
    unet.save_pretrained(folder)


WEIGHTS = "diffusion_pytorch_model.safetensors"


@reader(
    "weights of an fmnist teacher",
    prepare=_tiny_unet,
    bytes={"config.json": None, WEIGHTS: None},
    structures={"config.json": broken_json, WEIGHTS: broken_safetensors},
    short=10,
)
def _(folder: Path, name: str) -> None:
    load_fmnist_teacher("cpu", folder)


def _pipeline(folder: Path) -> None:
    import pipelines

    pipelines.ddpm().save_pretrained(folder)


PIPELINE = ("model_index.json", "scheduler/scheduler_config.json", "unet/config.json")


@reader(
    "pipeline folder",
    prepare=_pipeline,
    **jsons(*PIPELINE),
    short=10,
    megabytes=2_000,  # a config may name a network of any size; diffusers' own default has 450 MB
)
def _(folder: Path, name: str) -> None:
    load_teacher(str(folder), "cpu").close()  # a session is a thread, and each takes memory


# ---- texts, pictures, statistics -----------------------------------------------------------------


def _texts(folder: Path) -> None:
    (folder / "prompts.txt").write_text("a cat\n\nein Hund, größer\n" * 20, encoding="utf-8")


@reader(
    "prompts file",
    prepare=_texts,
    bytes={"prompts.txt": None},
    structures={"prompts.txt": broken_lines},
)
def _(folder: Path, name: str) -> None:
    for found in (checked_prompts(folder / name), read_prompts(folder / name)):
        assert all(isinstance(one, str) and one.strip() for one in found)


def _picture(path: Path, size: int = 8) -> None:
    from PIL import Image

    random = np.random.default_rng(0)
    Image.fromarray(random.integers(0, 255, (size, size, 3), dtype=np.uint8)).save(path)


def _calls(folder: Path) -> None:
    _picture(folder / "picture.png")
    call = dict(prompt="a cat", guidance_scale=3.5, size=[8, 8], image=dict(file="picture.png"))
    (folder / "calls.json").write_text(json.dumps([call, call | dict(prompt="a dog")]))


@reader(
    "calls file",
    prepare=_calls,
    bytes={"calls.json": None, "picture.png": None},
    structures={"calls.json": broken_json},
)
def _(folder: Path, name: str) -> None:
    assert isinstance(calls_from_file(folder / "calls.json"), list)


PICTURES = ("1.png", "2.jpg", "3.webp", "4.bmp")


def _pictures(folder: Path) -> None:
    for name in PICTURES:
        _picture(folder / name)


@reader("folder of pictures", prepare=_pictures, bytes=dict.fromkeys(PICTURES))
def _(folder: Path, name: str) -> None:
    for batch in image_batches(folder):
        assert batch.abs().max() <= 1


def _statistics(folder: Path) -> None:
    np.savez(folder / "fid.npz", mu=np.zeros(4), sigma=np.eye(4))
    np.savez_compressed(folder / "packed.npz", mu=np.zeros(4), sigma=np.eye(4))


@reader(
    "FID statistics", prepare=_statistics, bytes={"fid.npz": broken_zip, "packed.npz": broken_zip}
)
def _(folder: Path, name: str) -> None:
    assert len(read_fid_reference(folder / name).mean)


def _idx(folder: Path) -> None:
    head = bytes([0, 0, 8, 3]) + b"".join(n.to_bytes(4, "big") for n in (2, 4, 4))
    (folder / "images").write_bytes(head + bytes(range(32)))
    (folder / "images.gz").write_bytes(gzip.compress(head + bytes(range(32)), mtime=0))


@reader("Fashion-MNIST file", prepare=_idx, bytes={"images": None, "images.gz": None})
def _(folder: Path, name: str) -> None:
    assert read_idx(folder / name, 3).ndim == 3


CLASSIFIER = ("model.safetensors", "statistics.safetensors")


def _classifier(folder: Path) -> None:
    from gas_nb.teachers.fmnist_classifier import SHIPPED

    for name in CLASSIFIER:
        (folder / name).write_bytes((ROOT / "gas_nb" / SHIPPED / name).read_bytes())


@reader(
    "classifier and its statistics",
    prepare=_classifier,
    bytes=dict.fromkeys(CLASSIFIER),
    structures=dict.fromkeys(CLASSIFIER, broken_safetensors),
    short=10,
)
def _(folder: Path, name: str) -> None:
    load_classifier("cpu", folder)
    mean, covariance, n = reference_statistics("train", folder)
    assert n > 1


# ---- sweeps and the training of a teacher --------------------------------------------------------


def _sweep(folder: Path) -> None:
    from gas_nb.metrics.reference import Reference

    config = json.loads(json.dumps(asdict(SweepConfig(teacher="digits", device="cpu"))))
    facts = dict(config=config, output_dir=str(folder.parent), runs=str(folder.parent))
    (folder / "config.json").write_text(json.dumps(facts))
    save_file(dict(mean=torch.zeros(4), covariance=torch.eye(4)), folder / "r.safetensors")
    settings = dict(teacher=json.loads(json.dumps(digits().config)), nfe=4)
    (folder / "cells").mkdir()
    path, _ = stored(folder / "cells", settings)
    path.write_text(json.dumps(dict(settings=settings, row=dict(l1=0.1))))
    path.rename(folder / "cells" / "cell.json")
    solver().save(folder / "gs.json")
    assert Reference


@reader(
    "sweep folder",
    prepare=_sweep,
    bytes={"config.json": None, "cells/cell.json": None, "gs.json": None, "r.safetensors": None},
    structures={
        "config.json": broken_json,
        "cells/cell.json": broken_json,
        "gs.json": broken_json,
        "r.safetensors": broken_safetensors,
    },
    may=("os.mkdir", "open to write"),
)
def _(folder: Path, name: str) -> None:
    from gas_nb.metrics.reference import Reference
    from gas_nb.sweeps import store

    if name == "config.json":
        with mock.patch("gas_nb.sweeps.runner.results_folder", Path):
            assert load_sweep(folder).config.nfes
    elif name == "cells/cell.json":
        settings = dict(teacher=digits().config, nfe=4)
        with mock.patch.object(store, "digest", lambda settings: "cell"):
            stored(folder / "cells", settings)
    elif name == "gs.json":
        solver_for(folder / name, digits(), 3)
    else:
        mine = Reference(torch.zeros(4), torch.eye(4))
        settle_reference(folder / name, mine, write=False)


def _teacher_training(folder: Path) -> None:
    from fmnist_teacher.config import TeacherConfig

    header = dict(step="3", config=json.dumps(asdict(TeacherConfig())))
    save_file({"raw.weight": torch.zeros(4)}, folder / "checkpoint.safetensors", header)


@reader(
    "checkpoint of a teacher's training",
    prepare=_teacher_training,
    bytes={"checkpoint.safetensors": None},
    structures={"checkpoint.safetensors": broken_safetensors},
    words=("TeacherConfig",),
)
def _(folder: Path, name: str) -> None:
    step, config = read_checkpoint_header(folder)
    assert step >= 0 and math.isfinite(config.lr)
