"""The templates' sources, put together from the Jinja files beside this one.

Each file holds what is its format's own. All get the macros of `message.jinja`; formats that know nothing but questions
and answers in turn get `turns.jinja`, which refuses the rest. A source is whole: it needs no file beside it. Where its
strings come from is said in docs/prompts.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files
from types import MappingProxyType

IMAGE = "<image>"
MARKED_IMAGE = f"<im_start>{IMAGE}<im_end>"  # how LLaVA-1.0 laid an image where mm_use_im_start_end says so

_IN_TURN = ("plain", "v0", "v1", "mistral")
_IN_ANY_ORDER = ("chatml", "qwen_1_5", "llama_3")


def _source(*names: str) -> str:
    return "".join((files(__package__) / f"{name}.jinja").read_text("utf-8") for name in names)


TEMPLATES: Mapping[str, str] = MappingProxyType(
    {name: _source("message", "turns", name) for name in _IN_TURN}
    | {name: _source("message", name) for name in _IN_ANY_ORDER}
)
