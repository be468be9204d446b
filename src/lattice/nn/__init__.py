"""Blocks that models are made of: parameters and functions over ops, with no backend, device or dtype in sight."""

from lattice.nn.attention import KV, Attention
from lattice.nn.config import (
    HYBRID_TYPES,
    LAYER_TYPES,
    check_config,
    check_layer_types,
    complete_decoder,
    complete_hybrid,
    read_config,
)
from lattice.nn.decoder import Decoder, DecoderLayer, HybridLayer
from lattice.nn.delta import GatedDeltaNet, Recurrent
from lattice.nn.draft import DraftHead
from lattice.nn.encoder import ENCODER_IGNORABLE, ENCODER_LAYER_GGUF, EncoderEmbeddings, EncoderStack, check_encoder
from lattice.nn.layers import ACTIVATION_KINDS, Activation, Embedding, GatedMLP, LayerNorm, Linear, RMSNorm
from lattice.nn.mixture import MoE
from lattice.nn.module import Block, Module
from lattice.nn.rotary import attention_factor, inverse_frequencies

__all__ = [
    "ACTIVATION_KINDS", "ENCODER_IGNORABLE", "ENCODER_LAYER_GGUF", "HYBRID_TYPES", "KV", "LAYER_TYPES",
    "Activation", "Attention", "Block", "Decoder", "DecoderLayer", "DraftHead", "Embedding", "EncoderEmbeddings",
    "EncoderStack", "GatedDeltaNet", "GatedMLP", "HybridLayer", "LayerNorm", "Linear", "MoE", "Module", "RMSNorm",
    "Recurrent", "attention_factor", "check_config", "check_encoder", "check_layer_types", "complete_decoder",
    "complete_hybrid", "inverse_frequencies", "read_config",
]  # fmt: skip
