"""Storage formats of weights: layout as data, `dense` to float32 and `encode` from it, in NumPy.

plain.py      f32 f16 bf16 f64 i8 i16 i32 i64 u8
blocks.py     q4_0 q4_1 q5_0 q5_1 q8_0 (read and written), q8_1
kquants.py    q4_k q5_k q6_k (read and written), q2_k q3_k q8_k
others.py     iq4_nl iq4_xs mxfp4 nvfp4 tq1_0 tq2_0
codebooks.py  iq1_s iq1_m iq2_xxs iq2_xs iq2_s iq3_xxs iq3_s
split.py      the written formats as planes of words, for processors that load nothing else
"""

from lattice.dtypes._dtype import BY_NAME, Array, DType, dense, encode
from lattice.dtypes.blocks import Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q8_1
from lattice.dtypes.codebooks import IQ1_M, IQ1_S, IQ2_S, IQ2_XS, IQ2_XXS, IQ3_S, IQ3_XXS
from lattice.dtypes.kquants import Q2_K, Q3_K, Q4_K, Q5_K, Q6_K, Q8_K
from lattice.dtypes.others import IQ4_NL, IQ4_XS, MXFP4, NVFP4, TQ1_0, TQ2_0
from lattice.dtypes.plain import BF16, F16, F32, F64, I8, I16, I32, I64, U8
from lattice.dtypes.split import SPLIT, split

__all__ = [
    "BF16", "BY_NAME", "F16", "F32", "F64", "I8", "I16", "I32", "I64", "IQ1_M", "IQ1_S", "IQ2_S", "IQ2_XS",
    "IQ2_XXS", "IQ3_S", "IQ3_XXS", "IQ4_NL", "IQ4_XS", "MXFP4", "NVFP4",
    "Q2_K", "Q3_K", "Q4_0", "Q4_1", "Q4_K", "Q5_0", "Q5_1", "Q5_K", "Q6_K", "Q8_0", "Q8_1", "Q8_K", "SPLIT",
    "TQ1_0", "TQ2_0", "U8", "Array", "DType", "dense", "encode", "split",
]  # fmt: skip
