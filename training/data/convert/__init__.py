"""Published annotation files into the LLaVA conversation format, with the prompts that the family was trained with."""

from training.data.convert.base import Boxes, CocoYear, Converter, Settings
from training.data.convert.formats import CONVERTERS
from training.data.convert.run import Report, convert

__all__ = ["CONVERTERS", "Boxes", "CocoYear", "Converter", "Report", "Settings", "convert"]
