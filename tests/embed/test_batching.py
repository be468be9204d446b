"""Ragged steps."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from lattice.embed.batching import Packer, batches
from lattice.step import Step

lengths = st.lists(st.integers(1, 40), max_size=60)


@given(lengths, st.integers(1, 80))
def test_every_text_is_in_one_batch_and_no_batch_is_over_budget(lengths, budget):
    made = list(batches(lengths, budget))
    assert sorted(index for batch in made for index in batch) == list(range(len(lengths)))
    assert all(len(batch) == 1 or sum(lengths[i] for i in batch) <= budget for batch in made)
    assert all(made)


@given(lengths, st.integers(1, 80))
def test_batches_are_full_but_for_the_next_text(lengths, budget):
    made = list(batches(lengths, budget))
    for batch, following in pairwise(made):
        assert sum(lengths[i] for i in batch) + lengths[following[0]] > budget


@given(st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=12), min_size=1, max_size=9))
def test_a_packed_step_is_the_plain_one(sequences):
    made, plain = Packer(120).step(sequences), Step.of(sequences, rows=[])
    assert (made.slots == 0).all() and (made.saves == -1).all()  # encoders have no recurrent state
    for name in Step.SHAPES.keys() - {"slots", "saves"}:
        value, wanted = getattr(made, name), getattr(plain, name)
        assert value.dtype == np.int32 and np.array_equal(value, wanted), name
