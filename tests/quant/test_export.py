"""GGUF files that we write, read by our own reader: the same config, numbers and tokens; what has no form there."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from golden_models import MODELS, copy
from small_models import draw_tokens, hybrid_model

import lattice
from lattice.dtypes import dense
from lattice.errors import LatticeError
from lattice.models import family
from lattice.quant import export_gguf, quantize
from lattice.quant.vocabulary import _pre_tokenizer, _scores
from lattice.tokenizers.pretokenizers import BY_NAME
from lattice.weights import GGUFFile
from lattice.weights.load import open_model


def logits(path: Path, dtype: str = "f32") -> np.ndarray:
    with lattice.load(path, dtype=dtype, draft=None) as lm:
        return lm.logits(draw_tokens(30, vocab=37))


@pytest.mark.parametrize(
    "name",
    ["llama-9q3kv", "llama-llama3", "llama-linear", "llama-biases", "qwen3-tied", "qwen3-yarn",
     "gemma3-pattern6", "qwen35-tied", "qwen35-3x", "qwen35-mtp", "qwen35-moe", "qwen35-linear"],
)  # fmt: skip
def test_a_family_says_the_same_in_gguf(tmp_path: Path, name: str) -> None:
    out = tmp_path / "model.gguf"
    export_gguf(MODELS / name, out, to="keep")
    wanted = logits(MODELS / name)
    assert np.abs(logits(out) - wanted).max() <= 1e-5 * max(1, np.abs(wanted).max())


def test_drafts_and_experts_have_the_names_of_llama_cpp(tmp_path: Path) -> None:
    export_gguf(MODELS / "qwen35-moe", tmp_path / "moe.gguf", to="q8_0")
    file = GGUFFile(tmp_path / "moe.gguf")
    assert file.metadata["general.architecture"] == "qwen35moe"
    gate, up = (file.tensor(f"blk.0.ffn_{part}_exps.weight") for part in ("gate", "up"))
    assert gate.shape == up.shape
    assert file.tensor("blk.0.ffn_gate_inp.weight").dtype.name == "f32"
    assert file.tensor("blk.0.ffn_gate_inp_shexp.weight").ndim == 1
    assert (dense(file.tensor("blk.0.ssm_a")) < 0).all()
    export_gguf(MODELS / "qwen35-mtp", tmp_path / "mtp.gguf", to="keep")
    file = GGUFFile(tmp_path / "mtp.gguf")
    blocks = file.metadata["qwen35.block_count"]
    assert file.metadata["qwen35.nextn_predict_layers"] == 1
    assert f"blk.{blocks - 1}.nextn.eh_proj.weight" in file
    assert list(file.metadata["qwen35.attention.recurrent_layers"])[-1] == False  # noqa: E712  # a NumPy bool


@pytest.mark.parametrize("to", ["q8_0", "q4_0", "q4_1", "q4_k"])
def test_a_rounded_file_holds_the_values_that_the_rounding_gave(tmp_path: Path, to: str) -> None:
    source = hybrid_model(tmp_path, hidden_size=256, intermediate_size=256, num_hidden_layers=4)
    report = export_gguf(source, tmp_path / "model.gguf", to=to)
    assert report.tensors[to][0] >= 10
    assert report.bytes == (tmp_path / "model.gguf").stat().st_size
    head = GGUFFile(tmp_path / "model.gguf").tensor("output.weight")
    assert head.dtype.name == ("q8_0" if to == "q8_0" else "q6_k")
    ours, theirs = (open_model(path, family).weights for path in (source, tmp_path / "model.gguf"))
    for name in ours:
        wanted, got = dense(ours[name]), dense(theirs[name])
        if "linear_attn" not in name:  # whose rows have another order
            error = np.linalg.norm(got - wanted) / np.linalg.norm(wanted)
            assert error < (1e-6 if wanted.ndim == 1 else 0.01 if to == "q8_0" else 0.15), name


def test_blocks_of_a_checkpoint_stay_as_they_are(tmp_path: Path) -> None:
    source = MODELS / "gguf-llama-q8_0" / "model.gguf"
    export_gguf(source, tmp_path / "again.gguf", to="keep")
    quantize(source, tmp_path / "checkpoint", to="q8", tensors={"*": "keep"}, requantize=True, gate=False)
    export_gguf(tmp_path / "checkpoint", tmp_path / "back.gguf", to="keep")
    first = GGUFFile(source)
    for name in ("again.gguf", "back.gguf"):
        file = GGUFFile(tmp_path / name)
        assert set(file.names) == set(first.names)
        for tensor in first.names:
            assert file.tensor(tensor).data.tobytes() == first.tensor(tensor).data.tobytes(), tensor
        for key in ("tokens", "token_type", "merges", "pre", "model", "eos_token_id", "add_bos_token"):
            was, now = (each.metadata[f"tokenizer.ggml.{key}"] for each in (first, file))
            assert np.array_equal(was, now), key


def test_pre_tokenisers_are_found_by_what_they_do() -> None:
    for name in ("gpt-2", "smollm", "llama-bpe", "qwen2", "qwen35", "gpt-4o", "tekken"):
        pre = BY_NAME[name]
        normal = {"type": "NFC"} if pre.normal_form else None
        assert BY_NAME[_pre_tokenizer({"pre_tokenizer": pre.as_json(), "normalizer": normal})] == pre
    with pytest.raises(LatticeError, match="a pre-tokeniser that has a name"):
        _pre_tokenizer({"pre_tokenizer": {"type": "Whitespace"}, "normalizer": None})


def test_scores_merge_in_the_order_of_the_merges() -> None:
    assert _scores(["a", "b", "ab", "aba"], [["a", "b"], ["ab", "a"], ["a", "ba"]]).tolist() == [-3, -3, 0, -1]


def test_what_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.gguf").write_text("mine")
    with pytest.raises(LatticeError, match="a new file that ends in .gguf"):
        export_gguf(MODELS / "llama-tied", tmp_path / "mine.gguf", to="q8_0")
    with pytest.raises(LatticeError, match="one of q8_0, q4_0, q4_1, q4_k, keep"):
        export_gguf(MODELS / "llama-tied", tmp_path / "out.gguf", to="q3_k")
    with pytest.raises(LatticeError, match="a generator of the families"):
        export_gguf(MODELS / "bert-gelu", tmp_path / "out.gguf", to="q8_0")
    with pytest.raises(LatticeError, match="requantize"):
        export_gguf(MODELS / "gguf-llama-q8_0" / "model.gguf", tmp_path / "out.gguf", to="q4_0")
    for name, lost in (("gemma3-full-first", "layer_types"), ("qwen3-window", "sliding_window")):
        with pytest.raises(LatticeError, match=f"config that GGUF has keys for, got .*{lost}"):
            export_gguf(MODELS / name, tmp_path / "out.gguf", to="keep")
    with pytest.raises(LatticeError, match="biases that llama.cpp reads, got model.layers.0.self_attn.o_proj.bias"):
        export_gguf(MODELS / "qwen3-untied", tmp_path / "out.gguf", to="keep")
    broken = copy("llama-tied", tmp_path)
    (broken / "tokenizer.json").write_text(json.dumps({"model": {}}))
    with pytest.raises(LatticeError, match="tokenizer.json"):
        export_gguf(broken, tmp_path / "out.gguf", to="q8_0")
    assert [path.name for path in tmp_path.iterdir() if path.suffix != ""] == ["mine.gguf"]
    assert (tmp_path / "mine.gguf").read_text() == "mine"
