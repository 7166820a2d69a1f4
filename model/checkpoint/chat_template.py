"""Which chat template a checkpoint gets: one that was asked for, the family's for the original layout, else its own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from model.checkpoint.files import member, read_json_if_there
from model.checkpoint.tokenizer_files import IMAGE, TokenizerPlan
from model.errors import CheckpointError
from model.prompts.templates import TEMPLATES, choose_template

STOP_TOKENS = ("<|im_end|>", "<|eot_id|>", "</s>")  # whichever of them a template writes ends an answer


def own_template(directory: Path, tokenizer: TokenizerPlan) -> str | None:
    """chat_template.jinja, chat_template.json (processors of transformers 4.4x), then the tokenizer's own."""
    if (directory / "chat_template.jinja").exists():
        try:
            return member(directory, "chat_template.jinja").read_text("utf-8")
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{directory / 'chat_template.jinja'}: not readable as text ({error})") from error
    legacy = read_json_if_there(directory / "chat_template.json").get("chat_template")
    return legacy if isinstance(legacy, str) else tokenizer.chat_template


def family_template(directory: Path, raw: Mapping[str, Any], tokenizer: TokenizerPlan) -> str:
    """The format that an original checkpoint was trained with, told from its configuration, names and tokens.

    With mm_use_im_start_end, the original lays an image between two tokens of its own.
    """
    special = {token.content for token in tokenizer.tokenizer.get_added_tokens_decoder().values()}
    template = TEMPLATES[choose_template(raw, repository_name(directory), special)]
    return template.replace(IMAGE, f"<im_start>{IMAGE}<im_end>") if raw.get("mm_use_im_start_end", False) else template


def repository_name(directory: Path) -> str:
    """The directory's name; in a Hugging Face cache, where that is a digest, the repository's."""
    path = directory.absolute()
    return path.parent.parent.name.rpartition("--")[2] if path.parent.name == "snapshots" else path.name
