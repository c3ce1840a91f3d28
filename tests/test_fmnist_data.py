"""Fashion-MNIST: the IDX reader, the places it is looked for, and the tensors."""

import gzip
import struct

import numpy as np
import pytest
import torch

from gas_nb.teachers import fmnist_data
from gas_nb.teachers.fmnist_data import (
    find_fashion_mnist,
    load_fashion_mnist,
    read_idx,
    to_bytes,
    to_unit_range,
)


def idx_bytes(array, magic=None):
    return (
        (magic or bytes([0, 0, 8, array.ndim]))
        + struct.pack(f">{array.ndim}I", *array.shape)
        + array.tobytes()
    )


def write_split(folder, n=3, split="train", zipped=True, labels=None):
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (n, 28, 28), dtype=np.uint8)
    labels = np.arange(n, dtype=np.uint8) if labels is None else np.asarray(labels, dtype=np.uint8)
    for name, array in zip(fmnist_data.FILES[split], (images, labels)):
        data = idx_bytes(array)
        (folder / (name + (".gz" if zipped else ""))).write_bytes(
            gzip.compress(data) if zipped else data
        )
    return images, labels


@pytest.fixture(autouse=True)
def no_other_places(monkeypatch, tmp_path):
    monkeypatch.delenv("FASHION_MNIST_DIR", raising=False)
    monkeypatch.setattr(fmnist_data, "DEBIAN_FOLDER", tmp_path / "debian")
    monkeypatch.setattr(fmnist_data, "CACHE", tmp_path / "cache")


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("split", ["train", "test"])
def test_images_are_padded_scaled_and_exact(tmp_path, zipped, split):
    raw, _ = write_split(tmp_path, split=split, zipped=zipped)
    images, labels = load_fashion_mnist(split, root=tmp_path)
    assert images.shape == (3, 1, 32, 32) and images.dtype == torch.float32
    assert (
        images.min() >= -1
        and images.max() <= 1
        and labels.tolist() == [0, 1, 2]
        and labels.dtype == torch.int64
    )
    border = torch.ones(32, 32, dtype=torch.bool)
    border[2:30, 2:30] = False
    assert (images[:, 0, border] == -1).all()
    assert np.array_equal(to_bytes(images)[:, 0, 2:30, 2:30].numpy(), raw)
    as_bytes, _ = load_fashion_mnist(split, root=tmp_path, dtype=torch.uint8)
    assert as_bytes.dtype == torch.uint8 and torch.equal(to_unit_range(as_bytes), images)


def test_order_of_places(tmp_path, monkeypatch):
    for name in ("root", "variable", "debian"):
        write_split(tmp_path / name)
    write_split(tmp_path / "cache" / "FashionMNIST" / "raw", zipped=False)
    monkeypatch.setenv("FASHION_MNIST_DIR", str(tmp_path / "variable"))
    assert find_fashion_mnist(root=tmp_path / "root")[0].parent.name == "root"
    assert find_fashion_mnist()[0].parent.name == "variable"
    monkeypatch.delenv("FASHION_MNIST_DIR")
    assert find_fashion_mnist()[0].parent.name == "debian"
    monkeypatch.setattr(fmnist_data, "DEBIAN_FOLDER", tmp_path / "absent")
    assert find_fashion_mnist()[0].parent.name == "raw"


def test_a_named_folder_is_taken_at_its_word(tmp_path, monkeypatch):
    write_split(tmp_path / "debian")
    with pytest.raises(FileNotFoundError, match="empty.*dataset-fashion-mnist"):
        load_fashion_mnist(root=tmp_path / "empty")
    monkeypatch.setenv("FASHION_MNIST_DIR", str(tmp_path / "empty"))
    with pytest.raises(FileNotFoundError, match="FASHION_MNIST_DIR"):
        load_fashion_mnist()


class FakeTorchvision:
    """Stands for torchvision: 'downloads' by writing
    torchvision's layout, or fails as it does without a network."""

    def __init__(self, works):
        self.works, self.datasets = works, self

    def FashionMNIST(self, root, train, download):
        if not self.works:
            raise OSError("Name or service not known")
        write_split(
            fmnist_data.Path(root) / "FashionMNIST" / "raw", split="train" if train else "test"
        )


def test_download_goes_to_the_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(fmnist_data, "import_torchvision", lambda: FakeTorchvision(True))
    images, _ = load_fashion_mnist("test")
    assert len(images) == 3 and (tmp_path / "cache" / "FashionMNIST" / "raw").is_dir()


def test_no_data_and_no_network_names_the_remedies(monkeypatch):
    monkeypatch.setattr(fmnist_data, "import_torchvision", lambda: FakeTorchvision(False))
    remedies = "Name or service.*FASHION_MNIST_DIR.*train-images.*dataset-fashion-mnist"
    with pytest.raises(FileNotFoundError, match=remedies):
        load_fashion_mnist()
    with pytest.raises(FileNotFoundError, match="dataset-fashion-mnist"):
        load_fashion_mnist(download=False)


@pytest.mark.parametrize(
    "data, words",
    [
        (b"", "begins with nothing"),
        (b"<html>not found</html>", "not an IDX file of images"),
        (idx_bytes(np.zeros(5, np.uint8)), "not an IDX file of images"),
        (idx_bytes(np.zeros((2, 28, 28), np.uint8), magic=bytes([0, 0, 13, 3])), "not an IDX file"),
        (idx_bytes(np.zeros((2, 28, 28), np.uint8))[:-1], "has 1567 after its header"),
        (idx_bytes(np.zeros((2, 28, 28), np.uint8)) + b"x", "has 1569 after its header"),
    ],
)
def test_files_that_are_not_idx_are_refused_in_words(tmp_path, data, words):
    (tmp_path / "f").write_bytes(data)
    with pytest.raises(ValueError, match=words):
        read_idx(tmp_path / "f", 3)
    whole = gzip.compress(data)
    (tmp_path / "f.gz").write_bytes(whole)
    with pytest.raises(ValueError, match=words):
        read_idx(tmp_path / "f.gz", 3)
    (tmp_path / "f.gz").write_bytes(whole[:-9])
    with pytest.raises(ValueError, match="damaged gzip"):
        read_idx(tmp_path / "f.gz", 3)


def test_labels_and_sizes_must_fit(tmp_path):
    write_split(tmp_path, labels=[1, 2])
    with pytest.raises(ValueError, match="2 labels up to 2 for 3 images"):
        load_fashion_mnist(root=tmp_path)
    write_split(tmp_path, labels=[1, 2, 10])
    with pytest.raises(ValueError, match="labels are 0..9"):
        load_fashion_mnist(root=tmp_path)
    name = fmnist_data.FILES["train"][0] + ".gz"
    (tmp_path / name).write_bytes(gzip.compress(idx_bytes(np.zeros((3, 32, 32), np.uint8))))
    with pytest.raises(ValueError, match=r"\(32, 32\) pixels"):
        load_fashion_mnist(root=tmp_path)


@pytest.mark.parametrize(
    "options, words",
    [
        ({"split": "valid"}, "'valid'"),
        ({"size": 27}, "size 27"),
        ({"size": 33}, "size 33"),
        ({"dtype": torch.float16}, "float16"),
    ],
)
def test_bad_arguments(tmp_path, options, words):
    write_split(tmp_path)
    with pytest.raises(ValueError, match=words):
        load_fashion_mnist(**{"root": tmp_path, **options})
