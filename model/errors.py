"""What can go wrong with a checkpoint, an image or a prompt, in words a user can act on."""

from __future__ import annotations


class ModelError(ValueError):
    """Base of this package's errors; the message names what was wrong and what to do."""


class CheckpointError(ModelError):
    """A checkpoint directory cannot be used as it is."""


class ImageError(ModelError):
    """An image is unreadable, of a format that is not accepted, or too large."""


class PromptError(ModelError):
    """A conversation cannot be laid out as tokens (images without a place, a template that refuses)."""
