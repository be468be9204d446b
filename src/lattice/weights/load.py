"""From a checkpoint's tensors to a model's parameters: names, layouts, dtypes. Lazy: a tensor is read when asked for.

What a family's names and transforms are is stated in its model file and handed in here as data. GGUF is not a rename:
a transform gives the order of rows that undoes what the converter did.
"""

from __future__ import annotations

import re
import warnings
import weakref
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from lattice.dtypes import BY_NAME, F16, F32, Array, dense, encode
from lattice.errors import FormatError, LatticeWarning, expected
from lattice.weights.blocks import KEEP, LOADED, asked, bits, fitting
from lattice.weights.checkpoint import Checkpoint, open_checkpoint

F16_LARGEST = 65504.0
DTYPES = ("auto", "f32", "f16", "bf16", *LOADED)


@dataclass(frozen=True)
class Names:
    """How a family's parameters are called in files; the fields are those of its model file."""

    spellings: Callable[[str], tuple[str, ...]]
    ignored: tuple[str, ...]
    gguf: Mapping[str, Any]
    config: Any
    values: Callable[[str], Callable | None] = lambda name: None
    parts: Callable[[str], tuple[str, ...]] = lambda name: ()


@dataclass(frozen=True)
class _Source:
    tensor: str
    order: np.ndarray | None = None  # row order that undoes a GGUF transform
    values: Callable[[np.ndarray], np.ndarray] | None = None  # what float32 values become
    parts: tuple[str, ...] = ()  # the tensors that together are this one, where it is not one of the file


class Header(NamedTuple):
    """What the header of a file says of a weight: its dtype in memory, its bytes in the file."""

    dtype: str
    stored: int
    mapped: bool  # it stays in the file's own pages


class Weights(Mapping[str, Array]):
    """A model's parameters by name; reading one maps, reorders and converts it."""

    def __init__(self, checkpoint: Checkpoint, shapes: Mapping[str, tuple], sources: Mapping[str, _Source]):
        self.checkpoint, self.shapes, self.sources = checkpoint, shapes, sources
        self.convert: Callable[[str, Array], Array] = lambda name, array: array
        self.wanted: Callable[[str], str | None] = lambda name: None  # what `convert` makes of a matrix; None: nothing

    def __getitem__(self, name: str) -> Array:
        source, shape = self.sources[name], self.shapes[name]
        if source.parts:
            return self.convert(name, self._joined(source.parts, shape))
        stored = array = self.checkpoint.tensor(source.tensor)
        if array.shape != shape and array.dtype.block == 1 and array.size == np.prod(shape):
            array = Array(array.data.reshape(shape), array.dtype, shape)  # GGUF drops dimensions of 1
        if array.shape != shape:
            raise expected("weights", f"{source.tensor} of shape {shape}", array.shape)
        if source.values is not None:
            values = source.values(dense(array))
            array = Array(values, F32, values.shape)
        array = self.convert(name, array if source.order is None else array.rows(source.order))
        # A loader reads in turn: the file's pages need not pile up. Those of a view stay as long as somebody holds it.
        if np.may_share_memory(array.data, stored.data):
            weakref.finalize(array.data, self.checkpoint.release, source.tensor).atexit = False
        else:
            self.checkpoint.release(source.tensor)
        return array

    def header(self, name: str) -> Header:
        """Return what `self[name]` will be, by the file's header alone: nothing is read.

        An f32 matrix that "auto" narrows counts as f16, though one with values out of range stays f32.
        """
        source = self.sources[name]
        stored = [self.checkpoint.tensor(tensor) for tensor in source.parts or (source.tensor,)]
        dtype = "f32" if source.values is not None else stored[0].dtype.name
        wanted = self.wanted(name) if len(self.shapes[name]) > 1 else None
        plain = source.values is None and source.order is None and not source.parts
        return Header(wanted or dtype, sum(array.nbytes for array in stored), plain and wanted in (None, dtype))

    def _joined(self, parts: tuple[str, ...], shape: tuple) -> Array:
        """Return the parts one behind another, each let go of in turn."""
        dtype = self.checkpoint.tensor(parts[0]).dtype
        data = np.empty((len(parts), int(np.prod(shape)) // len(parts)), dtype.storage)
        wanted = (shape[0] * shape[1] // len(parts), shape[2])
        for row, part in zip(data, parts, strict=True):
            array = self.checkpoint.tensor(part)
            if array.shape != wanted or array.dtype != dtype or dtype.block != 1:
                raise expected("weights", f"{part} of shape {wanted} in {dtype.name}, unquantised", array)
            row[:] = array.data.reshape(-1)
            self.checkpoint.release(part)
        return Array(data.reshape(shape), dtype, shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self.sources)

    def __len__(self) -> int:
        return len(self.sources)

    def __contains__(self, name: object) -> bool:
        return name in self.sources  # Mapping's own would read and convert the tensor

    def cast(self, dtype: str, *, narrow: Collection[str] = ()) -> Weights:
        """Return the same weights as `dtype` wants them.

        auto keeps what the file holds, but that the f32 matrices named by `narrow` become f16 where they are in range;
        f32, f16 and bf16 convert every matrix (blocks are dequantised); q8 and q4 round matrices that hold more bits
        to the nearest (`blocks.LOADED` says which to what).
        """
        if dtype not in DTYPES:
            raise expected("weights", f"dtype among {', '.join(DTYPES)}", dtype)
        weights = Weights(self.checkpoint, self.shapes, self.sources)
        if dtype == "auto":
            weights.convert = lambda name, array: _narrow(array) if name in narrow else array
            fits = lambda name: name in narrow and len(self.shapes[name]) == 2  # noqa: E731
            weights.wanted = lambda name: "f16" if fits(name) and self.header(name).dtype == "f32" else None
        elif dtype in LOADED:
            weights.convert = lambda name, array: _to(array, weights.wanted(name) or array.dtype.name)
            weights.wanted = lambda name: self._rounded(name, dtype)
        else:
            weights.convert = lambda name, array: _to(array, dtype)
            weights.wanted = lambda name: dtype
        return weights

    def _rounded(self, name: str, dtype: str) -> str | None:
        """Return the blocks that the matrix becomes; None where it stays, as it does where it has no more bits."""
        found = fitting(asked(name, self.shapes[name], LOADED[dtype]), self.shapes[name])
        return None if found == KEEP or bits(found) >= bits(self.header(name).dtype) else found


def _narrow(array: Array) -> Array:
    """Return an f32 matrix as f16 if no value leaves f16's range and the rounding stays below its usual 2^-11."""
    if array.dtype.name != "f32" or len(array.shape) != 2:
        return array
    values = dense(array)
    if not np.abs(values).max(initial=0) < F16_LARGEST:
        return array
    narrow = encode(values, F16)
    error = np.linalg.norm(dense(narrow) - values)
    return narrow if error <= 2**-11 * np.linalg.norm(values) else array


def _to(array: Array, dtype: str) -> Array:
    if array.dtype.name == dtype or len(array.shape) < 2:
        return array
    values = dense(array)
    if dtype == "f16" and not np.abs(values).max(initial=0) < F16_LARGEST:
        raise expected("weights", f"values below {F16_LARGEST:.0f} for f16", "larger ones", hint="use bf16 or f32")
    return encode(values, BY_NAME[dtype])


def map_weights(checkpoint: Checkpoint, shapes: Mapping[str, tuple], names: Names, *, strict: bool = True) -> Weights:
    """Return the weights of a model whose parameters have `shapes`, found in the checkpoint.

    Raises LatticeError for tensors that are missing, and for those that nobody asked for (strict=False: a warning).
    """
    available = set(checkpoint.names)
    found = {name: _find(name, shape, checkpoint, names, available) for name, shape in shapes.items()}
    missing = [name for name, source in found.items() if source is None]
    if missing:
        listed = ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
        raise expected("weights", "a tensor for every parameter", f"none for {listed}", hint="is the file complete?")
    sources = {name: source for name, source in found.items() if source is not None}
    unused = available - {tensor for source in sources.values() for tensor in source.parts or (source.tensor,)}
    _refuse_unused(sorted(name for name in unused if not name.startswith(names.ignored)), strict)
    return Weights(checkpoint, shapes, sources)


def _refuse_unused(unused: list[str], strict: bool) -> None:
    if unused:
        listed = ", ".join(unused[:5]) + (f" and {len(unused) - 5} more" if len(unused) > 5 else "")
        error = expected("weights", "tensors that the model knows", listed, hint="strict=False ignores them")
        if strict:
            raise error
        warnings.warn(str(error), LatticeWarning, stacklevel=3)


def _find(name: str, shape: tuple, checkpoint: Checkpoint, names: Names, available: set[str]) -> _Source | None:
    if checkpoint.kind == "gguf":
        return _find_gguf(name, names, available)
    return _find_safetensors(name, names, available) or _find_parts(name, shape, names, available)


def _find_safetensors(name: str, names: Names, available: set[str]) -> _Source | None:
    values = names.values(name)
    return next((_Source(found, None, values) for found in names.spellings(name) if found in available), None)


def _find_parts(name: str, shape: tuple, names: Names, available: set[str]) -> _Source | None:
    for spelled in zip(*map(names.spellings, names.parts(name)), strict=True):
        parts = tuple(part.format(index) for index in range(shape[0]) for part in spelled)
        if available.issuperset(parts):
            return _Source(parts[0], parts=parts)
    return None


def _find_gguf(name: str, names: Names, available: set[str]) -> _Source | None:
    layer = re.search(r"\.(\d+)\.", name)
    entry = names.gguf.get(name if layer is None else name.replace(layer[0], ".{}.", 1))
    if entry is None:
        return None
    theirs, transform, values = (*entry, None)[:3] if isinstance(entry, tuple) else (entry, None, None)
    theirs = theirs if layer is None else theirs.format(layer[1])
    order = transform(names.config) if transform else None
    return _Source(theirs, order, values) if theirs in available else None


@dataclass(frozen=True)
class OpenModel:
    """A checkpoint whose headers are read and understood: no weight has been touched yet."""

    checkpoint: Checkpoint
    family: ModuleType
    config: Any
    model: Any
    weights: Weights
    skipped: tuple[str, ...] = ()  # tensors of other parts than the language model, such as a vision tower


class _Tensors(Mapping[str, np.ndarray]):
    """The tensors of a checkpoint as a config reader sees them: which there are, and small ones as float32."""

    def __init__(self, checkpoint: Checkpoint):
        self.checkpoint, self.names = checkpoint, frozenset(checkpoint.names)

    def __contains__(self, name: object) -> bool:
        return name in self.names

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self.names:
            raise KeyError(name)
        return dense(self.checkpoint.tensor(name))

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


def open_model(path: Path | str, family: Callable[[str], ModuleType], *, strict: bool = True) -> OpenModel:
    """Open a checkpoint and build the model it describes; `family` finds the model file of a model type.

    Raises LatticeError for unknown model types, config keys or tensors (the latter two warn if strict=False).
    """
    checkpoint = open_checkpoint(path)
    gguf = checkpoint.kind == "gguf"
    found = family(
        str(checkpoint.metadata.get("general.architecture") if gguf else checkpoint.config.get("model_type"))
    )
    try:
        if gguf:
            config = found.Config.from_gguf(checkpoint.metadata, _Tensors(checkpoint))
        else:
            config = found.Config.read(checkpoint.config, strict)
        with np.errstate(divide="raise", invalid="raise", over="raise"):  # scalings by 0, and what they lead to
            model = found.Model(config)
    except (TypeError, ValueError, KeyError, AttributeError, ArithmeticError) as error:
        # A value of a type or form that the family does not expect: the file's fault, whatever broke on it.
        got = f"{type(error).__name__}: {error}"
        raise expected(checkpoint.path.name, "a config of usable values", got, kind=FormatError) from error
    gguf_names = found.GGUF(config) if callable(found.GGUF) else found.GGUF
    values, parts = getattr(found, "values", Names.values), getattr(found, "parts", Names.parts)
    names = Names(found.spellings, found.IGNORED, gguf_names, config, values, parts)
    _drop_absent(model, checkpoint, names)
    shapes = {name: parameter.shape for name, parameter in model.parameters().items()}
    weights = map_weights(checkpoint, shapes, names, strict=strict)
    skipped = tuple(name for name in checkpoint.names if name.startswith(getattr(found, "VISION", "\0")))
    if skipped:
        text = (
            f"[{checkpoint.path.name}] {len(skipped)} tensors of the vision part are skipped: only text is understood"
        )
        warnings.warn(text, LatticeWarning, stacklevel=2)
    return OpenModel(checkpoint, found, config, model, weights, skipped)


def _drop_absent(model: Any, checkpoint: Checkpoint, names: Names) -> None:
    """Set to None the parts a file may lack: the head (an embedding model) and the draft head."""
    available = set(checkpoint.names)
    for part, dependent in (("lm_head", ("lm_head", "head")), ("mtp", ("mtp",))):
        own = {name: p.shape for name, p in model.parameters().items() if name.startswith(f"{part}.")}
        if own and not any(_find(name, shape, checkpoint, names, available) for name, shape in own.items()):
            for attribute in dependent:
                setattr(model, attribute, None)
