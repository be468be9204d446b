"""Whole embedding models, against sentence-transformers: tokens, every pooling mode, prompts, shortening, the cut."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from encoders import BACKENDS, arrays, open_encoder, same_bits
from tiny_models import write_json

import lattice
from lattice.embed import encoder as encoder_module
from lattice.embed import known
from lattice.embed.known import QWEN
from lattice.errors import LatticeError, LatticeWarning

EMBEDDERS = Path(__file__).parents[1] / "golden" / "embedders"
NAMES = sorted(path.name for path in EMBEDDERS.iterdir())
MODES = {"cls": "cls", "mean": "mean", "lasttoken": "last"}


def golden(name):
    return json.loads((EMBEDDERS / name / "golden.json").read_text("utf-8")), arrays(EMBEDDERS / name / "golden.npz")


def close(got, wanted, tolerance=1e-3):
    return got.shape == wanted.shape and np.abs(got - wanted).max() <= tolerance * max(1.0, np.abs(wanted).max())


@pytest.mark.parametrize("dtype", ["auto", "f32"])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", NAMES)
def test_vectors_are_those_of_sentence_transformers(name, backend, dtype):
    listed, wanted = golden(name)
    tolerance = 1e-3 if dtype == "auto" else 1e-5
    encoder = open_encoder(EMBEDDERS / name, backend, dtype=dtype)
    texts = listed["texts"]
    assert close(encoder.encode(texts), wanted["normal"], tolerance)
    assert close(encoder.encode(texts, dimensions=wanted["short"].shape[1]), wanted["short"], tolerance)
    assert close(encoder.encode_query(texts), wanted["query"], tolerance)
    assert close(encoder.encode_document(texts), wanted["document"], tolerance)
    with pytest.warns(LatticeWarning, match="1 of 1 longer"):
        assert close(encoder.encode(listed["long"]), wanted["long"], tolerance)


@pytest.mark.parametrize("name", NAMES)
def test_tokens_are_those_of_sentence_transformers(name):
    listed, _ = golden(name)
    encoder = open_encoder(EMBEDDERS / name)
    assert encoder._texts.tokenize(listed["texts"], "")[0] == listed["tokens"]
    assert encoder._texts.tokenize([listed["long"]], "")[0] == [listed["cut"]]
    assert encoder.max_tokens == len(listed["cut"])


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", NAMES)
def test_pooling_modes(name, backend, mode, tmp_path):
    listed, wanted = golden(name)
    directory = shutil.copytree(EMBEDDERS / name, tmp_path / name)
    write_json(directory / "1_Pooling" / "config.json", {"pooling_mode": mode})
    encoder = open_encoder(directory, backend, dtype="f32")
    assert encoder.settings.pooling == MODES[mode]
    assert close(encoder.encode(listed["texts"], normalize=False), wanted[mode], 1e-5)


@pytest.mark.parametrize("mode", ["max", "weightedmean"])
def test_modes_that_are_not_computed_are_named(mode, tmp_path):
    directory = shutil.copytree(EMBEDDERS / "xlm-roberta", tmp_path / "model")
    write_json(directory / "1_Pooling" / "config.json", {"pooling_mode": mode})
    with pytest.raises(LatticeError, match=f"pooling mode among mean, cls, last, got {mode}"):
        open_encoder(directory).encode("a")


# ---- Qwen3-Embedding as it is published -------------------------------------------------------------------
def test_published_files_give_the_instruction_to_queries_and_nothing_to_documents():
    encoder = open_encoder(EMBEDDERS / "qwen3-published")
    settings = encoder.settings
    assert (settings.pooling, settings.normalized, encoder.dimensions) == ("last", True, 64)
    assert settings.prompts == {"query": QWEN, "document": ""} and settings.default_prompt is None
    assert same_bits(encoder.encode_query("a cat"), encoder.encode(f"{QWEN}a cat"))
    assert same_bits(encoder.encode_document("a cat"), encoder.encode("a cat"))
    for text in ("a cat", ""):
        assert encoder._texts.tokenize([text], "")[0][0][-1] == encoder.tokenizer.encode("<|endoftext|>")[0]


@pytest.mark.parametrize("name", ["Qwen3-Embedding-0.6B", "Qwen3-Embedding-4B", "Qwen3-Embedding-8B"])
def test_every_size_is_found_by_its_hub_name(name, tmp_path, monkeypatch):
    directory = shutil.copytree(EMBEDDERS / "qwen3-published", tmp_path / "files")
    rows = {row.hub: replace(row, dimensions=64) for row in known.MODELS if "Qwen3" in row.hub}
    monkeypatch.setattr(known, "NAMES", {hub.lower(): row for hub, row in rows.items()})
    asked = []
    monkeypatch.setattr(encoder_module, "resolve", lambda source: asked.append(source) or directory)
    encoder = lattice.load_encoder(f"Qwen/{name}", dimensions=32)
    assert asked == [f"Qwen/{name}"] and encoder.known.hub == f"Qwen/{name}"
    assert (encoder.max_tokens, encoder.dimensions) == (96, 32)  # positions are fewer than the table's 8192 tokens
    assert encoder.encode_query("a cat").shape == (32,)
    with pytest.raises(LatticeError, match="dimensions from 32 to 64, got 31"):
        lattice.load_encoder(f"Qwen/{name}", dimensions=31)
