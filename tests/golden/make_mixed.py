"""Make tests/golden/tokenizers/mixed.json: 10,000 mixed Unicode strings through foreign tokenizers.

Run from the repository's root, in an environment with `pip install -e '.[golden]' sentencepiece tiktoken`:

    python tests/golden/make_mixed.py

The strings come from tests/mixed_strings.py. For each kind: a SHA-256 over all ids, a short digest for each hundred
strings, and the ids of some short strings. Vocabularies are tiny: those of bpe.json and wordpiece.json, and models
trained here on this repository's own text (kept zlib-compressed in base64), whose charsmap is a part of NFKC with keys
of several characters, deletions and replacements by spaces.

Foreign: transformers over `tokenizers` (byte-level, WordPiece), `sentencepiece` (BPE and unigram), `tiktoken`.
"""

from __future__ import annotations

import base64
import io
import json
import sys
import tempfile
import unicodedata
import zlib
from pathlib import Path

import sentencepiece
import tiktoken
import tokenizers
from transformers import PreTrainedTokenizerFast

ROOT = Path(__file__).resolve().parents[2]
OUT = Path(__file__).with_name("tokenizers")
sys.path.insert(0, str(ROOT / "tests"))
from mixed_strings import digest, digests, mixed  # noqa: E402

COUNT, CASES = 10_000, 40
CL100K = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+"
    r"|\s++$|\s*[\r\n]|\s+(?!\S)|\s"
)
MODELS = {
    "sp_bpe": {  # as Llama and Gemma have it
        "model_type": "bpe", "vocab_size": 700, "byte_fallback": True, "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False, "add_dummy_prefix": False, "character_coverage": 0.99,
        "user_defined_symbols": ["▁▁", "▁▁▁▁", "<tool>", "\n"],
    },
    "sp_bpe_rules": {
        "model_type": "bpe", "vocab_size": 450, "rules": True, "character_coverage": 0.98,
        "user_defined_symbols": ["ﬁx", "<tool>", "e"],
    },
    "sp_unigram": {"model_type": "unigram", "vocab_size": 400, "rules": True, "character_coverage": 0.98},
    "sp_unigram_bytes": {
        "model_type": "unigram", "vocab_size": 500, "byte_fallback": True, "rules": True, "character_coverage": 0.99,
        "add_dummy_prefix": False, "remove_extra_whitespaces": False, "user_defined_symbols": ["<tool>", "ﬁx"],
    },
}  # fmt: skip


def rules() -> str:
    table = {"\x01": "", "\t": " ", "\n": " ", "\r": " ", "\u3000": " ", "\u200b": "", "\ufeff": "", "\x07": ""}
    ranges = [(0xA0, 0x180), (0x1E00, 0x1E40), (0x2070, 0x20A0), (0x2150, 0x2170), (0x2460, 0x2480), (0xFB00, 0xFB07),
              (0xFF01, 0xFFA0), (0x3041, 0x30FF), (0xAC00, 0xAC40), (0x2000, 0x200B)]  # fmt: skip
    for low, high in ranges:
        for point in range(low, high):
            one = chr(point)
            if (value := unicodedata.normalize("NFKC", one)) != one:
                table[one] = value
            if (parts := unicodedata.normalize("NFD", one)) != one:
                table[parts] = unicodedata.normalize("NFKC", one)
    return "".join(
        " ".join(f"{ord(c):X}" for c in key) + "\t" + " ".join(f"{ord(c):X}" for c in value) + "\n"
        for key, value in table.items()
    )


def own_text() -> list[str]:
    lines = [line for path in sorted((ROOT / "src").rglob("*.py"))[:40] for line in path.read_text().splitlines()]
    extra = "Grüße aus Köln, naïve café. Привет, мир! こんにちは世界 你好 안녕 123 4567 don't I'LL we've aaaa ---- ===="
    return [line for line in lines if line.strip()] + [extra] * 50


def train(rules_file: str, options: dict) -> bytes:
    options = dict(options)
    if options.pop("rules", False):
        options["normalization_rule_tsv"] = rules_file
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(own_text()),
        model_writer=model,
        minloglevel=2,
        num_threads=1,
        hard_vocab_limit=False,
        **options,
    )
    return model.getvalue()


def record(ids: list[list[int]], strings: list[str]) -> dict:
    cases = [at for at, text in enumerate(strings) if 0 < len(text) <= 40][:CASES]
    return {"digest": digest(ids), "hundreds": "".join(digests(ids)), "cases": {at: ids[at] for at in cases}}


def byte_level(strings: list[str]) -> list[list[int]]:
    metadata = json.loads((OUT / "bpe.json").read_text())["metadata"]
    tokens = metadata["tokenizer.ggml.tokens"]
    merges = [tuple(text.split(" ")) for text in metadata["tokenizer.ggml.merges"]]
    library = tokenizers.Tokenizer(tokenizers.models.BPE({t: n for n, t in enumerate(tokens)}, merges))
    library.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.add_special_tokens(tokens[:3])
    return PreTrainedTokenizerFast(tokenizer_object=library)(strings)["input_ids"]


def wordpiece(strings: list[str]) -> list[list[int]]:
    document = json.loads((OUT / "wordpiece.json").read_text())["tokenizer"] | {"truncation": None, "padding": None}
    library = tokenizers.Tokenizer.from_str(json.dumps(document))
    return PreTrainedTokenizerFast(tokenizer_object=library)(strings)["input_ids"]


def ranks(strings: list[str]) -> list[list[int]]:
    alphabet = {character: byte for byte, character in tokenizers_alphabet().items()}
    tokens = json.loads((OUT / "bpe.json").read_text())["metadata"]["tokenizer.ggml.tokens"][3:]
    mergeable = {bytes(alphabet[c] for c in token): rank for rank, token in enumerate(tokens)}
    encoding = tiktoken.Encoding(
        "tiny", pat_str=CL100K, mergeable_ranks=mergeable, special_tokens={"<think>": len(tokens)}
    )
    return [encoding.encode(text, allowed_special="all") for text in strings]


def tokenizers_alphabet() -> dict[int, str]:
    step = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    table = {}
    for point in range(0x800):  # every byte but those of longer sequences, which follow
        for byte, character in zip(chr(point).encode(), step.pre_tokenize_str(chr(point))[0][0], strict=True):
            table[byte] = character
    for point in [*range(0x800, 0xD800, 64), *range(0x10000, 0x110000, 4096)]:
        for byte, character in zip(chr(point).encode(), step.pre_tokenize_str(chr(point))[0][0], strict=True):
            table[byte] = character
    missing = sorted(set(range(256)) - set(table))  # bytes that UTF-8 does not use
    unused = sorted(set(tokenizers.pre_tokenizers.ByteLevel.alphabet()) - set(table.values()), key=ord)
    printable = [character for character in unused if ord(character) < 256]
    return (
        table
        | {ord(c): c for c in printable}
        | dict(zip([b for b in missing if chr(b) not in printable], [c for c in unused if ord(c) >= 256], strict=True))
    )


def main() -> None:
    strings = mixed(COUNT)
    result: dict = {"kinds": {}, "models": {}}
    for name, make in (("byte_level", byte_level), ("wordpiece", wordpiece), ("tiktoken", ranks)):
        result["kinds"][name] = record(make(strings), strings)
    with tempfile.NamedTemporaryFile("w", suffix=".tsv") as file:
        file.write(rules())
        file.flush()
        for name, options in MODELS.items():
            model = train(file.name, options)
            processor = sentencepiece.SentencePieceProcessor(model_proto=model)
            result["models"][name] = base64.b64encode(zlib.compress(model, 9)).decode()
            result["kinds"][name] = record([processor.encode(text) for text in strings], strings)
    (OUT / "mixed.json").write_text(json.dumps(result, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
