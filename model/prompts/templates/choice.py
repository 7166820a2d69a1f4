"""Which format a checkpoint was trained with, told from its configuration and names, as the reference tells it.

The facts: `llava/serve/cli.py` of LLaVA picks by the checkpoint's name; the model types of LLaVA-NeXT name the language
model.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from model.errors import PromptError
from model.prompts.sandbox import MOST_SOURCE
from model.prompts.templates.sources import TEMPLATES

# In names of checkpoints and of the language models in them, in the order in which they are looked for.
_HINTS: tuple[tuple[str, str], ...] = (
    ("plain", r"pretrain|projector"),
    ("llama_3", r"llama-?_?3(?!\d)"),
    ("chatml", r"hermes|(?<![a-z0-9])yi(?![a-z])|34b|chatml"),
    ("qwen_1_5", r"qwen"),
    ("mistral", r"mistral"),
    ("v0", r"(?<![a-z0-9])v0(?!\d)"),
    ("v1", r"vicuna|(?<![a-z0-9])v?1[.-][1356]|(?<![a-z0-9])v1(?!\d)"),
)
_LLAMA_3_VOCABULARY = range(128_000, 129_000)


def choose_template(original_config: Mapping[str, Any], name_or_path: str, special_tokens: Collection[str] = ()) -> str:
    """The name in TEMPLATES of the format for a checkpoint; where nothing tells, what its special tokens allow."""
    family = family_template(original_config, name_or_path, special_tokens)
    if family is not None:
        return family
    if "<|eot_id|>" in special_tokens:
        return "llama_3"
    return "qwen_1_5" if "<|im_start|>" in special_tokens else "v1"


def family_template(
    original_config: Mapping[str, Any], name_or_path: str, special_tokens: Collection[str] = ()
) -> str | None:
    """The format that a checkpoint was trained with, if its configuration or names tell; None when it is anybody's."""
    text = original_config.get("text_config")
    text = text if isinstance(text, Mapping) else {}
    if original_config.get("tune_mm_mlp_adapter") is True:
        return "plain"
    names = [Path(name_or_path).name, original_config.get("_name_or_path"), text.get("_name_or_path")]
    hinted = _hinted([name.lower() for name in names if isinstance(name, str)])
    if hinted is not None:
        return hinted
    kinds = {original_config.get("model_type"), text.get("model_type")}
    if kinds & {"llava_qwen", "qwen2"}:
        return "qwen_1_5"
    if "llava_mistral" in kinds or ("mistral" in kinds and "<|im_start|>" not in special_tokens):
        return "mistral"
    if text.get("vocab_size", original_config.get("vocab_size")) in _LLAMA_3_VOCABULARY:
        return "llama_3"
    original = "mm_vision_tower" in original_config and bool(kinds & {"llava", "llava_llama"})
    return "v1" if original else None


def _hinted(names: list[str]) -> str | None:
    """By the checkpoint's own name first; that of its language model tells only where the own does not."""
    for name in names:
        for template, pattern in _HINTS:
            if re.search(pattern, Path(name).name):
                return template
    return None


def find_template(name_or_file: str) -> str:
    """The source of a format of ours by name, or what a file holds. Raises PromptError that says what there is."""
    if name_or_file in TEMPLATES:
        return TEMPLATES[name_or_file]
    file = Path(name_or_file).expanduser()
    if not file.is_file():
        raise PromptError(f"No chat template {name_or_file!r}: expected one of {', '.join(TEMPLATES)}, or a file.")
    try:
        with file.open(encoding="utf-8") as stream:
            return stream.read(MOST_SOURCE + 1)
    except (OSError, UnicodeDecodeError) as error:
        raise PromptError(f"{file}: cannot be read as UTF-8 text ({error}).") from error
