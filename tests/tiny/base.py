"""What is said of a tiny pipeline, and the register of all of them."""

import gas_nb.runtime.device  # noqa: F401  (before diffusers)

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Tiny:
    """A pipeline class, small: `make()` builds it, `call()` is what a user passes to it.

    `begins`: "noise", or "image" where the run starts from one (img2img, inpainting, upscaling).
    """

    name: str
    family: str
    make: Callable[[], Any]
    call: Callable[[], dict[str, Any]]
    begins: str = "noise"
    batches: str = ""  # the argument that asks for several samples of one prompt


TINY: dict[str, Tiny] = {}


def tiny(family, call, begins="noise", batches="num_images_per_prompt"):
    "Register the function below, called like the pipeline class that it builds."

    def register(make):
        if make.__name__ in TINY:
            raise ValueError(f"{make.__name__} is registered twice")
        TINY[make.__name__] = Tiny(make.__name__, family, make, call, begins, batches)
        return make

    return register


def build(name):
    "The pipeline of that class: random weights of a fixed seed, float32, on the CPU, quiet."
    torch.manual_seed(0)
    pipe = TINY[name].make()
    if type(pipe).__name__ != name:
        raise TypeError(f"{name} is built as a {type(pipe).__name__}")
    pipe.set_progress_bar_config(disable=True)
    for module in pipe.components.values():
        if isinstance(module, torch.nn.Module):
            module.eval().requires_grad_(False)
    return pipe
