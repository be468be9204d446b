"""What a checkpoint says about text: stop tokens; tokenizers that are missing, unreadable or beside a file."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from small_models import write_tokenizer

from lattice.errors import LatticeError
from lattice.generate import load
from lattice.generate.prompt import Texts


def gguf_texts(tmp_path, **metadata):
    """Return the texts side of a GGUF file of this metadata, with a tokenizer.json beside it."""
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF")
    metadata = {f"tokenizer.ggml.{name}": value for name, value in metadata.items()}
    return Texts(SimpleNamespace(kind="gguf", path=path, directory=tmp_path, metadata=metadata, config=metadata))


def test_stop_tokens_of_a_gguf_file(tmp_path):
    assert gguf_texts(tmp_path).stop_tokens == frozenset()
    assert gguf_texts(tmp_path, eos_token_id=7, eot_token_id=9, eom_token_id=11).stop_tokens == {7, 9, 11}
    with pytest.raises(LatticeError, match="eos_token_id"):
        _ = gguf_texts(tmp_path, eos_token_id="7").stop_tokens


def test_a_gguf_file_whose_tokenizer_is_not_read_needs_one_beside_it(tmp_path):
    texts = gguf_texts(tmp_path, model="none of ours")
    assert texts.tokenizer is None
    assert texts.stop_tokens == frozenset()
    assert texts.tokens([1, 2]) == [1, 2]
    with pytest.raises(LatticeError, match="none of ours"):
        texts.tokens("abc")
    write_tokenizer(tmp_path, 70)
    texts = gguf_texts(tmp_path, model="none of ours")
    assert len(texts.tokens("abc")) == 3
    assert texts.stop_tokens == {2}  # <|im_end|>


def test_a_malformed_tokenizer_only_matters_to_text(make):
    directory = make(text=True)
    (directory / "tokenizer.json").write_text("{}")
    lm = load(directory)
    assert len(lm.generate([1, 2], max_tokens=3).tokens) == 3
    for _ in range(2):
        with pytest.raises(LatticeError, match=r"tokenizer\.json"):
            lm.generate("abc")


def test_malformed_generation_settings_are_an_error(make):
    directory = make()
    (directory / "generation_config.json").write_text('{"temperature": NaN}')
    with pytest.raises(LatticeError, match="generation_config"):
        load(directory).generate([1])
