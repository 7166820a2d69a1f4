"""Synthetic scenes: composed pictures, with questions whose answers are known by construction.

Start at `dataset.write_dataset` (a data set on disk) or `compose.Composer` (one scene at a time). Sources are public
domain (Open Clipart), OFL (Noto colour emoji) or our own drawings; backgrounds are our own or photos of MATE's
background set. This package knows nothing of models.
"""

from training.scenes.assets import MissingAssetError
from training.scenes.catalogue import Catalogue, Kind, drawn_catalogue, full_catalogue
from training.scenes.chat import ChatPrompt, chat_prompts, merge_chat
from training.scenes.compose import Composer
from training.scenes.dataset import DatasetError, DatasetSummary, write_dataset
from training.scenes.mix import MIXES, Mix, Proportions
from training.scenes.scene import Family, Layout, Placed, Scene, Turn

__all__ = [
    "MIXES",
    "Catalogue",
    "ChatPrompt",
    "Composer",
    "DatasetError",
    "DatasetSummary",
    "Family",
    "Kind",
    "Layout",
    "MissingAssetError",
    "Mix",
    "Placed",
    "Proportions",
    "Scene",
    "Turn",
    "chat_prompts",
    "drawn_catalogue",
    "full_catalogue",
    "merge_chat",
    "write_dataset",
]
