"""A card is lost, its memory ends, it lacks features: a clear error, or a slower path to the same."""

from __future__ import annotations

import os

import numpy as np
import pytest
import wgpu
from golden_models import MODELS
from small_models import draw_tokens, hybrid_model

from lattice.backends.cpu import CpuBackend
from lattice.backends.wgpu import WgpuBackend, open_device
from lattice.backends.wgpu.device import FEATURES
from lattice.errors import LatticeError
from lattice.generate.model import LanguageModel
from lattice.models import family
from lattice.weights.load import open_model

SOFTWARE = "LATTICE_TEST_CARD" not in os.environ


def loaded(backend, path=MODELS / "llama-untied", **options):
    return LanguageModel(open_model(path, family), backend, kv="f32", context=128, draft=None, **options)


@pytest.fixture
def gpu():
    """A device of this test's own, which it may break."""
    open_device.cache_clear()
    yield WgpuBackend(open_device(software=SOFTWARE))
    open_device.cache_clear()


def test_a_lost_device_is_an_error_and_the_next_load_works(gpu):
    lm, tokens = loaded(gpu), draw_tokens(5)
    wanted = lm.generate(tokens, max_tokens=4, temperature=0).tokens
    gpu.device.handle.destroy()
    with pytest.raises(LatticeError, match=r"(?s)\[gpu\].*lost.*hint:.*load the model again"):
        lm.generate(tokens, max_tokens=4, temperature=0)
    device = open_device(software=SOFTWARE)
    assert device is not gpu.device
    assert loaded(WgpuBackend(device)).generate(tokens, max_tokens=4, temperature=0).tokens == wanted


def test_loading_onto_a_lost_device_is_an_error(gpu):
    gpu.device.handle.destroy()
    with pytest.raises(LatticeError, match=r"(?s)\[gpu\].*hint:.*load the model again"):
        loaded(gpu)


def test_a_buffer_beyond_the_limit_says_so(gpu):
    with pytest.raises(LatticeError, match=r"at most \d+ MB in one buffer, got \d+ MB\nhint: .*--device cpu"):
        gpu.device.buffer(gpu.device.most + 1)


def test_state_beyond_what_can_be_bound_says_so(gpu):
    with pytest.raises(LatticeError, match=r"MB of a layer's state, got \d+ MB\nhint: a smaller context"):
        gpu.state((gpu.device.largest // 4 + 1,), "f32")


def test_memory_that_ends_says_what_needs_less(gpu, monkeypatch):
    def full(**_):
        raise wgpu.GPUOutOfMemoryError("Not enough memory left.")

    monkeypatch.setattr(gpu.device.handle, "create_buffer", full)
    with pytest.raises(LatticeError, match=r"(?s)of the card's memory, got none left\nhint: a smaller context"):
        loaded(gpu)


@pytest.mark.parametrize(
    "without", [{"subgroup"}, {"shader-f16"}, set(FEATURES)], ids=lambda each: "+".join(sorted(each))
)
def test_models_run_without_features(without, tmp_path):
    path, tokens = hybrid_model(tmp_path), draw_tokens(40)
    plain = WgpuBackend(open_device(software=SOFTWARE, without=frozenset(without)))
    assert not plain.device.features & without
    lm, cpu = loaded(plain, path), loaded(CpuBackend(), path)
    wanted = cpu.logits(tokens)
    assert np.abs(lm.logits(tokens) - wanted).max() <= 1e-4 * np.abs(wanted).max()
    assert (
        lm.generate(tokens, max_tokens=6, temperature=0).tokens
        == cpu.generate(tokens, max_tokens=6, temperature=0).tokens
    )
