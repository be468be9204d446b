"""Make tests/golden/tokenizers/: ids, cut inputs and rendered chats of foreign implementations.

Run from the repository's root, in an environment with `pip install -e '.[golden]' llama-cpp-python`:

    python tests/golden/make_tokenizers.py

* bpe.json: a byte-level BPE vocabulary of 700 tokens, trained here on this repository's own text, as GGUF metadata
  (without `pre`), and for each distinct pre-tokeniser the ids that llama.cpp gives for `strings`. llama.cpp composes no
  text, which the models' own tokenizers do for qwen2 and qwen35: the test leaves strings out where that shows.
* wordpiece.json: a tokenizer.json of 300 tokens with truncation and padding on, and transformers' ids, whole and cut.
* chats.json: templates written for this test in the styles of public ones, with what transformers renders.
"""

# ruff: noqa: E501  (templates have long lines)

from __future__ import annotations

import json
import random
import tempfile
from pathlib import Path

import gguf
import llama_cpp
import tokenizers
from transformers import PreTrainedTokenizerFast

ROOT = Path(__file__).resolve().parents[2]
OUT = Path(__file__).with_suffix("").with_name("tokenizers")
NAMES = [
    "default",
    "gpt-2",
    "smollm",
    "llama-bpe",
    "dbrx",
    "qwen2",
    "qwen35",
    "stablelm2",
    "gpt-4o",
    "tekken",
    "deepseek-coder",
    "deepseek-v3",
    "falcon",
]  # one for each distinct entry of pretokenizers.BY_NAME
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def own_text() -> list[str]:
    files = sorted((ROOT / "src").rglob("*.py"))[:40]
    extra = "Grüße aus Köln, naïve café. Привет, мир! こんにちは世界 你好 안녕 123 4567 don't I'LL we've ½ ² Ⅻ"
    return [path.read_text() for path in files] + [extra] * 50


def strings() -> list[str]:
    rng = random.Random(20)
    ranges = [
        (32, 127), (160, 0x250), (0x370, 0x500), (0x5D0, 0x6FF), (0x900, 0x980), (0x2010, 0x2070), (0x3040, 0x3100),
        (0x4E00, 0x5200), (0xAC00, 0xAD00), (0x1F300, 0x1F650), (0x300, 0x370), (0x660, 0x66A),
    ]  # fmt: skip
    joins = [
        " ",
        "  ",
        "\n",
        " \n",
        "\t",
        "'s",
        "'LL",
        "123",
        "2024",
        "\r\n",
        "   x",
        "<|im_end|>",
        "/\n",
        "don't",
    ]
    result = ["", " ", "\n\n", "a", "Hello world", " 12 345 6789", "x" * 300, "    if x:\n        return 1\n"]
    while len(result) < 200:
        text = ""
        for _ in range(rng.randrange(1, 7)):
            low, high = ranges[0] if rng.random() < 0.5 else rng.choice(ranges)
            text += "".join(chr(rng.randrange(low, high)) for _ in range(rng.randrange(1, 6)))
            text += rng.choice(joins) if rng.random() < 0.6 else ""
        result.append(text)
    return result


def bpe() -> dict:
    trained = tokenizers.Tokenizer(tokenizers.models.BPE())
    trained.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=700,
        special_tokens=SPECIAL,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
    )
    trained.train_from_iterator(own_text(), trainer)
    model = json.loads(trained.to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].get)
    metadata = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3] * len(SPECIAL) + [1] * (len(tokens) - len(SPECIAL)),
        "tokenizer.ggml.merges": [" ".join(merge) for merge in model["merges"]],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.add_bos_token": False,
    }
    texts = strings()
    return {
        "metadata": metadata,
        "strings": texts,
        "ids": {name: llama_ids(metadata, name, texts) for name in NAMES},
    }


def llama_ids(metadata: dict, name: str, texts: list[str]) -> list[list[int]]:
    with tempfile.TemporaryDirectory() as directory:
        path = str(Path(directory, "vocabulary.gguf"))
        writer = gguf.GGUFWriter(path, "llama")
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(name)
        writer.add_token_list(metadata["tokenizer.ggml.tokens"])
        writer.add_token_types(metadata["tokenizer.ggml.token_type"])
        writer.add_token_merges(metadata["tokenizer.ggml.merges"])
        writer.add_bos_token_id(1)
        writer.add_eos_token_id(2)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.close()
        model = llama_cpp.Llama(path, vocab_only=True, verbose=False)
        return [model.tokenize(text.encode(), add_bos=False, special=True) for text in texts]


def wordpiece() -> dict:
    trained = tokenizers.Tokenizer(tokenizers.models.WordPiece(unk_token="[UNK]"))
    trained.normalizer = tokenizers.normalizers.BertNormalizer()
    trained.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    trained.decoder = tokenizers.decoders.WordPiece()
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    trained.train_from_iterator(own_text(), tokenizers.trainers.WordPieceTrainer(vocab_size=300, special_tokens=names))
    trained.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    fast = PreTrainedTokenizerFast(tokenizer_object=trained, pad_token="[PAD]", unk_token="[UNK]")
    texts = [text for text in strings() if "<|" not in text][:60]
    goldens = {
        "strings": texts,
        "ids": fast(texts)["input_ids"],
        "cut": fast(texts, truncation=True, max_length=9)["input_ids"],
    }
    trained.enable_truncation(5)
    trained.enable_padding(length=8)
    return {"tokenizer": json.loads(trained.to_str()), "settings": {"model_max_length": 512}, **goldens}


TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "Tells the weather <now> & 'here', été",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string"}},
                "required": ["city"],
            },
        },
    }
]
TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "  Hi, <you> & 'me'  "},
    {"role": "assistant", "content": "Hello.\n"},
    {"role": "user", "content": "Wie geht's? 你好"},
]
CALLS = [
    *TALK,
    {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"function": {"name": "weather", "arguments": {"city": "Köln"}}}],
    },
    {"role": "tool", "content": '{"t": 21}'},
]
PARTS = [
    {
        "role": "user",
        "content": [{"type": "text", "text": "one"}, {"type": "image"}, {"type": "text", "text": "two"}],
    }
]

TEMPLATES = {
    "chatml": """{% for m in messages %}
{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] | trim + '<|im_end|>\\n' }}
{%- endfor %}
{% if add_generation_prompt %}
<|im_start|>assistant
{% endif %}""",
    "headers": """{{- bos_token }}{% set ns = namespace(system='') %}
{%- if messages[0].role == 'system' %}{% set ns.system = messages[0].content | trim %}{% set messages = messages[1:] %}{% endif -%}
{{ '<|start_header_id|>system<|end_header_id|>\\n\\n' ~ ns.system ~ '<|eot_id|>' }}
{%- if tools is not none %}{% for t in tools %}{{- t | tojson(indent=4) }}{{ '\\n\\n' }}{% endfor %}{% endif %}
{%- for m in messages %}{{- '<|start_header_id|>' ~ m.role ~ '<|end_header_id|>\\n\\n' ~ m.content | trim ~ '<|eot_id|>' }}{% endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}""",
    "inst": """{{ bos_token }}{%- for m in messages if m.role != 'system' %}
{%- if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}
{%- if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + ' [/INST]' }}{% elif m['role'] == 'assistant' %}
{{- ' ' + m['content'] + eos_token }}{% endif %}{% endfor %}""",
    "turns": """{{ bos_token }}{% for m in messages -%}
{% set role = 'model' if m.role == 'assistant' else m.role %}
<start_of_turn>{{ role }}
{% if m.content is string %}{{ m.content | trim }}{% elif m.content is iterable %}{% for part in m.content %}
{%- if part.type == 'text' %}{{ part.text | trim }}{% else %}<image>{% endif %}{% endfor %}{% endif %}<end_of_turn>
{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}""",
    "tools": """{%- if tools %}{{- '# Tools\\n<tools>' }}{% for tool in tools %}{{- '\\n' }}{{- tool | tojson }}{% endfor %}{{- '\\n</tools>\\n' }}{% endif %}
{%- set ns = namespace(last=messages | length - 1, n=0) %}
{%- for m in messages[::-1] %}{% set index = (messages | length - 1) - loop.index0 %}{% if m.role == 'user' and ns.n == 0 %}{% set ns.last = index %}{% set ns.n = 1 %}{% endif %}{% endfor %}
{%- for m in messages %}
{%- if m.role == 'tool' %}{{- '<|im_start|>user\\n<tool_response>\\n' + m.content + '\\n</tool_response><|im_end|>\\n' }}{% continue %}{% endif %}
{{- '<|im_start|>' + m.role + ('*' if loop.index0 == ns.last else '') + '\\n' + m.content.split('</think>')[-1].lstrip('\\n') }}
{%- for call in m.tool_calls or [] %}{%- set call = call.function %}{{- '\\n<tool_call>\\n{"name": "' ~ call.name ~ '", "arguments": ' ~ call.arguments | tojson ~ '}\\n</tool_call>' }}{% endfor %}
{{- '<|im_end|>\\n' }}{% endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{% if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{% endif %}{% endif %}""",
    "macros": """{% macro show(values, mark='-') %}{% for v in values %}{{ mark }} {{ v | upper }}{{ ', ' if not loop.last }}{% endfor %}{% endmacro %}
{{ show(messages | map(attribute='role') | list) }}
{{ messages | selectattr('role', 'equalto', 'user') | map(attribute='content') | join(' | ') | replace('Hi', 'Ho') | safe }}
{% set block %}{{ messages | length }} of {{ [1, 2.5, none, true, 'x'] }} {{ {'a': 1}.items() | list }}{% endset %}{{ block | indent(2) }}
{% for k, v in {'b': 2, 'a': 1} | dictsort %}{{ k }}={{ v }};{% endfor %}{{ 7 // 2 }} {{ 2 ** 10 }} {{ 3 * 4 }} {{ 9 % 4 }} {{ undefined_name }}
{% for m in messages %}{% if loop.index > 2 %}{% break %}{% endif %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}""",
}


def chats() -> list[dict]:
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizers.Tokenizer(tokenizers.models.BPE()), bos_token="<s>", eos_token="</s>"
    )
    result = []
    for name, template in TEMPLATES.items():
        for messages in (TALK, CALLS, PARTS):
            if (messages is PARTS and name != "turns") or (messages is CALLS and name == "inst"):
                continue
            for options in ({}, {"add_generation_prompt": True}, {"tools": TOOLS, "enable_thinking": False}):
                given = {"add_generation_prompt": False, **options}
                text = fast.apply_chat_template(messages, chat_template=template, tokenize=False, **given)
                result.append(
                    {"name": name, "template": template, "messages": messages, "options": given, "text": text}
                )
    return result


def main() -> None:
    OUT.mkdir(exist_ok=True)
    for name, value in (("bpe", bpe()), ("wordpiece", wordpiece()), ("chats", chats())):
        (OUT / f"{name}.json").write_text(json.dumps(value, ensure_ascii=True, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
