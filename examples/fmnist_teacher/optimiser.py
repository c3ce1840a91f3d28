"""Learning rate, average of the weights, and the two optimisers."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from .config import TeacherConfig


def rate_factor(config: TeacherConfig, step: int) -> float:
    """What step 0..steps-1 takes of the full learning rate, in (0, 1].

    Linear warm-up, constant, linear decay to zero (arXiv 2404.06395)."""
    rise = (step + 1) / config.warmup_steps if config.warmup_steps else 1.0
    fall = (config.steps - step) / config.decay_steps if config.decay_steps else 1.0
    return min(1.0, rise, fall)


def built_in_guidance(config: TeacherConfig, step: int) -> float:
    """The guidance scale that step 0..steps-1 trains: 1 until the learning rate falls."""
    return config.guidance_scale if step >= config.steps - config.decay_steps else 1.0


def ema_decay(config: TeacherConfig, step: int) -> float:
    """The share of the old average kept after step `step`."""
    return min(config.ema_decay, (1 + step) / (10 + step))


@torch.no_grad()
def update_ema(average: nn.Module, network: nn.Module, decay: float) -> None:
    """average <- decay * average + (1 - decay) * network, in place."""
    torch._foreach_lerp_(list(average.parameters()), list(network.parameters()), 1.0 - decay)


def orthogonalised(m: Tensor, steps: int = 5) -> Tensor:
    """About U V^T for a matrix U S V^T, by Newton-Schulz steps of degree five.

    Singular values end between 0.7 and 1.2."""
    a, b, c = 3.4445, -4.7750, 2.0315
    tall = m.shape[0] > m.shape[1]
    x = m.mT if tall else m
    x = x / x.norm().clamp_min(1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, orthogonalised (<https://kellerjordan.github.io/posts/muon>).

    For parameters with two axes or more, of which the first counts as rows; steps have the size
    of AdamW's (arXiv 2502.16982, eq. 4)."""

    def __init__(self, params: Iterable[Tensor], lr: float, momentum: float = 0.95):
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Callable | None = None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self._move(p, group["lr"], group["momentum"])

    def _move(self, p: Tensor, lr: float, momentum: float) -> None:
        memory = self.state[p]
        if "momentum" not in memory:
            memory["momentum"] = torch.zeros_like(p)
        average = memory["momentum"].lerp_(p.grad, 1 - momentum)
        update = orthogonalised(p.grad.lerp(average, momentum).flatten(1))
        p.sub_(update.view_as(p), alpha=0.2 * max(update.shape) ** 0.5 * lr)


def make_optimizers(network: nn.Module, config: TeacherConfig) -> dict[str, torch.optim.Optimizer]:
    """Muon for the matrices inside the U-Net, AdamW for its ends, embeddings, norms and biases."""
    ends = ("conv_in", "conv_out", "class_embedding")
    matrices, others = [], []
    for name, p in network.named_parameters():
        inside = p.ndim >= 2 and not name.startswith(ends)
        (matrices if inside else others).append(p)
    adam = torch.optim.AdamW(
        others, config.vector_lr, betas=(0.9, 0.99), weight_decay=1e-4, fused=True
    )
    return {"muon": Muon(matrices, config.lr), "adam": adam}
