"""Embedding: texts in, vectors out.

known.py     the table of known embedding models, for what their files leave unsaid
settings.py  what the files beside a checkpoint say: pooling, longest text, prompts
texts.py     from texts to tokens: prompts, the cut of long texts
batching.py  texts of all lengths into ragged steps
encoder.py   the encoder itself
"""

from lattice.embed.encoder import Encoder, load_encoder

__all__ = ["Encoder", "load_encoder"]
