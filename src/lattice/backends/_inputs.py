"""What a step brings to a plan: fixed buffers that it overwrites, every value checked before any kernel sees it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import gt
from typing import Any

import numpy as np

from lattice.errors import expected
from lattice.ops import Symbol
from lattice.program import Program
from lattice.step import PAGE_TOKENS, Sampling, Step

COUNTS = {"T": 0, "R": 1, "S": 2}


def fields(program: Program, buffers: Mapping[str, np.ndarray]) -> list[Field]:
    """Return the inputs of a program that steps overwrite, each with its buffer."""
    found = limits(program)
    symbols = program.of_kind("step", "sampling", "input")
    return [Field.of(symbol, buffers[symbol.name], found.get(symbol.name)) for symbol in symbols]


def write(
    fields: Sequence[Field],
    counts: np.ndarray,
    step: Step | None = None,
    sampling: Sampling | None = None,
    inputs: Mapping[str, Any] | None = None,
) -> None:
    """Copy a step's inputs into the buffers and set the counts; LatticeError where they do not fit together."""
    given = {**vars(step)} if step is not None else {}
    if sampling is not None:
        given.update(vars(sampling))
    given.update(inputs or {})
    found = [-1, -1, -1]
    for field in fields:
        value = given.get(field.name)
        if value is not None:
            field.write(np.asarray(value), found)
    counts[:] = np.maximum(found, 0)
    if step is not None:
        _check_ragged("offsets", step.offsets, found[0], least=1)
        if len(step.rows) and not _below(np.asarray(step.rows), found[0]):
            raise expected("plan", f"rows from 0 to {found[0] - 1}", np.asarray(step.rows).tolist())
    if sampling is not None:
        edits = len(sampling.edit_ids)
        _check_ragged("edit_offsets", sampling.edit_offsets, edits, least=0)
        if len(sampling.edit_bias) != edits or len(sampling.edit_counts) != edits:
            got = f"{len(sampling.edit_bias)} and {len(sampling.edit_counts)}"
            raise expected("plan", f"edit_bias and edit_counts of {edits} entries, as edit_ids has", got)


@dataclass(frozen=True)
class Field:
    """An input buffer: the count that leads it, and the exclusive limit of its values where they address memory."""

    name: str
    buffer: np.ndarray
    count: int  # index of the count, -1 for none
    extra: int  # entries beyond the count: 1 for offsets
    limit: int | None
    least: int = 0  # -1 where that stands for none

    @classmethod
    def of(cls, symbol: Symbol, buffer: np.ndarray, limit: int | None) -> Field:
        lead = symbol.shape[0] if symbol.shape else 0
        name, _, extra = lead.partition("+") if isinstance(lead, str) else ("", "", "")
        least = -1 if symbol.kind == "step" and symbol.name == "saves" else 0
        return cls(symbol.name, buffer, COUNTS.get(name, -1), int(extra or 0), limit, least)

    def write(self, value: np.ndarray, counts: list[int]) -> None:
        """Copy `value` into the buffer and note its count."""
        buffer = self.buffer
        if value.ndim != buffer.ndim or any(map(gt, value.shape, buffer.shape)):
            raise expected("plan", f"{self.name} of at most {buffer.shape}", value.shape)
        if (
            self.limit is not None
            and value.size
            and not _below(value - self.least if self.least else value, self.limit - self.least)
        ):
            wanted = f"{self.name} from {self.least} to {self.limit - 1}"
            raise expected("plan", wanted, f"{value.min()} to {value.max()}")
        if self.count >= 0:
            count = len(value) - self.extra
            if counts[self.count] not in (-1, count):
                raise expected("plan", f"{counts[self.count]} entries of {self.name}", count)
            counts[self.count] = count
        if value.ndim == 1:
            buffer[: len(value)] = value
        else:
            buffer[tuple(map(slice, value.shape))] = value


def _below(value: np.ndarray, limit: int) -> bool:
    """Return whether all values are at least 0 and below the limit: as unsigned numbers, one comparison."""
    unsigned = value.view(np.uint32) if value.dtype == np.int32 else value.astype(np.int64).view(np.uint64)
    return bool(np.maximum.reduce(unsigned, axis=None) < limit)


def _check_ragged(name: str, offsets: np.ndarray, total: int, least: int) -> None:
    """Raise unless offsets lead from 0 to `total` in parts of at least `least`."""
    offsets = np.asarray(offsets)
    sound = len(offsets) > 0 and offsets[0] == 0 and offsets[-1] == total
    if not sound or (offsets[1:] - offsets[:-1] < least).any():
        raise expected("plan", f"{name} from 0 to {total} in steps of at least {least}", offsets.tolist())


def limits(program: Program) -> dict[str, int]:
    """Return (exclusive) limits of inputs that address memory: they are checked before every step."""
    limits: dict[str, int] = {}
    made = {id(output): node for node in program.nodes for output in node.outputs}

    def bound(symbol: Symbol, limit: int) -> None:
        node = made.get(id(symbol))
        if node is not None and node.op.name == "unpadded_positions":
            symbol, limit = node.args[0].positions, limit - node.attributes["padding"] - 1
        limits[symbol.name] = min(limit, limits.get(symbol.name, limit))

    for node in program.nodes:
        arguments = dict(zip(node.op.inputs, node.args, strict=True))
        if node.op.name == "embedding":
            bound(arguments["ids"], arguments["table"].shape[0])
        elif node.op.name == "mixture":
            bound(arguments["ids"], arguments["gate"].shape[0])
        elif node.op.name == "take_rows" and isinstance(arguments["x"].shape[0], int):
            bound(arguments["rows"], arguments["x"].shape[0])
        elif node.op.name in ("append_kv", "rotated_kv"):
            step = arguments["step"]
            bound(step.page_table, arguments["k_pages"].shape[0])
            bound(step.positions, step.page_table.shape[1] * PAGE_TOKENS)
        elif node.op.name in ("slot_conv1d", "slot_gated_delta", "delta_net"):
            for field in (arguments["step"].slots, arguments["step"].saves):
                for state in node.op.writes:
                    bound(field, arguments[state].shape[0])
        elif node.op.name == "sample":
            bound(arguments["sampling"].edit_ids, arguments["logits"].shape[-1])
        elif node.op.name == "logprobs":
            bound(arguments["tokens"], arguments["logits"].shape[-1])
    return limits
