"""How far the graphics card's logits are from the processor's, with the same weights.

    python -m benches agree --model smollm2-135m --dtype f32 q8 q4 --text wikitext2.txt [--software]

f32: along the processor's own greedy continuation of `--prompts` pieces of the text, teacher-forced, token by token,
both in f32: the largest difference beside the largest logit, and the same most likely token wherever the processor's
margin between its first two is more than ten times the difference. Bounds: 1e-4, and all of them.

Other dtypes: over windows of the text, KLD of the card's distributions from the processor's and the share of positions
with the same most likely token. Bounds: mean KLD 0.005, 96 %. The processor rounds activations to 8 bits where weights
are blocks, the card does not. `--anew` rounds also what the file holds in fewer bits than the dtype has, which `load`
leaves alone. `--minutes` ends a dtype sooner; the tokens that were compared are part of the result. `--software` takes
the software adapter, which is slow. Not a test.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import NamedTuple

import numpy as np

from benches.report import emit, heading, say
from lattice.backends._backend import Backend
from lattice.backends.cpu import CpuBackend
from lattice.backends.wgpu import WgpuBackend, open_device
from lattice.generate.model import LanguageModel
from lattice.models import family
from lattice.weights.blocks import KEEP, LOADED, asked, fitting
from lattice.weights.load import Weights, open_model
from lattice.weights.sources import resolve

PROMPT = 32  # tokens of a prompt
BOUNDS = {"error": 1e-4, "kld": 0.005, "agreement": 0.96}
CLEAR = 10  # times the difference is a margin that no rounding overturns
ROWS = 64  # of logits at once in double precision


class Continued(NamedTuple):
    """One continuation: positions, the error relative to the largest logit, and argmax where it matters."""

    positions: int
    error: float
    same: int
    clear: int
    clear_same: int


def continued(gpu: LanguageModel, cpu: LanguageModel, prompt: list[int], tokens: int) -> Continued:
    """Compare logits from the prompt's last token on, along the processor's greedy continuation."""
    answer = cpu.generate(prompt, max_tokens=tokens, temperature=0, ignore_eos=True).tokens
    wanted, got = (stepped(lm, prompt, answer).astype(np.float64) for lm in (cpu, gpu))
    off = np.abs(got - wanted)
    highest = np.sort(wanted, -1)
    clear = highest[:, -1] - highest[:, -2] > CLEAR * off.max(-1)
    same = got.argmax(-1) == wanted.argmax(-1)
    error = float(off.max() / np.abs(wanted).max())
    return Continued(len(wanted), error, int(same.sum()), int(clear.sum()), int((same & clear).sum()))


def stepped(lm: LanguageModel, prompt: list[int], answer: list[int]) -> np.ndarray:
    """Return the logits behind a prompt, and behind each token of an answer: one step a token, as in generation."""
    sequence = lm.engine.sequence()
    lm.engine.reserve(sequence, len(prompt) + len(answer))
    rows = [list(lm.engine.score(sequence, part))[-1][-1] for part in (prompt, *([token] for token in answer))]
    sequence.clear()
    return np.stack(rows)


def divergence(wanted: np.ndarray, got: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return, of logits (rows, vocabulary), each row's KLD in nats and whether its most likely token is the same."""
    klds = []
    for begin in range(0, len(wanted), ROWS):
        p, q = (_log_softmax(each[begin : begin + ROWS].astype(np.float64)) for each in (wanted, got))
        klds.append((np.exp(p) * (p - q)).sum(-1))
    return np.concatenate(klds), wanted.argmax(-1) == got.argmax(-1)


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


class Anew(Weights):
    """Weights that are rounded as a dtype says, however few bits they had."""

    def _rounded(self, name: str, dtype: str) -> str | None:
        found = fitting(asked(name, self.shapes[name], LOADED[dtype]), self.shapes[name])
        return None if found == KEEP else found


def loaded(backend: Backend, dtype: str, options: argparse.Namespace) -> LanguageModel:
    """Return the model in a dtype, with f32 keys and values: what is compared is arithmetic, not storage."""
    opened = open_model(resolve(options.model), family)
    if options.anew:
        opened = replace(opened, weights=Anew(opened.weights.checkpoint, opened.weights.shapes, opened.weights.sources))
    context = max(options.window, PROMPT + options.tail + 1)
    return LanguageModel(opened, backend, dtype=dtype, kv="f32", context=context, draft=None)


def pieces(tokens: list[int], size: int, count: int) -> Iterator[list[int]]:
    """Yield pieces of a text at equal distances."""
    for place in range(count):
        begin = place * max(1, (len(tokens) - size)) // count
        yield tokens[begin : begin + size]


def exactly(gpu: LanguageModel, cpu: LanguageModel, tokens: list[int], options: argparse.Namespace) -> dict:
    """Return what holds along the continuations of all prompts."""
    found = [continued(gpu, cpu, prompt, options.tail) for prompt in pieces(tokens, PROMPT, options.prompts)]
    totals = {name: sum(getattr(one, name) for one in found) for name in ("positions", "same", "clear", "clear_same")}
    error = max(one.error for one in found)
    good = error <= BOUNDS["error"] and totals["clear"] == totals["clear_same"]
    return {"prompts": len(found), "error": error, **totals, "passed": good}


def roughly(gpu: LanguageModel, cpu: LanguageModel, tokens: list[int], options: argparse.Namespace) -> dict:
    """Return what holds over the windows of a text, as many as there is time for."""
    klds, sames, started = [], [], perf_counter()
    for begin in range(0, options.tokens, options.window):
        window = tokens[begin : min(begin + options.window, options.tokens)]
        kld, same = divergence(cpu.logits(window), gpu.logits(window))
        klds, sames = [*klds, kld], [*sames, same]
        if options.minutes is not None and perf_counter() - started > 60 * options.minutes:
            break
    kld, same = np.concatenate(klds), np.concatenate(sames)
    good = float(kld.mean()) <= BOUNDS["kld"] and float(same.mean()) >= BOUNDS["agreement"]
    about = {"tokens": len(kld), "window": options.window, "kld": float(kld.mean()), "most": float(kld.max())}
    return {**about, "agreement": float(same.mean()), "passed": good}


def line(dtype: str, found: dict) -> str:
    """Return a comparison as people read it."""
    verdict = "holds" if found["passed"] else "DOES NOT HOLD"
    if "error" in found:
        where = f"{found['clear_same']} of {found['clear']} clear positions ({found['same']} of all"
        return f"{dtype:6} logits within {found['error']:.2e}, same token at {where} {found['positions']})  {verdict}"
    about = f"mean KLD {found['kld']:.2e}, most {found['most']:.2e}, same token {found['agreement']:.2%}"
    return f"{dtype:6} {about} of {found['tokens']} tokens  {verdict}"


def main() -> None:
    parser = argparse.ArgumentParser(prog="benches agree", description=__doc__)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--dtype", nargs="+", default=["f32", "q8", "q4"])
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--prompts", type=int, default=10)
    parser.add_argument("--tail", type=int, default=64, help="tokens of a continuation")
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--window", type=int, default=512)
    parser.add_argument("--minutes", type=float, help="of each dtype but f32")
    parser.add_argument("--anew", action="store_true")
    parser.add_argument("--software", action="store_true")
    options = parser.parse_args()
    device = open_device(software=options.software)
    heading()
    info = {key: device.info[key] for key in ("device", "description", "backend_type")}
    emit(kind="device", **info)
    say(f"{options.model} on {', '.join(info.values())}, beside the processor's {CpuBackend().target}")
    for dtype in options.dtype:
        gpu, cpu = (loaded(backend, dtype, options) for backend in (WgpuBackend(device), CpuBackend()))
        tokens = gpu.tokenizer.encode(options.text.read_text(encoding="utf-8"))
        found = (exactly if dtype == "f32" else roughly)(gpu, cpu, tokens, options)
        formats = dict(Counter(gpu.engine.weights.formats.values()).most_common())
        emit(kind="result", model=options.model, dtype=dtype, formats=formats, **info, **found)
        say(line(dtype, found) + f"  ({', '.join(f'{count} {name}' for name, count in formats.items())})")
        gpu.close()
        cpu.close()


if __name__ == "__main__":
    main()
