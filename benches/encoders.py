"""The encoders that `embed` compares: each gets texts, tokenizes, cuts at 256 tokens and gives unit vectors.

Each has `measure(texts, repeats) -> seconds of each repeat` and `sample(texts) -> vectors`.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

BATCH = 32


class Encoder:
    """Times `encode`, which a subclass gives."""

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        raise NotImplementedError

    def measure(self, texts: list[str], repeats: int = 1) -> list[float]:
        seconds = []
        for _ in range(repeats):
            started = time.perf_counter()
            self.encode(texts)
            seconds.append(time.perf_counter() - started)
        return seconds

    def sample(self, texts: list[str]) -> list[list[float]]:
        return np.asarray(self.encode(texts), np.float32).tolist()


class Lattice(Encoder):
    """This project, called as a user would call it."""

    def __init__(self, model: str, dtype: str, threads: int):
        import lattice

        self.model = lattice.load_encoder(model, dtype=dtype)

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        return self.model.encode(texts, show_progress=False)

    def bandwidth(self) -> float:
        from benches.calibrate import bandwidth

        return bandwidth()


class SentenceTransformers(Encoder):
    """sentence-transformers on torch, f32, its own batching (sorted by length, 32 a batch)."""

    def __init__(self, model: str, threads: int):
        import torch
        from sentence_transformers import SentenceTransformer

        torch.set_num_threads(threads)
        self.model = SentenceTransformer(model, device="cpu")

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        return self.model.encode(texts, batch_size=BATCH, normalize_embeddings=True, show_progress_bar=False)


class OnnxRuntime(Encoder):
    """ONNX Runtime on an f32 export whose graph also pools and normalises; sorted by length, 32 a batch.

    `fused` rewrites attention, gelu and the norms into ONNX Runtime's own operators first, which its session
    optimiser alone does not do for attention.
    """

    def __init__(self, model: str, threads: int, fused: bool = True):
        import onnxruntime
        from tokenizers import Tokenizer

        self.tokenizer = Tokenizer.from_file(str(Path(model) / "tokenizer.json"))
        self.tokenizer.enable_truncation(256)
        self.tokenizer.no_padding()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        with tempfile.TemporaryDirectory() as directory:
            path = export(model, Path(directory), fused)
            self.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        encodings = self.tokenizer.encode_batch(list(texts))
        order = sorted(range(len(texts)), key=lambda index: -len(encodings[index].ids))
        vectors = np.empty((len(texts), 384), np.float32)
        for start in range(0, len(order), BATCH):
            chosen = order[start : start + BATCH]
            ids = np.zeros((len(chosen), len(encodings[chosen[0]].ids)), np.int64)
            mask = np.zeros_like(ids)
            for line, index in enumerate(chosen):
                found = encodings[index].ids
                ids[line, : len(found)] = found
                mask[line, : len(found)] = 1
            vectors[chosen] = self.session.run(None, {"input_ids": ids, "attention_mask": mask})[0]
        return vectors


def export(model: str, directory: Path, fused: bool) -> Path:
    """Write the encoder with mean pooling and normalisation as ONNX, f32, any batch and length."""
    import torch
    from transformers import BertModel

    class Pooled(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bert = BertModel.from_pretrained(model, attn_implementation="eager", add_pooling_layer=False)

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            hidden = self.bert(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
            kept = attention_mask.unsqueeze(-1).to(hidden.dtype)
            return torch.nn.functional.normalize((hidden * kept).sum(1) / kept.sum(1), dim=-1)

    names = ["input_ids", "attention_mask"]
    axes = {name: {0: "batch", 1: "length"} for name in names}
    example = (torch.randint(1000, 2000, (2, 9)), torch.ones(2, 9, dtype=torch.int64))
    path, module = directory / "model.onnx", Pooled().eval()
    torch.onnx.export(
        module,
        example,
        str(path),
        input_names=names,
        output_names=["vectors"],
        dynamic_axes=axes,
        opset_version=17,
        dynamo=False,
    )
    if not fused:
        return path
    from onnxruntime.transformers import optimizer

    config = module.bert.config
    result = optimizer.optimize_model(
        str(path),
        model_type="bert",
        num_heads=config.num_attention_heads,
        hidden_size=config.hidden_size,
        opt_level=1,
        use_gpu=False,
    )
    result.save_model_to_file(str(directory / "fused.onnx"))
    print("fused operators:", result.get_fused_operator_statistics())
    return directory / "fused.onnx"
