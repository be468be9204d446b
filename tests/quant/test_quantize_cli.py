"""`lattice quantize` as it is called: what it prints, what it refuses, and with which exit code it ends."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from small_models import hybrid_model
from typer.testing import CliRunner, Result

from lattice.cli import app


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["quantize", *map(str, arguments)])


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return hybrid_model(tmp_path_factory.mktemp("models"), text=True, bf16=True)


def test_a_table_says_what_was_made(source: Path, tmp_path: Path) -> None:
    done = run(source, tmp_path / "out", "--to", "q8", "--chunks", 1, "--tensor", "model.layers.*=keep")
    assert done.exit_code == 0, done.output
    assert str(tmp_path / "out") in done.stdout
    assert "q8_0" in done.stdout
    assert "bits a parameter" in done.stdout
    assert "PASS" in done.stdout or "WARN" in done.stdout
    assert "mean KLD" in done.stdout


def test_json_is_one_object_and_a_failed_gate_an_exit_code(source: Path, tmp_path: Path) -> None:
    tensors = ["--tensor", "*.up_proj=q4_0", "--tensor", "lm_head=q8_0"]
    done = run(source, tmp_path / "out", "--to", "q4", "--chunks", 1, "--json", *tensors)
    said = json.loads(done.stdout)
    assert done.stdout.count("\n") == 1
    assert said["path"] == str(tmp_path / "out")
    assert said["gate"]["verdict"] == "FAIL"  # random weights in 4 bits
    assert said["tensors"]["q4_0"]["tensors"] == 4
    assert done.exit_code == 1
    assert (tmp_path / "out" / "model.safetensors").is_file()
    shown = CliRunner().invoke(app, ["show", str(tmp_path / "out"), "--json"])
    about = json.loads(shown.stdout)
    assert about["tensors"]["q4_0"] == 4
    assert about["bytes"] == sum(row["bytes"] for row in said["tensors"].values())
    assert about["parameters"] == said["parameters"]


def test_without_the_gate_nothing_is_measured(source: Path, tmp_path: Path) -> None:
    done = run(source, tmp_path / "out", "--no-gate", "--json")
    assert done.exit_code == 0
    assert json.loads(done.stdout)["gate"] is None


def test_a_gguf_file(source: Path, tmp_path: Path) -> None:
    done = run(source, tmp_path / "model.gguf", "--gguf", "q8_0")
    assert done.exit_code == 1
    assert "expected spaces written as" in done.stderr  # its tokenizer drops them
    plain = hybrid_model(tmp_path)
    done = run(plain, tmp_path / "model.gguf", "--gguf", "q8_0", "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["recipe"] == "q8_0"
    assert (tmp_path / "model.gguf").read_bytes()[:4] == b"GGUF"


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--to", "q3"], 1, "expected one of q8, q4, quarot4"),
        (["--tensor", "lm_head"], 2, "PATTERN=DTYPE"),
        (["--tensor", "nothing=q8_0"], 1, "a pattern that fits a matrix"),
        (["--calibrate", "/none.txt"], 1, "a readable calibration text"),
    ],
)
def test_what_is_refused(source: Path, tmp_path: Path, arguments: list[str], code: int, said: str) -> None:
    done = run(source, tmp_path / "out", *arguments)
    assert done.exit_code == code
    assert said in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_directory_in_use_is_left_alone(source: Path) -> None:
    before = sorted(source.iterdir())
    done = run(source, source)
    assert done.exit_code == 1
    assert "a new or empty directory" in done.stderr
    assert sorted(source.iterdir()) == before
