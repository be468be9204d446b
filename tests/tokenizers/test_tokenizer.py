"""tokenizer.json directories: ids equal to transformers', cuts that keep special tokens, hostile files."""

from __future__ import annotations

import contextlib
import json
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lattice.errors import FormatError, LatticeError
from lattice.tokenizers import Tokenizer, load_tokenizer

GOLDEN = json.loads((Path(__file__).parents[1] / "golden/tokenizers/wordpiece.json").read_text())
BPE = {"type": "BPE", "vocab": {"a": 0, "b": 1, "<s>": 2, "</s>": 3}, "merges": []}
ADDED = [
    {
        "id": n,
        "content": text,
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        "special": True,
    }
    for n, text in ((2, "<s>"), (3, "</s>"))
]


def write(directory: Path, document: object, **files: object) -> Path:
    (directory / "tokenizer.json").write_text(json.dumps(document))
    for name, value in files.items():
        (directory / f"{name}.json").write_text(json.dumps(value))
    return directory


@pytest.fixture(scope="module")
def wordpiece(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    settings_ = {**GOLDEN["settings"], "pad_token": "[PAD]", "cls_token": {"content": "[CLS]"}}
    return load_tokenizer(write(tmp_path_factory.mktemp("w"), GOLDEN["tokenizer"], tokenizer_config=settings_))


def test_ids_equal_transformers_though_the_file_truncates_and_pads(wordpiece: Tokenizer) -> None:
    assert GOLDEN["tokenizer"]["truncation"] and GOLDEN["tokenizer"]["padding"]
    assert wordpiece.encode_batch(GOLDEN["strings"]) == GOLDEN["ids"]
    assert [wordpiece.encode(text) for text in GOLDEN["strings"]] == GOLDEN["ids"]


def test_special_tokens_in_a_text_are_text_when_asked(wordpiece: Tokenizer) -> None:
    text = "the [SEP] file"
    assert wordpiece.encode(text).count(3) == 2
    literal = wordpiece.encode(text, parse_special=False)
    assert literal.count(3) == 1 and literal[-1] == 3 and len(literal) > len(wordpiece.encode(text))
    assert wordpiece.encode(text, False, parse_special=False) == literal[1:-1]
    assert wordpiece.encode_batch([text, "the file"], parse_special=False) == [literal, wordpiece.encode("the file")]
    assert wordpiece.encode(text).count(3) == 2  # the other reading stays as it was


def test_cut_as_transformers_cuts(wordpiece: Tokenizer) -> None:
    rows, truncated = wordpiece.encode_truncated(GOLDEN["strings"], 9)
    assert rows == GOLDEN["cut"]
    assert truncated == sum(len(ids) > 9 for ids in GOLDEN["ids"]) > 0


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=60), st.integers(2, 20))
def test_cut_keeps_the_special_tokens(wordpiece: Tokenizer, text: str, most: int) -> None:
    (row,), truncated = wordpiece.encode_truncated([text], most)
    whole = wordpiece.encode(text)
    assert row == (whole if len(whole) <= most else [*whole[: most - 1], whole[-1]])
    assert truncated == (len(whole) > most)


def test_facts(wordpiece: Tokenizer) -> None:
    assert wordpiece.pad == 0 and wordpiece.bos is None and wordpiece.eos is None
    assert wordpiece.max_tokens == 512 and wordpiece.count_special == 2
    assert wordpiece.special_ids == {0, 1, 2, 3} and wordpiece.vocab_size == 300
    assert (
        wordpiece.token_to_id("[SEP]") == 3
        and wordpiece.id_to_token(3) == "[SEP]"
        and wordpiece.id_to_token(-1) is None
    )
    assert wordpiece.encode("x", add_special=False) == wordpiece.encode("x")[1:-1]
    assert wordpiece.decode(wordpiece.encode("the file")) == "the file"
    with pytest.raises(LatticeError, match="at least 2"):
        wordpiece.encode_truncated(["a"], 1)


def test_bos_and_eos_are_added_where_the_post_processor_does_not(tmp_path: Path) -> None:
    config = {
        "bos_token": "<s>",
        "eos_token": {"content": "</s>"},
        "add_bos_token": True,
        "add_eos_token": True,
    }
    tokenizer = load_tokenizer(write(tmp_path, {"added_tokens": ADDED, "model": BPE}, tokenizer_config=config))
    assert (tokenizer.bos, tokenizer.eos, tokenizer.count_special) == (2, 3, 2)
    assert tokenizer.encode("ab") == [2, 0, 1, 3] and tokenizer.encode("ab", add_special=False) == [0, 1]
    assert tokenizer.encode_truncated(["abab", "a"], 3) == ([[2, 0, 3], [2, 0, 3]], 1)
    assert tokenizer.encode("") == [2, 3]


def test_bos_is_not_added_twice(tmp_path: Path) -> None:
    single = [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    post = {
        "type": "TemplateProcessing",
        "single": single,
        "pair": single,
        "special_tokens": {"<s>": {"id": "<s>", "ids": [2], "tokens": ["<s>"]}},
    }
    document = {"added_tokens": ADDED, "post_processor": post, "model": BPE}
    tokenizer = load_tokenizer(write(tmp_path, document, tokenizer_config={"bos_token": "<s>", "add_bos_token": True}))
    assert tokenizer.encode("ab") == [2, 0, 1] and tokenizer.count_special == 1


def test_special_tokens_map_and_left_side(tmp_path: Path) -> None:
    directory = write(
        tmp_path,
        {"model": BPE},
        special_tokens_map={"eos_token": "</s>", "pad_token": "a"},
        tokenizer_config={"eos_token": "b", "truncation_side": "left", "model_max_length": 10**30},
    )
    tokenizer = load_tokenizer(directory)
    assert (tokenizer.eos, tokenizer.pad, tokenizer.max_tokens) == (1, 0, None)
    assert tokenizer.encode_truncated(["aab"], 2)[0] == [[0, 1]]


def test_templates(tmp_path: Path) -> None:
    config = {"chat_template": [{"name": "default", "template": "A"}, {"name": "tool_use", "template": "B"}]}
    directory = write(tmp_path, {"model": BPE}, tokenizer_config=config)
    assert load_tokenizer(directory).chat_template("tool_use").render([]) == "B"
    (directory / "chat_template.jinja").write_text("{{ bos_token is defined }}")
    assert load_tokenizer(directory).chat_template().render([]) == "False"
    with pytest.raises(LatticeError, match="named 'other'"):
        load_tokenizer(directory).chat_template("other")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"\xff\xfe",
        b'{"model": 3}',
        b'{"model": {"type": "BPE", "vocab": {"a": -1}, "merges": []}}',
        b'{"model": {"type": "BPE", "vocab": {"a": 0}, "merges": ["a b"]}}',
        b'{"model": {"type": "Nothing"}}',
        b'{"model": {"type": "Unigram", "unk_id": 5, "vocab": [["a", 0.0]]}}',
        b"[" * 100_000,
        b'{"pre_tokenizer": {"type": "Split", "pattern": {"Regex": "(("}, "behavior": "Isolated",'
        b'"invert": false},'
        b'"model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}}',
        b'{"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"},'  # panics in Rust
        b'"model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}}',
    ],
)
def test_hostile_files_are_format_errors(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(FormatError, match=r"^\[tokenizer.json[^\]]*\] expected"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    "config",
    [
        [],
        {"eos_token": 3},
        {"add_bos_token": True},
        {"bos_token": "zz", "add_bos_token": True},
        {"chat_template": 1},
        {"chat_template": [{"name": "a"}]},
    ],
)
def test_bad_settings_are_format_errors(tmp_path: Path, config: object) -> None:
    with pytest.raises(FormatError, match="tokenizer_config.json"):
        load_tokenizer(write(tmp_path, {"model": BPE}, tokenizer_config=config))


def test_missing_and_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FormatError, match=r"tokenizer\.json.*\n?hint"):
        load_tokenizer(tmp_path)
    monkeypatch.setattr("lattice.tokenizers.directory.LIMIT", 10)
    with pytest.raises(FormatError, match="at most 10 bytes"):
        load_tokenizer(write(tmp_path, {"model": BPE}))


@pytest.mark.filterwarnings("ignore::lattice.errors.LatticeWarning")  # an id that moved is only a warning
@settings(max_examples=80, deadline=None)
@given(st.integers(0, 400), st.binary(min_size=1, max_size=6))
def test_a_damaged_file_opens_or_is_a_format_error(
    tmp_path_factory: pytest.TempPathFactory, at: int, junk: bytes
) -> None:
    data = json.dumps({"added_tokens": ADDED, "model": BPE}).encode()
    directory = tmp_path_factory.mktemp("damaged")
    (directory / "tokenizer.json").write_bytes(data[: at % len(data)] + junk + data[at % len(data) + len(junk) :])
    with contextlib.suppress(LatticeError):
        load_tokenizer(directory).encode("ab")


@pytest.mark.parametrize("text", ["\ud800", 3, None, b"a"])
def test_what_is_no_text(wordpiece: Tokenizer, text: object) -> None:
    with pytest.raises(LatticeError, match="expected text"):
        wordpiece.encode(text)


@pytest.mark.parametrize("ids", [[-1], [2**32]])
def test_what_is_no_id(wordpiece: Tokenizer, ids: list[int]) -> None:
    with pytest.raises(LatticeError, match="token ids"):
        wordpiece.decode(ids)
    assert wordpiece.decode([299_999]) == ""


def test_a_megabyte_of_one_character_ends(wordpiece: Tokenizer) -> None:
    began = time.thread_time()
    assert len(wordpiece.encode("a" * (1 << 20))) >= 3
    assert len(wordpiece.encode(" " * (1 << 20))) == 2
    assert time.thread_time() - began < 20
