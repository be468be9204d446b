"""The op set: about forty operations, coarse on purpose, each one block with its NumPy reference.

basic      add mul scale activation gated_activation take_rows concat split_heads
embedding  embedding unpadded_positions                         conv        conv1d slot_conv1d
delta      gated_delta slot_gated_delta                         rope        rope_angles rope
linear     linear, project (its fused form)
norm       rms_norm layer_norm                                  pool        pool normalize
attention  attention append_kv paged_attention                  loss        cross_entropy
sample     sample                                               logprobs    logprobs
mixture    route mixture gate_rows                              fused       delta_net rotated_kv
                                                                            gated_attention
"""

from lattice.ops._op import REGISTRY, Draw, Drawn, Op, Parameter, Sample, Shape, Symbol, op, shape_of
from lattice.ops.attention import append_kv, attention, paged_attention
from lattice.ops.basic import activation, add, concat, gated_activation, mul, scale, split_heads, take_rows
from lattice.ops.conv import conv1d, slot_conv1d
from lattice.ops.delta import gated_delta, slot_gated_delta
from lattice.ops.embedding import embedding, unpadded_positions
from lattice.ops.fused import delta_net, gated_attention, rotated_kv
from lattice.ops.linear import linear, project
from lattice.ops.logprobs import logprobs
from lattice.ops.loss import cross_entropy
from lattice.ops.mixture import gate_rows, mixture, route
from lattice.ops.norm import layer_norm, rms_norm
from lattice.ops.pool import normalize, pool
from lattice.ops.rope import rope, rope_angles
from lattice.ops.sample import sample

__all__ = [
    "REGISTRY", "Draw", "Drawn", "Op", "Parameter", "Sample", "Shape", "Symbol", "activation", "add", "append_kv",
    "attention", "concat", "conv1d", "cross_entropy", "delta_net", "embedding", "gate_rows", "gated_activation",
    "gated_attention", "gated_delta", "layer_norm", "linear", "logprobs", "mixture", "mul", "normalize", "op",
    "paged_attention", "pool", "project", "rms_norm", "rope", "rope_angles", "rotated_kv", "route", "sample", "scale",
    "shape_of", "slot_conv1d", "slot_gated_delta", "split_heads", "take_rows", "unpadded_positions",
]  # fmt: skip
