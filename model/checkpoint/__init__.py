"""Checkpoints on disk: directories in Hugging Face layout, safetensors only."""

from model.checkpoint.load import Checkpoint, load_checkpoint
from model.checkpoint.save import save_checkpoint

__all__ = ["Checkpoint", "load_checkpoint", "save_checkpoint"]
