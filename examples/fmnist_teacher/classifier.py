"""Training of the garment classifier that ships with gas_nb, and its files."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from gas_nb.runtime.device import default_device
from gas_nb.runtime.files import save_safetensors_atomic
from gas_nb.teachers.fmnist_classifier import GarmentClassifier, feature_statistics
from gas_nb.teachers.fmnist_data import to_unit_range
from torch import Tensor


def random_shift(images: Tensor, generator: torch.Generator, most: int = 2) -> Tensor:
    """The images (B, C, H, W), all rolled alike by up to `most` pixels in each direction."""
    dy, dx = torch.randint(-most, most + 1, (2,), generator=generator).tolist()
    return images.roll((dy, dx), (2, 3))


def _fresh(seed: int, device: torch.device) -> GarmentClassifier:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return GarmentClassifier().to(device).train()


def train_classifier(
    images: Tensor,
    labels: Tensor,
    epochs: int = 4,
    batch_size: int = 128,
    lr: float = 5e-3,
    seed: int = 0,
    device: str = "auto",
    bfloat16: bool = False,
) -> Iterator[tuple[GarmentClassifier, dict]]:
    """Yields (network, record of step, steps, loss) after each step.

    images (N, 1, 32, 32) uint8 or floats in [-1, 1]. AdamW under a one-cycle rate (arXiv
    1708.07120)."""
    if epochs < 1 or not 2 <= batch_size <= len(images):
        raise ValueError(
            f"epochs = {epochs}, batch_size = {batch_size} for {len(images)} images: use 1 or more "
            "epochs and a batch of 2 or more images that the data can fill"
        )
    place, generator = default_device(device), torch.Generator().manual_seed(seed)
    network = _fresh(seed, place)
    per_epoch = len(images) // batch_size
    steps = epochs * per_epoch
    optimizer = torch.optim.AdamW(network.parameters(), lr=lr, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps)
    orders = [torch.randperm(len(images), generator=generator) for _ in range(epochs)]
    order = torch.cat([o[: per_epoch * batch_size] for o in orders])
    for step, batch in enumerate(order.split(batch_size), 1):
        x = random_shift(to_unit_range(images[batch]).to(place), generator)
        with torch.autocast(place.type, torch.bfloat16, enabled=bfloat16):
            loss = F.cross_entropy(network(x), labels[batch].to(place), label_smoothing=0.05)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
        yield network, {"step": step, "steps": steps, "loss": loss.item()}


def save_classifier(network: GarmentClassifier, folder: str | os.PathLike) -> Path:
    """Write `folder`/model.safetensors: parameters float16, running statistics as they are."""
    parameters = {name for name, _ in network.named_parameters()}
    tensors = {k: v.half() if k in parameters else v for k, v in network.state_dict().items()}
    return save_safetensors_atomic(Path(folder) / "model.safetensors", tensors)


def save_reference_statistics(features: dict[str, Tensor], folder: str | os.PathLike) -> Path:
    """Write `folder`/statistics.safetensors from features (N, F) by split name."""
    tensors = {}
    for split, values in features.items():
        mu, sigma, n = feature_statistics(values)
        tensors |= {f"{split}.mu": mu, f"{split}.sigma": sigma, f"{split}.n": torch.tensor(n)}
    return save_safetensors_atomic(Path(folder) / "statistics.safetensors", tensors)
