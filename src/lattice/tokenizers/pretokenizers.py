"""How gpt2-style vocabularies cut text before merging, by the name in a GGUF file's `tokenizer.ggml.pre`.

The patterns are those of the models' own tokenizer.json files; where a name stands for several models, what
llama.cpp does for it decides. Each entry is a list of splits applied one after another (matches and what lies
between them become pieces), followed by the map of bytes to gpt2's alphabet.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_SYMBOLS = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
_WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_LLAMA3 = rf"{_CONTRACTIONS}|{_WORD}|\p{{N}}{{1,3}}|{_SYMBOLS}|{_SPACES}"
_QWEN2 = rf"{_CONTRACTIONS}|{_WORD}|\p{{N}}|{_SYMBOLS}|{_SPACES}"
_MARKED_WORD = r"[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+"
_QWEN35 = rf"{_CONTRACTIONS}|{_MARKED_WORD}|\p{{N}}| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{_SPACES}"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED = rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+"
_CAPITALS = rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*"
_SLASHES = r" ?[^\s\p{L}\p{N}]+[\r\n/]*"
_GPT4O = rf"{_CASED}{_CONTRACTIONS}?|{_CAPITALS}{_CONTRACTIONS}?|\p{{N}}{{1,3}}|{_SLASHES}|{_SPACES}"
_TEKKEN = rf"{_CASED}|{_CAPITALS}|\p{{N}}|{_SLASHES}|{_SPACES}"
_CJK = r"[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"
_DEEPSEEK3 = (
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    r"| ?[\p{P}\p{S}]+[\r\n]*|"
) + _SPACES


@dataclass(frozen=True)
class PreTokenizer:
    """How one family of vocabularies cuts text.

    `splits` are patterns; `gpt2` says whether gpt2's own pattern cuts last; `whole_words` whether a piece
    that is a token is taken before any merge; `normal_form` whether text is composed (NFC) first; `bos` whether
    one is added where the file does not say.
    """

    splits: tuple[str, ...] = ()
    gpt2: bool = True
    whole_words: bool = False
    normal_form: bool = False
    bos: bool = False

    def as_json(self) -> dict[str, Any]:
        """Return the pre-tokeniser as tokenizer.json writes it."""
        steps: list[dict[str, Any]] = [
            {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
            for pattern in self.splits
        ]
        steps.append({"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": self.gpt2})
        return {"type": "Sequence", "pretokenizers": steps}


def _split(*splits: str, **more: bool) -> PreTokenizer:
    return PreTokenizer(splits, gpt2=False, **more)


_GPT2 = PreTokenizer()
_DIGITS = PreTokenizer((r"\p{N}",))
_LLAMA = _split(_LLAMA3, whole_words=True, bos=True)
_QWEN = _split(_QWEN2, normal_form=True)

# What the file does not name is cut with gpt2's pattern between runs of punctuation, numbers in threes.
_GPT2_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"

BY_NAME: dict[str, PreTokenizer] = {
    "default": _split(r"[\p{P}\$\+<=>\^~\|]+", _GPT2_PATTERN, r"\p{N}+", "[0-9][0-9][0-9]"),
    **dict.fromkeys(("gpt-2", "phi-2", "mpt", "olmo", "exaone4", "mellum", "modern-bert"), _GPT2),
    **dict.fromkeys(("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"), _DIGITS),
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral", "lfm2"), _LLAMA),
    **dict.fromkeys(("dbrx", "smaug-bpe", "chatglm-bpe", "glm4"), _split(_LLAMA3)),
    "qwen2": _QWEN,
    **dict.fromkeys(("deepseek-r1-qwen", "stablelm2", "megrez", "hunyuan"), _split(_QWEN2)),
    "qwen35": _split(_QWEN35, normal_form=True),
    **dict.fromkeys(("gpt-4o", "llama4", "kanana2"), _split(_GPT4O)),
    "tekken": _split(_TEKKEN, whole_words=True, bos=True),
    "deepseek-coder": _split(r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _CJK, r"\p{N}"),
    "deepseek-v3": _split(r"\p{N}{1,3}", r"[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+", _DEEPSEEK3),
    "falcon": _split(r"[\p{P}\$\+<=>\^~\|`]+", _GPT2_PATTERN, "[0-9][0-9][0-9]"),
}
