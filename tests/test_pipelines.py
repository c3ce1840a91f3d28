"""A dozen of the most used pipelines, tiny: read, distilled, and the solver put back. The rest of
the classes on demand: one shard of them a family."""

import gas_nb.runtime.device  # noqa: F401  (before diffusers)

import json
import os
import warnings
from pathlib import Path

import pytest
from dropin_runs import call_of, drop_in_error
from tiny import TINY, build, video

from gas_nb.front import distil_solver
from gas_nb.teachers.diffusers import PipelineTeacher
from gas_nb.teachers.experts import experts_of

MOST_USED = (
    "StableDiffusionPipeline",
    "StableDiffusionXLPipeline",
    "StableDiffusion3Pipeline",
    "FluxPipeline",
    "QwenImagePipeline",
    "ZImagePipeline",
    "WanPipeline",
    "HunyuanVideoPipeline",
    "LTXPipeline",
    "CogVideoXPipeline",
    "StableAudioPipeline",
    "FluxKontextPipeline",
    "StableDiffusionControlNetPipeline",
)
REST = [name for name in TINY if name not in MOST_USED]
FAMILIES = sorted({TINY[name].family for name in REST})
RESULTS = Path(__file__).resolve().parents[1] / "benchmarks" / "results" / "pipelines.json"
ALIKE = 1e-5
ON_DEMAND = pytest.mark.skipif(
    not os.environ.get("EVERY_PIPELINE"), reason="half an hour: with EVERY_PIPELINE=1"
)


def distilled(name, nfe=3, budget=1300):
    "(relative error of the drop-in, L1, L1 of the best training-free) of a class."
    pipe = build(name)
    call = call_of(pipe)
    teacher = PipelineTeacher(pipe, calls=[call], batch_size=4)
    teacher.check()
    solver = distil_solver(teacher, nfe=nfe, budget=budget, progress=None)
    (row,) = solver.figures
    return drop_in_error(pipe, teacher, solver, call, nfe), row["l1"], row["training_free_l1"]


def start_of(said):
    "The words of a refusal, without its numbers."
    return "".join(letter for letter in said[:40] if not letter.isdigit())


@pytest.mark.parametrize("name", MOST_USED)
def test_a_solver_for_a_much_used_pipeline(name):
    off, l1, free = distilled(name)
    assert off <= ALIKE and l1 <= free


@ON_DEMAND
@pytest.mark.parametrize("family", FAMILIES)
def test_a_solver_for_every_pipeline_of_a_family(family):
    known = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for name in (name for name in REST if TINY[name].family == family):
        row = known.get(name, {})
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if "refused" in row:
                with pytest.raises(ValueError) as refused:
                    pipe = build(name)
                    PipelineTeacher(pipe, calls=[call_of(pipe)], batch_size=4).check()
                assert start_of(str(refused.value)) == start_of(row["refused"]), name
                continue
            off, l1, free = distilled(name, nfe=4, budget=2000)
        assert l1 <= free, name
        # What the table says is further away than others stays where it was.
        assert off <= max(ALIKE, 2 * row.get("drop_in", 0.0)), name


def test_of_two_experts_each_has_its_steps():
    "Wan 2.2 changes its network where the time falls below 0.875 of the training's."
    pipe, call = video.wan_two_experts(), TINY["WanPipeline"].call()
    solver = distil_solver(pipe, nfe=4, calls=[call], budget=2000, progress=None)
    (row,) = solver.figures
    asked = dict(transformer=[], transformer_2=[])
    for name in asked:
        net = getattr(pipe, name)
        net.register_forward_pre_hook(lambda module, args, name=name: asked[name].append(0))
    guided = 2 if call.get("guidance_scale", 5.0) > 1 else 1
    pipe.scheduler = solver.scheduler_for(pipe)
    pipe(**call, num_inference_steps=4, output_type="latent")
    counts = {name: len(found) // guided for name, found in asked.items()}
    assert counts == {name: len(steps) for name, steps in row["experts"].items()}
    assert sorted(sum(row["experts"].values(), [])) == [0, 1, 2, 3] and all(counts.values())
    assert "steps of transformer_2: " in repr(solver)
    assert experts_of(build("WanPipeline"), solver.tableaus[4], solver.schedule) == {}
