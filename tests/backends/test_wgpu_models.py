"""Every architecture on the GPU backend against transformers (and llama.cpp's GGUF conventions).

As test_goldens.py holds the CPU to golden/models, on the software adapter, or with LATTICE_TEST_CARD on the machine's
card, where `make gpu-test` runs it. What a config changes in a model is data of its program, so one checkpoint of each
way through the kernels does.
"""

from __future__ import annotations

import os

import numpy as np
import pytest
from golden_models import close, open_golden
from tiny_models import write_encoder

from lattice.backends._backend import Capacity
from lattice.backends.reference import ReferenceBackend
from lattice.backends.wgpu import WgpuBackend, open_device
from lattice.embed import Encoder
from lattice.errors import LatticeError
from lattice.generate.model import LanguageModel
from lattice.models import family, names
from lattice.ops import take_rows
from lattice.program import trace
from lattice.step import Step
from lattice.weights.load import open_model

TOLERANCE = 2e-3  # of max(1, the largest)
LONGEST = 200  # tokens: longer goldens hold tables and windows, which are the same arithmetic
ALONE = 6  # tokens that are run one a step
ENCODERS = (
    "bert-gelu", "bert-relu", "bert-fp16", "gguf-bert-f32", "roberta-heads12", "xlm-roberta-padding5",
    "gguf-xlm-roberta-f32", "qwen3-embedding",
)  # fmt: skip
GENERATORS = (
    "llama-untied", "llama-9q3kv", "llama-llama3", "llama-biases", "gguf-llama-q8_0", "qwen3-tied", "qwen3-window",
    "qwen3-yarn", "gguf-qwen3-f16", "gemma3-full", "gemma3-sliding", "gguf-gemma3-f16", "qwen35-untied",
    "qwen35-unequal", "qwen35-multimodal", "gguf-qwen35-3x", "qwen35-moe", "gguf-qwen35moe",
)  # fmt: skip


@pytest.fixture(scope="module")
def gpu():
    return WgpuBackend(open_device(software="LATTICE_TEST_CARD" not in os.environ))


def cases(golden, kind):
    """Yield (tokens, the rows whose results are known, those results) of the goldens that are not too long."""
    for index in range(sum(key.startswith("tokens_") for key in golden)):
        tokens = golden[f"tokens_{index}"]
        rows = golden[f"rows_{index}"] if f"rows_{index}" in golden else np.arange(len(tokens))
        if len(tokens) <= LONGEST:
            yield tokens, rows, golden[f"{kind}_{index}"]


def test_every_architecture_is_here():
    """From safetensors, and from GGUF where there is a golden of it."""
    found = {True: set(), False: set()}
    for name in (*ENCODERS, *GENERATORS):
        opened = open_golden(name)[0]
        experts = bool(vars(opened.config).get("num_experts"))
        found[name.startswith("gguf-")].add((opened.family, experts))
    known = {(family(kind), False) for kind in names()} | {(family("qwen3_5"), True)}
    assert found[False] == known
    assert found[True] == known - {(family("xlm_roberta"), False)}  # llama.cpp calls it bert, as which it is read


@pytest.mark.parametrize("name", ENCODERS)
def test_encoders_agree_with_transformers(name, gpu):
    opened, golden = open_golden(name)

    def build(p):
        step = p.step()
        return {"out": take_rows(opened.model(step)[0], step.rows)}

    program, known = trace(build), list(cases(golden, "hidden"))
    total = sum(len(tokens) for tokens, _, _ in known)
    plan = gpu.compile(program, gpu.load(program, opened.weights), Capacity(total, total, len(known)))
    together, start = plan.run(Step.of([tokens for tokens, _, _ in known]))["out"], 0
    for tokens, rows, wanted in known:
        assert close(together[start + rows], wanted, TOLERANCE)
        start += len(tokens)
    tokens, rows, wanted = min(known, key=lambda case: len(case[0]))
    assert close(plan.run(Step.of([tokens], rows=rows))["out"], wanted, TOLERANCE)


@pytest.mark.parametrize("name", GENERATORS)
def test_generators_agree_with_transformers(name, gpu):
    """Whole prompts at once, and the last tokens of one each in a step, from pages and slots."""
    opened, golden = open_golden(name)
    lm = LanguageModel(opened, gpu, kv="f32", context=256, draft=None)
    known = list(cases(golden, "logits"))
    for tokens, rows, wanted in known:
        assert close(lm.logits(tokens)[rows], wanted, TOLERANCE)
    tokens, rows, wanted = max(known, key=lambda case: len(case[0]))
    prompt, engine = len(tokens) - ALONE, lm.engine
    sequence = engine.sequence()
    engine.reserve(sequence, len(tokens))
    parts = [tokens[:prompt].tolist(), *([int(token)] for token in tokens[prompt:])]
    scores = np.concatenate([block for part in parts for block in engine.score(sequence, part)])
    assert any(row >= prompt for row in rows) and close(scores[rows], wanted, TOLERANCE)


@pytest.mark.parametrize("name", ["llama-9q3kv", "qwen35-untied"])
def test_a_prompt_takes_several_chunks_a_step(name, gpu, monkeypatch):
    """In long steps as in short ones, and prefixes are kept inside them."""
    opened, _ = open_golden(name)
    prompt, states = [int(token) for token in np.arange(150) * 7 % opened.config.vocab_size], []
    for chunks in (1, 4):
        monkeypatch.setattr(gpu, "prompt_chunks", chunks)
        lm = LanguageModel(opened, gpu, kv="f32", context=256, draft=None)
        engine = lm.engine
        engine.chunk, engine._most = 16, 16 * chunks
        sequence = engine.begin(prompt, 200, [70, 101])
        engine.append(sequence, prompt)
        assert (engine._long is not None) == (chunks == 4)
        states.append(np.concatenate(list(engine.score(sequence, prompt[:3]))))
        engine.finish(sequence)
        assert engine.begin(prompt, 200).reused >= 101
    assert close(*states, 1e-5)


def test_without_memory_for_long_steps_a_prompt_takes_short_ones(gpu, monkeypatch):
    opened, _ = open_golden("llama-untied")
    prompt = [int(token) for token in np.arange(150) * 7 % opened.config.vocab_size]
    lm = LanguageModel(opened, gpu, kv="f32", context=256, draft=None)
    wanted = lm.generate(prompt, max_tokens=4, temperature=0).tokens
    lm = LanguageModel(opened, gpu, kv="f32", context=256, draft=None)
    engine = lm.engine
    engine.chunk, engine._most = 16, 64

    def full(**_):
        raise LatticeError("[gpu] expected 300 MB of the card's memory, got none left")

    monkeypatch.setattr(engine, "_compile", full)
    assert lm.generate(prompt, max_tokens=4, temperature=0).tokens == wanted
    assert engine._long is None


def test_texts_that_come_while_others_are_run(gpu, monkeypatch, tmp_path):
    """Steps that begin before the last one is read, and texts that wait for the next piece: each its own vector."""
    opened = open_model(write_encoder(tmp_path / "encoder"), family)
    texts = [" ".join(f"w{(seed * place) % 60}" for place in range(seed % 11 + 1)) for seed in range(70)]
    wanted = Encoder(opened, ReferenceBackend()).encode(texts)
    for tokens, ahead in ((64, 9), (20, 1), (8192, 256)):
        monkeypatch.setattr(gpu, "encoder_tokens", tokens)
        monkeypatch.setattr(gpu, "texts_ahead", ahead)
        encoder = Encoder(opened, gpu)
        assert close(encoder.encode(texts), wanted, 1e-5)
        assert close(encoder.encode(texts[3]), wanted[3], 1e-5)
        with pytest.raises(LatticeError, match="1 of 71 longer"):
            encoder.encode([*texts, "w1 " * 30], truncate=False)
