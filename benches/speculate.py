"""Decoding with drafts beside the same answers without, in one process, in turns. Not a test.

Four kinds of prompt: made-up ids and an open request, where drafts hardly help and must not hurt, and two that repeat
a given text, summarising and rewriting. Greedy, end-of-text ignored; each answer's tokens are compared with those of
its plain run. Seconds run from the first token to the last, so what drafters prepare is in them. What drafts cost is
learnt over all answers of the process, as where a user asks one thing after another. With `--llama`, llama.cpp decodes
the same prompts plainly in a process of its own.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import lattice
from benches.report import cores, emit, heading, row, say
from benches.workers import Worker

REQUESTS = {
    "open": "Explain how bread is made, step by step.",
    "summary": "Summarise the following text in its own words.\n\n{text}",
    "rewrite": "Rewrite the following text. Correct its mistakes and change nothing else.\n\n{text}",
}
MADE_UP = 128  # ids


def passages(path: str, characters: int) -> Iterator[str]:
    """Yield pieces of a text that begin and end with a paragraph, again from its beginning when it ends."""
    paragraphs = [line.strip() for line in Path(path).read_text(encoding="utf-8").splitlines() if len(line) > 200]
    if not paragraphs:
        raise SystemExit(f"[benches.speculate] expected paragraphs of more than 200 characters in {path}, got none")
    while True:
        held = ""
        for paragraph in paragraphs:
            held += paragraph[:characters] + "\n"
            if len(held) >= characters:
                yield held
                held = ""
        if held:
            yield held


def prompts(lm: lattice.LanguageModel, text: str, place: int) -> dict[str, list[int]]:
    """Return the prompts of one round, by kind."""
    found = {"made up": [(7919 * (index + place) + 17) % min(30000, lm.engine.vocab) for index in range(MADE_UP)]}
    for kind, request in REQUESTS.items() if can_chat(lm) else ():
        messages = [{"role": "user", "content": request.format(text=text)}]
        found[kind] = lm.chat_prompt(messages).tokens
    return found


def can_chat(lm: lattice.LanguageModel) -> bool:
    """Tell whether a model has a chat template; one with random weights may not."""
    try:
        lm.chat_prompt([{"role": "user", "content": ""}])
    except lattice.LatticeError:
        return False
    return True


def answer(lm: lattice.LanguageModel, prompt: list[int], count: int, draft: str) -> lattice.Completion:
    """Return an answer of `count` tokens to a prompt that is run whole."""
    lm.engine.forget()
    return lm.generate(prompt, max_tokens=count, temperature=0.0, ignore_eos=True, draft=draft)


def main() -> None:
    parser = argparse.ArgumentParser(prog="benches speculate", description=__doc__)
    parser.add_argument("--model", required=True, help="a generator: a source that Lattice knows")
    parser.add_argument("--text", required=True, help="a file of paragraphs, to be summarised and rewritten")
    parser.add_argument("--draft", default="auto", help="auto, ngram or mtp")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--characters", type=int, default=1200, help="of a passage")
    parser.add_argument("--gen", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--llama", help="a .gguf of the same model, for llama.cpp")
    options = parser.parse_args()
    heading()
    source = str(Path(options.model).resolve()) if Path(options.model).exists() else options.model
    lm = lattice.load(source, dtype=options.dtype)
    rival = None
    if options.llama:
        path = str(Path(options.llama).resolve())
        rival = Worker("llama.cpp", "benches.generators:LlamaCpp", model=path, threads=cores())
    texts = passages(options.text, options.characters)
    seconds: dict[str, dict[str, list[float]]] = {}
    tokens: dict[str, list[int]] = {}  # drafted, accepted
    for place in range(options.rounds):
        for kind, prompt in prompts(lm, next(texts), place).items():
            order = ("off", options.draft) if place % 2 == 0 else (options.draft, "off")
            done = {draft: answer(lm, prompt, options.gen, draft) for draft in order}
            if done["off"].tokens != done[options.draft].tokens:
                raise SystemExit(f"[benches.speculate] expected the plain run's tokens, got others: {kind} {place}")
            held = seconds.setdefault(kind, {"plain": [], "drafts": [], "llama.cpp": []})
            held["plain"].append(done["off"].timings.decode_seconds)
            held["drafts"].append(done[options.draft].timings.decode_seconds)
            if rival is not None:
                held["llama.cpp"].append(rival.call("measure", tokens=prompt, steps=options.gen - 1)["decode"])
            usage = done[options.draft].usage
            counts = tokens.setdefault(kind, [0, 0])
            counts[0] += usage.drafted_tokens
            counts[1] += usage.accepted_tokens
            emit(kind="answer", of=kind, round=place, prompt=len(prompt), drafted=usage.drafted_tokens)
    for kind, held in seconds.items():
        drafted, accepted = tokens[kind]
        emit(kind="drafts", of=kind, drafted=drafted, accepted=accepted, tokens=options.rounds * options.gen)
        say(f"{kind}: {drafted} drafted, {accepted} accepted, {options.rounds * options.gen} tokens, all as without")
        for name, values in held.items():
            if values:
                row(f"decode, {kind}, {name}", [(options.gen - 1) / value for value in values], "tokens/s")
        for name in ("plain", "llama.cpp"):
            if held[name]:
                ratios = [one / own for one, own in zip(held[name], held["drafts"], strict=True)]
                row(f"{kind}: drafts / {name}", ratios, "x", "answer by answer", 2)
    if rival is not None:
        rival.close()


if __name__ == "__main__":
    main()
