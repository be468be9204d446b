"""Generation: prompts in, tokens and text out.

model.py         the loaded language model, and `load`
engine.py        its programs, pages and state; one step at a time
cache.py         the page pool and the sequences that live in it
generation.py    one running answer, token by token
conversation.py  turns that share a beginning
prompt.py        what a checkpoint says about text: tokenizer, chat template, stop tokens
sampling.py      how the next token is chosen
drafts.py        guesses of the tokens that come next
speculative.py   how many of them pay
verify.py        which of them are right
logprobs.py      how likely it was
stop.py          strings that end an answer
perplexity.py    how well a model predicts a text
"""

from lattice.generate.conversation import Conversation
from lattice.generate.generation import Chunk, Completion, Generation, Timings, Usage
from lattice.generate.logprobs import TokenLogprob
from lattice.generate.model import LanguageModel, load
from lattice.generate.perplexity import Perplexity

__all__ = [
    "Chunk",
    "Completion",
    "Conversation",
    "Generation",
    "LanguageModel",
    "Perplexity",
    "Timings",
    "TokenLogprob",
    "Usage",
    "load",
]
