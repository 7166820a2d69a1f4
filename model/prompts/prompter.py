"""From a conversation to token ids, through a chat template.

What a user types is text and stays text: a special token or an image placeholder written in a message is tokenized like
any other text. Only an `ImagePart` becomes image tokens, as many as its layout says.

A conversation is tokenized in stretches that end where an answer is to begin, in training as in serving. So what a
model is trained on begins with the very tokens that serving asks it to continue, whatever the answer begins with.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerFast

from model.errors import PromptError
from model.geometry import ImageLayout
from model.prompts.anatomy import Anatomy, dissect
from model.prompts.guard import AnswerBegins, AnswerEnds, Guard, Special, Written
from model.prompts.messages import ChatMessage, LabelledPrompt, TextPart
from model.prompts.sandbox import BoundedTemplate
from model.prompts.special_tokens import TemplateTokenizer
from model.prompts.tools import ToolCard, ToolFormat, find_format, tool_values, use_values


class Prompter:
    """One checkpoint's tokenizer and a chat template. Safe to use from several threads.

    An answer ends with one of `stop_token_ids` or, in formats that have no token for it, before one of `stop_strings`.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerFast,
        template: str | None,
        image_token_id: int,
        stop_token_ids: frozenset[int],
    ) -> None:
        """Raises PromptError when the template cannot be read or does not end."""
        self.tokenizer = tokenizer
        self.template = template
        self._image_id = image_token_id
        self._image_token = str(tokenizer.convert_ids_to_tokens(image_token_id))
        self._given_stop_ids = stop_token_ids
        self._prefix = _prefix(tokenizer)
        self._tokens = TemplateTokenizer(tokenizer, {image_token_id, *self._prefix, *stop_token_ids})
        self._guard = Guard(self._tokens.name_of, template or "")
        self._bounded = None if template is None else BoundedTemplate(template)
        anatomy = None if template is None else dissect(self._render_messages, self._image_token)
        self._takes_parts = anatomy is not None and anatomy.takes_parts
        self._lead = anatomy.lead if anatomy is not None else ""
        closing_id = None if anatomy is None else self._closing_id(anatomy)
        self.stop_token_ids = stop_token_ids | ({closing_id} if closing_id is not None else frozenset())
        self.stop_strings = _stop_strings(anatomy) if anatomy is not None and closing_id is None else ()
        self.tool_format = self._find_tool_format()

    def with_template(self, template: str) -> Prompter:
        """The same checkpoint behind another template. Raises PromptError."""
        return Prompter(self.tokenizer, template, self._image_id, self._given_stop_ids)

    @property
    def special_tokens(self) -> frozenset[str]:
        """What the tokenizer holds apart from text, by name."""
        return frozenset(self._tokens.name_of)

    @property
    def puts_space_first(self) -> bool:
        """Whether the template lets an answer begin with a space that is not the assistant's."""
        return self._lead == " "

    def build(
        self, messages: Sequence[ChatMessage], layouts: Sequence[ImageLayout], tools: Sequence[ToolCard] = ()
    ) -> tuple[int, ...]:
        """Token ids that end where the assistant's answer begins. Raises PromptError."""
        return self._lay_out(messages, layouts, generation=True, tools=tools).token_ids

    def build_labelled(self, messages: Sequence[ChatMessage], layouts: Sequence[ImageLayout]) -> LabelledPrompt:
        """The conversation with its answers, for training: labels are set while tokens are laid down.

        Supervised are the assistant's words and what ends them: the stop token (or string) that the template puts
        behind them. Raises PromptError.
        """
        return self._lay_out(messages, layouts, generation=False)

    def build_text(self, text: str, *, special_first: bool = True) -> tuple[int, ...]:
        """A raw prompt without template or images; special tokens in it stay text.

        `special_first`: with what the tokenizer itself puts first (BOS), as the model was trained.
        """
        return (*(self._prefix if special_first else ()), *self._tokens.encode(text).ids)

    def encode_continuation(self, text: str) -> list[int]:
        """Text that goes on after other text, so that nothing is put before it; special tokens in it stay text."""
        return self._tokens.encode(text, continues=True).ids

    def render(self, messages: Sequence[ChatMessage]) -> str:
        """The template's text, for people to read."""
        shown = []
        for piece in self._guard.pieces(self._render(messages, generation=True)):
            match piece:
                case Written(text) | Special(text):
                    shown.append(text)
        return "".join(shown)

    def _lay_out(
        self,
        messages: Sequence[ChatMessage],
        layouts: Sequence[ImageLayout],
        *,
        generation: bool,
        tools: Sequence[ToolCard] = (),
    ) -> LabelledPrompt:
        answers = [message for message in messages if message.role == "assistant" and not _only_calls(message)]
        stretches = self._stretches(self._render(messages, generation=generation, tools=tools), answers)
        if not generation and len(stretches) != len(answers) + 1:
            raise PromptError(
                f"The chat template shows {len(stretches) - 1} of {len(answers)} answers: they cannot be learned from."
            )
        ids, flags = list(self._prefix), [False] * len(self._prefix)
        for place, stretch in enumerate(stretches):
            encoded = self._tokens.encode(stretch.text, continues=place > 0)
            ids += encoded.ids
            flags += [start < stretch.supervised for start in encoded.starts]
        return self._expand(ids, flags, layouts)

    def _render(self, messages: Sequence[ChatMessage], *, generation: bool, tools: Sequence[ToolCard] = ()) -> str:
        if self._bounded is None:
            raise PromptError("This checkpoint has no chat template; use /v1/completions or add chat_template.jinja.")
        if not messages:
            raise PromptError("A conversation needs at least one message.")
        content = [self._value(message) for message in messages]
        return self._render_messages(content, generation, tool_values(tools, self._guard.hide) or None)

    def _render_messages(
        self, messages: list[dict[str, Any]], generation: bool, tools: list[dict[str, Any]] | None = None
    ) -> str:
        assert self._bounded is not None
        special = {name: str(token) for name, token in self.tokenizer.special_tokens_map.items()}
        return self._bounded.render(
            {**special, "messages": messages, "tools": tools, "documents": None, "add_generation_prompt": generation}
        )

    def _find_tool_format(self) -> ToolFormat | None:
        """How the template lets the model call tools; None where it has no place for them."""
        if self._bounded is None or "tools" not in (self.template or ""):
            return None
        found = find_format(lambda messages, tools: self._render_messages(messages, True, tools))
        return None if "<tool_call>" in self.special_tokens else found  # which an answer's text would leave out

    def _value(self, message: ChatMessage) -> dict[str, Any]:
        value: dict[str, Any] = {"role": message.role, "content": self._content(message)}
        if message.tool_calls:
            value["tool_calls"] = use_values(message.tool_calls, self._guard.hide)
        if message.role == "tool":
            value["tool_call_id"] = self._guard.hide(message.tool_call_id)
        return value

    def _content(self, message: ChatMessage) -> str | list[dict[str, str]]:
        if message.role == "assistant":
            if not all(isinstance(part, TextPart) for part in message.parts):
                raise PromptError("An assistant message holds text only, no images.")
            if _only_calls(message):
                return ""
            text = self._guard.mark_answer(_words(message))
            return [{"type": "text", "text": text}] if self._takes_parts else text
        if message.role == "tool":
            return self._guard.hide(_words(message))
        if self._takes_parts:
            return [
                {"type": "text", "text": self._guard.hide(part.text)}
                if isinstance(part, TextPart)
                else {"type": "image"}
                for part in message.parts
            ]
        return "\n".join(
            self._guard.hide(part.text) if isinstance(part, TextPart) else self._image_token for part in message.parts
        )

    def _stretches(self, rendered: str, answers: Sequence[ChatMessage]) -> list[_Stretch]:
        """The rendered text, special tokens under their secret names, cut where answers begin."""
        stretches = [_Stretch()]
        answer: str | None = None  # the one that is being read
        ending: str | None = None  # the one that has just ended, while what closes it may still come
        for piece in self._guard.pieces(self._without_prefix(rendered)):
            stretch = stretches[-1]
            match piece:
                case AnswerBegins():
                    if answer is not None or len(stretches) > len(answers):
                        raise PromptError("The chat template shows an answer twice or inside another.")
                    answer, ending = _words(answers[len(stretches) - 1]), None
                    stretches.append(_Stretch(stretch.cut(_lead(self._lead, answer, stretch.text))))
                case AnswerEnds():
                    if answer is None:
                        raise PromptError("The chat template shows an answer's end without its beginning.")
                    stretch.supervised, answer, ending = len(stretch.text), None, answer
                case Special(token):
                    stretch.text += self._tokens.name_of[token]
                    if ending is not None and self.tokenizer.convert_tokens_to_ids(token) in self.stop_token_ids:
                        stretch.supervised = len(stretch.text)
                    ending = None
                case Written(text):
                    if ending is not None:
                        own = _trailing_space(ending) if text.startswith(_trailing_space(ending)) else ""
                        rest = text[len(own) :]
                        stop = next((stop for stop in self.stop_strings if rest.startswith(stop)), "")
                        stretch.supervised += len(own) + len(stop)
                        ending = None if stop or rest.strip() else ending
                    stretch.text += text
        return stretches

    def _without_prefix(self, rendered: str) -> str:
        """Without what the tokenizer itself puts first (BOS): many templates write it too."""
        for token_id in self._prefix:
            rendered = rendered.removeprefix(str(self.tokenizer.convert_ids_to_tokens(token_id)))
        return rendered

    def _closing_id(self, anatomy: Anatomy) -> int | None:
        """The special token that the template puts behind an answer, if it does."""
        pieces = self._guard.pieces((anatomy.ending or "").lstrip())
        match next(pieces, None):
            case Special(token) if token != self._image_token:
                return int(self.tokenizer.convert_tokens_to_ids(token))
        return None

    def _expand(self, ids: list[int], supervised: list[bool], layouts: Sequence[ImageLayout]) -> LabelledPrompt:
        """Each image token as often as its image's layout says."""
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


@dataclass
class _Stretch:
    """Text to be tokenized at once; its first `supervised` characters are the assistant's."""

    text: str = ""
    supervised: int = 0

    def cut(self, end: str) -> str:
        """Takes `end` off the text and returns it."""
        self.text = self.text.removesuffix(end)
        return end


def _words(message: ChatMessage) -> str:
    return "".join(part.text for part in message.parts if isinstance(part, TextPart))


def _only_calls(message: ChatMessage) -> bool:
    """An answer that is nothing but calls of tools: no words to mark."""
    return bool(message.tool_calls) and not _words(message)


def _lead(lead: str, answer: str, text: str) -> str:
    """How much of the end of `text` comes after the generation prompt: the template's space, the answer's own."""
    own = answer[: len(answer) - len(answer.lstrip())]
    return next((end for end in (lead + own, lead) if text.endswith(end)), "")


def _trailing_space(answer: str) -> str:
    return answer[len(answer.rstrip()) :] if answer.strip() else ""


def _stop_strings(anatomy: Anatomy) -> tuple[str, ...]:
    """What ends an answer in a format without a stop token: its separator, with the white space before it or without.

    A separator of letters, as in "USER:", is none: an answer may well say it.
    """
    space, word = anatomy.separator
    if any(letter.isalnum() for letter in word):
        return ()
    return tuple(dict.fromkeys(stop for stop in (space + word, word) if stop))


def _prefix(tokenizer: PreTrainedTokenizerFast) -> list[int]:
    """What the tokenizer puts before any text (BOS), if anything."""
    whole, text = tokenizer("a").input_ids, tokenizer("a", add_special_tokens=False).input_ids
    places = (at for at in range(len(whole)) if whole[at : at + len(text)] == text)
    return list(whole[: next(places, 0)])
