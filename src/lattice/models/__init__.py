"""The models: one file a family, named after its `model_type`."""

from lattice.models._family import family, names

__all__ = ["family", "names"]
