"""WordPiece vocabularies as GGUF files keep them, rebuilt as a BERT tokenizer.json.

GGUF writes the tokens that begin a word with U+2581 before them, those that go on without `##`, and `[CLS]` and its
like as they are. Whether letters are lowered (and lose their accents, which goes with it) is
`tokenizer.ggml.normalizer.lowercase` where a file says so; else it is read off the vocabulary: one that has no
upper-case letter can only have been made for lowered text.
"""

from __future__ import annotations

from typing import Any

from lattice.errors import FormatError, expected
from lattice.tokenizers.document import added_token, whole
from lattice.tokenizers.normalize import SPACE

_LONGEST = 100  # characters of a word that is looked up, as BERT's own


def restore(tokens: list[str], control: list[bool]) -> list[str]:
    """Return the tokens as vocab.txt has them.

    >>> restore(["[CLS]", "\u2581the", "s"], [True, False, False])
    ['[CLS]', 'the', '##s']
    """
    if not any(token.startswith(SPACE) for token in tokens):
        raise expected("tokenizer.ggml.tokens", "words that begin with U+2581", "none", kind=FormatError)
    result = []
    for token, special in zip(tokens, control, strict=True):
        if special or (token.startswith("[") and token.endswith("]") and len(token) > 2):
            result.append(token)
        else:
            result.append(token[1:] if token.startswith(SPACE) else f"##{token}")
    return result


def is_lowered(tokens: list[str], control: list[bool]) -> bool:
    """Return whether no token but the special ones has an upper-case letter."""
    plain = (token for token, special in zip(tokens, control, strict=True) if not special and token[:1] != "[")
    return all(token == token.lower() for token in plain)


def document(tokens: list[str], special: dict[str, int], control: list[bool], lower: bool) -> dict[str, Any]:
    """Return the tokenizer.json of a WordPiece vocabulary; `special` are ids by role ("unk", ...)."""
    if "unk" not in special:
        raise expected("tokenizer.ggml.unknown_token_id", "an unknown token", "none", kind=FormatError)
    roles = set(special.values())
    marked = [n for n in range(len(tokens)) if control[n] or n in roles]
    return whole(
        [added_token(n, tokens[n], True) for n in marked],
        {
            "type": "WordPiece",
            "unk_token": tokens[special["unk"]],
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": _LONGEST,
            "vocab": {token: number for number, token in enumerate(tokens)},
        },
        normalizer={
            "type": "BertNormalizer",
            "clean_text": True,
            "handle_chinese_chars": True,
            "strip_accents": None,
            "lowercase": lower,
        },
        pre_tokenizer={"type": "BertPreTokenizer"},
        decoder={"type": "WordPiece", "prefix": "##", "cleanup": True},
    )
