"""The list of a step's dispatches, made without a card, beside what the adapter is really given."""

from __future__ import annotations

import os

import pytest
from golden_models import open_golden

from lattice.backends._backend import Capacity
from lattice.backends.wgpu import WgpuBackend, listing, open_device
from lattice.backends.wgpu.weights import cuts
from lattice.generate.model import LanguageModel


@pytest.mark.parametrize("name", ["gguf-llama-q8_0", "qwen35-untied", "gguf-qwen35moe"])
def test_what_is_listed_is_what_runs(name, monkeypatch):
    gpu = WgpuBackend(open_device(software="LATTICE_TEST_CARD" not in os.environ))
    real, listed = [], listing.ListingBackend()
    monkeypatch.setattr(gpu.device, "wide", listed.device.wide)
    compiled = gpu.compile
    monkeypatch.setattr(gpu, "compile", lambda *arguments: real.append(compiled(*arguments)) or real[-1])
    for backend in (gpu, listed):
        LanguageModel(open_golden(name)[0], backend, draft=None)
    assert len(real) == len(listed.plans) == 2  # forward, sample
    for plan, paper in zip(real, listed.plans, strict=True):
        for tokens in (1, 40):
            plan.counts[:] = tokens, 1, 1
            wanted = [(one.node.op.name, list(command[2:])) for one in plan.dispatches for command in plan._list(one)]
            got = list(listing.dispatches(paper, Capacity(tokens=tokens)))
            assert [(one["op"], one["workgroups"]) for one in got] == wanted


@pytest.mark.parametrize(("rows", "each", "largest"), [(1, 8, 4), (10, 4, 1 << 20), (103, 34, 340), (9, 100, 1)])
def test_parts_of_a_weight_are_whole_and_begin_at_words(rows, each, largest):
    found = list(cuts(rows, rows * each, largest))
    assert [first for first, _ in found] == [sum(some for _, some in found[:place]) for place in range(len(found))]
    assert sum(some for _, some in found) == rows
    assert all(first % 4 == 0 and (some * each <= largest or some <= 4) for first, some in found)
