"""Image arithmetic: from (width, height) alone to canvas, tiles, unpadding box, token count and pixel budget.

Pure Python, exact and fast, so that the controller counts with it what the worker will compute. Facts: the papers of
LLaVA-1.5 and LLaVA-NeXT, their reference implementations, and Hugging Face's `LlavaForConditionalGeneration`,
`LlavaNextForConditionalGeneration` and `LlavaOnevisionForConditionalGeneration`. Canvases are (width, height) here;
Hugging Face lists them as (height, width), which the reader of config.json turns round.
"""

from model.geometry.canvas import Canvas, choose_canvas, fit_within, paste_at
from model.geometry.features import Box, Rounding, UnpadRule, covered_box, shrink, unpad_box
from model.geometry.layout import BaseView, ImageGeometry, ImageLayout, ImageMode, PixelBudget, SeveralImages

__all__ = [
    "BaseView",
    "Box",
    "Canvas",
    "ImageGeometry",
    "ImageLayout",
    "ImageMode",
    "PixelBudget",
    "Rounding",
    "SeveralImages",
    "UnpadRule",
    "choose_canvas",
    "covered_box",
    "fit_within",
    "paste_at",
    "shrink",
    "unpad_box",
]
