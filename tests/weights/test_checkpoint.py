"""A checkpoint is a directory or a GGUF file; pickled weights are never read."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from lattice.errors import FormatError
from lattice.weights import open_checkpoint

from .conftest import ones, write_model


def test_directory(tmp_path: Path) -> None:
    write_model(tmp_path, {"model_type": "bert", "hidden_size": 3})
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.kind == "safetensors"
    assert checkpoint.config == {"model_type": "bert", "hidden_size": 3}
    assert checkpoint.names == ["w"]
    assert "w" in checkpoint
    assert checkpoint.tensor("w").data.tolist() == [[1, 1, 1], [1, 1, 1]]
    assert (checkpoint.directory, checkpoint.nbytes) == (tmp_path, 24)


def test_one_safetensors_of_another_name(tmp_path: Path) -> None:
    write_model(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "adapter.safetensors")
    assert open_checkpoint(tmp_path).names == ["w"]


def test_gguf(tiny_gguf: Path) -> None:
    checkpoint = open_checkpoint(tiny_gguf)
    assert checkpoint.kind == "gguf"
    assert checkpoint.config["general.architecture"] == "llama"
    assert checkpoint.config["tokens"] == ["a", "bc"]
    assert checkpoint.tensor("w").shape == ones(2, 3).shape


def test_what_is_not_a_checkpoint(tmp_path: Path, tiny_gguf: Path) -> None:
    with pytest.raises(FormatError, match="no such path"):
        open_checkpoint(tmp_path / "none")
    with pytest.raises(FormatError, match="hint: name the file itself: .*tiny.gguf"):
        open_checkpoint(tmp_path)
    for name in ("pytorch_model.bin", "model.pt", "model.ckpt"):
        (tmp_path / name).write_bytes(b"\x80\x04")
        with pytest.raises(FormatError, match="a pickled file\nhint: pickled weights can run code"):
            open_checkpoint(tmp_path / name)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(FormatError, match=r"got model.ckpt\nhint: pickled weights"):
        open_checkpoint(tmp_path)
    write_model(tmp_path)
    with pytest.raises(FormatError, match="one weight file\nhint: open its directory"):
        open_checkpoint(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").rename(tmp_path / "a.safetensors")
    (tmp_path / "b.safetensors").write_bytes((tmp_path / "a.safetensors").read_bytes())
    with pytest.raises(FormatError, match="2 .safetensors files without"):
        open_checkpoint(tmp_path)


def test_importing_weights_imports_nothing_slow() -> None:
    slow = ["huggingface_hub", "tokenizers", "pip", "requests", "httpx", "asyncio"]
    code = f"import sys, lattice.weights; print([name for name in {slow} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
