"""Write `tests/golden/gemma3_270m.npz`: what transformers computes in float32 with the weights of a real GGUF.

Not a test and never run by `make test`: the result is committed. To regenerate it:

    pip install torch transformers accelerate gguf llama-cpp-python
    python tests/golden/make_gemma3_270m.py gemma-3-270m-q4_k_m.gguf

    tokens    (640,) int32           the first tokens of sentences.txt behind BOS: more than the window of 512
    rows      (8,) int32             positions whose logits are kept
    ids       (8, 16) int32          their most likely tokens ...
    logits    (8, 16) float32        ... and these tokens' logits
    losses    (319,) float32         -log p of tokens 321 to 639
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from llama_cpp import Llama
from transformers import Gemma3ForCausalLM

HERE = Path(__file__).parent
ROWS = (0, 63, 64, 511, 512, 513, 575, 639)


def main(path: Path) -> None:
    text = (HERE / "sentences.txt").read_text(encoding="utf-8").replace("<unk>", "it")
    tokens = Llama(str(path), vocab_only=True, verbose=False).tokenize(text[:8000].encode(), add_bos=True)[:640]
    torch.set_num_threads(2)
    model = Gemma3ForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    config = model.config
    if config.sliding_window != 512 or config.layer_types.index("full_attention") != 5 or len(tokens) != 640:
        raise SystemExit(f"not the expected model or text: {config}")
    with torch.no_grad():
        hidden = model.model(torch.tensor([tokens])).last_hidden_state[0]
        logits = model.lm_head(hidden[list(ROWS)])
        behind = torch.log_softmax(model.lm_head(hidden[320:639]), -1)
    losses = -behind[torch.arange(319), torch.tensor(tokens[321:])]
    values, ids = logits.topk(16)
    np.savez_compressed(
        HERE / "gemma3_270m.npz",
        tokens=np.array(tokens, np.int32),
        rows=np.array(ROWS, np.int32),
        ids=ids.numpy().astype(np.int32),
        logits=values.numpy(),
        losses=losses.numpy(),
    )
    print(config.rope_parameters, config.query_pre_attn_scalar, float(losses.mean()))


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
