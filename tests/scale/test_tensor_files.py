"""Files of tensors: what is written is read, and a single changed bit is seen."""

import pytest
import torch
from safetensors.torch import save_file

from harness.tensors import load_tensors, save_tensors


def test_every_type_and_shape_comes_back(tmp_path):
    tensors = {
        "matrix": torch.randn(3, 4).T,
        "half": torch.randn(5).bfloat16(),
        "step": torch.tensor(7),
        "none": torch.zeros(0, 3),
        "flags": torch.tensor([True, False]),
    }
    save_tensors(tmp_path / "t.safetensors", tensors)
    read = load_tensors(tmp_path / "t.safetensors", "")
    assert read.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert read[name].dtype == tensor.dtype and torch.equal(read[name], tensor)


def test_a_changed_bit_is_seen(tmp_path):
    path = tmp_path / "t.safetensors"
    save_tensors(path, {"a": torch.arange(10.0)})
    changed = bytearray(path.read_bytes())
    changed[-6] ^= 1
    path.write_bytes(changed)
    with pytest.raises(ValueError, match="holds other bytes than were written to it; fetch it again"):
        load_tensors(path, "fetch it again")


def test_files_of_other_programs_carry_no_hash(tmp_path):
    save_file({"a": torch.ones(2)}, tmp_path / "t.safetensors")
    assert torch.equal(load_tensors(tmp_path / "t.safetensors", "")["a"], torch.ones(2))
