"""Why the demo checkpoint could not be assembled, in one line that says what to do."""

from __future__ import annotations

from model.errors import CheckpointError


class DemoError(CheckpointError):
    """No network, no room, a download or a trained part that is not what it should be."""
