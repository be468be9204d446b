"""The table of known embedding models: when a row applies, what it fills in, and that files win over it."""

from __future__ import annotations

import json
import shutil
import warnings
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from encoders import open_encoder, same_bits
from tiny_models import write_json

import lattice
from lattice.embed import encoder as encoder_module
from lattice.embed import known
from lattice.embed.known import BGE, MODELS, QWEN, as_source, complete, find, recognise
from lattice.embed.settings import Settings
from lattice.errors import LatticeError, LatticeWarning
from lattice.weights.sources import ALIASES


def checkpoint(path="model", **config):
    return SimpleNamespace(kind="gguf" if path.endswith(".gguf") else "safetensors", path=Path(path), config=config)


@pytest.fixture
def small(monkeypatch):
    """Make rows of 32 dimensions known, as wide as the tiny encoder: a BGE, and one trained to be shortened."""
    bge = replace(find("bge-small"), dimensions=32, max_tokens=15)
    nested = replace(bge, hub="tiny/nested", alias="nested", pooling="last", query="w7 ", document="w8 ", least=8)
    names = {name: model for model in (bge, nested) for name in (model.hub.lower(), model.name, model.alias)}
    monkeypatch.setattr(known, "NAMES", names)


@pytest.fixture
def bare(tiny, tmp_path):
    """Return a function that copies the tiny encoder to a name, without any file that speaks of embedding."""

    def copy(name):
        path = tmp_path / name
        shutil.copytree(tiny, path)
        shutil.rmtree(path / "1_Pooling")
        for file in ("modules.json", "sentence_bert_config.json"):
            (path / file).unlink()
        return path

    return copy


# ---- the table ---------------------------------------------------------------------------------------------
def test_the_table_is_that_of_the_reference():
    rows = {model.name: (model.dimensions, model.max_tokens, model.pooling, model.least) for model in MODELS}
    assert rows == {
        "bge-small-en-v1.5": (384, 512, "cls", None),
        "bge-base-en-v1.5": (768, 512, "cls", None),
        "bge-large-en-v1.5": (1024, 512, "cls", None),
        "multilingual-e5-small": (384, 512, "mean", None),
        "multilingual-e5-base": (768, 512, "mean", None),
        "all-minilm-l6-v2": (384, 256, "mean", None),
        "paraphrase-multilingual-minilm-l12-v2": (384, 128, "mean", None),
        "qwen3-embedding-0.6b": (1024, 8192, "last", 32),
        "qwen3-embedding-4b": (2560, 8192, "last", 32),
        "qwen3-embedding-8b": (4096, 8192, "last", 32),
    }
    prompts = {(model.query, model.document) for model in MODELS}
    assert prompts == {(BGE, ""), ("query: ", "passage: "), ("", ""), (QWEN, "")}


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
def test_every_name_of_a_model_is_a_source_of_it(model):
    assert ALIASES[model.alias].sources[-1] == f"hf:{model.hub}"
    assert [as_source(name) for name in (model.name, model.hub)] == [model.alias, model.hub]
    for name in (model.name, model.alias, model.hub, model.hub.upper(), model.name.replace("-", "_")):
        assert find(name) is model


def test_a_known_model_is_loaded_by_its_own_name(small, bare, monkeypatch):
    path, asked = bare("entry"), []
    monkeypatch.setattr(encoder_module, "resolve", lambda source: asked.append(source) or path)
    encoder = lattice.load_encoder("Bge_small_en v1.5")
    assert asked == ["bge-small"] and encoder.settings.pooling == "cls"


# ---- recognising -------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "source",
    [
        "bge-small",
        "BAAI/bge-small-en-v1.5",
        "hf:BAAI/bge-small-en-v1.5",
        "hf:BAAI/bge-small-en-v1.5@main",
        "BAAI/bge-small-en-v1.5@refs/pr/1:bge.gguf",
        "Bge_Small_EN_v1.5",
    ],
)
def test_a_source_names_a_model(source):
    assert recognise(checkpoint("entry-7f"), 384, source) == (find("bge-small"), "")


def test_the_cache_of_the_hub_names_a_model():
    path = "/hub/models--BAAI--bge-base-en-v1.5/snapshots/0123"
    assert recognise(checkpoint(path), 768) == (find("bge-base"), "")


@pytest.mark.parametrize(
    ("path", "config", "told"),
    [
        ("m", {"_name_or_path": "BAAI/bge-small-en-v1.5"}, "_name_or_path"),
        ("m.gguf", {"general.name": "Bge Small En v1.5"}, r"general\.name"),
        ("here/bge-small-en-v1.5", {"_name_or_path": "somewhere/else"}, "the name 'bge-small-en-v1.5'"),
        ("here/bge-small-en-v1.5-q4_k_m.gguf", {"general.name": 7}, "the name"),
        ("here/BGE-Small-EN-v1.5.Q8_0.gguf", {}, "the name"),
        ("here/bge-small-en-v1.5-bf16-gguf", {}, "the name"),
    ],
)
def test_files_and_directories_suggest_a_model(path, config, told):
    model, guessed = recognise(checkpoint(path, **config), 384)
    assert model is find("bge-small")
    assert told.replace("\\", "") in guessed


@pytest.mark.parametrize(
    ("path", "width", "source"),
    [
        ("bge-small-en-v1.5", 768, None),  # of another width: another model
        ("my-bge-small-en-v1.5", 384, None),
        ("bge-small-en-v1.5-tuned", 384, None),
        ("model", 384, "Xenova/bge-small-en-v1.5"),  # of another publisher
        ("bge", 384, None),
        ("model", 384, None),
    ],
)
def test_what_is_not_quite_a_known_name_is_not_recognised(path, width, source):
    assert recognise(checkpoint(path), width, source) == (None, "")


# ---- what a row gives --------------------------------------------------------------------------------------
def test_a_directory_without_metadata_works_by_the_name_it_was_asked_for(small, bare):
    encoder = open_encoder(bare("entry-7f"), source="tiny/nested")
    assert (encoder.max_tokens, encoder.settings.pooling) == (15, "last")
    assert same_bits(encoder.encode_query("w1"), encoder.encode("w7 w1"))
    assert same_bits(encoder.encode_document("w1"), encoder.encode("w1", prompt_name="document"))
    assert same_bits(encoder.encode_document("w1"), encoder.encode("w8 w1"))
    with pytest.raises(LatticeError, match="prompts: query, document, got 'passage'"):
        encoder.encode("w1", prompt_name="passage")


def test_a_guess_that_decides_is_told(small, bare):
    with pytest.warns(LatticeWarning, match=r"pooling cls and prompts taken .* BAAI/bge-small-en-v1\.5, by the name"):
        encoder = open_encoder(bare("bge-small-en-v1.5"))
    assert encoder.settings.prompts == {"query": BGE, "document": ""}


def test_files_win_over_the_table(small, bare):
    path = bare("nested")
    write_json(path / "1_Pooling" / "config.json", {"pooling_mode": "mean"})
    write_json(path / "sentence_bert_config.json", {"max_seq_length": 18})
    write_json(path / "config_sentence_transformers.json", {"prompts": {"query": "w9 ", "document": ""}})
    encoder = open_encoder(path)  # and nothing is guessed: no warning
    assert (encoder.settings.pooling, encoder.max_tokens) == ("mean", 18)
    assert same_bits(encoder.encode_query("w1"), encoder.encode("w9 w1"))
    write_json(path / "config_sentence_transformers.json", {"prompts": {"query": "", "document": ""}})
    with pytest.warns(LatticeWarning, match="prompts taken"):  # what sentence-transformers writes for none
        encoder = open_encoder(path)
    assert same_bits(encoder.encode_query("w1"), encoder.encode("w7 w1"))


@pytest.mark.parametrize("config", [{"pooling_mode": "max"}, {"pooling_mode": ["mean", "cls"]}, {}])
def test_pooling_that_the_files_ask_for_is_not_replaced(small, bare, config):
    path = bare("entry")
    write_json(path / "1_Pooling" / "config.json", config)
    with pytest.raises(LatticeError, match="pooling mode among"):
        open_encoder(path, source="tiny/nested").encode("w1")


def test_an_unknown_directory_says_what_to_write(bare):
    with pytest.raises(LatticeError, match=r'no 1_Pooling/config\.json\nhint: write \{"pooling_mode": "mean"\}'):
        open_encoder(bare("unheard-of")).encode("w1")


def test_the_longest_text_is_also_what_the_tokenizer_says(small, bare):
    path = bare("entry")
    write_json(path / "tokenizer_config.json", {"model_max_length": 12})
    assert open_encoder(path).max_tokens == 12
    assert open_encoder(path, source="tiny/nested").max_tokens == 12
    write_json(path / "tokenizer_config.json", {"model_max_length": 99})
    assert open_encoder(path, source="tiny/nested").max_tokens == 15
    write_json(path / "sentence_bert_config.json", {"max_seq_length": 20})
    assert open_encoder(path, source="tiny/nested").max_tokens == 20


def test_completing_keeps_what_is_there():
    settings = Settings(pooling="mean", pooling_unsaid=False, prompts={"query": "q"}, max_tokens=7)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = complete(settings, find("qwen3-embedding"), "the name 'x'", "x")
    assert found == replace(settings, table_tokens=8192)


# ---- shorter vectors ---------------------------------------------------------------------------------------
def test_a_model_is_shortened_as_far_as_it_was_trained_for(small, bare):
    path = bare("entry")
    nested = open_encoder(path, source="tiny/nested")
    assert nested.encode("w1", dimensions=8).shape == (8,) and nested.encode("w1", dimensions=32).shape == (32,)
    for refused in (7, 33, 0, -8, True, 8.0):
        with pytest.raises(LatticeError, match=r"dimensions from 8 to 32, got .*\nhint: tiny/nested was trained"):
            nested.encode("w1", dimensions=refused)
    with pytest.raises(LatticeError, match="dimensions from 8 to 32, got 7"):
        open_encoder(path, source="tiny/nested", dimensions=7)


def test_shortening_a_known_model_that_was_not_trained_for_it_is_warned(small, bare):
    with pytest.warns(LatticeWarning, match="trained for 32 and not for fewer dimensions: expect .* of 31") as caught:
        fixed = open_encoder(bare("entry"), source="bge-small", dimensions=31)
    assert len(caught) == 1
    assert fixed.dimensions == 31 and fixed.encode("w1").shape == (31,)
    with pytest.warns(LatticeWarning, match="expect worse vectors of 7") as caught:
        assert fixed.encode("w1", dimensions=7).shape == (7,)
    assert len(caught) == 1 and caught[0].filename == __file__


def test_a_real_row_never_applies_to_a_tiny_model(tiny):
    config = json.loads((tiny / "config.json").read_text())
    write_json(tiny / "config.json", config | {"_name_or_path": "BAAI/bge-small-en-v1.5"})
    assert open_encoder(tiny, source="bge-small").known is None
