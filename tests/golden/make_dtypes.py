"""Make dtypes.npz: raw blocks of every block format with the values that the `gguf` package gives them, and
values with the bytes that its quantisers give. Run with `gguf` installed:

    python tests/golden/make_dtypes.py

q8_1 and q8_k are not in that package (no file holds them); their values are written out here from the format.
"""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np

WRITTEN = ["q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "bf16"]
FORMATS = [
    *("q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "q2_k", "q3_k", "q4_k", "q5_k", "q6_k"),
    *("iq4_nl", "iq4_xs", "mxfp4", "nvfp4", "tq1_0", "tq2_0"),
    *("iq1_s", "iq1_m", "iq2_xxs", "iq2_xs", "iq2_s", "iq3_xxs", "iq3_s"),
]


def raw_blocks(rng: np.random.Generator, nbytes: int) -> np.ndarray:
    """Return random blocks and the edge ones: all zeros, NaN scales, alternating bits, large f16."""
    edges = [np.full(nbytes, byte, np.uint8) for byte in (0x00, 0xFF, 0x55, 0xAA, 0x7B)]
    return np.stack([*rng.integers(0, 256, (6, nbytes), dtype=np.uint8), *edges])


def values_to_write(rng: np.random.Generator) -> np.ndarray:
    """Return rows of 32: many magnitudes, ties, zeros of both signs, constants."""
    rows = rng.standard_normal((48, 32)) * np.exp(rng.uniform(-24, 8, (48, 1)))
    rows[0], rows[1], rows[2] = 0.0, -0.0, 1.0
    rows[3] = np.arange(-16, 16)
    rows[4] = np.arange(-16, 16) / 2
    rows[5] = np.where(np.arange(32) % 2, 7.5, -8.0)
    rows[6], rows[7] = -3.0, 1e-7
    rows[8:16] = rows[8:16].astype(np.float16)
    rows[16:20] = np.round(rows[16:20] * 8) / 8
    return rows.astype(np.float32)


def main() -> None:
    rng = np.random.default_rng(20250101)
    arrays = {}
    for name in FORMATS:
        kind = gguf.GGMLQuantizationType[name.upper()]
        raw = raw_blocks(rng, gguf.GGML_QUANT_SIZES[kind][1])
        arrays[f"{name}.raw"], arrays[f"{name}.values"] = raw, gguf.quants.dequantize(raw, kind)
    raw = raw_blocks(rng, 36)
    scale = raw[:, :2].copy().view(np.float16).astype(np.float32)
    arrays["q8_1.raw"], arrays["q8_1.values"] = raw, scale * raw[:, 4:].view(np.int8)
    raw = raw_blocks(rng, 292)
    scale = raw[:, :4].copy().view(np.float32)
    arrays["q8_k.raw"], arrays["q8_k.values"] = raw, scale * raw[:, 4:260].view(np.int8)
    values = values_to_write(rng)
    arrays["written.values"] = values
    for name in WRITTEN:
        kind = gguf.GGMLQuantizationType[name.upper()]
        arrays[f"{name}.written"] = gguf.quants.quantize(values, kind).view(np.uint8)
    path = Path(__file__).with_name("dtypes.npz")
    np.savez_compressed(path, **arrays)
    print(f"{path.name}: {path.stat().st_size} bytes, {len(arrays)} arrays")


if __name__ == "__main__":
    with np.errstate(all="ignore"):
        main()
