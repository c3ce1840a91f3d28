"""What the teacher's samples are worth, and the model card that says so."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch
from gas_nb.classic import classic_tableau
from gas_nb.data import Pairs
from gas_nb.metrics import frechet_distance, l1
from gas_nb.runtime.files import atomic_path, write_json_atomic
from gas_nb.tableau import Tableau
from gas_nb.teachers import Teacher
from gas_nb.teachers.fmnist_classifier import (
    GarmentClassifier,
    accuracy,
    extract_features,
    feature_statistics,
    reference_statistics,
)
from gas_nb.teachers.fmnist_data import to_bytes
from huggingface_hub import ModelCardData
from PIL import Image
from torch import Tensor
from torchvision.utils import make_grid

from .training import training_stages


def once(path: str | os.PathLike, settings: dict, measure: Callable[[], dict]) -> dict:
    """What `measure()` returned under the same `settings` (JSON): from the file `path`, or anew."""
    path = Path(path)
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        kept = {}
    if kept.get("settings") != settings:
        kept = {"settings": settings, "figures": measure()}
        write_json_atomic(path, kept)
    return kept["figures"]


# --- how many steps it takes

RECIPES = tuple(
    dict(solver=solver, spacing=spacing, order=order)
    for solver, order in (("unipc", 3), ("dpm_solver_pp", 3), ("dpm_solver_pp", 2))
    for spacing in ("logSNR", "time_uniform", "edm")
)


def recipe_tableau(teacher: Teacher, recipe: dict) -> Tableau:
    """The tableau of a recipe: solver, nfe, spacing, order and so on, on the teacher's schedule."""
    return classic_tableau(schedule=teacher.schedule, t_eps=teacher.t_eps, **recipe)


@dataclass(frozen=True)
class Noises:
    """What every recipe starts from: x_T (n, ...) and labels (n,)."""

    x_T: Tensor
    labels: Tensor

    def __getitem__(self, rows: slice) -> Noises:
        return Noises(self.x_T[rows], self.labels[rows])


def screen_recipes(
    teacher: Teacher,
    noises: Noises,
    goal: Tensor,
    nfes: Sequence[int],
    recipes: Sequence[dict] = RECIPES,
) -> list[dict]:
    """For each of `nfes` the mean L1 distance of every recipe to `goal` (n, ...).

    Rows of solver, spacing, order, nfe, l1."""
    rows = []
    for nfe in nfes:
        for recipe in recipes:
            tableau = recipe_tableau(teacher, dict(recipe, nfe=nfe))
            x = teacher.sample(noises.x_T, noises.labels, tableau).cpu()
            rows.append(dict(recipe, nfe=nfe, l1=l1(x, goal).mean().item()))
    return rows


def frechet_difference(
    features: Tensor, goal: Tensor, reference: tuple, resamples: int = 200, seed: int = 0
) -> tuple[float, float]:
    """How much further `features` (n, F) are from `reference` than `goal` (n, F), and the error.

    By the Frechet distance to a mean and a covariance; the standard error is a bootstrap's, both
    resampled alike."""

    def larger(rows: Tensor) -> float:
        one, other = (feature_statistics(v[rows])[:2] for v in (features, goal))
        return frechet_distance(*one, *reference) - frechet_distance(*other, *reference)

    n, generator = len(goal), torch.Generator().manual_seed(seed)
    drawn = [larger(torch.randint(n, (n,), generator=generator)) for _ in range(resamples)]
    return larger(torch.arange(n)), torch.tensor(drawn).std().item()


def fewest_steps(rows: Sequence[dict]) -> int | None:
    """The smallest nfe from which on no row is more than two standard errors worse, or None."""
    fine = None
    for row in sorted(rows, key=lambda row: -row["nfe"]):
        if row["frechet_more"] > 2 * row["standard_error"]:
            break
        fine = row["nfe"]
    return fine


# --- samples


def distribution(
    classifier: GarmentClassifier, samples: Tensor, labels: Tensor, images: Tensor, seed: int = 0
) -> dict:
    """How close `samples` (n, 1, 32, 32) come to the test images, and whose class they have.

    Frechet distances of the samples and of n training `images` drawn by `seed`, their ratio, and
    the share of samples that the classifier assigns to their label, in all and by class."""
    test = reference_statistics("test")[:2]
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(images), generator=generator)[: len(samples)]

    def frechet(x: Tensor) -> float:
        return frechet_distance(*feature_statistics(extract_features(classifier, x))[:2], *test)

    ours, theirs, shares = frechet(samples), frechet(images[chosen]), []
    for k in range(10):
        of_class = labels == k
        if of_class.any():
            shares.append(accuracy(classifier, samples[of_class], labels[of_class]))
    return dict(
        n=len(samples),
        frechet=ours,
        frechet_training=theirs,
        ratio=ours / theirs,
        share=accuracy(classifier, samples, labels),
        shares=shares,
    )


def unchosen(pairs: Pairs, each: int = 10, classes: int = 10) -> Tensor:
    """The first `each` samples of every class, class by class (up to classes * each, ...)."""
    return torch.cat([pairs.x_0[pairs.condition == k][:each] for k in range(classes)])


def save_sheet(images: Tensor, path: str | os.PathLike, columns: int, scale: int = 2) -> Path:
    """Images (n, 1, H, W) in [-1, 1] as one PNG, `columns` to a row, enlarged `scale` times."""
    pixels = to_bytes(make_grid(images, columns, padding=1, pad_value=1.0))[0]
    sheet = Image.fromarray(pixels.numpy())
    size = (sheet.width * scale, sheet.height * scale)
    with atomic_path(path) as temporary:
        sheet.resize(size, Image.Resampling.NEAREST).save(temporary, format="PNG")
    return Path(path)


@torch.no_grad()
def nearest_images(
    samples: Tensor, images: Tensor, k: int = 3, chunk: int = 5000
) -> tuple[Tensor, Tensor]:
    """Distances (n, k) and indices (n, k) of the `images` (N, ...) uint8 nearest to `samples`.

    Distances are root mean squares per pixel, in units of [-1, 1]."""
    if not 1 <= k <= len(images):
        raise ValueError(f"k={k}: there are {len(images)} images, use 1 to {len(images)}")
    flat, distances = samples.flatten(1).float(), []
    for part in images.split(chunk):
        distances.append(torch.cdist(flat, part.flatten(1).float() / 127.5 - 1))
    near = torch.cat(distances, 1).topk(k, largest=False)
    return near.values / flat.shape[1] ** 0.5, near.indices


@torch.no_grad()
def milliseconds(teacher: Teacher, batch: int = 64, repeats: int = 15) -> dict:
    """Median milliseconds of a network call on `batch` samples, with the threads torch has."""
    x = torch.randn(batch, *teacher.shape, device=teacher.device)
    label = torch.zeros(batch, dtype=torch.long, device=teacher.device)
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        teacher.denoiser(x, 0.5, 0.0, label).sum().item()
        times.append(1000 * (time.perf_counter() - start))
    call = median(times[1:])
    return dict(
        batch=batch,
        threads=torch.get_num_threads(),
        device=teacher.device.type,
        call=call,
        image=call / batch,
    )


# --- the card


def figures_table(figures: dict) -> str:
    """How close the samples are to real images, whose class they have, what a call costs."""
    d, g, p = (figures[k] for k in ("distribution", "guided", "price"))
    guided = f"the same under guidance {g['scale']:g}"
    if g["scale"] < 1:
        guided = f"the same with the built-in guidance taken back, by guidance {g['scale']:.3g}"
    features = f"classifier features (not FID), {d['n']:,} samples"
    call = f"a call on {p['batch']} images, {p['threads']} {p['device'].upper()} threads"
    rows = [
        (f"Frechet distance to the test images, {features}", f"{d['frechet']:.3f}"),
        (f"the same of {d['n']:,} training images", f"{d['frechet_training']:.3f}"),
        ("ratio", f"{d['ratio']:.1f}"),
        (
            f"samples that the classifier assigns to their class ({d['n']:,})",
            f"{100 * d['share']:.1f} %",
        ),
        (f"{guided} ({g['n']:,})", f"{100 * g['share']:.1f} %"),
        ("the classifier on real test images", "92.2 %"),
        (call, f"{p['call']:.0f} ms, {p['image']:.1f} ms per image"),
    ]
    return "\n".join(["| | |", "| --- | --- |", *(f"| {what} | {value} |" for what, value in rows)])


def steps_table(recipe: dict) -> str:
    """How far fewer evaluations are from many: which are enough, and a Markdown table."""
    chosen, many, fewest = recipe["rows"][0], recipe["reference"], recipe["fewest"]
    enough = f"None of these is within noise (two standard errors) of {many} steps."
    if fewest:
        enough = (
            f"From {fewest} evaluations on, the Frechet distance is within noise "
            f"(two standard errors) of that of {many} steps."
        )
    lines = [
        f"{chosen['solver']} of order {chosen['order']} on the spacing {chosen['spacing']}, "
        f"against {many} steps from the same noises.",
        "",
        enough,
        "",
        f"| evaluations | L1 to {many} steps | Frechet distance, more than those |",
        "| --- | --- | --- |",
    ]
    for r in recipe["rows"]:
        more = f"{r['frechet_more']:+.3f} ± {r['standard_error']:.3f}"
        lines.append(f"| {r['nfe']} | {r['l1']:.4f} | {more} |")
    return "\n".join(lines)


_NOTEBOOK = "nbs/examples/fmnist_teacher/train.ipynb"
_CARD = """---
{header}
---

# fmnist: garments from noise

A `UNet2DModel` of {parameters:,} parameters that predicts the noise in 32x32 grey images of
Fashion-MNIST, given one of ten classes or none (label 10). Made to be the teacher of few-step
solvers in gas_nb: small enough to be called thousands of times on a CPU. {seen}
Seeds and all settings are in `training.json`; {program} trained it.

![a hundred samples that were not chosen](samples.png)

## Figures

{figures}

| class | of the class asked for |
| --- | --- |
{shares}

## Steps

{steps}

## Does it copy?

![samples and their nearest training images](neighbours.png)

First row: one sample per class. Below each: its three nearest training images. The median distance
to the nearest is {gap:.3f} (root mean square per pixel, values in [-1, 1]); from a training image
to the nearest other one it is {real_gap:.3f}.

## Limits

Small grey garments, nothing else. What the data lack (colours, people, other cultures' clothes) the
model lacks too.
"""


def guided_interval(training: dict) -> tuple[int, int] | None:
    """The timesteps (first, one after the last) guidance was built into; None: all of them."""
    interval = tuple(training.get("guidance_interval") or (0, 1000))
    return None if interval == (0, 1000) else interval


def seen_in_training(training: dict) -> str:
    """Images and steps of every training of the weights, the first one first, in words."""
    told = []
    for stage in training_stages(training):
        config = stage["config"]
        scale = config.get("guidance_scale", 1.0)
        built_in = "" if scale == 1 else f", guidance {scale:g} built into the labelled predictions"
        if interval := guided_interval(stage):
            built_in += f" of timesteps {interval[0]} to {interval[1] - 1}"
        told.append(
            f"{stage['images_seen']:,} images in {stage['steps_done']:,} steps of "
            f"{config['batch_size']} ({config['precision']}{built_in})"
        )
    return f"Seen in training: {'; then, from those weights, '.join(told)}."


def card_text(figures: dict, training: dict, class_names: Sequence[str]) -> str:
    """The model card, Markdown with a YAML header.

    `figures`: recipe, distribution, guided, neighbours, price; `training`: training.json."""
    header = ModelCardData(
        library_name="diffusers",
        license="apache-2.0",
        tags=["diffusion", "image-generation", "gas_nb"],
        datasets=["fashion_mnist"],
    )
    shares = zip(class_names, figures["distribution"]["shares"])
    return _CARD.format(
        header=header.to_yaml(),
        figures=figures_table(figures),
        shares="\n".join(f"| {name} | {100 * share:.1f} % |" for name, share in shares),
        steps=steps_table(figures["recipe"]),
        gap=figures["neighbours"]["samples"],
        real_gap=figures["neighbours"]["real"],
        parameters=training["parameters"],
        seen=seen_in_training(training),
        program=f"`{training.get('ran', {}).get('program', _NOTEBOOK)}`",
    )
