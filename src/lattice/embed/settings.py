"""What the files beside a checkpoint say about embedding with it, in the layout of sentence-transformers.

    modules.json                            which steps follow the transformer, and where their folders are
    1_Pooling/config.json                   how token states become one vector
    sentence_bert_config.json               the longest text, lower case (old models name it after their own family)
    config_sentence_transformers.json       prompts
    a GGUF's metadata                       bert.pooling_type (0 none, 1 mean, 2 cls, 3 last)

None of them is required: what is missing is taken from the table of known models (`known.py`) or else named when it is
needed. What is there but not understood is an error now.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lattice.errors import FormatError, LatticeError, expected
from lattice.ops.pool import POOLINGS
from lattice.strict_json import parse_object
from lattice.weights import Checkpoint, read_config
from lattice.weights._files import inside

MAX_MODULES = 1 << 20  # bytes of a modules.json
GGUF_POOLINGS = {1: "mean", 2: "cls", 3: "last"}
FLAGS = {"mean_tokens": "mean", "cls_token": "cls", "lasttoken": "last"}  # pooling_mode_*, the older form
FAMILIES = ("bert", "roberta", "xlm-roberta", "camembert")  # of sentence_*_config.json
PLAIN_MODULES = ("Transformer", "Pooling", "Normalize")


@dataclass(frozen=True)
class Settings:
    """How a model embeds."""

    pooling: str | None = None  # "mean", "cls" or "last"; None: `pooling_missing` says why
    pooling_missing: str = "no 1_Pooling/config.json"
    pooling_unsaid: bool = True  # the files are silent; False: they ask for something, understood or not
    pool_prompt: bool = True  # whether the tokens of a prompt take part in pooling
    normalized: bool = False  # the model ends in a Normalize module: its vectors are meant to have unit length
    max_tokens: int | None = None  # what sentence_bert_config.json says
    table_tokens: int | None = None  # what is known of the model (known.py), for files that do not say
    lower_case: bool = False
    prompts: Mapping[str, str] = field(default_factory=dict)
    default_prompt: str | None = None

    def need_pooling(self, where: str) -> str:
        """Return the pooling mode, or raise naming the file that should say it."""
        if self.pooling is None:
            hint = "hidden(tokens) works without pooling"
            if self.pooling_unsaid:
                hint = (
                    f'write {{"pooling_mode": "mean"}} (or cls, lasttoken: as it was trained) there; {hint}. '
                    "A known model is recognised by its name on the hub, also as its directory's"
                )
            raise expected(where, f"a pooling mode among {', '.join(POOLINGS)}", self.pooling_missing, hint=hint)
        return self.pooling

    def prompt(self, name: str | None) -> str:
        """Return the text that goes before every text; None takes the model's default, if it has one."""
        name = self.default_prompt if name is None else name
        if name is None:
            return ""
        if name not in self.prompts:
            listed = ", ".join(self.prompts) or "none"
            raise expected("encode", f"prompt_name among the model's prompts: {listed}", repr(name))
        return self.prompts[name]

    def first_prompt(self, *names: str) -> str | None:
        """Return the first of `names` that the model has a prompt for, or None."""
        return next((name for name in names if name in self.prompts), None)


def read_settings(checkpoint: Checkpoint) -> Settings:
    """Return the settings of a checkpoint; LatticeError for files that say something Lattice cannot do."""
    if checkpoint.kind == "gguf":
        return _from_gguf(checkpoint.metadata)
    directory = checkpoint.directory
    return Settings(
        **_modules(directory),
        **_transformer(directory),
        **_prompts(_optional(directory / "config_sentence_transformers.json")),
    )


def _from_gguf(metadata: Mapping[str, Any]) -> Settings:
    key = f"{metadata.get('general.architecture')}.pooling_type"
    value = metadata.get(key)
    mode = GGUF_POOLINGS.get(value) if isinstance(value, int) else None
    missing = f"no {key} in the GGUF's metadata" if value is None else f"{key} {value}"
    return Settings(pooling=mode, pooling_missing=missing, pooling_unsaid=value is None)


def _optional(path: Path) -> dict[str, Any]:
    return read_config(path) if path.is_file() else {}


def _modules(directory: Path) -> dict[str, Any]:
    """Return the settings that modules.json and the folder of its pooling module give."""
    path, folder, normalized = directory / "modules.json", "1_Pooling", False
    if path.is_file():
        folder, normalized = "", False
        for module in _module_list(path):
            kind = str(module.get("type", "")).rpartition(".")[2]
            if kind not in PLAIN_MODULES:
                wanted = f"modules among {', '.join(PLAIN_MODULES)}"
                raise expected("modules.json", wanted, repr(module.get("type"))[:80], kind=LatticeError)
            if kind == "Pooling":
                folder = str(module.get("path", ""))
            normalized |= kind == "Normalize"
        if not folder:
            return {
                "pooling_missing": "no Pooling module in modules.json",
                "pooling_unsaid": False,
                "normalized": normalized,
            }
    config = inside(directory, folder, "modules.json") / "config.json"
    if not config.is_file():
        return {"pooling_missing": f"no {folder}/config.json", "normalized": normalized}
    return _pooling(read_config(config), f"{folder}/config.json") | {"normalized": normalized}


def _module_list(path: Path) -> list[dict[str, Any]]:
    data = path.read_bytes()
    if len(data) > MAX_MODULES:
        raise expected("modules.json", f"at most {MAX_MODULES} bytes", len(data), kind=FormatError)
    modules = parse_object(b'{"modules":' + data + b"}", "modules.json")["modules"]
    if not isinstance(modules, list) or not all(isinstance(module, dict) for module in modules):
        raise expected("modules.json", "a list of objects", type(modules).__name__, kind=FormatError)
    return modules


def _pooling(config: Mapping[str, Any], where: str) -> dict[str, Any]:
    named = config.get("pooling_mode")
    if named is not None:
        asked = [named] if isinstance(named, str) else list(named)
        modes = ["last" if mode == "lasttoken" else str(mode) for mode in asked]
    else:
        flags = [
            key.removeprefix("pooling_mode_")
            for key, value in config.items()
            if key.startswith("pooling_mode_") and value
        ]
        modes = [FLAGS.get(flag, flag) for flag in flags]
    if len(modes) != 1 or modes[0] not in POOLINGS:
        listed = " and ".join(modes) or "none"
        return {"pooling_missing": f"{listed} in {where}", "pooling_unsaid": False, "pool_prompt": True}
    return {
        "pooling": modes[0],
        "pooling_unsaid": False,
        "pool_prompt": config.get("include_prompt", True) is not False,
    }


def _transformer(directory: Path) -> dict[str, Any]:
    """Return the settings of the first of its files that is there."""
    paths = [directory / f"sentence_{family}_config.json" for family in FAMILIES]
    path = next((path for path in paths if path.is_file()), paths[0])
    config = _optional(path)
    longest = config.get("max_seq_length")
    if longest is not None and (isinstance(longest, bool) or not isinstance(longest, int) or longest < 1):
        raise expected(path.name, "max_seq_length, a positive number", repr(longest)[:40])
    return {"max_tokens": longest, "lower_case": bool(config.get("do_lower_case", False))}


def _prompts(config: Mapping[str, Any]) -> dict[str, Any]:
    where = "config_sentence_transformers.json"
    prompts, default = config.get("prompts") or {}, config.get("default_prompt_name")
    strings = isinstance(prompts, dict) and all(isinstance(text, str) for text in prompts.values())
    if not strings:
        raise expected(where, "prompts, an object of texts", repr(prompts)[:80], kind=FormatError)
    if default is not None and default not in prompts:
        raise expected(where, f"default_prompt_name among {', '.join(prompts) or 'no prompts'}", repr(default)[:40])
    similarity = config.get("similarity_fn_name")
    if similarity not in (None, "cosine", "dot", "euclidean", "manhattan"):
        raise expected(where, "similarity_fn_name cosine, dot, euclidean or manhattan", repr(similarity)[:40])
    return {"prompts": prompts, "default_prompt": default}
