"""Rows looked at before anyone trains on them: shape, images, tokens, duplicates; and a page to look at oneself."""

from training.data.check.findings import KINDS, Checked, Finding
from training.data.check.page import page
from training.data.check.presets import PRESETS
from training.data.check.run import check

__all__ = ["KINDS", "PRESETS", "Checked", "Finding", "check", "page"]
