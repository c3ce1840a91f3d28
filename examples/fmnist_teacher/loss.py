"""What one step draws, and the weighted error of the predicted noise."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from gas_nb.teachers.fmnist import NO_LABEL
from gas_nb.teachers.fmnist_data import to_unit_range
from torch import Tensor, nn

from .config import TeacherConfig


def ddpm_alphas_cumprod() -> Tensor:
    """The 1,000 products of 1 - beta_t, betas linear from 1e-4 to 0.02, float64."""
    return torch.cumprod(1.0 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)


def loss_weights(gamma: float) -> Tensor:
    """Weight of the noise error at each timestep, float64 (1000,).

    min(SNR, gamma) / SNR (Min-SNR, arXiv 2303.09556, eq. 8), or ones if `gamma` is 0."""
    snr = ddpm_alphas_cumprod() / (1 - ddpm_alphas_cumprod())
    return snr.clamp(max=gamma) / snr if gamma > 0 else torch.ones_like(snr)


@dataclass(frozen=True)
class Draws:
    """What one step draws: image indices, timesteps, noise and which labels are hidden."""

    indices: Tensor
    timesteps: Tensor
    noise: Tensor
    hidden: Tensor


def draw_step(config: TeacherConfig, step: int, n_images: int) -> Draws:
    """The draws of step `step`, on the CPU, a function of (seed, step) alone.

    The timesteps are one uniform offset plus a regular grid (arXiv 2107.00630, appendix I.1)."""
    state = np.random.SeedSequence((config.seed, step)).generate_state(1, np.uint64)
    generator = torch.Generator().manual_seed(int(state[0] >> np.uint64(1)))
    batch = config.batch_size
    grid = (torch.rand(1, generator=generator) + torch.arange(batch) / batch) % 1.0
    return Draws(
        torch.randint(n_images, (batch,), generator=generator),
        (grid * 1000).long().clamp(max=999),
        torch.randn(batch, 1, config.size, config.size, generator=generator),
        torch.rand(batch, generator=generator) < config.label_dropout,
    )


def noise_errors(
    network: nn.Module,
    images: Tensor,
    labels: Tensor,
    draws: Draws,
    guidance_scale: float = 1.0,
) -> Tensor:
    """Mean square error of the predicted noise, per image (B,); uint8 images or [-1, 1].

    With a `guidance_scale` s the network is asked for g = n + s (c - n), n being its own prediction
    without a label, as a constant, and c = n + (g - n) / s is held against the noise
    (guidance-free training, arXiv 2501.15420)."""
    device = images.device
    timesteps, noise = draws.timesteps.to(device), draws.noise.to(device)
    indices = draws.indices.to(device)
    clean = to_unit_range(images[indices])
    shown = labels[indices].masked_fill(draws.hidden.to(device), NO_LABEL)
    a = ddpm_alphas_cumprod().to(device)[timesteps].view(-1, 1, 1, 1)
    noisy = a.sqrt().float() * clean + (1 - a).sqrt().float() * noise

    def predicted_for(label: Tensor) -> Tensor:
        return network(noisy, timesteps, class_labels=label, return_dict=False)[0].float()

    predicted = predicted_for(shown)
    if guidance_scale != 1:
        with torch.no_grad():
            null = predicted_for(torch.full_like(shown, NO_LABEL))
        predicted = null + (predicted - null) / guidance_scale
    return (predicted - noise).square().mean((1, 2, 3))
