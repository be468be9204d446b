"""A model rounded to blocks and written as a checkpoint: tensor by tensor, resumable, whole or not at all.

    OUT/model.safetensors    blocks as U8 (see weights/safetensors.py), everything else as the source has it
    OUT/config.json, tokenizer.json, ...    the source's; of a GGUF file made from what it says
    OUT/quantization.json    recipe, bits and the gate's report

Without calibration a matrix is read, rounded to the nearest and written slab by slab. With it all calibration tokens
walk once through the model (`walk.py`), and each matrix is rounded for what it was multiplied with. The same source and
settings give the same bytes, however often the work was interrupted (`journal.py`).
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from lattice.dtypes import BY_NAME, F32, Array, DType, dense, encode
from lattice.embed import load_encoder
from lattice.errors import LatticeError, expected
from lattice.generate import load
from lattice.generate.prompt import Texts
from lattice.models import family
from lattice.quant.files import write_files
from lattice.quant.gate import bundled, measure, measure_encoder
from lattice.quant.journal import Partial, cleared
from lattice.quant.recipe import TURNED, plan
from lattice.quant.report import Report
from lattice.quant.rotate import rotate
from lattice.quant.rounding import compensated, nearest
from lattice.quant.walk import Product, walk
from lattice.weights.load import OpenModel, open_model
from lattice.weights.safetensors import safetensors_header
from lattice.weights.sources import resolve

VERSION = 1  # of what is written; a new one does not go on with an older part
SLAB = 1 << 24  # values of a matrix that are rounded together
SEQUENCES, LENGTH = 16, 256  # of calibration tokens
Progress = Callable[[str, int, int], object]  # what, bytes written, of how many


def quantize(
    source: str | Path,
    out_dir: str | Path,
    *,
    to: str = "q4",
    calibrate: str | Path | None = None,
    gate: bool = True,
    chunks: int | None = None,
    tensors: Mapping[str, str] | None = None,
    requantize: bool = False,
    progress: Progress | None = None,
) -> Report:
    """Write the model that `source` names to the directory `out_dir`, rounded as the recipe `to` says: "q8", "q4" or
    "quarot4"; `lattice.load` and `load_encoder` open it like any other.

    `calibrate`, the file of a text or "bundled", rounds each matrix so that what it makes of that text changes least.
    `gate` then measures the result beside its source on a bundled text (its first `chunks` windows) and says PASS,
    WARN or FAIL; the checkpoint is written in any case. `tensors` overrides the recipe, for example
    {"lm_head": "q8_0", "*.v_proj": "q6_k"}. Killed and called again as before, it goes on where it was.

    Raises LatticeError where `out_dir` is not empty or cannot be written, the source has been quantised before (unless
    `requantize`), a setting is not known, or an interrupted call had other settings.
    """
    out = Path(out_dir).expanduser().absolute()
    if cleared(out) and (report := Report.of(out)).recipe == to:
        return report  # killed behind the rename
    check_free(out)
    opened = open_model(resolve(source), family)
    if not requantize:
        check_unquantised(opened)
    job = _Job(opened, to, tensors, _calibration(opened, calibrate))
    header, begins = safetensors_header({name: (each.dtype, each.shape) for name, each in job.written.items()})
    size = len(header) + sum(each.bytes for each in job.written.values())
    out.parent.mkdir(parents=True, exist_ok=True)
    with Partial(out, header, begins, size, job.settings) as partial:
        _write(job, partial, progress, size)
        write_files(opened, job.made.config, partial.model)
        report = job.report(out, size)
        if gate:
            report = _gated(report, opened, partial.model, chunks)
        report.save(partial.model)
        partial.finish()
    return report


def check_free(out: Path) -> None:
    """Raise LatticeError where something lies at `out` that writing there would destroy."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        hint = "nothing is overwritten: name another, or delete it first"
        raise expected("quantize", f"a new or empty directory for {out.name}", "one in use", hint=hint)


def check_unquantised(opened: OpenModel) -> None:
    """Raise LatticeError where matrices of a source are blocks: rounding them again adds errors."""
    weights = opened.weights
    found = Counter(weights.header(name).dtype for name, shape in weights.shapes.items() if len(shape) > 1)
    blocks = {dtype: count for dtype, count in found.items() if BY_NAME[dtype].block > 1}
    if blocks:
        listed = ", ".join(f"{count} of {dtype}" for dtype, count in blocks.items())
        hint = "start from the model in f16, bf16 or f32, or ask for it: requantize=True, --requantize"
        raise expected("quantize", "a source that is not quantised", f"matrices that are: {listed}", hint=hint)


@dataclass(frozen=True)
class _Written:
    """A tensor of the new file."""

    dtype: DType
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        return self.dtype.size(prod(self.shape))


@dataclass(frozen=True)
class _Calibration:
    name: str
    sequences: list[list[int]]


def _calibration(opened: OpenModel, text: str | Path | None) -> _Calibration | None:
    """Return SEQUENCES of LENGTH tokens from a text, evenly spread, each behind a BOS where the model has one."""
    if text is None:
        return None
    try:
        read = bundled("calibration") if text == "bundled" else Path(text).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise expected("quantize", "a readable calibration text in UTF-8", f"{text}: {error}") from None
    texts = Texts(opened.checkpoint)
    tokens = texts.need_tokenizer().encode(read, parse_special=False)
    begin = [texts.need_tokenizer().bos] if texts.adds_bos else []
    length = min(LENGTH, opened.config.max_position_embeddings) - len(begin)
    if len(tokens) < 2:
        raise expected("quantize", "a calibration text of some thousand tokens", f"{len(tokens)} tokens")
    starts = np.linspace(0, max(0, len(tokens) - length), SEQUENCES).astype(int)
    cut = [[*begin, *tokens[start : start + length]] for start in sorted(set(starts.tolist()))]
    return _Calibration(Path(text).name, [[token for token in each if token is not None] for each in cut])


class _Job:
    """What is to be written: decided from headers alone, nothing is read yet."""

    def __init__(self, opened: OpenModel, to: str, tensors: Mapping[str, str] | None, calibration: _Calibration | None):
        self.opened, self.to, self.calibration = opened, to, calibration
        self.made = rotate(opened) if to in TURNED else opened
        self.weights: Any = self.made.weights  # of a turned model computed when they are read
        self.turned = frozenset[str](getattr(self.weights, "turns", ()))  # parameters that are not the source's
        shapes = {name: parameter.shape for name, parameter in self.made.model.parameters().items()}
        self.plan = plan(shapes, to, tensors)
        self.written = {name: self._written(name, shape) for name, shape in shapes.items()}

    def _written(self, name: str, shape: tuple[int, ...]) -> _Written:
        if name in self.plan.dtypes:
            return _Written(BY_NAME[self.plan.dtypes[name]], shape)
        stored = self._stored(name)
        if stored is not None:
            return _Written(stored.dtype, stored.shape)
        dtype = "f32" if name in self.turned or self._shift(name) else self.opened.weights.header(name).dtype
        return _Written(BY_NAME[dtype], shape)

    def _stored(self, name: str) -> Array | None:
        """Return the tensor of a safetensors file that is copied as it is, None where there is no such."""
        if self.opened.checkpoint.kind != "safetensors" or name in self.turned:
            return None
        source = self.opened.weights.sources[name]
        return None if source.parts else self.opened.checkpoint.tensor(source.tensor)

    def _shift(self, name: str) -> np.float32:
        """Return what reading safetensors adds to a parameter: norm weights are stored less 1 in some families."""
        values = getattr(self.opened.family, "values", lambda name: None)(name)
        return np.float32(0) if values is None else values(np.zeros(1, np.float32))[0]

    def kept(self, name: str) -> Iterator[Array]:
        """Yield a tensor that is not rounded."""
        stored = self._stored(name)
        if stored is not None:
            yield stored
            self.opened.checkpoint.release(self.opened.weights.sources[name].tensor)
            return
        array, shift = self.weights[name], self._shift(name)
        yield encode(dense(array) - shift, F32) if shift or array.dtype != self.written[name].dtype else array

    def rounded(self, name: str) -> Iterator[Array]:
        """Yield a matrix rounded to the nearest, in slabs of its first dimension."""
        array, dtype = self.weights[name], self.written[name].dtype
        step = max(1, SLAB // max(1, prod(array.shape[1:])))
        for start in range(0, array.shape[0], step):
            yield nearest(array.rows(slice(start, start + step)), dtype)

    @property
    def settings(self) -> dict[str, Any]:
        """What must be the same for an interrupted job to go on."""
        path = self.opened.checkpoint.path
        files = [path] if path.is_file() else sorted([*path.glob("*.safetensors"), path / "config.json"])
        status = [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files]
        tokens = self.calibration and hashlib.sha256(json.dumps(self.calibration.sequences).encode()).hexdigest()
        return {"version": VERSION, "recipe": self.to, "source": status, "calibration": tokens}

    def report(self, out: Path, size: int) -> Report:
        """Return what was made, without a gate's report."""
        kinds: dict[str, list[int]] = {}
        for each in self.written.values():
            row = kinds.setdefault(each.dtype.name, [0, 0, 0])
            row[:] = row[0] + 1, row[1] + prod(each.shape), row[2] + each.bytes
        stored = sum(self.opened.weights.header(name).stored for name in self.opened.weights.shapes)
        source, given = self.opened.checkpoint.path.name, self.calibration
        said = None if given is None else {"text": given.name, "tokens": sum(map(len, given.sequences))}
        return Report(out, source, self.to, stored, size, kinds, self.plan.notes, said)


def _write(job: _Job, partial: Partial, progress: Progress | None, size: int) -> None:
    """Write every tensor that is not there yet."""

    def tell(name: str) -> None:
        if progress is not None:
            progress(name, sum(job.written[done].bytes for done in partial.done), size)

    def visit(product: Product) -> Array | np.ndarray:
        name = product.name
        if name not in job.plan.dtypes:
            return product.values
        if name not in partial.done:
            tell(name)
            partial.write(name, _compensated(product, job.written[name].dtype))
        return partial.read(name)

    if job.calibration is not None:
        walk(job.made.model, job.weights, job.calibration.sequences, visit)
    for name in job.written:
        if name not in partial.done:
            tell(name)
            partial.write(name, job.rounded(name) if name in job.plan.dtypes else job.kept(name))


def _compensated(product: Product, dtype: DType) -> Iterator[Array]:
    """Yield a matrix rounded for its inputs: whole, or expert by expert; to the nearest where there are none."""
    values: Any = product.values
    each = [values] if product.kind != "mixture" else [values.rows(slice(e, e + 1)) for e in range(values.shape[0])]
    for index, matrix in enumerate(each):
        moments, rows = product.moments(index)
        if not rows or dtype.block == 1:
            yield nearest(matrix, dtype)
        else:
            made = compensated(dense(matrix).reshape(matrix.shape[-2:]), dtype, moments)
            yield Array(made.data.reshape(dtype.buffer_shape(matrix.shape)), dtype, matrix.shape)


def _gated(report: Report, opened: OpenModel, made: Path, chunks: int | None) -> Report:
    """Return the report with the gate's, or with a note why there is none: the work of hours is not thrown away."""
    source = opened.checkpoint.path
    try:
        if getattr(opened.model, "head", None) is None:
            encoders = load_encoder(made), load_encoder(source)
            return replace(report, gate=measure_encoder(*encoders, thresholds=report.recipe))
        with load(made, draft=None) as model, load(source, draft=None) as original:
            context = min(512, model.context)
            found = measure(model, original, context=context, chunks=chunks, thresholds=report.recipe)
        return replace(report, gate=found)
    except LatticeError as error:
        return replace(report, notes=(*report.notes, f"not measured: {error}"))
