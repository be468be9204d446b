"""GGUF files of our models, for llama.cpp and what is built on it: the inverse of what the readers in models/ undo.

Names and row orders come from the families' own tables (`GGUF`), inverted. What else differs between our parameters and
a GGUF's tensors stands here: value heads of a delta net in tiles instead of groups, experts' gate and up apart, decays
as -exp(A_log), vectors in f32. The tokenizer is that of `vocabulary.py`. A file is read back, its config compared with
ours, before it gets its name: what GGUF has no key for is refused, not lost.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from lattice.dtypes import BY_NAME, F32, Array, dense
from lattice.errors import expected
from lattice.models import family
from lattice.nn import inverse_frequencies
from lattice.quant.convert import SLAB, Progress, check_unquantised
from lattice.quant.recipe import GGUF, Plan, plan
from lattice.quant.report import Report
from lattice.quant.rounding import nearest
from lattice.quant.vocabulary import vocabulary
from lattice.weights.blocks import KEPT, matches
from lattice.weights.gguf_write import Layout, write_gguf_parts
from lattice.weights.load import OpenModel, open_model
from lattice.weights.sources import resolve

# general.file_type by what most matrices are, as llama.cpp numbers it
FILE_TYPES = {"q4_0": 2, "q4_1": 3, "q8_0": 7, "q4_k": 15}
KEYS = {
    "context_length": "max_position_embeddings", "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size", "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads", "attention.key_length": "head_dim",
    "attention.value_length": "head_dim", "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "rope.freq_base": "rope_theta", "vocab_size": "vocab_size",
}  # fmt: skip
HYBRID_KEYS = {
    "ssm.conv_kernel": "linear_conv_kernel_dim", "ssm.state_size": "linear_key_head_dim",
    "ssm.group_count": "linear_num_key_heads", "ssm.time_step_rank": "linear_num_value_heads",
    "full_attention_interval": "full_attention_interval",
}  # fmt: skip
EXPERT_KEYS = {
    "expert_count": "num_experts", "expert_used_count": "num_experts_per_tok",
    "expert_feed_forward_length": "moe_intermediate_size",
    "expert_shared_feed_forward_length": "shared_expert_intermediate_size",
}  # fmt: skip
GEMMA_KEYS = {"attention.sliding_window": "sliding_window", "rope.freq_base_swa": "rope_local_base_freq"}
BIASES = {"llama": (".bias",), "qwen3": ("q_proj.bias", "k_proj.bias", "v_proj.bias")}  # that llama.cpp reads
# Said in another way, or by the tensors; `inverse_frequencies` and shapes are compared instead.
UNCOMPARED = frozenset({
    "rope_scaling", "rope_parameters", "rope_factors", "tiled", "split_gate_up", "max_window_layers",
    "sliding_window_pattern", "use_sliding_window", "norm_topk_prob", "moe_intermediate_size", "num_experts_per_tok",
    "shared_expert_intermediate_size", "mtp_num_hidden_layers",
})  # fmt: skip


@dataclass(frozen=True)
class _Tensor:
    """A tensor of the file: which parameter it is, in which dtype, and what is done to that on the way."""

    parameter: str
    dtype: str
    shape: tuple[int, ...]
    rows: np.ndarray | None = None  # order of the first dimension
    columns: np.ndarray | None = None  # of the last
    half: int | None = None  # of the second: gate, up
    decays: bool = False  # -exp of it
    given: np.ndarray | None = None  # the values themselves

    def values(self, values: np.ndarray) -> np.ndarray:
        """Return the tensor's values of the parameter's."""
        if self.given is not None:
            return self.given
        values = -np.exp(values) if self.decays else values
        values = values if self.rows is None else values[self.rows]
        values = values if self.columns is None else values[..., self.columns]
        values = values if self.half is None else np.split(values, 2, 1)[self.half]
        return values.reshape(self.shape)


def export_gguf(
    source: str | Path,
    out: str | Path,
    *,
    to: str,
    tensors: Mapping[str, str] | None = None,
    requantize: bool = False,
    progress: Progress | None = None,
) -> Report:
    """Write the generator that `source` names as the GGUF file `out`, its matrices in `to`: "q8_0", "q4_0", "q4_1",
    "q4_k" (more bits for some), or "keep", as they are; embedding and head have 6 bits or 8. `tensors` overrides that
    as in `quantize`.

    Raises LatticeError where `out` exists, the family or its tokenizer has no form in GGUF, the source has been
    quantised before (unless `requantize`), or a setting is not known.
    """
    path = Path(out).expanduser().absolute()
    if path.exists() or path.suffix != ".gguf":
        raise expected("export", "a new file that ends in .gguf", path.name, hint="nothing is overwritten")
    opened = open_model(resolve(source), family)
    if not requantize and to != "keep":
        check_unquantised(opened)
    name = opened.family.__name__.rpartition(".")[2]
    if name not in _ARCHITECTURES or getattr(opened.model, "head", None) is None:
        known = ", ".join(_ARCHITECTURES)
        raise expected("export", f"a generator of the families {known}", opened.checkpoint.path.name)
    chosen = plan(opened.weights.shapes, to, tensors, GGUF)
    layout = _layout(opened, chosen)
    metadata = _metadata(opened, _ARCHITECTURES[name](opened.config), to)
    done = 0

    def parts(key: str) -> Iterator[Array]:
        nonlocal done
        for part in _parts(opened, layout[key]):
            yield part
            done += part.nbytes
            if progress is not None:
                progress(layout[key].parameter, done, total)

    sizes: Layout = {key: (BY_NAME[each.dtype], each.shape) for key, each in layout.items()}
    total = sum(dtype.size(prod(shape)) for dtype, shape in sizes.values())
    path.parent.mkdir(parents=True, exist_ok=True)
    write_gguf_parts(path, metadata, sizes, parts, lambda written: _check(opened, open_model(written, family)))
    kinds: dict[str, list[int]] = {}
    for dtype, shape in sizes.values():
        row = kinds.setdefault(dtype.name, [0, 0, 0])
        row[:] = row[0] + 1, row[1] + prod(shape), row[2] + dtype.size(prod(shape))
    stored = sum(opened.weights.header(name).stored for name in opened.weights.shapes)
    return Report(path, opened.checkpoint.path.name, to, stored, path.stat().st_size, kinds, chosen.notes)


# ---- tensors -----------------------------------------------------------------------------------------------------
def _layout(opened: OpenModel, chosen: Plan) -> dict[str, _Tensor]:
    """Return the file's tensors by their names there."""
    table, config, found = opened.family.GGUF, opened.config, dict[str, _Tensor]()
    table = table(config) if callable(table) else table
    for name, shape in opened.weights.shapes.items():
        index = next((part for part in name.split(".") if part.isdigit()), "")
        entry = table.get(name) or table.get(name.replace(f".{index}.", ".{}.", 1))
        if entry is None:
            raise expected("export", "a name in GGUF for every parameter", f"none for {name}")
        if name.endswith(".bias") and not name.endswith(BIASES.get(opened.family.__name__.rpartition(".")[2], ())):
            raise expected("export", "biases that llama.cpp reads", name)
        theirs, transform, read = (*(entry if isinstance(entry, tuple) else (entry,)), None, None)[:3]
        theirs, dtype = theirs.format(index), chosen.dtypes.get(name) or _plain(opened, name)
        rows, columns = np.argsort(transform(config)) if transform else None, None
        if "linear_attn." in name and not config.tiled:
            rows = _tiles(name.rpartition("linear_attn.")[2], config)
        if name.endswith("out_proj.weight"):
            rows, columns = None, rows
        made = _Tensor(name, dtype, shape[-1:] if shape[0] == 1 else shape, rows, columns, None, read is not None)
        if name.endswith("experts.gate_up_proj"):
            split = shape[0], shape[1] // 2, shape[2]
            for half, part in enumerate(("gate", "up")):
                found[theirs.replace("gate_up", part)] = replace(made, shape=split, half=half)
        else:
            found[theirs] = made
    factors = _rope_factors(opened)
    if factors is not None:
        found["rope_freqs.weight"] = _Tensor("", "f32", factors.shape, given=factors)
    return found


def _plain(opened: OpenModel, name: str) -> str:
    """Return the dtype of a tensor that is not rounded: the file's own for matrices, f32 where llama.cpp wants that."""
    small = len(opened.weights.shapes[name]) < 2 or any(matches(name, pattern) for pattern, _ in KEPT)
    return "f32" if small else opened.weights.header(name).dtype


def _tiles(part: str, c: Any) -> np.ndarray | None:
    """Return the order that takes value heads from groups (those of key head 0 first) to tiles (the first of each)."""
    keys, heads = c.linear_num_key_heads, c.linear_num_value_heads
    single = part in ("in_proj_a.weight", "in_proj_b.weight", "A_log", "dt_bias")
    width = 1 if single else c.linear_value_head_dim
    order = np.arange(heads * width).reshape(keys, heads // keys, width).swapaxes(0, 1).reshape(-1)
    if part in ("in_proj_qkv.weight", "conv1d.weight"):
        before = 2 * keys * c.linear_key_head_dim
        return np.concatenate([np.arange(before), before + order])
    return None if part == "norm.weight" or heads == keys else order


def _rope_factors(opened: OpenModel) -> np.ndarray | None:
    """Return what llama.cpp divides Llama's inverse frequencies by, where the config scales them one by one."""
    c = opened.config
    scaling = getattr(c, "rope_scaling", None) or {}
    kind = scaling.get("rope_type", scaling.get("type"))
    if getattr(c, "rope_factors", None) is None and kind != "llama3":
        return None
    return (inverse_frequencies(c.head_dim, c.rope_theta) / opened.model.inverse_frequencies).astype(np.float32)


def _parts(opened: OpenModel, tensor: _Tensor) -> Iterator[Array]:
    """Yield a tensor in slabs of its first dimension."""
    dtype = BY_NAME[tensor.dtype]
    given = tensor.given
    array = opened.weights[tensor.parameter] if given is None else Array(given, F32, given.shape)
    if array.dtype == dtype and dtype.block > 1 and tensor.columns is None and tensor.half is None:
        yield array if tensor.rows is None else array.rows(tensor.rows)  # blocks as they are
        return
    values = tensor.values(dense(array))
    step = max(1, SLAB // max(1, prod(values.shape[1:])))
    for start in range(0, len(values), step):
        yield nearest(np.ascontiguousarray(values[start : start + step], np.float32), dtype)


# ---- metadata ----------------------------------------------------------------------------------------------------
def _metadata(opened: OpenModel, architecture: str, to: str) -> dict[str, Any]:
    c = opened.config
    said = {key: getattr(c, field) for key, field in KEYS.items()} | {"block_count": c.num_hidden_layers}
    rotated = int(c.head_dim * getattr(c, "partial_rotary_factor", 1))
    said |= {"rope.dimension_count": rotated}
    if architecture == "gemma3":
        said |= {key: getattr(c, field) for key, field in GEMMA_KEYS.items()}
    if architecture.startswith("qwen35"):
        said |= _hybrid(opened, rotated)
    rope = getattr(c, "rope_scaling", None) or c.rope_parameters or {}
    rope = rope.get("full_attention", rope)
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind in ("linear", "yarn"):
        said |= {"rope.scaling.type": kind, "rope.scaling.factor": float(rope["factor"])}
    if kind == "yarn":
        said |= {"rope.scaling.original_context_length": int(rope["original_max_position_embeddings"])}
    reals = {key: float(value) for key, value in said.items() if BOUNDED.get(key)}
    general = {"architecture": architecture, "name": opened.checkpoint.path.stem, "quantization_version": 2}
    general |= {"file_type": FILE_TYPES[to]} if to in FILE_TYPES else {}
    return (
        {f"general.{key}": value for key, value in general.items()}
        | {f"{architecture}.{key}": value for key, value in {**said, **reals}.items()}
        | vocabulary(opened)
    )


def _hybrid(opened: OpenModel, rotated: int) -> dict[str, Any]:
    c, drafts = opened.config, int(getattr(opened.model, "mtp", None) is not None)
    pairs = rotated // 2
    said = {key: getattr(c, field) for key, field in HYBRID_KEYS.items()}
    said |= {key: getattr(c, field) for key, field in EXPERT_KEYS.items()} if c.num_experts else {}
    linear = [kind == "linear_attention" for kind in c.layer_types]
    return said | {
        "block_count": c.num_hidden_layers + drafts, "nextn_predict_layers": drafts,
        "ssm.inner_size": c.linear_num_value_heads * c.linear_value_head_dim,
        "attention.recurrent_layers": np.array(linear + [False] * drafts),
        "rope.dimension_sections": np.array([(pairs + 2) // 3, (pairs + 1) // 3, pairs // 3, 0], np.int32),
    }  # fmt: skip


_ARCHITECTURES: dict[str, Callable[[Any], str]] = {
    "llama": lambda c: "llama",
    "qwen3": lambda c: "qwen3",
    "gemma3": lambda c: "gemma3",
    "qwen3_5": lambda c: "qwen35moe" if c.num_experts else "qwen35",
}
BOUNDED = {"rope.freq_base": True, "rope.freq_base_swa": True, "attention.layer_norm_rms_epsilon": True}


def _check(ours: OpenModel, theirs: OpenModel) -> None:
    """Raise unless the file says what our config does, as far as anything is computed from it."""
    left, right = asdict(ours.config), asdict(theirs.config)
    lost = [key for key in left if key not in UNCOMPARED and not _same(left[key], right[key])]
    for attribute in ("inverse_frequencies", "growth"):
        if not _same(vars(ours.model).get(attribute), vars(theirs.model).get(attribute)):
            lost.append(attribute)
    if lost:
        got = ", ".join(f"{key} {str(left.get(key))[:40]}" for key in lost)
        raise expected("export", "a config that GGUF has keys for", got)


def _same(left: Any, right: Any) -> bool:
    if isinstance(left, Mapping):
        return set(left) == set(right) and all(_same(left[key], right[key]) for key in left)
    if isinstance(left, float | np.ndarray):
        return right is not None and np.allclose(left, right, rtol=1e-6, atol=0)
    return bool(left == right)
