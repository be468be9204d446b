"""What a model file offers, and how it is found. A family is one file named after config.json's `model_type`.

It defines:
    Config      a frozen dataclass with the checkpoint's keys; made by `Config.read(dict, strict)` or
                `Config.from_gguf(metadata, tensors)`
    Model       Model(config): Model()(step, state) -> (hidden, state); `head(hidden)` -> logits where there is one
                (loading sets `head` to None if the file has no `lm_head.weight`, and `mtp`, a draft head, if it has
                none of its tensors); `state_shapes(pages, slots)` -> one NamedTuple of shapes a layer: nn.KV, kept
                as the engine chooses, others are f32
    spellings   spellings(name) -> the names under which checkpoints may hold the parameter, the usual one first
    values      values(name) -> what a parameter's float32 values in safetensors become, or None (optional)
    parts       parts(name) -> names, `{}` counting, of the tensors that safetensors may hold instead of the parameter,
                which is their stack, or () (optional)
    IGNORED     name prefixes of tensors that the computation does not need
    VISION      name prefixes among IGNORED whose tensors are another modality's: loading says that it skips them
                (optional)
    GGUF        our tensor name -> GGUF's, `{}` standing for the layer, or (name, transform), or (name, transform or
                None, what its float32 values become); or a function of the config that returns this
    ALIASES     further model types or GGUF architectures this file serves (optional, may be empty)

A transform takes (config) and returns the order of rows that undoes what the converter to GGUF did.
"""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType

from lattice.errors import expected


def names() -> list[str]:
    """Return the model types there is a file for."""
    package = importlib.import_module("lattice.models")
    return sorted(m.name for m in pkgutil.iter_modules(package.__path__) if not m.name.startswith("_"))


def family(model_type: str) -> ModuleType:
    """Return the model file for a model type or GGUF architecture.

    >>> family("llama").__name__
    'lattice.models.llama'
    """
    wanted = str(model_type).replace("-", "_")
    for name in sorted(names(), key=lambda name: name != wanted):
        module = importlib.import_module(f"lattice.models.{name}")
        if name == wanted or model_type in module.ALIASES:
            return module
    raise expected("models", f"a model type among {', '.join(names())}", model_type)
