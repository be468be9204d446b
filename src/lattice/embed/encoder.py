"""The encoder: texts to vectors, and tokens to hidden states.

A text is tokenised, cut to the model's longest if need be, run beside others in ragged steps, pooled,
optionally shortened (Matryoshka, Kusupati et al., 2022, arXiv:2205.13147: the first numbers of a vector are a
smaller vector) and scaled to unit length:

    v = pool(hidden)[:dimensions];   v / max(|v|, 1e-12)

The same text gives the same vector, bit for bit, alone and beside any others.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

from lattice.backends._backend import Backend, Capacity, Plan
from lattice.backends.select import load_on
from lattice.embed.batching import Packer, ahead, full_batches
from lattice.embed.known import as_source, complete, recognise
from lattice.embed.progress import progress
from lattice.embed.settings import read_settings
from lattice.embed.texts import Texts, longest, open_texts
from lattice.errors import LatticeError, LatticeWarning, expected
from lattice.models import family
from lattice.ops import Symbol, pool
from lattice.program import Program, trace
from lattice.tokenizers import Tokenizer
from lattice.weights.load import OpenModel, open_model
from lattice.weights.sources import home, resolve

LEAST_TOKENS = 512  # that a plan is made for
PRODUCTS = {"bf16": "row16", "int8": "row8"}  # how matrices are multiplied: integers, faster and less exact


def load_encoder(
    source: str | Path, *, device: str = "auto", dtype: str = "auto", dimensions: int | None = None
) -> Encoder:
    """Return the encoder that `source` names (a path, `org/name`, `pypi:...` or an alias such as "minilm").

    `dimensions` shortens every vector: to anything from 1 to the model's own number. Only a model that is trained for
    it (Matryoshka) keeps its quality: where a known model is not, there is a LatticeWarning; where it is, no fewer
    than it was trained for are accepted (32 for Qwen3-Embedding).
    `dtype` "auto" and "f32" are exact; "bf16" is faster at a cosine of 0.9999 and more to them, "int8" fastest at 0.999
    (docs/decisions/0010).
    Raises LatticeError where the source cannot be found, the model is not understood, or the device or dtype is not
    offered.
    """

    def make(backend: Backend) -> Encoder:
        path, name = resolve(as_source(str(source))), None if Path(source).expanduser().exists() else str(source)
        return Encoder(open_model(path, family), backend, dtype=dtype, dimensions=dimensions, source=name)

    return load_on(device, home(), make)


class Encoder:
    """A loaded encoder: vectors of `dimensions`, texts of at most `max_tokens`. Threads may share it.

    `source` is the name by which the model was asked for, if it was not a path: what its files leave open, such as
    prompts, is then known of the models in known.py.
    """

    def __init__(
        self,
        opened: OpenModel,
        backend: Backend,
        *,
        dtype: str = "auto",
        dimensions: int | None = None,
        source: str | None = None,
    ):
        checkpoint = opened.checkpoint
        self.config, self.settings = opened.config, read_settings(checkpoint)
        self.hidden_size: int = opened.config.hidden_size
        self._where, self._model, self._backend = checkpoint.path.name, opened.model, backend
        self.known, guessed = recognise(checkpoint, self.hidden_size, source)
        if self.known is not None:
            self.settings = complete(self.settings, self.known, guessed, self._where)
        self.dimensions: int = self.hidden_size
        self.dimensions = self._size(dimensions)
        self.positions: int = opened.config.max_position_embeddings
        self._texts = open_texts(checkpoint, self.settings, self.positions)
        texts = self._texts
        self.max_tokens: int = texts.max_tokens if isinstance(texts, Texts) else longest(self.settings, self.positions)
        program = trace(self._hidden)
        rounded = PRODUCTS.get(dtype)  # the weights go to the backend as they are, which rounds them
        cast = opened.weights if rounded else opened.weights.cast(dtype, narrow=_products(program))
        self.weights = backend.load(program, cast, products=rounded)
        self._plans: dict[tuple[str, bool], tuple[Plan, Packer]] = {}
        self._lock = Lock()  # around everything that touches a plan

    def __repr__(self) -> str:
        return f"<Encoder {self._where}: {self.dimensions} dimensions, {self.max_tokens} tokens>"

    @property
    def tokenizer(self) -> Tokenizer:
        """Return the model's tokenizer; LatticeError where its files have none."""
        return self._need_texts().tokenizer

    # ---- texts ---------------------------------------------------------------------------------------------
    def encode(
        self,
        texts: str | Sequence[str],
        *,
        prompt_name: str | None = None,
        normalize: bool = True,
        dimensions: int | None = None,
        truncate: bool = True,
        show_progress: bool | None = None,
    ) -> np.ndarray:
        """Return the vectors of `texts`, (n, dimensions) float32; of one str, (dimensions,).

        `prompt_name` picks one of the model's prompts. `normalize=False` gives vectors as they are pooled, also where
        the model ends in a Normalize module. A text longer than `max_tokens` is cut, special tokens
        kept, and one LatticeWarning says how many were; with truncate=False it is an error. Progress is shown
        when asked for, or for many texts on a terminal.
        """
        return self._encode(texts, prompt_name, normalize, dimensions, truncate, show_progress)

    def encode_query(self, texts: str | Sequence[str], **options: Any) -> np.ndarray:
        """Return `encode` of texts to search with, behind the model's "query" prompt if it has one."""
        return self._encode(texts, self.settings.first_prompt("query"), **options)

    def encode_document(self, texts: str | Sequence[str], **options: Any) -> np.ndarray:
        """Return `encode` of texts to be found, behind the model's "document", "passage" or "corpus" one."""
        return self._encode(texts, self.settings.first_prompt("document", "passage", "corpus"), **options)

    def _encode(
        self,
        texts: str | Sequence[str],
        prompt_name: str | None,
        normalize: bool = True,
        dimensions: int | None = None,
        truncate: bool = True,
        show_progress: bool | None = None,
    ) -> np.ndarray:
        self.settings.need_pooling(self._where)
        source, size, prompt = self._need_texts(), self._size(dimensions), self._prompt(prompt_name)
        listed = [texts] if isinstance(texts, str) else _listed(texts)
        # Nothing is run where an error is due.
        some = self._backend.texts_ahead if truncate else max(1, len(listed))
        vectors = np.empty((len(listed), self.hidden_size), np.float32)
        long: list[int] = []

        def pieces() -> Iterator[list[list[int]]]:
            for start in range(0, len(listed), some):
                sequences, cut = source.tokenize(listed[start : start + some], prompt)
                long.extend(cut)
                if long and not truncate:
                    raise self._too_long(long, len(listed))
                yield sequences

        with progress(len(listed), show_progress) as advance:
            self._embed(
                ahead(pieces()) if self._backend.beside_host and len(listed) > some else pieces(), vectors, advance
            )
        if long:
            warnings.warn(f"{self._too_long(long, len(listed))}; they were cut", LatticeWarning, stacklevel=3)
        vectors = _finish(vectors, size, normalize)
        return vectors[0] if isinstance(texts, str) else vectors

    def _embed(self, pieces: Iterable[list[list[int]]], vectors: np.ndarray, advance: Callable[[int], object]) -> None:
        """Write every sequence's pooled vector into its row of `vectors`; a step begins before the last one is read."""

        def take(indices: list[int], outputs: Callable[[], dict[str, np.ndarray]]) -> None:
            vectors[indices] = outputs()["pooled"]
            advance(len(indices))

        last = None
        for indices, sequences in full_batches(pieces, self._backend.encoder_tokens):
            with self._lock:
                plan, packer = self._plan("pooled", sum(map(len, sequences)))
                begun = plan.begin(packer.step(sequences))
            if last is not None:
                take(*last)
            last = indices, begun
        if last is not None:
            take(*last)

    # ---- tokens --------------------------------------------------------------------------------------------
    def hidden(self, tokens: Sequence[int] | np.ndarray) -> np.ndarray:
        """Return the last hidden state of each token, (len(tokens), hidden) float32; tokens are run as given.

        Raises LatticeError for no tokens, more than the model has positions, or ids outside its vocabulary.
        """
        ids = np.asarray(tokens)
        if ids.ndim != 1 or not np.issubdtype(ids.dtype, np.integer):
            raise expected("hidden", "a list of token ids", f"{ids.dtype} of shape {ids.shape}")
        if not 1 <= len(ids) <= self.positions:
            raise expected("hidden", f"1 to {self.positions} tokens", len(ids))
        if ids.min() < 0 or ids.max() >= self.config.vocab_size:
            raise expected("hidden", f"ids from 0 to {self.config.vocab_size - 1}", f"{ids.min()} to {ids.max()}")
        with self._lock:
            plan, packer = self._plan("hidden", len(ids))
            return plan.run(packer.step([ids]))["hidden"]

    # ---- plans ---------------------------------------------------------------------------------------------
    def prepare(self, tokens: int | None = None) -> None:
        """Make the plan for steps of so many tokens now (None: full ones), which the first such step would make."""
        with self._lock:
            self._plan("pooled" if self.settings.pooling else "hidden", tokens or self._backend.encoder_tokens)

    def _plan(self, name: str, tokens: int) -> tuple[Plan, Packer]:
        """Return the plan of one of the two programs for as many tokens, made where need be.

        There is one for few tokens, which has less to copy, and one for more, replaced by a larger one where need be.
        """
        key = name, tokens <= LEAST_TOKENS
        made = self._plans.get(key)
        if made is None or len(made[1].zeros) < tokens:
            pooled = name == "pooled"
            program = trace(self._pooled if pooled else self._hidden)
            full = LEAST_TOKENS if key[1] else max(tokens, self._backend.encoder_tokens)
            tokens = LEAST_TOKENS << ((full - 1) // LEAST_TOKENS).bit_length()  # the next power of two
            capacity = Capacity(tokens=tokens, sequences=tokens if pooled else 1)
            made = self._backend.compile(program, self.weights, capacity), Packer(tokens)
            self._plans[key] = made
        return made

    def _hidden(self, program: Program) -> dict[str, Symbol]:
        return {"hidden": self._model(program.step())[0]}

    def _pooled(self, program: Program) -> dict[str, Symbol]:
        step, mode = program.step(), self.settings.need_pooling(self._where)
        return {"pooled": pool(self._model(step)[0], step, mode=mode)}

    # ---- what was asked for --------------------------------------------------------------------------------
    def _size(self, dimensions: int | None) -> int:
        if dimensions is None:
            return self.dimensions
        least = (self.known.least if self.known is not None else None) or 1
        whole = isinstance(dimensions, int) and not isinstance(dimensions, bool)
        if not whole or not least <= dimensions <= self.hidden_size:
            hint = f"{self.known.hub} was trained for no fewer" if self.known is not None and least > 1 else None
            raise expected("encode", f"dimensions from {least} to {self.hidden_size}", repr(dimensions), hint=hint)
        if self.known is not None and self.known.least is None and dimensions < self.hidden_size:
            trained = f"{self.known.hub} was trained for {self.hidden_size} and not for fewer dimensions"
            warnings.warn(f"[encode] {trained}: expect worse vectors of {dimensions}", LatticeWarning, stacklevel=4)
        return dimensions

    def _prompt(self, name: str | None) -> str:
        prompt = self.settings.prompt(name)
        if prompt and not self.settings.pool_prompt:
            raise expected("encode", "a model that pools its prompt", "include_prompt false in its pooling config")
        return prompt

    def _need_texts(self) -> Texts:
        if isinstance(self._texts, LatticeError):
            raise self._texts
        return self._texts

    def _too_long(self, lengths: list[int], texts: int) -> LatticeError:
        got = f"{len(lengths)} of {texts} longer, the longest {max(lengths)}"
        return expected("encode", f"texts of at most {self.max_tokens} tokens", got)


def _products(program: Program) -> set[str]:
    """Return the weights that are multiplied by; look-up tables stay as the file maps them."""
    tables = {symbol.name for node in program.nodes if node.op.name == "embedding" for _, symbol in node.inputs()}
    return {symbol.name for symbol in program.of_kind("weight")} - tables


def _listed(texts: object) -> list[str]:
    if not isinstance(texts, Sequence | np.ndarray) or isinstance(texts, bytes):
        raise expected("encode", "a str or a list of str", type(texts).__name__)
    listed = list(texts)
    for index, text in enumerate(listed):
        if not isinstance(text, str):
            raise expected("encode", "a str or a list of str", f"{type(text).__name__} at index {index}")
    return listed


def _finish(vectors: np.ndarray, size: int, normalize: bool) -> np.ndarray:
    """Shorten and scale. Each row is summed by itself along contiguous memory: others cannot change it."""
    if size < vectors.shape[1]:
        vectors = np.ascontiguousarray(vectors[:, :size])
    if normalize:
        lengths = np.sqrt(np.add.reduce(vectors * vectors, axis=1, keepdims=True))
        vectors /= np.maximum(lengths, np.float32(1e-12))
    return vectors
