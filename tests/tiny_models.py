"""Tiny complete models on disk: a committed checkpoint, and beside it a tokenizer and settings made here.

Their words are w0, w1, ...; what they say means nothing, but everything around the weights is as published
models have it.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

GOLDEN = Path(__file__).parent / "golden" / "models"
TEMPLATE = (
    "{% for message in messages %}<s> {{ message['role'] }} {{ message['content'] }} </s> {% endfor %}"
    "{% if add_generation_prompt %}<s> assistant {% endif %}"
)

THINKING = TEMPLATE.replace(
    "<s> assistant ", "<s> assistant <think> {% if enable_thinking is false %}</think> {% endif %}"
)


def write_json(path: Path, value: object) -> None:
    """Write a JSON file, making its directory."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), "utf-8")


def words(vocabulary: list[str]) -> Tokenizer:
    """Return a tokenizer whose tokens are words; lower case, "[UNK]" for others."""
    tokenizer = Tokenizer(models.WordLevel({token: index for index, token in enumerate(vocabulary)}, "[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return tokenizer


def write_encoder(directory: Path) -> Path:
    """Write an encoder of 32 dimensions and a longest text of 20 tokens; return its directory."""
    shutil.copytree(GOLDEN / "bert-gelu", directory)
    tokenizer = words(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *(f"w{number}" for number in range(60))])
    tokenizer.post_processor = processors.TemplateProcessing(
        "[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.enable_truncation(7)  # as published files have it: the encoder must not obey
    tokenizer.enable_padding(length=9)
    tokenizer.save(str(directory / "tokenizer.json"))
    pooling = {"word_embedding_dimension": 32, "pooling_mode_mean_tokens": True}
    write_json(directory / "1_Pooling" / "config.json", pooling)
    write_json(directory / "sentence_bert_config.json", {"max_seq_length": 20, "do_lower_case": False})
    modules = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")]
    listed = [{"path": path, "type": f"sentence_transformers.models.{kind}"} for path, kind in modules]
    write_json(directory / "modules.json", listed)
    return directory


def write_chat_model(directory: Path, template: str = TEMPLATE) -> Path:
    """Write a language model of 70 words and 256 positions with a chat template; return its directory."""
    shutil.copytree(GOLDEN / "llama-untied", directory)
    special = ["<s>", "</s>", "[UNK]"]
    names = ["system", "user", "assistant", *(["<think>", "</think>"] if "<think>" in template else [])]
    vocabulary = [*special, *names, *(f"w{number}" for number in range(67 - len(names)))]
    tokenizer = words(vocabulary)
    tokenizer.add_special_tokens(special)
    tokenizer.save(str(directory / "tokenizer.json"))
    write_json(
        directory / "tokenizer_config.json",
        {"chat_template": template, "bos_token": "<s>", "eos_token": "</s>"},
    )
    config = json.loads((directory / "config.json").read_text("utf-8"))
    write_json(directory / "config.json", config | {"eos_token_id": 1, "bos_token_id": 0})
    return directory
