"""Every choice that decides the weights of a teacher, in one frozen dataclass."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TeacherConfig:
    """What decides the weights of a teacher: the U-Net, the plan of the training, and the seed.

    ValueError names field, value and remedy for settings that cannot be trained."""

    widths: tuple[int, ...] = (32, 64, 96, 96)  # channels at 32x32, 16x16, 8x8, 4x4
    layers_per_block: int = 1
    attention_size: int = 8  # the side in pixels at which self-attention is used
    head_dim: int = 16
    size: int = 32
    steps: int = 4067
    decay_steps: int = 2700  # the last steps, in which the learning rate goes to zero
    warmup_steps: int = 100
    batch_size: int = 64
    lr: float = 3e-3  # of the matrices, by Muon
    vector_lr: float = 1.5e-3  # of all else, by AdamW
    ema_decay: float = 0.9995
    label_dropout: float = 0.1
    min_snr_gamma: float = 20.0  # 0: the plain loss
    guidance_scale: float = 1.0  # built into labelled predictions during the decay; 1: none
    start_from: str = ""  # folder of weights, in diffusers' layout, to begin with; "": fresh ones
    seed: int = 0
    precision: str = "auto"  # "float32", "bfloat16", or "auto": bfloat16 on CUDA

    def __post_init__(self) -> None:
        object.__setattr__(self, "widths", tuple(int(w) for w in self.widths))
        _check_network(self)
        _check_plan(self)
        _check_loss(self)


def _need(config: TeacherConfig, name: str, ok: bool, remedy: str) -> None:
    if not ok:
        raise ValueError(f"TeacherConfig.{name} = {getattr(config, name)!r}: {remedy}")


def _check_network(config: TeacherConfig) -> None:
    for name in ("layers_per_block", "steps", "batch_size", "head_dim"):
        _need(config, name, getattr(config, name) >= 1, "use 1 or more")
    wide = bool(config.widths) and all(w > 0 and w % 8 == 0 for w in config.widths)
    _need(config, "widths", wide, "use multiples of 8")
    halves = config.size % 2 ** (len(config.widths) - 1) == 0
    _need(config, "size", halves, "it must halve at every level of widths")
    _need(config, "start_from", isinstance(config.start_from, str), "use the folder's name")


def _check_plan(config: TeacherConfig) -> None:
    _need(config, "warmup_steps", config.warmup_steps >= 0, "use 0 or more")
    fits = 0 <= config.decay_steps <= config.steps
    _need(config, "decay_steps", fits, f"use 0..steps = {config.steps}")
    for name in ("lr", "vector_lr"):
        _need(config, name, 0 < getattr(config, name) < 1, "use a value in (0, 1), such as 1e-3")
    _need(config, "ema_decay", 0 <= config.ema_decay < 1, "use a value in [0, 1)")
    known = config.precision in ("auto", "float32", "bfloat16")
    _need(config, "precision", known, 'use "auto", "float32" or "bfloat16"')


def _check_loss(config: TeacherConfig) -> None:
    _need(config, "label_dropout", 0 <= config.label_dropout <= 1, "use a probability")
    _need(config, "min_snr_gamma", config.min_snr_gamma >= 0, "use 0 (off) or about 5")
    _need(config, "guidance_scale", config.guidance_scale >= 1, "use 1 (off) or about 1.5")
    possible = config.guidance_scale == 1 or config.label_dropout > 0
    _need(config, "guidance_scale", possible, "guidance needs label_dropout above 0")
