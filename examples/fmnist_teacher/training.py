"""The loop, its records, and the folder of weights that it ends in."""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from gas_nb.runtime.device import default_device
from gas_nb.runtime.files import claimed, sweep_up, write_json_atomic, write_text_atomic
from gas_nb.teachers.fmnist import NO_LABEL, WEIGHTS
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from .config import TeacherConfig
from .loss import draw_step, loss_weights, noise_errors
from .network import save_diffusers, starting_weights
from .optimiser import built_in_guidance, ema_decay, rate_factor, update_ema
from .state import CHECKPOINT, TrainingState, load_checkpoint
from .state import read_checkpoint_header, save_checkpoint

DATA = "Fashion-MNIST, 60,000 training images, padded to 32x32 with black, scaled to [-1, 1]"


@contextmanager
def numerics(config: TeacherConfig, device: torch.device) -> Iterator[None]:
    """Autocast to bfloat16 if the precision says so, and the attention that suits the device.

    On a CPU the fused kernel is slow to go backward for so few positions with heads so narrow."""
    bf16 = config.precision == "bfloat16" or (config.precision == "auto" and device.type == "cuda")
    with ExitStack() as stack:
        stack.enter_context(torch.autocast(device.type, torch.bfloat16, enabled=bf16))
        if device.type == "cpu":
            stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        yield


def update(state: TrainingState, images: Tensor, labels: Tensor, weights: Tensor) -> None:
    """One step of the optimisers on the weighted loss, gradients clipped, then the average."""
    config = state.config
    draws = draw_step(config, state.step, len(images))
    with numerics(config, state.device):
        scale = built_in_guidance(config, state.step)
        errors = noise_errors(state.network, images, labels, draws, scale)
        loss = (errors * weights[draws.timesteps.to(state.device)]).mean()
    state.network.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(state.network.parameters(), 1.0)
    for name, optimizer in state.optimizers.items():
        optimizer.param_groups[0]["lr"] = state.rates[name] * rate_factor(config, state.step)
        optimizer.step()
    update_ema(state.average, state.network, ema_decay(config, state.step))
    new = torch.stack([loss.detach(), errors.detach().mean()])
    state.smoothed = torch.where(state.smoothed.isnan(), new, state.smoothed.lerp(new, 0.02))
    state.step += 1


def _check_data(config: TeacherConfig, images: Tensor, labels: Tensor) -> None:
    expected = (1, config.size, config.size)
    if images.ndim != 4 or tuple(images.shape[1:]) != expected or len(images) == 0:
        raise ValueError(
            f"images of shape {tuple(images.shape)} do not fit: "
            f"expected (N, *{expected}) with N >= 1"
        )
    if labels.shape != (len(images),) or labels.min() < 0 or labels.max() >= NO_LABEL:
        raise ValueError(
            f"labels of shape {tuple(labels.shape)} do not fit {len(images)} images "
            "with classes 0..9"
        )


def _start(config: TeacherConfig, folder: Path, device: torch.device) -> TrainingState:
    """The state to go on from: the checkpoint in `folder` or a fresh one.

    Writes config.json and, of `start_from`, before.json."""
    if (folder / CHECKPOINT).is_file():
        state = load_checkpoint(config, folder, device)
    elif config.start_from:
        state = TrainingState(config, device, starting_weights(config))
        write_json_atomic(folder / "before.json", _origin(Path(config.start_from)))
    else:
        state = TrainingState(config, device)
    write_json_atomic(folder / "config.json", asdict(config))
    return state


def _origin(folder: Path) -> dict:
    """Hash of the weights in `folder` and their training.json (None if there is none)."""
    told = folder / "training.json"
    return {
        "sha256": hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest(),
        "training": json.loads(told.read_text(encoding="utf-8")) if told.is_file() else None,
    }


def _finite_losses(state: TrainingState) -> tuple[float, float]:
    loss, error = state.smoothed.tolist()
    if not math.isfinite(loss):
        raise FloatingPointError(
            f"the loss is {loss} at step {state.step}: lower lr = {state.config.lr} and resume"
        )
    return loss, error


def train_teacher(
    config: TeacherConfig,
    images: Tensor,
    labels: Tensor,
    output_dir: str | os.PathLike,
    device: str = "auto",
    checkpoint_every: float = 120.0,
    stop_after_minutes: float = 0.0,
    log_every: int = 20,
) -> Iterator[dict]:
    """Train, or go on training, in `output_dir`.

    images: (N, 1, size, size) uint8 or float in [-1, 1]; labels: (N,) 0..9. Yields records of step,
    images, loss, error, lr, images_per_second. A checkpoint is written every `checkpoint_every`
    seconds and at the end; `stop_after_minutes` > 0 stops this session early, to be resumed."""
    _check_data(config, images, labels)
    state = _start(config, Path(output_dir), default_device(device))
    images, labels = images.to(state.device), labels.to(state.device)
    weights = loss_weights(config.min_snr_gamma).to(state.device, torch.float32)
    began = saved = logged = time.monotonic()
    since = state.step
    while state.step < config.steps:
        update(state, images, labels, weights)
        now = time.monotonic()
        stopped = 0 < 60 * stop_after_minutes <= now - began
        ends = stopped or state.step == config.steps
        saves = ends or now - saved >= checkpoint_every
        logs = ends or state.step % log_every == 0
        if saves or logs:
            losses = _finite_losses(state)
        if saves:
            save_checkpoint(state, output_dir)
            saved = now
        if logs:
            seconds, steps = now - logged, state.step - since
            since, logged = state.step, now
            yield _record(state, losses, steps, seconds)
        if ends:
            return


def _record(
    state: TrainingState, losses: tuple[float, float], steps: int, seconds: float
) -> dict[str, Any]:
    config, (loss, error) = state.config, losses
    return {
        "step": state.step,
        "images": state.step * config.batch_size,
        "loss": loss,
        "error": error,
        "lr": config.lr * rate_factor(config, state.step - 1),
        "images_per_second": steps * config.batch_size / max(seconds, 1e-9),
    }


def run_training(
    config: TeacherConfig,
    images: Tensor,
    labels: Tensor,
    output_dir: str | os.PathLike,
    **options: Any,
) -> Iterator[dict]:
    """`train_teacher`, with its records also appended to `output_dir`/metrics.jsonl.

    ValueError if another process trains there."""
    folder = Path(output_dir)
    with claimed(folder):
        kept = kept_metrics(folder)
        write_text_atomic(folder / "metrics.jsonl", "".join(json.dumps(r) + "\n" for r in kept))
        with open(folder / "metrics.jsonl", "a") as file:
            for record in train_teacher(config, images, labels, folder, **options):
                print(json.dumps(record), file=file, flush=True)
                yield record


def kept_metrics(folder: str | os.PathLike) -> list[dict]:
    """The records in `folder`/metrics.jsonl up to its checkpoint's step.

    A killed session may have done steps after its last checkpoint, and its last line may be cut."""
    file = Path(folder) / "metrics.jsonl"
    if not file.is_file() or not (Path(folder) / CHECKPOINT).is_file():
        return []
    done, records = read_checkpoint_header(folder)[0], []
    for line in file.read_text().splitlines():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return [record for record in records if record["step"] <= done]


def learning_curve(records: list[dict], points: int = 60) -> list[dict]:
    """At most about `points` of a run's records as images, hours spent and noise error."""
    hours, seen, curve = 0.0, 0, []
    for record in records:
        hours += (record["images"] - seen) / record["images_per_second"] / 3600
        seen = record["images"]
        curve.append({"images": seen, "hours": round(hours, 3), "error": round(record["error"], 5)})
    return curve[::-1][:: max(1, math.ceil(len(curve) / points))][::-1]


def export_weights(
    run: str | os.PathLike, folder: str | os.PathLike, dtype: torch.dtype = torch.float16
) -> Path:
    """Export the averaged network of the run in `run` to `folder`, with training.json.

    That holds steps done, settings, losses and curve; of weights that began with others, theirs
    under `before`."""
    step, config = read_checkpoint_header(run)
    sweep_up(folder)
    state = load_checkpoint(config, run, torch.device("cpu"))
    loss, error = state.smoothed.tolist()
    training = {
        "data": DATA,
        "parameters": sum(p.numel() for p in state.average.parameters()),
        "steps_done": step,
        "images_seen": step * config.batch_size,
        "loss": loss,
        "noise_error": error,
        "config": asdict(config),
        "curve": learning_curve(kept_metrics(run)),
    }
    if config.start_from:
        training["before"] = json.loads((Path(run) / "before.json").read_text())
    write_json_atomic(Path(folder) / "training.json", training)
    return save_diffusers(state.average, folder, dtype)


def training_stages(training: dict) -> list[dict]:
    """The trainings that weights went through, the first one first, from their training.json."""
    before = (training.get("before") or {}).get("training")
    return [*(training_stages(before) if before else ()), training]
