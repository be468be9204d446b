"""Long prompts: memory grows by keys and values and nothing else, up to 262,144 positions."""

from __future__ import annotations

import mmap
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from small_models import copy_model, draw_tokens, hybrid_model

from lattice.generate import load

LONG = 262_144
STATUS = Path("/proc/self/statm")


def resident() -> int:
    """Return the resident bytes of this process, 0 where the system does not say."""
    return int(STATUS.read_text().split()[1]) * mmap.PAGESIZE if STATUS.exists() else 0


def test_a_prompt_of_32768_tokens_takes_its_keys_and_values_and_no_more(tmp_path):
    types = ["linear_attention", "full_attention"]
    path = hybrid_model(
        tmp_path, max_position_embeddings=LONG, num_hidden_layers=2, layer_types=types, num_attention_heads=1,
        num_key_value_heads=1,
    )  # fmt: skip
    engine = load(path, context=LONG).engine
    prompt = draw_tokens(32_768)
    sequence = engine.begin(prompt, LONG)
    engine.append(sequence, prompt[:8192])
    tracemalloc.start()
    before = resident()
    engine.append(sequence, prompt[8192:-1])
    grown, python = resident() - before, tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    logits = next(engine.score(sequence, prompt[-1:]))
    assert np.isfinite(logits).all() and logits.std() > 0.1
    assert all(np.isfinite(buffer[sequence.slot.index]).all() for buffer in engine.slotted.values())
    state = engine.pool.pages.nbytes * (24_576 // 64) + 4 * engine.pool.slots.nbytes
    assert grown < state + (2 << 20)
    assert python < 1 << 20  # the list of tokens is 200 kB of it


def test_the_last_of_262144_positions_can_be_run(tmp_path):
    engine = load(copy_model(tmp_path, max_position_embeddings=LONG), context=LONG).engine
    sequence = engine.begin([1, 2, 3], LONG)
    assert len(sequence.pages) == 4096
    sequence.tokens = [0] * (LONG - 1)  # as if run: their keys and values are zeros
    before = resident()
    engine.append(sequence, [5])
    keys = engine.paged["layers.0.k_pages"]
    assert keys[sequence.pages[-1].index, :, :, 63].all() and not keys[sequence.pages[-1].index, :, :, 62].any()
    assert not STATUS.exists() or resident() - before < keys[: 2 * 4096].nbytes


def test_a_pool_for_long_sequences_touches_no_memory(tmp_path):
    path = copy_model(tmp_path, max_position_embeddings=LONG)
    before = resident()
    engine = load(path, context=LONG).engine
    assert engine.pool.budget == 2 * 4096 * engine.pool.pages.nbytes > 100e6
    assert resident() - before < 50e6


@pytest.mark.parametrize("marks", [(), (100, 20_000, 29_999), tuple(range(500, 30_000, 300))])
def test_snapshots_of_a_long_prompt_stay_within_the_budget(tmp_path, marks):
    path = hybrid_model(tmp_path, max_position_embeddings=LONG, layer_types=["linear_attention"] * 4)
    engine = load(path, context=LONG).engine
    prompt = draw_tokens(30_000)
    engine.append(engine.begin(prompt, 30_001, marks), prompt)
    wanted, kept = {29_999, *(marks or (29_968, 29_744))}, {len(entry) for entry in engine.prefixes.entries}
    assert kept == wanted if len(wanted) < 16 else kept < wanted and 29_999 in kept
    assert engine.pool.used <= engine.pool.budget
