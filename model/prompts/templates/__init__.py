"""The prompt formats that the LLaVA family was trained with: their Jinja sources, which is whose, what differs."""

from model.prompts.templates.choice import choose_template, family_template, find_template
from model.prompts.templates.recognition import compare_templates, recognise_template
from model.prompts.templates.sources import MARKED_IMAGE, TEMPLATES

__all__ = [
    "MARKED_IMAGE",
    "TEMPLATES",
    "choose_template",
    "compare_templates",
    "family_template",
    "find_template",
    "recognise_template",
]
