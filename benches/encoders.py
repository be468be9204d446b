"""The encoders that `embed` compares: each gets texts, tokenizes, cuts at 256 tokens and gives unit vectors.

Each has `measure(texts, repeats) -> seconds of each repeat` and `sample(texts) -> vectors`.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

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
        self.model.prepare()

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
    optimiser alone does not do for attention. `int8`: weights per channel, activations dynamically.
    """

    def __init__(self, model: str, threads: int, fused: bool = True, int8: bool = False):
        import onnxruntime

        self.tokenizer = tokenizer(model)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        with tempfile.TemporaryDirectory() as directory:
            path = export(model, Path(directory), fused)
            if int8:
                from onnx import TensorProto
                from onnxruntime.quantization import QuantType, quantize_dynamic

                how = {"per_channel": True, "extra_options": {"DefaultTensorType": TensorProto.FLOAT}}
                quantize_dynamic(path, path.with_name("int8.onnx"), weight_type=QuantType.QInt8, **how)
                path = path.with_name("int8.onnx")
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
            vectors[chosen] = self.run(ids, mask)
        return vectors

    def run(self, ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
        return self.session.run(None, {"input_ids": ids, "attention_mask": mask})[0]


class OpenVino(OnnxRuntime):
    """OpenVINO in int8: the plain export, quantised statically (QDQ, weights per channel) on 32 paragraphs."""

    def __init__(self, model: str, threads: int, text: str):
        import openvino
        from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

        self.tokenizer = found = tokenizer(model)

        class Reader(CalibrationDataReader):
            def __init__(self) -> None:
                lines = [line for line in Path(text).read_text(encoding="utf-8").split("\n") if len(line) > 100]
                self.rows = iter([found.encode(line).ids for line in lines[-32:]])

            def get_next(self) -> dict[str, np.ndarray] | None:
                ids = next(self.rows, None)
                return ids and {"input_ids": np.array([ids]), "attention_mask": np.ones((1, len(ids)), np.int64)}

        with tempfile.TemporaryDirectory() as directory:
            path, int8 = export(model, Path(directory), fused=False), Path(directory) / "int8.onnx"
            quantize_static(
                path,
                int8,
                Reader(),
                quant_format=QuantFormat.QDQ,
                per_channel=True,
                op_types_to_quantize=["MatMul"],
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
            )
            core = openvino.Core()
            limits = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
            self.compiled = core.compile_model(core.read_model(int8), "CPU", limits)

    def run(self, ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
        return self.compiled({"input_ids": ids, "attention_mask": mask})[0]


def tokenizer(model: str) -> Any:
    from tokenizers import Tokenizer

    found = Tokenizer.from_file(str(Path(model) / "tokenizer.json"))
    found.enable_truncation(256)
    found.no_padding()
    return found


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
