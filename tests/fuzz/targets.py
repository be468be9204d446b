"""What is fuzzed: for each parser, an input made of a number, and the call that must end in a result or LatticeError.

A target's input depends on its name and number alone, so a failure is found again from the two.
"""

from __future__ import annotations

import json
import re
import shutil
import struct
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import seeds
from mutate import EXTREMES, SCALARS, damage, damaged_json

from lattice.models import family
from lattice.tokenizers import ChatTemplate, _sandbox, load_tokenizer, tokenizer_from_gguf
from lattice.weights import GGUFFile, SafetensorsFile
from lattice.weights.load import open_model
from lattice.weights.safetensors import ShardedSafetensors

MODELS = Path(__file__).parents[1] / "golden" / "models"
TALK = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]


@dataclass(frozen=True)
class Target:
    """`make(random)` gives an input; `run(input, directory)` parses it; the directory is this process's own."""

    make: Callable[[Random], bytes]
    run: Callable[[bytes, Path], object]


def made(name: str, number: int) -> bytes:
    """Return the input of a number."""
    return TARGETS[name].make(Random(f"{name} {number}"))


def _safetensors(random: Random) -> bytes:
    header, data = random.choice(seeds.SAFETENSORS)
    other = random.choice(seeds.SAFETENSORS)[0]
    text = damaged_json(header, other, random, SCALARS)
    length = len(text) if random.random() < 0.9 else random.choice((*EXTREMES, len(text) + 1, len(text) - 1))
    raw = struct.pack("<Q", length % 2**64) + text + data
    return damage(raw, raw, random) if random.random() < 0.15 else raw


def _run_safetensors(data: bytes, directory: Path) -> object:
    path = directory / "model.safetensors"
    path.write_bytes(data)
    file = SafetensorsFile(path)
    return [file.tensor(name).data.size for name in file.names[:50]]


def _gguf(random: Random) -> bytes:
    raw = seeds.gguf(random)
    if random.random() < 0.5:
        raw = damage(raw, seeds.gguf(random), random)
    return raw


def _run_gguf(data: bytes, directory: Path) -> object:
    path = directory / "model.gguf"
    path.write_bytes(data)
    file = GGUFFile(path)
    for name in file.names[:50]:
        _ = file.tensor(name).data.size
    if "tokenizer.ggml.model" in file.metadata:
        return tokenizer_from_gguf(file.metadata).encode("a b é")
    return None


def _tokenizer(random: Random) -> bytes:
    return damaged_json(random.choice(seeds.TOKENIZERS), random.choice(seeds.TOKENIZERS), random, SCALARS)


def _run_tokenizer(data: bytes, directory: Path) -> object:
    (directory / "tokenizer.json").write_bytes(data)
    tokenizer = load_tokenizer(directory)
    ids = tokenizer.encode("ab a1  é\u0301中\n<s>" + "a" * 30)[:200]
    stream = tokenizer.stream()
    text = "".join(stream.push(token) for token in ids) + stream.finish()
    return tokenizer.decode(ids), text, tokenizer.encode_truncated(["a b a b"], 8)


def _spoken(directory: Path) -> object:
    tokenizer = load_tokenizer(directory)
    ids = tokenizer.encode("ab a1  é\u0301中\n<s><user>" + "a" * 30)[:200]
    stream = tokenizer.stream()
    return tokenizer.decode(ids), "".join(stream.push(token) for token in ids) + stream.finish()


def _sentencepiece(random: Random) -> bytes:
    raw = seeds.sentencepiece(random)
    return damage(raw, seeds.sentencepiece(random), random) if random.random() < 0.4 else raw


def _run_sentencepiece(data: bytes, directory: Path) -> object:
    (directory / "tokenizer.model").write_bytes(data)
    return _spoken(directory)


def _ranks(random: Random) -> bytes:
    raw = seeds.ranks(random)
    return damage(raw, raw, random, 1) if random.random() < 0.2 else raw


def _run_ranks(data: bytes, directory: Path) -> object:
    (directory / "qwen.tiktoken").write_bytes(data)
    return _spoken(directory)


CONFIG_VALUES = [*SCALARS, 3, 4, 5, 16, 24, 48, 64, 1000, 4096, "linear", "llama3", "yarn", "gelu", "silu"]


@cache
def _configs() -> list[dict[str, Any]]:
    found = [json.loads(path.read_text()) for path in sorted(MODELS.glob("*/config.json"))]
    return [config for config in found if isinstance(config, dict)]


def _config(random: Random) -> bytes:
    return damaged_json(random.choice(_configs()), random.choice(_configs()), random, CONFIG_VALUES)


def _run_config(data: bytes, directory: Path) -> object:
    weights = directory / "model.safetensors"
    if not weights.exists():
        shutil.copy(MODELS / "llama-tied" / "model.safetensors", weights)
    (directory / "config.json").write_bytes(data)
    model = open_model(directory, family)
    return [model.weights[name].size for name in model.weights]


def _index(random: Random) -> bytes:
    return damaged_json(seeds.INDEX, seeds.INDEX, random, [*SCALARS, *seeds.PATHS])


def _run_index(data: bytes, directory: Path) -> object:
    if not (directory / "a.safetensors").exists():
        for name, raw in seeds.shards().items():
            (directory / name).write_bytes(raw)
    (directory / "model.safetensors.index.json").write_bytes(data)
    shards = ShardedSafetensors(directory)
    return [shards.tensor(name).data.size for name in shards.names]


def _template(random: Random) -> bytes:
    pieces = seeds.template_pieces()
    words = list(random.choice(pieces))
    for _ in range(random.choice((1, 1, 2, 4))):
        at = random.randrange(len(words) + 1)
        kind = random.randrange(5)
        if kind == 0:
            del words[at : at + random.randint(1, 4)]
        elif kind == 1:
            words[at : at + 1] = [random.choice(seeds.JINJA)]
        elif kind == 2:
            words[at:at] = [random.choice(seeds.JINJA)]
        elif kind == 3:
            other = random.choice(pieces)
            begin = random.randrange(len(other) + 1)
            words[at:at] = other[begin : begin + random.randint(1, 12)]
        else:
            words[at:at] = words[at : at + random.randint(1, 8)] * random.choice((1, 3, 50))
    return "".join(words)[:20_000].encode("utf-8", "surrogatepass")


# What `{{ namespace }}` prints: templates are given these three, and may do nothing with them but call them.
_OWN_CLASSES = re.compile(r"<class 'jinja2\.utils\.(Namespace|Cycler|Joiner)'>")


def _run_template(data: bytes, directory: Path) -> object:
    _sandbox.SECONDS = 0.01  # what reaches the limit must stop the same way, and costs the run less
    template = ChatTemplate(data.decode("utf-8", "surrogatepass"), bos="<s>", eos="</s>")
    text = _OWN_CLASSES.sub("", template.render(TALK))
    if len(text) > 1 << 20 or any(word in text for word in ("<class '", "<module '", "root:x:")):
        raise RuntimeError(f"an escape: {text[:200]}")
    return text


TARGETS = {
    "safetensors": Target(_safetensors, _run_safetensors),
    "gguf": Target(_gguf, _run_gguf),
    "tokenizer": Target(_tokenizer, _run_tokenizer),
    "sentencepiece": Target(_sentencepiece, _run_sentencepiece),
    "tiktoken": Target(_ranks, _run_ranks),
    "config": Target(_config, _run_config),
    "index": Target(_index, _run_index),
    "template": Target(_template, _run_template),
}
