"""A checkpoint: configuration and tensors of one model, whether a directory of safetensors or one GGUF file.

Nothing is decoded here: a tensor keeps the dtype that the file gives it. Names and meaning belong to the
models.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lattice.dtypes import Array
from lattice.errors import FormatError, expected
from lattice.strict_json import read_object
from lattice.weights.gguf import GGUFFile
from lattice.weights.safetensors import INDEX_NAME, SafetensorsFile, ShardedSafetensors

MAX_CONFIG = 8 << 20
PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
_PICKLE_HINT = "pickled weights can run code and are never read; use the model's safetensors or GGUF files"


@dataclass(frozen=True)
class Checkpoint:
    """`config` is config.json, or the GGUF metadata; `metadata` the file's own (GGUF: the same dict).

    `directory` holds the model's other files: tokenizer.json, generation_config.json and their like.
    """

    kind: str  # "safetensors" | "gguf"
    path: Path
    directory: Path
    config: dict[str, object]
    metadata: dict[str, object]
    files: SafetensorsFile | ShardedSafetensors | GGUFFile

    @property
    def names(self) -> list[str]:
        """Return the tensor names in the file's order."""
        return self.files.names

    def __contains__(self, name: str) -> bool:
        return name in self.files

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the row-major shape of a tensor without touching its data."""
        return self.files.shape(name)

    def tensor(self, name: str) -> Array:
        """Return a tensor as a read-only view of the mapped file; FormatError where there is none."""
        return self.files.tensor(name)

    def release(self, name: str) -> None:
        """Let the system drop the pages of a tensor that has been copied elsewhere."""
        self.files.release(name)

    def release_all(self) -> None:
        """Let the system drop what a GGUF file's reading left behind: its vocabulary, and pages between tensors."""
        if isinstance(self.files, GGUFFile):
            self.files.release_all()

    @property
    def nbytes(self) -> int:
        """Return the bytes of all tensors."""
        return sum(self.files.size(name) for name in self.names)


def read_config(path: Path) -> dict[str, object]:
    """Return a JSON configuration file, strictly parsed, of at most 8 MiB."""
    return read_object(path, MAX_CONFIG)


def _safetensors_of(directory: Path) -> SafetensorsFile | ShardedSafetensors:
    single = directory / "model.safetensors"
    if (directory / INDEX_NAME).is_file():
        return ShardedSafetensors(directory)
    if single.is_file():
        return SafetensorsFile(single)
    found = sorted(directory.glob("*.safetensors"))
    if len(found) == 1:
        return SafetensorsFile(found[0])
    where = str(directory)
    if found:
        got = f"{len(found)} .safetensors files without {INDEX_NAME}"
        raise expected(where, "model.safetensors or an index of shards", got, kind=FormatError)
    pickled = sorted(p.name for p in directory.iterdir() if p.suffix in PICKLED)
    hint = _PICKLE_HINT if pickled else None
    raise expected(where, "safetensors files", pickled[0] if pickled else "none", hint=hint, kind=FormatError)


def open_checkpoint(path: Path | str) -> Checkpoint:
    """Open a directory with config.json and *.safetensors, or a .gguf file; FormatError says what is wrong.

    Headers are read and checked; tensors are mapped and not touched.
    """
    path = Path(path)
    if path.is_dir():
        config_path = path / "config.json"
        if not config_path.is_file():
            ggufs = sorted(path.glob("*.gguf"))
            hint = f"name the file itself: {ggufs[0]}" if ggufs else None
            raise expected(str(path), "a config.json", "a directory without one", hint=hint, kind=FormatError)
        config = read_config(config_path)
        files = _safetensors_of(path)
        return Checkpoint("safetensors", path, path, config, dict(files.metadata), files)
    if path.suffix in PICKLED:
        raise expected(path.name, "safetensors or GGUF", "a pickled file", hint=_PICKLE_HINT, kind=FormatError)
    if path.suffix == ".safetensors":
        hint = f"open its directory: {path.parent}"
        raise expected(path.name, "a model directory or a .gguf file", "one weight file", hint=hint, kind=FormatError)
    if not path.is_file():
        raise expected(str(path), "a model directory or a .gguf file", "no such path", kind=FormatError)
    gguf = GGUFFile(path)
    return Checkpoint("gguf", path, path.parent, gguf.metadata, gguf.metadata, gguf)
