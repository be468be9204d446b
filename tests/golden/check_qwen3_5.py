"""Print how far Lattice's logits are from transformers' on a published Qwen3.5 config with random weights.

    pip install torch transformers safetensors           # and Lattice, its native library built
    PYTHONPATH=src python tests/golden/check_qwen3_5.py CONFIG.json --layers 2 --length 200 [--vocab N] [--dtype f32]

CONFIG.json is that of a published model. The first layers are left away where fewer than its pattern are asked for, so
that the last is one of attention. The checkpoint (bf16, names as published) lies in a temporary directory meanwhile.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
import warnings
from pathlib import Path

import make_models
import numpy as np
import torch
from make_qwen3_5 import draw, fused
from safetensors.torch import save_file
from transformers import Qwen3_5ForCausalLM, Qwen3_5MoeForCausalLM

import lattice


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("config", type=Path)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--length", type=int, default=200)
    parser.add_argument("--vocab", type=int)
    parser.add_argument("--dtype", default="f32")
    return parser.parse_args()


def write(directory: Path, config: dict, model: torch.nn.Module) -> None:
    """Save as published: text_config, its prefix, bf16; what is tied is stored once."""
    (directory / "config.json").write_text(json.dumps(config))
    tensors = {}
    for name, value in model.state_dict().items():
        if name != "lm_head.weight" or not config["tie_word_embeddings"]:
            tensors[name.replace("model.", "model.language_model.", 1)] = value.to(torch.bfloat16)
    save_file(fused(tensors), directory / "model.safetensors", metadata={"format": "pt"})


def main() -> None:
    given = arguments()
    config = json.loads(given.config.read_text())
    text = config["text_config"]
    kind = Qwen3_5MoeForCausalLM if "moe" in config["model_type"] else Qwen3_5ForCausalLM
    kinds = text.get("layer_types") or (["linear_attention"] * 3 + ["full_attention"])
    text |= dict(num_hidden_layers=given.layers, layer_types=(kinds * 64)[-given.layers % 4 :][: given.layers])
    text |= dict(vocab_size=given.vocab or text["vocab_size"], mtp_num_hidden_layers=0)
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        torch.manual_seed(1)
        model = kind(kind.config_class(**text | dict(tie_word_embeddings=config["tie_word_embeddings"]))).eval()
        make_models.randomise(model)
        draw(model)
        for value in model.parameters():
            value.data = value.data.to(torch.bfloat16).float()
        write(directory, config, model)
        tokens = np.random.default_rng(1).integers(0, text["vocab_size"], given.length)
        started = time.time()
        with torch.no_grad():
            wanted = model(torch.tensor(tokens)[None]).logits[0].numpy().copy()
        print(f"transformers {time.time() - started:.1f} s, {sum(p.numel() for p in model.parameters()):,} parameters")
        del model
        started = time.time()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            got = lattice.load(directory, dtype=given.dtype).logits(tokens)
        largest = float(np.abs(wanted).max())
        error = np.abs(got - wanted).max(1) / max(1.0, largest)
        worst, middle, same = error.max(), np.median(error), np.mean(got.argmax(1) == wanted.argmax(1))
        print(f"lattice {time.time() - started:.1f} s")
        print(f"{given.config.name}, {given.layers} layers, {given.length} tokens, {given.dtype}: error {worst:.1e}")
        print(f"of the largest ({largest:.2f}), median row {middle:.1e}, same best token in {same:.1%}")
        print(f"peak of both {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.1f} GB")


if __name__ == "__main__":
    main()
