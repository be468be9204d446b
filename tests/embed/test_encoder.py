"""The encoder, against a foreign implementation and against itself."""

from __future__ import annotations

import json
import threading
import warnings
from pathlib import Path

import numpy as np
import pytest
from encoders import BACKENDS, RUNNABLE, arrays, open_encoder, same_bits
from hypothesis import given, settings
from hypothesis import strategies as st

import lattice
from lattice.errors import LatticeError, LatticeWarning

GOLDEN = Path(__file__).parents[1] / "golden" / "models"
CHECKPOINTS = sorted(path.name for path in GOLDEN.glob("*bert*"))
TEXTS = ["w1 w2 w3", "w4", "", "w5 w6 w7 w8 w9 w10 w11", "w12 unknown", "w1 w2 w3"]


def checkpoint(name):
    path = GOLDEN / name
    return path / "model.gguf" if (path / "model.gguf").is_file() else path


# ---- hidden states -----------------------------------------------------------------------------------------
@pytest.mark.parametrize("dtype", ["auto", "f32"])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", CHECKPOINTS)
def test_hidden_states_are_those_of_the_foreign_implementation(name, backend, dtype):
    encoder = open_encoder(checkpoint(name), backend, dtype=dtype)
    expected = arrays(GOLDEN / name / "golden.npz")
    tolerance = 1e-3 if dtype == "auto" else 1e-4
    for index in range(len(expected) // 2):
        want, got = expected[f"hidden_{index}"], encoder.hidden(expected[f"tokens_{index}"])
        assert got.dtype == np.float32
        assert np.abs(got - want).max() <= tolerance * max(1, np.abs(want).max())


@pytest.mark.parametrize("backend", BACKENDS)
def test_hidden_refuses_what_the_model_has_no_place_for(backend):
    encoder = open_encoder(GOLDEN / "bert-short-table", backend)
    assert encoder.hidden([1] * 40).shape == (40, 32)
    with pytest.raises(LatticeError, match="1 to 40 tokens, got 41"):
        encoder.hidden([1] * 41)
    for tokens, message in [
        ([], "token"),
        ([70], "0 to 69"),
        ([-1], "0 to 69"),
        ([[1]], "list"),
        ([0.5], "list"),
    ]:
        with pytest.raises(LatticeError, match=message):
            encoder.hidden(tokens)


def test_a_directory_without_tokenizer_or_pooling_loads_and_says_what_is_missing(tiny):
    (tiny / "tokenizer.json").unlink()
    encoder = open_encoder(tiny)
    assert encoder.hidden([1, 2]).shape == (2, 32)
    for attempt in (lambda: encoder.encode("w1"), lambda: encoder.tokenizer):
        with pytest.raises(LatticeError, match=r"tokenizer\.json"):
            attempt()
    bare = open_encoder(GOLDEN / "bert-gelu")
    assert bare.hidden([1, 2]).shape == (2, 32)
    with pytest.raises(LatticeError, match=r"1_Pooling/config\.json"):
        bare.encode("w1")


@pytest.mark.parametrize("backend", [name for name in BACKENDS if name != "reference"])
def test_plans_grow_with_the_texts_and_keep_their_bits(backend):
    """Causal, so that the states of the first tokens are the same whatever follows; 600 is more than a usual step."""
    encoder = open_encoder(GOLDEN / "qwen3-tied", backend)
    tokens = np.random.default_rng(0).integers(0, encoder.config.vocab_size, 1024)
    whole = {length: encoder.hidden(tokens[:length]) for length in (5, 600, 5, 1023, 512, 513)}
    longest = encoder.hidden(tokens)
    assert all(same_bits(states, longest[:length]) for length, states in whole.items())


# ---- vectors -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("mode", ["mean_tokens", "cls_token", "lasttoken"])
def test_a_vector_is_the_pooled_hidden_state(tiny, backend, mode):
    (tiny / "1_Pooling" / "config.json").write_text(json.dumps({f"pooling_mode_{mode}": True}))
    encoder = open_encoder(tiny, backend)
    hidden = encoder.hidden([2, 5, 6, 3])  # [CLS] w1 w2 [SEP]
    pooled = {"mean_tokens": hidden.mean(0), "cls_token": hidden[0], "lasttoken": hidden[-1]}[mode]
    assert np.allclose(encoder.encode("w1 w2", normalize=False), pooled, atol=1e-6)
    assert np.allclose(encoder.encode("w1 w2"), pooled / np.linalg.norm(pooled), atol=1e-6)


@pytest.mark.parametrize(("dtype", "least"), [("bf16", 0.9999), ("int8", 0.999)])
def test_faster_dtypes_stay_close_and_keep_their_bits(tiny, dtype, least):
    """One vector a text, alone and beside others, on every target; and never what "auto" does."""
    exact, rounded = (
        open_encoder(tiny).encode(TEXTS),
        {name: open_encoder(tiny, name, dtype=dtype) for name in RUNNABLE},
    )
    vectors = [encoder.encode(TEXTS) for encoder in rounded.values()]
    assert (vectors[0] * exact).sum(1).mean() > least
    assert all(same_bits(found, vectors[0]) for found in vectors)
    auto = open_encoder(tiny, RUNNABLE[-1])
    assert not same_bits(auto.encode(TEXTS), vectors[0])
    for encoder in rounded.values():
        assert same_bits(np.stack([encoder.encode(text) for text in TEXTS]), vectors[0])
        assert encoder.weights.bytes <= auto.weights.bytes * 1.5  # tiny rows are padded


def test_shapes_and_lengths(tiny):
    encoder = open_encoder(tiny)
    assert encoder.encode("w1").shape == (32,)
    assert encoder.encode(["w1"]).shape == (1, 32)
    assert encoder.encode(TEXTS).shape == (6, 32)
    assert encoder.encode(()).shape == (0, 32) and encoder.encode([]).dtype == np.float32
    assert encoder.encode(np.array(["w1", "w2"])).shape == (2, 32)
    assert np.allclose(np.linalg.norm(encoder.encode(TEXTS), axis=1), 1, atol=1e-6)


def test_an_empty_text_is_its_special_tokens(tiny):
    encoder = open_encoder(tiny)
    assert np.allclose(encoder.encode("", normalize=False), encoder.hidden([2, 3]).mean(0), atol=1e-6)


def test_matryoshka_shortens_before_it_scales(tiny):
    encoder = open_encoder(tiny)
    whole = encoder.encode(TEXTS, normalize=False)
    assert same_bits(encoder.encode(TEXTS, normalize=False, dimensions=8), np.ascontiguousarray(whole[:, :8]))
    short = encoder.encode(TEXTS, dimensions=8)
    assert np.allclose(short, whole[:, :8] / np.linalg.norm(whole[:, :8], axis=1, keepdims=True), atol=1e-6)
    always = open_encoder(tiny, dimensions=8)
    assert always.dimensions == 8 and same_bits(always.encode(TEXTS), short)
    assert always.encode("w1", dimensions=32).shape == (32,)
    for wrong in (0, 33, -1, 8.0, True):
        with pytest.raises(LatticeError, match="dimensions from 1 to 32"):
            encoder.encode("w1", dimensions=wrong)
        with pytest.raises(LatticeError, match="dimensions from 1 to 32"):
            open_encoder(tiny, dimensions=wrong)


words = st.lists(st.sampled_from([f"w{n}" for n in range(60)]), max_size=25).map(" ".join)


@pytest.mark.parametrize("backend", [name for name in BACKENDS if name != "reference"])
@pytest.mark.parametrize("dtype", ["auto", "f32"])
def test_a_text_has_one_vector_whatever_is_beside_it(tiny, backend, dtype):
    encoder = open_encoder(tiny, backend, dtype=dtype)

    @settings(max_examples=60)
    @given(
        st.lists(words, min_size=1, max_size=40),
        st.randoms(),
        st.sampled_from([None, 1, 7, 31]),
        st.booleans(),
    )
    def check(texts, random, dimensions, normalize):
        options = dict(dimensions=dimensions, normalize=normalize)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", LatticeWarning)
            alone = {text: encoder.encode(text, **options) for text in texts}
            order = list(texts)
            random.shuffle(order)
            for batch in (texts, order, texts[: len(texts) // 2 + 1]):
                for text, vector in zip(batch, encoder.encode(batch, **options), strict=True):
                    assert same_bits(vector, alone[text])

    check()


def test_threads_share_an_encoder(tiny):
    encoder = open_encoder(tiny, RUNNABLE[-1])
    expected = {text: encoder.encode(text) for text in TEXTS}
    wrong = []

    def work(text):
        wrong.extend(text for _ in range(50) if not same_bits(encoder.encode(text), expected[text]))

    threads = [threading.Thread(target=work, args=(text,)) for text in TEXTS]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


# ---- long texts --------------------------------------------------------------------------------------------
def test_a_long_text_is_cut_with_its_special_tokens_kept_and_one_warning(tiny):
    encoder = open_encoder(tiny)
    assert encoder.max_tokens == 20
    long = " ".join(f"w{n}" for n in range(30))
    with pytest.warns(LatticeWarning, match="2 of 3 longer, the longest 32") as caught:
        vectors = encoder.encode([long, "w1", long])
    assert len(caught) == 1 and caught[0].filename == __file__
    kept = encoder.hidden([2, *range(4, 22), 3])
    assert np.allclose(vectors[0], kept.mean(0) / np.linalg.norm(kept.mean(0)), atol=1e-6)
    with pytest.raises(LatticeError, match=r"at most 20 tokens, got 2 of 3 longer, the longest 32"):
        encoder.encode([long, "w1", long], truncate=False)


def test_a_text_of_just_the_longest_length_is_not_cut(tiny):
    encoder = open_encoder(tiny)
    assert encoder.encode(" ".join(f"w{n}" for n in range(18)), truncate=False).shape == (32,)


def test_the_longest_text_is_the_settings_or_the_position_table(tiny):
    (tiny / "sentence_bert_config.json").unlink()
    assert open_encoder(tiny).max_tokens == 136
    (tiny / "sentence_bert_config.json").write_text('{"max_seq_length": 500}')
    assert open_encoder(tiny).max_tokens == 136


# ---- prompts, case, errors ---------------------------------------------------------------------------------
def test_prompts_go_before_the_text(tiny):
    prompts = {"prompts": {"query": "w7 ", "passage": "w8 "}, "default_prompt_name": None}
    (tiny / "config_sentence_transformers.json").write_text(json.dumps(prompts))
    encoder = open_encoder(tiny)
    assert same_bits(encoder.encode_query("w1"), encoder.encode("w7 w1"))
    assert same_bits(encoder.encode_document(["w1"]), encoder.encode(["w8 w1"]))
    assert same_bits(encoder.encode("w1", prompt_name="passage"), encoder.encode("w8 w1"))
    with pytest.raises(LatticeError, match="query, passage"):
        encoder.encode("w1", prompt_name="clustering")


def test_a_prompt_that_is_not_pooled_is_refused(tiny):
    (tiny / "config_sentence_transformers.json").write_text('{"prompts": {"query": "w7 "}}')
    (tiny / "1_Pooling" / "config.json").write_text('{"pooling_mode_mean_tokens": true, "include_prompt": false}')
    encoder = open_encoder(tiny)
    assert encoder.encode("w1").shape == (32,)
    with pytest.raises(LatticeError, match="include_prompt"):
        encoder.encode_query("w1")


def test_models_without_prompts_embed_queries_as_they_are(tiny):
    encoder = open_encoder(tiny)
    assert same_bits(encoder.encode_query("w1", dimensions=4), encoder.encode("w1", dimensions=4))
    assert same_bits(encoder.encode_document("w1", normalize=False), encoder.encode("w1", normalize=False))


def test_lower_case_is_honoured(tiny):
    cased = json.loads((tiny / "tokenizer.json").read_text()) | {"normalizer": None}
    (tiny / "tokenizer.json").write_text(json.dumps(cased))
    encoder = open_encoder(tiny)
    assert not same_bits(encoder.encode("W1"), encoder.encode("w1"))
    (tiny / "sentence_bert_config.json").write_text('{"max_seq_length": 20, "do_lower_case": true}')
    encoder = open_encoder(tiny)
    assert same_bits(encoder.encode("W1"), encoder.encode("w1"))


@pytest.mark.parametrize("wrong", [None, 7, b"w1", ["w1", 7], ["w1", None], [["w1"]], {"w1"}, np.zeros(2)])
def test_what_is_not_text_is_refused(tiny, wrong):
    with pytest.raises(LatticeError, match="a str or a list of str"):
        open_encoder(tiny).encode(wrong)


def test_a_text_without_tokens_is_refused(tiny):
    bare = json.loads((tiny / "tokenizer.json").read_text()) | {"post_processor": None}
    (tiny / "tokenizer.json").write_text(json.dumps(bare))
    encoder = open_encoder(tiny)
    assert encoder.encode("w1").shape == (32,)
    with pytest.raises(LatticeError, match="at least one token"):
        encoder.encode(["w1", ""])


def test_progress_goes_to_standard_error_when_asked_for(tiny, capsys):
    encoder = open_encoder(tiny)
    encoder.encode(TEXTS)
    assert capsys.readouterr() == ("", "")
    encoder.encode(TEXTS, show_progress=True)
    captured = capsys.readouterr()
    assert captured.out == "" and "Embedding" in captured.err


def test_devices(tiny):
    assert lattice.load_encoder(tiny, device="cpu").encode("w1").shape == (32,)
    with pytest.raises(LatticeError, match="auto, cpu or gpu"):
        lattice.load_encoder(tiny, device="cuda")
    with pytest.raises(LatticeError, match="dtype among"):
        lattice.load_encoder(tiny, dtype="f8")


# ---- a real model ------------------------------------------------------------------------------------------
@pytest.mark.real
def test_minilm_is_what_sentence_transformers_computes(real_model, golden):
    expected = arrays(golden / "sentences.npz")
    texts = (golden / "sentences.txt").read_text("utf-8").splitlines()
    encoder = lattice.load_encoder(real_model("minilm"))
    assert (encoder.dimensions, encoder.max_tokens) == (384, 256)
    sequences, cut = encoder._texts.tokenize(texts, "")
    assert sorted(cut) == sorted(length for length in expected["lengths"] if length > 256)
    offsets = expected["offsets"]
    for tokens, start, end in zip(sequences, offsets, offsets[1:], strict=False):
        assert tokens == expected["tokens"][start:end].tolist()
    with pytest.warns(LatticeWarning, match=f"{len(cut)} of 200 longer"):
        vectors = encoder.encode(texts)
    cosines = np.sum(vectors.astype(np.float64) * expected["vectors"], axis=1)
    assert cosines.min() >= 0.99999
    for index in (0, 17, 101, 199):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", LatticeWarning)
            assert same_bits(encoder.encode(texts[index]), vectors[index])
