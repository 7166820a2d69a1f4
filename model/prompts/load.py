"""A checkpoint directory's tokenizer and chat template become a prompter."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerFast

from model.config import LlavaConfig
from model.errors import CheckpointError, PromptError
from model.prompts.prompter import Prompter


def load_prompter(directory: Path, config: LlavaConfig) -> Prompter:
    """Reads tokenizer and template files. Raises CheckpointError."""
    where, template = _template_file(directory)
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            str(directory), local_files_only=True, trust_remote_code=False, use_fast=True
        )
    except (OSError, ValueError, ImportError, KeyError) as error:
        raise CheckpointError(
            f"{directory}: the tokenizer cannot be loaded ({' '.join(str(error).split())})"
        ) from error
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise CheckpointError(f"{directory}: no fast tokenizer (tokenizer.json)")
    if len(tokenizer) > config.text.vocab_size:
        raise CheckpointError(
            f"{directory}: the tokenizer has {len(tokenizer)} tokens, the model only {config.text.vocab_size}"
        )
    if tokenizer.convert_ids_to_tokens(config.image_token_id) is None:
        raise CheckpointError(f"{directory}: the tokenizer does not know the image token id {config.image_token_id}")
    if template is None and isinstance(tokenizer.chat_template, str):
        where, template = directory / "tokenizer_config.json", tokenizer.chat_template
    try:
        return Prompter(tokenizer, template, config.image_token_id, _stop_ids(directory, tokenizer))
    except PromptError as error:
        raise CheckpointError(f"{where}: {error}") from error


def _template_file(directory: Path) -> tuple[Path, str | None]:
    """chat_template.jinja, else chat_template.json (transformers 4.4x processors); None: the tokenizer's own counts."""
    jinja = directory / "chat_template.jinja"
    if jinja.is_file():
        try:
            return jinja, jinja.read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise CheckpointError(f"{jinja}: cannot be read as UTF-8 text ({error})") from error
    legacy = directory / "chat_template.json"
    template = _json(legacy).get("chat_template") if legacy.is_file() else None
    return legacy, template if isinstance(template, str) else None


def _stop_ids(directory: Path, tokenizer: PreTrainedTokenizerFast) -> frozenset[int]:
    ids: set[int] = set()
    generation = directory / "generation_config.json"
    if generation.is_file():
        eos = _json(generation).get("eos_token_id")
        ids.update([eos] if isinstance(eos, int) else eos or [])
    if tokenizer.eos_token_id is not None:
        ids.add(int(tokenizer.eos_token_id))
    return frozenset(ids)


def _json(path: Path) -> dict[str, Any]:
    try:
        raw = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read as JSON ({error})") from error
    return raw if isinstance(raw, dict) else {}
