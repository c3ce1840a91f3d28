"""Odd pipelines: refused in words, at once, with nothing written; those that only look odd work."""

import gas_nb.runtime.device  # noqa: F401  (before diffusers)

import json
import re
import shutil
import threading
import time

import diffusers
import hostile
import pipelines
import pytest
import torch
from hostile import changed, flow, odd, saying

from gas_nb import distil
from gas_nb.front import distil_solver
from gas_nb.teachers.diffusers import PipelineTeacher

SECONDS = 5


def on_meta():
    pipe = odd()
    pipe.net.to("meta")
    return pipe


class Linear(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(4, 4)

    def forward(self, x, t):
        return self.linear(x) + x * torch.as_tensor(t) / 1000


def float8():
    return odd(net=Linear().requires_grad_(False).to(torch.float8_e4m3fn))


def ddim(**config):
    return odd(scheduler=changed(diffusers.DDIMScheduler(**hostile.PLAIN), **config))


def trained(beta):
    return odd(scheduler=diffusers.DDIMScheduler(trained_betas=[beta] * 1000))


def moving(**config):
    return odd(scheduler=changed(flow(), **config), net=hostile.FlowNet())


def with_scheduler(name, **options):
    return lambda: odd(scheduler=getattr(diffusers, name)(**options))


def kind(name):
    return lambda: odd(getattr(hostile, name))


REFUSED = {
    # no pipeline, or none with one scheduler
    "no pipeline": (lambda: object(), "is no pipeline of diffusers"),
    "nothing": (lambda: None, "is no pipeline of diffusers"),
    "no scheduler": (lambda: hostile.Bare(hostile.Net()), "has no scheduler"),
    "scheduler is None": (lambda: hostile.Odd(None, hostile.Net()), "has no scheduler"),
    "two schedulers": (
        lambda: hostile.Several(diffusers.DDIMScheduler(), diffusers.DDIMScheduler()),
        "is made of several .prior, decoder.",
    ),
    "several pipelines": (kind("Combined"), "is made of several .prior_pipe."),
    # no process with an equation
    "LCM": (with_scheduler("LCMScheduler"), "consistency or distilled"),
    "TCD": (with_scheduler("TCDScheduler"), "consistency or distilled"),
    "consistency": (with_scheduler("CMStochasticIterativeScheduler"), "consistency or distilled"),
    "SCM": (with_scheduler("SCMScheduler"), "consistency or distilled"),
    "VQ": (with_scheduler("VQDiffusionScheduler", num_vec_classes=5), "a discrete process"),
    "Amused": (with_scheduler("AmusedScheduler", mask_token_id=1), "a discrete process"),
    "unknown class": (
        lambda: odd(scheduler=hostile.OwnStepping(**hostile.PLAIN)),
        "this scheduler cannot be followed",
    ),
    "step needs more": (
        lambda: odd(scheduler=hostile.NeedsMore(**hostile.PLAIN)),
        "missing 1 required positional argument: 'picture'",
    ),
    # malformed configs
    "unknown prediction": (lambda: ddim(prediction_type="score"), "prediction_type 'score'"),
    "negative times": (lambda: ddim(num_train_timesteps=-5), "-5 training timesteps"),
    "betas NaN": (lambda: ddim(beta_start=float("nan")), "beta_start=nan"),
    "trained betas NaN": (lambda: trained(float("nan")), "alphas_cumprod must fall strictly"),
    "trained betas above one": (lambda: trained(2.0), "alphas_cumprod must fall strictly"),
    "noise beyond numbers": (lambda: trained(0.5), "cannot be asked.*overflow"),
    "negative times of a flow": (lambda: moving(num_train_timesteps=-5), "num_train_timesteps=-5"),
    "endless flow": (lambda: moving(sigma_max=float("inf")), "sigma_max=inf"),
    # its loop
    "no number of steps": (kind("WithoutSteps"), "takes no num_inference_steps"),
    "no step": (kind("EndsAtOnce"), "came to an end"),
    "three steps": (kind("EndsEarly"), "came to an end"),
    "two shapes": (kind("Reshapes"), r"with \(1, 48\)"),
    "part of the state": (kind("AnotherShape"), r"with \(1, 3, 4, 2\)"),
    "another batch": (kind("Grows"), r"changes its state.*to \(2, 3, 4, 4\)"),
    "mask": (kind("Masks"), "overwrites a part of its state"),
    "second scheduler": (kind("Copies"), "two solvers in one loop"),
    "state of lists": (kind("NoTensor"), "a state of list"),
    "no state": (kind("Nothing"), "a state of NoneType"),
    "integer state": (kind("WholeNumbers"), "a state of torch.int64"),
    "other names in step": (kind("StepsOtherwise"), "step without model_output"),
    "times copied": (kind("CopiesTimes"), "does not see the times"),
    "times of a flow copied": (
        lambda: odd(hostile.CopiesTimes, flow(), hostile.FlowNet()),
        "does not see the times",
    ),
    "catches everything": (kind("SwallowsAll"), "catches every exception"),
    "catches everything, a flow": (
        lambda: odd(hostile.SwallowsAll, flow(), hostile.FlowNet()),
        "catches every exception",
    ),
    # its answers
    "momentum": (kind("Momentum"), "depends on the question before"),
    "cache": (kind("Caches"), "depends on the question before"),
    "noise": (kind("Draws"), "differently the second time"),
    "guidance by number": (kind("ByNumber"), "depend on the number of the step"),
    "NaN": (lambda: odd(saying(lambda out: out * float("nan"))), "not finite"),
    "inf": (lambda: odd(saying(lambda out: out / 0)), "not finite"),
    "constant": (lambda: odd(saying(lambda out: out * 0 + 1)), "all questions alike"),
    "narrow": (lambda: odd(saying(lambda out: out[..., :2])), "no prediction of a sample"),
    "wide": (lambda: odd(saying(lambda out: out.repeat(1, 3, 1, 1))), "no prediction of a sample"),
    "complex": (lambda: odd(saying(lambda out: out.cfloat())), "answers with torch.complex64"),
    "integers": (lambda: odd(saying(lambda out: out.long())), "answers with torch.int64"),
    "None": (lambda: odd(saying(lambda out: None)), "answers with NoneType"),
    "raises": (lambda: odd(saying(hostile.fails)), "RuntimeError: expected mat1 and mat2"),
    # its weights
    "meta": (on_meta, "cannot be asked.*device meta"),
    "float8": (float8, "cannot be asked.*Float8"),
}


def still_running():
    "The threads that are inside a pipeline."
    return {t for t in threading.enumerate() if "_run_pipeline" in t.name}


def refusal(make, **options):
    "The words by which a pipeline is refused; nothing of it goes on, and it is as it was."
    pipe = make()
    before, running = dict(getattr(pipe, "__dict__", {})), still_running()
    begun = time.perf_counter()
    with pytest.raises(ValueError) as refused:
        PipelineTeacher(pipe, **options).check()
    assert time.perf_counter() - begun < SECONDS
    assert still_running() <= running
    assert getattr(pipe, "__dict__", {}) == before
    return str(refused.value)


@pytest.mark.parametrize("name", REFUSED)
def test_an_odd_pipeline_is_refused_in_words_at_once(name):
    make, words = REFUSED[name]
    said = refusal(make)
    assert re.search(words, said), said


CALLS = {
    "unknown": (dict(calls=[dict(scal=1.0)]), "takes no scal; did you mean scale"),
    "ours": (dict(calls=[dict(generator=None)]), "call 0 has generator"),
    "no text": (dict(prompts=["a cat"]), "takes no prompt: it has no text encoder"),
    "late": (dict(calls=[dict(strength=0.5)]), "strength=0.5"),
    "no dict": (dict(calls=[3]), "calls holds .3.: every one"),
    "text": (dict(calls="scale"), "give a list of dicts"),
}


@pytest.mark.parametrize("name", CALLS)
def test_wrong_calls_are_refused_in_words_at_once(name):
    options, words = CALLS[name]
    said = refusal(odd, **options)
    assert re.search(words, said), said


def test_calls_of_a_text_pipeline_are_refused_in_words_at_once():
    two = refusal(pipelines.stable_diffusion, calls=[dict(prompt=["a cat", "a dog"])])
    assert "2 entries in prompt" in two
    sizes = [dict(prompt="a", width=16, height=16), dict(prompt="a", width=32, height=16)]
    assert "make samples of one size" in refusal(pipelines.stable_diffusion, calls=sizes)
    odd_prompt = [dict(prompt=3, width=16, height=16)]
    assert "prompt" in refusal(pipelines.stable_diffusion, calls=odd_prompt)


ACCEPTED = {
    "DDPM": with_scheduler("DDPMScheduler", clip_sample=False),
    "EulerAncestral": with_scheduler("EulerAncestralDiscreteScheduler"),
    "sde": with_scheduler("DPMSolverMultistepScheduler", algorithm_type="sde-dpmsolver++"),
    "a list of times": kind("ListsTimes"),
    "catches Exception": kind("Swallows"),
    "a second loop": kind("RunsTwice"),
    "double precision": lambda: odd(saying(lambda out: out.double())),
    "a flow": moving,
}


@pytest.mark.parametrize("name", ACCEPTED)
def test_a_pipeline_that_only_looks_odd_is_asked(name):
    running = still_running()
    teacher = PipelineTeacher(ACCEPTED[name]())
    teacher.check()
    assert teacher.generate([0]).isfinite().all()
    teacher.close()
    assert still_running() <= running


def test_a_quantised_network_is_asked():
    quantised = torch.ao.quantization.quantize_dynamic(Linear(), {torch.nn.Linear}, torch.qint8)
    teacher = PipelineTeacher(odd(net=quantised))
    assert teacher.trial.repeats == 0
    teacher.close()


@pytest.mark.parametrize("error", [RuntimeError, KeyError])
def test_a_network_that_fails_once_is_asked_again(error):
    "Without a close in between: the session that failed is over."
    pipe = odd()
    teacher = PipelineTeacher(pipe)
    x = teacher.noise([0])
    found = teacher.sample(x)

    def fail(module, args):
        raise error("once")

    hook = pipe.net.register_forward_pre_hook(fail)
    with pytest.raises(error, match="once"):
        teacher.sample(x)
    hook.remove()
    assert torch.equal(teacher.sample(x), found)
    teacher.close()


# --- through the doors


@pytest.mark.parametrize("name", ["momentum", "mask", "catches everything", "raises", "LCM"])
def test_distilling_an_odd_pipeline_ends_in_words_before_any_work(name, tmp_path, monkeypatch):
    make, words = REFUSED[name]
    monkeypatch.chdir(tmp_path)
    running = still_running()
    monkeypatch.setattr("gas_nb.front.make_pairs", pytest.fail)
    with pytest.raises(ValueError, match=words):
        distil_solver(make(), nfe=3, budget=1300, progress=None)
    assert not list(tmp_path.iterdir()) and still_running() <= running


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "ddpm"
    pipelines.ddpm().save_pretrained(folder)
    return folder


def edited(folder, name, **config):
    file = folder / name
    file.write_text(json.dumps(json.loads(file.read_text()) | config))


SCHEDULER = "scheduler/scheduler_config.json"
FOLDERS = {
    "LCM": (
        "model_index.json",
        dict(scheduler=["diffusers", "LCMScheduler"]),
        "consistency or distilled",
    ),
    "prediction": (SCHEDULER, dict(prediction_type="score"), "'score'"),
    "times": (SCHEDULER, dict(num_train_timesteps=-5), "cannot be loaded as a diffusers pipeline"),
    "betas": (SCHEDULER, dict(beta_start=float("nan")), "beta_start=nan"),
    "no scheduler": ("model_index.json", dict(scheduler=[None, None]), "has no scheduler"),
    "unknown class": ("model_index.json", dict(_class_name="Odd"), "names no pipeline"),
}


@pytest.mark.parametrize("name", FOLDERS)
def test_the_command_refuses_an_odd_folder_and_writes_nothing(name, saved, tmp_path, capsys):
    file, config, words = FOLDERS[name]
    shutil.copytree(saved, tmp_path / "odd")
    edited(tmp_path / "odd", file, **config)
    runs = tmp_path / "runs"
    given = ["--teacher", str(tmp_path / "odd"), "--output-dir", str(runs), "--device", "cpu"]
    given += ["--preset", "quick", "--adversarial", "0", "--nfe", "3"]
    begun = time.perf_counter()
    with pytest.raises((SystemExit, ValueError)) as stopped:
        distil.main(given)
    assert time.perf_counter() - begun < SECONDS
    said = capsys.readouterr().err + str(stopped.value)
    assert words in said, said
    assert {path.name for path in runs.rglob("*")} <= {".lock"}


def test_the_command_tries_a_pipeline_before_it_makes_pairs(saved, tmp_path, capsys, monkeypatch):
    "What the folder does not tell: here, that the network answers with NaN."
    from gas_nb.teachers import diffusers as module

    loaded = module._load_pipeline

    def broken(*given):
        pipe = loaded(*given)
        pipe.unet.conv_out.bias.data.fill_(float("nan"))
        return pipe

    monkeypatch.setattr(module, "_load_pipeline", broken)
    monkeypatch.setattr("gas_nb.drive.kept_pairs", pytest.fail)
    given = ["--teacher", str(saved), "--output-dir", str(tmp_path), "--device", "cpu"]
    given += ["--preset", "quick", "--adversarial", "0", "--nfe", "3"]
    with pytest.raises(SystemExit):
        distil.main(given)
    assert "not finite" in capsys.readouterr().err
    assert {path.name for path in tmp_path.rglob("*")} <= {".lock"}
