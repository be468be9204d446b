"""A conversation: turns whose prompts begin alike, so that only what is new is run.

What is reused is exact: the bits of keys and values do not depend on how, or in how many turns, a prompt was
run.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lattice.generate.generation import Completion, Generation, run
from lattice.generate.prompt import Prompt

if TYPE_CHECKING:
    from lattice.generate.model import LanguageModel


class Conversation:
    """Turns of one user with a model; made by `LanguageModel.conversation`.

    Every turn is given the whole prompt: all messages, or the whole text. The longest beginning that is the
    same tokens as what the last turn left in its pages is not run again; `usage.reused_tokens` says how many.
    Between turns the pages may be taken by others who need them; then the next turn runs everything.
    """

    def __init__(self, model: LanguageModel):
        self._model = model
        self._sequence = model.engine.sequence()

    def generate(self, prompt: Prompt, **options: Any) -> Completion:
        """Return the answer to `prompt`, with the options of `LanguageModel.generate`."""
        return run(self.stream(prompt, **options))

    def stream(self, prompt: Prompt, **options: Any) -> Generation:
        """Return the answer chunk by chunk; an earlier stream of this conversation ends."""
        return self._model.start(prompt, sequence=self._sequence, **options)

    def clear(self) -> None:
        """Forget everything and give back the pages."""
        self._sequence.turn += 1
        self._sequence.clear()
