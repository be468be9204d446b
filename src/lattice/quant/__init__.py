"""Quantising: models rounded to blocks of 4 to 8 bits, with a report of what that cost.

recipe.py    which parameter becomes which dtype
rounding.py  values to blocks, with less error than the formats' own quantisers
walk.py      calibration: every matrix with what it is multiplied with
rotate.py    the residual stream turned, so that no channel stands out
convert.py   from a source to a checkpoint; journal.py survives being killed, files.py writes what lies beside weights
report.py    sizes and bits; gate.py how far the result is from its source
export.py    GGUF files for other programs; vocabulary.py their tokenizers
"""

from lattice.quant.convert import quantize
from lattice.quant.export import export_gguf
from lattice.quant.report import Report

__all__ = ["Report", "export_gguf", "quantize"]
