"""Broken files and values, a hundred for each reader, and the faults that the long form found."""

import gas_nb.runtime.device  # noqa: F401  (before diffusers)

import contextlib
import io
import json
import pickle
import sys
import tracemalloc
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

from fuzz import batch_of, tried, valid_folder  # noqa: E402
from fuzz_mutants import CANARY, PAYLOADS, Runs  # noqa: E402
from fuzz_readers import QUICK, READERS, Reader, digits, solver  # noqa: E402

from gas_nb.app.ask import make_ask  # noqa: E402
from gas_nb.app.files import add_upload  # noqa: E402
from gas_nb.app.tradeoff import sweep_rows  # noqa: E402
from gas_nb.command import card_of  # noqa: E402
from gas_nb.data import PairDataset  # noqa: E402
from gas_nb.data.identity import teacher_differences  # noqa: E402
from gas_nb.exchange.comfyui_node import read as read_comfyui  # noqa: E402
from gas_nb.exchange.export import export  # noqa: E402
from gas_nb.exchange.portable import GASScheduler as Portable  # noqa: E402
from gas_nb.exchange.published import load_published_checkpoint  # noqa: E402
from gas_nb.metrics.reference import Reference, image_batches, read_fid_reference  # noqa: E402
from gas_nb.runtime.pickles import Inert, Unreadable, module_state  # noqa: E402
from gas_nb.runtime.pickles import read_checkpoint, read_pickle  # noqa: E402
from gas_nb.schedule import NoiseSchedule  # noqa: E402
from gas_nb.sweeps.store import settle_reference, stored  # noqa: E402
from gas_nb.tableau import Tableau, check_schedule  # noqa: E402
from gas_nb.teacher import teacher_kind  # noqa: E402
from gas_nb.teachers.calls import calls_from_file, checked_prompts  # noqa: E402
from gas_nb.teachers.diffusers import load_diffusers_teacher  # noqa: E402
from gas_nb.teachers.edm import _plain  # noqa: E402
from gas_nb.teachers.fmnist import load_fmnist_teacher  # noqa: E402
from gas_nb.teachers.fmnist_classifier import load_classifier, reference_statistics  # noqa: E402
from gas_nb.teachers.paper import check_setting  # noqa: E402
from gas_nb.teachers.reading import _trained_betas  # noqa: E402
from gas_nb.training import TrainConfig, load_state  # noqa: E402


@pytest.mark.parametrize("what", READERS)
def test_a_reader_refuses_in_words_or_reads(what):
    """Two batches, one of other bytes and one of another structure, where a reader has both."""
    reader = READERS[what]
    size = reader.short
    with valid_folder(reader) as folder:
        found = [batch_of(reader, folder, number, size) for number in (0, 1)]
    lost = {words: n for tally in found for words, n in tally.reasons.items()}
    assert not lost
    assert sum(tally.tried for tally in found) == 2 * size
    assert sum(tally.refused + tally.worked for tally in found) == 2 * size
    assert what == "runs in the app" or sum(tally.refused for tally in found)
    assert max(tally.megabytes_max for tally in found) < reader.megabytes


# ---- the fuzz itself sees what it is to see ------------------------------------------------------


def _reads(what: str, read) -> Reader:
    return replace(READERS["prompts file"], what=what, read=read)


def _writes(folder, name):
    (folder / "new").write_text("")


def _runs(folder, name):
    pickle.loads(pickle.dumps(Runs(open, CANARY, "w")))


def _says_nothing(folder, name):
    raise ValueError("no")


def _says_no_remedy(folder, name):
    raise ValueError(f"{name} is bad")


def _raises(folder, name):
    raise KeyError(name)


def _fills_memory(folder, name):
    try:
        raise MemoryError
    except MemoryError:
        raise ValueError(f"{name} is too large: give another") from None


@pytest.mark.parametrize(
    "read, reason",
    [
        (_writes, "wrote"),
        (_runs, "code of the input ran"),
        (_says_nothing, "names nothing"),
        (_says_no_remedy, "no remedy"),
        (_raises, "KeyError"),
        (_fills_memory, "memory"),
    ],
)
def test_what_a_reader_must_not_do_counts_as_lost(read, reason):
    reader = _reads("wrong", read)
    with valid_folder(reader) as folder:
        found = tried(reader, folder, "prompts.txt")
    assert found.kind == "lost" and found.words.startswith(reason), found


def test_a_good_refusal_does_not():
    def read(folder, name):
        raise ValueError(f"{name} is empty: give another")

    reader = _reads("right", read)
    with valid_folder(reader) as folder:
        assert tried(reader, folder, "prompts.txt").kind == "refused"


# ---- faults that it found, each held -------------------------------------------------------------


@pytest.mark.parametrize("n", range(len(PAYLOADS)))
def test_code_in_a_file_never_runs(tmp_path, monkeypatch, n):
    monkeypatch.chdir(tmp_path)
    for protocol in (0, 2, 4):
        data = pickle.dumps(dict(noise=PAYLOADS[n]()), protocol)
        (tmp_path / "x.pkl").write_bytes(data)
        with zipfile.ZipFile(tmp_path / "x.pt", "w") as archive:
            archive.writestr("x/data.pkl", data)
            archive.writestr("x/version", "3\n")
        for read, name in ((read_pickle, "x.pkl"), (read_checkpoint, "x.pt")):
            with pytest.raises(Unreadable, match=name):
                read(tmp_path / name)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.pkl", "x.pt"]


def _saved(path: Path, content, legacy: bool) -> None:
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)


@pytest.mark.parametrize("legacy", [False, True])
def test_a_checkpoint_that_asks_for_ten_gigabytes_is_refused(tmp_path, legacy):
    _saved(tmp_path / "bomb.pt", dict(ema=Runs(bytearray, 10**10)), legacy)
    with pytest.raises(Unreadable, match="asks for builtins.bytearray"):
        read_checkpoint(tmp_path / "bomb.pt")
    inner = io.BytesIO()
    torch.save(Runs(bytearray, 10**10), inner, _use_new_zipfile_serialization=False)
    nested = Runs(torch.storage._load_from_bytes, inner.getvalue())
    (tmp_path / "nested.pkl").write_bytes(pickle.dumps(nested))
    with pytest.raises(Unreadable, match="asks for builtins.bytearray"):
        read_pickle(tmp_path / "nested.pkl")


def test_a_checkpoint_that_was_packed_is_refused(tmp_path):
    _saved(tmp_path / "plain.pt", dict(w=torch.zeros(200_000)), False)
    with zipfile.ZipFile(tmp_path / "plain.pt") as there:
        with zipfile.ZipFile(tmp_path / "packed.pt", "w", zipfile.ZIP_DEFLATED) as packed:
            for name in there.namelist():
                packed.writestr(name, there.read(name))
    assert (tmp_path / "packed.pt").stat().st_size < 10_000
    assert len(read_checkpoint(tmp_path / "plain.pt")["w"]) == 200_000
    with pytest.raises(Unreadable, match="packed"):
        read_checkpoint(tmp_path / "packed.pt")


def test_an_entry_of_a_memo_from_nowhere_is_refused(tmp_path):
    (tmp_path / "memo.pkl").write_bytes(b"\x80\x02Nr\xff\xff\xff\x7f.")
    with pytest.raises(Unreadable, match="memo comes after 1; download"):
        read_pickle(tmp_path / "memo.pkl")


def test_a_module_that_holds_itself_or_a_thousand_million_is_refused():
    one = Inert()
    one.__setstate__(dict(_modules={"again": one}))
    with pytest.raises(Unreadable, match="parts"):
        module_state(one)
    laughs = Inert()
    laughs.__setstate__(dict(_parameters={}))
    for _ in range(30):
        outer = Inert()
        outer.__setstate__(dict(_modules=dict(a=laughs, b=laughs)))
        laughs = outer
    with pytest.raises(Unreadable, match="parts"):
        module_state(laughs)
    wrong = Inert()
    wrong.__setstate__(dict(_parameters=[1]))
    with pytest.raises(Unreadable, match="_parameters is list"):
        module_state(wrong)
    deep = ["x"]
    for _ in range(40):
        deep = [deep, deep]
    with pytest.raises(ValueError, match="beyond all use"):
        _plain(deep)


def test_a_published_solver_of_a_million_steps_is_refused(tmp_path):
    vectors = [torch.zeros(1).expand(10**6), *(torch.zeros(3) for _ in range(3))]
    torch.save(dict(ema=dict(shadow_params=vectors)), tmp_path / "long.pt")
    with pytest.raises(ValueError, match="nfe=1,000,001: at most"):
        load_published_checkpoint(tmp_path / "long.pt", NoiseSchedule.vp_linear())


def test_a_solver_whose_schedule_would_fill_the_memory_is_read_and_says_nothing_of_it():
    bomb = dict(kind="ddpm", beta_start=1e-4, beta_end=0.02, steps=10**12, scaled=False)
    with pytest.raises(ValueError, match="from 2 to 100,000"):
        NoiseSchedule.from_config(bomb)
    check_schedule(replace(solver(), meta=dict(schedule=bomb)), digits().denoiser)
    for wrong in (dict(steps="x"), dict(beta_start=[]), dict(beta_end=None)):
        with pytest.raises(ValueError, match="schedule 'ddpm'"):
            NoiseSchedule.from_config(bomb | wrong)
    with pytest.raises(ValueError, match="net_time_scale"):
        NoiseSchedule.from_config(dict(kind="vp_linear", net_time_scale="x"))


def test_a_number_that_is_no_float_is_named(tmp_path):
    content = json.loads(solver().to_json())
    content["A"][0][0] = 10**400
    (tmp_path / "s.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"s\.json: A\[0\] must be a list of 1 numbers; give"):
        Tableau.load(tmp_path / "s.json")


def test_weights_with_a_tensor_missing_are_refused(tmp_path):
    READERS["weights of an fmnist teacher"].prepare(tmp_path)
    load_fmnist_teacher("cpu", tmp_path)
    path = tmp_path / "diffusion_pytorch_model.safetensors"
    state = load_file(path)
    del state["conv_in.bias"]
    save_file(state, path)
    with pytest.raises(ValueError, match="lacks conv_in.bias: give a folder"):
        load_fmnist_teacher("cpu", tmp_path)
    (tmp_path / "config.json").write_text("[")
    with pytest.raises(ValueError, match="config.json is not JSON"):
        load_fmnist_teacher("cpu", tmp_path)


def test_sizes_of_an_fmnist_teacher_that_are_no_numbers_name_its_config(tmp_path):
    READERS["weights of an fmnist teacher"].prepare(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for wrong in (float("nan"), 0, "32", None):
        (tmp_path / "config.json").write_text(json.dumps(config | dict(sample_size=wrong)))
        with pytest.raises(ValueError, match=r"config.json: sample_size=.*give a folder"):
            load_fmnist_teacher("cpu", tmp_path)


def test_a_checkpoint_that_no_step_could_go_on_from_is_refused(tmp_path):
    READERS["checkpoint"].prepare(tmp_path)
    path = tmp_path / "checkpoint.safetensors"
    load_state(QUICK, digits(), tmp_path)
    with safe_open(path, "pt") as file:
        header, state = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}
    ema = next(name for name in state if name.startswith("ema."))
    said = json.loads(header["state"])
    broken = [
        (state | {ema: state[ema] * torch.nan}, said, "ema has other entries"),
        (state | {ema: state[ema].flatten()[:1]}, said, "ema has other entries"),
        (state, said | dict(step="x"), "step='x'"),
        (state, said | dict(spent=-1), "spent=-1"),
        (state, said | dict(seconds=10**400), "seconds=1000.*must be a number"),
        (state, said | dict(late=dict(gs={"1": [[[1.0]], [[1.0]]]})), "late|shape|expected"),
    ]
    for tensors, facts, words in broken:
        save_file(tensors, path, dict(state=json.dumps(facts)))
        with pytest.raises(ValueError, match=f"(?s)checkpoint.safetensors.*({words}).*delete it"):
            load_state(QUICK, digits(), tmp_path)


@pytest.mark.parametrize("n", [10**9, 10**400])
def test_a_scheduler_of_a_billion_timesteps_is_refused_before_it_fills_the_memory(tmp_path, n):
    READERS["pipeline folder"].prepare(tmp_path)
    path = tmp_path / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | dict(num_train_timesteps=n)))
    with pytest.raises(ValueError, match="scheduler_config.json: num_train_timesteps=1000"):
        load_diffusers_teacher(tmp_path, "cpu")


@pytest.mark.parametrize("key, size", [("layers_per_block", 2**63), ("out_channels", 10**12)])
def test_a_network_that_would_be_built_for_ever_is_refused(tmp_path, key, size):
    for what, load in (
        ("pipeline folder", load_diffusers_teacher),
        (
            "weights of an fmnist teacher",
            lambda folder, device: load_fmnist_teacher(device, folder),
        ),
    ):
        folder = tmp_path / what.replace(" ", "-")
        folder.mkdir()
        READERS[what].prepare(folder)
        (path,) = [p for p in folder.rglob("config.json") if "unet" in str(p) or "fmn" in what]
        path.write_text(json.dumps(json.loads(path.read_text()) | {key: size}))
        with pytest.raises(ValueError, match=rf"config.json: {key}=\d+: at most"):
            load(folder, "cpu")


@pytest.mark.parametrize("wrong", [dict(solver="d" * 500), dict(nfe=10**400), dict(l1=1e308)])
def test_a_result_that_cannot_be_shown_is_none(tmp_path, wrong):
    READERS["runs in the app"].prepare(tmp_path)
    path = tmp_path / "run-1" / "metrics.json"
    content = json.loads(path.read_text())
    before = sweep_rows(tmp_path, "digits")
    content["rows"].append(dict(solver="ddim", nfe=4, l1=0.1) | wrong)
    path.write_text(json.dumps(content))
    assert before and sweep_rows(tmp_path, "digits") == before


def test_half_a_letter_in_a_network_s_config_can_be_printed(tmp_path):
    READERS["weights of an fmnist teacher"].prepare(tmp_path)
    path = tmp_path / "config.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | dict(down_block_types=[chr(0xD800)] * 2)))
    with pytest.raises(ValueError, match=r"holds no network .*\\ud800") as found:
        load_fmnist_teacher("cpu", tmp_path)
    assert str(found.value).encode("utf-8")


def test_statistics_of_no_images_are_refused(tmp_path):
    READERS["classifier and its statistics"].prepare(tmp_path)
    path = tmp_path / "statistics.safetensors"
    save_file(load_file(path) | {"train.n": torch.tensor(0)}, path)
    with pytest.raises(ValueError, match="statistics.safetensors holds statistics of 0 images"):
        reference_statistics("train", tmp_path)


def test_half_a_letter_in_a_saved_pipeline_does_not_spoil_the_message(tmp_path):
    READERS["pipeline folder"].prepare(tmp_path)
    path = tmp_path / "model_index.json"
    index = json.loads(path.read_text())
    scheduler = tmp_path / "scheduler" / "scheduler_config.json"
    config = json.loads(scheduler.read_text())
    scheduler.write_text(json.dumps(config | {chr(0xD800): 1}))
    with pytest.raises(ValueError, match=r"not supported with \\ud800=1") as found:
        load_diffusers_teacher(tmp_path, "cpu")
    assert str(found.value).encode("utf-8")
    path.write_text(json.dumps(index | dict(unet=[chr(0xD800), "UNet2DModel"])))
    with pytest.raises(ValueError, match="cannot be loaded as a diffusers pipeline") as found:
        load_diffusers_teacher(tmp_path, "cpu")
    assert str(found.value).encode("utf-8")


def test_a_teacher_s_name_that_no_path_can_have_is_a_name(tmp_path):
    table = replace(solver(), meta=solver().meta | dict(teacher="x" * 5_000))
    table.save(tmp_path / "solver.json")
    (one,) = add_upload(str(tmp_path / "solver.json"), digits(), [])
    assert one.title and one.teacher
    assert export(table, "comfyui", tmp_path / "node", prediction="sample")


def test_a_picture_of_a_thousand_million_pixels_is_refused_unopened(tmp_path):
    picture = bytearray(png(8, 8))
    picture[16:24] = (40_000).to_bytes(4, "big") * 2  # its head says so
    (tmp_path / "a.png").write_bytes(picture)
    (tmp_path / "calls.json").write_text('[{"image": {"file": "a.png"}}]')
    for read in (lambda: list(image_batches(tmp_path)), lambda: calls_of(tmp_path)):
        with pytest.raises(ValueError, match="a.png' is no image .*(take it out|give a PNG)"):
            read()


def calls_of(folder):
    return calls_from_file(folder / "calls.json")


def png(width, height) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (width, height)).save(file, "png")
    return file.getvalue()


def test_a_picture_that_claims_a_chunk_of_gigabytes_is_no_reason_to_take_them(tmp_path):
    picture = bytearray(png(8, 8))
    at = picture.index(b"IDAT") - 4
    picture[at : at + 4] = (2**31 - 1).to_bytes(4, "big")
    (tmp_path / "a.png").write_bytes(picture)
    tracemalloc.start()
    with contextlib.suppress(ValueError):
        list(image_batches(tmp_path))
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 50e6


def test_a_picture_of_another_size_is_named(tmp_path):
    (tmp_path / "a.png").write_bytes(png(8, 8))
    (tmp_path / "b.png").write_bytes(png(8, 9))
    with pytest.raises(ValueError, match=r"\(b.png\): make them one size"):
        list(image_batches(tmp_path))


@pytest.mark.parametrize("huge", [10**400, -(10**400)])
def test_pairs_of_a_teacher_with_answers_that_no_float_holds_are_another_s(huge):
    here = digits().config
    answers = json.loads(json.dumps(here["answers"]))
    kind = next(name for name in answers if name != "tolerance")
    answers[kind][0][0] = huge
    assert teacher_differences(here | dict(answers=answers), here)
    schedule = here["schedule"] | {name: huge for name in here["schedule"] if name != "kind"}
    assert teacher_differences(here | dict(schedule=schedule), here)


def test_a_manifest_of_two_thousand_million_seeds_is_malformed(tmp_path):
    READERS["pairs"].prepare(tmp_path)
    path = tmp_path / "manifest.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | dict(seeds=[[0, 2**31]])))
    with pytest.raises(ValueError, match="'seeds' is missing or malformed; restore it"):
        PairDataset(tmp_path)


def test_a_kept_reference_that_is_damaged_in_its_last_digits_is_made_again(tmp_path):
    covariance = torch.diag(torch.tensor([1.0, 1e-3])).double()
    mine = Reference(torch.zeros(2).double(), covariance, source="teacher")
    path = tmp_path / "reference.safetensors"
    kept = covariance.clone()
    kept[0, 1] += 1e-7
    save_file(dict(mean=mine.mean, covariance=kept), path)
    assert settle_reference(path, mine) is mine
    assert load_file(path)["covariance"].equal(covariance)


@pytest.mark.parametrize("settings", [0, [[]], None, dict(teacher=0)])
def test_a_cell_of_a_sweep_without_settings_is_another_cell(tmp_path, settings):
    asked = dict(teacher=dict(name="digits"), seed=1)
    path, known = stored(tmp_path, asked)
    assert known is None
    path.write_text(json.dumps(dict(settings=settings, row=dict(l1=0.1))))
    other, known = stored(tmp_path, asked)
    assert other != path and known is None


@pytest.mark.parametrize("name", [True, 3, [[]], "x" * 5_000])
def test_a_solver_s_name_that_is_none_does_for_a_file(tmp_path, name):
    table = replace(solver(), meta=solver().meta | dict(name=name))
    assert export(table, "comfyui", tmp_path, prediction="sample")


@pytest.mark.parametrize("length", [300, 5_000])
def test_words_that_no_path_can_be_are_no_path(length):
    name = "x" * length
    with pytest.raises(ValueError, match="teacher 'xxx.*choose"):
        teacher_kind(name)
    with pytest.raises(ValueError, match="cifar10 needs weights=.*which is not there"):
        check_setting("cifar10", name, 4)
    assert checked_prompts(name) == [name]


def test_a_name_that_takes_seconds_to_print_is_refused_at_once(tmp_path):
    READERS["published checkpoint"].prepare(tmp_path)
    path = tmp_path / "official_checkpoint_0.pt"
    torch.save(dict(a=torch.zeros(2)), path)
    with zipfile.ZipFile(path) as archive:
        parts = {part.filename: archive.read(part) for part in archive.infolist()}
    name = b"torch._u" + b'{"a":' * 2_000
    with zipfile.ZipFile(path, "w") as archive:
        for part, content in parts.items():
            archive.writestr(part, content.replace(b"torch._utils", name))
    with pytest.raises(Unreadable, match="a name in it has 10,0.. letters; download"):
        load_published_checkpoint(path, NoiseSchedule.vp_linear())


def test_a_solver_to_begin_with_that_is_none_says_what_to_give():
    with pytest.raises(ValueError, match="init: not JSON.*give what Tableau.to_json wrote"):
        TrainConfig(init="x", budget=900)


@pytest.mark.parametrize("name", ["lr", "adversarial_weight", "gamma", "discriminator_lr"])
def test_a_whole_number_that_no_float_holds_is_no_setting(name):
    with pytest.raises(ValueError, match=f"{name}=1000.*must be a number"):
        TrainConfig(**{name: 10**400})


@pytest.mark.parametrize("name", ["p", "alpha", "sigmas", "A", "late"])
def test_the_scheduler_that_stands_alone_names_the_solver_that_is_damaged(tmp_path, name):
    READERS["scheduler that stands alone"].prepare(tmp_path)
    config = json.loads((tmp_path / "scheduler_config.json").read_text())
    Portable.from_config(config)
    entry = config["solvers"]["3"]
    holder = entry if name in ("A", "late") else entry["numbers"]
    for wrong in ([1.0], None, "x", [[1.0, 2.0]]):
        holder[name] = wrong
        with pytest.raises(ValueError, match=r"solvers\['3'\] is damaged .*save it again"):
            Portable.from_config(config)


def test_the_node_for_comfyui_looks_through_its_file(tmp_path):
    READERS["solver for ComfyUI"].prepare(tmp_path)
    path = tmp_path / "node.json"
    content = json.loads(path.read_text())
    assert list(read_comfyui(path)) == ["3"]
    for wrong in (dict(sigmas=[1.0]), dict(A=None), dict(p=["x"] * 3), dict(late=[])):
        changed = dict(content, solvers={"3": content["solvers"]["3"] | wrong})
        path.write_text(json.dumps(changed))
        with pytest.raises(ValueError, match="node.json: solver '3' is damaged; export it again"):
            read_comfyui(path)


def test_the_app_draws_no_number_that_json_cannot_hold(tmp_path):
    reader = READERS["runs in the app"]
    with valid_folder(reader) as folder:
        path = folder / "run-1" / "metrics.json"
        content = json.loads(path.read_text())
        content["rows"][0] |= dict(frechet=float("inf"), l2=10**400, kid=float("nan"))
        path.write_text(json.dumps(content))
        row = sweep_rows(folder, "digits")[0]
    assert row["l1"] == 0.1 and not {"frechet", "l2", "kid"} & row.keys()


QUESTION = READERS["question to the app"].values[0]


@pytest.mark.parametrize(
    "wrong, words",
    [
        (dict(seed=float("inf")), "seed inf: give a whole number"),
        (dict(seed=True), "seed True"),
        (dict(n=float("nan")), "samples nan"),
        (dict(nfes=4), "evaluations=4: give a list"),
        (dict(solvers=None), "solvers=None: give a list"),
        (dict(teacher=["digits"]), "teacher"),
        (dict(condition=[]), r"class \[\]: digits has no such class; choose one of"),
    ],
)
def test_a_question_of_the_wrong_kind_is_refused_in_words(wrong, words):
    with pytest.raises(ValueError, match=words):
        make_ask(**QUESTION | wrong)


def test_damaged_pictures_and_statistics_name_their_file(tmp_path):
    READERS["folder of pictures"].prepare(tmp_path)
    path = tmp_path / "2.jpg"
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(ValueError, match=r"2\.jpg' is no image .*take it out"):
        list(image_batches(tmp_path))
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, dict(descr="<f8", fortran_order=False, shape=(10**11,))
    )
    with zipfile.ZipFile(tmp_path / "bomb.npz", "w") as archive:
        for name in ("mu.npy", "sigma.npy"):
            archive.writestr(name, header.getvalue())
    with pytest.raises(ValueError, match=r"bomb\.npz is no \.npz .*download it again"):
        read_fid_reference(tmp_path / "bomb.npz")


def test_a_damaged_classifier_names_its_file(tmp_path):
    READERS["classifier and its statistics"].prepare(tmp_path)
    stored = load_file(tmp_path / "statistics.safetensors")
    save_file(stored | {"train.mu": stored["train.mu"] * torch.nan}, tmp_path / "s.safetensors")
    (tmp_path / "s.safetensors").replace(tmp_path / "statistics.safetensors")
    with pytest.raises(ValueError, match="statistics.safetensors holds values that are not finite"):
        reference_statistics("train", tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"x")
    with pytest.raises(ValueError, match="model.safetensors is no file of tensors"):
        load_classifier("cpu", tmp_path)


def test_whole_numbers_too_large_for_a_float_are_refused_in_words():
    huge = 10**400
    for seed, guidance in ((huge, 1.0), (5, huge)):
        with pytest.raises(ValueError, match="seed|guidance"):
            make_ask("digits", "none", guidance, seed, 4, [4], ["ddim"], "best")
    with pytest.raises(ValueError, match="trained_betas"):
        _trained_betas([huge], 1)


def test_a_name_that_no_file_can_have_is_refused_in_words(tmp_path):
    with pytest.raises(ValueError, match="no such file or folder.*give one of them"):
        card_of(["x" * 5000])
    calls = tmp_path / "calls.json"
    calls.write_text(json.dumps([dict(image=dict(file="half\ud800.png"))]))
    with pytest.raises(ValueError, match="is no image .*give a PNG or JPEG") as refused:
        calls_from_file(calls)
    assert str(refused.value).encode()


def test_an_unknown_option_of_the_game_is_answered_with_those_there_are():
    with pytest.raises(ValueError, match="unknown options .*choose among share"):
        TrainConfig(tangent=dict(shares=0.1))


@pytest.mark.parametrize("text", ['"owner/name"', "false", "1", "[]"])
def test_a_config_that_is_a_name_is_not_looked_up_on_the_hub(tmp_path, text):
    READERS["scheduler that stands alone"].prepare(tmp_path)
    (tmp_path / "scheduler_config.json").write_text(text)
    with pytest.raises(ValueError, match="no config of a GASScheduler: give"):
        Portable.from_pretrained(tmp_path)
