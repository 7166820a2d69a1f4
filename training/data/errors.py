"""What can be wrong with training data, in words a user can act on."""

from __future__ import annotations


class DataError(ValueError):
    """Training data cannot be used; the message names file and row."""
