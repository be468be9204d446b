"""Embedding: texts in, vectors out.

settings.py  what the files beside a checkpoint say: pooling, longest text, prompts
batching.py  texts of all lengths into ragged steps
encoder.py   the encoder itself
"""

from lattice.embed.encoder import Encoder, load_encoder

__all__ = ["Encoder", "load_encoder"]
