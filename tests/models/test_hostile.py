"""Configurations that are damaged or hostile: a clear error each, before anything is allocated."""

from __future__ import annotations

import json
import shutil
import tracemalloc
from pathlib import Path

import pytest

from lattice.errors import LatticeError
from lattice.models import family
from lattice.weights.load import open_model

MODELS = Path(__file__).parents[1] / "golden" / "models"
CASES = [
    ("llama-tied", {"hidden_size": "32"}, "usable values|hidden_size from"),
    ("llama-tied", {"hidden_size": True}, "usable values|hidden_size from"),
    ("llama-tied", {"hidden_size": -1}, "hidden_size from 1"),
    ("llama-tied", {"hidden_size": 10**12}, "hidden_size from 1 to 1048576"),
    ("llama-tied", {"num_hidden_layers": 10**6}, "num_hidden_layers from 1 to 4096"),
    ("llama-tied", {"num_attention_heads": 0}, "num_attention_heads from 1"),
    ("llama-tied", {"num_key_value_heads": 3}, "key heads that divide"),
    ("llama-tied", {"vocab_size": 1e30}, "vocab_size from 1"),
    ("llama-tied", {"rms_norm_eps": "small"}, "rms_norm_eps from"),
    ("llama-tied", {"rope_parameters": [1]}, "usable values"),
    ("llama-tied", {"rope_parameters": {"rope_type": "llama3"}}, "usable values"),
    ("llama-tied", {"rope_parameters": {"rope_type": "made-up"}}, "rope scaling default, linear, llama3 or yarn"),
    ("llama-tied", {"hidden_act": "made-up"}, "hidden_act among"),
    ("llama-tied", {"sliding_stuff": 4}, "sliding_stuff=4"),
    ("llama-tied", {"quantization_config": {"bits": 4}}, "quantization_config"),
    ("llama-tied", {"model_type": "made-up"}, "a model type among bert, .*llama"),
    ("llama-tied", {"model_type": "../../etc"}, "a model type among"),
    ("llama-tied", {"vocab_size": 69}, "of shape"),
    ("bert-gelu", {"is_decoder": True}, "an encoder"),
    ("bert-gelu", {"num_attention_heads": 5}, "the heads divide"),
    ("bert-gelu", {"type_vocab_size": 0}, "type_vocab_size from 1"),
    ("bert-gelu", {"hidden_size": None}, "none for hidden_size"),
]


@pytest.mark.parametrize(("model", "change", "message"), CASES)
def test_a_hostile_config_is_a_clear_error(model, change, message, tmp_path):
    directory = tmp_path / model
    shutil.copytree(MODELS / model, directory)
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | change))
    tracemalloc.start()
    try:
        with pytest.raises(LatticeError, match=message):
            opened = open_model(directory, family)
            for name in opened.weights:
                opened.weights[name]
        assert tracemalloc.get_traced_memory()[1] < 10 << 20  # a config of up to 8 MiB is read in one piece
    finally:
        tracemalloc.stop()
