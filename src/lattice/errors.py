"""Errors that a user can cause, all in one form: `[where] expected ..., got ...` and, where one exists, a hint.

Not here: programming mistakes inside Lattice itself, which stay ordinary Python exceptions.
"""

from __future__ import annotations


class LatticeError(Exception):
    """Base of every error that an input, a file or a setting can cause."""


class FormatError(LatticeError):
    """A file from outside is malformed, truncated or hostile."""


class SourceError(LatticeError):
    """A model source cannot be found, fetched or verified."""


class LatticeWarning(UserWarning):
    """Something the user should know that is not an error, such as a truncated text."""


def expected(
    where: str, wanted: object, got: object, *, hint: str | None = None, kind: type[LatticeError] = LatticeError
) -> LatticeError:
    """Return (not raise) an error in the house form.

    >>> str(expected("linear", "weight of shape (n, 4)", "(n, 5)", hint="transpose it"))
    '[linear] expected weight of shape (n, 4), got (n, 5)\\nhint: transpose it'
    """
    message = f"[{where}] expected {wanted}, got {got}"
    return kind(f"{message}\nhint: {hint}" if hint else message)
