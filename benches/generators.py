"""The generators that `decode`, `ppl` and `start` compare.

`measure(tokens, steps) -> {prefill, decode, tokens}` in seconds: prefill ends with the first token chosen, decode
is `steps` further ones; greedy, end-of-text ignored.
"""

from __future__ import annotations

import time

import numpy as np


class Lattice:
    """This project, called as a user would call it."""

    def __init__(self, model: str, dtype: str, threads: int, context: int = 2048):
        import lattice

        self.model = lattice.load(model, dtype=dtype, context=context)

    def measure(self, tokens: list[int], steps: int, draft: str = "off") -> dict:
        self.model.engine.forget()  # every prompt is run whole
        started = time.perf_counter()
        stream = self.model.stream(tokens, max_tokens=steps + 1, temperature=0.0, ignore_eos=True, draft=draft)
        chosen = [next(stream).token]
        first = time.perf_counter()
        chosen += [chunk.token for chunk in stream]
        ended = time.perf_counter()
        if len(chosen) != steps + 1:
            raise SystemExit(f"[benches] expected {steps + 1} tokens, got {len(chosen)}")
        return {
            "prefill": first - started,
            "decode": ended - first,
            "tokens": chosen,
            "native": stream.timings.native_seconds,
            "drafted": stream.usage.drafted_tokens,
            "accepted": stream.usage.accepted_tokens,
        }

    def about(self, position: int) -> dict:
        """Bytes that a token at `position` moves, and the products of weights that one of a prompt costs."""
        from lattice.cli.bench import bytes_of_token

        engine = self.model.engine
        heads = ("lm_head.", "model.embed_tokens.")  # one row of a prompt
        matrices = {name: one for name, one in engine.weights.placed.items() if one.use == "product"}
        products = sum(int(np.prod(one.shape)) for name, one in matrices.items() if not name.startswith(heads))
        return {"bytes": sum(bytes_of_token(engine, position).values()), "products": products}

    def chat(self, text: str) -> list[int]:
        return list(self.model.chat_prompt([{"role": "user", "content": text}]).tokens)

    def tokens(self, text: str) -> list[int]:
        return list(self.model.tokenizer.encode(text))

    def perplexity(self, text: str, context: int, chunks: int) -> dict:
        found = self.model.measure_perplexity(text, context=context, chunks=chunks)
        return {"perplexity": found.perplexity}

    def bandwidth(self) -> float:
        from benches.calibrate import bandwidth

        return bandwidth()


class LlamaCpp:
    """llama.cpp by its C interface: no Python between the choice of a token and the next step but one call each.

    Logits are computed for the last position alone and stay where they are; its own greedy sampler reads them.
    """

    def __init__(self, model: str, threads: int, context: int = 2048, batch: int = 512):
        import llama_cpp

        self.api = api = llama_cpp
        self._log = api.llama_log_callback(lambda level, text, data: None)
        api.llama_log_set(self._log, None)
        api.llama_backend_init()
        self.model = api.llama_model_load_from_file(model.encode(), api.llama_model_default_params())
        if not self.model:
            raise SystemExit(f"[benches] llama.cpp cannot load {model}")
        self.vocab = api.llama_model_get_vocab(self.model)
        settings = api.llama_context_default_params()
        settings.n_ctx, settings.n_batch, settings.n_ubatch = context, batch, batch
        settings.n_threads = settings.n_threads_batch = threads
        self.context = api.llama_init_from_model(self.model, settings)
        self.sampler = api.llama_sampler_init_greedy()
        self.batch = batch

    def _run(self, tokens: list[int]) -> None:
        for start in range(0, len(tokens), self.batch):
            part = tokens[start : start + self.batch]
            held = (self.api.llama_token * len(part))(*part)
            if self.api.llama_decode(self.context, self.api.llama_batch_get_one(held, len(part))):
                raise SystemExit("[benches] llama_decode failed")

    def _clear(self) -> None:
        self.api.llama_memory_clear(self.api.llama_get_memory(self.context), False)

    def measure(self, tokens: list[int], steps: int) -> dict:
        api, held = self.api, (self.api.llama_token * 1)()
        self._clear()
        started = time.perf_counter()
        self._run(tokens)
        chosen = [api.llama_sampler_sample(self.sampler, self.context, -1)]
        first = time.perf_counter()
        for _ in range(steps):
            held[0] = chosen[-1]
            if api.llama_decode(self.context, api.llama_batch_get_one(held, 1)):
                raise SystemExit("[benches] llama_decode failed")
            chosen.append(api.llama_sampler_sample(self.sampler, self.context, -1))
        return {"prefill": first - started, "decode": time.perf_counter() - first, "tokens": chosen}

    def tokens(self, text: str) -> list[int]:
        data = text.encode()
        held = (self.api.llama_token * (len(data) + 8))()
        count = self.api.llama_tokenize(self.vocab, data, len(data), held, len(held), True, False)
        return list(held[:count])

    def perplexity(self, text: str, context: int, chunks: int) -> dict:
        """As llama.cpp's perplexity tool: windows of one tokenisation, the second half of each scored."""
        api, tokens, size = self.api, self.tokens(text), api_size(self)
        begins = bool(api.llama_vocab_get_add_bos(self.vocab))
        losses: list[np.ndarray] = []
        batch = api.llama_batch_init(context, 0, 1)
        for start in range(0, min(chunks, len(tokens) // context) * context, context):
            window = tokens[start : start + context]
            if begins:
                window[0] = api.llama_vocab_bos(self.vocab)
            self._clear()
            losses.append(self._window(batch, window, size))
        api.llama_batch_free(batch)
        every = np.concatenate(losses)
        return {
            "perplexity": float(np.exp(every.mean())),
            "windows": len(losses),
            "scored": len(every),
            "standard_error": float(np.exp(every.mean()) * every.std(ddof=1) / len(every) ** 0.5),
        }

    def _window(self, batch: object, window: list[int], size: int) -> np.ndarray:
        first = len(window) // 2
        batch.n_tokens = len(window)
        for place, token in enumerate(window):
            batch.token[place], batch.pos[place] = token, place
            batch.n_seq_id[place], batch.seq_id[place][0] = 1, 0
            batch.logits[place] = first <= place < len(window) - 1
        if self.api.llama_decode(self.context, batch):
            raise SystemExit("[benches] llama_decode failed")
        count = len(window) - 1 - first
        logits = np.ctypeslib.as_array(self.api.llama_get_logits(self.context), shape=(count * size,))
        logits = logits.reshape(count, size).astype(np.float64)
        logits -= logits.max(1, keepdims=True)
        return np.log(np.exp(logits).sum(1)) - logits[np.arange(count), window[first + 1 :]]


def api_size(model: LlamaCpp) -> int:
    """Entries of its vocabulary."""
    return int(model.api.llama_vocab_n_tokens(model.vocab))
