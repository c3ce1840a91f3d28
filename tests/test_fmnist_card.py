"""The model card of the fmnist teacher: its stages on small data, and the card that ships."""

import json
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image

from gas_nb.data import Pairs
from gas_nb.teacher import load_teacher
from gas_nb.teachers.fmnist_card import (
    Noises,
    card_text,
    distribution,
    fewest_steps,
    nearest_images,
    once,
    save_sheet,
    screen_recipes,
    seen_in_training,
    unchosen,
)
from gas_nb.teachers.fmnist_classifier import load_classifier

WEIGHTS = Path(__file__).resolve().parents[1] / "gas_nb" / "weights" / "fmnist"


def test_a_stage_is_measured_again_after_new_weights_or_a_broken_file(tmp_path):
    calls = []

    def measure():
        return calls.append(1) or {"n": len(calls)}

    path = tmp_path / "stage.json"
    assert (
        once(path, {"weights": "a"}, measure) == once(path, {"weights": "a"}, measure) == {"n": 1}
    )
    assert once(path, {"weights": "b"}, measure) == {"n": 2}
    path.write_text('{"settings": ')
    assert once(path, {"weights": "b"}, measure) == {"n": 3}
    assert json.loads(path.read_text())["settings"] == {"weights": "b"}


def test_recipes_with_more_steps_are_nearer_to_the_limit():
    digits = load_teacher("digits", "cpu")
    noises = Noises(
        torch.randn(20, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(20) % 10
    )
    fine = digits.sample(noises.x_T, noises.labels)
    rows = screen_recipes(
        digits, noises, fine, (5, 20), [dict(solver="unipc", spacing="logSNR", order=3)]
    )
    assert [row["nfe"] for row in rows] == [5, 20] and rows[1]["l1"] < 1e-6 < rows[0]["l1"]
    assert len(noises[:3].labels) == len(noises[:3].x_T) == 3


def test_fewest_steps_looks_at_all_rows_above():
    def row(nfe, more):
        return dict(nfe=nfe, frechet_more=more, standard_error=1.0)

    assert fewest_steps([row(20, 0.0), row(8, 1.9), row(10, 5.0), row(12, -3.0)]) == 12
    assert fewest_steps([row(8, 0.0), row(20, 3.0)]) is None


def test_neighbours_are_found_across_chunks():
    images = torch.randint(
        0, 256, (50, 1, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    sample = images[[7, 41]].float() / 127.5 - 1 + 0.01
    gaps, rows = nearest_images(sample, images, k=2, chunk=9)
    assert rows[:, 0].tolist() == [7, 41] and gaps[:, 0] == pytest.approx([0.01, 0.01], rel=1e-2)
    assert (gaps[:, 1] > gaps[:, 0]).all()
    with pytest.raises(ValueError, match="k=51: there are 50 images"):
        nearest_images(sample, images, k=51)


def test_real_images_are_as_near_as_real_images_and_noise_is_not():
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(40, 1, 32, 32, generator=generator) * 2 - 1
    images = torch.randint(0, 256, (100, 1, 32, 32), dtype=torch.uint8, generator=generator)
    found = distribution(load_classifier("cpu"), noise, torch.arange(40) % 10, images)
    assert found["n"] == 40 and len(found["shares"]) == 10 and 0 <= found["share"] <= 1
    assert found["ratio"] == pytest.approx(found["frechet"] / found["frechet_training"])
    assert found["frechet"] > 1


def test_the_grid_takes_the_first_of_every_class(tmp_path):
    n = 30
    x = torch.arange(n).view(n, 1, 1, 1).expand(n, 1, 4, 4) / n * 2 - 1
    pairs = Pairs(torch.arange(n), torch.zeros(n, 1, 4, 4), x.contiguous(), torch.arange(n) % 3)
    assert torch.equal(unchosen(pairs, each=2, classes=3), x[[0, 3, 1, 4, 2, 5]])
    save_sheet(x, tmp_path / "sheet.png", columns=10, scale=3)
    assert Image.open(tmp_path / "sheet.png").size == (3 * 51, 3 * 16)


def test_every_training_is_told_in_order():
    first = dict(
        images_seen=128_000, steps_done=2000, config=dict(batch_size=64, precision="bfloat16")
    )
    second = dict(
        images_seen=6400,
        steps_done=100,
        config=dict(batch_size=64, precision="float32", guidance_scale=1.5),
        before=dict(training=first),
    )
    assert (
        seen_in_training(first)
        == "Seen in training: 128,000 images in 2,000 steps of 64 (bfloat16)."
    )
    assert seen_in_training(second).startswith(
        seen_in_training(first)[:-1]
        + "; then, from those weights, 6,400 images in 100 steps of 64 (float32, guidance 1.5"
    )


@pytest.mark.skipif(not (WEIGHTS / "card.json").is_file(), reason="no card yet: make card")
def test_the_card_that_ships_belongs_to_the_weights_that_ship():
    figures, training = (
        json.loads((WEIGHTS / name).read_text()) for name in ("card.json", "training.json")
    )
    teacher = load_teacher("fmnist", "cpu")
    assert figures["weights"] == teacher.weights_hash
    assert (WEIGHTS / "README.md").read_text() == card_text(figures, training, teacher.class_names)
    card = ModelCard.load(WEIGHTS / "README.md")
    assert (
        card.data.library_name == "diffusers" and f"{training['images_seen']:,} images" in card.text
    )
    for picture in ("samples.png", "neighbours.png"):
        assert f"({picture})" in card.text and Image.open(WEIGHTS / picture).width >= 640
