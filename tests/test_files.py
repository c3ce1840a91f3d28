"""Atomic writers: whole or absent, and nothing left behind."""

import json
import os

import pytest
import torch
from safetensors import safe_open

from gas_nb.runtime import files


def test_round_trips_and_folders_are_made(tmp_path):
    deep = tmp_path / "a" / "b"
    assert files.write_text_atomic(deep / "t.txt", "λ\r\n").read_bytes() == "λ\r\n".encode()
    assert files.write_bytes_atomic(str(deep / "b.bin"), b"\x00\x01").read_bytes() == b"\x00\x01"
    files.write_json_atomic(deep / "j.json", {"x": [1, None, "é"]})
    assert json.loads((deep / "j.json").read_text(encoding="utf-8")) == {"x": [1, None, "é"]}
    assert sorted(os.listdir(deep)) == ["b.bin", "j.json", "t.txt"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_old_file_survives_and_temporary_goes(tmp_path, error):
    path = files.write_text_atomic(tmp_path / "t.txt", "old")
    with pytest.raises(error):
        with files.atomic_path(path) as temporary:
            temporary.write_text("half")
            assert temporary.parent == path.parent
            raise error("stop")
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["t.txt"]


def test_failing_rename_removes_the_temporary(tmp_path, monkeypatch):
    def no_rename(*_):
        raise OSError("disk full")

    monkeypatch.setattr(files.os, "replace", no_rename)
    with pytest.raises(OSError, match="disk full"):
        files.save_safetensors_atomic(tmp_path / "w.safetensors", {"w": torch.ones(2)})
    assert os.listdir(tmp_path) == []


def test_json_refuses_nan_before_writing(tmp_path):
    with pytest.raises(ValueError, match="finite"):
        files.write_json_atomic(tmp_path / "j.json", {"loss": float("inf")})
    with pytest.raises(TypeError, match="j.json"):
        files.write_json_atomic(tmp_path / "j.json", {"x": {1, 2}})
    assert os.listdir(tmp_path) == []


def test_safetensors_keep_values_dtypes_and_metadata(tmp_path):
    tensors = {
        "t": torch.arange(12).reshape(3, 4).T,
        "h": torch.randn(3).half(),
        "s": torch.tensor(2.0, requires_grad=True),
    }
    path = files.save_safetensors_atomic(tmp_path / "w.safetensors", tensors, {"a": "1"})
    with safe_open(path, "pt") as stored:
        assert stored.metadata() == {"a": "1"}
        for name, tensor in tensors.items():
            assert (
                torch.equal(stored.get_tensor(name), tensor)
                and stored.get_tensor(name).dtype == tensor.dtype
            )
    with pytest.raises(TypeError, match="'a' is 1"):
        files.save_safetensors_atomic(path, tensors, {"a": 1})
