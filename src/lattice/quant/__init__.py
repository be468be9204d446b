"""Quantising whole models: how matrices are rounded, for what inputs, and how far the result is from its source."""
