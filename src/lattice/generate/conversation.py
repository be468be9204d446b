"""A conversation: turns whose prompts begin alike, so that only what is new is run.

What is reused is exact: the bits of keys, values and recurrent state do not depend on how, or in how many turns, a
prompt was run. The prefixes that make it fast are the engine's (prefix.py) and serve every prompt; a conversation
adds that a new turn ends the one before, and that it can be forgotten.
"""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any

from lattice.generate.generation import Completion, Generation, run
from lattice.generate.prompt import Prompt

if TYPE_CHECKING:
    from lattice.generate.model import LanguageModel
    from lattice.generate.prefix import Entry


class Conversation:
    """Turns of one user with a model; made by `LanguageModel.conversation`.

    Every turn is given the whole prompt: all messages, or the whole text. Its longest known beginning is not run
    again; `usage.reused_tokens` says how many tokens that were. Between turns the memory may be taken by others who
    need it; then the next turn runs more.
    """

    def __init__(self, model: LanguageModel):
        self._model = model
        self._latest: weakref.ref[Generation] | None = None
        self._kept: list[weakref.WeakSet[Entry]] = []  # of each turn

    def generate(self, prompt: Prompt, **options: Any) -> Completion:
        """Return the answer to `prompt`, with the options of `LanguageModel.generate`."""
        return run(self.stream(prompt, **options))

    def stream(self, prompt: Prompt, **options: Any) -> Generation:
        """Return the answer chunk by chunk; an earlier stream of this conversation ends."""
        self._overtake()
        generation = self._model.start(prompt, **options)
        self._latest = weakref.ref(generation)
        self._kept = [kept for kept in self._kept if kept] + [generation.kept]
        return generation

    def clear(self) -> None:
        """Forget everything that was kept for this conversation, and end its stream."""
        self._overtake()
        self._model.engine.forget([entry for kept in self._kept for entry in kept])

    def _overtake(self) -> None:
        latest = self._latest() if self._latest is not None else None
        if latest is not None:
            latest.overtake()
