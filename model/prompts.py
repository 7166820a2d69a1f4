"""From a conversation to token ids, through the checkpoint's own chat template.

Templates run in transformers' Jinja sandbox. What a user types is text and stays text: a special token or an image
placeholder written in a message is tokenized letter by letter, never as the token. Only an `ImagePart` becomes image
tokens, as many as its layout says.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from model.config import LlavaConfig
from model.errors import CheckpointError, PromptError
from model.geometry import ImageLayout


@dataclass(frozen=True)
class TextPart:
    text: str


@dataclass(frozen=True)
class ImagePart:
    """The next image of the conversation stands here."""


@dataclass(frozen=True)
class ChatMessage:
    role: str
    parts: tuple[TextPart | ImagePart, ...]


@dataclass(frozen=True)
class LabelledPrompt:
    """A whole conversation as tokens; `supervised[i]` says whether token i is one that the assistant must produce."""

    token_ids: tuple[int, ...]
    supervised: tuple[bool, ...]


class Prompter:
    """One checkpoint's tokenizer and chat template. Safe to use from several threads."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerFast,
        template: str | None,
        image_token_id: int,
        stop_token_ids: frozenset[int],
    ) -> None:
        self.tokenizer = tokenizer
        self.stop_token_ids = stop_token_ids
        self._template = template
        self._image_id = image_token_id
        self._image_token = str(tokenizer.convert_ids_to_tokens(image_token_id))
        self._prefix: list[int] = tokenizer("").input_ids  # what the tokenizer puts first (BOS), if anything
        self._plain = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
        self._plain.encode_special_tokens = True  # special tokens in the text are split like any other text
        special = sorted({token.content for token in tokenizer.added_tokens_decoder.values()}, key=len, reverse=True)
        self._special = re.compile("|".join(map(re.escape, special))) if special else None
        self._takes_parts = template is not None and self._renders_parts()

    def build(self, messages: Sequence[ChatMessage], layouts: Sequence[ImageLayout]) -> tuple[int, ...]:
        """Token ids that end where the assistant's answer begins. Raises PromptError."""
        guard = _Guard(self._special)
        rendered = self._render(messages, guard)
        return self._expand(self._encode(rendered, guard), layouts)

    def build_labelled(self, messages: Sequence[ChatMessage], layouts: Sequence[ImageLayout]) -> LabelledPrompt:
        """The conversation with its answers, for training: labels are set while tokens are laid down.

        Supervised are the assistant's words and the stop token that the template puts behind them. Raises PromptError.
        """
        guard = _Guard(self._special)
        rendered = self._render(messages, guard, generation=False, mark_answers=True)
        ids: list[int] = list(self._prefix)
        supervised: list[bool] = [False] * len(ids)
        for index, piece in enumerate(guard.split_answers(rendered)):
            tokens = self._encode_pieces(piece, guard)
            answer = index % 2 == 1
            if index == 0 and self._prefix and tokens[: len(self._prefix)] == self._prefix:
                tokens = tokens[len(self._prefix) :]
            flags = [answer] * len(tokens)
            if not answer and index > 0 and tokens and tokens[0] in self.stop_token_ids:
                flags[0] = True
            ids += tokens
            supervised += flags
        return self._expand_labelled(ids, supervised, layouts)

    def build_text(self, text: str) -> tuple[int, ...]:
        """A raw prompt without template or images; special tokens in it stay text."""
        return tuple(self._prefix + self._encode_plain(text))

    def render(self, messages: Sequence[ChatMessage]) -> str:
        """The template's text, for people to read."""
        return self._render(messages, _Guard(None))

    def _render(
        self, messages: Sequence[ChatMessage], guard: _Guard, *, generation: bool = True, mark_answers: bool = False
    ) -> str:
        if self._template is None:
            raise PromptError("This checkpoint has no chat template; use /v1/completions or add chat_template.jinja.")
        content = [
            {
                "role": message.role,
                "content": self._content(message, guard, mark=mark_answers and message.role == "assistant"),
            }
            for message in messages
        ]
        try:
            rendered = self.tokenizer.apply_chat_template(
                content, chat_template=self._template, tokenize=False, add_generation_prompt=generation
            )
        except jinja2.TemplateError as error:
            raise PromptError(f"The chat template refuses this conversation: {error}") from error
        return str(rendered)

    def _content(self, message: ChatMessage, guard: _Guard, *, mark: bool) -> str | list[dict[str, str]]:
        if mark:
            text = guard.mark_answer("".join(part.text for part in message.parts if isinstance(part, TextPart)))
            return [{"type": "text", "text": text}] if self._takes_parts else text
        if self._takes_parts:
            return [
                {"type": "text", "text": guard.hide(part.text)} if isinstance(part, TextPart) else {"type": "image"}
                for part in message.parts
            ]
        pieces = [guard.hide(part.text) if isinstance(part, TextPart) else self._image_token for part in message.parts]
        return "\n".join(pieces)

    def _renders_parts(self) -> bool:
        """Whether the template understands content given as a list of parts."""
        probe = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "probe"}]}]
        try:
            rendered = self.tokenizer.apply_chat_template(probe, chat_template=self._template, tokenize=False)
        except (jinja2.TemplateError, TypeError):
            return False
        return "probe" in rendered and self._image_token in rendered and "'type'" not in rendered

    def _encode_pieces(self, rendered: str, guard: _Guard) -> list[int]:
        ids: list[int] = []
        for text, hidden in guard.reveal(rendered):
            if hidden:
                ids += self._encode_plain(text)
            elif text:
                ids += self.tokenizer.encode(text, add_special_tokens=False)
        return ids

    def _encode(self, rendered: str, guard: _Guard) -> list[int]:
        ids = self._encode_pieces(rendered, guard)
        if self._prefix and ids[: len(self._prefix)] != self._prefix:
            ids = self._prefix + ids
        return ids

    def _encode_plain(self, text: str) -> list[int]:
        ids: list[int] = self._plain.encode(text, add_special_tokens=False).ids
        if self._image_id in ids:  # a tokenizer that knows the placeholder as an ordinary added token
            ids = [i for letter in text for i in self._plain.encode(letter, add_special_tokens=False).ids]
        return ids

    def _expand(self, ids: list[int], layouts: Sequence[ImageLayout]) -> tuple[int, ...]:
        return self._expand_labelled(ids, [False] * len(ids), layouts).token_ids

    def _expand_labelled(
        self, ids: list[int], supervised: list[bool], layouts: Sequence[ImageLayout]
    ) -> LabelledPrompt:
        places = ids.count(self._image_id)
        if places != len(layouts):
            raise PromptError(f"The conversation has {len(layouts)} images, but its template gives {places} a place.")
        remaining = iter(layouts)
        expanded: list[int] = []
        flags: list[bool] = []
        for token, flag in zip(ids, supervised, strict=True):
            times = next(remaining).tokens if token == self._image_id else 1
            expanded += [token] * times
            flags += [flag] * times
        return LabelledPrompt(tuple(expanded), tuple(flags))


class _Guard:
    """Hides special tokens in user text behind marks that no user can guess, while the template is rendered."""

    def __init__(self, special: re.Pattern[str] | None) -> None:
        self._special = special
        self._nonce = secrets.token_hex(8)
        self._hidden: list[str] = []

    def hide(self, text: str) -> str:
        if self._special is None:
            return text
        return self._special.sub(self._mark, text)

    def mark_answer(self, text: str) -> str:
        """The assistant's words between two marks."""
        mark = f"\ue000{self._nonce}|\ue001"
        return f"{mark}{self.hide(text)}{mark}"

    def split_answers(self, rendered: str) -> list[str]:
        """What lies outside answers at even places, the answers at odd ones."""
        return rendered.split(f"\ue000{self._nonce}|\ue001")

    def reveal(self, rendered: str) -> Iterator[tuple[str, bool]]:
        """Pieces of the rendered text, and whether each is hidden user text."""
        for index, piece in enumerate(re.split(f"\ue000{self._nonce}:(\\d+)\ue001", rendered)):
            yield (self._hidden[int(piece)], True) if index % 2 else (piece, False)

    def _mark(self, match: re.Match[str]) -> str:
        self._hidden.append(match.group())
        return f"\ue000{self._nonce}:{len(self._hidden) - 1}\ue001"


def load_prompter(directory: Path, config: LlavaConfig) -> Prompter:
    """Reads tokenizer and template files. Raises CheckpointError."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            str(directory), local_files_only=True, trust_remote_code=False, use_fast=True
        )
    except (OSError, ValueError, ImportError, KeyError) as error:
        raise CheckpointError(f"{directory}: the tokenizer cannot be loaded ({error})") from error
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise CheckpointError(f"{directory}: no fast tokenizer (tokenizer.json)")
    if len(tokenizer) > config.text.vocab_size:
        raise CheckpointError(
            f"{directory}: the tokenizer has {len(tokenizer)} tokens, the model only {config.text.vocab_size}"
        )
    if tokenizer.convert_ids_to_tokens(config.image_token_id) is None:
        raise CheckpointError(f"{directory}: the tokenizer does not know the image token id {config.image_token_id}")
    return Prompter(tokenizer, _template(directory, tokenizer), config.image_token_id, _stop_ids(directory, tokenizer))


def _template(directory: Path, tokenizer: PreTrainedTokenizerFast) -> str | None:
    """chat_template.jinja, chat_template.json (transformers 4.4x processors), then the tokenizer's own."""
    jinja = directory / "chat_template.jinja"
    if jinja.is_file():
        return jinja.read_text("utf-8")
    legacy = directory / "chat_template.json"
    if legacy.is_file():
        template = _json(legacy).get("chat_template")
        if isinstance(template, str):
            return template
    own = tokenizer.chat_template
    return own if isinstance(own, str) else None


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
