"""Which chat template a checkpoint gets: one that was asked for, the family's for the original layout, else its own."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from model.checkpoint.files import member, read_json_if_there
from model.checkpoint.lineage import repository_name
from model.checkpoint.original import told_by_export
from model.checkpoint.tokenizer_files import IMAGE, TokenizerPlan
from model.errors import CheckpointError
from model.prompts.templates import MARKED_IMAGE, TEMPLATES, choose_template

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
    """The format that an original checkpoint was trained with.

    With mm_use_im_start_end, the original lays an image between two tokens of its own.
    """
    special = {token.content for token in tokenizer.tokenizer.get_added_tokens_decoder().values()}
    template = TEMPLATES[family_template_name(directory, raw, special)]
    return template.replace(IMAGE, MARKED_IMAGE) if raw.get("mm_use_im_start_end", False) else template


def family_template_name(directory: Path, raw: Mapping[str, Any], special_tokens: Collection[str]) -> str:
    """What our own export wrote down, else what configuration, names and tokens tell."""
    if (told := told_by_export(raw).get("chat_template")) in TEMPLATES:
        return str(told)
    return choose_template(raw, repository_name(directory), special_tokens)
