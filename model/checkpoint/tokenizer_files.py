"""The tokenizer of a checkpoint: read from whatever files it has, given the image token, written as tokenizer.json.

Conversion of older files (tokenizer.model, vocab.json) is transformers' own.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from model.checkpoint.files import read_json_if_there
from model.errors import CheckpointError

IMAGE = "<image>"
VIDEO = "<video>"
_SOURCES = ("tokenizer.json", "tokenizer.model", "vocab.json")
_CONFIG = "tokenizer_config.json"
_GENERAL_CLASS = "PreTrainedTokenizerFast"  # of transformers 4 and 5, for any tokenizer.json


@dataclass(frozen=True)
class TokenizerPlan:
    """A tokenizer with its new tokens in it, and the settings that go beside it."""

    tokenizer: Tokenizer
    settings: Mapping[str, Any]  # tokenizer_config.json

    @property
    def size(self) -> int:
        """One more than the highest id."""
        return max(self.tokenizer.get_vocab(with_added_tokens=True).values()) + 1

    def id_of(self, token: str) -> int | None:
        found: int | None = self.tokenizer.token_to_id(token)
        return found

    @property
    def stop_token_id(self) -> int | None:
        stop = self.settings.get("eos_token")
        text = stop.get("content") if isinstance(stop, Mapping) else stop
        return self.id_of(text) if isinstance(text, str) else None

    @property
    def chat_template(self) -> str | None:
        template = self.settings.get("chat_template")
        return template if isinstance(template, str) else None


def has_tokenizer(directory: Path) -> bool:
    return any((directory / name).exists() for name in _SOURCES)


def plan_tokenizer(directory: Path, new_tokens: Sequence[str]) -> TokenizerPlan:
    """The directory's tokenizer, with each of `new_tokens` that it lacks, in that order. Raises CheckpointError."""
    if not has_tokenizer(directory):
        raise CheckpointError(f"{directory}: no tokenizer ({', '.join(_SOURCES)})")
    settings = read_json_if_there(directory / _CONFIG)
    try:
        if (directory / "tokenizer.json").exists():
            tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
        else:
            tokenizer, settings = _converted(directory, settings)
        missing = [token for token in new_tokens if tokenizer.token_to_id(token) is None]
        tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in missing])
    except CheckpointError:
        raise
    except Exception as error:  # tokenizers raises nothing narrower
        raise CheckpointError(f"{directory}: the tokenizer cannot be loaded ({_first_line(error)})") from error
    return TokenizerPlan(tokenizer, _settings_with(settings, tokenizer, missing))


def write_tokenizer(plan: TokenizerPlan, folder: Path, *, processor: str | None = None) -> None:
    """tokenizer.json and tokenizer_config.json. The chat template has a file of its own."""
    (folder / "tokenizer.json").write_text(plan.tokenizer.to_str(pretty=True) + "\n", "utf-8")
    settings = {name: value for name, value in plan.settings.items() if name != "chat_template"}
    if processor is not None:
        settings["processor_class"] = processor
    text = json.dumps(settings, indent=2, ensure_ascii=False)
    (folder / _CONFIG).write_text(text + "\n", "utf-8")


def _converted(directory: Path, settings: Mapping[str, Any]) -> tuple[Tokenizer, dict[str, Any]]:
    slow = AutoTokenizer.from_pretrained(str(directory), local_files_only=True, trust_remote_code=False, use_fast=True)
    if not isinstance(slow, PreTrainedTokenizerFast):
        raise CheckpointError(f"{directory}: transformers cannot convert this tokenizer to tokenizer.json")
    named = {name: str(token) for name, token in slow.special_tokens_map.items() if isinstance(token, str)}
    kept = {name: settings[name] for name in ("model_max_length", "chat_template") if name in settings}
    return Tokenizer.from_str(slow.backend_tokenizer.to_str()), {
        **kept,
        **named,
        "tokenizer_class": _GENERAL_CLASS,
        "clean_up_tokenization_spaces": False,
    }


def _settings_with(settings: Mapping[str, Any], tokenizer: Tokenizer, added: Sequence[str]) -> dict[str, Any]:
    """As transformers 4 and 5 both read them.

    4 does not know 5's name of the class for any tokenizer.json, whose own name for it makes token_type_ids too unless
    told otherwise: generate() refuses those. 4 lists added tokens a second time, beside tokenizer.json; the lists must
    agree.
    """
    result = {"tokenizer_class": _GENERAL_CLASS, "model_input_names": ["input_ids", "attention_mask"], **settings}
    if result["tokenizer_class"] == "TokenizersBackend":
        result["tokenizer_class"] = _GENERAL_CLASS
    if isinstance(result.get("extra_special_tokens"), list):  # 5's name for the list; by this name 4 takes a mapping
        result["additional_special_tokens"] = result.pop("extra_special_tokens")
    listed = settings.get("added_tokens_decoder")
    if isinstance(listed, Mapping):
        plain = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
        new = {str(tokenizer.token_to_id(token)): {"content": token, **plain} for token in added}
        result["added_tokens_decoder"] = {**listed, **new}
    return result


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n", 1)[0][:200] or type(error).__name__
