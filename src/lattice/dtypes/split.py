"""Weights as planes of 32-bit words: what a processor that loads only aligned words can read.

A block mixes scales and quants in odd numbers of bytes. Here the quants of a matrix lie in one plane, their high bits
in another, scales in a third, in the order of the values; nothing is rounded, no bit is added but the rounding up to
words.

    words    f32: one a value; f16, bf16: two a word; q8_0: four signed bytes a word;
             others: 32 values in four words, byte j of 16 holds value j in its low half, j + 16 in its high half
    highs    q5_*: bit j of a word is bit 4 of value j; q6_k: two words, byte j of 8 holds bits 4 and 5 of values j,
             j + 8, j + 16, j + 24
    scales   q8_0, q4_0, q5_0: one f16 for 32 values; q4_1, q5_1: f16 scale and f16 low in a word;
             q4_k, q5_k: a byte of scale and a byte of low for 32 values; q6_k: a signed byte for 16 values
    supers   q4_k, q5_k: f16 scale and f16 low of 256 values in a word; q6_k: one f16
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from lattice.dtypes._dtype import Array
from lattice.dtypes._planes import pack_planes, planes, view
from lattice.dtypes.blocks import Q4_0_LAYOUT, Q4_1_LAYOUT, Q5_0_LAYOUT, Q5_1_LAYOUT, Q8_0_LAYOUT
from lattice.dtypes.kquants import Q4_K_LAYOUT, Q5_K_LAYOUT, Q6_K_LAYOUT, scales_and_mins
from lattice.errors import expected

PLAIN = ("f32", "f16", "bf16")
_SMALL = {"q4_0": Q4_0_LAYOUT, "q4_1": Q4_1_LAYOUT, "q5_0": Q5_0_LAYOUT, "q5_1": Q5_1_LAYOUT}
_LARGE = {"q4_k": Q4_K_LAYOUT, "q5_k": Q5_K_LAYOUT}
SPLIT = (*PLAIN, "q8_0", *_SMALL, *_LARGE, "q6_k")


def split(array: Array) -> Mapping[str, np.ndarray]:
    """Return the planes of a matrix by name, each of uint32; LatticeError for other formats than SPLIT."""
    name = array.dtype.name
    if name not in SPLIT:
        raise expected("split", f"a dtype among {', '.join(SPLIT)}", name)
    if name in PLAIN:
        return {"words": _words(array.data)}
    blocks = array.data.reshape(-1, array.dtype.nbytes)
    if name == "q8_0":
        block = view(blocks, Q8_0_LAYOUT)
        return {"words": _words(block["quants"]), "scales": _words(block["scale"])}
    if name in _SMALL:
        return _small(view(blocks, _SMALL[name]))
    return _q6_k(view(blocks, Q6_K_LAYOUT)) if name == "q6_k" else _large(view(blocks, _LARGE[name]))


def _words(values: np.ndarray) -> np.ndarray:
    """Return the bytes of an array as words, zeros behind its end."""
    data = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
    if len(data) % 4:
        data = np.concatenate([data, np.zeros(-len(data) % 4, np.uint8)])
    return data.view(np.uint32)


def _small(block: np.ndarray) -> dict[str, np.ndarray]:
    names = block.dtype.names or ()
    made = {"words": _words(block["quants"])}
    if "high" in names:
        made["highs"] = _words(block["high"])
    scales = block["scale"]
    made["scales"] = _words(np.stack([scales, block["low"]], 1) if "low" in names else scales)
    return made


def _nibbles(quants: np.ndarray) -> np.ndarray:
    """Return the low halves of quants (n, 32 * m), each 32 in 16 bytes."""
    return _words(pack_planes(quants & 15, 16, 4))


def _large(block: np.ndarray) -> dict[str, np.ndarray]:
    quants = planes(block["quants"], 32, 4)
    scales = np.stack(scales_and_mins(block["scales"]), 2)
    made = {"words": _nibbles(quants), "scales": _words(scales)}
    made["supers"] = _words(np.stack([block["scale"], block["low"]], 1))
    if "high" in (block.dtype.names or ()):
        made["highs"] = _words(pack_planes(planes(block["high"], 32, 1), 1, 1))
    return made


def _q6_k(block: np.ndarray) -> dict[str, np.ndarray]:
    quants, high = planes(block["quants"], 64, 4), planes(block["high"], 32, 2)
    scales = {"scales": _words(block["scales"]), "supers": _words(block["scale"])}
    return {"words": _nibbles(quants), "highs": _words(pack_planes(high, 8, 2)), **scales}
