"""`lattice eval`: perplexity, and a quantised model beside its source."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest

import lattice
from lattice.dtypes import BF16, encode
from lattice.quant import gate
from lattice.weights import save_safetensors
from lattice.weights.checkpoint import open_checkpoint

TEXT = " ".join(f"w{(7 * n) % 60}" for n in range(200))


@pytest.fixture
def text(tmp_path):
    (tmp_path / "text").write_text(TEXT, "utf-8")
    return tmp_path / "text"


@pytest.fixture
def rounded(chat_model, tmp_path):
    """Return a copy of the model with matrices in bf16, and a report that names its source and what passes."""
    folder = tmp_path / "rounded"
    shutil.copytree(chat_model, folder)
    checkpoint = open_checkpoint(chat_model)
    tensors = {name: checkpoint.tensor(name) for name in checkpoint.names}
    halves = {name: encode(each.data, BF16) for name, each in tensors.items() if len(each.shape) > 1}
    save_safetensors(folder / "model.safetensors", tensors | halves)
    said = {"recipe": "q8", "source": str(chat_model), "gate": {"thresholds": vars(gate.THRESHOLDS["q8"])}}
    (folder / "quantization.json").write_text(json.dumps(said), "utf-8")
    return folder


def change(folder: Path, **values) -> None:
    path = folder / "quantization.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values), "utf-8")


def test_ppl(cli, chat_model, text, result_of, refused):
    arguments = ["eval", "ppl", "-m", chat_model, "--file", text, "--context", 32]
    got = result_of(cli(*arguments, "--json"))
    assert math.isclose(got["perplexity"], lattice.load(chat_model).perplexity(TEXT, context=32), rel_tol=1e-6)
    assert (got["tokens"], got["windows"], got["context"]) == (6 * 15, 6, 32)
    assert result_of(cli(*arguments, "--chunks", 2, "--json"))["tokens"] == 2 * 15
    assert f"perplexity {got['perplexity']:.4f}" in cli(*arguments).stdout
    refused(cli(*arguments, "--context", 256), "at least 256 tokens")


def test_compare(cli, chat_model, rounded, text, result_of):
    arguments = ["eval", "compare", "-m", rounded, "--file", text, "--context", 32]
    got = result_of(cli(*arguments, "--json"))
    models = lattice.load(rounded), lattice.load(chat_model)
    wanted = gate.measure(*models, TEXT, context=32, thresholds="q8")
    assert gate.report(got) == wanted and wanted.kld > 0
    assert (got["model"], got["source"], got["file"]) == (str(rounded), chat_model, str(text))
    assert got["verdict"] == wanted.verdict and got["thresholds"] == vars(gate.THRESHOLDS["q8"])
    printed = cli(*arguments).stdout
    assert f"{wanted.kld:.6f}" in printed and wanted.verdict in printed.splitlines()[0]
    itself = result_of(
        cli("eval", "compare", "-m", chat_model, "-s", chat_model, "-f", text, "--context", 16, "--json")
    )
    assert (itself["kld"], itself["agreement"], itself["verdict"]) == (0, 1, "PASS")
    assert itself["thresholds"] == vars(gate.THRESHOLDS["q4"])
    assert result_of(cli(*arguments, "--chunks", 2, "--json"))["windows"] == 2


def test_compare_reads_the_bundled_text(cli, chat_model, result_of):
    got = result_of(cli("eval", "compare", "-m", chat_model, "-s", chat_model, "--context", 64, "--json"))
    assert got["file"] is None and got["windows"] == len(gate.bundled("evaluation").split()) // 64


def test_compare_judges_as_it_is_asked_to(cli, rounded, text, result_of):
    arguments = ["eval", "compare", "-m", rounded, "--file", text, "--context", 32, "--json"]
    change(rounded, gate={"thresholds": {"kld": 0, "tail": 0, "agreement": 1, "cosine": 1}})
    strict = result_of(cli(*arguments))
    assert strict["verdict"] == "FAIL" and "mean KLD is" in strict["reasons"][0]
    assert cli(*arguments, "--strict").exit_code == 1
    assert json.loads(cli(*arguments, "--strict").stdout)["verdict"] == "FAIL"
    assert "FAIL: mean KLD" in cli(*arguments[:-1]).stdout
    assert result_of(cli(*arguments, "--recipe", "q4", "--strict"))["verdict"] == "PASS"


def test_compare_encoders(cli, encoder, tmp_path, result_of):
    (tmp_path / "text").write_text("w1 w2 w3 w4 w5 w6 w7 w8\n\nw9\n\nw9 w8 w7 w6 w5 w4 w3\n", "utf-8")
    arguments = ["eval", "compare", "-m", encoder, "-s", encoder, "-f", tmp_path / "text", "--dtype", "bf16"]
    got = result_of(cli(*arguments, "--json"))
    assert (got["kind"], got["texts"]) == ("encoder", 2) and 0.99 < got["least"] <= got["cosine"] < 1
    assert f"{got['cosine']:.6f}" in cli(*arguments).stdout


def test_what_compare_refuses(cli, chat_model, encoder, rounded, text, refused):
    compare = ("eval", "compare", "--file", text, "--context", 32)
    refused(cli(*compare, "-m", chat_model), "a source to compare", "--source")
    refused(cli(*compare, "-m", rounded, "--recipe", "q9"), "thresholds of q8, q4, quarot4, got 'q9'")
    refused(cli(*compare, "-m", rounded, "--context", 256), "at least 256 tokens")
    refused(cli(*compare, "-m", chat_model, "-s", encoder), "a model that generates text")
    change(rounded, gate={"thresholds": {"kld": "much"}})
    refused(cli(*compare, "-m", rounded), "[gate] expected a number as kld")
    change(rounded, source="no-such-model", gate=None)
    refused(cli(*compare, "-m", rounded), "a source that is on this machine, got [source]", "--source")
    refused(cli(*compare, "-m", rounded, "-s", "no-such-model"), "error: [source]")
    change(rounded, source=7)
    refused(cli(*compare, "-m", rounded), "a source to compare")
    (rounded / "quantization.json").write_text("[]", "utf-8")
    refused(cli(*compare, "-m", rounded), "a JSON object, got list")


def test_a_broken_model_fails_with_a_reason(cli, chat_model, rounded, text, result_of):
    data = bytearray((rounded / "model.safetensors").read_bytes())
    data[-64:] = np.full(16, np.nan, np.float32).tobytes()
    (rounded / "model.safetensors").write_bytes(data)
    got = result_of(cli("eval", "compare", "-m", rounded, "-f", text, "--context", 32, "--json"))
    assert got["verdict"] == "FAIL" and "not finite" in got["reasons"][0] and got["broken"] > 0
