"""The Fashion-MNIST classifier: what ships, its accuracy, its reference statistics."""

import json
from pathlib import Path

import pytest
import torch

from fmnist_teacher.classifier import (
    random_shift,
    save_classifier,
    save_reference_statistics,
    train_classifier,
)
from gas_nb.teachers import fmnist_classifier
from gas_nb.teachers.fmnist_classifier import (
    GarmentClassifier,
    accuracy,
    extract_features,
    feature_statistics,
    load_classifier,
    reference_statistics,
)
from gas_nb.teachers.fmnist_data import load_fashion_mnist

FOLDER = Path(fmnist_classifier.__file__).resolve().parents[1] / "weights" / "fmnist_classifier"


def test_part(split, n):
    "The first n images of a split, or a skip where the data are not installed."
    try:
        images, labels = load_fashion_mnist(split, download=False)
    except FileNotFoundError as error:
        pytest.skip(str(error))
    return images[:n], labels[:n]


test_part.__test__ = False


def test_what_ships_is_small_and_says_what_it_is():
    sizes = {p.name: p.stat().st_size for p in FOLDER.iterdir()}
    assert sizes["model.safetensors"] <= 2**20 and sizes["statistics.safetensors"] <= 300 * 1024
    card = json.loads((FOLDER / "model_card.json").read_text())
    assert card["accuracy_test"] >= 0.91 and "not FID" in card["note"]


def test_accuracy_on_the_first_2000_test_images():
    images, labels = test_part("test", 2000)
    assert accuracy(load_classifier(), images, labels) >= 0.90


def test_reference_statistics_are_those_of_the_data():
    images, _ = test_part("test", 10_000)
    mu, sigma, n = reference_statistics("test")
    ours = feature_statistics(extract_features(load_classifier(), images))
    assert n == ours[2] == 10_000
    torch.testing.assert_close(ours[0], mu, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(ours[1], sigma, rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize("split, count", [("train", 60_000), ("test", 10_000)])
def test_reference_statistics_are_a_mean_and_a_covariance(split, count):
    mu, sigma, n = reference_statistics(split)
    assert n == count and mu.shape == (64,) and sigma.shape == (64, 64)
    assert mu.dtype == sigma.dtype == torch.float64 and (mu >= 0).all()
    assert torch.allclose(sigma, sigma.T) and torch.linalg.eigvalsh(sigma).min() > -1e-9
    with pytest.raises(ValueError, match="'valid', there are test, train"):
        reference_statistics("valid")


def test_logits_and_features_belong_together():
    network = load_classifier()
    assert not network.training and not any(p.requires_grad for p in network.parameters())
    x = torch.rand(5, 1, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    features = network.features(x)
    assert features.shape == (5, network.n_features) and (features >= 0).all()
    torch.testing.assert_close(network(x), network.head(features))
    parts = torch.cat([network.features(part) for part in x.split(2)])
    torch.testing.assert_close(features, parts, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(
        extract_features(network, x, batch_size=2), features, rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize(
    "x",
    [
        torch.zeros(2, 1, 28, 28),
        torch.zeros(1, 32, 32),
        torch.zeros(2, 3, 32, 32),
        torch.zeros(2, 1, 32, 32, dtype=torch.uint8),
    ],
)
def test_other_images_are_refused(x):
    with pytest.raises(ValueError, match="floats"):
        load_classifier()(x)


def test_gradients_reach_the_image():
    x = torch.zeros(2, 1, 32, 32, requires_grad=True)
    load_classifier().features(x).sum().backward()
    assert x.grad.isfinite().all() and x.grad.abs().sum() > 0


def test_statistics_equal_numpys():
    features = torch.randn(50, 7, generator=torch.Generator().manual_seed(0))
    mu, sigma, n = feature_statistics(features)
    numpy = pytest.importorskip("numpy")
    assert n == 50
    torch.testing.assert_close(mu, torch.from_numpy(features.double().numpy().mean(0)))
    torch.testing.assert_close(
        sigma, torch.from_numpy(numpy.cov(features.double().numpy(), rowvar=False))
    )


def test_save_and_load_keep_half_precision_values(tmp_path):
    torch.manual_seed(0)
    draw = torch.Generator().manual_seed(0)
    network = GarmentClassifier().eval()
    save_classifier(network, tmp_path)
    loaded = load_classifier("cpu", tmp_path)
    for name, value in loaded.state_dict().items():
        torch.testing.assert_close(value, network.state_dict()[name], rtol=1e-3, atol=1e-6)
    save_reference_statistics({"train": torch.randn(99, 64, generator=draw)}, tmp_path)
    assert reference_statistics("train", tmp_path)[2] == 99
    with pytest.raises(FileNotFoundError, match="train one"):
        load_classifier("cpu", tmp_path / "none")


def test_shift_moves_the_whole_batch_by_at_most_two_pixels():
    image = torch.zeros(2, 1, 32, 32)
    image[:, 0, 16, 16] = 1
    generator = torch.Generator().manual_seed(0)
    seen = {tuple(random_shift(image, generator)[0, 0].nonzero()[0].tolist()) for _ in range(300)}
    assert seen == {(16 + dy, 16 + dx) for dy in range(-2, 3) for dx in range(-2, 3)}


def test_training_repeats_exactly_under_one_seed():
    images = torch.rand(32, 1, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    labels = torch.arange(32) % 10
    runs = [
        [r["loss"] for _, r in train_classifier(images, labels, 1, 8, seed=s, device="cpu")]
        for s in (0, 0, 1)
    ]
    assert runs[0] == runs[1] != runs[2] and len(runs[0]) == 4
    with pytest.raises(ValueError, match="epochs = 0"):
        next(train_classifier(images, labels, 0))
