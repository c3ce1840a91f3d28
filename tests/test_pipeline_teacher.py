"""A teacher from any pipeline: what it asks and costs, and that it leaves the pipeline alone."""

import gas_nb.runtime.device  # noqa: F401  (before diffusers)

import copy
import pickle

import pipelines
import pytest
import torch
from tiny import TINY, build

from gas_nb.classic import ddim
from gas_nb.schedule import spacing
from gas_nb.teachers.diffusers import PipelineTeacher
from gas_nb.teachers.network import PipelineNetwork

PROMPTS = ["a red shoe", "a bag"]
SMALL = dict(guidance_scale=2.0, size=16)
SHAPES = ["WanPipeline", "FluxPipeline", "StableAudioPipeline", "StableDiffusionPAGPipeline"]


def seeded(*seeds):
    made = [torch.Generator().manual_seed(seed) for seed in seeds]
    return made if len(made) > 1 else made[0]


def steps_of(teacher, nfe=3):
    return ddim(teacher.schedule, spacing(teacher.schedule, nfe, "time_uniform"))


def text_teacher(**options):
    return PipelineTeacher(pipelines.stable_diffusion(), prompts=PROMPTS, **SMALL, **options)


class Count:
    """Rows that a module answered, and how often it was called."""

    def __init__(self, module):
        self.rows = self.calls = 0
        self.handle = module.register_forward_pre_hook(self.add, with_kwargs=True)

    def add(self, module, args, given):
        first = next(v for v in (*args, *given.values()) if isinstance(v, torch.Tensor))
        self.rows += len(first)
        self.calls += 1


def condition_of(pipe):
    """What may not change: attributes, components, configs, processors, modes."""
    parts = {k: v for k, v in pipe.components.items() if isinstance(v, torch.nn.Module)}
    return dict(
        vars=dict(vars(pipe)),
        configs={
            k: dict(v.config)
            for k, v in pipe.components.items()
            if isinstance(getattr(v, "config", None), dict)
        },
        scheduler={
            k: v.clone() if isinstance(v, torch.Tensor) else v
            for k, v in vars(pipe.scheduler).items()
        },
        processors={k: dict(getattr(v, "attn_processors", {})) for k, v in parts.items()},
        modes={k: v.training for k, v in parts.items()},
        hooks={k: len(v._forward_hooks) + len(v._forward_pre_hooks) for k, v in parts.items()},
    )


def assert_unchanged(pipe, before):
    now = condition_of(pipe)
    own, then = now.pop("scheduler"), dict(before)
    for name, value in then.pop("scheduler").items():
        same = own[name] is value or not isinstance(value, torch.Tensor) and own[name] == value
        assert same or torch.equal(own[name], value), name
    attributes, earlier = now.pop("vars"), then.pop("vars")
    assert attributes.keys() == earlier.keys()
    assert all(attributes[k] is earlier[k] or attributes[k] == earlier[k] for k in earlier)
    assert now == then


# --- what it asks


@pytest.mark.parametrize("name", ["ddpm", "stable_diffusion", "stable_diffusion_3", "flux"])
def test_a_seed_begins_and_ends_where_the_pipelines_own_call_does(name):
    """Its own scheduler, DDIM or Euler's steps of a flow, from its own generator."""
    pipe = getattr(pipelines, name)()
    text = name != "ddpm"
    teacher = PipelineTeacher(pipe, **(dict(prompts=PROMPTS, **SMALL) if text else {}))
    call = dict(teacher.calls[-1], num_inference_steps=10, generator=seeded(5))
    if not text:
        call |= dict(batch_size=1, output_type="np")
    else:
        call["output_type"] = "latent"
    theirs = pipe(**call).images
    if hasattr(pipe.scheduler, "alphas_cumprod"):
        times = (pipe.scheduler.timesteps.double() + 1) / 1000
        times = times if times[-1] == 1e-3 else torch.cat([times, times.new_tensor([1e-3])])
    else:
        times = pipe.scheduler.sigmas.double()
    ours = teacher.generate([5], teacher.n_classes - 1, ddim(teacher.schedule, times))
    if not text:
        ours = (ours / 2 + 0.5).clamp(0, 1).movedim(1, -1)
        theirs = torch.from_numpy(theirs)
    assert ours.shape == theirs.shape and theirs.std() > 0.01
    assert (ours - theirs).abs().max() < 1e-4 * max(1.0, float(theirs.abs().max()))


@pytest.mark.parametrize("name", SHAPES)
def test_a_state_has_the_pipelines_own_shape(name):
    pipe = build(name)
    teacher = PipelineTeacher(pipe, calls=[TINY[name].call()])
    x = teacher.noise([0, 1])
    own = {"WanPipeline": 4, "FluxPipeline": 2, "StableAudioPipeline": 2}.get(name, 3)
    assert x.shape == (2, *teacher.shape) and len(teacher.shape) == own
    assert not torch.equal(x[0], x[1]) and torch.equal(teacher.noise([1]), x[1:])
    found = teacher.sample(x, tableau=steps_of(teacher))
    assert found.shape == x.shape and found.isfinite().all()
    shown = teacher.decode(found)
    assert len(shown) == 2 and shown.ndim == 4 and -1 <= shown.min() <= shown.max() <= 1


def test_flux_states_are_packed():
    teacher = PipelineTeacher(pipelines.flux(), prompts=PROMPTS, size=16)
    assert teacher.shape == (16, 16)  # places, channels of two by two


def test_rows_of_a_batch_are_the_single_rows():
    teacher = text_teacher()
    x, labels = teacher.noise(range(6)), [0, 1, 1, 0, 1, 1]
    together = teacher.sample(x, labels, steps_of(teacher))
    for k in range(6):
        alone = teacher.sample(x[k : k + 1], labels[k], steps_of(teacher))
        assert torch.allclose(together[k : k + 1], alone, atol=1e-5)
    assert teacher.network.batch_size == teacher.batch_size == 4


def test_two_teachers_of_one_pipeline_and_two_calls_of_one_teacher_in_turns():
    pipe = pipelines.stable_diffusion()
    one = PipelineTeacher(pipe, prompts=PROMPTS, **SMALL)
    other = PipelineTeacher(pipe, prompts=["a cat"], guidance_scale=5.0, size=16)
    x, time = one.noise([0]), torch.tensor([500.0])
    labels = [torch.tensor([k]) for k in (0, 1)]
    apart = [one.network(x, time, k) for k in labels] + [other.network(x, time)]
    assert len({float(a.sum()) for a in apart}) == 3
    for _ in range(2):
        turns = [one.network(x, time, labels[0]), other.network(x, time)]
        turns.insert(1, one.network(x, time, labels[1]))
        assert all(torch.equal(a, b) for a, b in zip(turns, apart))


def test_one_call_needs_no_condition_and_guidance_is_the_calls_own():
    teacher = PipelineTeacher(pipelines.stable_diffusion(), calls=[dict(prompt="a cat")], size=16)
    assert "guidance_scale" not in teacher.calls[0] and teacher.denoiser.null_condition is None
    tableau = steps_of(teacher)
    usual = teacher.generate([0], tableau=tableau)
    strong = teacher.with_guidance(7.5)  # the pipeline's own default
    assert torch.allclose(strong.generate([0], tableau=tableau), usual, atol=1e-6)
    weak = teacher.with_guidance(1.0).generate([0], tableau=tableau)
    assert not torch.allclose(weak, usual, atol=1e-3)


def test_half_precision_pipelines_answer():
    pipe = pipelines.stable_diffusion().to(torch.bfloat16)
    teacher = PipelineTeacher(pipe, prompts=PROMPTS, **SMALL)
    x = teacher.noise([0, 1])
    assert x.dtype == torch.float32 and abs(float(x.std()) - 1) < 0.2
    found = teacher.sample(x, 0, steps_of(teacher))
    exact = text_teacher().sample(x, 0, steps_of(teacher))
    assert found.dtype == torch.float32 and found.isfinite().all()
    assert (found - exact).abs().mean() < 0.1 * exact.abs().mean()
    assert teacher.decode(found).dtype == torch.float32


# --- what it costs


@pytest.mark.parametrize(("guidance", "each"), [(1.0, 1), (2.0, 2)])
def test_evaluations_are_the_rows_asked_about_and_those_of_entering(guidance, each):
    """Under guidance the pipeline asks its network about two rows for one."""
    pipe = pipelines.stable_diffusion()
    unet = Count(pipe.unet)
    teacher = PipelineTeacher(pipe, prompts=PROMPTS, guidance_scale=guidance, size=16)
    teacher.sample(torch.randn(5, *teacher.shape), [0, 0, 0, 1, 0], steps_of(teacher, 4))
    net = teacher.network
    assert net.evaluations == 5 * 4 and net.entered == 4  # sessions of one and two, and one
    assert unet.rows == each * (net.evaluations + net.entered)


def test_a_prompt_is_encoded_once_however_many_the_questions():
    pipe = pipelines.stable_diffusion()
    teacher = PipelineTeacher(pipe, prompts=PROMPTS, **SMALL)
    x = teacher.noise([0])
    teacher.sample(x, 0, steps_of(teacher, 2))
    words = Count(pipe.text_encoder)
    teacher.sample(x, 0, steps_of(teacher, 9))
    assert words.calls == 0
    teacher.sample(x, 1, steps_of(teacher, 9))
    assert words.calls == 2  # the other prompt, and the empty one of its guidance


def test_pictures_cost_one_evaluation_a_batch():
    pipe = pipelines.stable_diffusion()
    teacher = PipelineTeacher(pipe, prompts=PROMPTS, **SMALL)
    unet = Count(pipe.unet)
    shown = teacher.decode(torch.randn(6, *teacher.shape))
    assert shown.shape == (6, 3, 16, 16) and -1 <= shown.min() <= shown.max() <= 1
    assert unet.calls == 2  # of four and of two


# --- the pipeline is left as it was


@pytest.mark.parametrize("name", ["StableDiffusionPipeline", "StableDiffusionPAGPipeline"])
def test_the_pipeline_is_left_as_it_was(name):
    pipe = build(name)
    before = condition_of(pipe)
    teacher = PipelineTeacher(pipe, calls=[TINY[name].call()])
    found = teacher.generate([0, 1], tableau=steps_of(teacher))
    teacher.decode(found)
    teacher.close()
    assert_unchanged(pipe, before)
    assert torch.equal(teacher.generate([0, 1], tableau=steps_of(teacher)), found)  # and goes on


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("name", ["StableDiffusionPipeline", "StableDiffusionPAGPipeline"])
def test_the_pipeline_is_left_as_it_was_after_an_error_in_the_network(name, error):
    pipe = build(name)
    before = condition_of(pipe)
    teacher = PipelineTeacher(pipe, calls=[TINY[name].call()])
    x = teacher.noise([0])
    found = teacher.sample(x, tableau=steps_of(teacher))

    def fails(module, args):
        raise error("in the network")

    hook = pipe.unet.register_forward_pre_hook(fails)
    with pytest.raises(error, match="in the network"):
        teacher.sample(x, tableau=steps_of(teacher))
    hook.remove()
    teacher.close()
    assert_unchanged(pipe, before)
    assert torch.equal(teacher.sample(x, tableau=steps_of(teacher)), found)


def test_an_interrupt_while_waiting_leaves_the_pipeline_as_it_was(monkeypatch):
    pipe = pipelines.stable_diffusion()
    before = condition_of(pipe)
    teacher = PipelineTeacher(pipe, prompts=PROMPTS, **SMALL)
    x = teacher.noise([0])
    found = teacher.sample(x, 0, steps_of(teacher))
    session = teacher.network.session(0, 1)
    with monkeypatch.context() as patch:
        patch.setattr(session.talk, "hear", lambda: (_ for _ in ()).throw(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            teacher.sample(x, 0, steps_of(teacher))
    assert torch.equal(teacher.sample(x, 0, steps_of(teacher)), found)
    teacher.close()
    assert_unchanged(pipe, before)


def test_a_pipeline_that_holds_another_scheduler_by_now_is_asked_alike():
    """As after a learned solver was put into it."""
    from gas_nb.interop import GASScheduler

    teacher = text_teacher()
    x = teacher.noise([0, 1])
    found = teacher.sample(x, [0, 1], steps_of(teacher))
    teacher.pipeline.scheduler = GASScheduler.from_tableau(steps_of(teacher), teacher.schedule)
    teacher.close()
    assert torch.equal(teacher.sample(x, [0, 1], steps_of(teacher)), found)
    assert teacher.decode(found).shape == (2, 3, 16, 16)


# --- copies


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda t: pickle.loads(pickle.dumps(t))])
def test_copies_answer_alike(copied):
    teacher = text_teacher()
    found = teacher.generate([0, 1], [0, 1], steps_of(teacher))
    other = copied(teacher)
    assert isinstance(other.network, PipelineNetwork) and other.network is not teacher.network
    assert torch.equal(other.generate([0, 1], [0, 1], steps_of(teacher)), found)
    assert other.calls == teacher.calls and other.config == teacher.config
    assert torch.equal(other.decode(found), teacher.decode(found))


# --- pipelines that have to be given a class


def test_a_pipeline_that_needs_a_class_has_a_call_for_each():
    teacher = PipelineTeacher(pipelines.dit())
    assert teacher.n_classes == 1000 and teacher.calls[999] == dict(class_labels=[999])
    assert teacher.generate([0], "class 999", steps_of(teacher)).isfinite().all()


def test_rows_of_a_doubled_state_are_the_single_rows():
    """Under guidance `DiTPipeline` holds all first halves before all second ones."""
    teacher = PipelineTeacher(pipelines.dit(), guidance_scale=2.0)
    x = teacher.noise([0, 1])
    assert x.shape == (2, 2, 4, 8, 8)
    found = teacher.sample(x, [7, 7], steps_of(teacher))
    alone = [teacher.sample(row[None], 7, steps_of(teacher)) for row in x]
    assert teacher.network.batch_size == 4
    assert torch.allclose(found, torch.cat(alone), atol=1e-4 * float(found.abs().max()))
    shown = torch.cat([teacher.decode(row) for row in alone])
    assert torch.allclose(teacher.decode(found), shown, atol=1e-5)
