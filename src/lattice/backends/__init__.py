"""Backends run programs. `reference` is NumPy, the meaning of every op; `cpu` is the native engine."""
