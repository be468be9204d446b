"""What quantising made: sizes, bits, formats and the gate's verdict; kept in the checkpoint as quantization.json."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lattice.errors import FormatError, expected
from lattice.quant.gate import report as gate_report
from lattice.strict_json import read_object

FILE, FORMAT = "quantization.json", 1
LARGEST = 1 << 20  # bytes of that file


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

    @classmethod
    def of(cls, directory: Path) -> Report:
        """Return the report in a checkpoint; FormatError where there is none."""
        data = read_object(directory / FILE, LARGEST)
        try:
            kinds = {dtype: [row["tensors"], row["parameters"], row["bytes"]] for dtype, row in data["tensors"].items()}
            return cls(
                directory, data["source"], data["recipe"], data["source_bytes"], data["bytes"], kinds,
                tuple(data["notes"]), data["calibration"], data["gate"] and gate_report(data["gate"]),
            )  # fmt: skip
        except (KeyError, TypeError, AttributeError) as error:
            got = f"{type(error).__name__}: {error}"
            raise expected(FILE, "a report as quantize writes it", got, kind=FormatError) from None

    def save(self, directory: Path) -> None:
        """Write quantization.json."""
        (directory / FILE).write_text(json.dumps(self.as_json(), indent=2, ensure_ascii=False) + "\n", "utf-8")
