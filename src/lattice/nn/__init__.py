"""Blocks that models are made of: parameters and functions over ops, with no backend, device or dtype in sight."""

from lattice.nn.attention import KV, Attention
from lattice.nn.config import check_config, read_config
from lattice.nn.encoder import ENCODER_LAYER_GGUF, EncoderEmbeddings, EncoderStack, check_encoder
from lattice.nn.layers import ACTIVATION_KINDS, Activation, Embedding, GatedMLP, LayerNorm, Linear, RMSNorm
from lattice.nn.module import Block, Module
from lattice.nn.rotary import inverse_frequencies

__all__ = [
    "ACTIVATION_KINDS", "ENCODER_LAYER_GGUF", "KV", "Activation", "Attention", "Block", "Embedding",
    "EncoderEmbeddings", "EncoderStack", "GatedMLP", "LayerNorm", "Linear", "Module", "RMSNorm", "check_config",
    "check_encoder", "inverse_frequencies", "read_config",
]  # fmt: skip
