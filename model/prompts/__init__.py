"""From conversations to token ids: templates, tokenizers, what users type, what training learns.

Knows nothing of weights, pictures' pixels or HTTP. `templates` holds the formats of the family.
"""

from model.prompts.load import load_prompter
from model.prompts.messages import ChatMessage, ImagePart, LabelledPrompt, TextPart
from model.prompts.prompter import Prompter
from model.prompts.tools import ToolCard, ToolUse

__all__ = [
    "ChatMessage",
    "ImagePart",
    "LabelledPrompt",
    "Prompter",
    "TextPart",
    "ToolCard",
    "ToolUse",
    "load_prompter",
]
