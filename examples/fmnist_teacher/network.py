"""The U-Net, fresh or with given weights, and its folder in diffusers' layout."""

from __future__ import annotations

import json
import os
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

import gas_nb.runtime.device  # noqa: F401  before diffusers, whose networks import torchvision
from diffusers import UNet2DModel
from gas_nb.runtime.files import save_safetensors_atomic, write_json_atomic
from gas_nb.teachers.fmnist import NO_LABEL, WEIGHTS

from .config import TeacherConfig


def make_network(config: TeacherConfig) -> UNet2DModel:
    """A fresh U-Net, initialised from `config.seed`.

    It takes (B, 1, size, size), timesteps 0..999 and labels 0..10, and gives the noise."""
    sides = [config.size // 2**level for level in range(len(config.widths))]
    attends = [side == config.attention_size for side in sides]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return UNet2DModel(
            sample_size=config.size,
            in_channels=1,
            out_channels=1,
            block_out_channels=config.widths,
            layers_per_block=config.layers_per_block,
            attention_head_dim=config.head_dim,
            norm_num_groups=8,
            down_block_types=["AttnDownBlock2D" if a else "DownBlock2D" for a in attends],
            up_block_types=["AttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attends)],
            num_class_embeds=NO_LABEL + 1,
        )


def starting_weights(config: TeacherConfig) -> dict[str, Tensor]:
    """The tensors in `config.start_from`, float32.

    ValueError if there are none or they are of another network than `config`'s."""
    folder, network = Path(config.start_from), make_network(config)
    told = f"TeacherConfig.start_from = {config.start_from!r}"
    try:
        theirs = dict(json.loads((folder / "config.json").read_text(encoding="utf-8")))
        weights = {name: tensor.float() for name, tensor in load_file(folder / WEIGHTS).items()}
    except (OSError, TypeError, ValueError, SafetensorError) as error:
        raise ValueError(
            f"{told}: no weights can be read there ({error}); "
            f"name a folder with config.json and {WEIGHTS}"
        ) from error
    _check_same_config(told, theirs, json.loads(network.to_json_string()))
    _check_same_tensors(told, weights, network.state_dict())
    return weights


def _check_same_config(told: str, theirs: dict, ours: dict) -> None:
    """Not only the shapes: `head_dim` and the number of groups leave no trace in them."""
    differing = []
    for key, value in ours.items():
        there = theirs.get(key, value)
        if not key.startswith("_") and there != value:
            differing.append(f"{key}: {there!r} there, {value!r} asked")
    if differing:
        raise ValueError(
            f"{told}: weights of another network ({', '.join(differing)}); ask for the same "
            "widths, layers_per_block, attention_size, head_dim and size"
        )


def _check_same_tensors(told: str, theirs: dict[str, Tensor], ours: dict[str, Tensor]) -> None:
    wrong = ours.keys() ^ theirs.keys()
    wrong |= {
        name for name in ours.keys() & theirs.keys() if ours[name].shape != theirs[name].shape
    }
    if wrong:
        raise ValueError(
            f"{told}: its tensors are not those of its config.json "
            f"({', '.join(sorted(wrong)[:3])}); write the folder anew"
        )


def save_diffusers(
    network: UNet2DModel, folder: str | os.PathLike, dtype: torch.dtype = torch.float16
) -> Path:
    """Write a U-Net in diffusers' layout to `folder`: config.json, safetensors of `dtype`.

    ValueError for weights that are not finite."""
    weights = {name: tensor.to(dtype) for name, tensor in network.state_dict().items()}
    bad = [name for name, tensor in weights.items() if not tensor.isfinite().all()]
    if bad:
        raise ValueError(
            f"weights not finite in {dtype}: {bad[:3]}; use torch.float32 or an older checkpoint"
        )
    save_safetensors_atomic(Path(folder) / WEIGHTS, weights, {"format": "pt"})
    config = json.loads(network.to_json_string())
    config.pop("_name_or_path", None)  # a folder of this machine
    write_json_atomic(Path(folder) / "config.json", config)
    return Path(folder)
