"""Checkpoints on disk: loaded, saved, brought in from other layouts, given out to them, and held against their word."""

from model.checkpoint.load import Checkpoint, load_checkpoint
from model.checkpoint.save import save_checkpoint

__all__ = ["Checkpoint", "load_checkpoint", "save_checkpoint"]
