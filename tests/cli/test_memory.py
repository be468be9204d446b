"""`lattice doctor --model`: the plan is what loading allocates, or, of models that do not fit here, what it would."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import pytest
from headers import write_headers

from lattice.backends.cpu import CpuBackend
from lattice.cli import _memory
from lattice.cli._app import bytes_of
from lattice.embed import Encoder
from lattice.errors import LatticeError
from lattice.generate import LanguageModel
from lattice.models import family
from lattice.nn import KV
from lattice.step import PAGE_TOKENS
from lattice.weights.load import Weights, open_model

MODELS = Path(__file__).parents[1] / "golden" / "models"
GENERATORS = (
    "llama-untied", "llama-bf16", "llama-fp16", "gemma3-pattern6", "qwen3-tied", "gguf-llama-q8_0/model.gguf",
    "qwen35-3x", "qwen35-unequal", "qwen35-mtp", "qwen35-moe", "qwen35-moe-256", "qwen35-multimodal",
)  # fmt: skip


@pytest.fixture(autouse=True)
def quiet():
    """Vision tensors are skipped with a warning, which is not what is tested here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def memory_plan(path, dtype, free):
    return _memory.memory_plan(open_model(path, family), dtype, free)


def state_bytes(engine, model, pages, slots):
    """Return the bytes of the state of so many pages and slots, by the arrays that an engine has made."""
    made = {f"layers.{index}": shapes for index, shapes in enumerate(model.state_shapes(1, 1))}
    if getattr(model, "mtp", None) is not None:
        made["mtp"] = model.mtp.state_shapes(1, 1)
    total = 0
    for layer, shapes in made.items():
        for name in shapes._fields:
            array = {**engine.paged, **engine.slotted}[f"{layer}.{name}"]
            total += array.nbytes // len(array) * (pages if isinstance(shapes, KV) else slots)
    return total


# ---- tiny models, really loaded ------------------------------------------------------------------------------------
@pytest.mark.parametrize("dtype", ["auto", "f32", "bf16"])
@pytest.mark.parametrize("name", GENERATORS)
def test_the_plan_is_what_loading_allocates(name, dtype):
    plan = memory_plan(MODELS / name, dtype, None)
    opened = open_model(MODELS / name, family)
    most = opened.config.max_position_embeddings
    engine = LanguageModel(opened, CpuBackend(), dtype=dtype, context=most).engine
    weights = plan["weights"]
    assert weights["held"] + weights["mapped"] == engine.weights.bytes
    assert weights["mapped"] == engine.weights.mapped
    assert sum(weights[kind] for kind in ("tiles", "vectors", "tables", "experts")) == engine.weights.bytes
    plans = (engine._plan, engine._sample)
    assert plan["activations"] == sum(made.layout.peak for made in plans)
    inputs = [buffer for made in plans for name, buffer in made.inputs.items() if name != "logits"]
    assert plan["inputs"] == sum(buffer.nbytes for buffer in inputs)
    assert plan["state"] == state_bytes(engine, opened.model, 0, 1)
    assert plan["kv"][plan["kv"]["dtype"]] == state_bytes(engine, opened.model, 1000, 0) // PAGE_TOKENS
    assert plan["kv"]["f32"] == 2 * plan["kv"]["f16"]


@pytest.mark.parametrize("dtype", ["auto", "f32", "f16"])
@pytest.mark.parametrize("name", ["bert-gelu", "bert-bf16", "qwen3-embedding", "xlm-roberta-gelu"])
def test_the_plan_of_an_encoder_is_what_loading_allocates(name, dtype):
    plan = memory_plan(MODELS / name, dtype, 1 << 40)
    encoder = Encoder(open_model(MODELS / name, family), CpuBackend(), dtype=dtype)
    encoder.prepare()
    ((made, _),) = encoder._plans.values()
    assert plan["weights"]["held"] + plan["weights"]["mapped"] == encoder.weights.bytes
    assert plan["weights"]["mapped"] == encoder.weights.mapped
    assert plan["activations"] == made.layout.peak and plan["state"] == 0 and plan["kv"] is None
    assert plan["context"]["largest"] == encoder.max_tokens
    assert memory_plan(MODELS / name, dtype, plan["context"]["needs"] - 1)["context"]["largest"] == 0


def test_the_largest_context_is_the_last_page_that_fits():
    name = MODELS / "qwen35-3x"
    plan = memory_plan(name, "auto", None)
    page = plan["kv"][plan["kv"]["dtype"]] * PAGE_TOKENS // 1000
    for pages in (1, 2):
        needed = plan["fixed"] + pages * page
        assert memory_plan(name, "auto", needed)["context"]["largest"] == pages * PAGE_TOKENS
        assert memory_plan(name, "auto", needed - 1)["context"]["largest"] == (pages - 1) * PAGE_TOKENS
    assert memory_plan(name, "auto", 1 << 40)["context"]["largest"] == plan["context"]["model"]


# ---- real models, by their headers ---------------------------------------------------------------------------------
@pytest.fixture
def unread(monkeypatch):
    """Let no weight be read."""

    def refuse(weights, name):
        raise AssertionError(f"{name} was read")

    monkeypatch.setattr(Weights, "__getitem__", refuse)


def test_qwen3_6_27b(cli, result_of, unread, tmp_path):
    directory = write_headers(tmp_path / "m", "qwen3.6-27b")
    blocks = os.stat(directory / "model.safetensors").st_blocks
    plan = result_of(cli("doctor", "--model", directory, "--memory", "64GB", "--json"))
    delta = (10240 + 6144 + 48 + 48) * 5120 + 5120 * 6144
    attention = (2 * 6144 + 1024 + 1024) * 5120 + 5120 * 6144
    tiles = 2 * (48 * delta + 17 * attention + 65 * 3 * 17408 * 5120 + 248320 * 5120 + 5120 * 10240)  # one drafts
    vectors = 4 * (48 * (10240 * 4 + 48 + 48 + 128) + 17 * 2 * 256 + (65 * 2 + 4) * 5120)
    table = 2 * 248320 * 5120
    assert plan["weights"] == {
        "tiles": tiles, "vectors": vectors, "tables": table, "experts": 0, "held": tiles + vectors, "mapped": table,
    }  # fmt: skip
    assert (tiles, vectors, table) == (52_093_255_680, 10_686_464, 2_542_796_800)
    assert plan["state"] == 48 * 4 * (48 * 128 * 128 + 10240 * 3) == 156_893_184
    kv = {"f16": 2 * 4 * 256 * 2 * 1000, "f32": 2 * 4 * 256 * 4 * 1000, "q8": 2 * 4 * 260 * 1000}  # a layer's
    assert plan["kv"] == {"dtype": "f16", **{name: 17 * each for name, each in kv.items()}}
    draft = 2 * (attention + 3 * 17408 * 5120 + 5120 * 10240) + 4 * (2 * 256 + 2 * 5120 + 3 * 5120)
    assert plan["draft"] == {"held": draft, **kv}
    fixed = tiles + vectors + 2 * plan["state"] + plan["activations"] + plan["inputs"]
    largest = (64 * 10**9 - fixed) // (69_632 * 64) * 64
    assert plan["fixed"] == fixed and plan["context"] == {
        "model": 262_144, "default": 8192, "needs": fixed + 8192 * 69_632, "largest": largest,
    }  # fmt: skip
    assert 160_000 < largest < 168_000
    assert os.stat(directory / "model.safetensors").st_blocks == blocks
    printed = cli("doctor", "--model", directory, "--memory", "16 GB").stdout
    assert "DOES NOT FIT: 52.5 GB before the first token" in printed and "16.0 GB given" in printed


def test_qwen3_6_35b_a3b_leaves_its_experts_in_the_file(cli, result_of, unread, tmp_path):
    directory = write_headers(tmp_path / "m", "qwen3.6-35b-a3b")
    plan = result_of(cli("doctor", "--model", directory, "--memory", "16GB", "--json"))
    delta = (8192 + 4096 + 32 + 32) * 2048 + 2048 * 4096
    attention = (2 * 4096 + 512 + 512) * 2048 + 2048 * 4096
    shared = 3 * 512 * 2048 + 16 * 2048  # a gate of one row takes a panel of 16
    tiles = 2 * (30 * delta + 10 * attention + 40 * (256 * 2048 + shared) + 248320 * 2048)
    vectors = 4 * (30 * (8192 * 4 + 32 + 32 + 128) + 10 * 2 * 256 + (40 * 2 + 1) * 2048)
    table, experts = 2 * 248320 * 2048, 2 * 40 * 256 * 3 * 512 * 2048
    assert plan["weights"] == {
        "tiles": tiles, "vectors": vectors, "tables": table, "experts": experts, "held": tiles + vectors,
        "mapped": table + experts,
    }  # fmt: skip
    assert experts == 64_424_509_440 and plan["draft"] is None
    assert plan["state"] == 30 * 4 * (32 * 128 * 128 + 8192 * 3) == 65_863_680
    assert plan["kv"]["f16"] == 10 * 2 * 2 * 256 * 2 * 1000
    assert plan["context"]["largest"] == 262_144


# ---- the command line ----------------------------------------------------------------------------------------------
def test_a_plan_is_printed(cli, encoder, chat_model):
    printed = cli("doctor", "--model", chat_model).stdout
    assert "as f32 (used)" in printed and "available now" in printed and "256 tokens fit, the model's limit" in printed
    assert "texts of 20 tokens fit" in cli("doctor", "--model", encoder).stdout
    assert "DOES NOT FIT" in cli("doctor", "--model", encoder, "--memory", "1kB").stdout


def test_what_cannot_be_planned_is_an_error(cli, refused, chat_model, tmp_path):
    refused(cli("doctor", "--memory", "1GB"), "--memory", code=2)
    refused(cli("doctor", "--model", chat_model, "--memory", "much"), "expected a size such as 16GB", "'much'")
    refused(cli("doctor", "--model", tmp_path), "expected a config.json")
    refused(cli("doctor", "--model", chat_model, "--dtype", "q9"), "dtype among")


@pytest.mark.parametrize(
    ("text", "size"),
    [("16GB", 16 * 10**9), ("512 MiB", 512 << 20), ("1.5k", 1500), ("7", 7), ("2T", 2 * 10**12), ("1gib", 1 << 30)],
)
def test_sizes(text, size):
    assert bytes_of(text) == size


@pytest.mark.parametrize("text", ["", "GB", "-1GB", "1e9", "16 GB free", "1..5G", "٣GB"])
def test_what_is_no_size(text):
    with pytest.raises(LatticeError, match="a size such as 16GB"):
        bytes_of(text)
