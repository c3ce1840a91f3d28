"""The whole state of a training, and its checkpoint: one file, written atomically."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from copy import deepcopy
from dataclasses import asdict, fields, replace
from pathlib import Path

import torch
from gas_nb.runtime.files import save_safetensors_atomic
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from .config import TeacherConfig
from .network import make_network
from .optimiser import make_optimizers

CHECKPOINT = "checkpoint.safetensors"


class TrainingState:
    """Network, its average, optimisers and the number of steps done, on one device.

    `start`: weights to begin with; `build`: what makes the network of a config."""

    def __init__(
        self,
        config: TeacherConfig,
        device: torch.device,
        start: dict[str, Tensor] | None = None,
        build: Callable[[TeacherConfig], nn.Module] = make_network,
    ):
        layout = torch.channels_last if device.type == "cuda" else torch.contiguous_format
        self.config, self.device, self.step = config, device, 0
        network = build(config)
        if start:
            network.load_state_dict(start)
        self.network = network.to(device, memory_format=layout).train()
        self.average = deepcopy(self.network).eval().requires_grad_(False)
        self.optimizers = make_optimizers(self.network, config)
        self.rates = {name: o.param_groups[0]["lr"] for name, o in self.optimizers.items()}
        self.smoothed = torch.full((2,), torch.nan, device=device)  # weighted loss, plain error

    def tensors(self) -> dict[str, Tensor]:
        """All tensors of the state by name."""
        named = {f"network.{k}": v for k, v in self.network.state_dict().items()}
        named |= {f"average.{k}": v for k, v in self.average.state_dict().items()}
        for name, optimizer in self.optimizers.items():
            for index, values in optimizer.state_dict()["state"].items():
                named |= {f"{name}.{index}.{k}": v for k, v in values.items()}
        return named | {"smoothed": self.smoothed}

    def take(self, tensors: dict[str, Tensor], step: int) -> None:
        """Set the state to what `tensors()` gave after `step` steps."""
        self.network.load_state_dict(_part(tensors, "network"))
        self.average.load_state_dict(_part(tensors, "average"))
        for name, optimizer in self.optimizers.items():
            memory: dict[int, dict[str, Tensor]] = {}
            for key, value in _part(tensors, name).items():
                index, _, field = key.partition(".")
                memory.setdefault(int(index), {})[field] = value
            groups = optimizer.state_dict()["param_groups"]
            optimizer.load_state_dict({"state": memory, "param_groups": groups})
        self.smoothed.copy_(tensors["smoothed"])
        self.step = step


def _part(tensors: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    prefix = f"{name}."
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def save_checkpoint(state: TrainingState, folder: str | os.PathLike) -> Path:
    """Write the whole state to `folder`/checkpoint.safetensors, atomically."""
    header = {"step": str(state.step), "config": json.dumps(asdict(state.config))}
    return save_safetensors_atomic(Path(folder) / CHECKPOINT, state.tensors(), header)


def read_checkpoint_header(folder: str | os.PathLike) -> tuple[int, TeacherConfig]:
    """Steps done and configuration of the checkpoint in `folder`; FileNotFoundError for none."""
    path = Path(folder) / CHECKPOINT
    if not path.is_file():
        raise FileNotFoundError(f"no {CHECKPOINT} in {folder}: train first, or name another folder")
    try:
        with safe_open(path, "pt") as file:
            header = file.metadata() or {}
        names = {f.name for f in fields(TeacherConfig)}
        stored = {k: v for k, v in json.loads(header["config"]).items() if k in names}
        step, config = int(header["step"]), TeacherConfig(**stored)
        if not 0 <= step <= config.steps:
            raise ValueError(f"step {step} of {config.steps}")
    except Exception as e:  # whatever a damaged file makes of it
        reason = f"{type(e).__name__}: {e}"
        raise ValueError(
            f"{path} is not a checkpoint of the teacher's training ({reason}): delete it to start "
            "over"
        ) from None
    return step, config


def load_checkpoint(
    config: TeacherConfig, folder: str | os.PathLike, device: torch.device
) -> TrainingState:
    """The state in `folder`, to go on under `config`.

    ValueError if `config` differs in more than the end of the plan (steps, decay_steps): the result
    would be a training that no configuration describes."""
    step, stored = read_checkpoint_header(folder)
    differing = []
    for f in fields(config):
        there, asked = getattr(stored, f.name), getattr(config, f.name)
        if there != asked and f.name not in ("steps", "decay_steps"):
            differing.append(f"{f.name}: {there!r} there, {asked!r} asked")
    if differing:
        raise ValueError(
            f"the checkpoint in {folder} was made with other settings ({', '.join(differing)}): "
            "use its settings or another output_dir"
        )
    state = TrainingState(config, device)
    state.take(load_file(Path(folder) / CHECKPOINT), step)
    return state


def finish_plan(folder: str | os.PathLike, decay_steps: int) -> TeacherConfig:
    """The configuration that ends the run in `folder` by `decay_steps` of decay.

    Unchanged if its decay has begun."""
    step, stored = read_checkpoint_header(folder)
    if decay_steps < 1:
        raise ValueError(
            f"decay_steps = {decay_steps}: use 1 or more, "
            f"a tenth to a fifth of the {step} steps done"
        )
    if step >= stored.steps - stored.decay_steps:
        return stored
    return replace(stored, steps=step + decay_steps, decay_steps=decay_steps)
