"""config.json of the published embedding models: every key they hold is one that Lattice reads or may ignore."""

from __future__ import annotations

import pytest

from lattice.models import family

BERT = dict(
    architectures=["BertModel"], attention_probs_dropout_prob=0.1, classifier_dropout=None, hidden_act="gelu",
    hidden_dropout_prob=0.1, hidden_size=384, initializer_range=0.02, intermediate_size=1536, layer_norm_eps=1e-12,
    max_position_embeddings=512, model_type="bert", num_attention_heads=12, num_hidden_layers=12, pad_token_id=0,
    position_embedding_type="absolute", type_vocab_size=2, use_cache=True, vocab_size=30522,
)  # fmt: skip
ROBERTA = BERT | dict(
    architectures=["XLMRobertaModel"], model_type="xlm-roberta", bos_token_id=0, eos_token_id=2, pad_token_id=1,
    hidden_size=768, intermediate_size=3072, layer_norm_eps=1e-5, max_position_embeddings=514, type_vocab_size=1,
    vocab_size=250002, output_past=True,
)  # fmt: skip
QWEN = dict(
    architectures=["Qwen3ForCausalLM"], attention_bias=False, attention_dropout=0.0, bos_token_id=151643,
    eos_token_id=151643, head_dim=128, hidden_act="silu", hidden_size=1024, initializer_range=0.02,
    intermediate_size=3072, max_position_embeddings=32768, max_window_layers=28, model_type="qwen3",
    num_attention_heads=16, num_hidden_layers=28, num_key_value_heads=8, rms_norm_eps=1e-6, rope_scaling=None,
    rope_theta=1000000, sliding_window=None, tie_word_embeddings=True, torch_dtype="bfloat16", use_cache=True,
    use_sliding_window=False, vocab_size=151669, transformers_version="4.51.3",
)  # fmt: skip
CONFIGS = {
    "bge": BERT | {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}, "gradient_checkpointing": False},
    "e5-small": BERT | {"tokenizer_class": "XLMRobertaTokenizer", "vocab_size": 250037},
    "e5-base": ROBERTA | {"_name_or_path": "xlm-roberta-base"},
    "google": BERT | {"directionality": "bidi", "pooler_fc_size": 768, "pooler_type": "first_token_transform"},
    "of-2020": ROBERTA
    | {"model_type": "roberta", "length_penalty": 1.0, "max_length": 20, "top_k": 50, "do_sample": 0},
    "qwen3": QWEN,
}
TOKENS = {"e5-base": 512, "of-2020": 512, "qwen3": 32768}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_published_config_is_read(name):
    config = CONFIGS[name]
    read = family(config["model_type"]).Config.read(config)
    assert read.hidden_size == config["hidden_size"]
    assert read.max_position_embeddings == TOKENS.get(name, 512)
