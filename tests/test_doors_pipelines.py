"""A pipeline's folder at every door, every time: notebook, command, sweep and app; its own noise,
its calls, and what it is asked for."""

import gas_nb.runtime.device  # noqa: F401  (before diffusers)

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny import build

from gas_nb import app, distil
from gas_nb.classic import classic_tableau
from gas_nb.data import PairDataset, generate_pairs, make_pairs, noise, noise_for
from gas_nb.drive import drive
from gas_nb.sweep import Sweep, SweepConfig
from gas_nb.tableau import Tableau
from gas_nb.teacher import load_teacher
from gas_nb.teachers.diffusers import PipelineTeacher
from gas_nb.training import TrainConfig, draw_fresh, preset_config, resolve, teacher_of

ROOT = Path(__file__).resolve().parent.parent
PROMPTS = ["a cat", "a red shoe"]
STEPS = dict(solver="unipc", nfe=3, spacing="logSNR", t_eps=1e-3, order=2, variant="bh2")
SMALL = dict(preset="quick", n_pairs=8, n_eval=4, adversarial=0, device="cpu")


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    "A folder with two saved pipelines, a file of prompts and one of calls."
    home = tmp_path_factory.mktemp("home")
    build("StableDiffusionPipeline").save_pretrained(home / "sd")
    build("WanPipeline").save_pretrained(home / "wan")
    build("DDPMPipeline").save_pretrained(home / "ddpm")
    build("DiTPipeline").save_pretrained(home / "dit")
    (home / "prompts.txt").write_text("\n".join(PROMPTS) + "\n")
    (home / "one.txt").write_text(PROMPTS[0] + "\n")
    (home / "calls.json").write_text(json.dumps([dict(guidance_scale=2.0)]))
    return home


@pytest.fixture
def pipe():
    return build("StableDiffusionPipeline")


def settings(home, output_dir, **more):
    defaults = {name: default for name, (default, _) in distil.PARAMETERS.items()}
    folder = dict(teacher=str(home / "sd"), prompts=str(home / "prompts.txt"))
    return defaults | SMALL | folder | dict(nfe=3, output_dir=str(output_dir)) | more


def words(given, prefix="--"):
    "Settings as a command's arguments."
    return [w for name, v in given.items() for w in (prefix + name.replace("_", "-"), str(v))]


def check_run(folder, nfe=3):
    rows = {row["solver"]: row for row in json.loads((folder / "metrics.json").read_text())["rows"]}
    assert {"teacher", "ddim", "unipc", "gs"} <= set(rows)
    assert all(0 <= row["l1"] < float("inf") for row in rows.values())
    assert rows["teacher"]["l1"] == 0 < rows["gs"]["l1"] < rows["ddim"]["l1"]
    assert Tableau.load(folder / "solver.json").nfe == nfe


# --- a seed's picture is the pipeline's own


def test_pairs_begin_where_the_pipeline_begins_for_that_seed(pipe):
    teacher = PipelineTeacher(pipe, prompts=PROMPTS, recipe=STEPS)
    pairs = make_pairs(teacher, [7, 3, 9], conditions="random")
    for seed, x_T, label in zip([7, 3, 9], pairs.x_T, pairs.condition):
        drawn = []

        def keep(pipe, step, time, values, drawn=drawn):
            drawn.append(values["latents"])
            return values

        generator = torch.Generator().manual_seed(seed)
        first = pipe.prepare_latents(
            1,
            4,
            pipe.unet.config.sample_size * 2,
            pipe.unet.config.sample_size * 2,
            torch.float32,
            "cpu",
            generator,
        )
        assert torch.allclose(x_T, first[0].reshape(x_T.shape), atol=1e-6), (seed, label)
    fresh = draw_fresh(teacher, TrainConfig(batch_size=3, device="cpu"), 0)
    own = teacher.noise(fresh.seeds, fresh.condition)
    assert torch.equal(fresh.x_T, own)


def test_teachers_without_noise_of_their_own_have_the_seeds_noise():
    class Bare:
        shape = (2, 3)

    assert torch.equal(noise_for(Bare(), [1, 2]), noise([1, 2], (2, 3)))
    digits = load_teacher("digits", "cpu")
    pairs = make_pairs(digits, range(3), "random")
    assert torch.equal(pairs.x_T, noise(range(3), digits.shape))


# --- what pairs cost


@pytest.mark.parametrize("n", [1, 6])
def test_pairs_cost_the_evaluations_of_their_recipe_and_no_more(pipe, n):
    teacher = PipelineTeacher(pipe, prompts=PROMPTS, recipe=STEPS, batch_size=2)
    teacher.check()
    before = teacher.network.evaluations
    assert len(make_pairs(teacher, range(n), "random")) == n
    assert teacher.network.evaluations - before == n * STEPS["nfe"]


def test_pairs_on_disk_cost_no_more_and_are_found_and_resumed(pipe, tmp_path):
    first = PipelineTeacher(pipe, prompts=PROMPTS, recipe=STEPS, batch_size=4)
    first.check()
    before = first.network.evaluations
    generate_pairs(first, range(6), tmp_path, "random", shard_size=4)
    assert first.network.evaluations - before == 6 * STEPS["nfe"]
    # Another size of batch goes on in the same folder; whole shards stay.
    second = PipelineTeacher(pipe, prompts=PROMPTS, recipe=STEPS, batch_size=1)
    second.check()
    before = second.network.evaluations
    generate_pairs(second, range(6), tmp_path, "random")
    assert second.network.evaluations == before
    (tmp_path / "pairs-00001.safetensors").unlink()
    generate_pairs(second, range(6), tmp_path, "random")
    assert second.network.evaluations - before == 2 * STEPS["nfe"]
    assert len(PairDataset(tmp_path).verify()) == 6


# --- prompts and calls


def test_every_prompt_is_called_with_every_call(home):
    (home / "whole.json").write_text(json.dumps([dict(prompt="a cat", guidance_scale=3.0)]))
    calls = str(home / "calls.json")
    own = dict(teacher=str(home / "sd"), calls=str(home / "whole.json"), device="cpu")
    assert teacher_of(preset_config("quick", **own)).calls[0]["guidance_scale"] == 3.0
    both = preset_config(
        "quick", teacher=str(home / "sd"), prompts=str(home / "prompts.txt"), calls=calls
    )
    found = teacher_of(both).calls
    assert found == [dict(guidance_scale=2.0, prompt=text) for text in PROMPTS]


WRONG = [
    (dict(prompts=""), "takes a prompt: give prompts=FILE.*or calls=FILE"),
    (dict(prompts="", calls="calls.json"), "call 0 has no prompt"),
    (dict(prompts="no.txt"), "no.txt' cannot be read"),
    (dict(calls="no.json"), "no.json' cannot be read as JSON"),
    (dict(calls="prompts.txt"), "cannot be read as JSON"),
    (dict(calls="misspelt.json"), "takes no guidance; did you mean guidance_scale"),
    (dict(calls="ours.json"), "num_inference_steps.*leave it out"),
    (dict(teacher="ddpm"), "takes no prompt: it has no text encoder"),
    (dict(teacher="dit", prompts=""), "DiTPipeline needs class_labels: give it in every call"),
    (dict(teacher="digits"), "teacher digits is no text model, leave prompts empty"),
    (dict(teacher="digits", prompts="", calls="calls.json"), "leave calls empty"),
]


@pytest.mark.parametrize(("change", "message"), WRONG, ids=[str(c) for c, _ in WRONG])
def test_wrong_calls_are_refused_before_anything_is_loaded(
    home, tmp_path, monkeypatch, change, message
):
    (home / "misspelt.json").write_text(json.dumps([dict(guidance=2.0)]))
    (home / "ours.json").write_text(json.dumps([dict(num_inference_steps=2)]))
    monkeypatch.chdir(home)
    monkeypatch.setattr("diffusers.DiffusionPipeline.from_pretrained", pytest.fail)
    given = settings(home, tmp_path / "runs") | change
    with pytest.raises(ValueError, match=message):
        resolve(given)
    with pytest.raises(ValueError, match=message):
        SweepConfig(given["teacher"], "3", "ddim", prompts=given["prompts"], calls=given["calls"])
    assert not (tmp_path / "runs").exists() or not list((tmp_path / "runs").iterdir())


def test_a_program_that_drives_is_refused_as_well(home, tmp_path):
    config = preset_config("quick", teacher=str(home / "sd"), device="cpu")
    with pytest.raises(ValueError, match="takes a prompt"):
        list(drive(config, output_dir=tmp_path))
    assert load_teacher(home / "sd", "cpu").calls == [dict(prompt="")]
    assert not list(tmp_path.iterdir())


# --- the doors


def test_a_pipeline_goes_through_the_command(home, tmp_path):
    given = settings(home, tmp_path, calls=str(home / "calls.json"))
    distil.main(words(given))
    check_run(tmp_path / "sd-nfe3-1")


def test_a_pipeline_goes_through_the_notebook(home, tmp_path):
    one = str(home / "one.txt")  # whose questions go in batches
    given = settings(home, tmp_path / "runs", adversarial=0.0, prompts=one)
    options = [w for name, value in given.items() for w in ("-p", name, str(value))]
    notebook = str(ROOT / "nbs" / "03_train_gas.ipynb")
    command = [sys.executable, "-m", "papermill", notebook, str(tmp_path / "out.ipynb")]
    command += ["--no-progress-bar", *options]
    env = os.environ | dict(PYTHONPATH=str(ROOT))
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=280, cwd=tmp_path, env=env
    )
    assert done.returncode == 0, done.stderr[-3000:]
    check_run(tmp_path / "runs" / "sd-nfe3-1")


def test_a_pipeline_goes_through_the_sweep(home, tmp_path):
    config = SweepConfig(
        str(home / "sd"),
        nfes="3",
        solvers="unipc",
        n_samples=2,
        repeats=1,
        n_search=2,
        prompts=str(home / "prompts.txt"),
        calls=str(home / "calls.json"),
        device="cpu",
    )
    sweep = Sweep(config, tmp_path)
    assert sweep.run(1, lambda line: None) == []
    frame = sweep.write_results()
    assert set(frame.solver) == {"teacher", "unipc"}
    assert (frame.l1 < float("inf")).all()


# --- the app


def put_solver(runs, teacher, home, nfe=3):
    "A run in `runs` whose settings spell the pipeline's folder in another way."
    run = runs / "mine-nfe3-1"
    run.mkdir(parents=True)
    table = classic_tableau("dpm_solver_pp", teacher.schedule, nfe)
    replace(table, meta=table.meta | dict(name="gs")).save(run / "gs.json")
    spelt = str(home / "ddpm" / ".." / "sd")
    (run / "config.json").write_text(json.dumps(dict(teacher=spelt, nfe=nfe)))


def ask_of(bench, prompt="", condition="none", **change):
    given = dict(seed=0, n=1, nfes=[3], solvers=["ddim", "gs"], spacing="best") | change
    return app.make_ask(bench.first, condition, 1.0, **given, prompt=prompt, bench=bench)


def textboxes(page):
    return [block for block in page.blocks.values() if getattr(block, "label", "") == "Prompt"]


def test_the_app_shows_my_pipeline_with_a_box_for_any_prompt(home, tmp_path):
    bench = app.Workbench(tmp_path / "runs", "cpu", teacher=str(home / "sd"))
    teacher = load_teacher(home / "sd", "cpu", recipe=STEPS)
    bench.teachers[bench.first] = teacher
    put_solver(bench.runs, teacher, home)
    boxes = textboxes(app.build(bench=bench))
    assert boxes and all(box.visible for box in boxes)
    first = app.first_question(bench)
    assert (first.n, first.nfes) == (2, (3,))
    *_, (line, page, found) = bench.compare(ask_of(bench, "a cat"))
    cells = found["cells"]
    assert "3 pictures in" in line and page.count("<button") == 2 and "The same noise" in page
    own = teacher.with_prompts(["a cat"])
    assert torch.equal(cells["teacher|3"].images, own.decode(own.generate([0])).float())
    assert cells["gs|3"].l1 > 0
    (worded,) = bench.worded.values()
    *_, (_, _, again) = bench.compare(ask_of(bench, "a cat", solvers=["unipc"]))
    assert list(bench.worded.values()) == [worded]
    *_, (_, _, other) = bench.compare(ask_of(bench, "a red shoe"))
    pictures = [f["cells"]["teacher|3"].images for f in (found, again, other)]
    assert torch.equal(pictures[0], pictures[1]) and not torch.equal(pictures[0], pictures[2])
    # What nobody gave a prompt for is not trained on the empty one.
    with pytest.raises(ValueError, match="takes a prompt: give prompts=FILE"):
        next(bench.distil(bench.first, 3))
    assert [run.name for run in bench.runs.iterdir()] == ["mine-nfe3-1"]


def test_the_app_asks_for_words_only_where_they_are_understood(home, tmp_path):
    bench = app.Workbench(tmp_path, "cpu", teacher=str(home / "ddpm"))
    assert not any(box.visible for box in textboxes(app.build(bench=bench)))
    assert bench.classes(bench.first) == []
    with pytest.raises(ValueError, match="takes no words"):
        ask_of(bench, "a cat")
    with pytest.raises(ValueError, match="the prompt has 2,001 letters"):
        replace(ask_of(bench), prompt="a" * 2001)


def test_prompts_open_no_more_than_a_few_pipelines(home, tmp_path):
    bench = app.Workbench(tmp_path, "cpu", teacher=str(home / "sd"))
    bench.teachers[bench.first] = PipelineTeacher(build("StableDiffusionPipeline"), recipe=STEPS)
    closed = []
    for word in "abcdef":
        made = bench.asked(ask_of(bench, word))
        assert made.prompts == [word]
        made.network.close = lambda word=word: closed.append(word)
    assert closed == ["a", "b"] and len(bench.worded) == 4


def test_a_film_is_compared_as_strips_of_frames(home, tmp_path):
    bench = app.Workbench(tmp_path, "cpu", teacher=str(home / "wan"))
    pipe = build("WanPipeline")
    call = dict(height=16, width=16, num_frames=5, prompt="a cat")
    bench.teachers[bench.first] = PipelineTeacher(pipe, calls=[call], recipe=STEPS)
    *_, (line, page, found) = bench.compare(ask_of(bench, nfes=[2], solvers=["ddim"]))
    images = found["cells"]["ddim|2"].images
    assert "2 pictures in" in line and images.shape[1] == 3 and images.shape[3] > images.shape[2]


def test_a_visitor_sends_words_to_the_page(home, tmp_path):
    from gradio_client import Client

    bench = app.Workbench(tmp_path, "cpu", teacher=str(home / "sd"))
    bench.teachers[bench.first] = PipelineTeacher(build("StableDiffusionPipeline"), recipe=STEPS)
    page = app.build(bench=bench)
    _, address, _ = page.launch(
        server_name="127.0.0.1", prevent_thread_lock=True, quiet=True, **app.launch_options()
    )
    try:
        visitor = Client(address, verbose=False)
        asked = (bench.first, "none", 1, 0, 1, ["2"], ["ddim"], "best", "a cat")
        told = visitor.submit(*asked, api_name="/compare")
        assert "2 pictures in" in [update[0] for update in told][-1]
    finally:
        page.close()
    assert [key[1] for key in bench.worded] == ["a cat"]


def test_the_command_of_the_app_serves_a_pipeline(home, tmp_path, monkeypatch):
    "All that `python -m gas_nb.app` does before it waits for visitors."
    served = []
    monkeypatch.setattr("gradio.Blocks.launch", lambda self, **options: served.append(self))
    monkeypatch.setattr("gas_nb.app.page.wait_for_visitors", lambda: None)
    monkeypatch.setattr("gas_nb.app.page.warm_up", lambda bench, ended: None)
    given = ["--teacher", str(home / "sd"), "--prompts", str(home / "prompts.txt")]
    app.main([*given, "--calls", str(home / "calls.json"), "--runs", str(tmp_path)])
    bench = served[0].bench
    assert bench.classes(bench.first) == PROMPTS
    assert bench.teacher(bench.first).calls[1] == dict(guidance_scale=2.0, prompt=PROMPTS[1])


# --- several numbers of evaluations from one set of pairs


def test_two_numbers_of_evaluations_share_teacher_and_pairs(tmp_path, monkeypatch):
    from gas_nb import drive as module

    loaded, made = [], []

    def load(config):
        teacher = teacher_of(config)
        loaded.append(teacher)
        sample = type(teacher).sample

        def counted(self, x_T, condition=None, tableau=None, callback=None):
            if tableau is None:
                made.append(len(x_T))
            return sample(self, x_T, condition, tableau, callback)

        monkeypatch.setattr(type(teacher), "sample", counted)
        return teacher

    monkeypatch.setattr(module, "teacher_of", load)
    given = {name: default for name, (default, _) in distil.PARAMETERS.items()} | SMALL
    given |= dict(teacher="digits", output_dir=str(tmp_path), nfe=[3, 4])
    distil.distil(given)
    assert len(loaded) == 1
    assert sum(made) == 28  # 24 training and held-out pairs, and 4 to evaluate on
    assert len(list((tmp_path / "pairs").iterdir())) == 2
    for nfe in (3, 4):
        check_run(tmp_path / f"digits-nfe{nfe}-1", nfe)


def test_the_command_takes_several_numbers_and_refuses_what_is_none(tmp_path, capsys):
    given = ["--teacher", "digits", "--output-dir", str(tmp_path), "--nfe"]
    for wrong, message in (("4,x", "must be a whole number"), ("4,0", "nfe=0"), (",", "nfe=','")):
        with pytest.raises(SystemExit) as stopped:
            distil.main([*given, wrong])
        assert stopped.value.code == 2 and message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
