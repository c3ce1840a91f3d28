"""A pipeline's own run with a learned solver in it, and how far it ends from `sample`."""

import inspect

import torch
from tiny import TINY

SEED = 0  # of the noise that both begin with, and of the images that a pipeline starts from


def call_of(pipe):
    """What the tiny pipeline is called with, as a teacher: whole runs, one sample."""
    call = TINY[type(pipe).__name__].call()
    call |= dict(strength=1.0) if "strength" in _taken(pipe) else {}
    return call | {k: call[k][:1] for k in ("class_labels",) if k in call}


def end_of(pipe, call, nfe):
    """The state after the pipeline's last step, caught at its scheduler."""
    kind, ends = type(pipe.scheduler), {}
    made = kind.step

    def step(scheduler, *args, **kwargs):
        answer = made(scheduler, *args, **kwargs)
        new = answer[0] if isinstance(answer, tuple) else answer.prev_sample
        ends[id(scheduler)] = new.detach().float().cpu().flatten().clone()
        return answer

    kind.step = step
    try:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            generator = torch.Generator().manual_seed(SEED)
            pipe(**call, num_inference_steps=nfe, **_generator(pipe, generator))
    finally:
        kind.step = made
    return torch.cat(list(ends.values()))  # of LTX-2 pictures and sound


def _generator(pipe, generator):
    return dict(generator=generator) if "generator" in _taken(pipe) else {}


def _taken(pipe):
    return inspect.signature(type(pipe).__call__).parameters


def drop_in_error(pipe, teacher, solver, call, nfe):
    """How far the pipeline with the solver as its scheduler ends from `sample`, relative."""
    tableau = solver.tableaus[nfe]
    x_T = teacher.noise([SEED], 0)
    ours = teacher.sample(x_T, torch.zeros(1, dtype=torch.long), tableau)
    ours = ours.float().cpu().flatten() * teacher.network.reading.unit
    teacher.close()
    own = pipe.scheduler
    pipe.scheduler = solver.scheduler_for(pipe)
    try:
        theirs = end_of(pipe, call, nfe)
    finally:
        pipe.scheduler = own
    return float((theirs - ours).abs().max() / ours.abs().max())
