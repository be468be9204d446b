"""The gate: how far a quantised model is from its source, measured on one text, and whether that is near enough.

For every scored token of a text (second halves of windows, as perplexity scores them), with p the source's distribution
over the vocabulary and q the quantised model's:

    KLD = sum p (log p - log q);   agreement: argmax p = argmax q;   perplexity of both on the tokens that came

The mean KLD is what judges: perplexity may fall while KLD rises, for it asks about one token of the vocabulary only.
The tail (99.9 % of the tokens are below it) finds what a mean hides: few tokens that are quite wrong. An encoder is
judged by the cosines of its vectors with the source's. Logits of a few rows at a time exist, sums are float64.

Not here: whether a model is good, which is for its source to answer for.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np

from lattice.embed.encoder import Encoder
from lattice.errors import FormatError, expected
from lattice.generate.engine import SCORED_BYTES
from lattice.generate.model import LanguageModel
from lattice.generate.perplexity import scored, windows_of

Progress = Callable[[int, int], object]  # windows done, of how many
PASS, WARN, FAIL = "PASS", "WARN", "FAIL"
SLACK = 5.0  # times what a threshold allows, to which a miss is a warning
AT_ONCE = 1 << 20  # float64 values of a temporary: 8 MB
TAIL = 0.999


@dataclass(frozen=True)
class Thresholds:
    """What passes: mean and 99.9 % KLD at most, agreement and mean cosine at least. Up to SLACK times a miss warns.

    q8: rounding to 8 bits in groups of 32 costs about a thousandth of a nat (llama.cpp's table has 0.0014 for Llama 3
    8B in Q8_0; tiny-hybrid 0.0005 to 0.0009 here). q4: 0.03 to 0.07 is what good and plain 4-bit formats cost models of
    that size. Small models, whose weights carry more each, lose more (SmolLM2-135M 0.0045 in q8_0, most of it by its
    activations in 8 bits), which is why a warning begins there and not yet a failure.
    """

    kld: float
    tail: float
    agreement: float
    cosine: float


THRESHOLDS = {
    "q8": Thresholds(0.001, 0.05, 0.97, 0.9999),
    "q4": Thresholds(0.06, 1.5, 0.85, 0.99),
    "quarot4": Thresholds(0.06, 1.5, 0.85, 0.99),
}


@dataclass(frozen=True)
class _Report:
    """What both kinds of report share: a verdict with its reasons, and JSON."""

    kind: ClassVar[str]

    def as_json(self) -> dict[str, Any]:
        """Return the report as JSON has it: numbers that are not finite are null."""
        plain = {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in asdict(self).items()
        }
        return {"kind": self.kind, "verdict": self.verdict, "reasons": self.reasons} | plain

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Return the report that `as_json` wrote; FormatError where it is none. The verdict is judged anew."""
        limits = _numbers(Thresholds, data.get("thresholds"))
        rest: Any = {"thresholds": Thresholds(**limits)}
        return cls(**_numbers(cls, data), **rest)

    def _misses(self) -> Iterator[tuple[str, float, float, bool]]:
        """Yield what is judged: its name, value and threshold, and whether the value must be above it."""
        raise NotImplementedError

    @property
    def reasons(self) -> list[str]:
        """What missed its threshold, a sentence each."""
        return [
            f"{name} is {value:.6g}, {'less' if above else 'more'} than {limit:g}"
            for name, value, limit, above in self._misses()
            if not (value >= limit if above else value <= limit)
        ]

    @property
    def verdict(self) -> str:
        """PASS, WARN or FAIL."""
        far = [
            not ((1 - value) <= SLACK * (1 - limit) if above else value <= SLACK * limit)
            for _, value, limit, above in self._misses()
        ]
        return FAIL if any(far) else WARN if self.reasons else PASS


@dataclass(frozen=True)
class Gate(_Report):
    """A generator beside its source: perplexities, KLD in nats, each `error` a standard error, `agreement` of the most
    likely token. `tokens` were scored; of them `broken` have logits of the quantised model that are not finite, which
    fails whatever the others say."""

    perplexity: float
    perplexity_error: float
    source_perplexity: float
    source_perplexity_error: float
    kld: float
    kld_error: float
    tail: float  # 99.9 % of the tokens have no more
    maximum: float
    agreement: float
    agreement_error: float
    tokens: int
    broken: int
    windows: int
    context: int
    thresholds: Thresholds
    kind: ClassVar[str] = "generator"

    def _misses(self) -> Iterator[tuple[str, float, float, bool]]:
        yield "tokens whose logits are not finite", self.broken, 0, False
        yield "mean KLD", self.kld, self.thresholds.kld, False
        yield "99.9 % KLD", self.tail, self.thresholds.tail, False
        yield "top-1 agreement", self.agreement, self.thresholds.agreement, True


@dataclass(frozen=True)
class EncoderGate(_Report):
    """An encoder beside its source: cosines of the vectors of `texts` texts; the mean is judged."""

    cosine: float
    least: float
    texts: int
    broken: int
    thresholds: Thresholds
    kind: ClassVar[str] = "encoder"

    def _misses(self) -> Iterator[tuple[str, float, float, bool]]:
        yield "texts whose vectors are not finite", self.broken, 0, False
        yield "mean cosine", self.cosine, self.thresholds.cosine, True


def _numbers(kind: type, data: Any) -> dict[str, Any]:
    """Return the numbers that a dataclass has as fields; null is NaN where a float is due."""
    found: dict[str, Any] = {}
    for each in fields(kind):
        value = data.get(each.name, "none") if isinstance(data, Mapping) else "none"
        if each.type == "float" and isinstance(value, int | float | None) and not isinstance(value, bool):
            found[each.name] = math.nan if value is None else float(value)
        elif each.type == "int" and isinstance(value, int) and not isinstance(value, bool):
            found[each.name] = value
        elif each.type in ("float", "int"):
            raise expected("gate", f"a number as {each.name}", repr(value)[:80], kind=FormatError)
    return found


def report(data: Mapping[str, Any]) -> Gate | EncoderGate:
    """Return the report of either kind that `as_json` wrote."""
    return EncoderGate.from_json(data) if data.get("kind") == EncoderGate.kind else Gate.from_json(data)


def bundled(name: str) -> str:
    """Return a text that comes with Lattice: "evaluation", which the gate measures on, or "calibration"."""
    path = Path(__file__).parent / "text" / f"{name}.txt"
    if name not in ("evaluation", "calibration"):
        raise expected("gate", "evaluation or calibration", repr(name))
    return path.read_text(encoding="utf-8")


def thresholds_of(recipe: str | Thresholds | Mapping[str, Any]) -> Thresholds:
    """Return the thresholds of a recipe, or of a stored report's JSON; LatticeError where there are none."""
    if isinstance(recipe, Thresholds):
        return recipe
    if isinstance(recipe, Mapping):
        return Thresholds(**_numbers(Thresholds, recipe))
    if recipe not in THRESHOLDS:
        raise expected("gate", f"thresholds of {', '.join(THRESHOLDS)}", repr(recipe))
    return THRESHOLDS[recipe]


# ---- generators --------------------------------------------------------------------------------------------------
def measure(
    model: LanguageModel,
    source: LanguageModel,
    text: str | Sequence[int] | None = None,
    *,
    context: int = 512,
    chunks: int | None = None,
    thresholds: str | Thresholds = "q4",
    progress: Progress | None = None,
) -> Gate:
    """Return how far `model` is from `source` on a text (its tokens; by default the bundled evaluation text).

    Windows of `context` tokens, the first `chunks` of them (all), are run through both, which stay open side by side.
    Raises LatticeError where the two have other vocabularies or tokenizers, the text is shorter than a window, or the
    source itself gives logits that are not finite.
    """
    limits = thresholds_of(thresholds)
    tokens, bos = _tokens(model, source, bundled("evaluation") if text is None else text)
    windows = windows_of(source.engine, tokens, context=context, chunks=chunks, bos=bos)
    windows_of(model.engine, tokens, context=context)
    rows = max(16, min(256, SCORED_BYTES // (4 * source.engine.vocab)))  # no more than either engine gives at once
    parts = []
    for index, window in enumerate(windows):
        both = zip(scored(source.engine, window, rows), scored(model.engine, window, rows), strict=True)
        parts += [compare(theirs, ours, targets) for (theirs, targets), (ours, _) in both]
        if progress is not None:
            progress(index + 1, len(windows))
    return _gate(Compared(*map(np.concatenate, zip(*parts, strict=True))), len(windows), context, limits)


def _tokens(model: LanguageModel, source: LanguageModel, text: str | Sequence[int]) -> tuple[list[int], int | None]:
    """Return the tokens of a text and what begins each window; LatticeError where the models read it differently."""
    if model.engine.vocab != source.engine.vocab:
        raise expected("gate", f"the source's vocabulary of {source.engine.vocab}", f"one of {model.engine.vocab}")
    if not isinstance(text, str):
        return source.engine.check(text, "gate"), None
    ours, theirs = model.measured_tokens(text), source.measured_tokens(text)
    if ours != theirs:
        place = next((i for i, (a, b) in enumerate(zip(ours[0], theirs[0], strict=False)) if a != b), None)
        got = "another one" if place is None else f"token {place} {ours[0][place]} instead of {theirs[0][place]}"
        raise expected("gate", "the source's tokenizer", got, hint="compare a model with what it was made from")
    return ours


class Compared(NamedTuple):
    """Of each scored token: KLD, whether the most likely token is the same, losses of both, whether ours is finite."""

    kld: np.ndarray
    agree: np.ndarray
    loss: np.ndarray
    source_loss: np.ndarray
    finite: np.ndarray


def compare(source: np.ndarray, model: np.ndarray, targets: np.ndarray) -> Compared:
    """Compare logits row by row, in float64.    (n, vocab) twice, (n,) -> five times (n,)"""
    if not np.isfinite(source).all():
        raise expected("gate", "a source with finite logits", "NaN or infinity", hint="the source itself is broken")
    finite = np.isfinite(model).all(1)
    count = len(source)
    kld, loss, source_loss = np.full(count, np.nan), np.full(count, np.nan), np.empty(count)
    step = max(1, AT_ONCE // source.shape[1])
    for start in range(0, count, step):
        part = slice(start, start + step)
        p, wanted = _log_softmax(source[part]), targets[part, None]
        source_loss[part] = -np.take_along_axis(p, wanted, 1)[:, 0]
        with np.errstate(invalid="ignore"):
            q = _log_softmax(model[part])
            loss[part] = -np.take_along_axis(q, wanted, 1)[:, 0]
            kld[part] = np.maximum((np.exp(p) * (p - q)).sum(1), 0.0)  # below zero only by rounding
    return Compared(kld, source.argmax(1) == model.argmax(1), loss, source_loss, finite)


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits.astype(np.float64)
    shifted -= shifted.max(1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(1, keepdims=True))


def _gate(found: Compared, windows: int, context: int, thresholds: Thresholds) -> Gate:
    keep = found.finite
    kld, agree = found.kld[keep], found.agree[keep].astype(np.float64)
    (perplexity, error), (theirs, their_error) = _perplexity(found.loss[keep]), _perplexity(found.source_loss)
    tail, maximum = (float(np.quantile(kld, TAIL)), float(kld.max())) if len(kld) else (math.nan, math.nan)
    mean, share = _mean(kld), _mean(agree)
    return Gate(
        perplexity, error, theirs, their_error, *mean, tail, maximum, *share,
        len(keep), int((~keep).sum()), windows, context, thresholds,
    )  # fmt: skip


def _mean(values: np.ndarray) -> tuple[float, float]:
    """Return the mean and its standard error."""
    if not len(values):
        return math.nan, math.nan
    return float(values.mean()), float(values.std(ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else 0.0


def _perplexity(losses: np.ndarray) -> tuple[float, float]:
    mean, error = _mean(losses)
    value = math.exp(mean) if not mean >= 700 else math.inf
    return value, value * error


# ---- encoders ----------------------------------------------------------------------------------------------------
def measure_encoder(
    model: Encoder, source: Encoder, texts: Sequence[str] | None = None, *, thresholds: str | Thresholds = "q4"
) -> EncoderGate:
    """Return how far an encoder's vectors are from its source's, by default of the bundled text's paragraphs."""
    limits = thresholds_of(thresholds)
    listed = paragraphs(bundled("evaluation")) if texts is None else list(texts)
    if not listed:
        raise expected("gate", "at least one text", "none")
    if (model.dimensions, model.tokenizer.encode(listed[0])) != (source.dimensions, source.tokenizer.encode(listed[0])):
        raise expected("gate", f"the source's tokenizer and {source.dimensions} dimensions", f"{model.dimensions}")
    ours, theirs = (each.encode(listed, show_progress=False).astype(np.float64) for each in (model, source))
    if not np.isfinite(theirs).all():
        raise expected("gate", "a source with finite vectors", "NaN or infinity", hint="the source itself is broken")
    lengths = np.linalg.norm(ours, axis=1) * np.linalg.norm(theirs, axis=1)
    finite = np.isfinite(lengths) & (lengths > 0)
    cosines = (ours * theirs).sum(1)[finite] / lengths[finite]
    mean, least = (float(cosines.mean()), float(cosines.min())) if len(cosines) else (math.nan, math.nan)
    return EncoderGate(mean, least, len(listed), int((~finite).sum()), limits)


def paragraphs(text: str) -> list[str]:
    """Return what blank lines separate, without what has fewer than 20 characters."""
    return [part for part in (each.strip() for each in text.split("\n\n")) if len(part) >= 20]
