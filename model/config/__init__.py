"""The numbers that say what a checkpoint is: vision tower, connector, language model, image handling.

Pure Python. Reads the Hugging Face `config.json` of `llava`, `llava_next` and `llava_onevision` (transformers 4.37 to
5.x) and keeps what the model needs in frozen dataclasses; `to_hf` writes it back.
"""

from model.config.llava import LlavaConfig
from model.config.rope import RopeConfig
from model.config.text import TextConfig
from model.config.vision import VisionConfig
from model.config.write import to_hf
from model.geometry import ImageMode

__all__ = ["ImageMode", "LlavaConfig", "RopeConfig", "TextConfig", "VisionConfig", "to_hf"]
