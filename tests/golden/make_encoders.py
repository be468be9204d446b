"""Write the encoders of `tests/golden/models` that are RoBERTa's, and `tests/golden/embedders`, whole embedding models.

Not a test and never run by `make test`: the results are committed. To regenerate all of them:

    pip install torch transformers sentence-transformers safetensors gguf
    python tests/golden/make_encoders.py                   # or: make_encoders.py NAME [NAME ...]

models/<name>/          as make_models.py describes: random tiny checkpoints and the hidden states that transformers
                        computes of sequences that it is given one by one; padding tokens are among their tokens
embedders/<name>/       a directory as sentence-transformers publishes one, with a tokenizer trained here, and:
    golden.json         "texts"; "tokens": their ids; "long", "cut": a text longer than the model's longest, and its ids
    golden.npz          vectors of sentence-transformers, float32, each text alone: `<pooling>` for every mode that it
                        knows, not normalised; `normal`, `short` (8 dimensions, normalised), `long`; `query` and
                        `document` behind the model's prompts, normalised; all but the modes with the model's own mode
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import sentence_transformers
import tokenizers
import torch
import transformers
from make_gguf import write_bert
from make_models import edit_config, randomise
from sentence_transformers import SentenceTransformer
from sentence_transformers.models import Normalize, Pooling, Transformer
from transformers import (
    Qwen3Config,
    Qwen3Model,
    RobertaConfig,
    RobertaForMaskedLM,
    XLMRobertaConfig,
    XLMRobertaForSequenceClassification,
    XLMRobertaModel,
)

HERE = Path(__file__).parent
TINY = dict(
    vocab_size=70,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=48,
    max_position_embeddings=74,
    type_vocab_size=1,
    layer_norm_eps=1e-5,
)
ONE = TINY | dict(num_hidden_layers=1)
SMALL = ONE | dict(hidden_size=16, num_attention_heads=2, intermediate_size=20)


# ---- hidden states ------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Case:
    """One checkpoint: what it is for, the config values, the lengths of its sequences, how it is saved."""

    name: str
    why: str
    values: dict
    lengths: tuple[int, ...] = (1, 6, 65)
    model: type = XLMRobertaModel
    dtype: torch.dtype = torch.float32
    rewrite: Callable[[Path], None] | None = None
    gguf: str | None = None


def old_config(directory: Path) -> None:
    """config.json as transformers 4.17 wrote it, with keys that say nothing about the computation."""
    edit_config(
        directory,
        drop=("dtype",),
        position_embedding_type="absolute",
        torch_dtype="float16",
        output_past=True,
        transformers_version="4.17.0",
    )


CASES = (
    Case(
        "xlm-roberta-gelu",
        "the plain encoder, 4 heads of 5, one token type; a sequence of exactly the 136 positions of a text",
        TINY | dict(hidden_size=20, intermediate_size=40, max_position_embeddings=138),
        (1, 2, 17, 136),
    ),
    Case(
        "xlm-roberta-long",
        "longer than 256 tokens, up to exactly the last position; hidden 18, 3 heads of 6",
        ONE | dict(hidden_size=18, num_attention_heads=3, intermediate_size=40, max_position_embeddings=302),
        (20, 300),
    ),
    Case(
        "roberta-heads12",
        "12 heads of 3, roberta. prefix, masked-LM head",
        ONE | dict(hidden_size=36, num_attention_heads=12, intermediate_size=52, vocab_size=67),
        (1, 33),
        model=RobertaForMaskedLM,
    ),
    Case("xlm-roberta-padding0", "padding is token 0: positions from 1", SMALL | dict(pad_token_id=0), (1, 7, 73)),
    Case(
        "xlm-roberta-padding5",
        "padding is token 5, two token types, tanh gelu, layer_norm_eps 0.01",
        SMALL | dict(pad_token_id=5, type_vocab_size=2, hidden_act="gelu_new", layer_norm_eps=1e-2),
        (1, 7, 68),
    ),
    Case(
        "xlm-roberta-classifier",
        "roberta. prefix, a classifier, fp16, an old config.json",
        SMALL,
        model=XLMRobertaForSequenceClassification,
        dtype=torch.float16,
        rewrite=old_config,
    ),
    Case(
        "gguf-xlm-roberta-f32",
        "as llama.cpp stores it: architecture bert, the first two rows of the position table cut off",
        SMALL | dict(vocab_size=112),
        (1, 6, 72),
        gguf="F32",
    ),
)


def build(case: Case, seed: int) -> torch.nn.Module:
    torch.manual_seed(seed)
    config = (RobertaConfig if case.model is RobertaForMaskedLM else XLMRobertaConfig)(**case.values)
    config._attn_implementation = "eager"
    model = case.model(config).eval()
    randomise(model)
    return model


def write_gguf(path: Path, model: torch.nn.Module, kind: str) -> dict[str, torch.Tensor]:
    """As llama.cpp's converter: the rows of the position table that belong to no text are dropped."""
    config, cut = model.config, model.config.pad_token_id + 1
    table = model.embeddings.position_embeddings.weight
    whole, positions = table.data, config.max_position_embeddings
    table.data, config.max_position_embeddings = whole[cut:].clone(), positions - cut
    stored = write_bert(path, model, kind)
    table.data, config.max_position_embeddings = whole, positions
    key = "embeddings.position_embeddings.weight"
    return stored | {key: torch.cat([whole[:cut], stored[key]])}


def hidden(model: torch.nn.Module, tokens: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return getattr(model, "roberta", model)(torch.tensor(tokens)[None].long()).last_hidden_state[0].numpy()


def golden(model: torch.nn.Module, case: Case, seed: int) -> dict[str, np.ndarray]:
    """Every sequence alone; all but the longest have padding tokens inside (GGUF, which counts them, has none)."""
    random = np.random.default_rng(seed)
    padding, results = model.config.pad_token_id, {}
    for index, length in enumerate(case.lengths):
        tokens = random.integers(0, case.values["vocab_size"], length)
        tokens[tokens == padding] += 1
        if index + 1 < len(case.lengths) and length > 5 and not case.gguf:
            tokens[[0, 3, 4, length // 2]] = padding
        results[f"tokens_{index}"] = tokens.astype(np.int32)
        results[f"hidden_{index}"] = hidden(model, tokens)
    return results


def make_model(case: Case, seed: int) -> None:
    directory = HERE / "models" / case.name
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    model = build(case, seed)
    if case.gguf:
        model.load_state_dict(write_gguf(directory / "model.gguf", model, case.gguf))
    else:
        model.to(case.dtype).save_pretrained(directory)
        if case.rewrite:
            case.rewrite(directory)
        model = case.model.from_pretrained(directory, dtype=torch.float32, attn_implementation="eager").eval()
    values = golden(model, case, seed)
    for value in values.values():
        if value.dtype == np.float32 and (not np.isfinite(value).all() or value.std() < 0.2):
            raise SystemExit(f"{case.name}: values out of range")
    np.savez_compressed(directory / "golden.npz", **values)
    print(f"{case.name:24} {sum(path.stat().st_size for path in directory.iterdir()) / 1000:6.1f} kB")


# ---- whole embedding models ---------------------------------------------------------------------------------
TEXTS = (
    "a cat sat on the mat",
    "",
    "Grüße aus Köln, naïve café",
    "  two  spaces before, one behind ",
    "こんにちは世界, 你好",
    "a text with <pad> and </s> in it",
    "It is a truth universally known",
    "привет, мир! 123 4567",
)
MODES = ("cls", "mean", "lasttoken", "max", "mean_sqrt_len_tokens", "weightedmean")
LONGEST = 60
SPECIAL = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]


def unigram() -> tokenizers.Tokenizer:
    """XLM-RoBERTa's kind: NFKC, pieces of words that begin with U+2581, <s> before and </s> behind."""
    result = tokenizers.Tokenizer(tokenizers.models.Unigram())
    result.normalizer = tokenizers.normalizers.Sequence(
        [tokenizers.normalizers.NFKC(), tokenizers.normalizers.Replace(tokenizers.Regex(" {2,}"), " ")]
    )
    result.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    result.decoder = tokenizers.decoders.Metaspace()
    trainer = tokenizers.trainers.UnigramTrainer(vocab_size=300, special_tokens=SPECIAL, unk_token="<unk>")
    result.train_from_iterator(training_text(), trainer)
    result.post_processor = tokenizers.processors.TemplateProcessing(
        "<s> $A </s>", "<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return result


def training_text() -> list[str]:
    lines = (HERE / "sentences.txt").read_text("utf-8").splitlines()
    return [*lines[:60], *TEXTS]


def byte_level() -> tokenizers.Tokenizer:
    """Qwen's kind: NFC, its pattern of words, bytes, and, as its embedding models have it, <|endoftext|> behind."""
    result = tokenizers.Tokenizer(tokenizers.models.BPE())
    result.normalizer = tokenizers.normalizers.NFC()
    pattern = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
        r"|\s+(?!\S)|\s+"
    )
    level = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    result.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
        [tokenizers.pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated"), level]
    )
    result.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=330, initial_alphabet=level.alphabet())
    result.train_from_iterator(training_text(), trainer)
    result.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    last = result.token_to_id("<|endoftext|>")
    result.post_processor = tokenizers.processors.Sequence(
        [
            tokenizers.processors.ByteLevel(trim_offsets=False),
            tokenizers.processors.TemplateProcessing(
                "$A <|endoftext|>", "$A <|endoftext|> $B <|endoftext|>", special_tokens=[("<|endoftext|>", last)]
            ),
        ]
    )
    return result


def write(directory: Path, model: torch.nn.Module, fast: object, pooling: str, prompts: dict[str, str]) -> None:
    """Save a random trunk and a tokenizer as sentence-transformers does."""
    randomise(model)
    model.save_pretrained(directory)
    fast.save_pretrained(directory)
    modules = [Transformer(str(directory), max_seq_length=LONGEST), Pooling(32, pooling_mode=pooling), Normalize()]
    SentenceTransformer(modules=modules, prompts=prompts, device="cpu").save_pretrained(
        str(directory), create_model_card=False
    )


def write_xlm_roberta(directory: Path) -> None:
    """A multilingual E5 in small: XLM-RoBERTa, mean, Normalize, "query: " and "passage: "."""
    torch.manual_seed(7)
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=unigram(), bos_token="<s>", eos_token="</s>", cls_token="<s>", sep_token="</s>",
        unk_token="<unk>", pad_token="<pad>", mask_token="<mask>", model_max_length=LONGEST,
    )  # fmt: skip
    config = XLMRobertaConfig(**ONE | dict(vocab_size=len(fast), max_position_embeddings=66))
    write(directory, XLMRobertaModel(config), fast, "mean", {"query": "query: ", "passage": "passage: "})


def write_qwen3(directory: Path) -> None:
    """A Qwen3-Embedding in small: a bare causal trunk, the last token, Normalize, an instruction before queries."""
    torch.manual_seed(8)
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=byte_level(), eos_token="<|im_end|>", pad_token="<|endoftext|>", padding_side="left",
        model_max_length=LONGEST,
    )  # fmt: skip
    config = Qwen3Config(
        vocab_size=len(fast) + 5, hidden_size=32, intermediate_size=40, num_hidden_layers=2, num_attention_heads=3,
        num_key_value_heads=1, head_dim=12, max_position_embeddings=128, tie_word_embeddings=True,
        rope_parameters=dict(rope_type="default", rope_theta=1000000.0),
    )  # fmt: skip
    write(directory, Qwen3Model(config), fast, "lasttoken", {"query": "Instruct: find\nQuery:", "document": ""})


def write_qwen3_published(directory: Path) -> None:
    """The same with its files as Qwen3-Embedding-4B is published: bf16 in shards, the older form of modules.json and of
    the pooling flags, no sentence_bert_config.json (the config's positions are the longest text), the real prompts."""
    torch.manual_seed(9)
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=byte_level(), eos_token="<|im_end|>", pad_token="<|endoftext|>", padding_side="left",
        model_max_length=131072,
    )  # fmt: skip
    config = Qwen3Config(
        vocab_size=len(fast) + 5, hidden_size=64, intermediate_size=72, num_hidden_layers=2, num_attention_heads=3,
        num_key_value_heads=1, head_dim=16, max_position_embeddings=96, tie_word_embeddings=True,
        rope_parameters=dict(rope_type="default", rope_theta=1000000.0),
    )  # fmt: skip
    model = Qwen3Model(config)
    randomise(model)
    model.to(torch.bfloat16).save_pretrained(directory, max_shard_size="60KB")
    fast.save_pretrained(directory)
    modes = ("cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens", "lasttoken")
    files: dict[str, object] = {
        "modules.json": [
            {"idx": index, "name": str(index), "path": path, "type": f"sentence_transformers.models.{kind}"}
            for index, (path, kind) in enumerate(
                [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")]
            )
        ],
        "1_Pooling/config.json": {
            "word_embedding_dimension": 64,
            **{f"pooling_mode_{mode}": mode == "lasttoken" for mode in modes},
            "include_prompt": True,
        },
        "config_sentence_transformers.json": {
            "prompts": {
                "query": "Instruct: Given a web search query, retrieve relevant passages that answer the query\nQuery:",
                "document": "",
            },
            "default_prompt_name": None,
            "similarity_fn_name": "cosine",
        },
    }
    for name, value in files.items():
        (directory / name).parent.mkdir(exist_ok=True)
        (directory / name).write_text(json.dumps(value, indent=1) + "\n")


EMBEDDERS: dict[str, Callable[[Path], None]] = {
    "xlm-roberta": write_xlm_roberta, "qwen3": write_qwen3, "qwen3-published": write_qwen3_published,
}  # fmt: skip
SHORT = {"qwen3-published": 32}  # dimensions of shortened vectors; 8 elsewhere


def make_embedder(name: str) -> None:
    directory = HERE / "embedders" / name
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    EMBEDDERS[name](directory)
    model = SentenceTransformer(str(directory), device="cpu", model_kwargs={"dtype": torch.float32})
    modules = list(model)
    long = " ".join(TEXTS * 3)

    def encode(texts: object, **options: object) -> np.ndarray:
        return np.array([model.encode(text, show_progress_bar=False, **options) for text in texts], np.float32)

    def tokens(text: str) -> list[int]:
        return model.preprocess([text])["input_ids"][0].tolist()

    values = {
        "normal": encode(TEXTS, normalize_embeddings=True),
        "short": encode(TEXTS, normalize_embeddings=True, truncate_dim=SHORT.get(name, 8)),
        "long": encode([long], normalize_embeddings=True)[0],
        "query": np.array([model.encode_query(text, normalize_embeddings=True) for text in TEXTS]),
        "document": np.array([model.encode_document(text, normalize_embeddings=True) for text in TEXTS]),
    }
    listed = {"texts": TEXTS, "tokens": [tokens(text) for text in TEXTS], "long": long, "cut": tokens(long)}
    for mode in MODES:
        width = modules[1].embedding_dimension
        model = SentenceTransformer(modules=[modules[0], Pooling(width, pooling_mode=mode)], device="cpu")
        values[mode] = encode(TEXTS)
    np.savez_compressed(directory / "golden.npz", **values)
    (directory / "golden.json").write_text(json.dumps(listed, indent=1) + "\n")
    for path in (directory / "README.md", directory / "generation_config.json"):
        path.unlink(missing_ok=True)
    if max(map(len, listed["tokens"])) >= LONGEST:
        raise SystemExit(f"{name}: a text that is cut")
    for path in directory.glob("*.safetensors"):
        path.chmod(0o644)
    size = sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())
    print(f"{name:24} {size / 1000:6.1f} kB  {sorted(path.name for path in directory.iterdir())}")


def main(names: list[str]) -> None:
    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()
    print(f"transformers {transformers.__version__}, sentence-transformers {sentence_transformers.__version__}")
    for seed, case in enumerate(CASES):
        if not names or case.name in names:
            make_model(case, 3000 + seed)
    for name in EMBEDDERS:
        if not names or name in names:
            make_embedder(name)
    manifest = {case.name: case.why for case in CASES}
    (HERE / "models" / "encoders.json").write_text(json.dumps(manifest, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
