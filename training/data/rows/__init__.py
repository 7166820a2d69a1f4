"""Rows of training data in files: read one by one, held to their shape, written whole or not at all.

The LLaVA conversation format, `{id, image (a path, a list of paths, or none), conversations: [{from, value}]}`, as a
JSON list, one object a line, or Parquet. Memory does not grow with the rows. Knows nothing of models, and imports no
torch.
"""

from training.data.rows.bad import BadRow, OnBad, Rejects
from training.data.rows.json_values import array_values, object_members
from training.data.rows.progress import RowBar, row_bar
from training.data.rows.reading import Row, RowFile
from training.data.rows.shape import PLACE, image_paths, shape_fault
from training.data.rows.spill import Spill
from training.data.rows.writing import RowWriter

__all__ = [
    "PLACE",
    "BadRow",
    "OnBad",
    "Rejects",
    "Row",
    "RowBar",
    "RowFile",
    "RowWriter",
    "Spill",
    "array_values",
    "image_paths",
    "object_members",
    "row_bar",
    "shape_fault",
]
