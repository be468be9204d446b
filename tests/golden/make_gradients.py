"""Write `tests/golden/gradients`: tiny checkpoints with the loss and the gradient of every parameter, from torch.

Not a test and never run by `make test`: the results are committed. To regenerate them:

    pip install torch transformers safetensors
    python tests/golden/make_gradients.py

Each directory holds config.json, model.safetensors (float32) and `golden.npz`, computed in float64 from those weights
and stored as float32 (losses as float64):

    tokens_i        (length,) int32     the i-th sequence, run alone from position 0
    loss            ()                  see below
    grad/NAME       the gradient of the loss by the parameter, under its checkpoint name

llama-*, and qwen35-*, which is float32 all through: targets_i (length,) int32 is what position t of sequence i
    should predict, -100 where nothing is asked;
    logits_i (length, vocab). loss = sum over asked positions of all sequences of -log softmax(logits)[target],
    divided by their number. A tied head has no entry of its own: its share is in the embedding's gradient.
bert-hidden: weights_i (length, hidden); loss = sum_i sum(weights_i * last_hidden_state_i).
bert-pooled: weights_i (hidden,), pooled_i (hidden,); loss = sum_i sum(weights_i * pooled_i), where pooled is the mean
    over positions, divided by its L2 norm. Parameters that neither loss reaches (the pooler) are left out.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import transformers
from make_models import randomise
from make_qwen3_5 import BASE, MOE, draw
from torch import nn
from transformers import (
    BertConfig,
    BertModel,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen3_5ForCausalLM,
    Qwen3_5MoeForCausalLM,
)

ROOT = Path(__file__).parent / "gradients"
LENGTHS = (9, 14)
LLAMA = dict(
    vocab_size=48,
    hidden_size=24,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=6,
    intermediate_size=32,
    max_position_embeddings=64,
    rms_norm_eps=1e-5,
)
BERT = dict(
    vocab_size=48,
    hidden_size=24,
    num_hidden_layers=2,
    num_attention_heads=3,
    intermediate_size=32,
    max_position_embeddings=20,
    type_vocab_size=2,
    attn_implementation="sdpa",
    hidden_dropout_prob=0.0,
    attention_probs_dropout_prob=0.0,
)


class DoubleNorm(nn.Module):
    """RMS norm in the precision of its input; transformers' own goes through float32."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.weight, self.eps = norm.weight, norm.variance_epsilon

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps)


class DoubleRotary(nn.Module):
    """Rotary angles in float64; transformers' own go through float32."""

    def __init__(self, theta: float, head_dim: int) -> None:
        super().__init__()
        self.frequencies = theta ** (-torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)

    def forward(self, x: torch.Tensor, position_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        angles = position_ids[..., None].double() * self.frequencies
        both = torch.cat((angles, angles), dim=-1)
        return both.cos(), both.sin()


def in_double(model: LlamaForCausalLM) -> LlamaForCausalLM:
    """The same parameters, no step below float64."""
    trunk = model.double().model
    for layer in trunk.layers:
        layer.input_layernorm = DoubleNorm(layer.input_layernorm)
        layer.post_attention_layernorm = DoubleNorm(layer.post_attention_layernorm)
    trunk.norm = DoubleNorm(trunk.norm)
    trunk.rotary_emb = DoubleRotary(model.config.rope_parameters["rope_theta"], model.config.head_dim)
    return model


def fresh(name: str, model_type: type, config: object, seed: int, draw: Callable = lambda model: None) -> nn.Module:
    directory = ROOT / name
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    torch.manual_seed(seed)
    model = model_type(config)
    randomise(model)
    draw(model)
    model.save_pretrained(directory)
    (directory / "generation_config.json").unlink(missing_ok=True)
    return model.eval()


def save(name: str, model: nn.Module, loss: torch.Tensor, values: dict[str, np.ndarray], exact: bool = True) -> None:
    if exact and loss.dtype != torch.float64:
        raise SystemExit(f"{name}: the loss fell to {loss.dtype}")
    loss.backward()
    values["loss"] = loss.detach().numpy()
    for parameter, value in model.named_parameters():
        if value.grad is not None:
            values[f"grad/{parameter}"] = value.grad.numpy().astype(np.float32)
    np.savez_compressed(ROOT / name / "golden.npz", **values)
    size = sum(path.stat().st_size for path in (ROOT / name).iterdir())
    print(f"{name:14} {size / 1000:6.1f} kB  loss {float(loss.detach()):.6f}")


def make_llama(name: str, tied: bool, seed: int) -> None:
    config = LlamaConfig(**LLAMA, tie_word_embeddings=tied, attention_bias=not tied)
    config._attn_implementation = "sdpa"
    predict(name, in_double(fresh(name, LlamaForCausalLM, config, seed)), seed)


def make_qwen3_5(name: str, kind: type, values: dict, seed: int) -> None:
    """A hybrid with all that the family has; transformers' delta rule is float32, and so is all else then."""
    model = fresh(name, kind, kind.config_class(**values), seed, draw)
    predict(name, model, seed, exact=False)


def predict(name: str, model: nn.Module, seed: int, exact: bool = True) -> None:
    """Keep the loss of predicting two random sequences, and its gradients."""
    config = model.config
    random = np.random.default_rng(seed)
    values, parts, asked = {}, [], 0
    for index, length in enumerate(LENGTHS):
        tokens = random.integers(0, config.vocab_size, length).astype(np.int32)
        targets = np.append(tokens[1:], -100).astype(np.int32)
        targets[:3] = -100  # a prompt that is not learnt
        logits = model(torch.tensor(tokens).long()[None]).logits[0]
        parts.append(nn.functional.cross_entropy(logits, torch.tensor(targets).long(), reduction="sum"))
        asked += int((targets >= 0).sum())
        values |= {
            f"tokens_{index}": tokens,
            f"targets_{index}": targets,
            f"logits_{index}": logits.detach().numpy().astype(np.float32),
        }
    save(name, model, sum(parts) / asked, values, exact)


def make_bert(name: str, pooled: bool, seed: int) -> None:
    model = fresh(name, BertModel, BertConfig(**BERT), seed).double()
    model.embeddings.word_embeddings.padding_idx = None  # torch would hide the gradient of token 0
    random = np.random.default_rng(seed)
    values, parts = {}, []
    for index, length in enumerate(LENGTHS):
        tokens = random.integers(0, BERT["vocab_size"], length).astype(np.int32)
        hidden = model(torch.tensor(tokens).long()[None]).last_hidden_state[0]
        result = nn.functional.normalize(hidden.mean(0), dim=-1) if pooled else hidden
        weights = random.standard_normal(tuple(result.shape)).astype(np.float32)
        parts.append((result * torch.tensor(weights).double()).sum())
        values |= {
            f"tokens_{index}": tokens,
            f"weights_{index}": weights,
            f"{'pooled' if pooled else 'hidden'}_{index}": result.detach().numpy().astype(np.float32),
        }
    save(name, model, sum(parts), values)


def main() -> None:
    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()
    make_llama("llama-untied", tied=False, seed=1)
    make_llama("llama-tied", tied=True, seed=2)
    heads = dict(linear_num_value_heads=4, linear_key_head_dim=4)
    make_qwen3_5("qwen35-dense", Qwen3_5ForCausalLM, BASE | heads | dict(tie_word_embeddings=False), seed=5)
    make_qwen3_5("qwen35-moe", Qwen3_5MoeForCausalLM, MOE | heads | dict(num_experts=4), seed=6)
    make_bert("bert-hidden", pooled=False, seed=3)
    make_bert("bert-pooled", pooled=True, seed=4)


if __name__ == "__main__":
    main()
