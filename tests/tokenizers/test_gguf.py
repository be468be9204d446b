"""Vocabularies in GGUF metadata: ids equal to llama.cpp's, the cache, and malformed metadata."""

from __future__ import annotations

import json
import random
import unicodedata
from pathlib import Path

import pytest

from lattice.errors import FormatError, LatticeError, LatticeWarning
from lattice.tokenizers import load_tokenizer, tokenizer_from_gguf
from lattice.tokenizers.gguf import _shorten
from lattice.tokenizers.pretokenizers import BY_NAME

GOLDEN = json.loads((Path(__file__).parents[1] / "golden/tokenizers/bpe.json").read_text())
METADATA = {**GOLDEN["metadata"], "tokenizer.ggml.pre": "smollm"}
SMOLLM2 = {  # ids that llama.cpp gives
    "Hello world 123": [19556, 905, 216, 33, 34, 35],
    "Grüße, 世界! don't": [27302, 7170, 34878, 85, 28, 216, 7906, 240, 178, 239, 230, 17, 1326, 982],
}


@pytest.mark.parametrize("name", GOLDEN["ids"])
def test_ids_equal_llama_cpp(name: str) -> None:
    tokenizer = tokenizer_from_gguf({**METADATA, "tokenizer.ggml.pre": name})
    for text, ids in zip(GOLDEN["strings"], GOLDEN["ids"][name], strict=True):
        if BY_NAME[name].normal_form and unicodedata.normalize("NFC", text) != text:
            continue  # the models' own tokenizers compose, llama.cpp does not
        assert tokenizer.encode(text, add_special=False) == ids, text


def test_merges_are_written_short_where_that_means_the_same(tmp_path: Path) -> None:
    for pairs in ([["a", "b c"]], [["a", "b"], [" ", "c"]], [["#version", "x"]]):
        model = {"merges": pairs}
        _shorten(model)
        assert model == {"merges": pairs}
    tokenizer_from_gguf(METADATA, tmp_path, "key")
    written = json.loads((tmp_path / "key" / "tokenizer.json").read_text())["model"]["merges"]
    assert written == METADATA["tokenizer.ggml.merges"]
    without = {"vocab": {}}
    _shorten(without)
    assert without == {"vocab": {}}


def test_every_distinct_pretokenizer_has_a_golden() -> None:
    assert {BY_NAME[name] for name in GOLDEN["ids"]} == set(BY_NAME.values())


def test_composes_where_the_model_does() -> None:
    tokenizer = tokenizer_from_gguf({**METADATA, "tokenizer.ggml.pre": "qwen2"})
    assert tokenizer.encode("e\u0301") == tokenizer.encode("\u00e9")


def test_text_survives() -> None:
    tokenizer = tokenizer_from_gguf(METADATA)
    for text in GOLDEN["strings"]:
        assert tokenizer.decode(tokenizer.encode(text), skip_special=False) == text
        stream = tokenizer.stream(skip_special=False)
        assert "".join(map(stream.push, tokenizer.encode(text))) + stream.finish() == text


def test_special_tokens() -> None:
    tokenizer = tokenizer_from_gguf(METADATA)
    assert (tokenizer.bos, tokenizer.eos, tokenizer.pad) == (1, 2, None)
    assert tokenizer.special_ids == {0, 1, 2}
    assert tokenizer.encode("<|im_end|>") == [2] and tokenizer.decode([2]) == ""
    types = list(METADATA["tokenizer.ggml.token_type"])
    types[2] = 4  # user-defined: matched in text, and shown
    assert tokenizer_from_gguf({**METADATA, "tokenizer.ggml.token_type": types}).decode([2]) == "<|im_end|>"


def test_adds_what_the_file_says() -> None:
    both = {**METADATA, "tokenizer.ggml.add_bos_token": True, "tokenizer.ggml.add_eos_token": True}
    plain = tokenizer_from_gguf(METADATA).encode("a b")
    assert tokenizer_from_gguf(both).encode("a b") == [1, *plain, 2]
    unsaid = {**METADATA, "tokenizer.ggml.pre": "llama-bpe"}
    del unsaid["tokenizer.ggml.add_bos_token"]
    assert tokenizer_from_gguf(unsaid).encode("a")[0] == 1


def test_cache_is_a_tokenizer_directory(tmp_path: Path) -> None:
    metadata = {**METADATA, "tokenizer.chat_template": "{{ eos_token }}!"}
    built = tokenizer_from_gguf(metadata, tmp_path, "0123abcd")
    opened = tokenizer_from_gguf({}, tmp_path, "0123abcd")  # metadata is not looked at
    directly = load_tokenizer(tmp_path / "0123abcd")
    for tokenizer in (built, opened, directly):
        assert tokenizer.encode_batch(GOLDEN["strings"]) == GOLDEN["ids"]["smollm"]
        assert tokenizer.chat_template().render([]) == "<|im_end|>!"
    assert sorted(path.name for path in (tmp_path / "0123abcd").iterdir()) == [
        "tokenizer.json",
        "tokenizer_config.json",
    ]


@pytest.mark.parametrize("file", ["tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize("damage", ["gone", "empty", "cut", "changed"])
def test_damaged_cache_is_built_again(tmp_path: Path, file: str, damage: str) -> None:
    tokenizer_from_gguf(METADATA, tmp_path, "k")
    path = tmp_path / "k" / file
    data = path.read_bytes()
    changed = data.replace(b'"Hello"', b'"Hallo"') if b'"Hello"' in data else data[:40] + b"\x01" + data[41:]
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes({"empty": b"", "cut": data[: len(data) // 2], "changed": changed}[damage])
    tokenizer = tokenizer_from_gguf(METADATA, tmp_path, "k")
    assert tokenizer.encode_batch(GOLDEN["strings"]) == GOLDEN["ids"]["smollm"]
    assert path.read_bytes() == data


@pytest.mark.parametrize("key", ["", "..", "a/b", "/etc", ".hidden", "a\0b", "x" * 200])
def test_key_cannot_leave_the_cache(tmp_path: Path, key: str) -> None:
    with pytest.raises(LatticeError, match="tokenizer cache"):
        tokenizer_from_gguf(METADATA, tmp_path, key)


def test_cache_that_cannot_be_written_costs_a_warning(tmp_path: Path) -> None:
    (tmp_path / "k").write_text("a file where the directory should be")
    with pytest.warns(LatticeWarning, match="could not be cached"):
        assert tokenizer_from_gguf(METADATA, tmp_path, "k").vocab_size == 700


@pytest.mark.parametrize("model", ["rwkv", "plamo2", "nonsense", None, 3])
def test_other_vocabularies_are_refused_clearly(model: object) -> None:
    with pytest.raises(FormatError, match=r"\[tokenizer.ggml.model\] expected 'gpt2'"):
        tokenizer_from_gguf({**METADATA, "tokenizer.ggml.model": model})


def test_unknown_pretokenizer_lists_the_known() -> None:
    with pytest.raises(FormatError, match=r"one of .*llama-bpe.*smollm"):
        tokenizer_from_gguf({**METADATA, "tokenizer.ggml.pre": "zzz"})


def test_unnamed_pretokenizer_warns() -> None:
    metadata = {key: value for key, value in METADATA.items() if key != "tokenizer.ggml.pre"}
    with pytest.warns(LatticeWarning, match="default"):
        tokenizer = tokenizer_from_gguf(metadata)
    assert tokenizer.encode_batch(GOLDEN["strings"]) == GOLDEN["ids"]["default"]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("tokens", None),
        ("tokens", "abc"),
        ("tokens", [1, 2]),
        ("tokens", []),
        ("tokens", ["a", "a"]),
        ("tokens", 7),
        ("merges", None),
        ("merges", ["ab"]),
        ("merges", ["a "]),
        ("merges", ["zzzz yyyy"]),
        ("merges", [3]),
        ("token_type", [1]),
        ("token_type", ["x"] * 700),
        ("token_type", 5),
        ("bos_token_id", -1),
        ("bos_token_id", 700),
        ("eos_token_id", "x"),
        ("eos_token_id", True),
        ("eos_token_id", 1.5),
        ("add_bos_token", "yes"),
    ],
)
def test_malformed_metadata_is_a_format_error(key: str, value: object) -> None:
    with pytest.raises(FormatError):
        tokenizer_from_gguf({**METADATA, f"tokenizer.ggml.{key}": value})


@pytest.mark.real
def test_smollm2() -> None:
    from lattice.weights.checkpoint import open_checkpoint
    from lattice.weights.sources import resolve

    checkpoint = open_checkpoint(resolve("smollm2-135m"))
    tokenizer = tokenizer_from_gguf(checkpoint.config)
    assert tokenizer.vocab_size == 49152 and (tokenizer.bos, tokenizer.eos) == (1, 2)
    assert tokenizer.encode("Hello world 123") == SMOLLM2["Hello world 123"]
    assert tokenizer.encode("Grüße, 世界! don't") == SMOLLM2["Grüße, 世界! don't"]
    prompt = tokenizer.chat_template().render([{"role": "user", "content": "Hi"}])
    assert prompt == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )
    rng = random.Random(1)
    for _ in range(300):
        text = "".join(chr(rng.choice([rng.randrange(32, 127), rng.randrange(0xA0, 0xD7FF)])) for _ in range(20))
        ids = tokenizer.encode(text)
        stream = tokenizer.stream()
        assert "".join(map(stream.push, ids)) + stream.finish() == tokenizer.decode(ids) == text
