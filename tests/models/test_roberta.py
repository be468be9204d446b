"""RoBERTa's positions: behind the padding index, padding tokens left out, within the table whatever a step says."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lattice.backends._backend import Capacity
from lattice.backends.cpu import CpuBackend
from lattice.errors import LatticeError
from lattice.models import family
from lattice.ops import unpadded_positions
from lattice.program import trace
from lattice.step import Step
from lattice.weights.load import open_model

MODELS = Path(__file__).parents[1] / "golden" / "models"


def test_positions_begin_behind_padding_and_leave_it_out():
    step = Step.of([[1, 7, 7, 1, 1, 7], [7]])
    assert unpadded_positions(step, padding=1).tolist() == [1, 2, 3, 1, 1, 4, 2]
    assert unpadded_positions(step, padding=0).tolist() == [1, 2, 3, 4, 5, 6, 1]


def test_a_file_counts_positions_that_no_text_has():
    assert open_model(MODELS / "xlm-roberta-gelu", family).config.max_position_embeddings == 136
    assert open_model(MODELS / "xlm-roberta-padding0", family).config.max_position_embeddings == 73
    assert open_model(MODELS / "gguf-xlm-roberta-f32" / "model.gguf", family).config.max_position_embeddings == 72


def test_a_step_past_the_table_is_refused(cpu_target):
    """The ids of the position table are computed inside the plan: what bounds them is checked before it runs."""
    opened = open_model(MODELS / "xlm-roberta-padding0", family)
    program = trace(lambda p: {"out": opened.model(p.step())[0]})
    backend = CpuBackend(cpu_target)
    plan = backend.compile(program, backend.load(program, opened.weights), Capacity(100, 100, 1))
    assert plan.run(Step.of([[2] * 73]))["out"].shape == (73, 16)
    with pytest.raises(LatticeError, match="positions from 0 to 72"):
        plan.run(Step.of([[2] * 74]))
    wrong = replace(Step.of([[0] * 73]), positions=np.zeros(73, np.int32))  # more padding than positions before it
    assert np.isfinite(plan.run(wrong)["out"]).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pad_token_id": -1}, "pad_token_id from 0 to 69"),
        ({"pad_token_id": 70}, "pad_token_id from 0 to 69"),
        ({"pad_token_id": True}, "pad_token_id from 0 to 69"),
        ({"pad_token_id": "1"}, "usable values"),
        ({"max_position_embeddings": 2}, "max_position_embeddings from 1"),
        ({"is_decoder": True}, "an encoder"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type absolute"),
    ],
)
def test_a_hostile_config_is_a_clear_error(tmp_path, change, message):
    directory = tmp_path / "model"
    shutil.copytree(MODELS / "xlm-roberta-gelu", directory)
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(LatticeError, match=message):
        open_model(directory, family)
