"""What quantising made: sizes, bits, formats and the gate's verdict; kept in the checkpoint as quantization.json."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FILE, FORMAT = "quantization.json", 1


@dataclass(frozen=True)
class Report:
    """A written checkpoint: `source_bytes` of its parameters before, `bytes` of its file; `tensors` are how many
    tensors, parameters and bytes each dtype has; `notes` what is not as the recipe asks."""

    path: Path
    source: str
    recipe: str
    source_bytes: int
    bytes: int
    tensors: Mapping[str, list[int]]
    notes: tuple[str, ...] = ()
    calibration: Mapping[str, Any] | None = None
    gate: Any = None

    @property
    def parameters(self) -> int:
        """Return how many parameters are in the file."""
        return sum(parameters for _, parameters, _ in self.tensors.values())

    @property
    def bits(self) -> float:
        """Return the bits of a parameter: those of the whole file, header and scales among them."""
        return self.bytes * 8 / self.parameters

    def as_json(self) -> dict[str, Any]:
        """Return the report as quantization.json has it."""
        fields = "tensors", "parameters", "bytes"
        kinds = {dtype: dict(zip(fields, row, strict=True)) for dtype, row in self.tensors.items()}
        return {
            "format": FORMAT, "recipe": self.recipe, "source": self.source, "parameters": self.parameters,
            "source_bytes": self.source_bytes, "bytes": self.bytes, "bits": round(self.bits, 4), "tensors": kinds,
            "calibration": self.calibration, "notes": list(self.notes),
            "gate": None if self.gate is None else self.gate.as_json(),
        }  # fmt: skip

    def save(self, directory: Path) -> None:
        """Write quantization.json."""
        (directory / FILE).write_text(json.dumps(self.as_json(), indent=2, ensure_ascii=False) + "\n", "utf-8")
