"""Device choice, and torchvision beside a torch whose build does not match."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from gas_nb.runtime.device import default_device

REPOSITORY = Path(__file__).resolve().parents[1]


def fresh_python(code):
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY
    )


def test_compat_alone_makes_torchvision_import():
    run = fresh_python(
        "import sys, gas_nb.runtime.device; assert 'torchvision' not in sys.modules;"
        "import torchvision.datasets; print('ok')"
    )
    assert run.stdout.strip() == "ok", run.stderr


def test_diffusers_networks_import_after_compat():
    run = fresh_python(
        "import gas_nb.runtime.device; from diffusers import UNet2DModel; print('ok')"
    )
    assert run.stdout.strip() == "ok", run.stderr


def test_a_failed_import_can_be_mended_in_the_same_process():
    run = fresh_python(
        "try:\n    import torchvision\nexcept RuntimeError:\n    pass\n"
        "from gas_nb.runtime.device import import_torchvision\n"
        "tv = import_torchvision(); print(tv.datasets.FashionMNIST.__name__)"
    )
    assert run.stdout.strip() == "FashionMNIST", run.stderr


@pytest.mark.parametrize(
    "value", ["tpu", "CPU", "cuda:", "cuda:-1", "cuda:x", "mps", "", "cpu:0", 3, None]
)
def test_unknown_device_is_named_with_the_remedy(value):
    with pytest.raises(ValueError, match='use "auto", "cpu", "cuda" or "cuda:N"') as error:
        default_device(value)
    assert repr(value) in str(error.value)


def test_known_devices():
    assert default_device("cpu") == torch.device("cpu")
    assert default_device().type == ("cuda" if torch.cuda.is_available() else "cpu")


def test_cuda_without_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert default_device("auto") == torch.device("cpu")
    with pytest.raises(ValueError, match="'cuda' asked for, but torch sees no CUDA GPU"):
        default_device("cuda")


def test_cuda_index_out_of_range(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert default_device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(ValueError, match="there are 2 GPUs"):
        default_device("cuda:2")


def test_each_process_of_a_launch_has_a_gpu_of_its_own(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("WORLD_SIZE", "4")
    for rank, gpu in enumerate((0, 1, 0, 1)):
        monkeypatch.setenv("LOCAL_RANK", str(rank))
        assert default_device("auto") == default_device("cuda") == torch.device("cuda", gpu)
        assert default_device("cuda:1") == torch.device("cuda:1") and default_device(
            "cpu"
        ) == torch.device("cpu")
